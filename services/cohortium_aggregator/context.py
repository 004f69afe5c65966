"""What the aggregator's parts share: its identity, its clock, its files, and how it speaks."""

import asyncio
import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from cohortium_aggregator.domain.strict_states import Progress
from cohortium_aggregator.files import DataDir
from cohortium_aggregator.settings import AggregatorSettings
from cohortium_aggregator.store.windows import Sessions
from cohortium_kit.clock import Clock
from cohortium_kit.db import Database, Tx
from cohortium_kit.envelopes import Sender
from cohortium_kit.penalties import Penalties
from cohortium_messages.events import AuditEvent, FaultSeen
from cohortium_messages.governance import TrustDocument
from cohortium_messages.ids import UUID_PATTERN, RunId, SiteId, StudyId
from cohortium_messages.registry import Message
from cohortium_messages.topology import SERVICES, TASKS, control_queue
from cohortium_platform.following import KeyFollower
from cohortium_platform.recording import put_on_record
from cohortium_protocol.documents import GovernancePin
from cohortium_protocol.keys import SealKey
from cohortium_protocol.signing import IdentityKey, Keyring

CODE_LENGTH = 64
SITE = re.compile(UUID_PATTERN)


@dataclass(frozen=True, slots=True)
class Wakes:
    """Set after a commit that leaves work. What a crash or another aggregator left is found by looking now and then."""

    opening: asyncio.Event = field(default_factory=asyncio.Event)
    sessions: asyncio.Event = field(default_factory=asyncio.Event)
    bundling: asyncio.Event = field(default_factory=asyncio.Event)


class HeldSession(Protocol):
    """A strict session in memory, as the rest of the service sees it."""

    @property
    def progress(self) -> Progress: ...


@dataclass(frozen=True, slots=True)
class Context:
    """One aggregator's belongings."""

    settings: AggregatorSettings
    trust: TrustDocument
    governance: GovernancePin
    key: IdentityKey
    seal_key: SealKey
    keys: KeyFollower
    clock: Clock
    db: Database
    data: DataDir
    post: "Post"
    sessions: Sessions = field(default_factory=Sessions)
    held: "dict[bytes, HeldSession]" = field(default_factory=dict)
    """By window: the strict sessions whose steps are in this process' memory."""
    wakes: Wakes = field(default_factory=Wakes)
    penalties: Penalties = field(default_factory=Penalties)

    @property
    def keyring(self) -> Keyring:
        """Whose signatures count now."""
        return self.keys.keyring


def message_id(*parts: str | int | bytes) -> str:
    """The same id for the same message, made again after a crash."""
    text = "|".join(part.hex() if isinstance(part, bytes) else str(part) for part in parts)
    return hashlib.sha256(text.encode()).hexdigest()


def as_code(text: str) -> str:
    """A reason as an upper-case code."""
    code = "".join(letter if letter.isalnum() else "_" for letter in text.upper())[:CODE_LENGTH]
    return code if code[:1].isalpha() else f"X_{code}"[:CODE_LENGTH]


def blamed(routing_key: str) -> str:
    """The key id of the site under whose routing key a message came; the broker lets a site use no other."""
    kind, _, rest = routing_key.partition(".")
    site = rest.partition(".")[0]
    return f"site:{site}" if kind == "site" and SITE.match(site) else "unknown:sender"


@dataclass(frozen=True, slots=True)
class Post:
    """Signs messages and puts them in the outbox of an open transaction."""

    sender: Sender

    async def to_site(
        self, tx: Tx, site: SiteId, message: Message, *, study: StudyId | None, unique: str | None = None
    ) -> int:
        """To one site's control queue; returns the bytes of the body."""
        key = control_queue(site)
        outgoing = self.sender.outgoing(TASKS.name, key, message, message_id=unique, study=study)
        await tx.send(outgoing, ordering_key=key)
        return len(outgoing.body)

    async def to_scheduler(self, tx: Tx, message: Message, *, study: StudyId, unique: str | None = None) -> None:
        outgoing = self.sender.outgoing(SERVICES.name, "scheduler", message, message_id=unique, study=study)
        await tx.send(outgoing, ordering_key="scheduler")

    async def record(self, tx: Tx, event: AuditEvent, *, study: StudyId | None, unique: str | None = None) -> None:
        """An audit event, in the same transaction as what it tells of."""
        await put_on_record(tx, self.sender, event, study=study, unique=unique)

    async def fault(
        self,
        tx: Tx,
        key_id: str,
        code: str,
        *,
        study: StudyId | None,
        window_id: bytes | None,
        unique: str | None = None,
    ) -> None:
        """Someone broke the protocol; the log shall name them. Once for each `unique`, which says who and what: who
        repeats a message must not make us tell of it again."""
        event = FaultSeen(key_id=key_id, code=as_code(code), window_id=window_id)
        await self.record(tx, event, study=study, unique=unique)


ModelWish = Callable[[SiteId, RunId, int, frozenset[int]], None]
"""Called with a site, a run, a version and the chunks that the site has already."""
