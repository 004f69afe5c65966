"""Traces across the broker: OpenTelemetry spans, tied together by W3C `traceparent` headers and by windows.

A window's trace is named by the window itself: the first bytes of SHA-256("cohortium/trace/1" || window id). So all
that belongs to one round is one trace, whoever took part, over crashes and without a word from anybody. What a site
claims in its `traceparent` is never more than a link: it can neither choose our trace nor have it sampled, because the
sampler looks at the trace id alone.

Spans carry types, queues, ids of messages, runs and windows. They carry no site, no size and no content: a trace
backend is often a third party's. Chunks and steps have no spans: their number would tell the size of a model.

Without `use_provider` everything here costs one comparison.
"""

import contextlib
import hashlib
import re
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import replace
from datetime import datetime
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    Tracer,
    TracerProvider,
)

from cohortium_kit.bus import Outgoing
from cohortium_messages.envelope import TRACEPARENT_HEADER
from cohortium_messages.registry import Message

_LABEL = b"cohortium/trace/1"
_TRACEPARENT = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}")
_SITE_QUEUE = re.compile(r"site\.[0-9a-f-]{36}\.")
_SAMPLED = TraceFlags(TraceFlags.SAMPLED)
_FRESH = Context()

wanted_ids: ContextVar[SpanContext | None] = ContextVar("wanted_ids", default=None)
"""What the next root span is to be called; `cohortium_kit.tracing` gives the provider an id generator that asks."""

_tracer: Tracer | None = None


def use_provider(provider: TracerProvider | None) -> None:
    """Trace with this provider from now on; None switches tracing off. One per process."""
    global _tracer
    _tracer = None if provider is None else provider.get_tracer("cohortium")


def tracing() -> bool:
    return _tracer is not None


def window_trace(window_id: bytes) -> SpanContext:
    """The root span of a window's trace, the same for everybody who knows the window."""
    digest = hashlib.sha256(_LABEL + window_id).digest()
    return SpanContext(int.from_bytes(digest[:16]), int.from_bytes(digest[16:24]), is_remote=True, trace_flags=_SAMPLED)


def window_of(message: Message) -> bytes | None:
    """The window that a message is about, wherever its type keeps it."""
    found = getattr(_place(message), "window_id", None)
    return found if isinstance(found, bytes) else None


def run_of(message: Message) -> str | None:
    """The run that a message is about, if it names one."""
    found = getattr(_place(message), "run_id", None)
    return found if isinstance(found, str) else None


def _place(message: Message) -> Any:
    # A window's opening holds its ids in its parameters, and a session's opening holds that.
    opened = getattr(message, "open", message)
    return getattr(opened, "params", opened)


def parse_traceparent(header: str | None) -> SpanContext | None:
    """The span that a header names, or None if it is not exactly a level-1 traceparent."""
    match = _TRACEPARENT.fullmatch(header) if header is not None and len(header) == 55 else None
    if match is None:
        return None
    # The flags are the sender's wish; our sampler decides by the trace id.
    context = SpanContext(int(match[1], 16), int(match[2], 16), is_remote=True, trace_flags=_SAMPLED)
    return context if context.is_valid else None


def headers_for(message: Message) -> dict[str, str]:
    """The headers that a new message carries: the span it is made in, or its window's trace."""
    if _tracer is None:
        return {}
    current = trace.get_current_span().get_span_context()
    window = window_of(message)
    if window is not None and (root := window_trace(window)).trace_id != current.trace_id:
        current = root
    return {TRACEPARENT_HEADER: _traceparent(current)} if current.is_valid else {}


@contextlib.contextmanager
def processing(
    message: Message, headers: Mapping[str, str], *, key_id: str, queue: str, consumer: str, message_id: str
) -> Iterator[Span]:
    """The span of handling one verified message. Its outcome is told with `failed` or by an exception's type."""
    if _tracer is None:
        yield trace.INVALID_SPAN
        return
    claimed = parse_traceparent(headers.get(TRACEPARENT_HEADER))
    window = window_of(message)
    parent = claimed if claimed is not None and key_id.startswith("service:") else None
    if window is not None and (parent is None or parent.trace_id != window_trace(window).trace_id):
        parent = window_trace(window)
    links = [Link(claimed)] if claimed is not None and claimed != parent else []
    attributes = {
        **_messaging("process", "process", _template(queue), message_id, message.type_name),
        "messaging.consumer.group.name": consumer,
        **_ids(message),
    }
    name = f"process {_template(queue)}"
    with _spanning(name, SpanKind.CONSUMER, _below(parent), attributes, links) as span:
        yield span


@contextlib.contextmanager
def sending(outgoing: Outgoing) -> Iterator[Outgoing]:
    """The span of handing one message to the broker; yields the message to send, whose header names this span.

    The message's own `traceparent` was stored with it, so a message published after a crash still belongs to its trace.
    """
    claimed = parse_traceparent(outgoing.headers.get(TRACEPARENT_HEADER)) if _tracer is not None else None
    if claimed is None:
        yield outgoing
        return
    attributes = {
        **_messaging("send", "send", outgoing.exchange, outgoing.message_id, outgoing.type),
        "messaging.rabbitmq.destination.routing_key": _template(outgoing.routing_key),
    }
    with _spanning(f"send {outgoing.exchange}", SpanKind.PRODUCER, _below(claimed), attributes, ()) as span:
        here = _traceparent(span.get_span_context())
        yield replace(outgoing, headers={**outgoing.headers, TRACEPARENT_HEADER: here})


@contextlib.contextmanager
def span(name: str, *, window_id: bytes | None = None, **attributes: str | int | bool) -> Iterator[Span]:
    """A span of work of our own, below the current one, or in the window's trace where that is another.

    Attributes are facts about the system (a purpose, a state), never a size, a site or a value from a record.
    """
    if _tracer is None:
        yield trace.INVALID_SPAN
        return
    parent = trace.get_current_span().get_span_context()
    if window_id is not None and parent.trace_id != window_trace(window_id).trace_id:
        parent = window_trace(window_id)
    named = {f"cohortium.{key}": value for key, value in attributes.items()}
    if window_id is not None:
        named["cohortium.window.id"] = window_id.hex()
    with _spanning(name, SpanKind.INTERNAL, _below(parent if parent.is_valid else None), named, ()) as current:
        yield current


def window_span(name: str, window_id: bytes, began: datetime, ended: datetime, **attributes: str | int | bool) -> None:
    """Tell of a whole window, now that it has ended: the root span, under which all others of its trace stand."""
    if _tracer is None:
        return
    named = {f"cohortium.{key}": value for key, value in attributes.items()}
    named["cohortium.window.id"] = window_id.hex()
    token = wanted_ids.set(window_trace(window_id))
    try:
        root = _tracer.start_span(name, context=_FRESH, attributes=named, start_time=_nanoseconds(began))
    finally:
        wanted_ids.reset(token)
    root.end(_nanoseconds(ended))


def failed(error_type: str) -> None:
    """Mark the current span as failed, by a code or an exception's type; never with its text."""
    current = trace.get_current_span()
    if current.is_recording():
        current.set_attribute("error.type", error_type)
        current.set_status(Status(StatusCode.ERROR))


def current_ids() -> dict[str, str]:
    """Of the current span, for log lines."""
    context = trace.get_current_span().get_span_context() if _tracer is not None else None
    if context is None or not context.is_valid:
        return {}
    return {"trace_id": f"{context.trace_id:032x}", "span_id": f"{context.span_id:016x}"}


@contextlib.contextmanager
def _spanning(name: str, kind: SpanKind, parent: Context, attributes: Mapping[str, Any], links: Any) -> Iterator[Span]:
    assert _tracer is not None  # noqa: S101 - told to the type checker; callers looked
    # An exception's text may quote anything, so neither it nor its trace is recorded: only its type.
    with _tracer.start_as_current_span(
        name,
        context=parent,
        kind=kind,
        attributes=attributes,
        links=links,
        record_exception=False,
        set_status_on_exception=False,
    ) as current:
        try:
            yield current
        except BaseException as error:
            failed(type(error).__name__)
            raise


def _nanoseconds(moment: datetime) -> int:
    return int(moment.timestamp() * 1e9)


def _below(parent: SpanContext | None) -> Context:
    return _FRESH if parent is None else trace.set_span_in_context(NonRecordingSpan(parent), _FRESH)


def _traceparent(context: SpanContext) -> str:
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags) & 0xFF:02x}"


def _template(name: str) -> str:
    """A queue or routing key without the site in it."""
    return _SITE_QUEUE.sub("site.{site}.", name)


def _messaging(operation: str, kind: str, destination: str, message_id: str, message_type: str) -> dict[str, str]:
    return {
        "messaging.system": "rabbitmq",
        "messaging.operation.name": operation,
        "messaging.operation.type": kind,
        "messaging.destination.name": destination,
        "messaging.message.id": message_id,
        "cohortium.message.type": message_type,
    }


def _ids(message: Message) -> dict[str, str]:
    ids = {}
    if window := window_of(message):
        ids["cohortium.window.id"] = window.hex()
    if run := run_of(message):
        ids["cohortium.run.id"] = run
    return ids
