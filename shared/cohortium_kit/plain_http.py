"""A few pages over HTTP/1.1 on the loopback, for a process that must not carry a web framework: the connector.

It answers GET of known paths, one request a connection, and reads nothing of a request but its first line.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping

import structlog

from cohortium_kit.errors import ConfigurationError

log = structlog.get_logger(__name__)

LOOPBACK = "127.0.0.1"
LINE_BYTES = 1024
PATIENCE_S = 10.0
MOST_AT_ONCE = 8

Page = Callable[[], Awaitable[tuple[int, str, bytes]]]
"""Returns status, content type and body."""

_PHRASES = {200: "OK", 404: "Not Found", 405: "Method Not Allowed", 500: "Internal Server Error", 503: "Unavailable"}


async def serve_plain(
    port: int, pages: Mapping[str, Page], stop: asyncio.Event, *, on_port: Callable[[int], None] | None = None
) -> None:
    """Serve the pages on the loopback until `stop` is set. Raises `ConfigurationError` if the port is taken."""
    turns = asyncio.Semaphore(MOST_AT_ONCE)

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with turns, asyncio.timeout(PATIENCE_S):
                status, kind, body = await _answer(reader, pages)
                head = (
                    f"HTTP/1.1 {status} {_PHRASES[status]}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
                )
                writer.write(f"{head}Connection: close\r\n\r\n".encode() + body)
                await writer.drain()
        except (OSError, TimeoutError, ValueError):
            pass  # who asks badly or reads slowly gets nothing
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    try:
        server = await asyncio.start_server(talk, LOOPBACK, port, limit=LINE_BYTES)
    except OSError as error:
        raise ConfigurationError(f"cannot listen on {LOOPBACK}:{port}: {error.strerror}; change metrics_port") from None
    async with server:
        if on_port is not None:
            on_port(server.sockets[0].getsockname()[1])
        await stop.wait()


async def _answer(reader: asyncio.StreamReader, pages: Mapping[str, Page]) -> tuple[int, str, bytes]:
    words = (await reader.readline()).split()
    if len(words) != 3 or words[0] != b"GET":
        return 405, "text/plain", b"GET only\n"
    page = pages.get(words[1].decode("ascii", "replace").partition("?")[0])
    if page is None:
        return 404, "text/plain", b"no such page\n"
    try:
        return await page()
    except Exception as error:
        log.exception("page_failed", error=type(error).__name__)
        return 500, "text/plain", b"an error of ours; its details are in the log\n"
