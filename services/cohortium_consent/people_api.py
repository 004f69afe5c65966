"""People over HTTP: signing in and out, stepping up, passes for the other services, accounts and roles.

A set-up token, an authenticator's secret and a session are shown once, in the answer that makes them. Making an account
twice is refused, and setting roles or ending an account twice is doing it once: no idempotency key is needed.
"""

from datetime import UTC, datetime
from typing import Annotated, Literal

from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse
from pydantic import Field, SecretStr

from cohortium_consent.accounts import Accounts
from cohortium_consent.oidc import REQUEST_S, Oidc
from cohortium_consent.people_store import Person, Session
from cohortium_consent.sign_in import LASTS_S, Opened, People, csrf_of
from cohortium_kit.clock import Clock
from cohortium_kit.http import HttpProblem
from cohortium_kit.paging import Limit, page_of
from cohortium_messages.consent import Line, PersonId
from cohortium_messages.ids import Wire
from cohortium_messages.paging import USUAL_ON_A_PAGE, Page
from cohortium_messages.people import Assignment, Assignments
from cohortium_platform.identity import Identity
from cohortium_platform.people.guard import COOKIE, CallerIn, ReachIn
from cohortium_platform.people.passes import LASTS, Pass, sign_pass
from cohortium_platform.people.passwords import LONGEST, totp_address

OIDC_COOKIE = "__Host-cohortium-oidc"
_SIGNED_IN = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Signed in</title>
<meta http-equiv="refresh" content="0;url=/people/me"><p>You are signed in. <a href="/people/me">Go on</a></p></html>
"""
ProviderPath = Annotated[str, Path(pattern=r"^[a-z][a-z0-9-]{0,31}$")]
PersonPath = Annotated[PersonId, Path()]
Secret = Annotated[SecretStr, Field(max_length=LONGEST)]
Code = Annotated[str, Field(pattern=r"^[0-9]{6}$")]


class SetUp(Wire):
    """The one-time token that was given to a person, and the password they choose."""

    person: PersonId
    token: Secret
    password: Secret


class SignIn(Wire):
    person: PersonId
    password: Secret
    code: Code | None = None


class StepUp(Wire):
    password: Secret
    code: Code | None = None


class CodeShown(Wire):
    code: Code


class Me(Wire):
    """Who is signed in. `csrf` goes with every change, as X-CSRF-Token."""

    person: PersonId
    name: str
    roles: Assignments
    method: str
    mfa: bool
    proved_at: datetime
    csrf: str


class PassWanted(Wire):
    service: Literal["enrolment", "scheduler", "aggregator", "audit"]


class PassGiven(Wire):
    """A bearer token for one service. It cannot be renewed, and ends by itself."""

    token: str
    ends_at: datetime


class Authenticator(Wire):
    """What an authenticator reads, as text or as a QR code. It is shown once."""

    address: str


class NewFirst(Wire):
    person: PersonId
    name: Line


class IdentityAt(Wire):
    """Who somebody is at an identity provider: the `sub` of its ID tokens, never an e-mail address."""

    provider: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,31}$")]
    subject: Annotated[str, Field(min_length=1, max_length=255)]


class NewPerson(Wire):
    """`person`: an opaque id, which the log shows. Without an identity a one-time set-up token is given."""

    person: PersonId
    name: Line
    roles: Assignments = ()
    identity: IdentityAt | None = None


class SetupToken(Wire):
    """Hand it to the person by a way of your own. It is shown once, and good for three days."""

    person: PersonId
    token: str | None


class RolesWanted(Wire):
    roles: Assignments


class PersonView(Wire):
    """One account, with the roles within the caller's reach."""

    person: PersonId
    name: str
    ended: bool
    waits_for_setup: bool
    roles: tuple[Assignment, ...]


def people_router(people: People, accounts: Accounts, oidc: Oidc, identity: Identity, clock: Clock) -> APIRouter:
    """Routes under `/people`. The key of `identity` signs passes."""
    router = APIRouter(prefix="/people")
    _add_oidc(router, oidc)
    _add_sign_in(router, people, accounts)
    _add_own(router, people, accounts, identity, clock)
    _add_accounts(router, accounts, oidc)
    return router


def _add_sign_in(router: APIRouter, people: People, accounts: Accounts) -> None:
    @router.post("/setup", status_code=204)
    async def set_up(request: Request, wanted: SetUp) -> None:
        """Choose a password with a one-time token; then sign in with it."""
        token, password = wanted.token.get_secret_value(), wanted.password.get_secret_value()
        await people.set_up(wanted.person, token, password, address_of(request))

    @router.post("/sign-in")
    async def sign_in(request: Request, response: Response, wanted: SignIn) -> Me:
        """Begin a session with a password. Any fault is told alike."""
        opened = await people.sign_in(
            wanted.person, wanted.password.get_secret_value(), wanted.code, address_of(request)
        )
        give_cookie(response, opened)
        return await _me(accounts, opened.token, opened.session)


def _add_oidc(router: APIRouter, oidc: Oidc) -> None:
    @router.get("/oidc/{provider}/start", status_code=303, response_class=RedirectResponse)
    async def begin_oidc(request: Request, provider: ProviderPath, *, step_up: bool = False) -> RedirectResponse:
        """Go to an identity provider to sign in; `step_up`: to show there again who has the session."""
        departure = await oidc.depart(provider, _token(request) if step_up else None, address_of(request))
        answer = RedirectResponse(departure.address, 303, {"cache-control": "no-store"})
        # Lax: the provider's page sends the browser back, and this cookie must come with it.
        answer.set_cookie(
            OIDC_COOKIE, departure.browser, max_age=int(REQUEST_S), path="/", secure=True, httponly=True, samesite="lax"
        )
        return answer

    @router.get("/oidc/{provider}/callback", response_class=HTMLResponse)
    async def end_oidc(
        request: Request,
        provider: ProviderPath,
        state: Annotated[str, Query(max_length=200)],
        code: Annotated[str, Query(max_length=4096)] = "",
        iss: Annotated[str | None, Query(max_length=2000)] = None,
    ) -> HTMLResponse:
        """Where the identity provider sends the browser back to."""
        opened = await oidc.arrive(provider, code, state, request.cookies.get(OIDC_COOKIE, ""), iss)
        # A page, not a redirect: on a way that began at another site the browser keeps the session's cookie back.
        answer = HTMLResponse(_SIGNED_IN, headers={"cache-control": "no-store"})
        answer.delete_cookie(OIDC_COOKIE, path="/", secure=True, httponly=True, samesite="lax")
        if opened is not None:
            give_cookie(answer, opened)
        return answer


def _add_own(router: APIRouter, people: People, accounts: Accounts, identity: Identity, clock: Clock) -> None:
    @router.get("/me")
    async def me(request: Request) -> Me:
        """Who is signed in."""
        return await _me(accounts, _token(request), await people.session_of(_token(request)))

    @router.post("/step-up")
    async def step_up(request: Request, wanted: StepUp) -> Me:
        """Show the password again, before something that counts: what is signed, who has which role."""
        given = wanted.password.get_secret_value()
        session = await people.step_up(_token(request), given, wanted.code, address_of(request))
        return await _me(accounts, _token(request), session)

    @router.post("/sign-out", status_code=204)
    async def sign_out(request: Request, response: Response) -> None:
        """End the session."""
        await people.sign_out(_token(request))
        response.delete_cookie(COOKIE, path="/", secure=True, httponly=True, samesite="strict")

    @router.post("/pass")
    async def give_pass(request: Request, wanted: PassWanted, caller: CallerIn) -> PassGiven:
        """A pass for another service, for some minutes."""
        session = await people.session_of(_token(request))
        now = clock.now()
        said = Pass(
            federation=identity.trust.federation,
            service=wanted.service,
            person=session.person,
            roles=caller.assignments,
            issued_at=now,
            ends_at=now + LASTS,
            proved_at=caller.proved_at,
        )
        return PassGiven(token=sign_pass(said, identity.key), ends_at=said.ends_at)

    @router.post("/totp")
    async def new_authenticator(request: Request) -> Authenticator:
        """Begin to use an authenticator; it counts once a code of it is confirmed."""
        session = await people.session_of(_token(request))
        secret = await people.new_totp(_token(request))
        return Authenticator(address=totp_address(secret, session.person, identity.trust.federation))

    @router.post("/totp/confirm")
    async def confirm_authenticator(request: Request, wanted: CodeShown) -> Me:
        """From now on a code is asked for with the password."""
        await people.confirm_totp(_token(request), wanted.code, address_of(request))
        return await _me(accounts, _token(request), await people.session_of(_token(request)))


def _add_accounts(router: APIRouter, accounts: Accounts, oidc: Oidc) -> None:
    @router.post("/first", status_code=201)
    async def first(wanted: NewFirst) -> SetupToken:
        """The first governance officer, by the operator's token; refused as soon as there is one."""
        return SetupToken(person=wanted.person, token=await accounts.first(wanted.person, wanted.name))

    @router.get("")
    async def list_people(
        reach: ReachIn,
        after: Annotated[str, Query(max_length=64)] = "",
        limit: Limit = USUAL_ON_A_PAGE,
    ) -> Page[PersonView]:
        """People and their roles, in the order of their ids; a site admin sees those of the hospital."""
        found = await accounts.listed(reach, after, limit + 1)
        return page_of(found, limit, lambda one: _view(*one), lambda view: view.person)

    @router.post("", status_code=201)
    async def add_person(wanted: NewPerson, caller: CallerIn, reach: ReachIn) -> SetupToken:
        """Add a person: with an identity at a provider, or with a one-time token to choose a password with."""
        at = None
        if wanted.identity is not None:
            issuer = oidc.issuers.get(wanted.identity.provider)
            if issuer is None:
                text = f"identity.provider: there is no {wanted.identity.provider}; the settings name providers"
                raise HttpProblem(422, "provider_unknown", text)
            at = issuer, wanted.identity.subject
        token = await accounts.add(caller, reach, (wanted.person, wanted.name), wanted.roles, at)
        return SetupToken(person=wanted.person, token=token)

    @router.put("/{person}/roles")
    async def set_roles(person: PersonPath, wanted: RolesWanted, caller: CallerIn, reach: ReachIn) -> RolesWanted:
        """Give and take roles: within the caller's reach the person has these, and no other. Never one's own."""
        return RolesWanted(roles=await accounts.set_roles(caller, reach, person, wanted.roles))

    @router.post("/{person}/reset")
    async def reset(person: PersonPath, caller: CallerIn, reach: ReachIn) -> SetupToken:
        """A new one-time token for who lost password or authenticator; sessions end."""
        return SetupToken(person=person, token=await accounts.reset(caller, reach, person))

    @router.delete("/{person}", status_code=204)
    async def end_person(person: PersonPath, caller: CallerIn, reach: ReachIn) -> None:
        """End an account and erase the name; the id stays in the log, and is not given again."""
        await accounts.end(caller, reach, person)


def give_cookie(response: Response, opened: Opened) -> None:
    """The session's cookie: for this host over TLS only, not for scripts, and not with requests of other sites."""
    response.set_cookie(
        COOKIE, opened.token, max_age=int(LASTS_S), path="/", secure=True, httponly=True, samesite="strict"
    )
    response.headers["cache-control"] = "no-store"


def address_of(request: Request) -> str:
    """Where a request comes from; behind a proxy, the proxy."""
    return request.client.host if request.client is not None else "-"


def _token(request: Request) -> str:
    return request.cookies.get(COOKIE, "")


async def _me(accounts: Accounts, token: str, session: Session) -> Me:
    person, roles = await accounts.known(session.person)
    return Me(
        person=person.person,
        name=person.name,
        roles=roles,
        method=session.method,
        mfa=session.mfa,
        proved_at=datetime.fromtimestamp(session.proved_at, UTC),
        csrf=csrf_of(token),
    )


def _view(person: Person, roles: tuple[Assignment, ...]) -> PersonView:
    return PersonView(
        person=person.person,
        name=person.name,
        ended=person.ended,
        waits_for_setup=person.setup_digest is not None,
        roles=roles,
    )
