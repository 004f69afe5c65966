"""The connector's own pages: loopback, GET, known paths, and nothing that a bad client can hold up."""

import asyncio

import httpx
import pytest

from cohortium_kit.errors import ConfigurationError
from cohortium_kit.plain_http import serve_plain


async def hello() -> tuple[int, str, bytes]:
    return 200, "text/plain", b"hello\n"


async def broken() -> tuple[int, str, bytes]:
    raise RuntimeError("ZZCANARY")


class Served:
    """The pages, on a free port, for a block."""

    async def __aenter__(self) -> "Served":
        self.stop = asyncio.Event()
        told: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        pages = {"/hello": hello, "/broken": broken}
        self.serving = asyncio.create_task(serve_plain(0, pages, self.stop, on_port=told.set_result))
        self.port = await told
        return self

    async def __aexit__(self, *_: object) -> None:
        self.stop.set()
        await self.serving


async def test_a_known_page_is_shown_and_nothing_else() -> None:
    async with Served() as served, httpx.AsyncClient(base_url=f"http://127.0.0.1:{served.port}") as client:
        assert (await client.get("/hello?x=1")).text == "hello\n"
        assert (await client.get("/other")).status_code == 404
        assert (await client.post("/hello")).status_code == 405
        failed = await client.get("/broken")
        assert failed.status_code == 500
        assert "ZZCANARY" not in failed.text


@pytest.mark.parametrize("request_bytes", [b"GET " + b"x" * 100_000, b"\x16\x03\x01\n", b"\r\n\r\n"])
async def test_a_bad_request_ends_and_the_next_is_served(request_bytes: bytes) -> None:
    async with Served() as served:
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        writer.write(request_bytes)
        assert b"200" not in await asyncio.wait_for(reader.read(), 60)
        writer.close()
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{served.port}") as client:
            assert (await client.get("/hello")).status_code == 200


async def test_a_port_that_is_taken_is_a_configuration_error() -> None:
    async with Served() as served:
        with pytest.raises(ConfigurationError, match="metrics_port"):
            await serve_plain(served.port, {}, asyncio.Event())
