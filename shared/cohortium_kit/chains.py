"""Audit events, numbered by their emitter: each names the one before it in the same study's log.

So nobody can leave one out of a log, or put another in its place, without the numbers or the digests showing it. The
head of the chain is advanced in the transaction that records the event; two transactions that record for one study
therefore meet, and one of them is played again.

Numbers belong to a series, which begins with the records: who has lost them, or put back an older copy, begins another
one, and so tells no number twice.
"""

import secrets
from hashlib import sha256

from sqlalchemy import Executable, bindparam, delete, select
from sqlalchemy.dialects import postgresql, sqlite

from cohortium_kit._engine import Dialect
from cohortium_kit.bus import Outgoing
from cohortium_kit.db import Tx
from cohortium_kit.envelopes import Sender
from cohortium_kit.inbox import first_time
from cohortium_kit.tables import event_chain
from cohortium_messages.envelope import Place
from cohortium_messages.events import AuditEvent
from cohortium_messages.ids import StudyId

__all__ = ["begin_anew", "event_chain", "record"]

SERIES_BYTES = 8

_HEAD = select(event_chain.c.series, event_chain.c.number, event_chain.c.digest).where(
    event_chain.c.key_id == bindparam("of_key"), event_chain.c.study == bindparam("of_study")
)


def _advance(insert: type[postgresql.Insert] | type[sqlite.Insert]) -> Executable:
    given = insert(event_chain)
    return given.on_conflict_do_update(
        index_elements=[event_chain.c.key_id, event_chain.c.study],
        set_={"series": given.excluded.series, "number": given.excluded.number, "digest": given.excluded.digest},
    )


_ADVANCE: dict[Dialect, Executable] = {
    Dialect.POSTGRESQL: _advance(postgresql.Insert),
    Dialect.SQLITE: _advance(sqlite.Insert),
}


async def record(
    tx: Tx,
    sender: Sender,
    event: AuditEvent,
    *,
    exchange: str,
    routing_key: str,
    ordering_key: str = "events",
    study: StudyId | None,
    unique: str | None = None,
) -> Outgoing | None:
    """Send an event to the audit log, with the transaction that it is about. Returns it as it was signed, None if it
    was told before.

    `unique`: the event's id, where doing the work again must not tell it again; it is never used for another. What
    belongs to no study has no chain: nobody outside is given the platform's log.
    """
    if unique is not None and not await first_time(tx, "events-told", unique):
        return None
    if study is None:
        alone = sender.outgoing(exchange, routing_key, event, message_id=unique)
        await tx.send(alone, ordering_key=ordering_key)
        return alone
    key_id = sender.signer.key_id
    head = await tx.row(_HEAD, {"of_key": key_id, "of_study": study})
    place = (
        Place(secrets.token_bytes(SERIES_BYTES))
        if head is None
        else Place(bytes(head.series), head.number + 1, bytes(head.digest))
    )
    outgoing = sender.outgoing(exchange, routing_key, event, message_id=unique, study=study, place=place)
    row = {
        "key_id": key_id,
        "study": study,
        "series": place.series,
        "number": place.number,
        "digest": sha256(outgoing.body).digest(),
    }
    await tx.execute(_ADVANCE[tx.dialect], row)
    await tx.send(outgoing, ordering_key=ordering_key)
    return outgoing


async def begin_anew(tx: Tx) -> None:
    """Begin another series with the next event of each study: these records are an older copy of what was told."""
    await tx.execute(delete(event_chain))
