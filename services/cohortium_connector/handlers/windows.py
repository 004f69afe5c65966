"""The messages of a window, in the order in which they come (`contracts/flow.md`)."""

import asyncio
from collections.abc import Callable
from datetime import datetime, timedelta

import structlog

from cohortium_connector.desk import BrokenProtocol, Desk
from cohortium_connector.domain.commands import (
    AbortCertified,
    AbortRequested,
    CertAccepted,
    Closed,
    Declined,
    RosterAccepted,
    SessionJoined,
    Superseded,
    SurvivorsAccepted,
    UploadComplete,
)
from cohortium_connector.domain.policy import HeldGrant, differs_by_one, noise_objection, objection
from cohortium_connector.domain.window import has_left, left_out
from cohortium_connector.domain.window_states import (
    FINAL,
    AbortVoted,
    Bound,
    Echoed,
    Freed,
    Idle,
    Place,
    ReadySent,
    RosterOk,
    Unmasked,
    Uploaded,
    UploadSaved,
)
from cohortium_connector.handlers.authorisation import Authorisations
from cohortium_connector.handlers.sessions import bind_cohort, objection_to_cohort
from cohortium_connector.ledger.proofs import Aborted, Excluded
from cohortium_connector.sealing import STEP
from cohortium_connector.store import models, products, studies, windows
from cohortium_connector.store.windows import Material, WindowRecord
from cohortium_connector.witness import DAMAGED
from cohortium_kit.consumer import Received
from cohortium_kit.db import Tx
from cohortium_messages.events import FaultSeen, SharesGiven, TaskTaken
from cohortium_messages.ids import RunId
from cohortium_messages.registry import Message
from cohortium_messages.secure_sum import (
    AbortAsked,
    AbortCert,
    EchoCert,
    ModelRef,
    Receipt,
    Roster,
    Survivors,
    WindowClosed,
    WindowOpen,
    WindowParams,
)
from cohortium_messages.study import NoiseRecipe
from cohortium_privacy.study_plans import accountant_installed
from cohortium_privacy.windows import formal
from cohortium_protocol.errors import BadSignature
from cohortium_protocol.keys import WindowKeys
from cohortium_protocol.survivors import (
    CheckedSurvivors,
    OwnUpload,
    build_abort_vote,
    build_echo,
    build_unmask,
    check_survivors,
    verify_abort_cert,
    verify_echo_cert,
)
from cohortium_protocol.window import RosterView, verify_roster, verify_window
from cohortium_protocol.witness import LogForked

log = structlog.get_logger(__name__)


class WindowHandlers:
    """Trips 1 to 4 of the secure sum at the site, rules R1 to R9."""

    def __init__(self, desk: Desk, expect: Callable[[RunId, ModelRef], None] = lambda _run, _ref: None) -> None:
        self._desk = desk
        self._expect = expect
        self._authorisations = Authorisations(desk)

    # Trip 1

    async def on_window_open(self, tx: Tx, received: Received[WindowOpen]) -> None:
        """A sum is wanted: check who asks and what for, before any row is read (rules R2 and R7)."""
        by, desk, message = "on_window_open", self._desk, received.message
        params = message.params
        try:
            digest = verify_window(message, desk.identity.scheduler_pk)
        except BadSignature:
            await desk.refuse(tx, params, "BAD_SCHEDULER_SIGNATURE")
            fault = FaultSeen(key_id=received.key_id, code="BAD_SCHEDULER_SIGNATURE", window_id=params.window_id)
            await desk.record(tx, fault, params.study_id)
            return
        known = await windows.find_window(tx, params.window_id)
        if known is not None:
            if known.params_hash != digest:
                raise BrokenProtocol("WINDOW_REPLAYED", received.key_id, params.window_id, params.study_id)
            return
        held = await self._objection(tx, message, digest)
        expires_at = _expiry(params, desk.clock.now())
        if isinstance(held, str):
            log.warning("task_refused", study=params.study_id, window=params.window_id.hex(), code=held)
            await windows.add_window(tx, params, digest, Freed(held), expires_at, by=by)
            await windows.wipe_material(tx, params.window_id)
            await desk.refuse(tx, params, held)
            return
        for older in await windows.open_windows(tx, params.study_id):
            await desk.step(tx, older, Superseded(), by=by)
        await windows.add_window(tx, params, digest, Idle(), expires_at, by=by)
        taken = TaskTaken(
            run_id=params.run_id,
            window_id=params.window_id,
            site_id=desk.identity.site_id,
            grant_digest=held.digest,
        )
        await desk.record(tx, taken, params.study_id)
        log.info("task_taken", study=params.study_id, run=params.run_id, window=params.window_id.hex())

    async def _objection(self, tx: Tx, message: WindowOpen, digest: bytes) -> HeldGrant | str:
        desk, params = self._desk, message.params
        if desk.witness.forked():
            return LogForked.code
        if desk.witness.damaged():
            return DAMAGED  # what cannot be read may have told of a fork
        if await models.retired(tx, params.bases):
            return "MODEL_RETIRED"
        facts = await studies.facts(tx, params.study_digest)
        if facts is not None and facts.manifest is not None and facts.study.name == params.study_id:
            unlogged = await self._authorisations.objection(tx, message, digest)
            if unlogged is not None:
                return unlogged
        if facts is not None and formal(facts.study) is not None and not accountant_installed():
            remedy = "install it: pip install 'cohortium[privacy]'"
            log.error("accountant_missing", study=params.study_id, reason=remedy)
            return "POLICY_REFUSED"
        # A private study's plan is made here too, which may take a second.
        held = await asyncio.to_thread(objection, params, facts, desk.site, desk.policy, desk.clock.now())
        if isinstance(held, str) or facts is None:
            if facts is not None and facts.manifest is not None and held == "POLICY_REFUSED":
                reason = await asyncio.to_thread(noise_objection, params, facts.study, facts.manifest)
                if reason is not None:
                    log.warning("noise_refused", study=params.study_id, window=params.window_id.hex(), reason=reason)
            return held
        reads_rows = not isinstance(facts.study.recipe, NoiseRecipe)
        if reads_rows and desk.settings.dataset(params.study_id) is None:
            return "DATA_NOT_FOUND"
        return held

    # Trip 2

    async def on_roster(self, tx: Tx, received: Received[Roster]) -> None:
        """Who takes part (rule R3). The upload, or the steps of a strict session, are made outside, from the spool."""
        by, desk, message = "on_roster", self._desk, received.message
        window = await self._find(tx, received, message.window_id)
        if window is None:
            return
        material = await windows.material(tx, window.window_id)
        if isinstance(window.state, Idle) or material.ready is None:
            raise BrokenProtocol("ROSTER_UNASKED", received.key_id, window.window_id, window.study_id)
        manifest = await studies.manifest_by_hash(tx, window.params.manifest_hash)
        if manifest is None:
            raise BrokenProtocol("NOT_A_MEMBER", received.key_id, window.window_id, window.study_id)
        view = await asyncio.to_thread(verify_roster, message, window.params, manifest, material.ready)
        place = Place(view.roster_hash, view.index_of(desk.identity.site_id))
        strict = window.params.kind == "strict"
        if isinstance(window.state, ReadySent):
            code = await self._roster_objection(tx, window, view)
            if code is not None:
                await self._decline_roster(tx, window, code)
                return
            await windows.keep_documents(tx, window.window_id, message)
            if strict:
                await bind_cohort(tx, desk, window, view, by=by)
        command = SessionJoined(place) if strict else RosterAccepted(place)
        await desk.step(tx, window, command, by=by, key_id=received.key_id)

    async def _roster_objection(self, tx: Tx, window: WindowRecord, view: RosterView) -> str | None:
        if view.n < max(self._desk.policy.min_cohort, window.params.least_cohort):
            return "COHORT_TOO_SMALL"
        return await objection_to_cohort(tx, self._desk, window, view) if window.params.kind == "strict" else None

    async def _decline_roster(self, tx: Tx, window: WindowRecord, code: str) -> None:
        desk = self._desk
        log.warning("roster_refused", study=window.study_id, window=window.window_id.hex(), code=code)
        await desk.step(tx, window, Declined(code), by="on_roster")
        await desk.refuse(tx, window.params, code)
        if window.params.kind == "strict":  # the others wait for every step of ours
            await desk.leave_session(tx, window, code, STEP)

    async def on_receipt(self, tx: Tx, received: Received[Receipt]) -> None:
        """What the aggregator has. The sender of the chunks looks at it, and sends what is missing."""
        message = received.message
        window = await self._find_sum(tx, received, message.window_id)
        if window is None or not isinstance(window.state, UploadSaved):
            return
        _check_step(message.step, received, window)
        await windows.keep_documents(tx, window.window_id, message)
        if message.complete:
            await self._desk.step(tx, window, UploadComplete(), by="on_receipt")
            log.info("upload_received", study=window.study_id, window=window.window_id.hex())

    # Trips 3 and 4

    async def on_survivors(self, tx: Tx, received: Received[Survivors]) -> None:
        """Whose uploads are to be summed (rules R4 and R9). Confirmed once, and after that only the same again."""
        by, desk, message = "on_survivors", self._desk, received.message
        window = await self._find_sum(tx, received, message.window_id)
        if window is None or not isinstance(window.state, RosterOk | UploadSaved | Uploaded | Echoed | Unmasked):
            return
        _check_step(message.step, received, window)
        material = await windows.material(tx, window.window_id)
        view = await desk.view(tx, window, material)
        checked = await self._checked(window.state, view, material, message)
        shown = SurvivorsAccepted(checked.survivors.digest, checked.survivors.members)
        if isinstance(window.state, RosterOk | UploadSaved | Uploaded):
            code = await self._refusal(tx, window, view, checked)
            if code is not None:
                log.warning("survivors_refused", study=window.study_id, window=window.window_id.hex(), code=code)
                await desk.refuse(tx, window.params, code)
                return
            echo = build_echo(view, checked, desk.identity.key)
            await windows.keep_documents(tx, window.window_id, message, echo)
            await desk.promise(tx, by=by)
            await self._remember_set(tx, window, view, checked)
        await desk.step(tx, window, shown, by=by, key_id=received.key_id)
        if material.cert is not None:
            again = await windows.find_window(tx, window.window_id)
            if again is not None and isinstance(again.state, Echoed):
                await self._certified(tx, again, material.cert, received.key_id)

    async def _checked(
        self, state: Bound, view: RosterView, material: Material, message: Survivors
    ) -> CheckedSurvivors:
        if material.keys is None:
            raise LookupError("the window's keys are gone")
        own = None
        if material.header is not None and material.own_box is not None:
            own = OwnUpload(material.header, material.own_box)
        seal = WindowKeys.from_bytes(material.keys).seal
        return await asyncio.to_thread(check_survivors, view, message, state.place.index, own, seal)

    async def _refusal(self, tx: Tx, window: WindowRecord, view: RosterView, checked: CheckedSurvivors) -> str | None:
        """Why the hospital does not confirm this set, or None."""
        policy = self._desk.policy
        members = frozenset(view.entry(index).site_id for index in checked.survivors.members)
        noise = window.params.noise
        # The noise was shared out so that it is enough from `least_cohort` sites on.
        least = policy.min_cohort if noise is None else max(policy.min_cohort, window.params.least_cohort)
        if len(members) < least:
            return "COHORT_TOO_SMALL"
        if noise is not None:
            return None  # R9 is for sums without noise: in the difference of two private ones is the noise of both
        product = await products.product_of_window(tx, window.window_id)
        if (
            policy.refuse_cohort_differing_by_one is False
            or product is None
            or checked.index not in checked.survivors.members
        ):
            return None
        earlier = await windows.comparable_sets(tx, window.study_id, window.params.purpose, product.base_model_hash)
        return "COHORT_DIFFERS_BY_ONE" if differs_by_one(members, earlier) else None

    async def _remember_set(self, tx: Tx, window: WindowRecord, view: RosterView, checked: CheckedSurvivors) -> None:
        product = await products.product_of_window(tx, window.window_id)
        if product is not None and checked.index in checked.survivors.members:
            members = [view.entry(index).site_id for index in checked.survivors.members]
            await windows.confirm_set(tx, window.params, product.base_model_hash, members)

    async def on_echo_cert(self, tx: Tx, received: Received[EchoCert]) -> None:
        """t sites confirmed one set: answer with the shares of rule R5, or learn that it leaves this site out (R6)."""
        message = received.message
        window = await self._find_sum(tx, received, message.window_id)
        if window is None or isinstance(window.state, Idle | ReadySent):
            return
        _check_step(message.step, received, window)
        await self._certified(tx, window, message, received.key_id)

    async def _certified(self, tx: Tx, window: WindowRecord, cert: EchoCert, key_id: str) -> None:
        by, desk, state = "on_echo_cert", self._desk, window.state
        material = await windows.material(tx, window.window_id)
        view = await desk.view(tx, window, material)
        certified = await asyncio.to_thread(verify_echo_cert, view, cert)
        if isinstance(state, RosterOk | UploadSaved | Uploaded) and state.place.index in certified.members:
            # The echo was missed: the set is checked when it is shown, then this certificate is used.
            await windows.keep_documents(tx, window.window_id, cert)
            return
        if isinstance(state, Echoed) and state.survivors_hash == certified.digest:
            await self._make_unmask(tx, window, view, material, cert)
        if left_out(state, certified.digest, certified.members):
            await desk.charges.refund(tx, window.params, Excluded(view, cert), by=by)
        await desk.step(tx, window, CertAccepted(certified.digest, certified.members), by=by, key_id=key_id)

    async def _make_unmask(
        self, tx: Tx, window: WindowRecord, view: RosterView, material: Material, cert: EchoCert
    ) -> None:
        """Rule R5, saved before it is sent: never both masks of one site, one answer for each window."""
        desk, state = self._desk, window.state
        if not isinstance(state, Echoed) or material.survivors is None:
            raise LookupError(f"window {window.window_id.hex()} has confirmed no set")
        checked = await self._checked(state, view, material, material.survivors)
        seal_pk = window.params.aggregator_seal_pk
        unmask = await asyncio.to_thread(build_unmask, view, checked, cert, desk.identity.key, seal_pk)
        await windows.keep_documents(tx, window.window_id, unmask)
        await desk.promise(tx, by="on_echo_cert")
        given = SharesGiven(
            run_id=window.run_id,
            window_id=window.window_id,
            site_id=desk.identity.site_id,
            survivors_hash=state.survivors_hash,
        )
        await desk.record(tx, given, window.study_id)

    # Ends

    async def on_abort_asked(self, tx: Tx, received: Received[AbortAsked]) -> None:
        """Promise never to unmask this window, unless that was done already."""
        by, desk, message = "on_abort_asked", self._desk, received.message
        window = await self._find_sum(tx, received, message.window_id)
        if window is None or not isinstance(window.state, RosterOk | UploadSaved | Uploaded | Echoed | AbortVoted):
            return
        _check_step(message.step, received, window)
        if not isinstance(window.state, AbortVoted):
            material = await windows.material(tx, window.window_id)
            view = await desk.view(tx, window, material)
            vote = build_abort_vote(view, STEP, window.state.place.index, desk.identity.key)
            await windows.keep_documents(tx, window.window_id, vote)
            await desk.promise(tx, by=by)
        await desk.step(tx, window, AbortRequested(), by=by)

    async def on_abort_cert(self, tx: Tx, received: Received[AbortCert]) -> None:
        """Enough promises that no sum of this window can open: the update is free again (rule R6)."""
        message = received.message
        window = await self._find_sum(tx, received, message.window_id)
        if window is None or isinstance(window.state, Idle | ReadySent):
            return
        _check_step(message.step, received, window)
        material = await windows.material(tx, window.window_id)
        view = await self._desk.view(tx, window, material)
        await asyncio.to_thread(verify_abort_cert, view, message)
        if has_left(window.state):
            await self._desk.charges.refund(tx, window.params, Aborted(view, message), by="on_abort_cert")
        await self._desk.step(tx, window, AbortCertified(), by="on_abort_cert")

    async def on_window_closed(self, tx: Tx, received: Received[WindowClosed]) -> None:
        """How the platform says the window ended. Without a certificate that frees it, an update that left is spent."""
        message = received.message
        if received.key_id == "service:scheduler" and message.state != "CANCELLED":
            raise BrokenProtocol("WRONG_SENDER", received.key_id, message.window_id)
        window = await windows.find_window(tx, message.window_id)
        if window is None:
            return
        state = await self._desk.step(tx, window, Closed(message.state), by="on_window_closed")
        await self._expect_next(tx, window, message.model)
        log.info(
            "window_closed",
            study=window.study_id,
            window=window.window_id.hex(),
            state=state.phase,
            reason=message.reason or message.state,
        )

    async def _expect_next(self, tx: Tx, window: WindowRecord, made: ModelRef | None) -> None:
        """Have the model fetched that came of a round this site took part in: the next round starts from it, and asks
        for consent and the log meanwhile. If that names another model after all, that one is fetched, and this one
        forgotten."""
        params = window.params
        if made is None or params.kind != "sync" or not has_left(window.state):
            return
        offer = await studies.find_offer(tx, params.study_digest)
        if offer is None:
            return
        rounds = offer.study.federation.rounds
        last = params.purpose == "update" and rounds is not None and params.round >= rounds
        if not last or offer.study.metrics:
            tx.after_commit(lambda _: self._expect(params.run_id, made))

    async def _find_sum(self, tx: Tx, received: Received[Message], window_id: bytes) -> WindowRecord | None:
        """The open window of one sum. In a strict session nobody echoes, votes or unmasks: being asked to is a
        fault."""
        window = await self._find(tx, received, window_id)
        if window is not None and window.params.kind == "strict":
            raise BrokenProtocol("WRONG_WINDOW", received.key_id, window_id, window.study_id)
        return window

    async def _find(self, tx: Tx, received: Received[Message], window_id: bytes) -> WindowRecord | None:
        """The window if it is open; None if it has ended. One that was never opened here is a fault."""
        window = await windows.find_window(tx, window_id)
        if window is None:
            raise BrokenProtocol("WINDOW_UNKNOWN", received.key_id, window_id)
        return None if window.state.phase in FINAL else window


def _check_step(step: int, received: Received[Message], window: WindowRecord) -> None:
    if step != STEP:
        raise BrokenProtocol("WRONG_WINDOW", received.key_id, window.window_id, window.study_id)


def _expiry(params: WindowParams, now: datetime) -> datetime:
    """When the window is given up if nobody says how it ended: every trip may be extended once. A strict session has
    its time from its roster on put off by each result."""
    limits = params.deadlines
    seconds = 4 * limits.ready_s + 2 * limits.upload_s + limits.echo_s + limits.unmask_s + limits.expire_s
    return now + timedelta(seconds=seconds)
