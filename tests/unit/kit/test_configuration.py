"""A service that starts under other settings, or another trust document, says so once; no password is in a digest."""

from pathlib import Path
from typing import Any, cast

import pytest

from cohortium_kit.settings import Settings
from cohortium_messages.oversight import ConfigurationChanged
from cohortium_platform.configuration import note_configuration, settings_digest
from governance_stage import Stage, sent_of

BASE: dict[str, Any] = {
    "amqp_url": "amqps://scheduler:secret@broker.example/v",
    "database_url": "postgresql://scheduler:secret@db.example/cohortium",
    "schema": "scheduler",
}


class More(Settings):
    """A service's own."""

    names: frozenset[str] = frozenset({"mfa", "otp", "hwk", "swk", "fpt", "face"})
    round_s: float = 1.5


def digest(**changes: Any) -> bytes:
    return settings_digest(More.model_validate({**BASE, **changes}))


def test_no_password_and_no_port_is_in_the_digest_and_everything_else_is() -> None:
    for same in (
        {"amqp_url": BASE["amqp_url"].replace("secret", "other")},
        {"database_url": BASE["database_url"].replace("scheduler:secret@", "")},
        {"http_port": 8001},
        {"names": ["face", "fpt", "swk", "hwk", "otp", "mfa"]},
    ):
        assert digest(**same) == digest()
    for other in (
        {"amqp_url": BASE["amqp_url"].replace("broker", "elsewhere")},
        {"broker_check": "trial"},
        {"http_host": "0.0.0.0"},  # noqa: S104 - a change that must show
        {"round_s": 2},
        {"names": ["mfa"]},
    ):
        assert digest(**other) != digest()


class Service:
    """As much of a service as the log hears of."""

    def __init__(self, db: Any) -> None:
        self.db = db


@pytest.mark.parametrize("restarts", [1, 3])
async def test_a_changed_start_is_told_once_with_what_was_before(tmp_path: Path, restarts: int) -> None:
    stage = Stage.at(tmp_path)
    db = await stage.database("scheduler")
    first, second = (More.model_validate({**BASE, "round_s": one}) for one in (1, 2))
    try:
        for settings in (first, second):
            for _ in range(restarts):
                await note_configuration(db, stage.sender("scheduler"), stage.files.trust, settings)
        trust = stage.files.trust.model_copy(update={"version": 2})
        await note_configuration(db, stage.sender("scheduler"), trust, second)
        told = await sent_of(cast("Any", Service(db)), ConfigurationChanged)
    finally:
        await db.close()
    assert {key for key, _ in told} == {f"-.{ConfigurationChanged.type_name}"}
    assert [(one.part, one.before is None) for _, one in told] == [
        ("settings", True),
        ("trust", True),
        ("settings", False),
        ("trust", False),
    ]
    assert told[2][1].before == settings_digest(first) == told[0][1].after
    assert told[2][1].after == settings_digest(second)
