"""Which bytes of a commit's files hold the parts of tensors that a rank needs, in few large requests."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from trainer.checkpoints.tensor_files import CHUNK, Piece, StoredTensor
from trainer.distributed.sharding import is_sharded, local_part

REQUEST = 32 * CHUNK  # most bytes of one request (8 MiB)


class Target(NamedTuple):
    """A region of a stored tensor, and the tensor that it is copied to."""

    stored: StoredTensor
    value: Tensor  # on any device, with any strides
    begin: tuple[int, ...]  # of the region in the stored tensor

    @classmethod
    def of(cls, stored: StoredTensor, value: Tensor) -> Target:
        """What this rank holds of `value`: its part of a sharded tensor, else the whole."""
        if is_sharded(value):
            part, begin = local_part(value)
            return cls(stored, part, tuple(begin))
        return cls(stored, value, (0,) * value.ndim)


class Rows:
    """The rows (dimension 0) of a piece that a target needs; their bytes arrive in any order."""

    def __init__(self, target: Target, piece: Piece, first: int, last: int):
        self.target, self.piece = target, piece
        row = math.prod(piece.shape[1:]) * target.stored.dtype.itemsize
        self.count = last - first
        self.first = first
        self.start, self.stop = first * row, last * row  # bytes within the piece
        self.missing = self.stop - self.start
        self._buffer: Tensor | None = None

    @property
    def chunks(self) -> tuple[int, int]:
        """The bytes within the piece that have to be read to check the rows."""
        size = math.prod(self.piece.shape) * self.target.stored.dtype.itemsize
        return self.start // CHUNK * CHUNK, min(-(-self.stop // CHUNK) * CHUNK, size)

    def add(self, begin: int, data: memoryview) -> None:
        """Take bytes that begin at byte `begin` of the piece; with the last ones the target is filled."""
        first, last = max(begin, self.start), min(begin + len(data), self.stop)
        if first >= last:
            return
        if self._buffer is None:
            self._buffer = torch.empty(self.stop - self.start, dtype=torch.uint8)
        writable(self._buffer)[first - self.start : last - self.start] = data[first - begin : last - begin]
        self.missing -= last - first
        if self.missing == 0:
            self._copy(self._buffer)
            self._buffer = None

    def _copy(self, buffer: Tensor) -> None:
        source, target = buffer.view(self.target.stored.dtype), self.target.value
        begins: tuple[int, ...] = ()
        if self.piece.shape:
            source = source.reshape(self.count, *self.piece.shape[1:])
            begins = (self.piece.begin[0] + self.first, *self.piece.begin[1:])
        for dimension, (begin, wanted) in enumerate(zip(begins, self.target.begin, strict=True)):
            start = max(begin, wanted)
            length = min(begin + source.shape[dimension], wanted + target.shape[dimension]) - start
            source = source.narrow(dimension, start - begin, length)
            target = target.narrow(dimension, start - wanted, length)
        with torch.no_grad():
            target.copy_(source.reshape(target.shape))


class Span(NamedTuple):
    """Bytes of a piece within a request."""

    rows: Rows
    start: int  # within the piece, a multiple of CHUNK
    stop: int

    @property
    def offset(self) -> int:
        """Its first byte in the file."""
        return self.rows.piece.start + self.start


class Request(NamedTuple):
    """Bytes [start, stop) of a file."""

    file: str
    start: int
    stop: int
    spans: list[Span]

    def failed_checksum(self, data: memoryview) -> bool:
        """Whether the bytes are not what was written."""
        for rows, start, stop in self.spans:
            crc32 = rows.piece.crc32
            if crc32 is None:
                continue
            content = data[rows.piece.start + start - self.start :][: stop - start]
            for number, begin in enumerate(range(0, len(content), CHUNK), start // CHUNK):
                if zlib.crc32(content[begin : begin + CHUNK]) != crc32[number]:
                    return True
        return False

    def deliver(self, data: memoryview) -> None:
        """Give the bytes [start, stop) to the targets."""
        for rows, start, stop in self.spans:
            begin = rows.piece.start + start - self.start
            rows.add(start, data[begin : begin + stop - start])


def writable(tensor: Tensor) -> memoryview:
    """The bytes of a uint8 tensor in host memory."""
    return memoryview(tensor.numpy())  # type: ignore[arg-type]


def plan(targets: Iterable[Target], whole_files: Mapping[str, int] | None = None) -> list[Request]:
    """The requests that fill the targets, file by file in the order of the bytes.

    `whole_files`: sizes of files that can only be read (and checked) as a whole.
    """
    spans: dict[str, list[Span]] = {}
    for target in targets:
        for piece in target.stored.pieces:
            rows = _rows(target, piece)
            if rows is None:
                continue
            start, stop = rows.chunks
            cuts = [*range(start, stop, REQUEST), stop]
            own = [Span(rows, begin, end) for begin, end in pairwise(cuts)]
            spans.setdefault(piece.file, []).extend(own)
    requests = []
    for file in sorted(spans):
        if whole_files:
            requests.append(Request(file, 0, whole_files[file], spans[file]))
        else:
            requests += _joined(file, sorted(spans[file], key=lambda span: span.offset))
    return requests


def _rows(target: Target, piece: Piece) -> Rows | None:
    """The rows of a piece in which it overlaps the target's region."""
    if not piece.shape:
        return Rows(target, piece, 0, 1)
    for begin, length, wanted, size in zip(piece.begin, piece.shape, target.begin, target.value.shape, strict=True):
        if max(begin, wanted) >= min(begin + length, wanted + size):
            return None
    first = max(piece.begin[0], target.begin[0]) - piece.begin[0]
    last = min(piece.begin[0] + piece.shape[0], target.begin[0] + target.value.shape[0]) - piece.begin[0]
    return Rows(target, piece, first, last)


def _joined(file: str, spans: list[Span]) -> list[Request]:
    """Spans of a file as requests: neighbours together, with gaps of up to CHUNK bytes."""
    requests: list[Request] = []
    for span in spans:
        start, stop = span.offset, span.offset + span.stop - span.start
        last = requests[-1] if requests else None
        if last and start - last.stop <= CHUNK and stop - last.start <= REQUEST:
            last.spans.append(span)
            requests[-1] = last._replace(stop=max(last.stop, stop))
        else:
            requests.append(Request(file, start, stop, [span]))
    return requests
