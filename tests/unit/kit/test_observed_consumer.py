"""What a consumer, a relay and a transaction measure and trace; on the in-memory broker and SQLite."""

import io
import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from cohortium_kit import probe, telemetry
from cohortium_kit.bus import Ack, Outgoing
from cohortium_kit.consumer import Consumer, Received
from cohortium_kit.db import Database, Tx
from cohortium_kit.envelopes import Sender
from cohortium_kit.errors import Poison
from cohortium_kit.logging import configure_logging
from cohortium_kit.memory import MemoryBroker, MemoryBus
from cohortium_kit.migrate import migrate
from cohortium_kit.outbox import Relay
from cohortium_kit.sampling import Sampler
from cohortium_kit.testing.clock import ManualClock
from cohortium_kit.testing.deliveries import delivered
from cohortium_kit.testing.signing import HmacSigner, HmacVerifier
from cohortium_kit.tracing import make_provider
from cohortium_messages.secure_sum import AbortAsked
from cohortium_messages.topology import SERVICES, dead_letters, inbox, platform_topology

WINDOW = b"window-of-a-test"
CLOCK = ManualClock()
SIGNER = HmacSigner("service:scheduler")
SENDER = Sender("/scheduler", SIGNER, CLOCK)
MESSAGE = AbortAsked(window_id=WINDOW, step=0, reason="LATE")
CONSUMED = "cohortium_messages_consumed_total"


class Bench:
    """A consumer of audit's inbox whose handler passes each message on to consent, or fails as it is told."""

    def __init__(self, db: Database, bus: MemoryBus) -> None:
        self.db = db
        self.bus = bus
        self.error: Exception | None = None
        self.consumer = Consumer(bus, db, HmacVerifier.of(SIGNER), inbox("audit"), "audit", clock=CLOCK)
        self.consumer.on(AbortAsked, self.handle)

    async def handle(self, tx: Tx, received: Received[AbortAsked]) -> None:
        tx.after_commit(lambda metrics: metrics.counter("test_done", "").inc())
        if self.error is not None:
            raise self.error
        await tx.send(SENDER.outgoing(SERVICES.name, "consent", received.message))

    async def deliver(self, outgoing: Outgoing, **more: Any) -> Any:
        return await self.consumer.handle(replace(delivered(outgoing, inbox("audit")), **more))

    def value(self, name: str, **labels: str) -> float:
        return self.db.metrics.registry.get_sample_value(name, labels) or 0.0


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    db = Database(f"sqlite:///{tmp_path / 'test.db'}", schema="test", clock=CLOCK)
    await migrate(db)
    bus = MemoryBus(MemoryBroker(CLOCK), "test")
    await bus.connect()
    await bus.declare(platform_topology())
    yield Bench(db, bus)
    await bus.close()
    await db.close()


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    provider = make_provider("test", 1.0, SimpleSpanProcessor(exporter))
    telemetry.use_provider(provider)
    yield exporter
    telemetry.use_provider(None)
    provider.shutdown()


def letter() -> Outgoing:
    return SENDER.outgoing(SERVICES.name, "audit", MESSAGE)


async def test_outcomes_are_counted_once_each(bench: Bench) -> None:
    labels = {"consumer": "audit", "type": AbortAsked.type_name}
    first = letter()
    await bench.deliver(first)
    await bench.deliver(first, redelivered=True)
    bench.error = Poison("bad_weather", "ZZCANARY")
    await bench.deliver(letter())
    for outcome in ("handled", "repeated", "parked"):
        assert bench.value(CONSUMED, outcome=outcome, **labels) == 1
    assert bench.value("cohortium_messages_parked_total", consumer="audit", reason="bad_weather") == 1
    assert bench.value("cohortium_messages_redelivered_total", consumer="audit") == 1
    assert bench.value("cohortium_message_handler_seconds_count", **labels) == 3
    assert bench.value("test_done_total") == 1, "what was rolled back was not counted"


async def test_what_an_unsigned_message_calls_itself_is_no_label(bench: Bench) -> None:
    forged = replace(letter(), type="cohortium.\n{evil}" * 100, headers={"cohortium-key-id": "x" * 1000})
    await bench.deliver(forged)
    assert bench.value(CONSUMED, consumer="audit", type="other", outcome="parked") == 1
    assert bench.value("cohortium_messages_parked_total", consumer="audit", reason="unsigned") == 1
    text = str([family.samples for family in bench.db.metrics.registry.collect()])
    assert "evil" not in text
    assert "xxx" not in text


async def test_the_place_of_a_fault_is_no_label(bench: Bench) -> None:
    bench.error = Poison("bad_schema:data.sites.17.name")
    await bench.deliver(letter())
    assert bench.value("cohortium_messages_parked_total", consumer="audit", reason="bad_schema") == 1


async def test_a_message_sent_after_a_crash_belongs_to_its_trace(bench: Bench, spans: InMemorySpanExporter) -> None:
    await bench.deliver(letter())
    before = spans.get_finished_spans()
    spans.clear()
    # The process dies here; another one finds the row.
    await Relay(bench.db, bench.bus, CLOCK).send_waiting()
    (sent,) = spans.get_finished_spans()
    assert sent.name == "send services"
    assert sent.context is not None
    assert sent.context.trace_id == telemetry.window_trace(WINDOW).trace_id
    assert sent.parent is not None
    assert sent.parent.span_id in {span.context.span_id for span in before if span.context is not None}
    delivered = await bench.bus.get(inbox("consent"))
    assert delivered is not None
    named = telemetry.parse_traceparent(delivered.headers["traceparent"])
    assert named is not None
    assert named.span_id == sent.context.span_id
    assert bench.value("cohortium_messages_published_total", exchange="services", type=AbortAsked.type_name) == 1


async def test_every_log_line_of_a_handler_bears_its_ids(bench: Bench, spans: InMemorySpanExporter) -> None:
    stream = io.StringIO()
    configure_logging(level="info", output="json", service="test", stream=stream)
    try:
        bench.error = Poison("bad_weather")
        await bench.deliver(first := letter())
        bench.error = None
        await bench.deliver(first)
        await bench.deliver(first)
    finally:
        configure_logging()
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    said = [line for line in lines if line["event"] in {"message_poisonous", "message_repeated"}]
    assert [line["event"] for line in said] == ["message_poisonous", "message_repeated"]
    for line in said:
        assert line["window"] == WINDOW.hex()
        assert line["trace_id"] == f"{telemetry.window_trace(WINDOW).trace_id:032x}"
        assert len(line["span_id"]) == 16
        assert line["message_id"] == first.message_id
        assert "dropped" not in line
    failed = spans.get_finished_spans()[0]
    assert failed.attributes is not None
    assert failed.attributes["error.type"] == "bad_weather"


async def test_waiting_messages_are_seen_and_a_lost_queue_shows_nothing(bench: Bench) -> None:
    sampler = Sampler(bench.db, bench.bus, CLOCK, [inbox("audit"), dead_letters("audit")])
    await bench.deliver(letter())
    await CLOCK.advance(30)
    await sampler.refresh()
    assert bench.value("cohortium_outbox_messages") == 1
    assert bench.value("cohortium_outbox_oldest_seconds") == 30
    assert await sampler.unsent(30) is None
    assert "1 messages wait to be sent, the oldest for 30 s" in str(await sampler.unsent(29))
    assert bench.db.metrics.registry.get_sample_value("cohortium_queue_messages", {"queue": "audit.dead"}) == 0
    await bench.bus.delete(platform_topology())
    await CLOCK.advance(30)
    await sampler.refresh()
    assert bench.db.metrics.registry.get_sample_value("cohortium_queue_messages", {"queue": "audit.dead"}) is None
    assert bench.value("cohortium_sample_failures_total", sample="queues", error="QueueMissing") == 1
    assert bench.value("cohortium_outbox_oldest_seconds") == 60


async def test_a_probe_comes_back_through_the_queue_and_only_by_the_services_exchange(bench: Bench) -> None:
    prober = probe.Prober(bench.db, CLOCK, "audit", limit_s=15)
    with pytest.raises(probe.ProbeMissing):
        await prober.ping()
    await prober._send()
    await Relay(bench.db, bench.bus, CLOCK).send_waiting()
    came = await bench.bus.get(inbox("audit"))
    assert came is not None
    assert not probe.is_probe(replace(came, exchange="uplink")), "a site's exchange proves nothing"
    assert await bench.consumer.handle(replace(came, body=b"0" * 32)) == Ack(), "a wrong number is no proof"
    with pytest.raises(probe.ProbeMissing):
        await prober.ping()
    assert await bench.consumer.handle(came) == Ack()
    await prober.ping()
    await CLOCK.advance(16)
    with pytest.raises(probe.ProbeMissing):
        await prober.ping()
