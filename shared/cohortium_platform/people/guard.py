"""The guard of a service's routes: finds out who asks, and lets them pass if the table of rights does.

Three ways to say who one is: the operator's token; a pass, which consent signs for a person for some minutes; and at
consent itself the session of a person who signed in.
"""

import hmac
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Annotated, Final

from fastapi import Depends, Request
from fastapi.security import APIKeyCookie, HTTPAuthorizationCredentials, HTTPBearer

from cohortium_kit.clock import Clock
from cohortium_kit.http import HttpProblem
from cohortium_kit.settings import Settings, read_secret_file
from cohortium_messages.governance import TrustDocument
from cohortium_messages.ids import SiteId, StudyId
from cohortium_messages.people import PLACES, Assignment, Place, Role
from cohortium_platform.people.passes import PassRefused, read_pass
from cohortium_platform.people.rights import (
    BY_MEMBERSHIP,
    MACHINE_ONLY,
    PUBLIC,
    RIGHTS,
    SELF,
    STEP_UP,
    Line,
    line_of,
)

COOKIE: Final = "__Host-cohortium"
FRESH: Final = timedelta(minutes=5)
"""So long after showing who they are, people may use rights that ask for it."""

_bearer = HTTPBearer(
    auto_error=False, description="The operator's token of `operator_token_file`, or a person's pass from consent."
)
_cookie = APIKeyCookie(name=COOKIE, auto_error=False, description="A session at consent; changes need X-CSRF-Token.")


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks. `person` is an opaque id, and None for the operator's token; `proved_at`: when they last showed who
    they are."""

    person: str | None
    assignments: tuple[Assignment, ...]
    proved_at: datetime


@dataclass(frozen=True, slots=True)
class Reach:
    """How far a caller may use one right: everywhere, or in these studies and at these hospitals."""

    everywhere: bool
    studies: frozenset[StudyId] = frozenset()
    sites: frozenset[SiteId] = frozenset()

    def covers(self, *, study: StudyId | None = None, site: SiteId | None = None) -> bool:
        """Whether something that is about this study, or this hospital, is within reach."""
        return self.everywhere or study in self.studies or site in self.sites

    def __bool__(self) -> bool:
        return self.everywhere or bool(self.studies) or bool(self.sites)


FindCaller = Callable[[Request], Awaitable[Caller | None]]
"""Who asks, by a session of this service; None if there is none. Raises `HttpProblem` for one that will not do."""
ReadPass = Callable[[str, str], Caller]
"""Who a pass is for, given its text and the service that it must name. Raises `HttpProblem` 401 for one that will not
do."""
StudiesOf = Callable[[frozenset[SiteId]], Awaitable[frozenset[StudyId]]]
"""The studies in whose manifests one of these hospitals is or was a member."""


class Guard:
    """A dependency of every route of one service. Leaves `caller` and `reach` in the request's state."""

    def __init__(
        self,
        service: str,
        operator_token: str | None,
        *,
        now: Callable[[], datetime],
        read_pass: ReadPass | None = None,
        find_caller: FindCaller | None = None,
        studies_of: StudiesOf | None = None,
    ) -> None:
        self._service = service
        self._token = operator_token
        self._now = now
        self._read_pass = read_pass
        self._find_caller = find_caller
        self._studies_of = studies_of

    async def __call__(
        self,
        request: Request,
        bearer: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)] = None,
        cookie: Annotated[str | None, Depends(_cookie)] = None,
    ) -> None:
        line = line_of(self._service, request.method, request.scope["route"].path)
        if line.right == PUBLIC:
            return
        caller = await self._who(request, line, None if bearer is None else bearer.credentials, cookie)
        request.state.caller = caller
        request.state.reach = await self._with_memberships(_reach(caller, line.right), line.right)
        if not line.keeps:
            _check_named(request.state.reach, line.within, request)
        if line.right in STEP_UP and caller.person is not None and self._now() - caller.proved_at > FRESH:
            raise HttpProblem(
                403, "step_up_needed", "show who you are again: POST /people/step-up, or sign in again, then repeat"
            )

    async def _with_memberships(self, reach: Reach, right: str) -> Reach:
        if right not in BY_MEMBERSHIP or not reach.sites or self._studies_of is None:
            return reach
        return replace(reach, studies=reach.studies | await self._studies_of(reach.sites))

    async def _who(self, request: Request, line: Line, bearer: str | None, cookie: str | None) -> Caller:
        if bearer is not None:
            if self._token is not None and hmac.compare_digest(bearer.encode(), self._token.encode()):
                return Caller(None, (), self._now())
            # Where people sign in they have sessions; a pass there would let its holder make the next one.
            passes_of = line.passes_of or ("" if self._find_caller is not None else self._service)
            if passes_of and self._read_pass is not None:
                return self._read_pass(bearer, passes_of)
        elif cookie is not None and self._find_caller is not None:
            found = await self._find_caller(request)
            if found is not None:
                return found
        raise HttpProblem(401, "not_authorised", "send the operator's token or a pass as a bearer token, or sign in")


def guard_of(
    settings: Settings,
    service: str,
    trust: TrustDocument,
    clock: Clock,
    find_caller: FindCaller | None = None,
    studies_of: StudiesOf | None = None,
) -> Guard:
    """The guard of one service of this federation; without `studies_of` no right goes by membership there. Raises
    `ConfigurationError` for a token that cannot be read."""
    token = read_secret_file(settings.operator_token_file) if settings.operator_token_file else None

    def read(text: str, passes_of: str) -> Caller:
        try:
            read = read_pass(text, trust, passes_of, clock.now())
        except PassRefused as refused:
            raise HttpProblem(401, "pass_refused", str(refused)) from None
        return Caller(read.person, read.roles, read.proved_at)

    return Guard(service, token, now=clock.now, read_pass=read, find_caller=find_caller, studies_of=studies_of)


def reach_of(caller: Caller, right: str) -> Reach:
    """Where the caller may use this right; false if nowhere."""
    roles = RIGHTS[right]
    if caller.person is None:
        return Reach(everywhere=Role.MACHINE in roles)
    held = [one for one in caller.assignments if one.role in roles]
    return Reach(
        everywhere=any(PLACES[one.role] is Place.FEDERATION for one in held),
        studies=frozenset(one.study_id for one in held if one.study_id is not None),
        sites=frozenset(one.site_id for one in held if one.site_id is not None),
    )


def caller_in(request: Request) -> Caller:
    """Who asks, in a route that is not public."""
    caller: Caller = request.state.caller
    return caller


def reach_in(request: Request) -> Reach:
    """How far the caller reaches, in a route that keeps to it."""
    reach: Reach = request.state.reach
    return reach


CallerIn = Annotated[Caller, Depends(caller_in)]
ReachIn = Annotated[Reach, Depends(reach_in)]


def outside(what: str) -> HttpProblem:
    """The answer about something beyond the caller's reach."""
    return HttpProblem(403, "out_of_reach", f"your roles do not reach {what}; an officer gives roles")


def _reach(caller: Caller, right: str) -> Reach:
    if right == SELF:
        if caller.person is None:
            raise HttpProblem(403, "not_a_person", "this route is about the person who asks; sign in")
        return Reach(everywhere=True)
    reach = Reach(everywhere=caller.person is None) if right == MACHINE_ONLY else reach_of(caller, right)
    if not reach:
        raise HttpProblem(403, "role_missing", f"none of your roles may {right}; an officer gives roles")
    return reach


def _check_named(reach: Reach, within: Sequence[str], request: Request) -> None:
    # Only parameters that the route itself reads count, or a name added to the query would open another's path.
    for name in within:
        value = request.path_params.get(name, request.query_params.get(name))
        if value is not None and value in (reach.sites if name.startswith("site") else reach.studies):
            return
    if not reach.everywhere:
        mine = ", ".join(sorted({*reach.studies, *reach.sites}))
        raise outside(f"this; where the query takes a study or a site, name one of {mine}")
