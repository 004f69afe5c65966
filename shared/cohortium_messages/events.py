"""Audit events: what happened, for the log. Facts about the federation, never about a patient.

Closed schemas without free text: identifiers, digests, counts over the federation, codes. The envelope names the study
(which log) and the emitter; the audit service stores the signed envelope as it came.
"""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field

from cohortium_messages.consent import Deed, PersonId
from cohortium_messages.governance import (
    MAX_MEMBERS,
    MAX_ROSTER,
    Band,
    CohortUnit,
    ConsentSourceKind,
    Permit,
    Reason,
)
from cohortium_messages.ids import Bytes16, Bytes32, RunIdField, SiteIdField, StudyIdField
from cohortium_messages.privacy import PrivacyStatement
from cohortium_messages.registry import Message
from cohortium_messages.runs import EvaluationResult, RunState, WindowEnd
from cohortium_messages.secure_sum import U32, Index, ModelRef, Purpose

Sites = Annotated[tuple[SiteIdField, ...], Field(max_length=MAX_ROSTER)]
Members = Annotated[tuple[SiteIdField, ...], Field(max_length=MAX_MEMBERS)]


class AuditEvent(Message):
    """Base of all events; published to the exchange `events`, or by a site to its uplink for `audit`."""


class SiteEnrolled(AuditEvent, type_name="cohortium.audit.site_enrolled.v1"):
    site_id: SiteIdField
    identity_pk: Bytes32


class SiteRevocation(AuditEvent, type_name="cohortium.audit.site_revoked.v1"):
    site_id: SiteIdField
    reason: Reason


class ManifestRecorded(AuditEvent, type_name="cohortium.audit.manifest_recorded.v1"):
    study_id: StudyIdField
    version: int
    manifest_hash: Bytes32
    study_digest: Bytes32
    members: Members


class StudySubmitted(AuditEvent, type_name="cohortium.audit.study_submitted.v1"):
    """`governance`: what the study file asks for, so that who reads the log alone knows whether permits need signed
    documents. None in logs from before this field."""

    study_id: StudyIdField
    study_digest: Bytes32
    run_id: RunIdField
    governance: Annotated[Literal["required", "trial"] | None, Field(exclude_if=lambda said: said is None)] = None


class GrantStarted(AuditEvent, type_name="cohortium.audit.grant_started.v1"):
    site_id: SiteIdField
    study_digest: Bytes32
    grant_digest: Bytes32
    not_before: datetime
    not_after: datetime


class GrantStopped(AuditEvent, type_name="cohortium.audit.grant_stopped.v1"):
    site_id: SiteIdField
    study_digest: Bytes32
    reason: Reason


class ConsentActRecorded(AuditEvent, type_name="cohortium.audit.consent_act.v1"):
    """A person signed a consent document, or ended a card (`kind` is `person`). The person is an opaque id; name and
    meaning are in the signed act, at consent and at the hospitals that it concerns."""

    record: Bytes32
    kind: Annotated[str, Field(max_length=32, pattern=r"^[a-z_]+$")]
    act: Bytes32
    deed: Deed
    person: PersonId
    at: datetime
    standing: Annotated[str, Field(max_length=16, pattern=r"^[a-z_]+$")]
    """The document's standing afterwards, at this moment."""
    site_id: SiteIdField | None = None


class RunStateChanged(AuditEvent, type_name="cohortium.audit.run_state.v1"):
    run_id: RunIdField
    state: RunState
    reason: Annotated[str, Field(max_length=64, pattern=r"^[A-Z_]*$")] = ""
    missing: Members = ()
    """Members whose grant a run waited for in vain."""


class WindowAuthorised(AuditEvent, type_name="cohortium.audit.window_authorised.v1"):
    """Before a window is opened: who may take part in it, on which grant."""

    run_id: RunIdField
    window_id: Bytes16
    round: U32
    purpose: Purpose
    params_hash: Bytes32
    permits: Annotated[tuple[Permit, ...], Field(max_length=MAX_MEMBERS)]


class CohortFixed(AuditEvent, type_name="cohortium.audit.cohort_fixed.v1"):
    run_id: RunIdField
    window_id: Bytes16
    roster_hash: Bytes32
    sites: Sites
    n: Index
    t: Index
    c: int
    k_min: Index


class AggregateOpened(AuditEvent, type_name="cohortium.audit.aggregate_opened.v1"):
    """A sum was opened: over exactly these sites."""

    run_id: RunIdField
    window_id: Bytes16
    survivors_hash: Bytes32
    survivors: Sites
    dropped: Sites


class StrictSessionSummed(AuditEvent, type_name="cohortium.audit.strict_session_summed.v1"):
    """A strict session is over: so many sums were opened in it, each over exactly these sites, and `trees` boosting
    rounds of the run stand now. `chain` commits to every result that the sites were shown."""

    run_id: RunIdField
    window_id: Bytes16
    roster_hash: Bytes32
    sites: Sites
    steps: Annotated[int, Field(ge=0)]
    sums: Annotated[int, Field(ge=0)]
    trees: Annotated[int, Field(ge=0, le=5000)]
    chain: Bytes32


class WindowEnded(AuditEvent, type_name="cohortium.audit.window_ended.v1"):
    run_id: RunIdField
    window_id: Bytes16
    purpose: Purpose
    state: WindowEnd
    reason: Annotated[str, Field(max_length=64, pattern=r"^[A-Z_]*$")] = ""


class ModelReleased(AuditEvent, type_name="cohortium.audit.model_released.v1"):
    """A model version, made from this parent by this window's sum. Version 0 comes from the statistics sum."""

    run_id: RunIdField
    model: ModelRef
    parent: ModelRef | None
    window_id: Bytes16


class ModelBundled(AuditEvent, type_name="cohortium.audit.model_bundled.v1"):
    """The run's last model, signed for use: digests of the bundle's files are in the attestation."""

    run_id: RunIdField
    model: ModelRef
    attestation_sha256: Bytes32
    privacy: PrivacyStatement | None = None
    """What the run promises about its patients; the attestation says the same."""


class ReleaseSigned(AuditEvent, type_name="cohortium.audit.release_signed.v1"):
    """A governance officer, and as many hospitals as the study asks for, released the run's bundled model for use. The
    release itself, with their signatures, is in the bundle."""

    run_id: RunIdField
    model: ModelRef
    attestation_sha256: Bytes32
    release_sha256: Bytes32
    officers: Annotated[tuple[Bytes32, ...], Field(min_length=1, max_length=32)]
    sites: Sites


class ModelEvaluated(AuditEvent, type_name="cohortium.audit.model_evaluated.v1"):
    run_id: RunIdField
    window_id: Bytes16
    result: EvaluationResult


class TaskTaken(AuditEvent, type_name="cohortium.audit.task_taken.v1"):
    """Site: permit, grant, study digest and scheduler signature were checked here; rows will be read for this
    window."""

    run_id: RunIdField
    window_id: Bytes16
    site_id: SiteIdField
    grant_digest: Bytes32


class TaskDeclined(AuditEvent, type_name="cohortium.audit.task_declined.v1"):
    run_id: RunIdField
    window_id: Bytes16
    site_id: SiteIdField
    code: Reason


class UploadSealed(AuditEvent, type_name="cohortium.audit.upload_sealed.v1"):
    """Site: one masked vector was saved to be sent. The digest is of the signed header."""

    run_id: RunIdField
    window_id: Bytes16
    site_id: SiteIdField
    header_hash: Bytes32
    bytes: Annotated[int, Field(ge=0)]


class SharesGiven(AuditEvent, type_name="cohortium.audit.shares_given.v1"):
    """Site: recovery shares were given for this survivor set, and for no other of this window."""

    run_id: RunIdField
    window_id: Bytes16
    site_id: SiteIdField
    survivors_hash: Bytes32


class WitnessNamed(AuditEvent, type_name="cohortium.audit.witness_named.v1"):
    """From now on this site cosigns checkpoints of the study's log with this key, which does nothing else."""

    site_id: SiteIdField
    witness_key: Bytes32


class ForkDetected(AuditEvent, type_name="cohortium.audit.fork_detected.v1"):
    """The log showed this site a checkpoint that does not continue the one it had cosigned. It keeps both notes."""

    site_id: SiteIdField
    held_size: Annotated[int, Field(ge=0)]
    held_root: Bytes32
    offered_size: Annotated[int, Field(ge=0)]
    offered_root: Bytes32


class StudyCheckpointed(AuditEvent, type_name="cohortium.audit.study_checkpointed.v1"):
    """Audit, in the platform's log: how far a study's log had come. Whoever holds the platform's checkpoint holds the
    histories of all studies to one another's order."""

    study_id: StudyIdField
    size: Annotated[int, Field(ge=1, le=(1 << 53) - 1)]
    root: Bytes32


class DeadLetterSettled(AuditEvent, type_name="cohortium.audit.dead_letter_settled.v1"):
    """An operator sent a parked message again, or dropped it. `body_sha256` names the message; `reason` is why it had
    been parked. Recorded before it is done."""

    consumer: Annotated[str, Field(max_length=32, pattern=r"^[a-z]+$")]
    act: Literal["REDRIVEN", "DROPPED"]
    reason: Reason
    body_sha256: Bytes32


class BundleExported(AuditEvent, type_name="cohortium.audit.bundle_exported.v1"):
    """Audit, in the platform's log: somebody was given a study's bundle, up to this checkpoint; recorded before it
    leaves. `person` is an opaque id, and None for the operator's token."""

    study_id: StudyIdField
    size: Annotated[int, Field(ge=1)]
    root: Bytes32
    person: PersonId | None


def _is_person(unit: object) -> bool:
    return unit == "person"


class ConsentSnapshot(AuditEvent, type_name="cohortium.audit.consent_snapshot.v1"):
    """Before a site's rows were read: from how many patients, how many may be used, and a commitment to who they are.

    Bands are left out where a study promises differential privacy: counts would be told outside of its budget.
    `query_digest`: what was asked of the table and of the consent source. `approved_root`: the cohort that the grant
    froze. With `unit: row` the table does not say whose each row is: bands and commitment are of rows, and not of
    persons.
    """

    run_id: RunIdField
    window_id: Bytes16
    site_id: SiteIdField
    grant_digest: Bytes32
    source: ConsentSourceKind
    unit: Annotated[CohortUnit, Field(exclude_if=_is_person)] = "person"
    query_digest: Bytes32
    context: Bytes16
    root: Bytes32
    approved_root: Bytes32
    persons: Band | None = None
    permitted: Band | None = None
    no_record: Band | None = None
    denied: Band | None = None
    expired: Band | None = None
    unknown: Band | None = None
    opted_out: Band | None = None


class FaultSeen(AuditEvent, type_name="cohortium.audit.fault_seen.v1"):
    """A message broke the protocol: who sent it (a key id) and what was wrong, as a code."""

    key_id: Annotated[str, Field(max_length=64, pattern=r"^[a-z]+:[a-z0-9-]+$")]
    code: Reason
    window_id: Bytes16 | None = None


class BrokerRefusal(AuditEvent, type_name="cohortium.audit.broker_refused.v1"):
    """Enrolment: the broker let somebody not in, or not do something. `site_id` is the login that was used, where it is
    a site's; of a refused login it is only a claim. One event stands for `count` refusals within a minute."""

    site_id: SiteIdField | None
    code: Reason
    count: Annotated[int, Field(ge=1)]


class BrokerCut(AuditEvent, type_name="cohortium.audit.broker_cut.v1"):
    """Enrolment: open connections of a site were closed at the broker."""

    site_id: SiteIdField
    reason: Reason
    connections: Annotated[int, Field(ge=1)]
