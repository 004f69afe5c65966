"""Traces: named by windows, kept in the outbox, never chosen by a site."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

from cohortium_kit import telemetry
from cohortium_kit.bus import Outgoing
from cohortium_kit.tracing import make_provider
from cohortium_messages.envelope import TRACEPARENT_HEADER
from cohortium_messages.runs import TaskRefused
from cohortium_messages.secure_sum import AbortAsked

WINDOW, OTHER = bytes(16), bytes([7]) * 16
FOREIGN = "00-" + "ab" * 16 + "-" + "cd" * 8 + "-01"
SERVICE, SITE = "service:scheduler", "site:5a1e3ba3-0000-4000-8000-000000000001"
QUEUE = "site.5a1e3ba3-0000-4000-8000-000000000001.control"


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    provider = make_provider("test", 1.0, SimpleSpanProcessor(exporter))
    telemetry.use_provider(provider)
    yield exporter
    telemetry.use_provider(None)
    provider.shutdown()


def message(window: bytes = WINDOW) -> AbortAsked:
    return AbortAsked(window_id=window, step=0, reason="LATE")


def handle(headers: dict[str, str], key_id: str, window: bytes = WINDOW) -> None:
    with telemetry.processing(
        message(window), headers, key_id=key_id, queue="aggregator.inbox", consumer="aggregator", message_id="m-1"
    ):
        pass


def only(spans: InMemorySpanExporter) -> ReadableSpan:
    (span,) = spans.get_finished_spans()
    return span


def trace_id(span: ReadableSpan) -> int:
    assert span.context is not None
    return span.context.trace_id


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        FOREIGN.upper(),
        FOREIGN[:-1],
        FOREIGN + "-more",
        FOREIGN + "\n",
        "01" + FOREIGN[2:],
        "00-" + "0" * 32 + "-" + "cd" * 8 + "-01",
        "00-" + "ab" * 16 + "-" + "0" * 16 + "-01",
        "x" * 100_000,
    ],
)
def test_a_malformed_traceparent_is_none(header: str | None) -> None:
    assert telemetry.parse_traceparent(header) is None


def test_without_a_provider_nothing_is_added_and_nothing_happens() -> None:
    outgoing = Outgoing("uplink", "k", b"", "m-1", "t", {"a": "b"})
    assert telemetry.headers_for(message()) == {}
    with telemetry.sending(outgoing) as same:
        assert same is outgoing
    handle({TRACEPARENT_HEADER: FOREIGN}, SITE)


def test_a_message_of_a_window_bears_its_trace_from_whoever_sends_it(spans: InMemorySpanExporter) -> None:
    named = telemetry.parse_traceparent(telemetry.headers_for(message())["traceparent"])
    assert named is not None
    assert named.trace_id == telemetry.window_trace(WINDOW).trace_id
    assert named.trace_id != telemetry.window_trace(OTHER).trace_id
    with telemetry.span("work", window_id=OTHER):
        inside = telemetry.parse_traceparent(telemetry.headers_for(message())["traceparent"])
    assert inside == named, "work on one window that speaks of another speaks in the other's trace"


@pytest.mark.parametrize("header", [FOREIGN, "garbage"])
def test_a_site_cannot_choose_our_trace(spans: InMemorySpanExporter, header: str) -> None:
    handle({"traceparent": header}, SITE)
    span = only(spans)
    assert trace_id(span) == telemetry.window_trace(WINDOW).trace_id
    assert span.parent is not None
    assert span.parent.span_id == telemetry.window_trace(WINDOW).span_id
    assert len(span.links) == (header == FOREIGN)


def test_a_site_that_knows_the_window_still_is_no_parent(spans: InMemorySpanExporter) -> None:
    window = telemetry.window_trace(WINDOW)
    handle({"traceparent": f"00-{window.trace_id:032x}-{'cd' * 8}-01"}, SITE)
    span = only(spans)
    assert span.parent is not None
    assert span.parent.span_id == window.span_id
    assert [link.context.span_id for link in span.links] == [int("cd" * 8, 16)]


def test_a_service_is_the_parent_in_its_window(spans: InMemorySpanExporter) -> None:
    window = telemetry.window_trace(WINDOW)
    handle({"traceparent": f"00-{window.trace_id:032x}-{'cd' * 8}-01"}, SERVICE)
    span = only(spans)
    assert span.parent is not None
    assert span.parent.span_id == int("cd" * 8, 16)
    assert not span.links


def test_a_message_of_no_window_follows_a_service_and_not_a_site(spans: InMemorySpanExporter) -> None:
    refused = TaskRefused.model_construct()
    for key_id in (SERVICE, SITE):
        with telemetry.processing(
            refused, {"traceparent": FOREIGN}, key_id=key_id, queue="q", consumer="c", message_id="m"
        ):
            pass
    followed, apart = spans.get_finished_spans()
    assert trace_id(followed) == int("ab" * 16, 16)
    assert trace_id(apart) != int("ab" * 16, 16)
    assert apart.parent is None
    assert len(apart.links) == 1


def test_a_sent_message_names_its_own_span_and_stays_in_its_trace(spans: InMemorySpanExporter) -> None:
    outgoing = Outgoing("tasks", QUEUE, b"", "m-1", AbortAsked.type_name, telemetry.headers_for(message()))
    with telemetry.sending(outgoing) as sent:
        pass
    span = only(spans)
    named = telemetry.parse_traceparent(sent.headers["traceparent"])
    assert named is not None
    assert span.context is not None
    assert (named.trace_id, named.span_id) == (telemetry.window_trace(WINDOW).trace_id, span.context.span_id)
    assert span.name == "send tasks"
    assert span.kind is SpanKind.PRODUCER


def test_spans_bear_no_site_no_size_and_no_text_of_an_error(spans: InMemorySpanExporter) -> None:
    outgoing = Outgoing("tasks", QUEUE, b"ZZCANARY", "m-1", AbortAsked.type_name, telemetry.headers_for(message()))
    with telemetry.sending(outgoing):
        pass
    with (
        pytest.raises(ValueError, match="ZZCANARY"),
        telemetry.processing(message(), {}, key_id=SITE, queue=QUEUE, consumer="connector", message_id="m-1"),
    ):
        raise ValueError("ZZCANARY")
    told = "".join(span.to_json() for span in spans.get_finished_spans())
    assert "ZZCANARY" not in told
    assert "5a1e3ba3" not in told
    assert "size" not in told
    assert "site.{site}.control" in told
    assert spans.get_finished_spans()[-1].attributes["error.type"] == "ValueError"  # type: ignore[index]


def test_the_root_span_of_a_window_has_the_name_that_all_others_refer_to(spans: InMemorySpanExporter) -> None:
    handle({}, SITE)
    ended = datetime(2026, 1, 1, tzinfo=UTC)
    telemetry.window_span("window", WINDOW, ended - timedelta(seconds=3), ended, purpose="update")
    child, root = spans.get_finished_spans()
    assert root.parent is None
    assert root.context is not None
    assert child.parent is not None
    assert (root.context.trace_id, root.context.span_id) == (child.parent.trace_id, child.parent.span_id)
    assert root.start_time is not None
    assert root.end_time == root.start_time + 3_000_000_000


def test_the_sampler_looks_at_the_window_and_not_at_anybodys_wish() -> None:
    exporter = InMemorySpanExporter()
    telemetry.use_provider(make_provider("test", 0.5, SimpleSpanProcessor(exporter)))
    try:
        windows = [number.to_bytes(16) for number in range(400)]
        for window in windows:
            handle({"traceparent": FOREIGN}, SITE, window)
        kept = {trace_id(span) for span in exporter.get_finished_spans()}
        again = InMemorySpanExporter()
        telemetry.use_provider(make_provider("other", 0.5, SimpleSpanProcessor(again)))
        for window in windows:
            handle({}, SERVICE, window)
        assert {trace_id(span) for span in again.get_finished_spans()} == kept
        assert 100 < len(kept) < 300
    finally:
        telemetry.use_provider(None)
