"""The federation's view of privacy budgets: hospitals' own words, added up, and an early no."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cohortium_consent.app import App
from cohortium_consent.budgets import Cap, affordable, exhausted_at, price_at, spent
from cohortium_consent.settings import ConsentSettings
from cohortium_kit.bus import Ack, Dead
from cohortium_messages.budgets import SiteBudget
from cohortium_messages.governance import (
    AuthoriseAsked,
    Authorised,
    GrantGiven,
    ManifestPublished,
    PartPrice,
    SiteRegistered,
)
from cohortium_messages.ids import RunId, SiteId, StudyId
from cohortium_messages.ledger import LedgerEvent, LedgerStatement
from cohortium_messages.paging import Page
from cohortium_privacy.chain import UNSIGNED, sign_statement
from cohortium_privacy.filter import alpha_star, budget
from cohortium_privacy.statements import holdings
from governance_stage import DIGEST, STUDY, Hospital, Stage, hear, sent_of

FIRST, SECOND = (RunId(f"00000000-0000-4000-8000-00000000000{digit}") for digit in "12")
SITE = SiteId("00000000-0000-4000-8000-0000000000aa")
ORDER = 10


def prices(each: float, uses: int = 10) -> tuple[PartPrice, ...]:
    """A run whose price grows with the order, as prices do."""
    return (PartPrice(part="training", uses=uses, prices=tuple(each * order for order in range(2, 65))),)


def said(run: RunId, reason: str, first: int, steps: int, attempt: int = 1, **changes: Any) -> LedgerStatement:
    states = {"PLANNED": "RESERVED", "RETRY": "RESERVED", "STARTED": "COMMITTED", "UPLOADED": "COMMITTED"}
    values: dict[str, Any] = {
        "site_id": SITE,
        "study_id": StudyId("heart"),
        "study_digest": bytes(32),
        "run_id": run,
        "part": "training",
        "state": states.get(reason, "RELEASED_BACK"),
        "reason": reason,
        "first_step": first,
        "steps": steps,
        "attempt": attempt,
        "order": ORDER,
        "rdp": 0.1 * steps,
        "head": bytes(32),
        "sig": UNSIGNED,
    }
    return LedgerStatement(**values | changes)


def test_what_is_planned_is_charged_until_it_is_given_back() -> None:
    told = [said(FIRST, "PLANNED", 0, 10)]
    assert [(one.planned, one.charged, one.begun) for one in holdings(told)] == [(10, 10, 0)]
    told += [said(FIRST, "STARTED", 0, 1), said(FIRST, "UPLOADED", 0, 1), said(FIRST, "UPLOADED", 1, 1)]
    assert [(one.charged, one.begun) for one in holdings(told)] == [(10, 2)]
    told += [said(FIRST, "ABORT_CERT", 1, 1), said(FIRST, "RETRY", 1, 1, 2)]
    assert [(one.charged, one.begun) for one in holdings(told)] == [(10, 1)]
    told += [said(FIRST, "UPLOADED", 1, 1, 2), said(FIRST, "NEVER_STARTED", 2, 8, 2)]
    (held,) = holdings(told)
    assert (held.charged, held.begun) == (2, 2)
    assert held.rdp == pytest.approx(0.2)


def test_statements_without_a_plan_are_no_holding() -> None:
    assert holdings([said(FIRST, "UPLOADED", 0, 1)]) == ()


def test_runs_add_up_and_a_patient_pays_for_the_dearer_part() -> None:
    known = {FIRST: (*prices(0.01), PartPrice(part="evaluation", uses=1, prices=(5.0,) * 63)), SECOND: prices(0.02)}
    told = [said(FIRST, "PLANNED", 0, 10), said(SECOND, "PLANNED", 0, 10)]
    assert spent(holdings(told), known, ORDER) == pytest.approx(1.0 + 2.0)
    told.append(said(FIRST, "PLANNED", 0, 1, part="evaluation"))
    assert spent(holdings(told), known, ORDER) == pytest.approx(5.0 + 2.0)
    assert spent(holdings(told), {}, ORDER) == 0
    assert price_at((PartPrice(part="training", uses=1, prices=(None,) * 63),), ORDER, {"training": 1.0}) == float(
        "inf"
    )


@given(each=st.lists(st.floats(1e-4, 2), max_size=8), wanted=st.floats(1e-4, 2))
def test_no_run_fits_that_would_pass_the_cap(each: list[float], wanted: float) -> None:
    cap = Cap(3.0, 1e-6, alpha_star(3.0, 1e-6), budget(3.0, 1e-6, alpha_star(3.0, 1e-6)))
    runs = [RunId(f"00000000-0000-4000-8000-0000000001{place:02d}") for place in range(len(each))]
    known = {run: prices(one / 10 / cap.order) for run, one in zip(runs, each, strict=True)}
    held = holdings([said(run, "PLANNED", 0, 10) for run in runs])
    fits = affordable(FIRST, prices(wanted / 10 / cap.order), held, known, cap)
    assert fits == (sum(each) + wanted <= cap.limit * (1 + 1e-12)) or abs(sum(each) + wanted - cap.limit) < 1e-9


@pytest.fixture
async def capped(stage: Stage) -> AsyncIterator[App]:
    """Consent with a cap, four members, all of whom granted."""
    settings = ConsentSettings.model_validate(stage.settings("consent") | {"site_epsilon": 3.0})
    db = await stage.database("consent")
    app = await App.build(settings, bus=await stage.bus(), database=db, clock=stage.clock)
    for site in stage.hospitals:
        message = SiteRegistered(site_id=site.site_id, name=site.name, identity_pk=site.key.public)
        await hear(app, "consent", stage.from_service("enrolment", "consent", message))
    published = ManifestPublished(manifest=stage.manifest())
    await hear(app, "consent", stage.from_service("enrolment", "consent", published, study=STUDY))
    for site in stage.hospitals:
        await hear(app, "consent", stage.from_site(site, "consent", GrantGiven(grant=stage.grant(site))))
    yield app
    await db.close()


async def ask(stage: Stage, app: App, run: RunId, price: float) -> dict[SiteId, str | None]:
    question = AuthoriseAsked(
        question_id=b"\1" * 16,
        run_id=run,
        study_id=STUDY,
        study_digest=DIGEST,
        round=1,
        sites=tuple(site.site_id for site in stage.hospitals),
        prices=prices(price),
        governance="trial",
    )
    assert await hear(app, "consent", stage.from_service("scheduler", "consent", question)) == Ack()
    _, answer = (await sent_of(app, Authorised))[-1]
    return {permit.site_id: permit.deny_code for permit in answer.permits}


def statement_by(site: Hospital, run: RunId, reason: str, first: int, steps: int) -> LedgerEvent:
    made = said(run, reason, first, steps, site_id=site.site_id, study_id=STUDY, study_digest=DIGEST)
    return LedgerEvent(statement=sign_statement(made, site.key))


async def test_a_site_that_cannot_afford_the_plan_is_refused_early(stage: Stage, capped: App) -> None:
    first, second = stage.hospitals[:2]
    assert set((await ask(stage, capped, FIRST, 0.01)).values()) == {None}
    planned = stage.from_site(first, "consent", statement_by(first, FIRST, "PLANNED", 0, 10))
    assert await hear(capped, "consent", planned) == Ack()
    answers = await ask(stage, capped, SECOND, 0.01)
    assert answers[first.site_id] == "EPSILON_EXHAUSTED"
    assert answers[second.site_id] is None
    assert (await ask(stage, capped, FIRST, 0.01))[first.site_id] is None, "this run is paid for"
    back = stage.from_site(first, "consent", statement_by(first, FIRST, "NEVER_STARTED", 0, 10))
    assert await hear(capped, "consent", back) == Ack()
    assert (await ask(stage, capped, SECOND, 0.01))[first.site_id] is None


async def test_a_hospital_speaks_for_its_own_ledger_alone(stage: Stage, capped: App) -> None:
    first, second = stage.hospitals[:2]
    others_word = stage.from_site(second, "consent", statement_by(first, FIRST, "PLANNED", 0, 10))
    assert isinstance(await hear(capped, "consent", others_word), Dead)
    forged = LedgerEvent(statement=said(FIRST, "PLANNED", 0, 10, site_id=first.site_id, sig=bytes(64)))
    assert isinstance(await hear(capped, "consent", stage.from_site(first, "consent", forged)), Dead)
    async with stage.client(capped) as client:
        assert (await client.get("/budgets")).json()["items"] == []


async def test_the_view_adds_up_what_was_told_and_says_it_twice_as_once(stage: Stage, capped: App) -> None:
    site = stage.hospitals[0]
    await ask(stage, capped, FIRST, 0.01)
    for _ in range(2):
        for event in (statement_by(site, FIRST, "PLANNED", 0, 10), statement_by(site, FIRST, "UPLOADED", 0, 1)):
            assert await hear(capped, "consent", stage.from_site(site, "consent", event)) == Ack()
    async with stage.client(capped) as client:
        (view,) = (await client.get("/budgets", params={"site": site.site_id})).json()["items"]
    assert (view["site_name"], view["epsilon_cap"], view["runs"][0]["charged_steps"]) == (site.name, 3.0, 10)
    assert view["runs"][0]["begun_steps"] == 1
    assert 0 < view["epsilon_used"] < view["epsilon"] < 3
    order = alpha_star(3.0, 1e-6)
    each, limit = 0.01 * order, budget(3.0, 1e-6, order)
    assert view["used_share"] == pytest.approx(each / limit)
    assert view["reserved_share"] == pytest.approx(9 * each / limit)
    assert view["used_share"] + view["reserved_share"] + view["left_share"] == pytest.approx(1)
    assert view["runs"][0]["exhausted_at_round"] == int(limit / each)


def test_a_run_exhausts_the_cap_after_what_others_keep() -> None:
    told = [said(FIRST, "PLANNED", 0, 10), said(SECOND, "PLANNED", 0, 10)]
    first, second = holdings(told)
    known = {FIRST: prices(0.01), SECOND: prices(0.03)}
    left = 5.0 - spent((first, second), known, ORDER)
    assert left == pytest.approx(1.0)
    assert exhausted_at(first, known[FIRST], left, ORDER) == 10 + 10
    assert exhausted_at(second, known[SECOND], left, ORDER) == 10 + 3
    assert exhausted_at(first, known[FIRST], -1.0, ORDER) == 10
    assert exhausted_at(first, (), left, ORDER) is None
    boundless = (PartPrice(part="training", uses=10, prices=(None,) * 63),)
    assert exhausted_at(first, boundless, left, ORDER) is None


async def test_the_operators_command_reads_what_consent_answers(stage: Stage, capped: App) -> None:
    site = stage.hospitals[0]
    await ask(stage, capped, FIRST, 0.01)
    await hear(capped, "consent", stage.from_site(site, "consent", statement_by(site, FIRST, "PLANNED", 0, 10)))
    async with stage.client(capped) as client:
        answer = (await client.get("/budgets")).content
    (told,) = Page[SiteBudget].model_validate_json(answer).items
    assert (told.site_name, told.used_share, told.runs[0].charged_steps) == (site.name, 0.0, 10)
