"""People and their roles, and the events of signing in. A person is an opaque id here: names and addresses are in one
table at consent, and can be erased there."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Final, Literal

from pydantic import Field, model_validator

from cohortium_messages.consent import PersonId
from cohortium_messages.events import AuditEvent
from cohortium_messages.governance import Reason
from cohortium_messages.ids import SiteIdField, StudyIdField, Wire


class Role(StrEnum):
    """What a person is here. `machine` is nobody's: it is what the operator's token may do."""

    OPERATOR = "operator"
    OFFICER = "officer"
    STUDY_LEAD = "study_lead"
    REVIEWER = "reviewer"
    SITE_ADMIN = "site_admin"
    SITE_APPROVER = "site_approver"
    INTEGRATOR = "integrator"
    AUDITOR = "auditor"
    MACHINE = "machine"


class Place(StrEnum):
    """How far a role reaches."""

    INSTITUTION = "institution"
    STUDY = "study"
    FEDERATION = "federation"


PLACES: Final[Mapping[Role, Place]] = {
    Role.OPERATOR: Place.FEDERATION,
    Role.OFFICER: Place.FEDERATION,
    Role.STUDY_LEAD: Place.STUDY,
    Role.REVIEWER: Place.STUDY,
    Role.SITE_ADMIN: Place.INSTITUTION,
    Role.SITE_APPROVER: Place.INSTITUTION,
    Role.INTEGRATOR: Place.FEDERATION,
    Role.AUDITOR: Place.FEDERATION,
    Role.MACHINE: Place.FEDERATION,
}


class Assignment(Wire):
    """A role that a person has, with its place: a hospital, a study, or neither for the whole federation."""

    role: Role
    site_id: SiteIdField | None = None
    study_id: StudyIdField | None = None

    @model_validator(mode="after")
    def _role_has_its_place(self) -> "Assignment":
        place = PLACES[self.role]
        for field, value, needed in (
            ("site_id", self.site_id, place is Place.INSTITUTION),
            ("study_id", self.study_id, place is Place.STUDY),
        ):
            if (value is not None) != needed:
                raise ValueError(f"role {self.role} {'needs' if needed else 'has no'} {field}")
        if self.role is Role.MACHINE:
            raise ValueError("role machine is the operator's token; people have other roles")
        return self


Assignments = Annotated[tuple[Assignment, ...], Field(max_length=64)]
Method = Literal["local", "oidc"]


class AuthLogin(AuditEvent, type_name="cohortium.audit.auth_login.v1"):
    """A person signed in; `mfa`: with a second factor, as far as this service can tell."""

    person: PersonId
    method: Method
    mfa: bool


class AuthFailed(AuditEvent, type_name="cohortium.audit.auth_failed.v1"):
    """Somebody did not get in. `person` only where the account exists: anything else typed there may be a password."""

    person: PersonId | None
    method: Method
    reason: Reason


class AuthFailedAgain(AuditEvent, type_name="cohortium.audit.auth_failed_again.v1"):
    """So many more did not get in, after so many within a quarter of an hour that they are not told singly any more."""

    person: PersonId | None
    method: Method
    count: Annotated[int, Field(ge=1)]


class AuthSteppedUp(AuditEvent, type_name="cohortium.audit.auth_stepup.v1"):
    """A person showed again who they are, before something that counts."""

    person: PersonId
    method: Method
    mfa: bool


class AuthRoleChanged(AuditEvent, type_name="cohortium.audit.auth_role_changed.v1"):
    """The roles that a person has from now on. `by`: who gave or took them; None: the operator's token, which makes the
    first officer."""

    person: PersonId
    by: PersonId | None
    roles: Assignments
