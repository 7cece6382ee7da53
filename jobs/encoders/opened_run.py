"""A run or an export as an encoder uses it: its model on a device, and images as the model sees them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from datasets.images.decode import Pixels
from datasets.images.patches import PatchTransform
from datasets.images.transform import Transform
from datasets.loading.transforms import transform_of
from datasets.order.order import Integers
from datasets.shards.index import Index
from jobs.config.other_images import check_format
from jobs.errors import ConfigError
from jobs.run.reports import Subject, subject_of
from trainer.checkpoints.export import Loaded, open_model


class OpenedRun:
    """Raises ConfigError, TrainingError or StorageError in one line if there is no model at `url`."""

    def __init__(self, url: str, weights: str):
        self.subject: Subject = subject_of(url)
        loaded: Loaded = open_model(url, weights)
        if threads := self.subject.config.trainer.threads:
            torch.set_num_threads(threads)
        self.device = device()
        self.digest = digest_of(loaded.model)
        self.model = loaded.model.to(self.device)
        self._transform: Transform | None = None

    def open(self, index: Index) -> None:
        """Raises ConfigError unless the model takes the images of a set."""
        data = self.subject.config.data
        transform = transform_of(data, index.format, None)
        if isinstance(transform, PatchTransform):
            raise ConfigError(
                f"{self.subject.folder.url}: its images are in patches (data.transform.patches), not whole"
            )
        check_format(self.model.spec, data, index)
        self._transform = transform

    def images(self, images: Sequence[Pixels], positions: Integers) -> Tensor:
        """uint8 [B, C, H, W] on the device, after the run's `data.transform` as in an evaluation."""
        if (transform := self._transform) is not None:
            pairs = zip(images, positions.tolist(), strict=True)
            images = [transform(image, place, image.shape[:2]) for image, place in pairs]
        return torch.from_numpy(np.stack(images)).to(self.device).permute(0, 3, 1, 2)


def device() -> torch.device:
    """The current GPU of this process, or the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def digest_of(module: nn.Module) -> str:
    """A hash of all parameters and buffers, by name."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(module.state_dict().items()):
        values = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}\n".encode())
        digest.update(values.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
