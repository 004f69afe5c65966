"""A TCP proxy that a test can cut: the way to lose a connection without touching the server."""

import asyncio

PIECE_BYTES = 1 << 14
UNDER_WAY = 1 << 10
"""Pieces on the line at a time, in one direction: 16 MiB."""


class CuttingProxy:
    """Forwards to one address.

    `cut` resets every connection; `block` also refuses new ones until `unblock`. `freeze` lets no byte pass while the
    connections stay open, as a dead line does, until `thaw`. `delay_s` and `rate` (bytes a second, None for as many as
    there are) are of each direction, and may be changed at any time.
    """

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._pipes: set[asyncio.Task[None]] = set()
        self._blocked = False
        self._flowing = asyncio.Event()
        self._flowing.set()
        self.delay_s = 0.0
        self.rate: float | None = None
        self.accepted = 0
        """Connections let through since the start."""

    @property
    def port(self) -> int:
        if self._server is None:
            raise RuntimeError("the proxy is not started")
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        self.cut()
        for pipe in list(self._pipes):
            pipe.cancel()
        await asyncio.gather(*self._pipes, return_exceptions=True)

    def cut(self) -> None:
        """Reset all connections (RST): both sides see an error at once."""
        for writer in list(self._writers):
            writer.transport.abort()

    def block(self) -> None:
        self._blocked = True
        self.cut()

    def unblock(self) -> None:
        self._blocked = False

    def freeze(self) -> None:
        self._flowing.clear()

    def thaw(self) -> None:
        self._flowing.set()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._blocked:
            writer.transport.abort()
            return
        try:
            far_reader, far_writer = await asyncio.open_connection(*self._target)
        except OSError:
            writer.transport.abort()
            return
        self.accepted += 1
        self._writers |= {writer, far_writer}
        for source, sink in ((reader, far_writer), (far_reader, writer)):
            task = asyncio.create_task(self._pipe(source, sink))
            self._pipes.add(task)
            task.add_done_callback(self._pipes.discard)

    async def _pipe(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        """Bytes are under way for `delay_s`, many at a time; a slow line takes them one after the other."""
        under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(UNDER_WAY)
        leaving = asyncio.create_task(self._leave(source, under_way))
        arriving = asyncio.create_task(self._arrive(under_way, sink))
        try:
            await asyncio.wait({leaving, arriving}, return_when=asyncio.FIRST_COMPLETED)
            if leaving.done():  # the end of the connection comes after what is under way
                await asyncio.wait({arriving})
        finally:
            for task in (leaving, arriving):
                task.cancel()
            await asyncio.gather(leaving, arriving, return_exceptions=True)
            self._writers.discard(sink)
            sink.transport.abort()

    async def _leave(self, source: asyncio.StreamReader, under_way: "asyncio.Queue[tuple[float, bytes]]") -> None:
        loop, chunk = asyncio.get_running_loop(), b"-"
        while chunk:
            try:
                chunk = await source.read(PIECE_BYTES)
            except OSError:
                chunk = b""
            await under_way.put((loop.time() + self.delay_s, chunk))

    async def _arrive(self, under_way: "asyncio.Queue[tuple[float, bytes]]", sink: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due, chunk = await under_way.get()
            if not chunk:
                return
            await asyncio.sleep(max(0.0, due - loop.time()))
            if self.rate is not None:
                await asyncio.sleep(len(chunk) / self.rate)
            await self._flowing.wait()
            try:
                sink.write(chunk)
                await sink.drain()
            except OSError:
                return
