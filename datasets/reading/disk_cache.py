"""A cache of blocks of remote shards on a local disk, shared by all processes of a machine.

    <folder>/<hh>/<hash>-<n>    block n of the shard with that hash (URL, ETag, size, checksum), followed by its CRC-32
    <folder>/lock               locked while writing
    <folder>/used               an upper bound on the bytes in use
    <folder>/new                a block being written

Readers take no lock: a block is complete or missing, and a block that is evicted while open stays readable. Writers
hold the lock, so a process killed at any moment leaves at most `new` behind, which the next writer overwrites. If the
disk is full or read-only, the cache stops writing and the run continues.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
from collections.abc import Callable, Container, Iterator
from hashlib import blake2b
from pathlib import Path
from zlib import crc32

BLOCK = 1 << 20  # bytes
_CRC = 4  # bytes, after each block
_ROOM = 16  # blocks that an eviction makes room for: evictions are rare

logger = logging.getLogger(__name__)


class DiskCache:
    """At most `size` bytes below `folder`; the least recently used blocks are evicted first.

    Safe to use from several threads and processes. A set that does not fit gains little: a block is evicted before it
    is requested again, in the next epoch.
    """

    def __init__(self, folder: str, size: int):
        self._folder = Path(folder)
        self._size = size
        self._writes = size >= BLOCK + _CRC

    @staticmethod
    def name(*identity: object) -> str:
        """A name for the object with these properties."""
        return blake2b("\n".join(map(str, identity)).encode(), digest_size=16).hexdigest()

    def read(self, name: str, start: int, stop: int, end: int, fetch: Callable[[int, int], memoryview]) -> memoryview:
        """The bytes [start, stop) of an object of `end` bytes; `fetch(start, stop)` gets those that are not cached.

        Fewer are returned if `fetch` returns fewer.
        """
        first, last = start // BLOCK, -(-stop // BLOCK)
        found = {number: block for number in range(first, last) if (block := self._block(name, number)) is not None}
        for low, high in _gaps(first, last, found.keys()):
            data = fetch(low * BLOCK, min(high * BLOCK, end))
            for number in range(low, high):
                place = (number - low) * BLOCK
                block = data[place : place + BLOCK]
                found[number] = block
                if len(block) == min(BLOCK, end - number * BLOCK):
                    self._keep(name, number, block)
        whole = b"".join(found[number] for number in range(first, last)) if len(found) > 1 else found[first]
        return memoryview(whole)[start - first * BLOCK : stop - first * BLOCK]

    def forget(self, name: str, start: int, stop: int) -> None:
        """Drop the blocks of the bytes [start, stop), which are corrupt."""
        for number in range(start // BLOCK, -(-stop // BLOCK)):
            with contextlib.suppress(OSError):
                self._path(name, number).unlink()  # `used` is now too large until the next eviction

    def _path(self, name: str, number: int) -> Path:
        return self._folder / name[:2] / f"{name}-{number}"

    def _block(self, name: str, number: int) -> memoryview | None:
        path = self._path(name, number)
        try:
            data = memoryview(path.read_bytes())
            os.utime(path)
        except OSError:
            return None
        block, crc = data[:-_CRC], data[-_CRC:]
        if len(data) > _CRC and crc32(block).to_bytes(_CRC, "little") == crc:
            return block
        self.forget(name, number * BLOCK, number * BLOCK + 1)
        return None

    # ---- writing

    def _keep(self, name: str, number: int, block: memoryview) -> None:
        if not self._writes:
            return
        path = self._path(name, number)
        try:
            with self._locked():
                if path.exists():  # written by another process
                    return
                taken = len(block) + _CRC
                used = self._used()
                if used + taken > self._size:
                    used = self._evict(max(self._size - max(taken, min(_ROOM * BLOCK, self._size // 4)), 0))
                (self._folder / "used").write_text(str(used + taken))  # first: it is an upper bound
                new = self._folder / "new"
                with new.open("wb") as file:
                    file.write(block)
                    file.write(crc32(block).to_bytes(_CRC, "little"))
                path.parent.mkdir(exist_ok=True)
                new.replace(path)
        except OSError as error:
            self._writes = False
            logger.warning(
                "%s: cannot write to the disk cache (%s); continuing without it", self._folder, error.strerror
            )

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / "lock").open("ab") as lock:  # released when it is closed or the process ends
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _used(self) -> int:
        try:
            return int((self._folder / "used").read_text())
        except (OSError, ValueError):
            return self._evict(self._size)

    def _evict(self, most: int) -> int:
        """Delete the least recently used blocks until at most `most` bytes are left; return the bytes left."""
        blocks = []
        for path in self._folder.glob("??/*"):
            with contextlib.suppress(OSError):
                status = path.stat()
                blocks.append((status.st_mtime_ns, status.st_size, path))
        used = sum(size for _, size, _ in blocks)
        for _, size, path in sorted(blocks):
            if used <= most:
                break
            path.unlink(missing_ok=True)
            used -= size
        return used


def _gaps(first: int, last: int, cached: Container[int]) -> list[tuple[int, int]]:
    """The runs [low, high) of numbers in [first, last) that are not `cached`."""
    missing = [number for number in range(first, last) if number not in cached]
    starts = [number for number in missing if number - 1 not in missing]
    stops = [number + 1 for number in missing if number + 1 not in missing]
    return list(zip(starts, stops, strict=True))
