"""This hospital's eye on its studies' logs: they must grow, and hold what it reported.

What it reported is kept until the log has proven that it holds it, asked after, and sent again halfway and whenever it
is twice as old, in case it was lost on the way. What is wrong is said in this hospital: whoever keeps the log may be
who is wrong.
"""

import asyncio
from collections.abc import Mapping

import structlog

from cohortium_connector.desk import Desk
from cohortium_connector.domain.log_alarms import AlarmCode, Patience, WatchedLog, alarms, must_stir
from cohortium_connector.domain.policy import HeldGrant, usable_grant
from cohortium_connector.store import log_watch, studies
from cohortium_connector.witness import DAMAGED, WitnessState
from cohortium_kit.clock import pause
from cohortium_kit.db import Database, Tx
from cohortium_kit.errors import ConfigurationError
from cohortium_messages.events import WitnessNamed
from cohortium_messages.ids import StudyId
from cohortium_messages.problems import sentence
from cohortium_messages.witness import MOST_ASKED, InclusionAsked
from cohortium_protocol.witness import LogForked

log = structlog.get_logger(__name__)
LOOK_S = 5.0

Standing = tuple[tuple[StudyId, str], ...]
"""Studies and codes of all alarms about their logs."""


class LogWatch:
    """Looks at all logs every `LOOK_S`. `standing`: what was found last, forks and damaged files too."""

    def __init__(self, desk: Desk, db: Database) -> None:
        self._desk = desk
        self._db = db
        self._patience = Patience(desk.settings.log_stale_s, desk.settings.inclusion_s)
        self._started_at = desk.clock.now().timestamp()
        self.standing: Standing = ()

    async def run(self, stop: asyncio.Event) -> None:
        self._started_at = self._desk.clock.now().timestamp()
        while not stop.is_set():
            await self.look()
            await pause(self._desk.clock, LOOK_S, stop)

    async def look(self) -> None:
        """Once over all logs: ask, send again, stir, and raise or end alarms."""
        found = await self._db.run("watch_logs", self._look)
        forked = ((study, LogForked.code) for study in self._desk.witness.forked())
        damaged = ((study, DAMAGED) for study in self._desk.witness.damaged())
        self.standing = (*forked, *damaged, *found)

    async def _look(self, tx: Tx) -> Standing:
        await log_watch.note_unsent(tx)
        waits, relied, grown = await log_watch.waits(tx), await self._relied_on(tx), await log_watch.grown_at(tx)
        raised: dict[StudyId, frozenset[AlarmCode]] = {}
        for alarm in await log_watch.alarms(tx):
            raised[alarm.study] = raised.get(alarm.study, frozenset()) | {alarm.code}
        for study in sorted({*waits, *relied, *raised}):
            state = self._held(study)
            if state is None or state.fork is not None:
                continue  # of a fork its own alarm tells, until people have settled which history is true
            grown_at = await self._grown_at(tx, study, state, grown)
            watched = WatchedLog(study in relied, grown_at, waits.get(study))
            await self._press(tx, study, watched)
            await self._tell(tx, study, watched, raised.get(study, frozenset()))
        return tuple((alarm.study, alarm.code) for alarm in await log_watch.alarms(tx))

    def _held(self, study: StudyId) -> WitnessState | None:
        try:
            return self._desk.witness.state(study)
        except ConfigurationError as damaged:
            log.error("witness_file_damaged", study=study, reason=str(damaged))
            return None

    async def _relied_on(self, tx: Tx) -> frozenset[StudyId]:
        """Studies that this hospital takes part in: by a grant that is in force, or in a run that goes on."""
        now = self._desk.clock.now()
        found = set()
        for offer in await studies.offers(tx):
            held = usable_grant(await studies.grants(tx, offer.study_digest), 0, now)
            runs = await studies.open_runs(tx, offer.study_digest)
            if offer.state == "APPROVED" and (isinstance(held, HeldGrant) or runs):
                found.add(offer.study_id)
        return frozenset(found)

    async def _grown_at(
        self, tx: Tx, study: StudyId, state: WitnessState, grown: Mapping[StudyId, tuple[int, float]]
    ) -> float:
        size, since = grown.get(study, (-1, 0.0))
        if state.size == size:
            return since
        await log_watch.note_grown(tx, study, state.size)
        return tx.now

    async def _press(self, tx: Tx, study: StudyId, watched: WatchedLog) -> None:
        """Make the log show what it is: stir it, send again what may be lost, ask after what it must hold."""
        desk, patience = self._desk, self._patience
        if must_stir(watched, patience, tx.now):
            # Which key it cosigns with can be said any number of times; that it was said now makes the log grow.
            log.info("log_stirred", study=study)
            await desk.record(
                tx, WitnessNamed(site_id=desk.identity.site_id, witness_key=desk.witness.key.public), study
            )
            return
        for lost in await log_watch.take_late(tx, study, tx.now - patience.inclusion_s / 2, MOST_ASKED):
            log.info("event_sent_again", study=study, message_id=lost.message_id)
            await tx.send(lost, ordering_key="audit")
        asked = await log_watch.due(tx, study, tx.now - patience.ask_s, MOST_ASKED)
        if asked:
            await log_watch.note_asked(tx, asked)
            question = InclusionAsked(study_id=study, site_id=desk.identity.site_id, event_ids=asked)
            await desk.post(tx, "audit", question, study)

    async def _tell(self, tx: Tx, study: StudyId, watched: WatchedLog, raised: frozenset[AlarmCode]) -> None:
        wanted = alarms(watched, raised, self._patience, tx.now, self._started_at)
        for code in sorted(wanted - raised):
            await log_watch.raise_alarm(tx, study, code)
            log.error("log_alarm_raised", study=study, code=code, reason=sentence(code))
        for code in sorted(raised - wanted):
            await log_watch.end_alarm(tx, study, code)
            log.info("log_alarm_ended", study=study, code=code)
