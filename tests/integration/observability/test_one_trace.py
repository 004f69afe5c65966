"""One trace from the task to the model, over the broker, and the measures of the services that took part."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client.parser import text_string_to_metric_families

from cohortium_kit import telemetry
from cohortium_kit.tracing import make_provider

from .conftest import SITES, finished_run

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.timeout(600)]

SITE_QUEUE = "process site.{site}.control"
EXPECTED = {
    ("ask consent", ""),
    ("process consent.inbox", "cohortium.consent.authorise_asked.v1"),
    ("process scheduler.inbox", "cohortium.consent.authorised.v1"),
    ("send tasks", "cohortium.window.open.v1"),
    (SITE_QUEUE, "cohortium.window.open.v1"),
    ("work", ""),
    ("send uplink", "cohortium.window.ready.v1"),
    ("process scheduler.inbox", "cohortium.window.ready.v1"),
    ("process aggregator.inbox", "cohortium.session.opened.v1"),
    (SITE_QUEUE, "cohortium.window.roster.v1"),
    ("process aggregator.inbox", "cohortium.window.upload.v1"),
    ("process aggregator.inbox", "cohortium.window.unmask.v1"),
    ("open sum", ""),
    ("send events", "cohortium.audit.model_released.v1"),
    (SITE_QUEUE, "cohortium.window.closed.v1"),
    ("process scheduler.inbox", "cohortium.session.closed.v1"),
    ("window", ""),
}


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    provider = make_provider("federation", 1.0, SimpleSpanProcessor(exporter))
    telemetry.use_provider(provider)
    yield exporter
    telemetry.use_provider(None)
    provider.shutdown()


def kind_of(span: ReadableSpan) -> tuple[str, str]:
    assert span.attributes is not None
    return span.name, str(span.attributes.get("cohortium.message.type", ""))


def by_trace(spans: Sequence[ReadableSpan]) -> dict[int, list[ReadableSpan]]:
    traces = defaultdict(list)
    for span in spans:
        assert span.context is not None
        traces[span.context.trace_id].append(span)
    return traces


def value(text: str, name: str, **labels: str) -> float:
    """The sum of a metric's samples that have these labels."""
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


async def test_a_round_is_one_trace_and_the_services_have_counted_it(
    spans: InMemorySpanExporter, tmp_path: Path, amqp_url: str, postgres_url: str
) -> None:
    async with finished_run(tmp_path, amqp_url, postgres_url) as run:
        assert run.status.state == "FINISHED"
        texts = {role: await run.metrics(role) for role in ("scheduler", "aggregator", "audit", "enrolment", "consent")}
    traces = by_trace(spans.get_finished_spans())
    rounds = {
        span.attributes["cohortium.window.id"]: span.context.trace_id
        for span in spans.get_finished_spans()
        if span.name == "window" and span.attributes is not None and span.context is not None
    }
    updates = [
        trace
        for window, trace in rounds.items()
        if trace == telemetry.window_trace(bytes.fromhex(str(window))).trace_id
    ]
    assert len(updates) == len(rounds) >= 3, "one root span for each window, in the trace that the window names"
    for trace in updates:
        members = traces[trace]
        assert {kind_of(span) for span in members} >= EXPECTED, "the whole way, in one trace"
        ids = {span.context.span_id for span in members if span.context is not None}
        assert all(span.parent is None or span.parent.span_id in ids for span in members), "no span hangs in the air"
        assert sum(kind_of(span) == (SITE_QUEUE, "cohortium.window.open.v1") for span in members) == SITES
        heard = [span for span in members if kind_of(span) == (SITE_QUEUE, "cohortium.window.open.v1")]
        sent = {span.context.span_id for span in members if span.name == "send tasks" and span.context is not None}
        assert all(span.parent is not None and span.parent.span_id in sent for span in heard), (
            "a task's child is its site"
        )
        said = [span for span in members if kind_of(span) == ("process scheduler.inbox", "cohortium.window.ready.v1")]
        assert all(len(span.links) == 1 for span in said), "a site's own span is a link"

    windows = len(rounds)
    assert value(texts["scheduler"], "cohortium_rounds_total", outcome="RELEASED") == windows
    assert value(texts["scheduler"], "cohortium_round_seconds_count") == windows
    assert value(texts["scheduler"], "cohortium_runs", state="FINISHED") == 1
    assert value(texts["scheduler"], "cohortium_sites_present") == SITES
    assert value(texts["enrolment"], "cohortium_sites", state="active") == SITES
    assert value(texts["consent"], "cohortium_grants", state="granted") == SITES
    assert value(texts["aggregator"], "cohortium_chunks_stored_total") >= SITES * windows
    released = {"exchange": "events", "type": "cohortium.audit.model_released.v1"}
    assert value(texts["aggregator"], "cohortium_messages_published_total", **released) >= 2
    assert value(texts["audit"], "cohortium_audit_entries") > 20
    assert value(texts["audit"], "cohortium_queue_messages", queue="audit.dead") == 0
    for text in texts.values():
        assert value(text, "cohortium_messages_consumed_total", outcome="handled") > 0
        assert value(text, "cohortium_messages_consumed_total", outcome="failed") == 0
        assert value(text, "process_resident_memory_bytes") > 1e6
        assert value(text, "cohortium_sample_failures_total") == 0
        assert "site-0" not in text
