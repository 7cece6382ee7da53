"""Captions as sequences of vectors from an encoder that was run before."""

from __future__ import annotations

import pytest
import torch

from tests.trainer.test_text import NETWORKS, bound
from tests.trainer.test_text import built as text_model
from trainer.condition_values import Tokens, hidden
from trainer.images import ImageSpec
from trainer.networks.conditioning.pretrained import PretrainedEncoder
from trainer.networks.conditioning.sequence_encoder import SequenceEncoder
from trainer.noise import Noise

SPEC = ImageSpec(1, 8, 8, 2)


def built(network="dit"):
    return text_model(network, SPEC, {"kind": "sequence", "size": 3, "width": 8})


def batch(n=28, purpose="evaluate"):
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 2, (n, 1, 8, 8), generator=generator).to(torch.uint8)
    lengths = torch.arange(n, dtype=torch.int32) % 7
    vectors = torch.randn(n, 6, 3, generator=generator).half()
    return images, Tokens(vectors, lengths), Noise(0, purpose, torch.arange(n), batch=n)


@pytest.mark.parametrize("network", NETWORKS)
def test_vectors_matter_and_padding_does_not(network):
    model = built(network)
    images, caption, noise = batch()
    found = bound(model, images, {"caption": caption}, noise)
    junk = torch.where(caption.present[..., None], caption.ids, torch.nan)
    torch.testing.assert_close(bound(model, images, {"caption": Tokens(junk, caption.lengths)}, noise), found)
    without = bound(model, images, None, noise)
    unknown = hidden(caption, torch.ones(len(images), dtype=torch.bool))
    torch.testing.assert_close(bound(model, images, {"caption": unknown}, noise), without)
    assert (~torch.isclose(found, without))[caption.lengths > 0].all()
    torch.testing.assert_close(found[caption.lengths == 0], without[caption.lengths == 0])


def test_every_weight_learns():
    images, caption, noise = batch(purpose="train")
    model = built()
    model(images, {"caption": caption}, noise, torch.tensor(0.0)).loss.sum().backward()
    assert not [name for name, weight in model.named_parameters() if weight.grad is None]


def test_an_encoder_run_before_is_the_encoder_inside():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    small = {"d_model": 16, "d_kv": 4, "d_ff": 32, "num_layers": 2, "num_heads": 2, "vocab_size": 50}
    t5 = transformers.T5EncoderModel(transformers.T5Config(**small)).eval()
    inside, before = PretrainedEncoder(t5, 8), SequenceEncoder(16, 8)
    before.load_state_dict({name: value for name, value in inside.state_dict().items() if "frozen" not in name})
    ids = torch.randint(1, 50, (4, 6), dtype=torch.int32)
    present = torch.arange(7) <= torch.tensor([0, 2, 5, 6])[:, None]
    noise = Noise(0, "evaluate", torch.arange(4))
    with torch.no_grad():
        vectors = t5(input_ids=ids.long(), attention_mask=present[:, 1:].long()).last_hidden_state
        found, expected = before(vectors, present, noise), inside(ids, present, noise)
    torch.testing.assert_close(found[present], expected[present])
