"""Encoders and decoders of images of any shape."""

import pytest
import torch

from trainer.images import ImageSpec
from trainer.networks import ConvConfig, MlpConfig, ResnetConfig
from trainer.networks.normalisation import wide_groups
from trainer.networks.resnet import ResidualBlock

NETWORKS = [MlpConfig(hidden=(8,)), ConvConfig(channels=(4, 6), hidden=8), ResnetConfig(channels=(4, 6, 8), hidden=8)]


@pytest.mark.parametrize("config", NETWORKS, ids=lambda config: config.kind)
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 7, 5), (2, 1, 3)])
def test_images_to_vectors_and_back(config, shape):
    spec = ImageSpec(*shape)
    assert config.encoder(spec, 6)(torch.zeros(2, *shape)).shape == (2, 6)
    assert config.decoder(spec, 3, 4)(torch.zeros(2, 3)).shape == (2, 4, *shape[1:])


def test_variance_does_not_grow_with_depth():
    """Of a stack of residual blocks at the start, whatever its depth."""
    torch.manual_seed(0)
    x = torch.randn(4, 16, 8, 8)
    for depth in (1, 8, 64):
        stack = torch.nn.Sequential(*(ResidualBlock(16, depth) for _ in range(depth)))
        assert 0.9 < stack(x).var().item() / x.var().item() < 1.5


@pytest.mark.parametrize("channels", [1, 3, 4, 8, 22, 64, 96, 384])
def test_no_group_has_so_few_channels_that_their_mean_is_lost(channels):
    groups = wide_groups(channels).num_groups
    assert channels % groups == 0
    assert groups <= 32
    assert channels // groups >= 4 or groups == 1
