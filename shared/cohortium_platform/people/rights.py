"""Who may do what: every role, every right, and the right that each HTTP route asks for. Decided here and nowhere else.

A right is a resource and an action. A role has its rights within its place: the federation, one study or one
institution. What a right does not name, no person may do; a route without a line is the machine's alone, and a test
fails.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from cohortium_messages.people import Role

NOT_TOGETHER: Final = (
    (Role.OPERATOR, Role.OFFICER),
    (Role.OPERATOR, Role.SITE_APPROVER),
    (Role.STUDY_LEAD, Role.OFFICER),
    *((Role.AUDITOR, other) for other in Role if other not in {Role.AUDITOR, Role.INTEGRATOR, Role.MACHINE}),
)
"""Roles that one person never has both of: who runs rounds approves none, who leads a study approves no study, and who
audits changes nothing."""


_SITE = frozenset({Role.SITE_ADMIN, Role.SITE_APPROVER})
_STUDY = frozenset({Role.STUDY_LEAD, Role.REVIEWER})
_RUNNING = frozenset({Role.MACHINE, Role.OPERATOR})
_SEEING = _RUNNING | {Role.OFFICER, Role.AUDITOR}

RIGHTS: Final[Mapping[str, frozenset[Role]]] = {
    "grants.read": _SEEING | _STUDY | _SITE,
    "documents.read": _SEEING | _STUDY | _SITE,
    # The operator's token carries documents, as a postman does: what counts are the signatures inside.
    "documents.write": _STUDY | _SITE | {Role.OFFICER, Role.MACHINE},
    "withdrawals.close": frozenset({Role.OFFICER, Role.SITE_ADMIN, Role.MACHINE}),
    "budgets.read": _SEEING | _SITE,
    "people.read": frozenset({Role.OFFICER, Role.AUDITOR, Role.SITE_ADMIN}),
    "people.write": frozenset({Role.OFFICER, Role.SITE_ADMIN}),
    "people.begin": frozenset({Role.MACHINE}),
    "sites.read": _SEEING | _SITE,
    "sites.invite": _RUNNING,
    "sites.revoke": _RUNNING | {Role.OFFICER, Role.SITE_ADMIN},
    "manifests.draft": _RUNNING | {Role.OFFICER},
    "manifests.publish": frozenset({Role.MACHINE, Role.OFFICER}),
    "manifests.read": _SEEING | _STUDY,
    "studies.submit": _RUNNING,
    # A hospital's people see the runs that it takes part in, and of single sites in them only their own.
    "runs.read": _SEEING | _STUDY | _SITE,
    # Stopping needs one person, and none of them may start what was stopped but the operator.
    "runs.stop": _RUNNING | {Role.OFFICER, Role.STUDY_LEAD},
    "models.read": _SEEING | {Role.INTEGRATOR},
    "models.release": frozenset({Role.MACHINE, Role.OFFICER}),
    "log.read": _SEEING | _STUDY | _SITE | {Role.INTEGRATOR},
    "log.review": frozenset({Role.AUDITOR, Role.OFFICER}),
}

STEP_UP: Final = frozenset({"documents.write", "people.write", "manifests.publish", "models.release", "log.review"})
"""Rights that a person uses only just after showing who they are, again if need be. Stopping is none of them."""

BY_MEMBERSHIP: Final = frozenset({"log.read"})
"""Rights that a hospital's people have in every study in whose manifests the hospital is or was a member."""

PUBLIC: Final = "public"
"""For anybody, without a word about who they are."""
SELF: Final = "self"
"""For whoever has signed in, about themselves."""
MACHINE_ONLY: Final = "machine"
"""For the operator's token: what a route gets that has no line here."""


@dataclass(frozen=True, slots=True)
class Line:
    """What a route asks for: a right (or `PUBLIC`, `SELF`, `MACHINE_ONLY`), and how it keeps to a caller's reach.

    `within`: parameters of the route that name the study or the hospital it is about; who does not reach everywhere
    must name one that they reach. `keeps`: the route itself shows or changes only what is within reach. `passes_of`:
    the service whose passes open this route, where it is not its own.
    """

    right: str
    within: tuple[str, ...] = ()
    keeps: bool = False
    passes_of: str = ""


def _right(right: str, *within: str) -> Line:
    return Line(right, within)


def _kept(right: str) -> Line:
    return Line(right, keeps=True)


_EVERYWHERE: Final = {"GET /healthz": Line(PUBLIC), "GET /readyz": Line(PUBLIC), "GET /metrics": Line(PUBLIC)}
"""`/metrics` asks for a token of its own where the settings name one."""

ROUTES: Final[Mapping[str, Mapping[str, Line]]] = {
    "consent": {
        **_EVERYWHERE,
        "GET /grants": _kept("grants.read"),
        "GET /authorise": _right("grants.read", "study", "site"),
        "GET /budgets": _right("budgets.read", "site"),
        "GET /documents": _right("documents.read", "study", "site"),
        "GET /documents/{digest}": _kept("documents.read"),
        "POST /documents": _kept("documents.write"),
        "GET /withdrawals": _kept("documents.read"),
        "GET /withdrawals/{digest}": _kept("documents.read"),
        "GET /withdrawals/{digest}/receipt": _kept("documents.read"),
        "POST /withdrawals/{digest}/close": _kept("withdrawals.close"),
        # A log is judged with the papers beside it: who may read the one reads the other, with one pass.
        "GET /studies/{study_id}/papers": Line("log.read", ("study_id",), passes_of="audit"),
        "POST /people/first": _right("people.begin"),
        "GET /people": _kept("people.read"),
        "POST /people": _kept("people.write"),
        "PUT /people/{person}/roles": _kept("people.write"),
        "POST /people/{person}/reset": _kept("people.write"),
        "DELETE /people/{person}": _kept("people.write"),
        "POST /people/setup": Line(PUBLIC),
        "POST /people/sign-in": Line(PUBLIC),
        "GET /people/oidc/{provider}/start": Line(PUBLIC),
        "GET /people/oidc/{provider}/callback": Line(PUBLIC),
        "GET /people/me": Line(SELF),
        "POST /people/step-up": Line(SELF),
        "POST /people/sign-out": Line(SELF),
        "POST /people/pass": Line(SELF),
        "POST /people/totp": Line(SELF),
        "POST /people/totp/confirm": Line(SELF),
    },
    "enrolment": {
        **_EVERYWHERE,
        "GET /trust": Line(PUBLIC),
        "GET /sites": _kept("sites.read"),
        "POST /sites": _right("sites.invite"),
        "POST /sites/{site_id}/revoke": _right("sites.revoke", "site_id"),
        "POST /manifests/draft": _right("manifests.draft"),
        "POST /manifests": _right("manifests.publish"),
        "GET /manifests/{study_id}": _right("manifests.read", "study_id"),
    },
    "scheduler": {
        **_EVERYWHERE,
        "POST /studies": _right("studies.submit"),
        "GET /runs": _kept("runs.read"),
        "GET /runs/{run_id}": _kept("runs.read"),
        "POST /runs/{run_id}/stop": _kept("runs.stop"),
        "GET /runs/{run_id}/lineage": _kept("runs.read"),
    },
    "aggregator": {
        **_EVERYWHERE,
        "GET /runs/{run_id}/models": _right("models.read"),
        "GET /runs/{run_id}/model": _right("models.read"),
        "GET /runs/{run_id}/release": _right("models.read"),
        "POST /runs/{run_id}/release": _right("models.release"),
    },
    "audit": {
        **_EVERYWHERE,
        "GET /logs": _kept("log.read"),
        "GET /logs/{log}/checkpoint": _right("log.read", "log"),
        "GET /logs/{log}/witnesses": _right("log.read", "log"),
        "GET /logs/{log}/entries": _right("log.read", "log"),
        "GET /logs/{log}/proof/inclusion": _right("log.read", "log"),
        "GET /logs/{log}/proof/consistency": _right("log.read", "log"),
        "GET /events/{event_id}/proof": _kept("log.read"),
        "GET /events/{event_id}/tlog-proof": _kept("log.read"),
        "GET /studies/{study_id}/bundle": _right("log.read", "study_id"),
        "POST /logs/{log}/reviews": _right("log.review"),
    },
}


def line_of(service: str, method: str, path: str) -> Line:
    """What a route asks for."""
    return ROUTES.get(service, {}).get(f"{method} {path}", Line(MACHINE_ONLY))


def together(roles: frozenset[Role]) -> tuple[Role, Role] | None:
    """Two of these roles that one person may not both have, if there are any."""
    return next((pair for pair in NOT_TOGETHER if roles.issuperset(pair)), None)
