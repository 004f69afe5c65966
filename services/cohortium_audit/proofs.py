"""Events that nobody acts on before they are in the log: their emitters are told when they are, with the proof.

One transaction records the event, signs a checkpoint over it and sends the proof, so that a window waits for no more
than its own event and this answer. Events of a study that come together share the checkpoint.
"""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from cohortium_audit.domain import Entry, LogName
from cohortium_audit.handlers import Handlers, Outcome, Recorded
from cohortium_audit.platform_log import PlatformLog, ends_run
from cohortium_audit.store import logs
from cohortium_audit.store.witnesses import Witness, witnesses
from cohortium_audit.witnessing import Witnessing
from cohortium_kit.consumer import Received
from cohortium_kit.db import Tx
from cohortium_kit.envelopes import Sender
from cohortium_kit.errors import Poison
from cohortium_messages.events import ReleaseSigned, WindowAuthorised
from cohortium_messages.ids import SiteId, StudyId
from cohortium_messages.topology import SERVICES
from cohortium_messages.witness import ContinuationFor, EventProven, Logged, ProofAsked
from cohortium_protocol.logproof import LogProof
from cohortium_protocol.signing import service_key_id
from cohortium_protocol.translog import Tree, nodes_for_consistency, nodes_for_inclusion

TOLD: Final[Mapping[str, str]] = {WindowAuthorised.type_name: "scheduler", ReleaseSigned.type_name: "aggregator"}
"""Who is told of which of its events that it is in the log, and with which proof."""
NEWEST_SHOWN: Final = 8
"""From so many of the newest checkpoints every hospital is shown the way: it may hold one that came with a task, and
its answer be on the way here."""


@dataclass(frozen=True, slots=True)
class _Placed:
    """A recorded event that its emitter waits for."""

    event_id: str
    type: str
    data: bytes
    index: int


class Proofs:
    """Records events as `Handlers` does, and tells emitters what they wait for."""

    def __init__(self, handlers: Handlers, witnessing: Witnessing, platform_log: PlatformLog, sender: Sender) -> None:
        self._handlers = handlers
        self._witnessing = witnessing
        self._platform_log = platform_log
        self._sender = sender

    async def append(self, tx: Tx, batch: Sequence[Entry]) -> list[Outcome]:
        """Record a batch; one outcome for each. What comes again is answered again."""
        outcomes = await self._handlers.append(tx, batch)
        waited: dict[LogName, list[_Placed]] = defaultdict(list)
        for entry, outcome in zip(batch, outcomes, strict=True):
            if isinstance(outcome, Recorded) and is_waited_for(entry):
                waited[entry.log].append(_Placed(entry.event_id, entry.type, entry.data, outcome.index))
        for log, placed in waited.items():
            await self._prove(tx, log, placed)
        for log in {entry.log for entry in batch if ends_run(entry)}:
            await self._platform_log.note(tx, log)
        return outcomes

    async def on_asked(self, tx: Tx, received: Received[ProofAsked]) -> None:
        """An emitter has waited for long: answer if its event is here; if it is not, it is answered when it comes."""
        message, key_id = received.message, received.key_id
        if key_id not in {service_key_id(role) for role in TOLD.values()}:
            raise Poison("sender_not_allowed")
        found = (await logs.recorded(tx, [(key_id, message.event_id)])).get((key_id, message.event_id))
        if found is None or found.log != LogName(message.study_id):
            return
        kind = json.loads(found.data)["event"]["type"]
        if _asker(kind) == key_id:
            await self._prove(tx, found.log, [_Placed(message.event_id, kind, found.data, found.index)])

    async def _prove(self, tx: Tx, log: LogName, placed: Sequence[_Placed]) -> None:
        signed = await self._handlers.checkpoint(tx, log)
        if signed is None:
            raise LookupError(f"log {log} has entries and no checkpoint")
        size, held = signed.size, await witnesses(tx, log)
        permitted = {one.event_id: _permitted(one.data) for one in placed if one.type == WindowAuthorised.type_name}
        newest = await logs.newest_sizes(tx, log, size, NEWEST_SHOWN) if permitted else []
        holders = _holders(held, frozenset().union(*permitted.values()), newest, size)
        wanted = [node for one in placed for node in nodes_for_inclusion(one.index, size)]
        wanted += [node for known in holders for node in nodes_for_consistency(known, size)]
        stored = await logs.nodes(tx, log, wanted)
        tree = Tree(size, stored.__getitem__, stored.__setitem__)
        ways = {known: tuple(tree.consistency(known, size)) for known in holders}
        for one in placed:
            asked = permitted.get(one.event_id, frozenset())
            continues = tuple(
                ContinuationFor(from_size=known, hashes=ways[known], sites=tuple(sorted(asked & sites)))
                for known, sites in holders.items()
                if asked & sites
            )
            proof = LogProof(one.data, one.index, tuple(tree.inclusion(one.index, size)), signed.note)
            message = EventProven(
                study_id=StudyId(log),
                event_id=one.event_id,
                logged=Logged(proof=proof.text()),
                continues=continues,
            )
            role = TOLD[one.type]
            outgoing = self._sender.outgoing(SERVICES.name, role, message, study=StudyId(log))
            await tx.send(outgoing, ordering_key=role)
            if asked:
                await self._witnessing.shown_with_task(tx, log, asked, held, size)


def is_waited_for(entry: Entry) -> bool:
    """Whether the emitter of this event is told when it is in the log."""
    return _asker(entry.type) == entry.key_id


def _asker(kind: str) -> str | None:
    role = TOLD.get(kind)
    return None if role is None else service_key_id(role)


def _permitted(data: bytes) -> frozenset[SiteId]:
    permits = json.loads(data)["event"]["data"]["permits"]
    return frozenset(SiteId(permit["site_id"]) for permit in permits if permit["permitted"])


def _holders(
    held: Mapping[SiteId, Witness], asked: frozenset[SiteId], newest: Sequence[int], size: int
) -> dict[int, set[SiteId]]:
    """What those asked may hold now, and which may: the newest checkpoints, what they cosigned, or were asked to."""
    holders: dict[int, set[SiteId]] = defaultdict(set, {known: set(asked) for known in newest})
    for site in sorted(asked & held.keys()):
        for known in (held[site].size, held[site].asked_size):
            if 0 < known < size:
                holders[known].add(site)
    return holders
