"""What a witness does when the log asks for a cosignature (C2SP tlog-witness)."""

import structlog

from cohortium_connector.desk import Desk
from cohortium_connector.store import log_watch, studies
from cohortium_connector.witness import WitnessState
from cohortium_kit.consumer import Received
from cohortium_kit.db import Tx
from cohortium_messages.events import ForkDetected
from cohortium_messages.ids import StudyId
from cohortium_messages.problems import sentence
from cohortium_messages.witness import CheckpointCosigned, CheckpointElsewhere, CheckpointOffered, EventsIncluded
from cohortium_protocol.logproof import study_log
from cohortium_protocol.notes import Checkpoint, open_checkpoint
from cohortium_protocol.translog import verify_inclusion
from cohortium_protocol.witness import Elsewhere, LogForked, Request, cosign, judge, witness_name

log = structlog.get_logger(__name__)


class WitnessHandlers:
    """Cosigns what continues the log that this hospital knows; stops everything when it does not."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def on_checkpoint_offered(self, tx: Tx, received: Received[CheckpointOffered]) -> None:
        """Check, persist, sign: in this order. Once a fork was seen, nothing is signed any more."""
        desk, study = self._desk, received.message.study_id
        if await studies.newest_manifest(tx, study) is None:
            log.info("checkpoint_of_unknown_study", study=study)  # we are asked again
            return
        request = Request.parse(received.message.request)
        key = study_log(desk.identity.trust.federation, study, bytes(desk.identity.trust.services.audit))
        state = desk.witness.state(study)
        if state.fork is not None:
            return
        try:
            verdict = judge(request, state.held, key)
        except LogForked:
            await self.stop(tx, study, state, open_checkpoint(request.note, key), request.note)
            return
        if isinstance(verdict, Elsewhere):
            answer = CheckpointElsewhere(study_id=study, site_id=desk.identity.site_id, size=verdict.size)
            await desk.post(tx, "audit", answer, study)
            return
        await self.cosign(tx, study, state, verdict.checkpoint, request.note)

    async def on_events_included(self, tx: Tx, received: Received[EventsIncluded]) -> None:
        """Check each proof against a root that this hospital cosigned, and its own event; what holds is not awaited any
        more. Raises `LogRefused` for a proof that does not hold: the event stays awaited."""
        message, study = received.message, received.message.study_id
        state = self._desk.witness.state(study)
        if state.fork is not None:
            return
        root = {**state.roots, state.size: state.root}.get(message.size)
        if root is None:
            log.info("inclusion_in_unknown_checkpoint", study=study, count=message.size)  # asked for again
            answer = CheckpointElsewhere(study_id=study, site_id=self._desk.identity.site_id, size=state.size)
            await self._desk.post(tx, "audit", answer, study)
            return
        awaited = await log_watch.leaves(tx, study, [one.event_id for one in message.events])
        for one in message.events:
            if one.event_id in awaited:
                verify_inclusion(awaited[one.event_id], one.index, message.size, one.hashes, root)
        await log_watch.forget(tx, awaited)

    async def cosign(self, tx: Tx, study: StudyId, held: WitnessState, checkpoint: Checkpoint, note: str) -> None:
        """Hold a checkpoint that continues what is held, and only then sign it."""
        desk, key = self._desk, self._desk.witness.key
        identity = desk.identity
        desk.witness.save(study, held.after(checkpoint, note))
        line = cosign(
            checkpoint,
            witness_name(identity.trust.federation, identity.site_id),
            key,
            int(desk.clock.now().timestamp()),
        )
        await desk.name_witness(tx, study)
        answer = CheckpointCosigned(
            study_id=study,
            site_id=identity.site_id,
            size=checkpoint.size,
            root=checkpoint.root,
            witness_key=key.public,
            line=line,
        )
        await desk.post(tx, "audit", answer, study)

    async def stop(self, tx: Tx, study: StudyId, held: WitnessState, offered: Checkpoint, note: str) -> None:
        """The log showed two histories: keep both, sign nothing more, and tell everybody who may still listen."""
        desk, state = self._desk, held.model_copy(update={"fork": note})
        evidence = desk.witness.keep_evidence(study, state)
        desk.witness.save(study, state)
        log.critical("log_forked", study=study, code="LOG_FORKED", reason=sentence("LOG_FORKED"), path=str(evidence))
        event = ForkDetected(
            site_id=desk.identity.site_id,
            held_size=state.size,
            held_root=state.root,
            offered_size=offered.size,
            offered_root=offered.root,
        )
        await desk.record(tx, event, study)
