"""What runs beside the windows: registration, signs of life, expiry, and deleting what is not needed any more."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import structlog

from cohortium_connector.desk import Desk
from cohortium_connector.domain.commands import Abandoned, Declined, Expired
from cohortium_connector.domain.window_states import BOUND_PHASES, InSession, RosterOk, Uploaded, UploadSaved
from cohortium_connector.identity import read_invitation
from cohortium_connector.sessions import Sessions
from cohortium_connector.spool import remove
from cohortium_connector.store import models, products, residuals, site, studies, windows
from cohortium_connector.uploads import Uploads
from cohortium_connector.waiting import Bell, backoff_s
from cohortium_connector.workshop import Workshop
from cohortium_kit import chains
from cohortium_kit.bus import Bus
from cohortium_kit.clock import pause
from cohortium_kit.db import Database, Tx
from cohortium_kit.errors import BusError, ConfigurationError
from cohortium_messages.ids import RunId
from cohortium_messages.problems import sentence
from cohortium_messages.runs import Presence
from cohortium_messages.secure_sum import ModelRef, WindowParams
from cohortium_messages.topology import UPLINK, uplink_key
from cohortium_protocol.documents import make_registration

log = structlog.get_logger(__name__)
REGISTER_FIRST_S = 5.0
REGISTER_LONGEST_S = 300.0
PRESENCE_TTL_MS = 30_000
SWEEP_S = 1.0
TIDY_S = 5.0
"""How long what another process wrote (a person at the command line) may go unseen by what tidies up."""


class Registration:
    """Tells enrolment this site's key, until enrolment has answered."""

    def __init__(self, desk: Desk, db: Database, bell: Bell) -> None:
        self._desk = desk
        self._db = db
        self._bell = bell

    async def run(self, stop: asyncio.Event) -> None:
        """Ask again with growing pauses; end when registered. A refusal needs a person, so it is not asked again."""
        attempt = 0
        while not stop.is_set():
            changed = self._bell.next()
            async with self._db.reading("registration_state") as tx:
                record = await site.find_site(tx)
            if record is None or record.registered:
                return
            if record.refused:
                log.error("registration_refused", code=record.refused, reason=sentence(record.refused))
                await pause(self._desk.clock, REGISTER_LONGEST_S, changed, stop)
                continue
            await self._db.run("register", self._register)
            wait_s = backoff_s(attempt, REGISTER_FIRST_S, REGISTER_LONGEST_S)
            attempt += 1
            await self._await_answer(wait_s, stop)

    async def _register(self, tx: Tx) -> None:
        desk, identity = self._desk, self._desk.identity
        invitation = read_invitation(desk.settings)
        if invitation is None or invitation.site_id != identity.site_id:
            raise ConfigurationError("this site is not registered yet: set invitation_file to its invitation")
        message = make_registration(invitation.token, identity.trust.federation, identity.site_id, identity.key)
        await desk.post(tx, "enrolment", message)
        log.info("registration_sent", site=identity.site_id, name=identity.name)

    async def _await_answer(self, seconds: float, stop: asyncio.Event) -> None:
        deadline = self._desk.clock.monotonic() + seconds
        while not stop.is_set():
            changed = self._bell.next()
            async with self._db.reading("await_registration") as tx:
                record = await site.find_site(tx)
            left = deadline - self._desk.clock.monotonic()
            if record is None or record.registered or record.refused or left <= 0:
                return
            await pause(self._desk.clock, left, changed, stop)


class Presences:
    """Tells the scheduler every few seconds that this site is here, and what it does. Lost ones are not missed."""

    def __init__(
        self, desk: Desk, db: Database, bus: Bus, workshop: Workshop, uploads: Uploads, sessions: Sessions
    ) -> None:
        self._desk = desk
        self._db = db
        self._bus = bus
        self._workshop = workshop
        self._uploads = uploads
        self._sessions = sessions

    async def run(self, stop: asyncio.Event) -> None:
        key = uplink_key(self._desk.identity.site_id, "presence")
        sender, clock = self._desk.identity.sender, self._desk.clock
        while not stop.is_set():
            message = await self.message()
            outgoing = sender.outgoing(UPLINK.name, key, message, persistent=False, ttl_ms=PRESENCE_TTL_MS)
            try:
                await self._bus.publish(outgoing, timeout_s=5.0)
            except BusError as error:
                log.debug("presence_not_sent", error=type(error).__name__)
            await pause(clock, self._desk.settings.presence_s, stop)

    async def message(self) -> Presence:
        """What this site is doing now; nothing about its data."""
        jobs, live = self._workshop.jobs, self._sessions.live
        async with self._db.reading("presence") as tx:
            opened = await windows.open_windows(tx)
        bound = [window for window in opened if window.state.phase in BOUND_PHASES]
        run_id: RunId | None = jobs[0].run_id if jobs else opened[0].run_id if opened else None
        state, progress = "idle", None
        if live:
            state, run_id, progress = "training", live[0].seat.run_id, live[0].progress
        elif jobs:
            state = "training" if any(job.purpose != "evaluation" for job in jobs) else "evaluating"
        elif self._uploads.sending:
            state = "uploading"
        elif bound or opened:
            state = "waiting"
        return Presence.model_validate(
            {
                "site_id": self._desk.identity.site_id,
                "state": state,
                "run_id": run_id,
                "progress": progress,
                "sent_at": self._desk.clock.now(),
            }
        )


class Upkeep:
    """Ends windows whose time is over, and deletes files that no record needs."""

    def __init__(self, desk: Desk, db: Database, bell: Bell, workshop: Workshop) -> None:
        self._desk = desk
        self._db = db
        self._bell = bell
        self._workshop = workshop

    async def run(self, stop: asyncio.Event) -> None:
        """Everything after a change, and else now and then; only what the clock decides is looked at each time."""
        clock = self._desk.clock
        changed, tidy_at = self._bell.next(), clock.monotonic()
        while not stop.is_set():
            if changed.is_set() or clock.monotonic() >= tidy_at:
                changed, tidy_at = self._bell.next(), clock.monotonic() + TIDY_S
                await self.tidy()
            else:
                await self._end_in_time()
            await pause(clock, SWEEP_S, stop)

    async def _end_in_time(self) -> None:
        async with self._db.reading("windows_open") as tx:
            opened = await windows.open_windows(tx)
        if opened and await self._expire(opened) + await self._leave_unpermitted(opened):
            self._bell.ring()

    async def tidy(self) -> None:
        """Once over everything. Twice is once."""
        await self._end_in_time()
        candidates = await asyncio.to_thread(self._desk.spool.sweepable)
        async with self._db.reading("files_needed") as tx:
            needed, stale = await self._needed(tx)
        if stale:
            needed = await self._db.run("drop_old_models", self._drop_models)
        await asyncio.to_thread(self._desk.spool.sweep, candidates, needed)
        await self._forget_patients()

    async def _forget_patients(self) -> None:
        """Delete the lists of persons of studies in which nothing runs. Tags stay: they prove who was in a cohort."""
        folders = list(self._desk.spool.patients.glob("*/"))
        if not folders:
            return
        async with self._db.reading("studies_running") as tx:
            running = {
                offer.study_id
                for run_id in await studies.all_open_runs(tx)
                if (offer := await studies.study_of_run(tx, run_id))
            }
        for folder in folders:
            if folder.name not in running:
                for file in folder.glob("permitted-*.json"):
                    remove(file)

    async def _drop_models(self, tx: Tx) -> frozenset[Path]:
        """Forget versions that nothing starts from, looked up in this transaction; returns what is still needed."""
        needed, stale = await self._needed(tx)
        for run_id, version in stale:
            await models.delete_model(tx, run_id, version)
        return needed - {self._desk.spool.model(run_id, version).with_suffix("") for run_id, version in stale}

    async def _needed(self, tx: Tx) -> tuple[frozenset[Path], tuple[tuple[RunId, int], ...]]:
        """Files that records need, without their endings; and model versions that no window and no job starts from."""
        spool, opened = self._desk.spool, await windows.open_windows(tx)
        needed = {spool.products / product_id for product_id in await products.all_product_ids(tx)}
        sending = [window for window in opened if isinstance(window.state, RosterOk | UploadSaved | Uploaded)]
        needed |= {spool.upload(window.window_id).with_suffix("") for window in sending}
        running = await studies.all_open_runs(tx)
        needed |= {journal.with_suffix("") for run_id in running for journal in spool.journals_of(run_id)}
        for one in await residuals.every(tx):
            windows_of_it = [window_id for window_id in (one.made_by, one.taken_by) if window_id is not None]
            if one.run_id in running:
                needed |= {spool.residual(window_id).with_suffix("") for window_id in windows_of_it}
        wanted = {(job.run_id, job.base.version) for job in self._workshop.jobs if job.base is not None}
        wanted |= {(window.run_id, base.version) for window in opened for base in _bases(window.params)}
        known = [(record.run_id, record.ref.version) for record in await models.models(tx)]
        newest = dict(sorted(known))
        needed |= {spool.model(run_id, version).with_suffix("") for run_id, version in known}
        # Of a run that is over nothing is kept: a download that was under way may have come after the run's end.
        kept = {key for key in newest.items() if key[0] in running}
        stale = tuple(key for key in known if key not in wanted and key not in kept)
        return frozenset(needed), stale

    async def _expire(self, opened: Sequence[windows.WindowRecord]) -> int:
        now = self._desk.clock.now()
        over = [window for window in opened if window.expires_at <= now]

        async def expire(tx: Tx) -> None:
            for window in over:
                current = await windows.find_window(tx, window.window_id)
                if current is not None:
                    await self._desk.step(tx, current, Expired(), by="expire")
                    log.warning("window_expired", study=window.study_id, window=window.window_id.hex())

        if over:
            await self._db.run("expire", expire)
        return len(over)

    async def _leave_unpermitted(self, opened: Sequence[windows.WindowRecord]) -> int:
        """Leave strict sessions that the hospital's grant or documents do not cover any more. Every step of one is an
        upload, so it is asked by the clock. Returns how many were left."""

        async def leave(tx: Tx) -> int:
            count = 0
            for window in await windows.open_windows(tx):
                if not isinstance(window.state, InSession):
                    continue
                held = await self._desk.permission(tx, window.params.study_digest, window.params.round)
                if isinstance(held, str):
                    await self._desk.step(tx, window, Declined(held), by="leave_unpermitted")
                    log.warning("session_not_permitted", study=window.study_id, code=held)
                    count += 1
            return count

        playing = [window for window in opened if isinstance(window.state, InSession)]
        return await self._db.run("leave_unpermitted", leave) if playing else 0


def _bases(params: WindowParams) -> tuple[ModelRef, ...]:
    """Every model version that a window may start from."""
    spec = params.strict
    return params.bases if spec is None or spec.from_model is None else (*params.bases, spec.from_model)


async def abandon_if_restored(desk: Desk, db: Database) -> bool:
    """Rule R8: a database that is older than the count beside it is a restored copy. What it says of open windows and
    free updates may be long untrue: before anything runs, every open window is abandoned and every update deleted.
    """
    beside = desk.spool.read_generation()

    async def abandon(tx: Tx) -> bool:
        record = await site.find_site(tx)
        if record is None or record.generation >= beside:
            return False
        for window in await windows.open_windows(tx):
            await desk.step(tx, window, Abandoned(), by="abandon_restored")
        for product_id in await products.all_product_ids(tx):
            await products.delete_product(tx, product_id)
        await residuals.forget_all(tx)  # what they say may have been sent since the copy was made
        await chains.begin_anew(tx)
        await site.set_generation(tx, beside, by="abandon_restored")
        return True

    restored = await db.run("abandon_restored", abandon)
    if restored:
        log.error("spool_restored_from_backup", reason="open windows were abandoned; updates are made again")
    return restored
