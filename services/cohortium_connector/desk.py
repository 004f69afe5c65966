"""What every part of the connector works with: its identity, its policy, its post, and windows moved on in one way."""

import asyncio
from dataclasses import dataclass, field

import structlog

from cohortium_connector.charges import Charges
from cohortium_connector.domain.commands import (
    Command,
    DiscardProduct,
    Effect,
    FreeProduct,
    LeaveSession,
    Report,
    Send,
    WipeSecrets,
)
from cohortium_connector.domain.policy import HeldGrant, Policy, Site, permission
from cohortium_connector.domain.window import advance
from cohortium_connector.domain.window_states import Done, Freed, Spent, State
from cohortium_connector.feedback import feeds_back
from cohortium_connector.identity import Identity
from cohortium_connector.ledger.anchor import Anchor
from cohortium_connector.ledger.service import Ledger
from cohortium_connector.settings import ConnectorSettings
from cohortium_connector.spool import Spool
from cohortium_connector.store import log_watch, products, residuals, site, studies, windows
from cohortium_connector.store.windows import Material, WindowRecord
from cohortium_connector.witness import WitnessBook
from cohortium_kit import chains
from cohortium_kit.clock import Clock
from cohortium_kit.db import Database, Tx
from cohortium_kit.errors import Poison
from cohortium_messages.events import AuditEvent, FaultSeen, TaskDeclined, WitnessNamed
from cohortium_messages.ids import StudyId
from cohortium_messages.registry import Message
from cohortium_messages.runs import TaskRefused
from cohortium_messages.secure_sum import SessionLeft, WindowParams
from cohortium_messages.topology import UPLINK, uplink_key
from cohortium_protocol.consent.authorise import told
from cohortium_protocol.errors import NotAMember
from cohortium_protocol.window import RosterView, verify_roster

log = structlog.get_logger(__name__)
VIEWS_KEPT = 16


class BrokenProtocol(Poison):
    """The message breaks the protocol: it is parked, and the fault goes to the audit log under its sender's key id."""

    def __init__(self, code: str, key_id: str, window_id: bytes | None = None, study: StudyId | None = None) -> None:
        super().__init__(code.lower())
        self.event = FaultSeen(key_id=key_id, code=code, window_id=window_id)
        self.study = study


@dataclass(frozen=True, slots=True)
class Desk:
    """Shared by handlers, workers and commands. Holds no state but checked rosters, which can be checked again."""

    identity: Identity
    settings: ConnectorSettings
    spool: Spool
    clock: Clock
    charges: Charges = field(init=False, repr=False)
    witness: WitnessBook = field(init=False, repr=False)
    _views: dict[bytes, RosterView] = field(default_factory=dict, repr=False)
    _promised: asyncio.Event = field(default_factory=asyncio.Event, repr=False)
    """Set while a promise may be saved that `note_promises` has not seen."""

    def __post_init__(self) -> None:
        limits, anchor = self.settings.privacy.limits, Anchor(self.spool.ledger_head)
        ledger = Ledger(self.identity.site_id, self.identity.key, limits, anchor, self.post)
        object.__setattr__(self, "charges", Charges(ledger, limits))
        object.__setattr__(self, "witness", WitnessBook(self.spool.witness))

    @property
    def policy(self) -> Policy:
        policy = self.settings.policy
        return Policy(policy.min_cohort, policy.min_collusion, policy.refuse_cohort_differing_by_one)

    @property
    def site(self) -> Site:
        identity = self.identity
        return Site(identity.site_id, identity.key.public, identity.aggregator_seal_pk, identity.pin)

    async def permission(self, tx: Tx, study_digest: bytes, round_: int) -> HeldGrant | str:
        """The grant under which this hospital may work for this round now, or the code of the first reason against it.
        Asked before the first row is read and again before an upload is made."""
        offer = await studies.find_offer(tx, study_digest)
        if offer is None:
            return "STUDY_UNKNOWN"
        facts = await studies.facts(tx, study_digest)
        if facts is None:
            raise LookupError("an offer has no study")
        answer = permission(facts, self.site, round_, self.clock.now())
        if isinstance(answer, HeldGrant):
            return answer
        log.warning("not_permitted", study=offer.study_id, round=round_, reasons=[told(one) for one in answer])
        return answer[0].code

    # Post

    async def post(self, tx: Tx, service: str, message: Message, study: StudyId | None = None) -> None:
        """Send a message to a service, after the commit; messages to one service arrive in order. An event is recorded,
        which gives it its place in the chain."""
        if isinstance(message, AuditEvent):
            await self.record(tx, message, study)
            return
        key = uplink_key(self.identity.site_id, service)
        await tx.send(self.identity.sender.outgoing(UPLINK.name, key, message, study=study), ordering_key=service)

    async def record(self, tx: Tx, event: AuditEvent, study: StudyId | None) -> None:
        """Send an event to the audit log, and keep it until the log of the study proves that it holds it."""
        key = uplink_key(self.identity.site_id, "audit")
        sender = self.identity.sender
        outgoing = await chains.record(
            tx, sender, event, exchange=UPLINK.name, routing_key=key, ordering_key="audit", study=study
        )
        # The log of a study in which this hospital is no member takes nothing from it.
        if outgoing is not None and study is not None and await studies.is_member(tx, study):
            await log_watch.await_event(tx, study, outgoing)

    async def name_witness(self, tx: Tx, study: StudyId) -> None:
        """Say in the study's log with which key this site cosigns it, unless that was said."""
        key = self.witness.key.public
        if self.witness.state(study).named == key:
            return
        await self.record(tx, WitnessNamed(site_id=self.identity.site_id, witness_key=key), study)
        # After the commit: named twice is harmless, never named is not.
        tx.after_commit(lambda _: self.witness.note_named(study, key))

    async def refuse(self, tx: Tx, params: WindowParams, code: str, column: str | None = None) -> None:
        """Tell the scheduler and the log that this site takes no part: a code, and at most a column's public name."""
        site_id = self.identity.site_id
        refused = TaskRefused(
            window_id=params.window_id, run_id=params.run_id, site_id=site_id, code=code, column=column or None
        )
        await self.post(tx, "scheduler", refused, params.study_id)
        declined = TaskDeclined(run_id=params.run_id, window_id=params.window_id, site_id=site_id, code=code)
        await self.record(tx, declined, params.study_id)

    async def leave_session(self, tx: Tx, window: WindowRecord, code: str, step: int) -> None:
        """Tell the aggregator that no more steps of a strict session will come from here: a code, no more."""
        left = SessionLeft(window_id=window.window_id, step=step, code=code)
        await self.post(tx, "aggregator", left, window.study_id)

    # Windows

    async def view(self, tx: Tx, window: WindowRecord, material: Material) -> RosterView:
        """The roster that was accepted for this window, checked (rule R3)."""
        known = self._views.get(window.window_id)
        if known is not None:
            return known
        if material.roster is None or material.ready is None:
            raise LookupError(f"window {window.window_id.hex()} has no roster")
        manifest = await studies.manifest_by_hash(tx, window.params.manifest_hash)
        if manifest is None:
            raise NotAMember("the window's manifest is not known here")
        view = verify_roster(material.roster, window.params, manifest, material.ready)
        while len(self._views) >= VIEWS_KEPT:
            self._views.pop(next(iter(self._views)))
        self._views[window.window_id] = view
        return view

    async def step(
        self,
        tx: Tx,
        window: WindowRecord,
        command: Command,
        *,
        by: str,
        key_id: str = "",
    ) -> State:
        """Move a window on and do what follows from it, all in this transaction.

        What is to be sent was put with the window's material before.
        """
        state, effects = advance(window.state, command)
        for effect in effects:
            await self._apply(tx, window, state, effect, by=by, key_id=key_id)
        if state is not window.state:
            await windows.save_state(tx, window.window_id, state, by=by)
            if isinstance(state, Done | Freed | Spent) and feeds_back(window.params):
                ends = {"released": isinstance(state, Done), "freed": isinstance(state, Freed)}
                await residuals.settle(tx, window.run_id, window.window_id, **ends, by=by)
        return state

    async def _apply(self, tx: Tx, window: WindowRecord, state: State, effect: Effect, *, by: str, key_id: str) -> None:
        match effect:
            case Send():
                await self._send_saved(tx, window, effect)
            case LeaveSession(code=code, step=stood_at):
                await self.leave_session(tx, window, code, stood_at)
                site_id = self.identity.site_id
                declined = TaskDeclined(run_id=window.run_id, window_id=window.window_id, site_id=site_id, code=code)
                await self.record(tx, declined, window.study_id)
            case FreeProduct():
                await products.release(tx, window.window_id, by=by)
                if isinstance(state, Freed):
                    await windows.forget_set(tx, window.window_id)
            case DiscardProduct():
                product = await products.product_of_window(tx, window.window_id)
                if product is not None:
                    await products.delete_product(tx, product.product_id)
            case WipeSecrets():
                self._views.pop(window.window_id, None)
                await windows.wipe_material(tx, window.window_id)
            case Report(code=code):
                event = FaultSeen(key_id=key_id or "service:aggregator", code=code, window_id=window.window_id)
                await self.record(tx, event, window.study_id)

    async def _send_saved(self, tx: Tx, window: WindowRecord, effect: Send) -> None:
        saved = await windows.material(tx, window.window_id)
        message: Message | None
        match effect.what:
            case "ready":
                message = saved.ready
            case "upload":
                message = saved.header
            case "echo":
                message = saved.echo
            case "unmask":
                message = saved.unmask
            case "abort_vote":
                message = saved.vote
        if message is None:
            raise LookupError(f"window {window.window_id.hex()} has no saved {effect.what}")
        service = "scheduler" if effect.what == "ready" else "aggregator"
        await self.post(tx, service, message, window.study_id)

    async def promise(self, tx: Tx, *, by: str) -> None:
        """Count a promise that must not be made twice (rule R8). After the commit, `note_promises`."""
        self._promised.set()
        await site.next_generation(tx, by=by)

    async def note_promises(self, db: Database, *, unsure: bool = False) -> None:
        """Write the number of the newest saved promise where a copy of the database alone does not reach (rule R8), and
        where the privacy ledger stands.

        `unsure`: look even if no promise was made since the last look, as after a start.
        """
        await self.charges.note(db)
        if not (unsure or self._promised.is_set()):
            return
        self._promised.clear()
        async with db.reading("note_promises") as tx:
            record = await site.find_site(tx)
        if record is not None and record.generation > self.spool.read_generation():
            await asyncio.to_thread(self.spool.write_generation, record.generation)
