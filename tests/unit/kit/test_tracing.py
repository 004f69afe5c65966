"""Spans really reach a collector by OTLP over HTTP, and settings that cannot work are refused with the way out."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from cohortium_kit import telemetry
from cohortium_kit.errors import ConfigurationError
from cohortium_kit.settings import Settings
from cohortium_kit.tracing import exporting

WINDOW = b"window-of-a-test"


def settings(**more: object) -> Settings:
    given = {"amqp_url": "memory://", "database_url": "sqlite:////tmp/none.db", "schema": "test", **more}
    return Settings.model_validate(given)


@asynccontextmanager
async def collector() -> AsyncIterator[tuple[str, list[tuple[str, bytes]]]]:
    """What an OpenTelemetry collector does, as far as it goes: takes requests, and keeps path and body."""
    taken: list[tuple[str, bytes]] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        sizes = [line.split(":")[1] for line in head.splitlines() if line.lower().startswith("content-length:")]
        taken.append((head.split()[1], await reader.readexactly(int(sizes[0]))))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", taken
    finally:
        server.close()
        await server.wait_closed()


async def test_spans_reach_the_collector_when_the_service_ends() -> None:
    def serve(endpoint: str) -> None:
        with exporting(settings(otlp_endpoint=endpoint), "scheduler"):
            assert telemetry.tracing()
            with telemetry.span("work", window_id=WINDOW, purpose="update"):
                pass

    async with collector() as (endpoint, taken):
        await asyncio.to_thread(serve, endpoint)
    assert not telemetry.tracing()
    ((path, body),) = taken
    assert path == "/v1/traces"
    (resource,) = ExportTraceServiceRequest.FromString(body).resource_spans
    told = {one.key: one.value.string_value for one in resource.resource.attributes}
    assert told["service.name"] == "cohortium-scheduler"
    assert set(told) == {"service.name", "service.version"}, "no host, no process, no path"
    (span,) = resource.scope_spans[0].spans
    assert span.name == "work"
    assert int.from_bytes(span.trace_id) == telemetry.window_trace(WINDOW).trace_id


def test_without_an_endpoint_nothing_is_traced() -> None:
    with exporting(settings(), "scheduler"):
        assert not telemetry.tracing()


def test_a_missing_sdk_is_told_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace.export", None)
    with pytest.raises(ConfigurationError, match="extra `tracing`"), exporting(settings(otlp_endpoint="http://c"), "x"):
        raise AssertionError("it must not begin")


@pytest.mark.parametrize(
    "endpoint", ["collector:4318", "ftp://c", "http://user:password@c", "http://c/?key=1", "http://"]
)
def test_an_endpoint_that_cannot_work_is_refused(endpoint: str, tmp_path: Path) -> None:
    file = tmp_path / "s.yaml"
    file.write_text(f"amqp_url: memory://\ndatabase_url: sqlite:////tmp/x\nschema: s\notlp_endpoint: {endpoint}\n")
    with pytest.raises(ConfigurationError, match="otlp_endpoint"):
        Settings.load(file)
