"""Moves a window on, and turns what the domain says into messages."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import assert_never

from cohortium_aggregator.context import Context, message_id
from cohortium_aggregator.domain.advance import advance
from cohortium_aggregator.domain.states import (
    Aborting,
    AskAbort,
    Collecting,
    Command,
    Echoing,
    Ended,
    Event,
    FaultFound,
    MemberLeft,
    Opening,
    OpenSum,
    SetAside,
    ShowAbortCertificate,
    ShowCertificate,
    ShowSurvivors,
    Unmasking,
    UploadArrived,
    UploadSeen,
    WindowOver,
)
from cohortium_aggregator.domain.strict_states import AssembleModel, Progress, Stepping
from cohortium_aggregator.store import rounds, runs, windows
from cohortium_aggregator.store.windows import Session, SumWindow
from cohortium_kit.db import Tx
from cohortium_messages.events import StrictSessionSummed, WindowEnded
from cohortium_messages.ids import SiteId
from cohortium_messages.registry import Message
from cohortium_messages.runs import EvaluationResult, SessionClosed
from cohortium_messages.secure_sum import AbortAsked, AbortVote, Echo, EchoCert, ModelRef, Receipt, WindowClosed
from cohortium_messages.withdrawals import SumSetAside
from cohortium_protocol.errors import VectorRefused
from cohortium_protocol.opening import check_vector, make_abort_cert, make_echo_cert, make_survivors
from cohortium_protocol.signing import site_key_id
from cohortium_protocol.survivors import SurvivorSet


@dataclass(frozen=True, slots=True)
class Result:
    """What came of an opened sum, or of a session, for the scheduler. `trees`: boosting rounds of the model."""

    model: ModelRef | None = None
    parameters: int | None = None
    training_rows: int | None = None
    saturated_sites: int = 0
    evaluation: EvaluationResult | None = None
    refine: bool = False
    trees: int | None = None


NOTHING = Result()


async def move(ctx: Context, tx: Tx, window: SumWindow, command: Command, result: Result = NOTHING) -> SumWindow:
    """Give the window a command; save where it then stands and send what follows from it.

    Sites whose permission has ended leave first, without a message: a sum that is not fixed yet is fixed without them.
    """
    window = _up_to_date(ctx, window)
    if isinstance(window.state, Collecting):
        for index in window.session.expired(ctx.clock.now()):
            window = await _step(ctx, tx, window, MemberLeft(index), result)
    return await _step(ctx, tx, window, command, result)


async def _step(ctx: Context, tx: Tx, window: SumWindow, command: Command, result: Result) -> SumWindow:
    state, events = advance(window.session.terms, window.state, command, ctx.clock.now())
    after = replace(window, state=state)
    course = _Course(ctx, tx, after, result)
    sent = 0
    for event in events:
        sent += await course.publish(event)
    if sent or state is not window.state:
        after = replace(after, bytes_down=after.bytes_down + sent)
        await windows.save_state(tx, after)
    return after


def _up_to_date(ctx: Context, window: SumWindow) -> SumWindow:
    """A strict session that this process holds has come further than its record says."""
    held = ctx.held.get(window.session.window_id)
    if held is None or not isinstance(window.state, Stepping):
        return window
    return replace(window, state=replace(window.state, progress=held.progress))


async def to_member(ctx: Context, tx: Tx, session: Session, index: int, message: Message, *about: str | int) -> int:
    """A message of this window to one of its sites. The same `about` gives the same message id."""
    unique = message_id(session.window_id, session.step, message.type_name, index, *about) if about else None
    return await ctx.post.to_site(tx, session.site(index), message, study=session.study_id, unique=unique)


async def send_receipt(ctx: Context, tx: Tx, session: Session, index: int) -> None:
    """What is stored of one site's upload."""
    upload = await windows.find_upload(tx, session, index)
    digests = await windows.chunk_digests(tx, session, index)
    stored = bytearray(-(-session.plan.chunk_count // 8))
    for chunk in digests:
        stored[chunk // 8] |= 1 << (chunk % 8)
    receipt = Receipt(
        window_id=session.window_id,
        step=session.step,
        header_stored=upload is not None,
        chunks_stored=bytes(stored),
        complete=upload is not None and upload.complete,
    )
    await to_member(ctx, tx, session, index, receipt)


async def try_complete(ctx: Context, tx: Tx, window: SumWindow, index: int) -> SumWindow:
    """If header and all chunks of a site are stored and fit each other: its upload has arrived."""
    session = window.session
    upload = await windows.find_upload(tx, session, index)
    if not isinstance(window.state, Collecting) or upload is None or upload.complete:
        return window
    if await windows.chunk_count(tx, session, index) < session.plan.chunk_count:
        return window
    header = await windows.find_header(tx, session, index)
    digests = await windows.chunk_digests(tx, session, index)
    if header is None:
        raise AssertionError("an upload row without its header")
    try:
        check_vector(header, [digests[chunk] for chunk in range(session.plan.chunk_count)], session.plan)
    except VectorRefused as fault:
        await record_fault(ctx, tx, session, index, fault.code)
        return window
    conflicts = conflicting(index, b"".join(header.edge_commits), await windows.complete_edges(tx, session))
    await windows.mark_complete(tx, session, index)
    await send_receipt(ctx, tx, session, index)
    return await move(ctx, tx, window, UploadArrived(index, upload.header_hash, conflicts))


async def record_fault(ctx: Context, tx: Tx, session: Session, index: int, code: str) -> None:
    """A member of this window broke the protocol. The same fault is told once."""
    key_id = site_key_id(session.site(index))
    unique = message_id(session.window_id, "fault", index, code)
    await ctx.post.fault(tx, key_id, code, study=session.study_id, window_id=session.window_id, unique=unique)


def conflicting(index: int, edges: bytes, others: Mapping[int, bytes]) -> frozenset[int]:
    """The sites among `others` whose commitment to the pair seed with `index` is not the one in `edges`.

    A site's commitments stand one behind the other, 32 bytes each, over the other members in ascending order.
    """

    def commitment(own: bytes, at: int, peer: int) -> bytes:
        place = 32 * (peer - 1 if peer < at else peer - 2)
        return own[place : place + 32]

    return frozenset(
        other
        for other, theirs in others.items()
        if other != index and commitment(edges, index, other) != commitment(theirs, other, index)
    )


@dataclass(frozen=True, slots=True)
class _Course:
    """One move of one window. `publish` returns the bytes that go to sites."""

    ctx: Context
    tx: Tx
    window: SumWindow
    result: Result

    @property
    def session(self) -> Session:
        return self.window.session

    async def publish(self, event: Event) -> int:
        match event:
            case ShowSurvivors(indices=indices, attempt=attempt):
                return await self._survivors(indices, attempt)
            case ShowCertificate(indices=indices, attempt=attempt):
                return await self._to(indices, self._certificate(), attempt)
            case AskAbort(indices=indices, reason=reason, attempt=attempt):
                ask = AbortAsked(window_id=self.session.window_id, step=self.session.step, reason=reason)
                return await self._to(indices, ask, attempt)
            case ShowAbortCertificate(indices=indices, attempt=attempt):
                return await self._abort_certificate(indices, attempt)
            case OpenSum():
                self._wake(self.ctx.wakes.opening)
                return 0
            case AssembleModel():
                self._wake(self.ctx.wakes.opening)
                self._wake(self.ctx.wakes.sessions)  # who holds the session may not know yet that it is over
                return 0
            case FaultFound(index=index, code=code):
                await record_fault(self.ctx, self.tx, self.session, index, code)
                return 0
            case SetAside(indices=indices, opened=opened):
                await self._set_aside(sorted(indices), opened)
                return 0
            case WindowOver(outcome=_, reason=_):
                return await self._over(event)
            case _:
                assert_never(event)

    def _wake(self, event: asyncio.Event) -> None:
        self.tx.after_commit(lambda _: event.set())

    async def _to(self, indices: frozenset[int], message: Message, attempt: int | None) -> int:
        about = () if attempt is None else (attempt,)
        sent = 0
        for index in sorted(indices):
            sent += await to_member(self.ctx, self.tx, self.session, index, message, *about)
        return sent

    async def _survivors(self, indices: frozenset[int], attempt: int) -> int:
        survivors = survivors_of(self.window)
        headers = await windows.headers_of(self.tx, self.session, survivors.members)
        sent = 0
        for index in sorted(indices):
            message = make_survivors(self.session.view, survivors, headers, index)
            sent += await to_member(self.ctx, self.tx, self.session, index, message, attempt)
        return sent

    def _certificate(self) -> EchoCert:
        state = self.window.state
        if not isinstance(state, Unmasking | Opening | Ended):
            raise AssertionError(f"{type(state).__name__} has no certificate")
        survivors = survivors_of(self.window)
        echoes = [
            Echo(
                window_id=self.session.window_id,
                step=self.session.step,
                survivors_hash=survivors.digest,
                index=index,
                sig=sig,
            )
            for index, sig in sorted(state.echoes.items())
        ]
        return make_echo_cert(self.session.view, survivors, echoes)

    async def _abort_certificate(self, indices: frozenset[int], attempt: int | None) -> int:
        state = self.window.state
        votes = state.votes if isinstance(state, Aborting | Ended) else {}
        made = [
            AbortVote(window_id=self.session.window_id, step=self.session.step, index=index, sig=sig)
            for index, sig in sorted(votes.items())
        ]
        return await self._to(indices, make_abort_cert(self.session.view, self.session.step, made), attempt)

    async def _over(self, event: WindowOver) -> int:
        """The end: sites, scheduler and log are told; what sites sent is forgotten."""
        session, state = self.session, self.window.state
        survivors = state.survivors if isinstance(state, Ended) else None
        closed = WindowClosed(
            window_id=session.window_id,
            step=session.step,
            state=event.outcome,
            reason=event.reason,
            survivors_hash=None if survivors is None else survivors.digest,
            model=self.result.model,
        )
        sent = await self._to(session.terms.everyone, closed, 0)
        await self._tell_scheduler(event, survivors, sent)
        ended = WindowEnded(
            run_id=session.run_id,
            window_id=session.window_id,
            purpose=session.params.purpose,
            state=event.outcome,
            reason=event.reason,
        )
        unique = message_id(session.window_id, session.step, ended.type_name)
        if isinstance(state, Ended) and state.progress is not None:
            await self._record_session(state.progress)
        await self.ctx.post.record(self.tx, ended, study=session.study_id, unique=unique)
        await windows.wipe_inputs(self.tx, session.window_id, session.step)
        return sent

    async def _set_aside(self, indices: Sequence[int], opened: bool) -> None:
        session = self.session
        event = SumSetAside(
            run_id=session.run_id, window_id=session.window_id, sites=sites_at(session, indices), opened=opened
        )
        unique = message_id(session.window_id, session.step, event.type_name)
        await self.ctx.post.record(self.tx, event, study=session.study_id, unique=unique)
        if session.params.strict is not None:
            await rounds.drop_rounds_after(self.tx, session.run_id, session.params.strict.trees_done)

    async def _record_session(self, progress: Progress) -> None:
        """A strict session is over: its key is forgotten, and the log learns what was opened in it."""
        session = self.session
        self._wake(self.ctx.wakes.sessions)
        await rounds.wipe_key(self.tx, session.window_id)
        summed = StrictSessionSummed(
            run_id=session.run_id,
            window_id=session.window_id,
            roster_hash=session.view.roster_hash,
            sites=session.sites,
            steps=progress.steps,
            sums=progress.sums,
            trees=progress.trees,
            chain=progress.chain,
        )
        unique = message_id(session.window_id, summed.type_name)
        await self.ctx.post.record(self.tx, summed, study=session.study_id, unique=unique)

    async def _tell_scheduler(self, event: WindowOver, survivors: SurvivorSet | None, sent: int) -> None:
        session, result = self.session, self.result
        within = survivors.members if survivors else tuple(await windows.complete_edges(self.tx, session))
        models = await runs.take_bytes_down(self.tx, session.run_id)
        closed = SessionClosed(
            run_id=session.run_id,
            window_id=session.window_id,
            purpose=session.params.purpose,
            state=event.outcome,
            reason=event.reason,
            survivors=sites_at(session, survivors.members) if survivors else (),
            dropped=sites_at(session, [index for index in session.view.indices if index not in within]),
            bytes_up=await windows.bytes_up(self.tx, session),
            bytes_down=self.window.bytes_down + sent + models,
            training_rows=result.training_rows,
            saturated_sites=result.saturated_sites,
            model=result.model,
            parameters=result.parameters,
            evaluation=result.evaluation,
            refine=result.refine,
            blamed=sites_at(session, sorted(self.window.state.blamed)) if isinstance(self.window.state, Ended) else (),
        )
        if isinstance(self.window.state, Ended) and self.window.state.progress is not None:
            trees = self.window.state.progress.trees if result.trees is None else result.trees
            closed = _of_session(session, self.window.state, self.window.state.progress, closed, trees)
        unique = message_id(session.window_id, session.step, closed.type_name)
        await self.ctx.post.to_scheduler(self.tx, closed, study=session.study_id, unique=unique)


def _of_session(session: Session, state: Ended, progress: Progress, closed: SessionClosed, trees: int) -> SessionClosed:
    """What a strict session's end says besides: all of the roster were in every sum, and `gone` ended it."""
    stayed = [index for index in session.view.indices if index not in state.gone]
    changed = {
        "survivors": sites_at(session, stayed) if progress.steps else (),
        "dropped": sites_at(session, sorted(state.gone)),
        "bytes_up": closed.bytes_up + progress.bytes_up,
        "bytes_down": closed.bytes_down + progress.bytes_down,
        "trees": trees,
        "chain": progress.chain,
        "steps": progress.steps,
    }
    return closed.model_copy(update=changed)


def sites_at(session: Session, indices: Sequence[int]) -> tuple[SiteId, ...]:
    return tuple(session.site(index) for index in indices)


def survivors_of(window: SumWindow) -> SurvivorSet:
    """U of a window that has one."""
    match window.state:
        case Echoing() | Unmasking() | Opening():
            return window.state.survivors
        case Ended(survivors=SurvivorSet() as survivors):
            return survivors
        case _:
            raise AssertionError(f"{type(window.state).__name__} has no survivor set")


async def show_end(ctx: Context, tx: Tx, window: SumWindow, index: int) -> None:
    """A site that comes when uploads are no longer taken is shown what frees its update, or that the window is over."""
    after = await move(ctx, tx, window, UploadSeen(index))
    if isinstance(after.state, Ended):
        survivors = after.state.survivors
        closed = WindowClosed(
            window_id=after.session.window_id,
            step=after.session.step,
            state=after.state.outcome,
            reason=after.state.reason,
            survivors_hash=None if survivors is None else survivors.digest,
        )
        await to_member(ctx, tx, after.session, index, closed)


async def cancel_unshown(ctx: Context, tx: Tx, window: SumWindow) -> None:
    """Close a window whose roster no site was shown: nothing was sent, so every update is free."""
    state = window.state
    if not isinstance(state, Ended):
        raise AssertionError("only an ended window can be cancelled unshown")
    sent = await _Course(ctx, tx, window, NOTHING).publish(WindowOver(state.outcome, state.reason))
    await windows.save_state(tx, replace(window, bytes_down=sent))
