"""The HTTP side of a service: problem+json for every error, a guard before every route, health and readiness."""

import asyncio
import contextlib
import hmac
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import structlog
import uvicorn
from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cohortium_kit.errors import CohortiumError, ConfigurationError
from cohortium_kit.metrics import Metrics
from cohortium_kit.paging import CursorUnknown
from cohortium_kit.settings import read_secret_file

log = structlog.get_logger(__name__)

PROBLEM_TYPE = "application/problem+json"
PING_S = 3.0
MAX_BODY_BYTES = 4 << 20
"""No request of ours is larger. A body is read before anybody asks for a token, so this also holds for strangers."""

Ping = Callable[[], Awaitable[None]]
"""Returns if the thing works, raises if it does not."""
Worry = Callable[[], Awaitable[str | None]]
"""What the service waits for though it can serve, as a sentence; None if for nothing."""


class HttpProblem(CohortiumError):
    """An answer that is an error: `code` is stable and for programs, `detail` is for people. With `retry_after_s` the
    answer's header says it, too."""

    def __init__(self, status: int, code: str, detail: str, **more: Any) -> None:
        super().__init__(f"{code}: {detail}")
        self.status = status
        self.code = code
        self.detail = detail
        self.more = more


def problem(status: int, code: str, detail: str, headers: Mapping[str, str] | None = None, **more: Any) -> JSONResponse:
    """An RFC 9457 answer."""
    body = {"type": f"urn:cohortium:problem:{code}", "title": code, "status": status, "detail": detail, **more}
    return JSONResponse(body, status, headers, media_type=PROBLEM_TYPE)


def create_app(title: str, version: str, guard: Callable[..., Awaitable[None]] | None) -> FastAPI:
    """An application with our errors, `/healthz` and `/readyz`. `guard` is a dependency of every route: it raises
    `HttpProblem` for who may not pass. None: the routes guard themselves.

    Add readiness checks with `add_ping(app, name, ping)`, and with `add_worry` what is to be told beside them.
    """
    dependencies = [] if guard is None else [Depends(guard)]
    app = FastAPI(title=title, version=version, docs_url=None, redoc_url=None, dependencies=dependencies)
    app.state.pings = {}
    app.state.worries = {}
    app.add_exception_handler(HttpProblem, _on_problem)
    app.add_exception_handler(CursorUnknown, _on_unknown_cursor)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(Exception, _on_bug)
    app.add_middleware(_BodyLimit)
    app.add_api_route("/healthz", _healthz, methods=["GET"], include_in_schema=False)
    app.add_api_route("/readyz", _readyz, methods=["GET"], include_in_schema=False)
    return app


def add_metrics(
    app: FastAPI, metrics: Metrics, refresh: Callable[[], Awaitable[None]], token: str | None = None
) -> None:
    """Show the service's measures at `/metrics`, in Prometheus' text format; with a token, only to who sends it.

    `refresh` takes the samples that are read when somebody asks.
    """

    async def scrape(request: Request) -> Response:
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if token is not None and not hmac.compare_digest(given.encode(), token.encode()):
            raise HttpProblem(401, "not_authorised", "send the token of metrics_token_file as a bearer token")
        await refresh()
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_PLAIN_0_0_4)

    app.add_api_route("/metrics", scrape, methods=["GET"], include_in_schema=False)


def add_ping(app: FastAPI, name: str, ping: Ping) -> None:
    """Make readiness depend on `ping`, under this name."""
    app.state.pings[name] = ping


def add_worry(app: FastAPI, name: str, worry: Worry) -> None:
    """Have readiness tell of this: the service serves, and what depends on another one does not go on. Such a service
    is `degraded`, and no load balancer takes it away, for another instance would wait for the same."""
    app.state.worries[name] = worry


def server_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """TLS 1.3 with this certificate, with its chain, and its key, which only its owner may read. Raises
    `ConfigurationError`."""
    read_secret_file(key)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        told = error.strerror or type(error).__name__
        raise ConfigurationError(
            f"certificate {certificate} with key {key}: {told}; give PEM files that belong together"
        ) from None
    return context


async def serve(
    app: FastAPI,
    host: str,
    port: int,
    stop: asyncio.Event,
    *,
    on_port: Callable[[int], None] | None = None,
    tls: ssl.SSLContext | None = None,
) -> None:
    """Serve until `stop` is set, then let open requests finish. Signals stay the service's own.

    With port 0 the system chooses one; `on_port` is told which, when the socket listens. With `tls` (`server_context`)
    it speaks nothing else. Raises `ConfigurationError` if it cannot listen there.
    """
    try:
        listener = socket.create_server((host, port), backlog=256)
    except OSError as error:
        raise ConfigurationError(f"cannot listen on {host}:{port}: {error.strerror}; change http_port") from None
    with listener:
        if on_port is not None:
            on_port(listener.getsockname()[1])
        config = uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=5)
        if tls is not None:
            config.load()
            config.ssl = tls
        server = _Server(config)
        serving = asyncio.create_task(server.serve([listener]), name="http")
        stopping = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            server.should_exit = True
            stopping.cancel()
            await asyncio.gather(serving, stopping, return_exceptions=True)
        serving.result()


class _BodyLimit:
    """Refuses a request while its body comes in, whether or not it said how long it would be."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        taken = 0

        async def bounded() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > MAX_BODY_BYTES:
                raise HTTPException(413, f"a request has at most {MAX_BODY_BYTES} bytes")
            return message

        await self._app(scope, bounded, send)


class _Server(uvicorn.Server):
    """uvicorn without its own signal handlers."""

    def capture_signals(self) -> Any:
        return contextlib.nullcontext()


async def _healthz() -> dict[str, str]:
    return {"status": "alive"}


async def _readyz(request: Request) -> JSONResponse:
    pings: dict[str, Ping] = request.app.state.pings
    states = await asyncio.gather(*[_state(name, ping) for name, ping in pings.items()])
    worries: dict[str, Worry] = request.app.state.worries
    told = await asyncio.gather(*[_told(name, worry) for name, worry in worries.items()])
    degraded = {name: text for name, text in zip(worries, told, strict=True) if text is not None}
    ready = all(state == "ready" for state in states)
    body: dict[str, Any] = {"status": "not_ready", "checks": dict(zip(pings, states, strict=True))}
    if ready:
        body["status"] = "degraded" if degraded else "ready"
    if degraded:
        body["degraded"] = degraded
    return JSONResponse(body, 200 if ready else 503)


async def _state(name: str, ping: Ping) -> str:
    try:
        async with asyncio.timeout(PING_S):
            await ping()
    except Exception as error:  # noqa: BLE001 - whatever it is, it is why we are not ready
        log.warning("ping_failed", name=name, error=type(error).__name__)
        return type(error).__name__
    return "ready"


async def _told(name: str, worry: Worry) -> str | None:
    try:
        async with asyncio.timeout(PING_S):
            return await worry()
    except Exception as error:  # noqa: BLE001 - a worry that cannot be told is one
        log.warning("worry_not_told", name=name, error=type(error).__name__)
        return f"cannot be told: {type(error).__name__}"


async def _on_problem(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HttpProblem)  # noqa: S101 - told to the type checker; starlette dispatches by type
    headers = {"WWW-Authenticate": "Bearer"} if error.status == 401 else {}
    if "retry_after_s" in error.more:
        headers["Retry-After"] = str(error.more["retry_after_s"])
    return problem(error.status, error.code, error.detail, headers, **error.more)


async def _on_unknown_cursor(_: Request, error: Exception) -> JSONResponse:
    return problem(422, "cursor_unknown", str(error), errors=[{"field": "query.after", "fault": str(error)}])


async def _on_invalid(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)  # noqa: S101
    faults = [{"field": ".".join(str(part) for part in one["loc"]), "fault": one["msg"]} for one in error.errors()]
    named = ", ".join(fault["field"] for fault in faults)
    return problem(422, "invalid_request", f"not valid: {named}", errors=faults)


async def _on_http_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)  # noqa: S101
    return problem(error.status_code, f"http_{error.status_code}", str(error.detail), error.headers)


async def _on_bug(request: Request, error: Exception) -> JSONResponse:
    log.error("request_failed", path=request.url.path, method=request.method, exc_info=error)
    return problem(500, "internal", "an error of ours; its details are in the log")
