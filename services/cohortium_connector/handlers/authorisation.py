"""No task without a record of it: a window's authorisation must be in the study's log before a row is read.

The task shows the proof (C2SP tlog-proof), and with it how the log's checkpoint continues the one that this hospital
holds as a witness. So a task is a request to cosign as well, and is answered like one.
"""

import structlog

from cohortium_connector.desk import Desk
from cohortium_connector.handlers.witness import WitnessHandlers
from cohortium_kit.db import Tx
from cohortium_messages.secure_sum import WindowOpen
from cohortium_messages.witness import CheckpointElsewhere
from cohortium_protocol.errors import LogRefused
from cohortium_protocol.logproof import HeldElsewhere, Task, UnloggedTask, check_continues, check_task, study_log
from cohortium_protocol.notes import open_checkpoint
from cohortium_protocol.witness import LogForked

log = structlog.get_logger(__name__)


class Authorisations:
    """What a hospital finds about the record of a task."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._witness = WitnessHandlers(desk)

    async def objection(self, tx: Tx, message: WindowOpen, params_hash: bytes) -> str | None:
        """Why the task is no logged one, or None. Its checkpoint is then cosigned, and what is held from now on."""
        desk, params = self._desk, message.params
        try:
            if message.logged is None:
                raise UnloggedTask("no proof")
            trust = desk.identity.trust
            key = study_log(trust.federation, params.study_id, bytes(trust.services.audit))
            task = Task(params, params_hash, desk.identity.site_id)
            proof = check_task(message.logged.proof, task, key, desk.identity.scheduler_pk)
            checkpoint, state = open_checkpoint(proof.note, key), desk.witness.state(params.study_id)
            try:
                is_new = check_continues(checkpoint, state.held, state.roots, message.logged.continues)
            except LogForked:
                await self._witness.stop(tx, params.study_id, state, checkpoint, proof.note)
                return LogForked.code
            if is_new:
                await self._witness.cosign(tx, params.study_id, state, checkpoint, proof.note)
        except (UnloggedTask, LogRefused) as fault:
            log.warning("task_unlogged", study=params.study_id, window=params.window_id.hex(), reason=fault.detail)
            if isinstance(fault, HeldElsewhere):
                # The log is told from where, so that the next task can show it.
                elsewhere = CheckpointElsewhere(
                    study_id=params.study_id,
                    site_id=desk.identity.site_id,
                    size=desk.witness.state(params.study_id).size,
                )
                await desk.post(tx, "audit", elsewhere, params.study_id)
            return UnloggedTask.code
        return None
