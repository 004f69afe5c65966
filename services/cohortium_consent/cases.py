"""Withdrawals as cases: opened by what a hospital, its people or an officer signed, moved on by what people decide and
the scheduler reports, proven by a signed receipt. Each move and the messages that follow are one transaction."""

import hashlib
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import sqlalchemy as sa
import structlog
from pydantic import TypeAdapter

from cohortium_consent import store
from cohortium_consent.domain import Granted
from cohortium_consent.store import consent_records, metadata
from cohortium_consent.withdrawals import (
    Case,
    Close,
    Command,
    Deadline,
    Decide,
    Decision,
    EffectDecided,
    Finish,
    Follow,
    Limits,
    Proven,
    Received,
    Refuse,
    Start,
    Trace,
    Verified,
    Verify,
    advance,
    deadlines,
    unlisted,
)
from cohortium_kit.clock import Clock
from cohortium_kit.consumer import Received as Delivered
from cohortium_kit.db import Tx
from cohortium_kit.envelopes import Sender
from cohortium_kit.errors import Poison, TryLater
from cohortium_messages.consent import ConsentFile, Effect, Record, Withdrawal, WithdrawalEffect
from cohortium_messages.events import AuditEvent
from cohortium_messages.governance import GrantWithdrawn
from cohortium_messages.ids import SiteId, StudyId
from cohortium_messages.topology import SERVICES
from cohortium_messages.withdrawals import (
    EffectDone,
    EffectOrdered,
    EffectRefused,
    EffectStarted,
    WithdrawalClosed,
    WithdrawalDecided,
    WithdrawalEffective,
    WithdrawalExtended,
    WithdrawalFollowed,
    WithdrawalNoticed,
    WithdrawalOverdue,
    WithdrawalProven,
    WithdrawalRecorded,
    WithdrawalTraced,
)
from cohortium_platform.recording import put_on_record
from cohortium_protocol.attest import sign_statement
from cohortium_protocol.consent.authorise import IN_FORCE, Dossier
from cohortium_protocol.consent.intake import NotAccepted
from cohortium_protocol.consent.promises import is_weaker, promised_effect
from cohortium_protocol.consent.signing import record_digest
from cohortium_protocol.documents import GovernancePin, withdrawal_digest
from cohortium_protocol.receipts import receipt_statement
from cohortium_protocol.signing import IdentityKey, service_key_id

log = structlog.get_logger(__name__)
case_table = sa.Table(
    "withdrawal_case",
    metadata,
    sa.Column("digest", sa.LargeBinary, primary_key=True),
    sa.Column("study_id", sa.Text, nullable=False),
    sa.Column("study_digest", sa.LargeBinary, nullable=False),
    sa.Column("site_id", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("case_json", sa.Text, nullable=False),
    sa.Column("updated_at", sa.Double, nullable=False),
    sa.Column("updated_by", sa.Text, nullable=False),
)
_CASE: TypeAdapter[Case] = TypeAdapter(Case)
ENDED = ("PROVEN", "CLOSED")
StopGrants = Callable[[Tx, Sequence[Granted], str], Awaitable[None]]


def event_id(digest: bytes, kind: type[AuditEvent], number: int = 1) -> str:
    """The id of the one event of this type about a withdrawal: made again it is the same. `number`: of those that may
    come more than once, which one."""
    about = f"{digest.hex()}|{kind.type_name}"
    return hashlib.sha256((about if number == 1 else f"{about}|{number}").encode()).hexdigest()


def proof_id(case: Case) -> str:
    """The id of the event that proves the receipt which the case has, or of its first one."""
    return event_id(case.digest, WithdrawalProven, max(case.receipts, 1))


async def save_case(tx: Tx, case: Case) -> None:
    """Insert or replace a case."""
    row: dict[str, Any] = {
        "digest": case.digest,
        "study_id": case.study_id,
        "study_digest": case.study_digest,
        "site_id": case.site_id,
        "state": case.word,
        "case_json": _CASE.dump_json(case).decode(),
        "updated_at": tx.now,
        "updated_by": tx.name,
    }
    done = await tx.execute(sa.update(case_table).where(case_table.c.digest == case.digest).values(row))
    if done.rowcount == 0:
        await tx.execute(sa.insert(case_table).values(row))


async def find_case(tx: Tx, digest: bytes) -> Case | None:
    """The case, or None."""
    text = await tx.scalar(sa.select(case_table.c.case_json).where(case_table.c.digest == digest))
    return None if text is None else _CASE.validate_json(text)


async def cases_of(tx: Tx, study_id: StudyId | None = None, *, open_only: bool = False) -> list[Case]:
    """All cases, of a study or of all, the oldest first."""
    query = sa.select(case_table.c.case_json)
    if study_id is not None:
        query = query.where(case_table.c.study_id == study_id)
    if open_only:
        query = query.where(case_table.c.state.not_in(ENDED))
    found = [_CASE.validate_json(row.case_json) for row in await tx.rows(query)]
    return sorted(found, key=lambda case: (case.received_at, case.digest))


async def cases_page(
    tx: Tx, study_id: StudyId | None, reach: tuple[Iterable[StudyId], Iterable[SiteId]] | None, after: bytes, limit: int
) -> list[Case]:
    """Cases of a study or of all, in the order of their digests: so many, behind `after`; with a reach, only what is
    of one of its studies or sites."""
    known = case_table.c
    query = sa.select(known.case_json).where(known.digest > after)
    if study_id is not None:
        query = query.where(known.study_id == study_id)
    if reach is not None:
        studies, sites = reach
        query = query.where(sa.or_(known.study_id.in_(list(studies)), known.site_id.in_(list(sites))))
    return [_CASE.validate_json(row.case_json) for row in await tx.rows(query.order_by(known.digest).limit(limit))]


@dataclass(frozen=True, slots=True)
class Cases:
    """Consent's hand on withdrawals. `federation` and `key` are for receipts."""

    sender: Sender
    key: IdentityKey
    federation: str
    clock: Clock
    limits: Limits
    stop: StopGrants
    governance: GovernancePin

    # Opening

    async def on_grant_withdrawn(self, tx: Tx, signed: GrantWithdrawn) -> None:
        """The hospital's connector said so, with the hospital's key. Its grants were ended before this."""
        now, digest = self.clock.now(), withdrawal_digest(signed)
        case = Case(
            digest=digest,
            type="institution",
            site_id=signed.site_id,
            study_id=signed.study_id,
            study_digest=signed.study_digest,
            requested_effect=signed.requested_effect,
            received_at=min(signed.at, now),
        )
        await self._open(tx, case)

    async def judge(self, tx: Tx, dossier: Dossier) -> None:
        """After documents came in: withdrawals that count now, and decisions that enough people signed."""
        file = await consent_records.load(tx)
        for record in file.records:
            if isinstance(record.document, Withdrawal) and self._counts(dossier, record):
                await self._open_signed(tx, record.document)
        decided = [
            (record.document, self._decision(dossier, record, record.document))
            for record in file.records
            if isinstance(record.document, WithdrawalEffect) and self._counts(dossier, record)
        ]
        for document, decision in sorted(decided, key=lambda one: (one[1].at, one[1].digest)):
            case = await find_case(tx, document.withdrawal)
            about = (document.study_digest, document.site_id)
            if case is None or about != (case.study_digest, case.site_id):
                continue
            if case.agreed_effect is not None and is_weaker(document.effect, case.agreed_effect):
                await self._pass_over(tx, case, decision, document)
                continue
            await self._move(tx, case, Decide(decision, self.clock.now()))

    async def check_decisions(self, tx: Tx, file: ConsentFile) -> None:
        """Raise `NotAccepted` for a decision that is weaker than the hospital's data-use terms promised."""
        for place, record in enumerate(file.records):
            document = record.document
            case = await find_case(tx, document.withdrawal) if isinstance(document, WithdrawalEffect) else None
            if case is None or case.agreed_effect is None or not isinstance(document, WithdrawalEffect):
                continue
            carried = case.decision is not None and case.decision.digest == record_digest(document)
            if not carried and is_weaker(document.effect, case.agreed_effect):
                raise NotAccepted("effect_below_terms", f"records.{place}.document.effect", _below(document, case))

    async def _pass_over(self, tx: Tx, case: Case, decision: Decision, document: WithdrawalEffect) -> None:
        """A decision that came before its withdrawal, and is weaker than what was promised: warned of once, though it
        is judged again with every document that comes in."""
        if decision.digest not in case.passed_over:
            log.warning("decision_below_terms", withdrawal=case.digest.hex(), reason=_below(document, case))
            await save_case(tx, replace(case, passed_over=(*case.passed_over, decision.digest)))

    def _counts(self, dossier: Dossier, record: Record) -> bool:
        judged = dossier.records[record_digest(record.document)]
        return judged.standing(self.clock.now())[0] in IN_FORCE

    def _decision(self, dossier: Dossier, record: Record, document: WithdrawalEffect) -> Decision:
        people = {dossier.people.person(act.key) for act in record.acts if act.deed in ("submit", "approve")}
        return Decision(record_digest(document), document.effect, tuple(sorted(people)), document.decided_at)

    async def _open_signed(self, tx: Tx, document: Withdrawal) -> None:
        digest = record_digest(document)
        if await find_case(tx, digest) is not None:
            return
        if document.type != "patient_set":
            running = await store.granted(tx, site_id=document.site_id, study_id=document.study_id)
            ending = [one for one in running if one.grant.study_digest == document.study_digest]
            await self.stop(tx, ending, "GRANT_WITHDRAWN")
        case = Case(
            digest=digest,
            type=document.type,
            site_id=document.site_id,
            study_id=document.study_id,
            study_digest=document.study_digest,
            requested_effect=document.requested_effect,
            received_at=min(document.received_at, self.clock.now()),
            from_round=document.from_round or 0,
        )
        await self._open(tx, case)

    async def _open(self, tx: Tx, case: Case) -> None:
        """A hospital that left twice left once: a second word about it changes nothing while the first is open."""
        if await find_case(tx, case.digest) is not None:
            return
        if case.type != "patient_set":
            for other in await cases_of(tx, case.study_id, open_only=True):
                same = (other.site_id, other.study_digest) == (case.site_id, case.study_digest)
                if same and other.type != "patient_set":
                    return
        now = self.clock.now()
        agreed = await self._promised(tx, case, now)
        case = replace(case, state=Received(now), reached={"RECEIVED": now}, agreed_effect=agreed)
        recorded = WithdrawalRecorded(
            withdrawal=case.digest,
            type=case.type,
            site_id=case.site_id,
            study_digest=case.study_digest,
            requested_effect=case.requested_effect,
            received_at=case.received_at,
            from_round=case.from_round,
        )
        await self._record(tx, case, recorded)
        notice = WithdrawalNoticed(
            withdrawal=case.digest,
            study_id=case.study_id,
            study_digest=case.study_digest,
            site_id=case.site_id,
            type=case.type,
            from_round=case.from_round,
        )
        await self._to_scheduler(tx, case, notice)
        await save_case(tx, advance(case, Verify(now)))

    async def _promised(self, tx: Tx, case: Case, now: datetime) -> Effect | None:
        """By the terms of the hospital's people, though its key was revoked since: what was promised holds."""
        file, keys = await consent_records.load(tx), await store.site_keys.all(tx)
        sites = {key.site_id: key.identity_pk for key in keys if key.identity_pk}
        people = Dossier.judge(file, self.governance, sites, now).people
        return promised_effect(file, people, case.site_id, case.study_digest, case.type, now)

    # What the scheduler says

    async def on_traced(self, tx: Tx, received: Delivered[WithdrawalTraced]) -> None:
        await self._heard(tx, received, received.message.withdrawal, Trace(received.message, self.clock.now()))

    async def on_followed(self, tx: Tx, received: Delivered[WithdrawalFollowed]) -> None:
        """Models that were made since: the list grows until the case is closed, and a receipt with it."""
        _only_scheduler(received)
        case = await find_case(tx, received.message.withdrawal)
        if case is not None and isinstance(case.state, Received | Verified):
            raise TryLater("not_traced_yet")
        await self._heard(tx, received, received.message.withdrawal, Follow(received.message, self.clock.now()))

    async def on_effect_refused(self, tx: Tx, received: Delivered[EffectRefused]) -> None:
        await self._heard(tx, received, received.message.withdrawal, Refuse(received.message, self.clock.now()))

    async def on_started(self, tx: Tx, received: Delivered[EffectStarted]) -> None:
        message = received.message
        start = Start(message.decision, message.retrained, self.clock.now())
        await self._heard(tx, received, message.withdrawal, start)

    async def on_done(self, tx: Tx, received: Delivered[EffectDone]) -> None:
        await self._heard(tx, received, received.message.withdrawal, Finish(received.message, self.clock.now()))

    async def _heard(self, tx: Tx, received: Delivered[Any], digest: bytes, command: Command) -> None:
        _only_scheduler(received)
        case = await find_case(tx, digest)
        if case is not None:
            await self._move(tx, case, command)

    async def close(self, tx: Tx, digest: bytes) -> Case | None:
        """The receipt was handed over. Twice is once."""
        case = await find_case(tx, digest)
        return None if case is None else await self._move(tx, case, Close(self.clock.now()))

    # Moving on

    async def _move(self, tx: Tx, before: Case, command: Command) -> Case:
        after = advance(before, command)
        if after is before:
            return before
        if after.traced is not None and before.traced is None:
            await self._record_effective(tx, after, after.traced)
        elif isinstance(command, Follow):
            after = await self._extend(tx, before, after, command.followed)
        if after.decision is not None and after.decision != before.decision:
            decided = WithdrawalDecided(
                withdrawal=after.digest,
                decision=after.decision.digest,
                effect=after.decision.effect,
                people=after.decision.people,
            )
            await self._record(tx, after, decided, unique=False)
        if isinstance(after.state, EffectDecided) and after.decision is not None and not isinstance(command, Follow):
            order = EffectOrdered(withdrawal=after.digest, decision=after.decision.digest, effect=after.decision.effect)
            await self._to_scheduler(tx, after, order)
        if isinstance(after.state, Proven) and after.decision is not None and after.receipt is None:
            after = await self._prove(tx, after, after.decision)
        if after.word == "CLOSED" != before.word:
            await self._record(tx, after, WithdrawalClosed(withdrawal=after.digest))
        await save_case(tx, after)
        return after

    async def _record_effective(self, tx: Tx, case: Case, traced: WithdrawalTraced) -> None:
        effective = WithdrawalEffective(
            withdrawal=case.digest,
            site_id=case.site_id,
            without=traced.without,
            models=traced.models,
            sums=traced.sums,
        )
        await self._record(tx, case, effective)

    async def _extend(self, tx: Tx, before: Case, after: Case, followed: WithdrawalFollowed) -> Case:
        """The log learns what the list grew by; a receipt that was made already is made anew, with it."""
        known = () if before.traced is None else before.traced.models
        extended = WithdrawalExtended(
            withdrawal=after.digest, models=unlisted(followed.models, known), sums=followed.sums
        )
        await self._record(tx, after, extended, unique=False)
        if isinstance(after.state, Proven) and after.decision is not None:
            return await self._prove(tx, after, after.decision)
        return after

    async def _prove(self, tx: Tx, case: Case, decision: Decision) -> Case:
        case = replace(case, receipts=max(case.receipts, int(case.receipt is not None)) + 1)
        signed = sign_statement(receipt_statement(receipt_facts(case, decision, self.federation)), [self.key])
        proven = WithdrawalProven(
            withdrawal=case.digest, effect=decision.effect, receipt_sha256=hashlib.sha256(signed).digest()
        )
        await self._record(tx, case, proven, name=proof_id(case))
        return replace(case, receipt=signed.decode())

    # Deadlines

    def deadlines(self, case: Case) -> tuple[Deadline, ...]:
        """Every deadline of a case as it stands now."""
        return deadlines(case, self.limits, self.clock.now())

    async def tell_overdue(self, tx: Tx) -> int:
        """Put deadlines that passed on record, each once; returns how many are overdue and not met yet."""
        overdue = 0
        for case in await cases_of(tx, open_only=True):
            late = [one for one in self.deadlines(case) if one.overdue]
            overdue += sum(one.met_at is None for one in late)
            fresh = [one for one in late if one.name not in case.overdue_told]
            for one in fresh:
                event = WithdrawalOverdue(withdrawal=case.digest, deadline=one.name, due=one.due)
                await self._record(tx, case, event, unique=False)
            if fresh:
                told = (*case.overdue_told, *(one.name for one in fresh))
                await save_case(tx, replace(case, overdue_told=told))
        return overdue

    # Sending

    async def _record(
        self, tx: Tx, case: Case, event: AuditEvent, *, unique: bool = True, name: str | None = None
    ) -> None:
        if name is None and unique:
            name = event_id(case.digest, type(event))
        await put_on_record(tx, self.sender, event, study=case.study_id, unique=name)

    async def _to_scheduler(self, tx: Tx, case: Case, message: WithdrawalNoticed | EffectOrdered) -> None:
        outgoing = self.sender.outgoing(SERVICES.name, "scheduler", message, study=case.study_id)
        await tx.send(outgoing, ordering_key="scheduler")


def _only_scheduler(received: Delivered[Any]) -> None:
    if received.key_id != service_key_id("scheduler"):
        raise Poison("sender_not_allowed", received.envelope.type)


def receipt_facts(case: Case, decision: Decision, federation: str) -> dict[str, Any]:
    """What the receipt says, as JSON."""
    done, traced = case.done, case.traced
    if done is None or traced is None:
        raise LookupError(f"withdrawal {case.digest.hex()} is not carried out")
    retrained = None if done.retrained is None else done.retrained.model_dump(mode="json")
    return {
        "federation": federation,
        "study": case.study_id,
        "study_digest": case.study_digest.hex(),
        "site": case.site_id,
        "type": case.type,
        "withdrawal": case.digest.hex(),
        "from_round": case.from_round,
        "requested_effect": case.requested_effect,
        "received_at": _zulu(case.received_at),
        "effective_at": _zulu(case.reached["EFFECTIVE"]),
        "proven_at": _zulu(case.reached["PROVEN"]),
        "decision": {
            "digest": decision.digest.hex(),
            "effect": decision.effect,
            "people": list(decision.people),
            "at": _zulu(decision.at),
        },
        "first_rounds_without": _dumped(traced.without),
        "sums": traced.sums,
        "models": {
            "flagged": _dumped(traced.models),
            "retired": _dumped(done.retired),
            "retrained": retrained,
        },
        "events": {
            "recorded": event_id(case.digest, WithdrawalRecorded),
            "proven": proof_id(case),
        },
    }


def _dumped(items: Iterable[Any]) -> list[Any]:
    return [one.model_dump(mode="json") for one in items]


def _below(document: WithdrawalEffect, case: Case) -> str:
    who = "patients leave it" if case.type == "patient_set" else "it leaves"
    return (
        f"{document.effect} is less than the data-use terms of site {case.site_id} promise when {who}: "
        f"{case.agreed_effect} at least; decide that, or more"
    )


def _zulu(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
