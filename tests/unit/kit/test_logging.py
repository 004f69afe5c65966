"""Nothing from a record reaches the log, whatever a careless line hands to it."""

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from cohortium_kit.errors import Unroutable
from cohortium_kit.logging import allow_fields, configure_logging


@pytest.fixture
def lines() -> Iterator[Any]:
    stream = io.StringIO()
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    configure_logging(level="info", service="house", stream=stream)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    root.handlers[:] = before
    root.setLevel(level)
    structlog.contextvars.clear_contextvars()
    structlog.reset_defaults()


def test_event_carries_its_allowed_fields(lines: Any) -> None:
    structlog.get_logger("x").info("update_received", round=3, site="s", bytes=10)
    (line,) = lines()
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "event": "update_received",
        "round": 3,
        "site": "s",
        "bytes": 10,
        "level": "info",
        "logger": "x",
        "service": "house",
    }


def test_unknown_fields_and_unplain_values_are_dropped_by_name(lines: Any) -> None:
    structlog.get_logger().info("seen", patient="Mrs Smith", gradient=[0.1] * 100, code=b"key", site={"a": 1})
    (line,) = lines()
    assert line["dropped"] == ["code", "gradient", "patient", "site"]
    assert not {"patient", "gradient", "code", "site"} & line.keys()


def test_service_may_allow_a_name(lines: Any) -> None:
    allow_fields("epsilon")
    structlog.get_logger().info("spent", epsilon=0.5)
    assert lines()[0]["epsilon"] == 0.5


def test_exception_is_told_without_its_text_unless_it_is_ours(lines: Any) -> None:
    log = structlog.get_logger()
    try:
        raise ValueError("Mrs Smith, 81")
    except ValueError:
        log.exception("failed")
    log.error("failed", exc_info=Unroutable("no queue"))
    first, second = lines()
    assert "ValueError at test_logging.py" in first["exception"]
    assert "Smith" not in json.dumps(first)
    assert second["exception"].startswith("Unroutable: no queue")


def test_library_records_lose_their_text_unless_the_library_is_known(lines: Any) -> None:
    logging.getLogger("some.library").error("row %s", "Mrs Smith")
    logging.getLogger("aiormq.connection").error("connection lost")
    first, second = lines()
    assert "Smith" not in json.dumps(first)
    assert (first["event"], first["logger"]) == ("library_record", "some.library")
    assert second["text"] == "connection lost"


def test_long_text_is_cut(lines: Any) -> None:
    structlog.get_logger().info("long", reason="x" * 5000)
    assert len(lines()[0]["reason"]) < 400


def test_levels_below_the_configured_one_are_silent(lines: Any) -> None:
    structlog.get_logger().debug("quiet")
    assert lines() == []
