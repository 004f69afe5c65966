"""From what a simulation saw to `result.json`, and to the list of what did not go as planned."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from cohortium_connector.training.jobs import Baseline, BaselinesDone
from cohortium_messages.result import (
    AuditCheck,
    AuditResult,
    CalibrationResult,
    MetricsResult,
    MetricsTable,
    Result,
    RoundResult,
    RunOptions,
    SecureSumResult,
    SiteResult,
    Timing,
    TrainingResult,
    federated_metrics,
)
from cohortium_messages.status import RunStatus
from cohortium_messages.study import LightgbmRecipe, Metric
from cohortium_privacy.study_plans import statement_of
from cohortium_sim.plan import Plan
from cohortium_verify.report import VerificationReport

MIB = 1 << 20


@dataclass(slots=True)
class Stopwatch:
    """Seconds by phase, by a monotonic clock."""

    now: Callable[[], float]
    begun: float = field(init=False)
    phases: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.begun = self.now()

    @contextmanager
    def time(self, phase: str) -> Iterator[None]:
        start = self.now()
        try:
            yield
        finally:
            self.phases[phase] = self.now() - start

    @property
    def total_s(self) -> float:
        return self.now() - self.begun


@dataclass(frozen=True, slots=True)
class Facts:
    """All that a result is made from."""

    plan: Plan
    status: RunStatus
    verification: VerificationReport
    baselines: BaselinesDone | None
    vanished: frozenset[str]
    peaks_mb: Mapping[str, float]
    """In MiB."""
    versions: dict[str, str]


def make_result(facts: Facts, watch: Stopwatch) -> tuple[Result, tuple[str, ...]]:
    """The result, and the surprises: empty if and only if everything went as planned."""
    status, plan = facts.status, facts.plan
    rounds = tuple(RoundResult.of(done, done.refused) for done in status.rounds_done)
    result = Result(
        study=status.study_id,
        run_id=status.run_id,
        state=status.state,
        reason=status.reason,
        sentence=status.sentence,
        mode=plan.study.federation.mode,
        governance=plan.study.governance,
        privacy_mode=plan.study.privacy.mode,
        privacy=statement_of(plan.study),
        rounds_planned=plan.study.rounds,
        rounds=rounds,
        metrics=_metrics(rounds, plan, facts.baselines),
        sites=tuple(SiteResult.of(site) for site in status.sites),
        training=None if status.boosting is None else TrainingResult.of(status.boosting, status.rounds_done),
        secure_sum=None if status.secure_sum is None else SecureSumResult.of(status.secure_sum),
        audit=_audit(facts.verification),
        timing=_timing(watch),
        processes={role: round(peak * MIB / 1e6, 1) for role, peak in facts.peaks_mb.items()},
        options=_options(facts),
    )
    return result, surprises(facts)


def surprises(facts: Facts) -> tuple[str, ...]:
    """What did not go as planned, in words.

    A site that refuses for its own good reasons is shown with them, but a run that goes on without it ends as planned.
    """
    status, plan = facts.status, facts.plan
    found = []
    if status.state != "FINISHED":
        found.append(f"the run ended {status.state}: {status.sentence or status.reason or 'no reason was given'}")
    found += _missing_rounds(facts)
    if not facts.verification.verified:
        index = facts.verification.first_failing_index
        where = "" if index is None else f", first at entry {index}"
        found.append(f"the audit bundle does not verify{where}")
    planned = {drop.site for drop in plan.drops}
    found += [f"{site} was to vanish and did not" for site in sorted(planned - facts.vanished)]
    found += [f"{site} vanished and was not to" for site in sorted(facts.vanished - planned)]
    return tuple(found)


def _missing_rounds(facts: Facts) -> list[str]:
    """Rounds that should have been, and were not. Early stopping ends with fewer trees, and so does a site that was to
    vanish where the others may not go on without it."""
    status, plan = facts.status, facts.plan
    missing = plan.study.rounds - len(status.rounds_done)
    if missing > 0:
        return [f"{missing} of {plan.study.rounds} rounds were not done"]
    boosting, recipe = status.boosting, plan.study.recipe
    if boosting is None or not isinstance(recipe, LightgbmRecipe) or boosting.trees >= boosting.rounds:
        return []
    lost = bool(plan.drops) and not plan.study.federation.allow_cohort_change
    if lost or (recipe.params.early_stopping_round and not status.reason):
        return []
    return [f"{boosting.rounds - boosting.trees} of {boosting.rounds} boosting rounds were not done"]


def _metrics(rounds: tuple[RoundResult, ...], plan: Plan, baselines: BaselinesDone | None) -> MetricsTable:
    federated = federated_metrics(rounds)
    if baselines is None:
        return MetricsTable(federated=federated)
    wanted = plan.study.metrics
    return MetricsTable(
        federated=federated,
        pooled=_baseline(baselines.pooled, wanted),
        bagging=None if baselines.bagging is None else _baseline(baselines.bagging, wanted),
        local={baseline.name: _baseline(baseline, wanted) for baseline in baselines.local},
    )


def _baseline(baseline: Baseline, wanted: Sequence[Metric]) -> MetricsResult:
    """A baseline's rows lie in one place, so its AUC is exact; the rest is computed as the federation does it."""
    exact = {"auc": baseline.exact_auc, "auc_error_bound": None if baseline.exact_auc is None else 0.0}
    if baseline.evaluation is not None:
        return MetricsResult.of(baseline.evaluation.model_copy(update=exact | {"importance": None}))
    binned = baseline.binned
    calibration = binned.calibration
    return MetricsResult(
        rows=binned.rows,
        positives=binned.positives,
        accuracy=binned.accuracy,
        brier=binned.brier,
        log_loss=binned.log_loss if "log_loss" in wanted else None,
        calibration=None if calibration is None else CalibrationResult.of(calibration.model_dump()),
        **exact,
    )


def _audit(report: VerificationReport) -> AuditResult:
    return AuditResult(
        tree_size=report.tree_size,
        root=report.root,
        verified=report.verified,
        keys_pinned=report.keys_pinned,
        checks=tuple(AuditCheck(name=check.name, state=check.state, fact=check.fact) for check in report.checks),
    )


def _timing(watch: Stopwatch) -> Timing:
    phases = watch.phases
    return Timing(
        setup_s=phases.get("setup", 0.0),
        run_s=phases.get("run", 0.0),
        compare_s=phases.get("compare"),
        verify_s=phases.get("verify"),
        total_s=watch.total_s,
    )


def _options(facts: Facts) -> RunOptions:
    plan = facts.plan
    return RunOptions(
        parts=plan.parts,
        processes="many" if plan.processes else "one",
        seed=plan.study.federation.seed,
        drop={drop.site: f"{drop.round}:{drop.when}" for drop in plan.drops},
        slow=plan.slow,
        compare=plan.compare,
        trainer=plan.study.recipe.trainer,
        versions=facts.versions,
    )
