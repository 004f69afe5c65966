"""The HTTP side: problems, the operator's token, health, an orderly end."""

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated

import httpx
import pytest
from fastapi import Depends, FastAPI, Query

from cohortium_kit.errors import ConfigurationError
from cohortium_kit.http import MAX_BODY_BYTES, HttpProblem, add_ping, create_app, operator_only, serve
from cohortium_kit.testing.clock import settle

TOKEN = "sesame"


def make_app(token: str | None = TOKEN) -> FastAPI:
    app = create_app("house", "1", token)

    @app.get("/beds")
    async def beds(count: Annotated[int, Query(ge=1)]) -> dict[str, int]:
        return {"count": count}

    @app.get("/full")
    async def full() -> None:
        raise HttpProblem(409, "house_full", "no bed is free", beds=0)

    @app.get("/bug")
    async def bug() -> None:
        raise ZeroDivisionError("Mrs Smith")

    @app.get("/keys", dependencies=[Depends(operator_only)])
    async def keys() -> str:
        return "all"

    @app.post("/guests", dependencies=[Depends(operator_only)])
    async def guests(names: list[str]) -> int:
        return len(names)

    return app


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(make_app(), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://house") as made:
        yield made


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/beds", 422, "invalid_request"),
        ("/beds?count=0", 422, "invalid_request"),
        ("/full", 409, "house_full"),
        ("/bug", 500, "internal"),
        ("/absent", 404, "http_404"),
        ("/keys", 401, "not_authorised"),
    ],
)
async def test_every_error_is_a_problem(client: httpx.AsyncClient, path: str, status: int, code: str) -> None:
    answer = await client.get(path)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert (answer.json()["title"], answer.json()["status"]) == (code, status)
    assert "Smith" not in answer.text


async def test_invalid_request_names_the_field_and_not_the_value(client: httpx.AsyncClient) -> None:
    answer = await client.get("/beds?count=Smith")
    assert answer.json()["errors"][0]["field"] == "query.count"
    assert "Smith" not in answer.text


async def test_operators_route_opens_with_the_token_only(client: httpx.AsyncClient) -> None:
    assert (await client.get("/keys", headers={"Authorization": "Bearer sesame"})).status_code == 200
    for wrong in ("Bearer sesam", "Bearer ", "Basic sesame", "Bearer sésame"):
        answer = await client.get("/keys", headers={"Authorization": wrong.encode()})
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"


async def test_without_a_token_operators_routes_are_closed() -> None:
    transport = httpx.ASGITransport(make_app(None))
    async with httpx.AsyncClient(transport=transport, base_url="http://house") as client:
        assert (await client.get("/keys", headers={"Authorization": "Bearer "})).status_code == 503


async def test_readiness_is_what_the_pings_say() -> None:
    app = make_app()
    fine = True

    async def ping() -> None:
        if not fine:
            raise ConnectionError("secret address")

    add_ping(app, "database", ping)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://house") as client:
        assert (await client.get("/healthz")).status_code == 200
        assert (await client.get("/readyz")).json() == {"status": "ready", "checks": {"database": "ready"}}
        fine = False
        answer = await client.get("/readyz")
        assert (answer.status_code, answer.json()["checks"]) == (503, {"database": "ConnectionError"})


async def test_server_answers_until_it_is_stopped() -> None:
    stop, ports = asyncio.Event(), []
    serving = asyncio.create_task(serve(make_app(), "127.0.0.1", 0, stop, on_port=ports.append))
    await settle()
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{ports[0]}") as client:
        assert (await client.get("/healthz")).status_code == 200
        with pytest.raises(ConfigurationError, match="cannot listen"):
            await serve(make_app(), "127.0.0.1", ports[0], stop)
    stop.set()
    await asyncio.wait_for(serving, 10)


async def test_a_stranger_cannot_fill_the_memory_with_a_body(client: httpx.AsyncClient) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while sent < 10 * MAX_BODY_BYTES:
            sent += 1 << 20
            yield b" " * (1 << 20)

    answer = await client.post("/guests", content=endless(), headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["title"]) == (413, "http_413")
    assert sent <= MAX_BODY_BYTES + (1 << 20)
