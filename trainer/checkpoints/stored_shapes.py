"""The shapes of stored weights, compared with those of the model before either takes memory."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch.nn.modules.module import register_module_parameter_registration_hook

from cluster.storage.errors import MissingError
from cluster.storage.json_files import parse_json
from cluster.storage.storage import Storage, join
from trainer.checkpoints.records import check_record
from trainer.checkpoints.tensor_files import MOST_HEADER_BYTES
from trainer.errors import TrainingError
from trainer.models import Model

Shapes = Mapping[str, tuple[int, ...]]
"""By the name of the tensor."""


def shapes_in_file(folder: Storage, path: str) -> Shapes:
    """The shapes in the header of a safetensors file.

    Raises MissingError, or TrainingError if it is not such a file or has another size than its header says.
    """
    where = join(folder.url, path)
    entry = folder.stat(path)
    if entry is None:
        raise MissingError(f"{where}: no such object")
    try:
        start = 8 + int.from_bytes(folder.read_range(path, 0, 8), "little") if entry.size > 8 else 0
        if not 8 < start <= min(entry.size, MOST_HEADER_BYTES):
            raise ValueError("no header")
        header = parse_json(bytes(folder.read_range(path, 8, start)))
        if isinstance(header, dict):
            header.pop("__metadata__", None)
        check_record("header", header)
    except ValueError as error:
        raise TrainingError(f"{where}: is not a safetensors file ({error})") from error
    size = start + max((tensor["data_offsets"][1] for tensor in header.values()), default=0)
    if size != entry.size:
        raise TrainingError(f"{where}: has {entry.size:,} bytes, its header describes {size:,}")
    return {name: tuple(tensor["shape"]) for name, tensor in header.items()}


def check_shapes(build: Callable[[], Model], stored: Shapes) -> None:
    """Raise ValueError unless `build` gives a model with tensors of these names and shapes.

    It is built on the device "meta", without memory. Raises what `build` raises.
    """
    with torch.device("meta"), _at_most(2 * len(stored) + 1000):
        built = {name: tuple(value.shape) for name, value in build().state_dict().items()}
    for name in sorted(built.keys() | stored.keys()):
        if built.get(name) != stored.get(name):
            theirs, here = (str(shapes.get(name, "missing")) for shapes in (stored, built))
            raise ValueError(f"size mismatch for {name}: {theirs} in the weights, {here} in the description")


@contextlib.contextmanager
def _at_most(most: int) -> Iterator[None]:
    """Inside the block, raise ValueError when modules have registered more than `most` parameters."""
    count = 0

    def register(*_: Any) -> None:
        nonlocal count
        count += 1
        if count > most:
            raise ValueError("the description is of a model with many more tensors than the weights")

    handle = register_module_parameter_registration_hook(register)
    try:
        yield
    finally:
        handle.remove()
