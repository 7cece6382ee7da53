"""A proxy in front of one HTTP server that fails on purpose, told how by the test.

    with FaultProxy(s3.endpoint) as proxy:
        proxy.add(Fault("reset", after=20_000_000, times=1, method="GET"))
        ...                                         # the code under test, its endpoint being proxy.url
        assert proxy.faults == 1 and proxy.requests[-1].fault is None

The Host header is passed on as it comes, so that signatures made for the proxy's address hold at the server.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import random
import re
import socket
import struct
import termios
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Literal, NamedTuple
from urllib.parse import urlsplit

PIECE = 1 << 16  # bytes passed on at a time
NO_BODY = (204, 304)

Kind = Literal["status", "refuse", "reset", "truncate", "stall", "slow", "corrupt", "cut upload", "lose answer"]


@dataclass
class Fault:
    """What happens to the requests that it matches.

    Kinds that spoil the answer: "status" (it is `status`, and the server is never asked), "refuse" (RST before the
    server is asked), "lose answer" (RST after the server has done what was asked). Those that spoil its body: "reset"
    (RST once `after` bytes have arrived), "truncate" (FIN there, the announced length left as it was), "stall" (nothing
    more for `seconds`, then FIN), "corrupt" (the byte there is flipped), "slow" (`rate` bytes/s). "cut upload" passes
    on `after` bytes of the request's own body, then RST.
    """

    kind: Kind
    after: int = 0  # bytes of the body
    times: int | None = None  # how often; None: always
    share: float = 1.0  # of the matching requests, drawn from the proxy's own seed
    method: str | None = None  # GET, PUT, ...; None: any
    path: str = ""  # a regular expression to be found in the request's target
    status: int = 503
    seconds: float = 3600.0
    rate: float = 1e6  # bytes/s

    def matches(self, method: str, target: str, draw: random.Random) -> bool:
        if self.times == 0 or self.method not in (None, method) or not re.search(self.path, target):
            return False
        return draw.random() < self.share


class Request(NamedTuple):
    """What a client asked, and what was done to it."""

    method: str
    target: str  # path and query
    range: str  # the Range header; "" without one
    fault: Kind | None


class _CutError(Exception):
    """The body has been passed on as far as its fault wants."""


@dataclass
class _Head:
    """The first line and headers of a request or an answer, kept as they came."""

    raw: bytes
    words: list[str] = field(init=False)
    headers: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        first, *lines = self.raw.decode("latin-1").split("\r\n")
        self.words = first.split(" ", 2)
        pairs = (line.partition(":") for line in lines if line)
        self.headers = {name.strip().lower(): value.strip() for name, _, value in pairs}

    @property
    def chunked(self) -> bool:
        return "chunked" in self.headers.get("transfer-encoding", "").lower()

    @property
    def length(self) -> int | None:
        length = self.headers.get("content-length")
        return None if length is None else int(length)


class FaultProxy:
    """Listens on a port of its own (`url`) and passes on to `server` (http://host:port), until told otherwise.

    Runs in a thread. `add` faults: of those that match a request the first that is not used up happens to it;
    `heal` takes all away. `requests`, `faults`, `sent`, `received` count since the start or the last `forget`.
    """

    def __init__(self, server: str, seed: int = 0, host: str = "127.0.0.1"):
        """`host` is the address of this machine to listen on."""
        address = urlsplit(server)
        self._host = host
        self._server = (address.hostname or "", address.port or 80)
        self._draw = random.Random(seed)
        self._rules: list[Fault] = []
        self._lock = threading.Lock()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fault proxy", daemon=True)
        self.url = ""
        self.forget()

    def __enter__(self) -> FaultProxy:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(10)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._hang_up(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def add(self, fault: Fault) -> Fault:
        """From the next request on."""
        with self._lock:
            self._rules.append(fault)
        return fault

    def heal(self) -> None:
        """No faults from the next request on. What stalls goes on to stall."""
        with self._lock:
            self._rules.clear()

    def forget(self) -> None:
        """Count from nought."""
        self.requests: list[Request] = []
        self.sent = 0  # bytes of answers' bodies, towards clients
        self.received = 0  # bytes of requests' bodies, towards the server

    @property
    def faults(self) -> int:
        return sum(request.fault is not None for request in self.requests)

    # ---- in the thread

    async def _listen(self) -> None:
        server = await asyncio.start_server(self._serve, self._host, 0)
        self._listener = server
        self.url = "http://{}:{}".format(*server.sockets[0].getsockname())

    async def _hang_up(self) -> None:
        self._listener.close()
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    def _fault_of(self, request: _Head) -> Fault | None:
        method, target = request.words[:2]
        with self._lock:
            fault = next((rule for rule in self._rules if rule.matches(method, target, self._draw)), None)
            if fault and fault.times is not None:
                fault.times -= 1
        kind = fault.kind if fault else None
        self.requests.append(Request(method, target, request.headers.get("range", ""), kind))
        return fault

    async def _serve(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        """One connection of a client, for as many requests as it makes."""
        try:
            while await self._exchange(client, to_client):
                pass
        except (OSError, asyncio.IncompleteReadError):
            _reset(to_client)  # the client or the server has left
        except asyncio.CancelledError:
            pass  # the proxy is closing
        finally:
            to_client.close()

    async def _exchange(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> bool:
        """One request and its answer; whether the connection may be used again."""
        request = _Head(await client.readuntil(b"\r\n\r\n"))
        fault = self._fault_of(request)
        if fault and fault.kind == "refuse":
            _reset(to_client)
            return False
        if fault and fault.kind == "status":
            to_client.write(_answer(fault.status, empty=request.words[0] == "HEAD"))
            await to_client.drain()
            return False
        # A new connection each time: one that is kept could be closed by the server just as a request goes out.
        server, to_server = await asyncio.open_connection(*self._server)
        try:
            if await self._pass_request(request, fault, client, to_client, server, to_server):
                return await self._pass_answer(request, fault, server, to_client)
            return False
        finally:
            to_server.close()

    async def _pass_request(
        self,
        request: _Head,
        fault: Fault | None,
        client: asyncio.StreamReader,
        to_client: asyncio.StreamWriter,
        server: asyncio.StreamReader,
        to_server: asyncio.StreamWriter,
    ) -> bool:
        """Whether the server has the whole request."""
        to_server.write(request.raw)
        if request.headers.get("expect", "").lower() == "100-continue":
            go_on = await server.readuntil(b"\r\n\r\n")
            to_client.write(go_on)
            if not go_on.startswith(b"HTTP/1.1 100"):
                return False
        try:
            async for piece in _spoil(_body(client, request), fault if fault and fault.kind == "cut upload" else None):
                self.received += len(piece)
                to_server.write(piece)
                await to_server.drain()
        except _CutError:
            _reset(to_client)
            return False
        return True

    async def _pass_answer(
        self, request: _Head, fault: Fault | None, server: asyncio.StreamReader, to_client: asyncio.StreamWriter
    ) -> bool:
        answer = _Head(await server.readuntil(b"\r\n\r\n"))
        if fault and fault.kind == "lose answer":
            _reset(to_client)
            return False
        to_client.write(answer.raw)
        if request.words[0] != "HEAD" and int(answer.words[1]) not in NO_BODY:
            try:
                async for piece in _spoil(_body(server, answer, until_end=True), fault):
                    self.sent += len(piece)
                    to_client.write(piece)
                    await to_client.drain()
            except _CutError:
                assert fault is not None
                if fault.kind == "stall":
                    await asyncio.sleep(fault.seconds)
                if fault.kind == "reset":
                    await _arrived(to_client)
                    _reset(to_client)
                return False
        await to_client.drain()
        return answer.headers.get("connection", "").lower() != "close" and answer.words[0] == "HTTP/1.1"


async def _body(reader: asyncio.StreamReader, head: _Head, until_end: bool = False) -> AsyncIterator[bytes]:
    """The bytes after a head, chunk sizes included; up to the end of the connection where no length is announced."""
    if head.chunked:
        size = 1
        while size:
            line = await reader.readline()
            size = int(line.split(b";")[0], 16)
            yield line + await reader.readexactly(size + 2)
    elif head.length is not None or not until_end:
        left = head.length or 0
        while left:
            piece = await reader.read(min(left, PIECE))
            if not piece:
                raise asyncio.IncompleteReadError(b"", left)
            left -= len(piece)
            yield piece
    else:
        while piece := await reader.read(PIECE):
            yield piece


async def _spoil(pieces: AsyncIterator[bytes], fault: Fault | None) -> AsyncIterator[bytes]:
    """The body as its fault lets it through; `_CutError` where it ends before its time."""
    passed = 0
    async for piece in pieces:
        here = fault.after - passed if fault else -1  # the fault's place in this piece
        if fault and fault.kind in ("reset", "truncate", "stall", "cut upload") and here < len(piece):
            yield piece[:here]
            raise _CutError
        if fault and fault.kind == "corrupt" and 0 <= here < len(piece):
            piece = piece[:here] + bytes([piece[here] ^ 0xFF]) + piece[here + 1 :]
        if fault and fault.kind == "slow":
            await asyncio.sleep(len(piece) / fault.rate)
        yield piece
        passed += len(piece)


def _answer(status: int, empty: bool) -> bytes:
    """An error of the store, as XML."""
    code = {401: "Unauthorized", 403: "AccessDenied", 404: "NoSuchKey", 503: "SlowDown"}.get(status, "InternalError")
    body = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>on purpose</Message></Error>'.encode()
    head = f"HTTP/1.1 {status} On Purpose\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + b"Connection: close\r\n\r\n" + (b"" if empty else body)


async def _arrived(writer: asyncio.StreamWriter) -> None:
    """Wait until all that was written is at the other end: a RST throws away what is still on its way."""
    connection = writer.get_extra_info("socket")
    while writer.transport.get_write_buffer_size() or _unsent(connection):
        await asyncio.sleep(0.001)
        if writer.transport.is_closing():
            return


def _unsent(connection: socket.socket) -> int:
    """Bytes that the kernel has of a connection and the other end has not acknowledged."""
    return struct.unpack("i", fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, bytes(4)))[0]


def _reset(writer: asyncio.StreamWriter) -> None:
    """End a connection by RST, not by FIN."""
    with contextlib.suppress(OSError):
        connection = writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
