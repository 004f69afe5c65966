"""`cohortium people`: who may sign in at the services, in which roles.

The operator's token makes the first officer, and nobody else. Everything after that is done by a person: each command
signs in with their password, does one thing and signs out again. Passwords are asked for, or come from the environment.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

import httpx
import typer
from pydantic import ValidationError

from cohortium_cli.federation import write_secret
from cohortium_cli.operator import SERVICES, OperatorError, OperatorSettings, every_item, problem_of
from cohortium_cli.options import OPERATOR_DEFAULT, Json, OperatorFile
from cohortium_cli.output import USAGE, done, fail, friendly, say, show, table
from cohortium_kit.settings import read_secret_file
from cohortium_messages.paging import Page
from cohortium_messages.people import PLACES, Assignment, Place, Role
from cohortium_platform.people.guard import COOKIE

T = TypeVar("T")
PASSWORD_VARIABLE, CODE_VARIABLE = "COHORTIUM_PASSWORD", "COHORTIUM_CODE"
TIMEOUT_S = 30.0

people_app = typer.Typer(no_args_is_help=True, help="People who sign in at the services, and their roles.")
Person = Annotated[str, typer.Argument(help="The person's opaque id; the log shows it, so make it no name.")]
By = Annotated[str, typer.Option("--as", help="Who does this: your own id. The password is asked for.")]
Name = Annotated[str, typer.Option(help="The person's name, for people to read; it is in no log.")]
Roles = Annotated[
    list[str] | None,
    typer.Option("--role", help="officer, operator, auditor, integrator, site_admin:SITE, study_lead:STUDY …; repeat."),
]


class Visit:
    """A person at consent: signed in for the time of a command."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client

    @classmethod
    def at(cls, settings: OperatorSettings) -> "Visit":
        return cls(httpx.AsyncClient(base_url=settings.consent, timeout=TIMEOUT_S))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if COOKIE in self._client.headers.get("cookie", ""):
            await self._client.post("/people/sign-out")
        await self._client.aclose()

    async def ask(self, method: str, path: str, **more: Any) -> Any:
        """The answer's JSON; raises `OperatorError`."""
        try:
            answer = await self._client.request(method, path, **more)
        except httpx.HTTPError as error:
            where = self._client.base_url
            raise OperatorError(
                f"consent does not answer at {where} ({type(error).__name__})", code="unreachable"
            ) from error
        if answer.is_error:
            raise problem_of("consent", answer)
        cookie = answer.cookies.get(COOKIE)
        if cookie is not None:
            # By hand: on a pilot's own machine there is no TLS, and the jar would keep a secure cookie back.
            self._client.cookies.clear()
            self._client.headers["cookie"] = f"{COOKIE}={cookie}"
        return answer.json() if answer.content else None

    async def sign_in(self, person: str) -> None:
        """Sign in with a password, and a code where an authenticator is set up."""
        wanted = {"person": person, "password": _secret(PASSWORD_VARIABLE, f"password of {person}")}
        try:
            me = await self.ask("POST", "/people/sign-in", json=wanted)
        except OperatorError as error:
            if error.code != "code_needed":
                raise
            wanted["code"] = _secret(CODE_VARIABLE, "code of your authenticator")
            me = await self.ask("POST", "/people/sign-in", json=wanted)
        self._client.headers["x-csrf-token"] = me["csrf"]


@people_app.command()
def first(person: Person, name: Name, operator: OperatorFile = OPERATOR_DEFAULT, as_json: Json = False) -> None:
    """Make the first governance officer. Prints a one-time token; it works only while there is no officer."""

    async def make(visit: Visit, settings: OperatorSettings) -> Any:
        bearer = {"Authorization": f"Bearer {read_secret_file(settings.token_file)}"}
        return await visit.ask("POST", "/people/first", json={"person": person, "name": name}, headers=bearer)

    _tell_token(_visited(operator, make), as_json=as_json)


@people_app.command()
def setup(person: Person, operator: OperatorFile = OPERATOR_DEFAULT, as_json: Json = False) -> None:
    """Choose your password, with the one-time token that you were given."""

    async def choose(visit: Visit, _: OperatorSettings) -> Any:
        token = _secret("COHORTIUM_SETUP_TOKEN", "one-time token")
        wanted = {"person": person, "token": token, "password": _secret(PASSWORD_VARIABLE, "new password", twice=True)}
        return await visit.ask("POST", "/people/setup", json=wanted)

    _visited(operator, choose)
    show({"person": person}, as_json=as_json, human=lambda: done(f"{person} can sign in"))


@people_app.command()
def add(
    person: Person,
    name: Name,
    by: By,
    role: Roles = None,
    provider: Annotated[str | None, typer.Option(help="An identity provider of consent's settings.")] = None,
    subject: Annotated[str | None, typer.Option(help="The person's `sub` there.")] = None,
    operator: OperatorFile = OPERATOR_DEFAULT,
    as_json: Json = False,
) -> None:
    """Add a person with their roles: with an identity at a provider, or with a one-time token for a password."""
    if (provider is None) != (subject is None):
        fail("--provider and --subject belong together", code=USAGE)
    wanted: dict[str, Any] = {"person": person, "name": name, "roles": _assignments(role)}
    if provider is not None:
        wanted["identity"] = {"provider": provider, "subject": subject}
    made = _signed_in(operator, by, lambda visit: visit.ask("POST", "/people", json=wanted))
    _tell_token(made, as_json=as_json)


@people_app.command()
def roles(
    person: Person, by: By, role: Roles = None, operator: OperatorFile = OPERATOR_DEFAULT, as_json: Json = False
) -> None:
    """Give a person exactly these roles, within your reach; without --role, none."""
    wanted = {"roles": _assignments(role)}
    found = _signed_in(operator, by, lambda visit: visit.ask("PUT", f"/people/{person}/roles", json=wanted))
    show(found, as_json=as_json, human=lambda: done(f"{person}: {_role_words(found['roles'])}"))


@people_app.command()
def reset(person: Person, by: By, operator: OperatorFile = OPERATOR_DEFAULT, as_json: Json = False) -> None:
    """Give a new one-time token to who lost password or authenticator; the old ones, and sessions, end."""
    made = _signed_in(operator, by, lambda visit: visit.ask("POST", f"/people/{person}/reset"))
    _tell_token(made, as_json=as_json)


@people_app.command()
def end(person: Person, by: By, operator: OperatorFile = OPERATOR_DEFAULT, as_json: Json = False) -> None:
    """End an account, and erase the person's name; the id is not given again."""
    _signed_in(operator, by, lambda visit: visit.ask("DELETE", f"/people/{person}"))
    show({"person": person}, as_json=as_json, human=lambda: done(f"{person} is no account any more"))


@people_app.command("list")
def list_people(by: By, operator: OperatorFile = OPERATOR_DEFAULT, as_json: Json = False) -> None:
    """List people and their roles, as far as you may see them."""

    async def all_pages(visit: Visit) -> list[Any]:
        async def one(place: Mapping[str, str]) -> Page[Any]:
            return Page[Any].model_validate(await visit.ask("GET", "/people", params=place))

        return await every_item(one, "consent's /people")

    found = _signed_in(operator, by, all_pages)
    rows = [[one["person"], one["name"], _state(one), _role_words(one["roles"])] for one in found]
    columns = ["person", "name", "state", "roles"]
    show(found, as_json=as_json, human=lambda: table("People", columns, rows, empty="There is nobody yet."))


@people_app.command("pass")
def get_pass(
    service: Annotated[str, typer.Argument(help="enrolment, scheduler, aggregator or audit.")],
    by: By,
    out: Annotated[Path, typer.Option("--out", "-o", help="The file for the pass; readable by you alone.")],
    operator: OperatorFile = OPERATOR_DEFAULT,
    as_json: Json = False,
) -> None:
    """Fetch a pass for one service, good for minutes: `token_file` of operator settings of your own can name it."""
    if service not in SERVICES or service == "consent":
        fail(f"there are no passes for {service}; it is enrolment, scheduler, aggregator or audit", code=USAGE)
    made = _signed_in(operator, by, lambda visit: visit.ask("POST", "/people/pass", json={"service": service}))
    with friendly():
        out.unlink(missing_ok=True)
        write_secret(out, made["token"])
    facts = {"file": str(out), "ends_at": made["ends_at"]}
    show(facts, as_json=as_json, human=lambda: done(f"{out}: a pass for {service} until {made['ends_at']}"))


def _visited(operator: Path, do: Callable[[Visit, OperatorSettings], Awaitable[T]]) -> T:
    async def inside() -> T:
        settings = OperatorSettings.load(operator)
        async with Visit.at(settings) as visit:
            return await do(visit, settings)

    with friendly():
        return asyncio.run(inside())


def _signed_in(operator: Path, by: str, do: Callable[[Visit], Awaitable[T]]) -> T:
    async def inside(visit: Visit, _: OperatorSettings) -> T:
        await visit.sign_in(by)
        return await do(visit)

    return _visited(operator, inside)


def _secret(variable: str, what: str, *, twice: bool = False) -> str:
    given = os.environ.get(variable)
    return given if given is not None else str(typer.prompt(what, hide_input=True, confirmation_prompt=twice, err=True))


def _assignments(texts: list[str] | None) -> list[dict[str, Any]]:
    found = []
    for text in texts or []:
        word, _, place = text.partition(":")
        try:
            role = Role(word)
            fields = {Place.INSTITUTION: "site_id", Place.STUDY: "study_id"}
            where = {fields[PLACES[role]]: place} if place and PLACES[role] in fields else {}
            if place and not where:
                raise ValueError(f"{role} has no place")
            found.append(Assignment(role=role, **where).model_dump(mode="json"))
        except ValidationError as error:
            fail(f"--role {text}: {error.errors()[0]['msg']}", code=USAGE)
        except ValueError:
            known = ", ".join(one.value for one in Role if one is not Role.MACHINE)
            fail(
                f"--role {text}: give one of {known}; site_… with :SITE, study_lead and reviewer with :STUDY",
                code=USAGE,
            )
    return found


def _tell_token(made: dict[str, Any], *, as_json: bool) -> None:
    def human() -> None:
        done(f"{made['person']} is added")
        if made["token"] is not None:
            say(f"  one-time token, shown only now, good for three days: {made['token']}")
            say(f"  they choose a password with: cohortium people setup {made['person']}")

    show(made, as_json=as_json, human=human)


def _role_words(given: list[dict[str, Any]]) -> str:
    words = [
        f"{one['role']}{':' if (place := one['site_id'] or one['study_id']) else ''}{place or ''}" for one in given
    ]
    return ", ".join(words) or "no roles"


def _state(one: dict[str, Any]) -> str:
    return "ended" if one["ended"] else "waits for a password" if one["waits_for_setup"] else "active"
