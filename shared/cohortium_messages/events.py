"""Audit events: what happened, for the log. Facts about the federation, never about a patient.

Closed schemas without free text: identifiers, digests, counts over the federation, codes. The envelope names the study
(which log) and the emitter; the audit service stores the signed envelope as it came.
"""

from datetime import datetime
from typing import Annotated

from pydantic import Field

from cohortium_messages.governance import Permit, Reason
from cohortium_messages.ids import Bytes16, Bytes32, RunIdField, SiteIdField, StudyIdField
from cohortium_messages.privacy import PrivacyStatement
from cohortium_messages.registry import Message
from cohortium_messages.runs import EvaluationResult, RunState, WindowEnd
from cohortium_messages.secure_sum import U32, Index, ModelRef, Purpose

Sites = Annotated[tuple[SiteIdField, ...], Field(max_length=200)]


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
    members: Sites


class StudySubmitted(AuditEvent, type_name="cohortium.audit.study_submitted.v1"):
    study_id: StudyIdField
    study_digest: Bytes32
    run_id: RunIdField


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


class RunStateChanged(AuditEvent, type_name="cohortium.audit.run_state.v1"):
    run_id: RunIdField
    state: RunState
    reason: Annotated[str, Field(max_length=64, pattern=r"^[A-Z_]*$")] = ""


class WindowAuthorised(AuditEvent, type_name="cohortium.audit.window_authorised.v1"):
    """Before a window is opened: who may take part in it, on which grant."""

    run_id: RunIdField
    window_id: Bytes16
    round: U32
    purpose: Purpose
    params_hash: Bytes32
    permits: Annotated[tuple[Permit, ...], Field(max_length=200)]


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


class FaultSeen(AuditEvent, type_name="cohortium.audit.fault_seen.v1"):
    """A message broke the protocol: who sent it (a key id) and what was wrong, as a code."""

    key_id: Annotated[str, Field(max_length=64, pattern=r"^[a-z]+:[a-z0-9-]+$")]
    code: Reason
    window_id: Bytes16 | None = None
