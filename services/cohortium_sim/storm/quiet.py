"""The services' log while a federation is played: nothing is written, and errors of ours are told."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import structlog

from cohortium_kit.logging import safe_exceptions

BORNE = frozenset({"upload_not_made", "message_dropped"})
"""Errors that a scenario may bring about (signs of life of a revoked site are dropped); every other one is a mistake of
ours."""


@contextmanager
def errors_to(tell: Callable[[str], None]) -> Iterator[None]:
    """Each error that is logged is told in a line."""
    before = structlog.get_config()

    def sink(_: Any, name: str, event: Any) -> Any:
        if name in ("error", "exception", "critical") and event.get("event") not in BORNE:
            safe_exceptions(_, name, event)
            more = " ".join(str(event[key]) for key in ("reason", "error", "exception", "code") if key in event)
            tell(f"an error was logged: {event.get('event')} {more}")
        raise structlog.DropEvent

    structlog.configure(
        processors=[sink],
        wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR),
        logger_factory=structlog.ReturnLoggerFactory(),
        cache_logger_on_first_use=False,
    )
    try:
        yield
    finally:
        structlog.configure(**before)
