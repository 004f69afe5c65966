"""Every role at every route of every service: who may pass is written down here a second time, by hand."""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Annotated

import httpx
import pytest
from fastapi import Depends, FastAPI, Request
from fastapi.routing import iter_route_contexts
from pydantic import ValidationError

from cohortium_cli.contracts_openapi import SERVICES, application
from cohortium_kit.http import HttpProblem
from cohortium_kit.testing.clock import ManualClock
from cohortium_messages.governance import ServiceKeys, TrustDocument
from cohortium_messages.ids import SiteId, StudyId
from cohortium_messages.people import PLACES, Assignment, Place, Role
from cohortium_platform.people.guard import FRESH, Guard, guard_of
from cohortium_platform.people.passes import LASTS, Pass, PassRefused, read_pass, sign_pass
from cohortium_platform.people.rights import RIGHTS, ROUTES, STEP_UP, line_of, together
from cohortium_platform.service import PlatformSettings
from cohortium_protocol.signing import IdentityKey

STUDY, OTHER_STUDY = "heart-disease", "other-study"
SITE, OTHER_SITE = "00000000-0000-4000-8000-000000000001", "00000000-0000-4000-8000-000000000002"
LETTERS = {
    "O": Role.OPERATOR,
    "F": Role.OFFICER,
    "L": Role.STUDY_LEAD,
    "R": Role.REVIEWER,
    "A": Role.SITE_ADMIN,
    "P": Role.SITE_APPROVER,
    "I": Role.INTEGRATOR,
    "U": Role.AUDITOR,
    "M": Role.MACHINE,
}
PUBLIC = "*"
SIGNED_IN = "OFLRAPIU"
EXPECTED = {
    "consent": {
        "GET /grants": "OFLRAPUM",
        "GET /authorise": "OFLRAPUM",
        "GET /budgets": "OFAPUM",
        "GET /documents": "OFLRAPUM",
        "GET /documents/{digest}": "OFLRAPUM",
        "POST /documents": "FLRAPM",
        "GET /studies/{study_id}/papers": "OFLRAPIUM",
        "GET /withdrawals": "OFLRAPUM",
        "GET /withdrawals/{digest}": "OFLRAPUM",
        "GET /withdrawals/{digest}/receipt": "OFLRAPUM",
        "POST /withdrawals/{digest}/close": "FAM",
        "POST /people/first": "M",
        "GET /people": "FAU",
        "POST /people": "FA",
        "PUT /people/{person}/roles": "FA",
        "POST /people/{person}/reset": "FA",
        "DELETE /people/{person}": "FA",
        "POST /people/setup": PUBLIC,
        "POST /people/sign-in": PUBLIC,
        "GET /people/oidc/{provider}/start": PUBLIC,
        "GET /people/oidc/{provider}/callback": PUBLIC,
        "GET /people/me": SIGNED_IN,
        "POST /people/step-up": SIGNED_IN,
        "POST /people/sign-out": SIGNED_IN,
        "POST /people/pass": SIGNED_IN,
        "POST /people/totp": SIGNED_IN,
        "POST /people/totp/confirm": SIGNED_IN,
    },
    "enrolment": {
        "GET /trust": PUBLIC,
        "GET /sites": "OFAPUM",
        "POST /sites": "OM",
        "POST /sites/{site_id}/revoke": "OFAM",
        "POST /manifests/draft": "OFM",
        "POST /manifests": "FM",
        "GET /manifests/{study_id}": "OFLRUM",
    },
    "scheduler": {
        "POST /studies": "OM",
        "GET /runs": "OFLRAPUM",
        "GET /runs/{run_id}": "OFLRAPUM",
        "GET /runs/{run_id}/lineage": "OFLRAPUM",
        "POST /runs/{run_id}/stop": "OFLM",
    },
    "aggregator": {
        "GET /runs/{run_id}/models": "OFIUM",
        "GET /runs/{run_id}/model": "OFIUM",
        "GET /runs/{run_id}/release": "OFIUM",
        "POST /runs/{run_id}/release": "FM",
    },
    "audit": {
        "GET /logs": "OFLRAPIUM",
        "GET /logs/{log}/checkpoint": "OFLRAPIUM",
        "GET /logs/{log}/witnesses": "OFLRAPIUM",
        "GET /logs/{log}/entries": "OFLRAPIUM",
        "GET /logs/{log}/proof/inclusion": "OFLRAPIUM",
        "GET /logs/{log}/proof/consistency": "OFLRAPIUM",
        "GET /events/{event_id}/proof": "OFLRAPIUM",
        "GET /events/{event_id}/tlog-proof": "OFLRAPIUM",
        "GET /studies/{study_id}/bundle": "OFLRAPIUM",
        "POST /logs/{log}/reviews": "FU",
    },
}
HEALTH = {"GET /healthz": PUBLIC, "GET /readyz": PUBLIC}
NOW = datetime(2027, 1, 4, 12, tzinfo=UTC)
KEY = IdentityKey.generate()
TRUST = TrustDocument(
    federation="hospitals.example",
    version=1,
    issued_at=NOW,
    services=ServiceKeys(
        enrolment=KEY.public,
        consent=KEY.public,
        scheduler=KEY.public,
        aggregator=KEY.public,
        audit=KEY.public,
        aggregator_seal=bytes(32),
    ),
    governance_keys=(KEY.public,),
    threshold=1,
)
TOKEN = "the-operators-token"


def assignment(role: Role, *, study: str = STUDY, site: str = SITE) -> Assignment:
    place = PLACES[role]
    return Assignment.model_validate(
        {
            "role": role,
            "study_id": study if place is Place.STUDY else None,
            "site_id": site if place is Place.INSTITUTION else None,
        }
    )


def a_pass(service: str, *roles: Assignment, proved: timedelta = timedelta(0)) -> str:
    said = Pass(
        federation=TRUST.federation,
        service=service,
        person="p-0001",
        roles=roles,
        issued_at=NOW,
        ends_at=NOW + LASTS,
        proved_at=NOW - proved,
    )
    return sign_pass(said, KEY)


def routes_of(app: FastAPI) -> set[str]:
    found = set()
    for route in iter_route_contexts(app.routes):
        path, methods = getattr(route, "path", None), getattr(route, "methods", None)
        if path is not None and path != "/openapi.json":
            found |= {f"{method} {path}" for method in methods or ()}
    return found


def filled(path: str) -> str:
    known = {"study_id": STUDY, "log": STUDY, "site_id": SITE, "site": SITE}
    known |= {"run_id": SITE, "digest": "00" * 32, "event_id": "e", "person": "p-0002", "provider": "north"}
    for name, value in known.items():
        path = path.replace(f"{{{name}}}", value)
    assert "{" not in path, "tell this test what stands for it"
    return path


LET_IN = 418


def letting_in(guard: Guard) -> Callable[..., Awaitable[None]]:
    """The guard itself, and an end right behind it: there is nothing in the house."""

    async def dependency(request: Request, _: Annotated[None, Depends(guard)]) -> None:
        raise HttpProblem(LET_IN, "let_in", request.url.path)

    return dependency


async def studies_of(sites: frozenset[SiteId]) -> frozenset[StudyId]:
    """The one hospital is a member of the one study, the other one of the other."""
    member = {SITE: STUDY, OTHER_SITE: OTHER_STUDY}
    return frozenset(StudyId(member[site]) for site in sites if site in member)


async def nobody_signed_in(request: Request) -> None:
    """Who asks, by a session: nobody."""


@pytest.fixture(scope="module")
def apps(tmp_path_factory: pytest.TempPathFactory) -> dict[str, FastAPI]:
    token = tmp_path_factory.mktemp("people") / "token"
    token.write_text(TOKEN)
    token.chmod(0o600)
    settings = PlatformSettings.model_construct(operator_token_file=token)
    guards = {name: guard_of(settings, name, TRUST, ManualClock(NOW), studies_of=studies_of) for name in SERVICES}
    return {name: application(name, letting_in(guard)) for name, guard in guards.items()}


async def ask(
    apps: dict[str, FastAPI], service: str, route: str, bearer: str | None, *, study: str = STUDY, site: str = SITE
) -> httpx.Response:
    """What the guard of the service says; 418 is what lies behind it."""
    method, path = route.split(" ")
    headers = {} if bearer is None else {"Authorization": f"Bearer {bearer}"}
    transport = httpx.ASGITransport(apps[service])
    url = filled(path).replace(STUDY, study).replace(SITE, site) if study != STUDY else filled(path)
    async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
        return await client.request(method, url, headers=headers, params={"study": study, "site": site})


def test_every_route_has_its_line_and_every_line_its_route(apps: dict[str, FastAPI]) -> None:
    for service in SERVICES:
        real = routes_of(apps[service])
        assert real == (EXPECTED[service] | HEALTH).keys(), f"{service}: say here who may, and in rights.py"
        assert real == ROUTES[service].keys() - {"GET /metrics"}, service


@pytest.mark.parametrize("service", SERVICES)
async def test_each_role_passes_where_it_may_and_nowhere_else(apps: dict[str, FastAPI], service: str) -> None:
    for route, may in (EXPECTED[service] | HEALTH).items():
        passes_of = line_of(service, *route.split(" ")).passes_of or service
        nobody = await ask(apps, service, route, None)
        assert nobody.status_code == (LET_IN if may == PUBLIC else 401), route
        for letter, role in LETTERS.items():
            bearer = TOKEN if role is Role.MACHINE else a_pass(passes_of, assignment(role))
            answer = await ask(apps, service, route, bearer)
            expected = LET_IN if may == PUBLIC or letter in may else 403
            assert answer.status_code == expected, f"{service} {route} {role}"
            assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("service", SERVICES)
async def test_a_role_ends_where_its_study_or_hospital_ends(apps: dict[str, FastAPI], service: str) -> None:
    for route, may in EXPECTED[service].items():
        line = line_of(service, *route.split(" "))
        if may == PUBLIC or line.keeps or line.right not in RIGHTS:
            continue
        for letter in "LRAP":
            role = assignment(LETTERS[letter])
            bearer = a_pass(line.passes_of or service, role)
            answer = await ask(apps, service, route, bearer, study=OTHER_STUDY, site=OTHER_SITE)
            assert answer.status_code == 403, f"{service} {route} {role}"


async def test_a_pass_for_the_log_opens_the_papers_beside_it_and_nothing_else_at_consent() -> None:
    """The guard as consent has it: people there have sessions, and no pass makes another one."""
    settings = PlatformSettings.model_construct(operator_token_file=None)
    guard = guard_of(settings, "consent", TRUST, ManualClock(NOW), nobody_signed_in, studies_of)
    consent = {"consent": application("consent", letting_in(guard))}
    everything = tuple(assignment(role) for role in (Role.OFFICER, Role.SITE_ADMIN, Role.REVIEWER))
    opened = set()
    for route, may in EXPECTED["consent"].items():
        for service in SERVICES:
            answer = await ask(consent, "consent", route, a_pass(service, *everything))
            if answer.status_code == LET_IN and may != PUBLIC:
                opened.add((service, route))
            assert may == PUBLIC or answer.status_code in (LET_IN, 401), f"{service} {route}"
    assert opened == {("audit", "GET /studies/{study_id}/papers")}


async def test_a_hospital_that_nobody_made_a_member_reads_no_log(apps: dict[str, FastAPI]) -> None:
    stranger = a_pass("audit", assignment(Role.SITE_ADMIN, site="00000000-0000-4000-8000-000000000003"))
    assert (await ask(apps, "audit", "GET /logs/{log}/entries", stranger)).status_code == 403


async def test_a_name_added_to_the_query_opens_no_other_path(apps: dict[str, FastAPI]) -> None:
    transport = httpx.ASGITransport(apps["audit"])
    async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
        for role in (Role.STUDY_LEAD, Role.SITE_ADMIN):
            bearer = {"Authorization": f"Bearer {a_pass('audit', assignment(role))}"}
            for query in ({"study": STUDY}, {"log": STUDY}, {"study_id": STUDY}, {"site": SITE}, {"site_id": SITE}):
                for path in (f"/logs/{OTHER_STUDY}/entries", f"/studies/{OTHER_STUDY}/bundle", "/logs/-/entries"):
                    assert (await client.get(path, params=query, headers=bearer)).status_code == 403


async def test_what_counts_is_asked_for_again_after_a_while(apps: dict[str, FastAPI]) -> None:
    for service in SERVICES:
        for route in EXPECTED[service]:
            right = line_of(service, *route.split(" ")).right
            passes_of = line_of(service, *route.split(" ")).passes_of or service
            officer = a_pass(passes_of, assignment(Role.OFFICER), proved=FRESH + timedelta(seconds=1))
            if right in RIGHTS and Role.OFFICER in RIGHTS[right]:
                answer = await ask(apps, service, route, officer)
                stale = answer.status_code == 403 and answer.json()["title"] == "step_up_needed"
                assert stale == (right in STEP_UP), route


def test_stopping_asks_nobody_to_step_up() -> None:
    assert STEP_UP.isdisjoint({"runs.stop", "sites.revoke"})
    assert RIGHTS.keys() >= STEP_UP
    assert {line.right for lines in ROUTES.values() for line in lines.values()} - {"public", "self"} <= RIGHTS.keys()


async def test_a_route_without_a_line_is_the_machines_alone() -> None:
    guard = Guard("consent", TOKEN, now=lambda: NOW, read_pass=None)
    app = application("consent", guard)

    @app.get("/new")
    async def new() -> str:
        return "new"

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service") as client:
        assert (await client.get("/new")).status_code == 401
        assert (await client.get("/new", headers={"Authorization": f"Bearer {TOKEN}"})).status_code == 200


class TestPasses:
    @pytest.mark.parametrize(
        ("changed", "said"),
        [
            ({"service": "audit"}, "for audit"),
            ({"federation": "another.example"}, "another.example"),
            ({"ends_at": NOW}, "has ended"),
            ({"issued_at": NOW + timedelta(minutes=2)}, "has ended"),
        ],
    )
    def test_a_pass_is_good_for_one_service_of_one_federation_and_some_minutes(
        self, changed: dict[str, object], said: str
    ) -> None:
        good = read_pass(a_pass("consent"), TRUST, "consent", NOW)
        assert good.person == "p-0001"
        with pytest.raises(PassRefused, match=said):
            read_pass(sign_pass(good.model_copy(update=changed), KEY), TRUST, "consent", NOW)

    def test_nobody_but_consent_makes_passes(self) -> None:
        good = a_pass("consent")
        body, signature = good.removeprefix("cp1.").split(".")
        forged = sign_pass(read_pass(good, TRUST, "consent", NOW), IdentityKey.generate())
        bent = f"cp1.{'A' + body[1:]}.{signature}"
        for text in (forged, bent, f"cp1.{body}.", f"cp1.{body}", f"cp1..{signature}", "cp1.é.é", "", "x" * 20_000):
            with pytest.raises(PassRefused):
                read_pass(text, TRUST, "consent", NOW)


def test_roles_have_their_place_and_some_exclude_each_other() -> None:
    for role in Role:
        other = {Place.STUDY: {"site_id": SITE}, Place.INSTITUTION: {"study_id": STUDY}, Place.FEDERATION: {}}
        wrong = other[PLACES[role]] if PLACES[role] is not Place.FEDERATION else {"site_id": SITE}
        with pytest.raises(ValidationError):
            Assignment.model_validate({"role": role, **wrong})
    with pytest.raises(ValidationError, match="machine"):
        Assignment(role=Role.MACHINE)
    assert together(frozenset({Role.OPERATOR, Role.OFFICER})) == (Role.OPERATOR, Role.OFFICER)
    assert together(frozenset({Role.AUDITOR, Role.SITE_ADMIN})) is not None
    assert together(frozenset({Role.SITE_ADMIN, Role.SITE_APPROVER, Role.REVIEWER})) is None
