"""The HTTP side: problems, a guard before every route, health, an orderly end."""

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated

import httpx
import pytest
from fastapi import APIRouter, FastAPI, Query, Request

from cohortium_kit.errors import ConfigurationError
from cohortium_kit.http import MAX_BODY_BYTES, HttpProblem, add_metrics, add_ping, add_worry, create_app, serve
from cohortium_kit.metrics import Metrics
from cohortium_kit.testing.clock import settle


async def guard(request: Request) -> None:
    if request.url.path in {"/keys", "/inner/keys"} and request.headers.get("authorization") != "Bearer sesame":
        raise HttpProblem(401, "not_authorised", "say the word")


def make_app() -> FastAPI:
    app = create_app("house", "1", guard)
    inner = APIRouter(prefix="/inner")

    @app.get("/beds")
    async def beds(count: Annotated[int, Query(ge=1)]) -> dict[str, int]:
        return {"count": count}

    @app.get("/full")
    async def full() -> None:
        raise HttpProblem(409, "house_full", "no bed is free", beds=0)

    @app.get("/bug")
    async def bug() -> None:
        raise ZeroDivisionError("Mrs Smith")

    @app.get("/keys")
    @inner.get("/keys")
    async def keys() -> str:
        return "all"

    @app.post("/guests")
    async def guests(names: list[str]) -> int:
        return len(names)

    app.include_router(inner)
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


async def test_the_guard_stands_before_every_route(client: httpx.AsyncClient) -> None:
    for path in ("/keys", "/inner/keys"):
        assert (await client.get(path, headers={"Authorization": "Bearer sesame"})).status_code == 200
        answer = await client.get(path, headers={"Authorization": "Bearer sesam"})
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")


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


async def test_what_a_service_waits_for_is_told_and_takes_it_from_no_balancer() -> None:
    app = make_app()
    fine = True
    waits_for: str | None = "audit has not answered for 40 s"

    async def ping() -> None:
        if not fine:
            raise ConnectionError

    async def log() -> str | None:
        return waits_for

    async def broken() -> str | None:
        raise TimeoutError

    add_ping(app, "database", ping)
    add_worry(app, "log", log)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://house") as client:
        answer = await client.get("/readyz")
        told = {"status": "degraded", "checks": {"database": "ready"}, "degraded": {"log": waits_for}}
        assert (answer.status_code, answer.json()) == (200, told)
        fine = False
        answer = await client.get("/readyz")
        assert (answer.status_code, answer.json()["status"]) == (503, "not_ready")
        assert answer.json()["degraded"] == {"log": waits_for}
        fine, waits_for = True, None
        assert (await client.get("/readyz")).json() == {"status": "ready", "checks": {"database": "ready"}}
        add_worry(app, "outbox", broken)
        assert (await client.get("/readyz")).json()["degraded"] == {"outbox": "cannot be told: TimeoutError"}


@pytest.mark.parametrize("token", [None, "scrape"])
async def test_measures_are_shown_to_who_may_see_them(token: str | None) -> None:
    app, asked, metrics = make_app(), [], Metrics()

    async def refresh() -> None:
        asked.append(1)

    metrics.build.labels("house", "1").set(1)
    add_metrics(app, metrics, refresh, token)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://house") as client:
        for wrong in ({}, {"Authorization": "Bearer scrap"}, {"Authorization": "scrap\xe9".encode("latin-1")}):
            answer = await client.get("/metrics", headers=wrong)
            assert answer.status_code == (200 if token is None else 401)
            assert len(asked) == (0 if token else len(asked)), "who may not see them cannot make us read them"
        answer = await client.get("/metrics", headers={"Authorization": "Bearer scrape"})
    assert answer.status_code == 200
    assert 'cohortium_build{service="house",version="1"} 1.0' in answer.text
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")


async def test_server_answers_until_it_is_stopped() -> None:
    stop, ports = asyncio.Event(), []
    serving = asyncio.create_task(serve(make_app(), "127.0.0.1", 0, stop, on_port=ports.append))
    await settle()
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{ports[0]}") as client:
        assert (await client.get("/healthz")).status_code == 200
        with pytest.raises(ConfigurationError, match="cannot listen"):
            await serve(make_app(), "127.0.0.1", ports[0], stop)
    stop.set()
    await asyncio.wait_for(serving, 60)


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
