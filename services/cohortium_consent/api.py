"""Consent's HTTP side: which grants there are, and what the policy would say, now or at another time."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, FastAPI, Query
from pydantic import Field

from cohortium_consent import store
from cohortium_consent.accounts import Accounts
from cohortium_consent.answers import Asked, answers_for
from cohortium_consent.budgets import Cap, begun, exhausted_at, spent
from cohortium_consent.documents_api import documents_router, papers_router
from cohortium_consent.domain import GrantRecord, Membership, Withdrawn, state_name
from cohortium_consent.handlers import Handlers
from cohortium_consent.oidc import Oidc
from cohortium_consent.people_api import people_router
from cohortium_consent.sign_in import People
from cohortium_consent.withdrawals_api import withdrawals_router
from cohortium_kit.bus import Bus
from cohortium_kit.clock import Clock
from cohortium_kit.db import Database
from cohortium_kit.http import HttpProblem, add_ping, create_app
from cohortium_kit.paging import Limit, page_of
from cohortium_messages.budgets import MOST_BUDGETS, BudgetView, SiteBudget
from cohortium_messages.governance import GrantState, PartPrice, Permit
from cohortium_messages.ids import Bytes32, RunId, SiteIdField, StudyIdField, Wire
from cohortium_messages.paging import USUAL_ON_A_PAGE, Page
from cohortium_messages.problems import sentence
from cohortium_messages.topology import inbox
from cohortium_platform.identity import Identity
from cohortium_platform.people.guard import Guard, ReachIn
from cohortium_privacy.statements import Held, holdings
from cohortium_protocol.consent.authorise import Reason, told


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


class ReasonView(Wire):
    """One reason that documents give: the code, the document, since or until when, and the sentence."""

    code: str
    object: str
    moment: datetime | None
    sentence: str


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
    permit_digest: Bytes32 | None = None
    until: datetime | None = None
    """When the permission ends by itself, where documents are asked for."""
    reasons: tuple[ReasonView, ...] = ()
    """Everything that the documents have against it, the widest first."""
    sentence: str


def create_api(
    *,
    db: Database,
    bus: Bus,
    clock: Clock,
    guard: Guard,
    handlers: Handlers,
    people: People,
    oidc: Oidc,
    identity: Identity,
    cap: Cap | None = None,
) -> FastAPI:
    """The application. Of grants and documents, only what is signed changes anything."""
    app = create_app("Cohortium consent", "1", guard)
    add_ping(app, "database", db.ping)
    add_ping(app, "broker", lambda: bus.check_queue(inbox("consent")))
    app.include_router(_routes(db, clock, handlers))
    app.include_router(documents_router(db, clock, handlers))
    app.include_router(papers_router(db))
    app.include_router(_budget_routes(db, cap))
    app.include_router(withdrawals_router(db, handlers.cases))
    app.include_router(people_router(people, Accounts(db, identity.sender), oidc, identity, clock))
    return app


def _routes(db: Database, clock: Clock, handlers: Handlers) -> APIRouter:
    router = APIRouter()

    @router.get("/grants")
    async def list_grants(
        study: StudyIdField, reach: ReachIn, after: Bytes32 | None = None, limit: Limit = USUAL_ON_A_PAGE
    ) -> Page[GrantView]:
        """Every grant that was ever recorded for a study, with its state now, the oldest first; of a hospital's people,
        theirs."""
        within = None if reach.covers(study=study) else reach.sites
        async with db.reading("list_grants") as tx:
            names = {key.site_id: key.name for key in await store.site_keys.all(tx)}
            found = await store.records(tx, study, limit + 1, sites=within, after=after)
        now = clock.now()
        return page_of(found, limit, lambda one: grant_view(one, names, now), lambda view: view.grant_digest.hex())

    @router.get("/authorise")
    async def dry_run(
        study: StudyIdField,
        site: SiteIdField | None = None,
        round_number: Annotated[int, Query(alias="round", ge=0, le=(1 << 31) - 1)] = 0,
        at: datetime | None = None,
        after: SiteIdField | None = None,
        limit: Limit = USUAL_ON_A_PAGE,
    ) -> Page[Answer]:
        """What the policy would say of one member, or of all in the order of their ids, for a round at a moment. It
        asks and changes nothing."""
        moment = clock.now() if at is None else at
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        async with db.reading("dry_run") as tx:
            membership = await store.membership(tx, study)
            if membership is None:
                text = f"study {study} has no membership manifest yet; officers sign one at enrolment"
                raise HttpProblem(404, "study_unknown", text)
            sites = sorted(membership.members) if site is None else [site]
            sites = [one for one in sites if after is None or one > after]
            asked = Asked(study, membership.study_digest, round_number, sites[:limit])
            answers = await answers_for(tx, asked, moment, handlers.documents.governance)
        items = tuple(_answer(permit, reasons, membership, round_number, moment) for permit, reasons in answers)
        return Page(items=items, next=sites[limit - 1] if len(sites) > limit else None)

    return router


def _budget_routes(db: Database, cap: Cap | None) -> APIRouter:
    router = APIRouter()

    @router.get("/budgets")
    async def budgets(
        site: SiteIdField | None = None, after: SiteIdField | None = None, limit: Limit = USUAL_ON_A_PAGE
    ) -> Page[SiteBudget]:
        """Privacy budgets as hospitals tell them, of one site or of all in the order of their ids. Hospitals' own
        limits are not known here: `cohortium budget` shows them, in the hospital."""
        async with db.reading("budgets") as tx:
            names = {key.site_id: key.name for key in await store.site_keys.all(tx)}
            sites = await store.sites_with_statements(tx, after, limit + 1) if site is None else [site]
            told = await store.statements(tx, sites[:limit])
            prices = await store.run_prices(tx)
        held = holdings(told)
        views = tuple(
            _site_budget([one for one in held if one.site_id == site_id], names.get(site_id, ""), prices, cap)
            for site_id in sorted({one.site_id for one in held})
        )
        return Page(items=views, next=sites[limit - 1] if len(sites) > limit else None)

    return router


def _site_budget(
    held: Sequence[Held], name: str, prices: Mapping[RunId, Sequence[PartPrice]], cap: Cap | None
) -> SiteBudget:
    total = used = left = 0.0
    if cap is not None:
        total, used = spent(held, prices, cap.order), spent(held, prices, cap.order, begun)
        left = max(0.0, cap.limit - total)
    shown = sorted(held, key=lambda one: one.rdp, reverse=True)[:MOST_BUDGETS] if len(held) > MOST_BUDGETS else held
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
            exhausted_at_round=None if cap is None else exhausted_at(one, prices.get(one.run_id, ()), left, cap.order),
        )
        for one in shown
    ]
    site = SiteBudget(
        site_id=held[0].site_id,
        site_name=name,
        epsilon=None,
        epsilon_cap=None,
        delta=None,
        runs=tuple(views),
        runs_left_out=len(held) - len(shown),
    )
    if cap is None:
        return site
    told = {
        "epsilon": cap.epsilon_of(total),
        "epsilon_used": cap.epsilon_of(used),
        "epsilon_cap": cap.epsilon,
        "delta": cap.delta,
        "used_share": used / cap.limit,
        "reserved_share": (total - used) / cap.limit,
        "left_share": left / cap.limit,
    }
    return site.model_copy(update=told)


def _answer(
    permit: Permit, reasons: Sequence[Reason], membership: Membership, round_number: int, at: datetime
) -> Answer:
    return Answer(
        site_id=permit.site_id,
        study_id=membership.study_id,
        study_digest=membership.study_digest,
        round=round_number,
        at=at,
        permitted=permit.permitted,
        grant_digest=permit.grant_digest,
        deny_code=permit.deny_code,
        permit_digest=permit.permit_digest,
        until=permit.until,
        reasons=tuple(
            ReasonView(code=one.code, object=one.thing, moment=one.moment, sentence=told(one)) for one in reasons
        ),
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
