"""What a strict session has on record: who holds it, the rounds that stand, its end. One transaction each."""

import secrets
from datetime import datetime, timedelta

from cohortium_aggregator.context import Context
from cohortium_aggregator.domain.states import Command
from cohortium_aggregator.domain.strict_states import (
    Progress,
    SessionBroken,
    SessionLives,
    SessionTaken,
    Stepping,
    Stop,
    TrainingDone,
)
from cohortium_aggregator.handlers.course import move, record_fault
from cohortium_aggregator.store import rounds, runs, windows
from cohortium_aggregator.store.rounds import Round
from cohortium_aggregator.store.windows import SumWindow
from cohortium_aggregator.strict.session import Broken, Material
from cohortium_kit.db import Tx
from cohortium_protocol.strict.frames import SessionSecret
from cohortium_protocol.trees.binning import Binning


class SessionGone(Exception):
    """The session is over, or another process holds it: what is in our memory is worth nothing any more."""


class UnknownSession(Exception):
    """No window of this id is on record."""


class Ledger:
    """Speaks for one aggregator process. `place` names its directory, and `owner` this life of it as well."""

    def __init__(self, ctx: Context, place: str) -> None:
        self._ctx = ctx
        self._place = place
        self.owner = f"{place}:{secrets.token_hex(8)}"

    def _until(self) -> datetime:
        return self._ctx.clock.now() + timedelta(seconds=self._ctx.settings.session_lease_s)

    async def take(self, window_id: bytes) -> Material | None:
        """Hold a session from its first step on. None where it is over: as it is where another process held it before,
        for its steps are lost with that one's memory. Raises `UnknownSession`."""
        return await self._ctx.db.run("session_taken", lambda tx: self._take(tx, window_id))

    async def _take(self, tx: Tx, window_id: bytes) -> Material | None:
        window = await windows.find_window(tx, self._ctx.sessions, window_id)
        if window is None:
            raise UnknownSession
        begin_s = 0.0
        if isinstance(window.state, Stepping):
            begin_s = (window.state.until - self._ctx.clock.now()).total_seconds()
        after = await move(self._ctx, tx, window, SessionTaken(self.owner, self._until()))
        spec = after.session.params.strict
        if not isinstance(after.state, Stepping) or spec is None:
            return None
        run = await runs.find_run(tx, after.session.run_id)
        newest = await runs.newest_version(tx, after.session.run_id)
        secret = await rounds.find_key(tx, window_id)
        if run is None or newest is None or secret is None or not isinstance(newest.preprocessing, Binning):
            raise AssertionError("a strict session without its run, its bins or its key")
        return Material(after.session, spec, run.study, newest.preprocessing, begin_s, SessionSecret(secret))

    async def end_earlier_lives(self) -> int:
        """End the sessions that an earlier life of this process held; returns how many there were."""
        return await self._ctx.db.run("sessions_lost", self._end_earlier_lives)

    async def _end_earlier_lives(self, tx: Tx) -> int:
        found = 0
        for window_id in await windows.windows_in(tx, Stepping):
            window = await windows.find_window(tx, self._ctx.sessions, window_id)
            if window is None or not isinstance(window.state, Stepping):
                continue
            place, _, _ = window.state.owner.partition(":")
            if place == self._place and window.state.owner != self.owner:
                await move(self._ctx, tx, window, SessionTaken(self.owner, self._until()))
                found += 1
        return found

    async def knows(self, window_id: bytes) -> bool:
        """Whether there is a window of this id."""
        async with self._ctx.db.reading("session_known") as tx:
            return await windows.state_of(tx, window_id) is not None

    async def holds(self, window_id: bytes) -> bool:
        """Whether the session is still ours by record."""
        async with self._ctx.db.reading("session_held") as tx:
            window = await windows.find_window(tx, self._ctx.sessions, window_id)
        return window is not None and isinstance(window.state, Stepping) and window.state.owner == self.owner

    async def renew(self, window_id: bytes, progress: Progress) -> None:
        """Say that we still hold it. Raises `SessionGone`."""
        alive = SessionLives(self.owner, self._until(), progress)
        await self._ctx.db.run("session_lives", lambda tx: self._ours(tx, window_id, alive))

    async def keep(self, window_id: bytes, made: Round, progress: Progress) -> None:
        """Put a round, or the header, on record. Raises `SessionGone`."""
        alive = SessionLives(self.owner, self._until(), progress)

        async def work(tx: Tx) -> None:
            window = await self._ours(tx, window_id, alive)
            await rounds.save_round(tx, window.session.run_id, window_id, made)

        await self._ctx.db.run("round_kept", work)

    async def finish(self, window_id: bytes, keep: int, progress: Progress) -> None:
        """Training is over; `keep` rounds are the model. Raises `SessionGone`."""
        done = TrainingDone(self.owner, progress, keep)
        await self._ctx.db.run("training_done", lambda tx: self._ours(tx, window_id, done))

    async def stop(self, window_id: bytes, broken: Broken, outcome: Stop, progress: Progress) -> None:
        """The session cannot go on. Raises `SessionGone`."""
        ended = SessionBroken(self.owner, outcome, broken.code, progress, frozenset(broken.gone))

        async def work(tx: Tx) -> None:
            window = await self._ours(tx, window_id, ended)
            for index in broken.gone if broken.is_fault else ():
                await record_fault(self._ctx, tx, window.session, index, broken.code)

        await self._ctx.db.run("session_stopped", work)

    async def _ours(self, tx: Tx, window_id: bytes, command: Command) -> SumWindow:
        """The window after a command that only its holder may give."""
        window = await windows.find_window(tx, self._ctx.sessions, window_id)
        if window is None or not isinstance(window.state, Stepping) or window.state.owner != self.owner:
            raise SessionGone
        return await move(self._ctx, tx, window, command)
