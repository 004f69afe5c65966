"""`python -m cohortium_sim.bench_telemetry`: what spans and measures add to one message, sent once and handled once.

The broker, the database and the signatures are left out: what is timed, in processor seconds, is what observability
does around them. With tracing on, spans go through the batching processor to an exporter that forgets them.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence

from cohortium_kit import telemetry
from cohortium_kit.bus import Outgoing
from cohortium_kit.metrics import Metrics
from cohortium_kit.tracing import make_provider
from cohortium_messages.secure_sum import AbortAsked

REPEATS = 7
QUEUE = "site.00000000-0000-4000-8000-000000000000.control"


def one_message(metrics: Metrics, message: AbortAsked) -> None:
    """What the sender, the relay and the consumer do for one message, without the message."""
    outgoing = Outgoing("tasks", QUEUE, b"", "m-1", message.type_name, telemetry.headers_for(message))
    with telemetry.sending(outgoing) as sent:
        pass
    metrics.published.labels("tasks", message.type_name).inc()
    with metrics.answering("connector", message.type_name, redelivered=False) as seen:
        span = telemetry.processing(
            message, sent.headers, key_id="service:scheduler", queue=QUEUE, consumer="connector", message_id="m-1"
        )
        with span, metrics.handling("connector", message.type_name):
            telemetry.current_ids()
        metrics.wait_seconds.labels("connector").observe(0.1)
        metrics.transaction_seconds.labels("connector").observe(0.01)
        seen.name = "handled"


def nothing(_: Metrics, message: AbortAsked) -> None:
    """The part of the above that is there without any observability."""
    Outgoing("tasks", QUEUE, b"", "m-1", message.type_name, {})


def seconds_each(work: Callable[[Metrics, AbortAsked], None], count: int) -> float:
    """The median over a few repeats, in processor seconds: other work on the machine does not count."""
    metrics = Metrics()
    message = AbortAsked(window_id=bytes(16), step=0, reason="LATE")
    times = []
    for _ in range(REPEATS):
        began = time.process_time()
        for _ in range(count):
            work(metrics, message)
        times.append((time.process_time() - began) / count)
    return statistics.median(times)


def measure(count: int) -> dict[str, float]:
    """Processor seconds per message: without anything, with measures alone, with tracing too."""
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

    class Forgetting(SpanExporter):
        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:  # noqa: ARG002 - forgotten
            return SpanExportResult.SUCCESS

    base = seconds_each(nothing, count)
    off = seconds_each(one_message, count)
    provider = make_provider("bench", 1.0, BatchSpanProcessor(Forgetting()))
    telemetry.use_provider(provider)
    try:
        on = seconds_each(one_message, count)
    finally:
        telemetry.use_provider(None)
        provider.shutdown()
    return {"measures_s": off - base, "measures_and_traces_s": on - base}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench_telemetry", description="Seconds added to one message.")
    parser.add_argument("--count", type=int, default=20_000, help="messages in each of seven repeats")
    found = measure(parser.parse_args(argv).count)
    sys.stdout.write(json.dumps({name: round(value, 8) for name, value in found.items()}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
