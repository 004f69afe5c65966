"""One function per message or command: load, decide, save, all in the caller's transaction."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from cohortium_audit.domain import Entry, LogName, LogState, grow, nodes_to_grow
from cohortium_audit.store import logs, members
from cohortium_kit.consumer import Received
from cohortium_kit.db import Tx
from cohortium_kit.errors import Poison, TryLater
from cohortium_kit.site_keys import SiteKey
from cohortium_messages.governance import Manifest, ManifestPublished, SiteRegistered, SiteRevoked
from cohortium_messages.ids import SiteId, StudyId
from cohortium_messages.registry import Message
from cohortium_protocol import translog
from cohortium_protocol.documents import (
    GovernancePin,
    verify_manifest,
    verify_manifest_chain,
    verify_successor,
)
from cohortium_protocol.errors import RemoteFault
from cohortium_protocol.notes import Checkpoint, sign_checkpoint
from cohortium_protocol.signing import IdentityKey, Keyring, service_key_id, site_key_id


@dataclass(slots=True)
class Directory:
    """Who may speak where, in memory, for hundreds of signatures a second. `reload` follows the tables."""

    keyring: Keyring
    members: dict[StudyId, frozenset[SiteId]] = field(default_factory=dict)

    async def reload(self, tx: Tx) -> None:
        """Take over what this and other instances have recorded."""
        for key in await members.site_keys.all(tx):
            if key.revoked:
                self.keyring.remove(site_key_id(key.site_id))
            else:
                self.keyring.add(site_key_id(key.site_id), key.identity_pk)
        self.members = await members.all_members(tx)

    async def is_revoked(self, tx: Tx, key_id: str) -> bool:
        """Whether this is the key of a site that enrolment has revoked."""
        return key_id in {site_key_id(site_id) for site_id in await members.site_keys.revoked(tx)}


@dataclass(frozen=True, slots=True)
class Recorded:
    """The event is in its log, now or since an earlier delivery."""

    index: int


@dataclass(frozen=True, slots=True)
class Rejected:
    """The event is not recorded and never will be; `code` says why."""

    code: str


Outcome = Recorded | Rejected


class Handlers:
    """What the audit service does with what it hears."""

    def __init__(self, *, directory: Directory, governance: GovernancePin, key: IdentityKey, federation: str) -> None:
        self._directory = directory
        self._governance = governance
        self._key = key
        self._federation = federation

    # Who may speak

    async def on_site_registered(self, tx: Tx, received: Received[SiteRegistered]) -> None:
        """Enrolment says whose key is whose."""
        _only(received, "enrolment")
        message = received.message
        key = SiteKey(message.site_id, message.name, message.identity_pk, revoked=False)
        if await members.site_keys.add(tx, key):
            await self._directory.reload(tx)

    async def on_site_revoked(self, tx: Tx, received: Received[SiteRevoked]) -> None:
        """What a revoked site signs from now on is not recorded. What is in the log stays."""
        _only(received, "enrolment")
        self._directory.keyring.remove(site_key_id(received.message.site_id))
        await members.site_keys.revoke(tx, received.message.site_id)

    async def on_manifest(self, tx: Tx, received: Received[ManifestPublished]) -> None:
        """A membership: its sites may speak in the study's log, and the bundle will show it."""
        _only(received, "enrolment")
        manifest = received.message.manifest
        known = await members.manifests(tx, manifest.study_id)
        if manifest.version <= len(known):
            return
        self._check_manifest(manifest, known)
        await members.add_manifest(tx, manifest)
        await self._directory.reload(tx)

    def _check_manifest(self, manifest: Manifest, known: Sequence[Manifest]) -> None:
        if manifest.version != len(known) + 1:
            raise TryLater("manifest_gap")
        try:
            if known:
                verify_manifest(manifest, self._governance)
                verify_successor(manifest, known[-1])
            else:
                verify_manifest_chain((manifest,), self._governance)
        except RemoteFault as fault:
            raise Poison(fault.code.lower()) from fault

    # The logs

    async def append(self, tx: Tx, batch: Sequence[Entry]) -> list[Outcome]:
        """Record a batch in its order; one outcome for each. An event that is recorded already keeps its place."""
        known = await logs.recorded(tx, [(entry.key_id, entry.event_id) for entry in batch])
        before = {key: leaf.data for key, leaf in known.items()}
        outcomes: list[Outcome | None] = []
        fresh: dict[LogName, list[tuple[int, Entry]]] = {}
        revoked = await members.site_keys.revoked(tx)
        for place, entry in enumerate(batch):
            outcomes.append(_known_outcome(entry, before, known, revoked))
            if outcomes[place] is None and (entry.key_id, entry.event_id) not in before:
                before[entry.key_id, entry.event_id] = entry.data
                fresh.setdefault(entry.log, []).append((place, entry))
        for log, placed in fresh.items():
            first = await self._grow(tx, log, [entry for _, entry in placed])
            for offset, (place, _) in enumerate(placed):
                outcomes[place] = Recorded(first + offset)
        return _with_twins(batch, outcomes)

    async def _grow(self, tx: Tx, log: LogName, entries: Sequence[Entry]) -> int:
        state = await logs.state(tx, log) or await logs.add_log(tx, log)
        stored = await logs.nodes(tx, log, nodes_to_grow(state.size))
        growth = grow(state.size, stored, [entry.data for entry in entries])
        await logs.append(tx, state, entries, growth)
        return growth.first

    async def checkpoint(self, tx: Tx, log: LogName) -> logs.SignedCheckpoint | None:
        """The signed checkpoint of the log as it stands; a new one only if it grew. None if the log is empty."""
        state = await logs.state(tx, log)
        if state is None or state.size == 0:
            return None
        if state.checkpointed == state.size:
            return await logs.latest_checkpoint(tx, log)
        root = await root_at(tx, state, state.size)
        note = sign_checkpoint(Checkpoint(self.origin(log), state.size, root), self._key)
        signed = logs.SignedCheckpoint(state.size, root, note)
        await logs.add_checkpoint(tx, log, signed)
        return signed

    async def checkpoint_all(self, tx: Tx, rest_s: float = 0.0) -> int:
        """Sign a checkpoint for every log that grew since its last one; returns for how many.

        A log whose last one is younger than `rest_s` has it from a task: it is left for the next time, so that
        hospitals that are cosigning one are not asked for another.
        """
        signed = 0
        for state in await logs.states(tx):
            if state.size > state.checkpointed and not await logs.checkpointed_since(tx, state, tx.now - rest_s):
                await self.checkpoint(tx, state.log)
                signed += 1
        return signed

    def origin(self, log: LogName) -> str:
        """The log's name in its checkpoints."""
        return f"{self._federation}/audit/{log}"


def _known_outcome(
    entry: Entry,
    before: dict[tuple[str, str], bytes],
    known: dict[tuple[str, str], logs.Leaf],
    revoked: frozenset[SiteId],
) -> Outcome | None:
    """What is settled about an entry before anything is written; None if it is to be appended with this batch."""
    key = (entry.key_id, entry.event_id)
    if key in before and before[key] != entry.data:
        return Rejected("EVENT_ID_REUSED")
    if key in known:
        return Recorded(known[key].index)
    kind, _, name = entry.key_id.partition(":")
    return Rejected("SITE_REVOKED") if kind == "site" and SiteId(name) in revoked else None


def _with_twins(batch: Sequence[Entry], outcomes: Sequence[Outcome | None]) -> list[Outcome]:
    """Every outcome; the same event twice in one batch has the place of the first."""
    first: dict[tuple[str, str], Outcome] = {}
    settled: list[Outcome] = []
    for entry, outcome in zip(batch, outcomes, strict=True):
        found = outcome or first[entry.key_id, entry.event_id]
        first.setdefault((entry.key_id, entry.event_id), found)
        settled.append(found)
    return settled


async def root_at(tx: Tx, state: LogState, size: int) -> bytes:
    """The root over the first `size` leaves."""
    stored = await logs.nodes(tx, state.log, translog.nodes_for_root(size))
    return _tree(state, stored).root(size)


async def inclusion_at(tx: Tx, state: LogState, index: int, size: int) -> list[bytes]:
    """The proof that leaf `index` is in the log of `size` leaves."""
    stored = await logs.nodes(tx, state.log, translog.nodes_for_inclusion(index, size))
    return _tree(state, stored).inclusion(index, size)


async def consistency_at(tx: Tx, state: LogState, old: int, new: int) -> list[bytes]:
    """The proof that the log of `old` leaves is a beginning of the log of `new` leaves."""
    stored = await logs.nodes(tx, state.log, translog.nodes_for_consistency(old, new))
    return _tree(state, stored).consistency(old, new)


def _tree(state: LogState, stored: dict[translog.Node, bytes]) -> translog.Tree:
    return translog.Tree(state.size, stored.__getitem__, stored.__setitem__)


def _only(received: Received[Message], role: str) -> None:
    if received.key_id != service_key_id(role):
        raise Poison("sender_not_allowed", received.envelope.type)
