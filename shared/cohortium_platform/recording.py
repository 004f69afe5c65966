"""How a platform service puts an event on record."""

from cohortium_kit import chains
from cohortium_kit.db import Tx
from cohortium_kit.envelopes import Sender
from cohortium_messages.events import AuditEvent
from cohortium_messages.ids import StudyId
from cohortium_messages.topology import EVENTS


async def put_on_record(
    tx: Tx, sender: Sender, event: AuditEvent, *, study: StudyId | None, unique: str | None = None
) -> None:
    """Send an event to its study's log, or to the platform's, with the transaction that it is about.

    `unique`: the event's id, where doing the work again must not tell it again.
    """
    key = f"{study or '-'}.{event.type_name}"
    await chains.record(tx, sender, event, exchange=EVENTS.name, routing_key=key, study=study, unique=unique)
