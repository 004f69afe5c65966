"""Made-up runs with trees: LightGBM over two sessions after a site was lost, and random trees for other labels."""

import sample_run

from cohortium_messages.result import (
    MetricsResult,
    MetricsTable,
    Result,
    RoundResult,
    TrainingResult,
    federated_metrics,
)
from cohortium_messages.runs import EvaluationResult, FeatureImportance
from cohortium_messages.status import BoostingStatus, RoundStatus, RunStatus, WindowStatus

FEATURES = ("thal", "cp", "ca", "oldpeak", "age", "chol", "sex", "unused")
IMPORTANCE = tuple(
    FeatureImportance(
        name=name, shap=0.9 / place**1.3 if name != "unused" else 0.0, gain=800 / place, splits=40 // place
    )
    for place, name in enumerate(FEATURES, start=1)
)
BOOSTED = BoostingStatus(trees=60, rounds=60, sessions=2, steps=561, cohort_changes=1)


def evaluation(**changes: object) -> EvaluationResult:
    """Of the whole model: a binary label, with importance."""
    return sample_run.evaluation(20).model_copy(update={"log_loss": 0.4123, "importance": IMPORTANCE, **changes})


def growing(trees: int, sessions: int = 1) -> RunStatus:
    """LightGBM in a session, after one that ended."""
    window = WindowStatus(
        purpose="training",
        round=1,
        attempt=1,
        phase="ROSTER_FIXED",
        opened_at=sample_run.BEGUN,
        ready=sample_run.SITES,
        roster=sample_run.SITES,
    )
    boosting = BOOSTED.model_copy(update={"trees": trees, "sessions": sessions})
    return sample_run.running(0).model_copy(
        update={"boosting": boosting, "rounds": 1, "mode": "synchronous", "window": window, "rounds_done": ()}
    )


def boosted(boosting: BoostingStatus = BOOSTED, **changes: object) -> RunStatus:
    """The end of such a run."""
    done = RoundStatus(
        number=1,
        model_version=3,
        cohort=sample_run.SITES[:3],
        dropped=(sample_run.SITES[3],),
        seconds=48.2,
        bytes_up=41_000_000,
        bytes_down=39_000_000,
        evaluation=evaluation(),
        trees=boosting.trees,
    )
    status = sample_run.finished(1)
    sites = tuple(site.model_copy(update={"updates_used": 2 - (site.name == "Long Beach VA")}) for site in status.sites)
    more = {"boosting": boosting, "rounds": 1, "rounds_done": (done,), "mode": "synchronous", "secure_sum": None}
    return status.model_copy(update={**more, "sites": sites, **changes})


def boosted_result(status: RunStatus | None = None, **changes: object) -> Result:
    """What the simulation writes about it."""
    status = status or boosted()
    assert status.boosting is not None
    rounds = tuple(RoundResult.of(done) for done in status.rounds_done)
    local = {name: metrics.model_copy(update={"log_loss": 0.5}) for name, metrics in sample_run.LOCAL.items()}
    table = MetricsTable(
        federated=federated_metrics(rounds),
        pooled=sample_run.metrics(0.905, 0.83, 0.127).model_copy(update={"log_loss": 0.409}),
        bagging=sample_run.metrics(0.872, 0.80, 0.151).model_copy(update={"log_loss": 0.455}),
        local=local,
    )
    training = TrainingResult.of(status.boosting, status.rounds_done)
    base = sample_run.result(status)
    more = {"training": training, "metrics": table, "rounds": rounds, "mode": "synchronous", "secure_sum": None}
    return base.model_copy(update={**more, **changes})


def numbers(round_: int) -> MetricsResult:
    """Metrics of a number label that random trees have learnt for so many rounds."""
    rmse = 9.2 + 60 / round_
    return MetricsResult(rows=400, positives=0, rmse=rmse, mae=0.7 * rmse, r2=1 - rmse / 40)


def number_result(rounds: int = 12) -> Result:
    """Random trees for a number label: as rounds of averaging, with other metrics."""
    made = tuple(
        RoundResult.of(sample_run.round_status(number, evaluated=False)).model_copy(update={"metrics": numbers(number)})
        for number in range(1, rounds + 1)
    )
    table = MetricsTable(
        federated=made[-1].metrics,
        pooled=numbers(40),
        local={"Zurich": numbers(1), "Cleveland": numbers(3)},
    )
    return sample_run.result().model_copy(update={"rounds": made, "rounds_planned": rounds, "metrics": table})
