"""Logs as events, and a filter through which no patient datum, key, mask or gradient can pass.

Every key of an event must be on the list of allowed field names; another one is dropped, its name is kept under
`dropped`. Bytes, arrays and other objects are dropped whatever their key. Exceptions are told by type and place; the
text only of our own, which never quotes a record.
"""

import logging
import sys
import traceback
from collections.abc import MutableMapping
from datetime import date, datetime
from enum import Enum
from pathlib import PurePath
from typing import Any, Literal, TextIO

import structlog

from cohortium_kit.errors import CohortiumError

TEXT_LIMIT = 300
_OUR_TEXT_FROM = ("uvicorn.error", "aio_pika", "aiormq")
_FRAMES = 12
_NOISY = ("aio_pika", "aiormq", "sqlalchemy", "asyncio", "httpx", "httpcore", "aiosqlite", "uvicorn.access")

_allowed = {
    *("event", "level", "timestamp", "logger", "service", "instance", "namespace", "schema", "version", "part"),
    *("study", "run", "round", "window", "session", "site", "sites", "cohort", "policy", "permit", "grant", "state"),
    *("queue", "exchange", "routing_key", "consumer", "message_id", "correlation_id", "type", "connection"),
    *("delivery_count", "redelivered", "attempt", "count", "bytes", "chunk", "chunks", "seconds", "deadline"),
    *("reason", "code", "error", "status", "method", "path", "name", "host", "port", "key_id", "epoch", "holder"),
    *("exception", "dropped", "text", "trace_id", "span_id", "remedy", "detail", "reasons", "outcome", "bounds"),
    *("sender", "silenced", "standing", "partition", "company", "sessions", "rounds", "withdrawal", "provider"),
    *("lease", "taken_from", "ahead_s", "most_s", "approved"),
}

Event = MutableMapping[str, Any]


def allow_fields(*names: str) -> None:
    """Let events carry these fields too. For names of facts about the system, never of values from records."""
    _allowed.update(names)


def configure_logging(
    *, level: str = "info", output: Literal["json", "console"] = "json", service: str = "", stream: TextIO | None = None
) -> None:
    """Send our events and the libraries' log records to `stream` (default: standard error) as one kind of line."""
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *_shared_processors(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[library_record, *_shared_processors()],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, _renderer(output)],
            keep_exc_info=False,
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in _NOISY:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
    structlog.contextvars.clear_contextvars()
    if service:
        structlog.contextvars.bind_contextvars(service=service)


def _shared_processors() -> list[Any]:
    return [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        safe_exceptions,
        only_allowed_fields,
    ]


def _renderer(output: Literal["json", "console"]) -> Any:
    if output == "json":
        return structlog.processors.JSONRenderer(sort_keys=True)
    return structlog.dev.ConsoleRenderer(colors=False)


def only_allowed_fields(_: Any, __: str, event: Event) -> Event:
    """The filter: known names, plain values, bounded texts."""
    kept: Event = {}
    dropped = []
    for name, value in event.items():
        plain = _plain(value) if name in _allowed else None
        if name.startswith("_"):
            kept[name] = value
        elif plain is None and value is not None:
            dropped.append(name)
        else:
            kept[name] = plain
    if dropped:
        kept["dropped"] = sorted(dropped)
    return kept


def safe_exceptions(_: Any, __: str, event: Event) -> Event:
    """Replace `exc_info` by the exception's type and the places it passed, never its text unless it is ours."""
    info = event.pop("exc_info", None)
    error = sys.exc_info()[1] if info is True else info[1] if isinstance(info, tuple) else info
    if isinstance(error, BaseException):
        frames = traceback.extract_tb(error.__traceback__)[-_FRAMES:]
        said = f": {error}" if isinstance(error, CohortiumError) else ""
        places = " > ".join(f"{PurePath(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames)
        event["exception"] = f"{type(error).__name__}{said} at {places}"
    return event


def library_record(_: Any, __: str, event: Event) -> Event:
    """A library's free text may quote anything; only those libraries keep theirs that never see a record."""
    record = event.get("_record")
    name = record.name if isinstance(record, logging.LogRecord) else ""
    if record is not None and record.exc_info:
        event["exc_info"] = record.exc_info
    event["text"] = event.get("event", "") if name.startswith(_OUR_TEXT_FROM) else ""
    event["event"] = "library_record"
    return event


def _plain(value: Any) -> Any:
    """The value as it may be written, or None if it may not."""
    match value:
        case bool() | int() | float():
            return value
        case Enum():
            return str(value.value)
        case datetime() | date():
            return value.isoformat()
        case str() | PurePath():
            text = str(value)
            limit = TEXT_LIMIT if len(text) <= TEXT_LIMIT or " at " not in text else 4 * TEXT_LIMIT
            return text if len(text) <= limit else f"{text[:limit]}..."
        case list() | tuple() | set() | frozenset() if len(value) <= 50:
            plain = [_plain(item) for item in value]
            return None if any(item is None for item in plain) else plain
        case _:
            return None
