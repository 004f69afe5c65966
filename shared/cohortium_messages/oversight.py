"""Events about the platform itself, and about what ends by the calendar: configurations, trials, expiry, cosignatures,
reviews of a log."""

from typing import Annotated, Literal

from pydantic import AwareDatetime, Field

from cohortium_messages.consent import PersonId
from cohortium_messages.events import AuditEvent, Members
from cohortium_messages.ids import Bytes32, SiteIdField, StudyIdField
from cohortium_messages.preflight import CheckName


class ConfigurationChanged(AuditEvent, type_name="cohortium.audit.configuration_changed.v1"):
    """A service started with other settings, or under another trust document (which names everybody's keys), than it
    had at its last start. `before`: None at its first start. Passwords are in no digest."""

    part: Literal["settings", "trust"]
    before: Bytes32 | None
    after: Bytes32


class PreflightRecorded(AuditEvent, type_name="cohortium.audit.preflight_recorded.v1"):
    """Enrolment: a hospital reported its trial; what did not go well is named, and nothing is measured here."""

    site_id: SiteIdField
    report_sha256: Bytes32
    failed: Annotated[tuple[CheckName, ...], Field(max_length=32)] = ()
    warned: Annotated[tuple[CheckName, ...], Field(max_length=32)] = ()


class Expired(AuditEvent, type_name="cohortium.audit.expired.v1"):
    """Consent: a grant, or a document in force, came to the end of its period; told once, when consent first saw it.
    Nobody needs this event to refuse what is over: every decision asks the document itself. `site_id`: where it is
    about one hospital."""

    kind: Annotated[str, Field(max_length=32, pattern=r"^[a-z_]+$")]
    """`grant`, or the document's kind."""
    record: Bytes32
    ended_at: AwareDatetime
    site_id: SiteIdField | None = None


class StudyCosigned(AuditEvent, type_name="cohortium.audit.study_cosigned.v1"):
    """Audit, in the platform's log: so many hospitals cosigned this checkpoint of a study's log that it has a quorum.
    Their lines are in the bundle."""

    study_id: StudyIdField
    size: Annotated[int, Field(ge=1, le=(1 << 53) - 1)]
    root: Bytes32
    sites: Members


class LogReviewed(AuditEvent, type_name="cohortium.audit.log_reviewed.v1"):
    """Audit, in the platform's log: a person has reviewed a log up to here (45 CFR 164.312(b)), and whether something
    is to be followed up. `study_id` None: the platform's own log."""

    study_id: StudyIdField | None
    size: Annotated[int, Field(ge=1, le=(1 << 53) - 1)]
    root: Bytes32
    person: PersonId
    finding: Literal["NOTHING_FOUND", "FOLLOW_UP"]
