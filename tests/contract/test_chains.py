"""The numbers of audit events, on SQLite and PostgreSQL: none twice, none left out, whatever fails."""

import asyncio
import hashlib
from typing import Any

import pytest
from sqlalchemy import select

from cohortium_kit.chains import begin_anew, record
from cohortium_kit.clock import SystemClock
from cohortium_kit.db import Database, Tx
from cohortium_kit.envelopes import Sender
from cohortium_kit.outbox import outbox
from cohortium_messages.envelope import Envelope
from cohortium_messages.events import FaultSeen
from cohortium_messages.ids import StudyId
from cohortium_protocol.signing import EnvelopeSigner, IdentityKey

STUDIES = (StudyId("heart"), StudyId("lungs"))


@pytest.fixture
def sender() -> Sender:
    return Sender("/scheduler", EnvelopeSigner("service:scheduler", IdentityKey.generate()), SystemClock())


async def tell(tx: Tx, sender: Sender, study: StudyId | None, unique: str | None = None) -> None:
    event = FaultSeen(key_id="service:scheduler", code="TEST")
    await record(tx, sender, event, exchange="events", routing_key="key", study=study, unique=unique)


async def told(db: Database, study: StudyId | None) -> list[tuple[Envelope, bytes]]:
    async with db.reading("told") as tx:
        rows: Any = await tx.rows(select(outbox.c.body).order_by(outbox.c.id))
    envelopes = [(Envelope.model_validate_json(row.body), bytes(row.body)) for row in rows]
    return [one for one in envelopes if one[0].study == study]


async def assert_chained(db: Database, study: StudyId, count: int) -> None:
    found = sorted(await told(db, study), key=lambda one: one[0].number or 0)
    assert [envelope.number for envelope, _ in found] == list(range(1, count + 1))
    assert len({envelope.series for envelope, _ in found}) == 1
    before = bytes(32)
    for envelope, body in found:
        assert envelope.previous == before
        before = hashlib.sha256(body).digest()


async def test_each_study_has_numbers_of_its_own(db: Database, sender: Sender) -> None:
    for _ in range(2):
        for study in STUDIES:
            await db.run("tell", lambda tx, study=study: tell(tx, sender, study))
    for study in STUDIES:
        await assert_chained(db, study, 2)


async def test_two_events_of_one_transaction_follow_each_other(db: Database, sender: Sender) -> None:
    async def both(tx: Tx) -> None:
        await tell(tx, sender, STUDIES[0])
        await tell(tx, sender, STUDIES[0])

    await db.run("tell", both)
    await assert_chained(db, STUDIES[0], 2)


async def test_what_is_rolled_back_has_used_no_number(db: Database, sender: Sender) -> None:
    async def fails(tx: Tx) -> None:
        await tell(tx, sender, STUDIES[0])
        raise ValueError("after it")

    with pytest.raises(ValueError, match="after it"):
        await db.run("tell", fails)
    await db.run("tell", lambda tx: tell(tx, sender, STUDIES[0]))
    await assert_chained(db, STUDIES[0], 1)


async def test_many_at_once_leave_neither_gap_nor_double(db: Database, sender: Sender) -> None:
    await asyncio.gather(*[db.run("tell", lambda tx: tell(tx, sender, STUDIES[0])) for _ in range(12)])
    await assert_chained(db, STUDIES[0], 12)


async def test_the_same_event_told_again_is_not_told(db: Database, sender: Sender) -> None:
    for name in ("event-one", "event-one", "event-two"):
        await db.run("tell", lambda tx, name=name: tell(tx, sender, STUDIES[0], name))
    await assert_chained(db, STUDIES[0], 2)


async def test_what_belongs_to_no_study_has_no_number(db: Database, sender: Sender) -> None:
    await db.run("tell", lambda tx: tell(tx, sender, None))
    ((envelope, body),) = await told(db, None)
    assert (envelope.number, envelope.previous) == (None, None)
    assert b"previous" not in body


async def test_older_records_begin_another_series(db: Database, sender: Sender) -> None:
    await db.run("tell", lambda tx: tell(tx, sender, STUDIES[0]))
    await db.run("restored", begin_anew)
    await db.run("tell", lambda tx: tell(tx, sender, STUDIES[0]))
    found = [envelope for envelope, _ in await told(db, STUDIES[0])]
    assert [(one.number, one.previous) for one in found] == [(1, bytes(32))] * 2
    assert len({one.series for one in found}) == 2
