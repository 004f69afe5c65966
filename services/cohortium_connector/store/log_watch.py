"""Own events that are not proven to be in their study's log, how far each log was seen, and the alarms that stand."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

import sqlalchemy as sa

from cohortium_connector.domain.log_alarms import AlarmCode
from cohortium_connector.store.tables import awaited_event, log_alarm, watched_log
from cohortium_kit.bus import Outgoing
from cohortium_kit.db import Tx
from cohortium_kit.tables import outbox
from cohortium_messages.envelope import KEY_ID_HEADER, SIGNATURE_HEADER
from cohortium_messages.ids import StudyId
from cohortium_messages.topology import UPLINK
from cohortium_protocol.logproof import entry_bytes
from cohortium_protocol.translog import leaf_hash

_COLUMNS = awaited_event.c
_OF_STUDY = _COLUMNS.study == sa.bindparam("of_study")
_HERE = _COLUMNS.event_id.in_(sa.select(outbox.c.message_id).where(outbox.c.sent_at.is_(None)))
_ADD = sa.insert(awaited_event)
_STILL_HERE = (
    sa.update(awaited_event)
    .where(_HERE, _COLUMNS.sent_at == _COLUMNS.sent_before)
    .values(sent_before=sa.bindparam("now"), sent_at=sa.bindparam("now"))
)
_WAITS = sa.select(_COLUMNS.study, sa.func.min(_COLUMNS.sent_before).label("since")).group_by(_COLUMNS.study)
_DUE = (
    sa.select(_COLUMNS.event_id)
    .where(
        _OF_STUDY, _COLUMNS.asked_at <= sa.bindparam("before"), _COLUMNS.sent_before <= sa.bindparam("before"), ~_HERE
    )
    .order_by(_COLUMNS.asked_at)
    .limit(sa.bindparam("most"))
)
_LATE = (
    sa.select(awaited_event)
    .where(
        _OF_STUDY,
        _COLUMNS.sent_before <= sa.bindparam("before"),
        2 * (_COLUMNS.sent_at - _COLUMNS.sent_before) <= sa.bindparam("now") - _COLUMNS.sent_before,
        ~_HERE,
    )
    .order_by(_COLUMNS.sent_before)
    .limit(sa.bindparam("most"))
)


@dataclass(frozen=True, slots=True)
class Alarm:
    """An alarm that stands. `since`: unix seconds."""

    study: StudyId
    code: AlarmCode
    since: float


# Own events


async def await_event(tx: Tx, study: StudyId, outgoing: Outgoing) -> None:
    """Keep an event of this hospital, as it was signed, until the log proves that it holds it."""
    row = {
        "event_id": outgoing.message_id,
        "study": study,
        "routing_key": outgoing.routing_key,
        "type": outgoing.type,
        "headers": json.dumps(dict(outgoing.headers)),
        "body": outgoing.body,
        "sent_before": tx.now,
        "sent_at": tx.now,
        "asked_at": 0.0,
    }
    await tx.execute(_ADD, row)


async def note_unsent(tx: Tx) -> None:
    """An event that waits in the outbox was not submitted: its time begins when the broker has it. One that is sent
    again was, and its time goes on."""
    await tx.execute(_STILL_HERE, {"now": tx.now})


async def waits(tx: Tx) -> dict[StudyId, float]:
    """By study: since when the oldest awaited event has been on its way."""
    return {StudyId(row.study): row.since for row in await tx.rows(_WAITS)}


async def due(tx: Tx, study: StudyId, before: float, most: int) -> tuple[str, ...]:
    """Events that left before this moment and were not asked after since; those first that have waited longest."""
    rows = await tx.rows(_DUE, {"of_study": study, "before": before, "most": most})
    return tuple(row.event_id for row in rows)


async def note_asked(tx: Tx, event_ids: Iterable[str]) -> None:
    await tx.execute(sa.update(awaited_event).where(_COLUMNS.event_id.in_(list(event_ids))).values(asked_at=tx.now))


async def take_late(tx: Tx, study: StudyId, before: float, most: int) -> tuple[Outgoing, ...]:
    """Events that left before this moment, to be sent once more, byte for byte. Each is given out again when it is
    twice as old: a log that is away for days is not sent it without end."""
    rows = await tx.rows(_LATE, {"of_study": study, "before": before, "now": tx.now, "most": most})
    taken = [row.event_id for row in rows]
    await tx.execute(sa.update(awaited_event).where(_COLUMNS.event_id.in_(taken)).values(sent_at=tx.now))
    return tuple(_outgoing(row) for row in rows)


async def leaves(tx: Tx, study: StudyId, event_ids: Iterable[str]) -> dict[str, bytes]:
    """The leaf hash of each of these events that is still awaited, made from what this hospital signed."""
    rows = await tx.rows(
        sa.select(awaited_event).where(_COLUMNS.study == study, _COLUMNS.event_id.in_(list(event_ids)))
    )
    return {row.event_id: _leaf(_outgoing(row)) for row in rows}


async def forget(tx: Tx, event_ids: Iterable[str]) -> None:
    """These events are proven."""
    await tx.execute(sa.delete(awaited_event).where(_COLUMNS.event_id.in_(list(event_ids))))


async def forget_study(tx: Tx, study: StudyId) -> None:
    """People settled which history of this study's log is true: what was reported to the other one is not awaited."""
    await tx.execute(sa.delete(awaited_event).where(_COLUMNS.study == study))


def _outgoing(row: sa.Row[Any]) -> Outgoing:
    return Outgoing(
        exchange=UPLINK.name,
        routing_key=row.routing_key,
        body=bytes(row.body),
        message_id=row.event_id,
        type=row.type,
        headers=json.loads(row.headers),
    )


def _leaf(event: Outgoing) -> bytes:
    signature = bytes.fromhex(event.headers[SIGNATURE_HEADER])
    return leaf_hash(entry_bytes(json.loads(event.body), event.headers[KEY_ID_HEADER], signature))


# Logs


async def grown_at(tx: Tx) -> dict[StudyId, tuple[int, float]]:
    """By study: the size of its log as last seen, and when it was first seen so."""
    rows = await tx.rows(sa.select(watched_log))
    return {StudyId(row.study): (row.size, row.grown_at) for row in rows}


async def note_grown(tx: Tx, study: StudyId, size: int) -> None:
    """The log is seen at this size now, and was not before."""
    await tx.execute(sa.delete(watched_log).where(watched_log.c.study == study))
    await tx.execute(sa.insert(watched_log).values(study=study, size=size, grown_at=tx.now))


# Alarms


async def alarms(tx: Tx) -> tuple[Alarm, ...]:
    """All that stand, by study."""
    rows = await tx.rows(sa.select(log_alarm).order_by(log_alarm.c.study, log_alarm.c.code))
    return tuple(Alarm(StudyId(row.study), cast("AlarmCode", row.code), row.since) for row in rows)


async def raise_alarm(tx: Tx, study: StudyId, code: AlarmCode) -> None:
    await tx.execute(sa.insert(log_alarm).values(study=study, code=code, since=tx.now))


async def end_alarm(tx: Tx, study: StudyId, code: AlarmCode) -> None:
    await tx.execute(sa.delete(log_alarm).where(log_alarm.c.study == study, log_alarm.c.code == code))
