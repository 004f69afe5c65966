"""Consent's HTTP side, for operators: which grants there are, and what the policy would say, now or at another time."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Depends, FastAPI, Query
from pydantic import Field

from cohortium_consent import store
from cohortium_consent.budgets import Cap, Held, holdings, spent
from cohortium_consent.domain import GrantRecord, Membership, Withdrawn, state_name
from cohortium_consent.handlers import Asked, permits_for
from cohortium_kit.bus import Bus
from cohortium_kit.clock import Clock
from cohortium_kit.db import Database
from cohortium_kit.http import HttpProblem, add_ping, create_app, operator_only
from cohortium_messages.governance import GrantState, PartPrice, Permit
from cohortium_messages.ids import Bytes32, RunId, RunIdField, SiteIdField, StudyIdField, Wire
from cohortium_messages.ledger import Part
from cohortium_messages.problems import sentence
from cohortium_messages.topology import inbox


class GrantView(Wire):
    """One grant as it stands at this moment."""

    site_id: SiteIdField
    site_name: str
    study_id: StudyIdField
    study_digest: Bytes32
    grant_digest: Bytes32
    state: GrantState
    not_before: datetime
    not_after: datetime
    max_rounds: int
    approvers: tuple[str, ...]
    ended_at: datetime | None = None
    ended_reason: str | None = None
    sentence: str | None = None


class Answer(Wire):
    """What the policy says of one site, with the sentence for people."""

    site_id: SiteIdField
    study_id: StudyIdField
    study_digest: Bytes32
    round: Annotated[int, Field(ge=0)]
    at: datetime
    permitted: bool
    grant_digest: Bytes32 | None = None
    deny_code: str | None = None
    sentence: str


class BudgetView(Wire):
    """What one run has of one site's patients, by the hospital's signed statements: Rényi divergence at `order`."""

    site_id: SiteIdField
    site_name: str
    study_id: StudyIdField
    run_id: RunIdField
    part: Part
    planned_steps: int
    charged_steps: int
    begun_steps: int
    order: int
    rdp: float


class SiteBudget(Wire):
    """All runs of one site together. ε is there where the federation has a cap, and is held to at the cap's order."""

    site_id: SiteIdField
    site_name: str
    epsilon: float | None
    epsilon_cap: float | None
    delta: float | None
    runs: tuple[BudgetView, ...]


def create_api(*, db: Database, bus: Bus, clock: Clock, operator_token: str | None, cap: Cap | None = None) -> FastAPI:
    """The application. Every route is the operator's; none changes anything."""
    app = create_app("Cohortium consent", "1", operator_token)
    add_ping(app, "database", db.ping)
    add_ping(app, "broker", lambda: bus.check_queue(inbox("consent")))
    app.include_router(_routes(db, clock))
    app.include_router(_budget_routes(db, cap))
    return app


def _routes(db: Database, clock: Clock) -> APIRouter:
    router = APIRouter(dependencies=[Depends(operator_only)])

    @router.get("/grants")
    async def list_grants(study: StudyIdField) -> list[GrantView]:
        """Every grant that was ever recorded for a study, with its state now."""
        async with db.reading("list_grants") as tx:
            names = {key.site_id: key.name for key in await store.site_keys(tx)}
            found = await store.records(tx, study)
        return [grant_view(record, names, clock.now()) for record in found]

    @router.get("/authorise")
    async def dry_run(
        study: StudyIdField,
        site: SiteIdField | None = None,
        round_number: Annotated[int, Query(alias="round", ge=0, le=(1 << 31) - 1)] = 0,
        at: datetime | None = None,
    ) -> list[Answer]:
        """What the policy would say of one member, or of all, for a round at a moment. It asks and changes nothing."""
        moment = clock.now() if at is None else at
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        async with db.reading("dry_run") as tx:
            membership = await store.membership(tx, study)
            if membership is None:
                text = f"study {study} has no membership manifest yet; officers sign one at enrolment"
                raise HttpProblem(404, "study_unknown", text)
            sites = sorted(membership.members) if site is None else [site]
            permits = await permits_for(tx, Asked(study, membership.study_digest, round_number, sites), moment)
        return [_answer(permit, membership, round_number, moment) for permit in permits]

    return router


def _budget_routes(db: Database, cap: Cap | None) -> APIRouter:
    router = APIRouter(dependencies=[Depends(operator_only)])

    @router.get("/budgets")
    async def budgets(site: SiteIdField | None = None) -> list[SiteBudget]:
        """Privacy budgets as hospitals tell them, of one site or of all. Hospitals' own limits are not known here."""
        async with db.reading("budgets") as tx:
            names = {key.site_id: key.name for key in await store.site_keys(tx)}
            told = await store.statements(tx, None if site is None else [site])
            prices = await store.run_prices(tx)
        held = holdings(told)
        return [
            _site_budget([one for one in held if one.site_id == site_id], names.get(site_id, ""), prices, cap)
            for site_id in sorted({one.site_id for one in held})
        ]

    return router


def _site_budget(
    held: Sequence[Held], name: str, prices: Mapping[RunId, Sequence[PartPrice]], cap: Cap | None
) -> SiteBudget:
    views = [
        BudgetView(
            site_id=one.site_id,
            site_name=name,
            study_id=one.study_id,
            run_id=one.run_id,
            part=one.part,
            planned_steps=one.planned,
            charged_steps=one.charged,
            begun_steps=one.begun,
            order=one.order,
            rdp=one.rdp,
        )
        for one in held
    ]
    return SiteBudget(
        site_id=held[0].site_id,
        site_name=name,
        epsilon=None if cap is None else cap.epsilon_of(spent(held, prices, cap.order)),
        epsilon_cap=None if cap is None else cap.epsilon,
        delta=None if cap is None else cap.delta,
        runs=tuple(views),
    )


def _answer(permit: Permit, membership: Membership, round_number: int, at: datetime) -> Answer:
    return Answer(
        site_id=permit.site_id,
        study_id=membership.study_id,
        study_digest=membership.study_digest,
        round=round_number,
        at=at,
        permitted=permit.permitted,
        grant_digest=permit.grant_digest,
        deny_code=permit.deny_code,
        sentence=sentence(permit.deny_code) if permit.deny_code else "The site may take part.",
    )


def grant_view(record: GrantRecord, names: dict[SiteIdField, str], now: datetime) -> GrantView:
    """A grant for people: the state is the one at `now`."""
    grant = record.grant
    ended = record if isinstance(record, Withdrawn) else None
    return GrantView(
        site_id=grant.site_id,
        site_name=names.get(grant.site_id, ""),
        study_id=grant.study_id,
        study_digest=grant.study_digest,
        grant_digest=grant.grant_digest,
        state=state_name(record, now),
        not_before=grant.not_before,
        not_after=grant.not_after,
        max_rounds=grant.max_rounds,
        approvers=grant.approvers,
        ended_at=None if ended is None else ended.at,
        ended_reason=None if ended is None else ended.reason,
        sentence=None if ended is None else sentence(ended.reason),
    )
