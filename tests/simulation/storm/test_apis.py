"""Routes that wait for the first request are the routes that were added."""

import httpx
from fastapi import APIRouter, FastAPI

from cohortium_sim.storm.apis import apis_when_asked


async def test_routes_are_made_at_the_first_request_and_answer_as_ever() -> None:
    with apis_when_asked():
        app, outer, inner = FastAPI(), APIRouter(), APIRouter()
        before = len(app.routes)

        @app.get("/runs")
        async def runs() -> str:
            return "all"

        @inner.get("/runs/last")
        async def last() -> str:
            return "the last"

        @inner.get("/runs/{name}")
        async def one(name: str) -> str:
            return name

        outer.include_router(inner)
        app.include_router(outer, prefix="/v1")
        assert "runs" not in str([getattr(route, "path", "") for route in (*app.routes[before:], *inner.routes)])
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
            answers = {"/runs": "all", "/v1/runs/last": "the last", "/v1/runs/7": "7"}
            for path in (*answers, *answers):
                assert (await client.get(path)).json() == answers[path]
            assert (await client.get("/v1/none")).status_code == 404
    assert len([route for route in inner.routes if "runs" in getattr(route, "path", "")]) == 2
