"""The live line between a connector and the process that trains for it: one question at a time, one answer each.

A job whose result needs other sites while it runs (`TrainTrees`) has a socket pair for its own time. The training
process asks, the connector answers: nothing else ever travels there, and nothing of it is a row. All little-endian:

    request  u8 kind, u32 length, payload
             1 SUM    int64 words: add them over all sites, masked, and give back the totals
             2 RELAY  bytes found on sums that are already open: give back every site's, by index
             3 AGREE  bytes that must be the same at all sites
    reply    u8 kind, u32 length, payload
             1        int64 words, as many as were asked
             2        for each site, by index: u32 length, bytes
             3        the 32-byte chain over all results of the session, the one of this agreement included
             9 STOP   a code in ASCII: the session is over for this process, whatever it asks

The line's end is its message too: a process that sees it close stops its job, a connector that sees it close reads the
job's answer. Imports nothing but the standard library, since both ends do.
"""

import asyncio
import re
import select
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

SUM: Final = 1
RELAY: Final = 2
AGREE: Final = 3
STOP: Final = 9

HEAD: Final = struct.Struct("<BI")
MAX_PAYLOAD_BYTES: Final = 32 << 20
"""A histogram of 4,096 features with 255 bins has 16.7 MB; the text of a round's trees has less."""

MAX_SITES: Final = 200
LOOK_S: Final = 0.5
"""How often a wait of the training process looks up."""
CODE_PATTERN: Final = re.compile(r"[A-Z][A-Z0-9_]{0,63}")


class LiveFault(Exception):
    """What came over the line breaks its rules. Both ends are one release, so this is a mistake of ours."""


class BridgeDead(Exception):
    """The other end is gone, or has not answered in time."""


@dataclass(frozen=True, slots=True)
class Request:
    """What the training process asks: `kind` is SUM, RELAY or AGREE."""

    kind: int
    payload: bytes


def relay_reply(parts: tuple[bytes, ...]) -> bytes:
    """The payload of a RELAY reply: the bytes of every site, in the order of the roster."""
    return b"".join(struct.pack("<I", len(part)) + part for part in parts)


def relay_parts(payload: bytes, sites: int) -> tuple[bytes, ...]:
    """Every site's bytes, by index. Raises `LiveFault` unless there are exactly `sites` of them."""
    parts: list[bytes] = []
    place = 0
    while place < len(payload) and len(parts) < sites:
        if place + 4 > len(payload):
            raise LiveFault("a relay reply ends inside a length")
        (length,) = struct.unpack_from("<I", payload, place)
        parts.append(payload[place + 4 : place + 4 + length])
        place += 4 + length
    if place != len(payload) or len(parts) != sites:
        raise LiveFault(f"a relay reply does not hold the bytes of {sites} sites")
    return tuple(parts)


def _checked_head(head: bytes, kinds: tuple[int, ...]) -> tuple[int, int]:
    kind, length = HEAD.unpack(head)
    if kind not in kinds:
        raise LiveFault(f"kind {kind} does not belong here")
    if length > MAX_PAYLOAD_BYTES:
        raise LiveFault(f"a payload of {length} bytes is longer than {MAX_PAYLOAD_BYTES}")
    return kind, length


class LiveBridge:
    """The connector's end, for asyncio. Use it in one task; `close` may be called from any, and twice.

    `bridge, child_end = LiveBridge.pair()`; `runner.run(job, bridge=child_end)` in a task of its own; then answer what
    `recv` gives until it gives None, and await the task.
    """

    def __init__(self, own: socket.socket) -> None:
        own.setblocking(False)
        self._own = own
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    @classmethod
    def pair(cls) -> tuple["LiveBridge", socket.socket]:
        """A new line: the connector's end, and the other one, which belongs to whoever gets it (`runner.run`)."""
        own, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        return cls(own), other

    async def recv(self) -> Request | None:
        """The next question, or None when the job is over, in whatever way. Raises `LiveFault`."""
        reader, _ = await self._opened()
        try:
            kind, length = _checked_head(await reader.readexactly(HEAD.size), (SUM, RELAY, AGREE))
            return Request(kind, await reader.readexactly(length))
        except (asyncio.IncompleteReadError, ConnectionError):
            return None

    async def reply(self, kind: int, payload: bytes) -> None:
        """Answer the last question. A job that ended meanwhile does not hear it: `recv` will say so."""
        _, writer = await self._opened()
        try:
            writer.write(HEAD.pack(kind, len(payload)) + payload)
            await writer.drain()
        except (ConnectionError, RuntimeError):
            return

    async def stop(self, code: str) -> None:
        """Answer that the session is over; the job ends with `code` at once, and the process can take another one."""
        if CODE_PATTERN.fullmatch(code) is None:
            raise LiveFault(f"{code!r} is no code")
        await self.reply(STOP, code.encode("ascii"))

    def close(self) -> None:
        """End the line: the job on the other end stops with an error of its own."""
        if self._streams is not None:
            self._streams[1].close()
        else:
            self._own.close()

    async def _opened(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._streams is None:
            self._streams = await asyncio.open_connection(sock=self._own, limit=1 << 20)
        return self._streams


class ChildBridge:
    """The training process' end: blocking, each wait bounded by `timeout_s`. Also what a fake trainer uses in tests.

    Where `interrupted` becomes true a wait ends with `KeyboardInterrupt`: an interrupt that is raised while C code
    calls Python would be lost.
    """

    def __init__(
        self, own: socket.socket, *, timeout_s: float, interrupted: Callable[[], bool] = lambda: False
    ) -> None:
        own.setblocking(False)
        self._own = own
        self._timeout_s = timeout_s
        self.interrupted = interrupted

    def ask(self, kind: int, payload: bytes) -> tuple[int, bytes]:
        """One question and its answer: `kind` again, or STOP. Raises `BridgeDead` and `LiveFault`."""
        if len(payload) > MAX_PAYLOAD_BYTES:
            raise LiveFault(f"a payload of {len(payload)} bytes is longer than {MAX_PAYLOAD_BYTES}")
        ends_at = time.monotonic() + self._timeout_s
        self._send(HEAD.pack(kind, len(payload)) + payload, ends_at)
        answered, length = _checked_head(self._receive(HEAD.size, ends_at), (kind, STOP))
        return answered, self._receive(length, ends_at)

    def close(self) -> None:
        """Hang up: the connector's `recv` gives None."""
        self._own.close()

    def _send(self, data: bytes, ends_at: float) -> None:
        rest = memoryview(data)
        while rest:
            self._wait(select.POLLOUT, ends_at)
            try:
                rest = rest[self._own.send(rest) :]
            except BlockingIOError:
                continue
            except OSError as error:
                raise BridgeDead("the connector has closed the line") from error

    def _receive(self, size: int, ends_at: float) -> bytes:
        data = bytearray(size)
        rest = memoryview(data)
        while rest:
            self._wait(select.POLLIN, ends_at)
            try:
                got = self._own.recv_into(rest)
            except BlockingIOError:
                continue
            except OSError as error:
                raise BridgeDead("the connector has closed the line") from error
            if not got:
                raise BridgeDead("the connector has closed the line")
            rest = rest[got:]
        return bytes(data)

    def _wait(self, event: int, ends_at: float) -> None:
        poll = select.poll()
        poll.register(self._own, event)
        while True:
            if self.interrupted():
                raise KeyboardInterrupt
            left = ends_at - time.monotonic()
            if poll.poll(max(0.0, min(left, LOOK_S)) * 1000):
                return
            if left <= 0:
                raise BridgeDead(f"no answer in {self._timeout_s:g} s")
