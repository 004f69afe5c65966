"""Where spans go: the OpenTelemetry SDK with an OTLP/HTTP exporter, if the settings name an endpoint.

The SDK is an extra (`cohortium[tracing]`): without an endpoint nothing of it is imported. The sampler looks at the
trace id alone, so all services with one ratio keep the same windows, and nobody outside can have us keep more.
"""

import contextlib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

import structlog

from cohortium_kit import telemetry
from cohortium_kit.errors import ConfigurationError
from cohortium_kit.settings import Settings

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor, TracerProvider

log = structlog.get_logger(__name__)

EXPORT_S = 5.0
MAX_QUEUE = 4096
"""Spans beyond it are dropped: a collector that is away must not cost memory."""
MAX_ATTRIBUTES = 24
MAX_TEXT = 256


def package_version() -> str:
    """Of the platform's or of the hospital's distribution, whichever is installed."""
    for name in ("cohortium", "cohortium-connector"):
        with contextlib.suppress(PackageNotFoundError):
            return version(name)
    return "unknown"


def make_provider(service: str, ratio: float, processor: "SpanProcessor") -> "TracerProvider":
    """A provider whose root spans of windows have the windows' own ids."""
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import SpanLimits, TracerProvider
    from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
    from opentelemetry.sdk.trace.sampling import TraceIdRatioBased

    class Ids(RandomIdGenerator):
        def generate_span_id(self) -> int:
            named = telemetry.wanted_ids.get()
            return super().generate_span_id() if named is None else named.span_id

        def generate_trace_id(self) -> int:
            named = telemetry.wanted_ids.get()
            return super().generate_trace_id() if named is None else named.trace_id

        def is_trace_id_random(self) -> bool:
            return False

    provider = TracerProvider(
        sampler=TraceIdRatioBased(ratio),
        resource=Resource({"service.name": f"cohortium-{service}", "service.version": package_version()}),
        id_generator=Ids(),
        span_limits=SpanLimits(
            max_span_attributes=MAX_ATTRIBUTES, max_events=8, max_links=4, max_span_attribute_length=MAX_TEXT
        ),
        shutdown_on_exit=False,
    )
    provider.add_span_processor(processor)
    return provider


@contextlib.contextmanager
def exporting(settings: Settings, service: str) -> Iterator[None]:
    """Trace while the block runs, if `otlp_endpoint` is set; what is left is sent at the end.

    Raises `ConfigurationError` where the extra `tracing` is not installed.
    """
    if settings.otlp_endpoint is None:
        yield
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        raise ConfigurationError(
            "otlp_endpoint needs the OpenTelemetry SDK: install the extra `tracing`, or remove the setting"
        ) from None
    exporter = OTLPSpanExporter(endpoint=f"{settings.otlp_endpoint.rstrip('/')}/v1/traces", timeout=EXPORT_S)
    batches = BatchSpanProcessor(exporter, max_queue_size=MAX_QUEUE, export_timeout_millis=EXPORT_S * 1000)
    provider = make_provider(service, settings.trace_ratio, batches)
    telemetry.use_provider(provider)
    log.info("tracing_on", service=service)
    try:
        yield
    finally:
        telemetry.use_provider(None)
        provider.shutdown()
