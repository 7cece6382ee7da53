"""How tensors are stored in a commit: safetensors files, and layout.json, which says where each tensor's bytes are.

A tensor is one or more pieces: hyper-rectangles in C order, each contiguous in one file. With sharding every rank
writes its own piece of a tensor. A CRC-32 covers each CHUNK bytes of a piece, so that every range that is read
is checked.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from trainer.errors import TrainingError

LAYOUT = "layout.json"
CHUNK = 256 << 10  # bytes per checksum; what a reader reads too much on either side costs less than a request
MOST_HEADER_BYTES = 100 << 20  # of a safetensors file, as its own library has it
BLOCK = 8 << 20  # bytes handed to the store's client at once

DTYPES = {  # by their names in the safetensors format
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


class Piece(NamedTuple):
    """A part of a tensor in one file."""

    file: str
    begin: tuple[int, ...]  # index of its first element in the tensor
    shape: tuple[int, ...]
    start: int  # its first byte in the file
    crc32: tuple[int, ...] | None  # of each CHUNK bytes, the last may cover fewer; None in format 1


class StoredTensor(NamedTuple):
    """A tensor and where it is stored."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]


Layout = dict[str, dict[str, StoredTensor]]  # by section and name


def file_of(section: str, rank: int, ranks: int) -> str:
    """The file that a rank writes its tensors of a section to."""
    return f"{section}.safetensors" if ranks == 1 else f"{section}-{rank}.safetensors"


def section_of(file: str) -> str:
    """The section that a file belongs to."""
    return file.rpartition(".")[0].partition("-")[0]


# ---- whole files


def to_safetensors(tensors: Mapping[str, Tensor]) -> bytes:
    """The tensors, from any device, as the content of a .safetensors file."""
    # Copies, as the format refuses tensors that share memory (tied weights).
    copies = {
        name: value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, value in tensors.items()
    }
    return safetensors.torch.save(copies)


def from_safetensors(where: str, data: bytes) -> dict[str, Tensor]:
    """The tensors of a file's content, on the CPU; shapes and dtypes are kept. Nothing is ever unpickled.

    Raises TrainingError, naming `where`, if it is not safetensors.
    """
    try:
        return safetensors.torch.load(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise TrainingError(f"{where}: is not a safetensors file ({error})") from error


# ---- writing


def header_of(tensors: Mapping[str, Tensor]) -> tuple[bytes, dict[str, int]]:
    """The first bytes of a safetensors file of these tensors, and the first byte of each tensor in the file."""
    # the widest elements first: so all are aligned
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))
    header: dict[str, dict[str, Any]] = {}
    end = 0
    for name, value in ordered:
        begin, end = end, end + value.nbytes
        header[name] = {"dtype": _NAMES[value.dtype], "shape": list(value.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    data = len(text).to_bytes(8, "little") + text
    return data, {name: len(data) + header[name]["data_offsets"][0] for name in header}


def blocks(tensors: Mapping[str, Tensor]) -> Iterator[bytes | memoryview]:
    """A safetensors file of contiguous tensors in host memory, block by block, without a copy."""
    header, starts = header_of(tensors)
    yield header
    for name in starts:
        content = _bytes(tensors[name])
        for start in range(0, len(content), BLOCK):
            yield content[start : start + BLOCK]


def checksums(tensor: Tensor) -> tuple[int, ...]:
    """The CRC-32 of each CHUNK bytes of a contiguous tensor in host memory."""
    content = _bytes(tensor)
    return tuple(zlib.crc32(content[start : start + CHUNK]) for start in range(0, len(content), CHUNK))


def _bytes(tensor: Tensor) -> memoryview:
    if tensor.numel() == 0:
        return memoryview(b"")
    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]


def merged(layouts: Iterable[Layout]) -> Layout:
    """The layouts of all ranks as one."""
    parts: dict[str, dict[str, list[StoredTensor]]] = {}
    for layout in layouts:
        for section, tensors in layout.items():
            for name, tensor in tensors.items():
                parts.setdefault(section, {}).setdefault(name, []).append(tensor)
    return {
        section: {
            name: found[0]._replace(pieces=tuple(piece for tensor in found for piece in tensor.pieces))
            for name, found in tensors.items()
        }
        for section, tensors in parts.items()
    }


def _add(layout: Layout, section: str, name: str, tensor: StoredTensor) -> None:
    into = layout.setdefault(section, {})
    known = into.get(name)
    into[name] = tensor._replace(pieces=known.pieces + tensor.pieces) if known else tensor


def layout_json(layout: Layout) -> bytes:
    """The content of layout.json."""
    content = {
        section: {
            name: {
                "dtype": _NAMES[tensor.dtype],
                "shape": tensor.shape,
                "pieces": [
                    piece._asdict() | {"crc32": "".join(f"{crc:08x}" for crc in piece.crc32 or ())}
                    for piece in tensor.pieces
                ],
            }
            for name, tensor in tensors.items()
        }
        for section, tensors in layout.items()
    }
    return json.dumps(content).encode()


# ---- reading


def parsed_layout(content: Any) -> Layout:
    """The layout of a layout.json of format 2. Raises ValueError, KeyError or TypeError if it is not one."""
    return {
        section: {name: _checked(name, _parsed(tensor)) for name, tensor in tensors.items()}
        for section, tensors in content.items()
    }


def _parsed(content: dict[str, Any]) -> StoredTensor:
    pieces = []
    for piece in content["pieces"]:
        text = piece["crc32"]
        crc32 = tuple(int(text[start : start + 8], 16) for start in range(0, len(text), 8))
        pieces.append(Piece(piece["file"], tuple(piece["begin"]), tuple(piece["shape"]), piece["start"], crc32))
    return StoredTensor(DTYPES[content["dtype"]], tuple(content["shape"]), tuple(pieces))


def file_sizes(layout: Layout) -> dict[str, int]:
    """The size in bytes of each file of a layout."""
    sizes: dict[str, int] = {}
    for tensor in (tensor for tensors in layout.values() for tensor in tensors.values()):
        for piece in tensor.pieces:
            end = piece.start + math.prod(piece.shape) * tensor.dtype.itemsize
            sizes[piece.file] = max(sizes.get(piece.file, 0), end)
    return sizes


def layout_of_format_1(content: dict[str, Any], headers: Mapping[str, bytes]) -> Layout:
    """The layout of a commit of format 1.

    `content`: its layout.json (only the tensors that are split over files; {} if it has none). `headers`: the first
    bytes of each safetensors file. Raises ValueError, KeyError or TypeError if they do not fit together.
    """
    layout: Layout = {}
    for file, header in headers.items():
        section = section_of(file)
        for name, stored in json.loads(header[8:]).items():
            if name == "__metadata__":
                continue
            dtype, shape = DTYPES[stored["dtype"]], tuple(stored["shape"])
            split = content.get(section, {}).get(name)
            begin, whole = (split["pieces"][file], split["shape"]) if split else ([0] * len(shape), shape)
            piece = Piece(file, tuple(begin), shape, len(header) + stored["data_offsets"][0], None)
            _add(layout, section, name, StoredTensor(dtype, tuple(whole), (piece,)))
    for section, tensors in (layout | content).items():
        for name in tensors:
            _checked(name, layout[section][name])
    return layout


def _checked(name: str, tensor: StoredTensor) -> StoredTensor:
    """Raises ValueError unless the pieces fill the tensor."""
    for piece in tensor.pieces:
        size = math.prod(piece.shape) * tensor.dtype.itemsize
        if piece.crc32 is not None and len(piece.crc32) != -(-size // CHUNK):
            raise ValueError(f"{name} has {len(piece.crc32)} checksums for {size} bytes in {piece.file}")
        ends = [begin + length for begin, length in zip(piece.begin, piece.shape, strict=True)]
        if any(end > length for end, length in zip(ends, tensor.shape, strict=True)):
            raise ValueError(f"{name} exceeds its shape {tensor.shape} in {piece.file}")
    if sum(math.prod(piece.shape) for piece in tensor.pieces) != math.prod(tensor.shape):
        raise ValueError(f"a part of {name} is missing")
    return tensor
