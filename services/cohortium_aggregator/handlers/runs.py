"""Messages of the scheduler: a run begins, a roster is fixed, a run ends."""

from cohortium_aggregator.context import Context
from cohortium_aggregator.domain.states import Ended, RunOver, State
from cohortium_aggregator.domain.strict import SITE_LEFT
from cohortium_aggregator.handlers import sessions
from cohortium_aggregator.handlers.course import cancel_unshown, move, to_member
from cohortium_aggregator.handlers.senders import check_service
from cohortium_aggregator.releasing import begin_with
from cohortium_aggregator.store import rounds, runs, sites, windows
from cohortium_aggregator.store.tables import site_keys
from cohortium_aggregator.store.windows import Session, SumWindow
from cohortium_kit.consumer import Received
from cohortium_kit.db import Tx
from cohortium_kit.errors import Poison, TryLater
from cohortium_messages.runs import RunEnded, RunStarted, SessionOpened
from cohortium_messages.withdrawals import ModelRetired, ModelsRetired, RetireModels
from cohortium_protocol.documents import manifest_hash, verify_manifest
from cohortium_protocol.window import verify_window


class RunHandlers:
    """Obeys the scheduler as far as the documents that people and sites signed allow it."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx

    async def on_run_started(self, tx: Tx, received: Received[RunStarted]) -> None:
        message = check_service(received, "scheduler")
        verify_manifest(message.manifest, self._ctx.governance)
        digests = {message.study.digest(), message.study_digest, message.manifest.study_digest}
        if len(digests) != 1 or message.manifest.study_id != message.study.name:
            raise Poison("study_differs", "study, digest and manifest are not of one study version")
        await sites.save_manifest(tx, message.manifest)
        known = await runs.find_run(tx, message.run_id) is not None
        await runs.insert_run(tx, message.run_id, message.study)
        if message.start is not None and not known:
            await begin_with(self._ctx, tx, message, message.start)

    async def on_retire(self, tx: Tx, received: Received[RetireModels]) -> None:
        """Officers retired models after a withdrawal: they are handed out no more. The same again changes nothing."""
        message = check_service(received, "scheduler")
        wanted = [model.version for model in message.models]
        for version in await runs.retire_versions(tx, message.run_id, wanted, message.withdrawal):
            event = ModelRetired(run_id=message.run_id, model=version.ref, withdrawal=message.withdrawal)
            await self._ctx.post.record(tx, event, study=message.study_id)
        done = ModelsRetired(withdrawal=message.withdrawal, run_id=message.run_id)
        await self._ctx.post.to_scheduler(tx, done, study=message.study_id)

    async def on_session_opened(self, tx: Tx, received: Received[SessionOpened]) -> None:
        """The window is on record before any site sees its roster. The same session again changes nothing."""
        message = check_service(received, "scheduler")
        run = await self._checked_run(tx, message)
        window_id = message.open.params.window_id
        if await windows.find_session(tx, self._ctx.sessions, window_id) is not None:
            return
        session, state = windows.session_of(message, self._ctx.clock.now())
        if run.state != "RUNNING":
            obstacle = "STOPPED_BY_OPERATOR"
        else:
            obstacle = await self._obstacle(tx, session) or await sessions.obstacle(tx, session)
        if obstacle:
            refused = SumWindow(session, Ended("CANCELLED", obstacle))
            await windows.insert_window(tx, message, refused)
            await cancel_unshown(self._ctx, tx, refused)
            return
        await self._open(tx, message, session, state)

    async def _checked_run(self, tx: Tx, message: SessionOpened) -> runs.Run:
        """The run of a session whose parameters and manifest are what they should be; `Poison` otherwise. `TryLater`
        for a run that is not known yet."""
        params = message.open.params
        verify_window(message.open, self._ctx.trust.services.scheduler)
        verify_manifest(message.manifest, self._ctx.governance)
        run = await runs.find_run(tx, params.run_id)
        if run is None:
            # Its start was sent before; a message that the broker gave back may come after the next one.
            raise TryLater("unknown_run")
        if params.manifest_hash != manifest_hash(message.manifest):
            raise Poison("manifest_differs", "the window was opened under another manifest")
        if params.study_digest != run.study.digest() or params.study_id != run.study.name:
            raise Poison("study_differs", "the window is not of the run's study version")
        if params.aggregator_seal_pk != self._ctx.seal_key.public:
            raise Poison("seal_key_differs", "sites would seal to a key that is not ours")
        sessions.check_kind(params, run.study)
        return run

    async def _obstacle(self, tx: Tx, session: Session) -> str:
        """Why a session cannot go on, as a code; empty if it can."""
        newest = await sites.newest_manifest(tx, session.study_id)
        members = {member.site_id for member in newest.members} if newest else set(session.sites)
        if not members.issuperset(session.sites):
            return "MANIFEST_CHANGED"
        if not (await site_keys.good(tx)).keys() >= set(session.sites):
            return "SITE_REVOKED"
        if not (await sites.left(tx, session.params.study_digest)).isdisjoint(session.sites):
            return SITE_LEFT
        for base in session.params.bases:
            version = await runs.find_version(tx, session.run_id, base.version)
            if version is None or version.model_hash != base.model_hash:
                return "BASE_MODEL_UNKNOWN"
            if version.retired_by is not None:
                return "MODEL_RETIRED"
        is_first = session.params.purpose == "statistics"
        if is_first and await runs.newest_version(tx, session.run_id) is not None:
            return "SUPERSEDED"
        return "" if is_first or session.params.bases else "BASE_MODEL_UNKNOWN"

    async def _open(self, tx: Tx, message: SessionOpened, session: Session, state: State) -> None:
        await windows.insert_window(tx, message, SumWindow(session, state))
        sent = 0
        for index in session.view.indices:
            sent += await to_member(self._ctx, tx, session, index, message.roster, 0)
        if session.params.strict is not None:
            sent += await sessions.begin(self._ctx, tx, session, session.params.strict)
        await windows.save_state(tx, SumWindow(session, state, sent))

    async def on_run_ended(self, tx: Tx, received: Received[RunEnded]) -> None:
        """Windows that are still open are over, and single rounds are forgotten. A run that finished is bundled."""
        message = check_service(received, "scheduler")
        if await runs.find_run(tx, message.run_id) is None:
            return  # it failed before it began
        await runs.end_run(tx, message.run_id, message.state, message.reason, message.model)
        for window_id in await windows.live_windows(tx, run_id=message.run_id):
            window = await windows.find_window(tx, self._ctx.sessions, window_id)
            if window is not None:
                await move(self._ctx, tx, window, RunOver(message.reason or "STOPPED_BY_OPERATOR"))
        await rounds.drop_rounds_after(tx, message.run_id, -1)
        tx.after_commit(lambda _: self._ctx.wakes.bundling.set())
