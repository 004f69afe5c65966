"""What all handlers share: rules, clock, key, and how the scheduler speaks. And who may say what to it."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from cohortium_kit.clock import Clock
from cohortium_kit.consumer import Received
from cohortium_kit.db import Tx
from cohortium_kit.envelopes import Sender
from cohortium_kit.errors import Poison
from cohortium_messages.events import AuditEvent
from cohortium_messages.ids import SiteId, StudyId
from cohortium_messages.registry import Message
from cohortium_messages.topology import SERVICES, TASKS, control_queue
from cohortium_platform.recording import put_on_record
from cohortium_protocol.documents import GovernancePin
from cohortium_protocol.signing import IdentityKey, Keyring


@dataclass(frozen=True, slots=True)
class Rules:
    """The settings that handlers obey."""

    governance: GovernancePin
    aggregator_seal_pk: bytes
    recruiting_grace_s: float
    max_attempts: int
    retry_pause_s: float


@dataclass(frozen=True, slots=True)
class Desk:
    """One scheduler's belongings. `present` says which of some sites were heard lately."""

    sender: Sender
    key: IdentityKey
    keyring: Keyring
    clock: Clock
    rules: Rules
    present: Callable[[Iterable[SiteId]], frozenset[SiteId]]

    async def to_service(self, tx: Tx, service: str, message: Message, *, study: StudyId) -> None:
        await tx.send(self.sender.outgoing(SERVICES.name, service, message, study=study), ordering_key=service)

    async def to_site(self, tx: Tx, site: SiteId, message: Message, *, study: StudyId) -> None:
        key = control_queue(site)
        await tx.send(self.sender.outgoing(TASKS.name, key, message, study=study), ordering_key=key)

    async def record(self, tx: Tx, event: AuditEvent, *, study: StudyId | None, unique: str | None = None) -> None:
        await put_on_record(tx, self.sender, event, study=study, unique=unique)


def only(received: Received[Message], key_id: str) -> None:
    """Raise `Poison` unless this key signed the message."""
    if received.key_id != key_id:
        raise Poison("wrong_sender", f"{received.envelope.type} signed by {received.key_id}")


def only_site(received: Received[Message], site: SiteId) -> None:
    """Raise `Poison` unless this site signed the message and sent it by its own routing key."""
    only(received, f"site:{site}")
    if received.routing_key.split(".")[:2] != ["site", site]:
        raise Poison("wrong_routing_key", received.envelope.type)
