"""Withdrawals over HTTP: how each stands, what is overdue, and the receipt."""

from datetime import datetime
from typing import Any

from fastapi import APIRouter, Response

from cohortium_consent.cases import Cases, cases_page, event_id, find_case, proof_id
from cohortium_consent.withdrawals import Case
from cohortium_kit.db import Database
from cohortium_kit.http import HttpProblem
from cohortium_kit.paging import Limit, page_of
from cohortium_messages.consent import Effect, WithdrawalType
from cohortium_messages.ids import Bytes32, SiteIdField, StudyIdField, Wire
from cohortium_messages.paging import USUAL_ON_A_PAGE, Page
from cohortium_messages.withdrawals import (
    DeadlineName,
    Models,
    Retrained,
    RoundsWithout,
    WithdrawalRecorded,
)
from cohortium_platform.people.guard import Reach, ReachIn, outside


class DeadlineView(Wire):
    """One deadline. `overdue`: it passed before it was met, if it was."""

    name: DeadlineName
    due: datetime
    met_at: datetime | None
    overdue: bool


class DecisionView(Wire):
    """What officers decided, and which people signed."""

    digest: Bytes32
    effect: Effect
    people: tuple[str, ...]
    at: datetime


class RefusedView(Wire):
    """A hospital that refuses its part in the retraining, and why (the code's sentence is in the problem list)."""

    site_id: SiteIdField
    code: str


class WithdrawalView(Wire):
    """One withdrawal as it stands now. `models`: versions that learnt from who left, those made since too. `fault`: why
    the decided effect could not be carried out; officers can decide again. `agreed_effect`: the least that may be
    decided, by the hospital's data-use terms; None where there are none. `refused`: hospitals that refuse their part
    in it."""

    withdrawal: Bytes32
    type: WithdrawalType
    site_id: SiteIdField
    study_id: StudyIdField
    study_digest: Bytes32
    state: str
    requested_effect: Effect
    agreed_effect: Effect | None = None
    received_at: datetime
    from_round: int
    without: RoundsWithout = ()
    models: Models = ()
    sums: int = 0
    decision: DecisionView | None = None
    retired: Models = ()
    retrained: Retrained | None = None
    fault: str | None = None
    refused: tuple[RefusedView, ...] = ()
    deadlines: tuple[DeadlineView, ...]
    events: dict[str, str]
    """Ids of the entries of the study's log that frame the receipt: `recorded` and `proven`."""


def withdrawals_router(db: Database, cases: Cases) -> APIRouter:
    """Routes under `/withdrawals`."""
    router = APIRouter(prefix="/withdrawals")

    @router.get("")
    async def list_withdrawals(
        reach: ReachIn,
        study: StudyIdField | None = None,
        after: Bytes32 | None = None,
        limit: Limit = USUAL_ON_A_PAGE,
    ) -> Page[WithdrawalView]:
        """Every withdrawal, of a study or of all, in the order of their digests; of people with roles, those within
        their reach."""
        within = None if reach.everywhere else (reach.studies, reach.sites)
        async with db.reading("list_withdrawals") as tx:
            found = await cases_page(tx, study, within, after or b"", limit + 1)
        return page_of(found, limit, lambda case: _view(case, cases), lambda view: view.withdrawal.hex())

    @router.get("/{digest}")
    async def withdrawal(digest: Bytes32, reach: ReachIn) -> WithdrawalView:
        """One withdrawal, with the models that it touches and its deadlines."""
        return _view(await _case(digest, reach), cases)

    @router.get("/{digest}/receipt", response_class=Response, responses={200: {"content": {"application/json": {}}}})
    async def withdrawal_receipt(digest: Bytes32, reach: ReachIn) -> Response:
        """The receipt: a statement that consent signed (DSSE). The log proves its digest, by the event `proven`."""
        case = await _case(digest, reach)
        if case.receipt is None:
            detail = f"the withdrawal stands at {case.word}; the receipt is made once its effect is carried out"
            raise HttpProblem(409, "not_proven", detail, state=case.word)
        return Response(case.receipt, media_type="application/json")

    @router.post("/{digest}/close")
    async def close_withdrawal(digest: Bytes32, reach: ReachIn) -> WithdrawalView:
        """The receipt was handed over: the case is closed. Again is harmless; one that is not proven stays open."""
        await _case(digest, reach)
        closed = await db.run("close_withdrawal", lambda tx: cases.close(tx, digest))
        if closed is None:
            raise _unknown()
        return _view(closed, cases)

    async def _case(digest: bytes, reach: Reach) -> Case:
        async with db.reading("one_withdrawal") as tx:
            case = await find_case(tx, digest)
        if case is None:
            raise _unknown()
        if not _reaches(reach, case):
            raise outside(f"the withdrawal from {case.study_id}")
        return case

    return router


def _unknown() -> HttpProblem:
    return HttpProblem(404, "withdrawal_unknown", "no withdrawal has this digest; GET /withdrawals lists them")


def _reaches(reach: Reach, case: Case) -> bool:
    return reach.covers(study=case.study_id, site=case.site_id)


def _view(case: Case, cases: Cases) -> WithdrawalView:
    told: dict[str, Any] = {"withdrawal": case.digest, "state": case.word}
    fields = (
        "type",
        "site_id",
        "study_id",
        "study_digest",
        "requested_effect",
        "agreed_effect",
        "received_at",
        "from_round",
    )
    told |= {name: getattr(case, name) for name in (*fields, "retrained", "fault")}
    if case.traced is not None:
        told |= {"without": case.traced.without, "models": case.traced.models, "sums": case.traced.sums}
    if case.decision is not None:
        decided = case.decision
        told["decision"] = DecisionView(
            digest=decided.digest, effect=decided.effect, people=decided.people, at=decided.at
        )
    if case.done is not None:
        told["retired"] = case.done.retired
    told["deadlines"] = tuple(
        DeadlineView(name=one.name, due=one.due, met_at=one.met_at, overdue=one.overdue)
        for one in cases.deadlines(case)
    )
    told["refused"] = tuple(RefusedView(site_id=one.site_id, code=one.code) for one in case.refused)
    told["events"] = {"recorded": event_id(case.digest, WithdrawalRecorded), "proven": proof_id(case)}
    return WithdrawalView(**told)
