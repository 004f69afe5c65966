"""A hospital, a regulator or patients leave a study: what follows, from the notice to the receipt.

Consent keeps the case, the scheduler traces which models learnt from the site and carries out what officers decided,
the aggregator retires models. Which models a withdrawal touches follows from who was in which sum; subtracting one
hospital from a sum is impossible, so what is exact is training again without it.
"""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field

from cohortium_messages.consent import Effect, PersonId, WithdrawalType
from cohortium_messages.events import AuditEvent
from cohortium_messages.governance import Reason
from cohortium_messages.ids import Bytes16, Bytes32, RunIdField, SiteIdField, StudyIdField, Wire
from cohortium_messages.registry import Message
from cohortium_messages.secure_sum import U32, ModelRef

MOST_RUNS = 200
MOST_MODELS = 8_000
"""In one message, so that a receipt holds them twice; of more, the newest."""
DeadlineName = Literal["STOPPED", "EFFECTIVE", "DECIDED", "STARTED", "ANSWERED"]
StartBasis = Literal["CHECKPOINT", "SITE_IN_STATISTICS", "TREES_SHARE_BINS", "PRIVATE_PLAN", "NO_EARLIER_MODEL"]
"""Why a retraining begins where it does: with the last model before the site's first counted round, or (all others)
from nothing, and what stands against a model."""


class RunModel(Wire):
    """One model version of one run."""

    run_id: RunIdField
    model: ModelRef


Models = Annotated[tuple[RunModel, ...], Field(max_length=MOST_MODELS)]


class RoundWithout(Wire):
    """The first round of a run that asks for this site's data no more. None: the run was over by then."""

    run_id: RunIdField
    round: U32 | None


RoundsWithout = Annotated[tuple[RoundWithout, ...], Field(max_length=MOST_RUNS)]


class Retrained(Wire):
    """The run that took the place of the affected ones, and what came of it. `start`: the model that it began with, of
    the run `from_run`; None: from nothing, because of `basis`."""

    run_id: RunIdField
    from_run: RunIdField
    start: ModelRef | None
    basis: StartBasis
    model: ModelRef | None = None


# Between services


class WithdrawalNoticed(Message, type_name="cohortium.withdrawal.noticed.v1"):
    """Consent to the scheduler: since now this withdrawal counts. `withdrawal` is the digest of what was signed."""

    withdrawal: Bytes32
    study_id: StudyIdField
    study_digest: Bytes32
    site_id: SiteIdField
    type: WithdrawalType
    from_round: U32 = 0
    """Of patients: the first round in which their rows were used, as the hospital says."""


class WithdrawalTraced(Message, type_name="cohortium.withdrawal.traced.v1"):
    """Scheduler to consent: no window that the site is in is open any more, and these models learnt from it."""

    withdrawal: Bytes32
    without: RoundsWithout
    models: Models
    sums: Annotated[int, Field(ge=0)]
    """Opened sums that hold the site's part, statistics and evaluations too."""


class WithdrawalFollowed(Message, type_name="cohortium.withdrawal.followed.v1"):
    """Scheduler to consent, after `WithdrawalTraced`: these models were made since, and who left is in their lineage.

    `retired`: those of them that go the way of the others, since that was decided before they were heard of.
    """

    withdrawal: Bytes32
    models: Annotated[tuple[RunModel, ...], Field(max_length=MOST_MODELS)]
    """None where a sum was opened of which no model was made: an evaluation."""
    sums: Annotated[int, Field(ge=0)]
    """Opened sums with the site's part that were not counted before."""
    retired: Models = ()


class EffectOrdered(Message, type_name="cohortium.withdrawal.effect_ordered.v1"):
    """Consent to the scheduler: officers decided. The same order again is one."""

    withdrawal: Bytes32
    decision: Bytes32
    effect: Effect


class EffectStarted(Message, type_name="cohortium.withdrawal.effect_started.v1"):
    """Scheduler to consent: it is being carried out."""

    withdrawal: Bytes32
    decision: Bytes32
    retrained: Retrained | None = None


class EffectRefused(Message, type_name="cohortium.withdrawal.effect_refused.v1"):
    """Scheduler to consent: a hospital refuses its part in the run that is to take the affected ones' place, and why.

    The run tries again by itself; what the code asks for is up to people. Said once for a hospital and a code.
    """

    withdrawal: Bytes32
    decision: Bytes32
    run_id: RunIdField
    site_id: SiteIdField
    code: Reason


class EffectDone(Message, type_name="cohortium.withdrawal.effect_done.v1"):
    """Scheduler to consent: carried out; or not, and why, as a code."""

    withdrawal: Bytes32
    decision: Bytes32
    retired: Models = ()
    retrained: Retrained | None = None
    fault: Reason | None = None


class RunPrepared(Message, type_name="cohortium.run.prepared.v1"):
    """Aggregator to the scheduler, of a run that begins with another's model: it is here, or (None) it is not kept any
    more and the run begins with nothing."""

    run_id: RunIdField
    model: ModelRef | None


class RetireModels(Message, type_name="cohortium.model.retire.v1"):
    """Scheduler to the aggregator and to the study's sites: these models are not to be used any more."""

    withdrawal: Bytes32
    study_id: StudyIdField
    run_id: RunIdField
    models: Annotated[tuple[ModelRef, ...], Field(max_length=MOST_MODELS)]


class ModelsRetired(Message, type_name="cohortium.model.retired.v1"):
    """Aggregator to the scheduler: done, for this run."""

    withdrawal: Bytes32
    run_id: RunIdField


# Facts


class WithdrawalRecorded(AuditEvent, type_name="cohortium.audit.withdrawal_recorded.v1"):
    """A withdrawal is on record; the site's grant ends now, unless patients leave and the hospital stays."""

    withdrawal: Bytes32
    type: WithdrawalType
    site_id: SiteIdField
    study_digest: Bytes32
    requested_effect: Effect
    received_at: datetime
    from_round: U32 = 0


class WithdrawalEffective(AuditEvent, type_name="cohortium.audit.withdrawal_effective.v1"):
    """From these rounds on nothing asks for the site's data (or these patients' data) any more; these models learnt
    from it."""

    withdrawal: Bytes32
    site_id: SiteIdField
    without: RoundsWithout
    models: Models
    sums: Annotated[int, Field(ge=0)]


class WithdrawalExtended(AuditEvent, type_name="cohortium.audit.withdrawal_extended.v1"):
    """Models made since the withdrawal took effect, in whose lineage who left is all the same: they follow from models
    that were listed before, or their sum could leave the site out no more."""

    withdrawal: Bytes32
    models: Annotated[tuple[RunModel, ...], Field(max_length=MOST_MODELS)]
    sums: Annotated[int, Field(ge=0)]


class WithdrawalDecided(AuditEvent, type_name="cohortium.audit.withdrawal_decided.v1"):
    """Officers decided what becomes of the models."""

    withdrawal: Bytes32
    decision: Bytes32
    effect: Effect
    people: Annotated[tuple[PersonId, ...], Field(max_length=16)]


class WithdrawalProven(AuditEvent, type_name="cohortium.audit.withdrawal_proven.v1"):
    """What was decided is carried out, and the receipt with this digest (of its signed statement) says so."""

    withdrawal: Bytes32
    effect: Effect
    receipt_sha256: Bytes32


class WithdrawalOverdue(AuditEvent, type_name="cohortium.audit.withdrawal_overdue.v1"):
    """A deadline passed. Told once for each."""

    withdrawal: Bytes32
    deadline: DeadlineName
    due: datetime


class WithdrawalClosed(AuditEvent, type_name="cohortium.audit.withdrawal_closed.v1"):
    """The receipt was handed over."""

    withdrawal: Bytes32


class RetrainingStarted(AuditEvent, type_name="cohortium.audit.retraining_started.v1"):
    """Scheduler: this run takes another one's place. `without`: the hospital that is in none of its sums; None where
    patients left, whom their hospital leaves out by itself."""

    withdrawal: Bytes32
    run_id: RunIdField
    from_run: RunIdField
    without: SiteIdField | None
    start: ModelRef | None
    basis: StartBasis


class ModelCarried(AuditEvent, type_name="cohortium.audit.model_carried.v1"):
    """Aggregator: a run begins with this model of another run, number and digest unchanged."""

    run_id: RunIdField
    model: ModelRef
    from_run: RunIdField


class ModelRetired(AuditEvent, type_name="cohortium.audit.model_retired.v1"):
    """Aggregator: this version is handed out no more, and nothing starts from it."""

    run_id: RunIdField
    model: ModelRef
    withdrawal: Bytes32


class SumSetAside(AuditEvent, type_name="cohortium.audit.sum_set_aside.v1"):
    """Aggregator: these sites left after the survivors of a sum were certified, so that no sum without them can be
    opened; or in a strict session, all of whose sums hold them. `opened`: a sum had been opened; then what came of it
    was thrown away, and no model is made of it."""

    run_id: RunIdField
    window_id: Bytes16
    sites: Annotated[tuple[SiteIdField, ...], Field(min_length=1, max_length=200)]
    opened: bool


class WorkWiped(AuditEvent, type_name="cohortium.audit.work_wiped.v1"):
    """Site: it left a study (or a document that its part rests on was ended): training was stopped, and what was made
    for the study's runs is deleted. `windows`: how many were open here."""

    site_id: SiteIdField
    study_digest: Bytes32
    code: Reason
    windows: Annotated[int, Field(ge=0)]
