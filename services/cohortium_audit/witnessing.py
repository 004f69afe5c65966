"""Hospitals watch the log: each is asked to cosign every new checkpoint of its studies, and what it signs is kept.

One request to a site is under way at a time; the next one starts from what it has cosigned by then. A site that is away
is asked again, and stalls nothing: what has no quorum yet is not witnessed yet.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import replace

import structlog

from cohortium_audit.domain import PLATFORM, LogName, LogState
from cohortium_audit.handlers import consistency_at
from cohortium_audit.store import logs, members
from cohortium_audit.store.logs import SignedCheckpoint
from cohortium_audit.store.witnesses import (
    Witness,
    add_cosignature,
    cosignatures,
    cosigners,
    save_witness,
    show_witnesses,
    witnessed_size,
    witnesses,
)
from cohortium_kit.consumer import Received
from cohortium_kit.db import Tx
from cohortium_kit.envelopes import Sender
from cohortium_kit.errors import Poison
from cohortium_messages.governance import Manifest
from cohortium_messages.ids import SiteId, StudyId
from cohortium_messages.oversight import StudyCosigned
from cohortium_messages.topology import TASKS, control_queue, uplink_key
from cohortium_messages.witness import CheckpointCosigned, CheckpointElsewhere, CheckpointOffered
from cohortium_platform.recording import put_on_record
from cohortium_protocol.errors import LogRefused
from cohortium_protocol.notes import Checkpoint
from cohortium_protocol.signing import site_key_id
from cohortium_protocol.witness import CosignerKey, Request, check_cosignature, quorum, witness_name

log = structlog.get_logger(__name__)

ASK_AGAIN_S = 120.0


class Witnessing:
    """Asks for cosignatures and keeps them."""

    def __init__(self, sender: Sender, federation: str) -> None:
        self._sender = sender
        self._federation = federation

    async def ask_all(self, tx: Tx) -> int:
        """Ask every site whose cosignature is behind; returns how many were asked."""
        return sum([await self.ask(tx, state) for state in await logs.states(tx)])

    async def ask(self, tx: Tx, state: LogState, *, only: frozenset[SiteId] | None = None) -> int:
        """Ask the members of one study, or `only` these, where one is behind and no request to it is under way."""
        latest = await logs.latest_checkpoint(tx, state.log)
        if latest is None or state.log == PLATFORM:
            return 0
        members = await self._members(tx, state.log)
        return await self._offer(tx, state, latest, members if only is None else members & only)

    async def ask_former(self, tx: Tx, state: LogState, site_id: SiteId) -> int:
        """Ask a hospital that the newest manifest leaves out, whose key is in force: what it said last can be proven
        to it only in a checkpoint that it cosigned, and it is asked for none any more."""
        latest = await logs.latest_checkpoint(tx, state.log)
        former = site_id not in await self._members(tx, state.log) | await members.site_keys.revoked(tx)
        if latest is None or state.log == PLATFORM or not former:
            return 0
        return await self._offer(tx, state, latest, frozenset({site_id}))

    async def _offer(self, tx: Tx, state: LogState, latest: SignedCheckpoint, sites: frozenset[SiteId]) -> int:
        known, signed = await witnesses(tx, state.log), await cosigners(tx, state.log, latest.size)
        asked = 0
        for site_id in sorted(sites):
            witness = known.get(site_id) or Witness(site_id, 0, 0, 0.0, b"")
            under_way = witness.asked_size > 0 and tx.now - witness.asked_at < ASK_AGAIN_S
            # A site may hold the checkpoint and its line be lost on the way: it is asked for the line again.
            if witness.size <= latest.size and site_id not in signed and not under_way:
                await self._send(tx, state, witness, latest)
                asked += 1
        return asked

    async def on_cosigned(self, tx: Tx, received: Received[CheckpointCosigned]) -> None:
        """Keep a cosignature that verifies, and ask for the next one if the log has grown since."""
        message, name = received.message, LogName(received.message.study_id)
        witness = await self._asked(tx, received, message.study_id, message.site_id)
        stored = await logs.checkpoint(tx, name, message.size)
        if stored is None or stored.root != message.root:
            # The log's own key signed what this site saw, and it is not in this database: a restored copy, or a fork.
            log.error("witness_holds_another_checkpoint", study=message.study_id, site=message.site_id)
            raise Poison("checkpoint_unknown")
        key = CosignerKey(witness_name(self._federation, message.site_id), message.witness_key)
        checkpoint = Checkpoint(f"{self._federation}/audit/{name}", message.size, message.root)
        try:
            check_cosignature(message.line, checkpoint, key)
        except LogRefused as refused:
            raise Poison("bad_cosignature") from refused
        # The line ends here whether or not the site ended it: the next one in the note is another hospital's.
        line = message.line.removesuffix("\n") + "\n"
        await add_cosignature(tx, name, message.size, message.site_id, line)
        await self._note_quorum(tx, name, stored)
        size = max(witness.size, message.size)
        stands = replace(witness, size=size, asked_size=0, witness_key=message.witness_key)
        await save_witness(tx, name, stands, by="on_cosigned")
        await self._ask_again(tx, name, message.site_id, message.size)

    async def on_elsewhere(self, tx: Tx, received: Received[CheckpointElsewhere]) -> None:
        """The site holds another size than we thought: start from there."""
        message, name = received.message, LogName(received.message.study_id)
        witness = await self._asked(tx, received, message.study_id, message.site_id)
        state = await logs.state(tx, name)
        if state is None or message.size > state.size:
            log.error("witness_is_ahead", study=message.study_id, site=message.site_id)
            raise Poison("checkpoint_unknown")
        if message.size < witness.size:
            # A copy was put back, or two connectors of one site answer in turn, without end if they were asked at once.
            log.warning("witness_went_back", study=message.study_id, site=message.site_id)
            await save_witness(tx, name, replace(witness, size=message.size), by="on_elsewhere")
            return
        await save_witness(tx, name, replace(witness, size=message.size, asked_size=0), by="on_elsewhere")
        await self._ask_again(tx, name, message.site_id, 0)

    async def cosigned(self, tx: Tx, name: LogName, stored: list[SignedCheckpoint]) -> list[SignedCheckpoint]:
        """The same checkpoints, each note followed by its cosignature lines."""
        lines = await cosignatures(tx, name, stored[0].size, stored[-1].size) if stored else {}
        return [replace(one, note=one.note + "".join(lines.get(one.size, ()))) for one in stored]

    async def witnessed(self, tx: Tx, name: LogName) -> int:
        """The size of the newest checkpoint that a quorum of the study's members cosigned; 0 without one."""
        manifest = await self._manifest(tx, name)
        if manifest is None:
            return 0
        needed = quorum(len(manifest.members), manifest.collusion)
        return await witnessed_size(tx, name, frozenset(one.site_id for one in manifest.members), needed)

    async def shown_with_task(
        self, tx: Tx, name: LogName, sites: frozenset[SiteId], known: Mapping[SiteId, Witness], size: int
    ) -> None:
        """A task shows these sites the checkpoint of `size` leaves, which is a request to cosign it: no other one is
        under way until they have answered, so that none of them holds a newer one when the task comes.

        Where a request is under way already, that one stays: a site that is never given a task would else never be
        asked.
        """
        await show_witnesses(tx, name, sites & known.keys(), size)
        for site_id in sorted(sites - known.keys()):
            await save_witness(tx, name, Witness(site_id, 0, size, tx.now, b""), by="shown_with_task")

    async def _note_quorum(self, tx: Tx, name: LogName, stored: SignedCheckpoint) -> None:
        """The platform's log hears once of each checkpoint that a quorum cosigned, however the membership changes."""
        manifest = await self._manifest(tx, name)
        if manifest is None:
            return
        signed = await cosigners(tx, name, stored.size) & {one.site_id for one in manifest.members}
        if len(signed) < quorum(len(manifest.members), manifest.collusion):
            return
        about = f"{self._federation}/audit/{name}|{stored.size}|{StudyCosigned.type_name}"
        event_id = hashlib.sha256(about.encode()).hexdigest()
        # On record it is for good; what was told before is forgotten after a while.
        if await logs.recorded(tx, [(self._sender.signer.key_id, event_id)]):
            return
        event = StudyCosigned(study_id=StudyId(name), size=stored.size, root=stored.root, sites=tuple(sorted(signed)))
        await put_on_record(tx, self._sender, event, study=None, unique=event_id)

    async def _ask_again(self, tx: Tx, name: LogName, site_id: SiteId, answered: int) -> None:
        """Ask the site that has just answered, if the log has grown since it was asked."""
        state = await logs.state(tx, name)
        if state is not None and state.checkpointed > answered:
            await self.ask(tx, state, only=frozenset({site_id}))

    async def _send(self, tx: Tx, state: LogState, witness: Witness, latest: SignedCheckpoint) -> None:
        proof = await consistency_at(tx, state, witness.size, latest.size) if witness.size else []
        request = Request(witness.size, tuple(proof), latest.note)
        study = StudyId(state.log)
        message = CheckpointOffered(study_id=study, request=request.text())
        queue = control_queue(witness.site_id)
        await tx.send(self._sender.outgoing(TASKS.name, queue, message, study=study), ordering_key=queue)
        asked = replace(witness, asked_size=latest.size, asked_at=tx.now)
        await save_witness(tx, state.log, asked, by="ask")

    async def _asked(
        self,
        tx: Tx,
        received: Received[CheckpointCosigned] | Received[CheckpointElsewhere],
        study: StudyId,
        site_id: SiteId,
    ) -> Witness:
        if received.key_id != site_key_id(site_id) or received.routing_key != uplink_key(site_id, "audit"):
            raise Poison("sender_not_allowed")
        witness = (await witnesses(tx, LogName(study))).get(site_id)
        if witness is None:
            raise Poison("not_asked")
        return witness

    async def _manifest(self, tx: Tx, name: LogName) -> Manifest | None:
        known = await members.manifests(tx, StudyId(name))
        return known[-1] if known else None

    async def _members(self, tx: Tx, name: LogName) -> frozenset[SiteId]:
        manifest = await self._manifest(tx, name)
        if manifest is None:
            return frozenset()
        return frozenset(one.site_id for one in manifest.members) - await members.site_keys.revoked(tx)
