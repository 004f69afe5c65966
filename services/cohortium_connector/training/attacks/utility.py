"""What privacy costs: the study's recipe at each ε, on the sites' own rows, for `cohortium privacy calibrate`.

Every round is as in a federation: the sites' training, the noise of the study's plan, the server's step. Only the
secure sum is left out, which changes no sum. All sites take part in every round.
"""

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from cohortium_connector.training.attacks.bounds import Scores
from cohortium_connector.training.attacks.setting import cohort_of, library_versions
from cohortium_connector.training.attacks.utility_networks import Networks
from cohortium_connector.training.attacks.utility_plan import PlannedRun, planned
from cohortium_connector.training.attacks.utility_trees import RandomTrees
from cohortium_connector.training.base import SiteRefusal
from cohortium_connector.training.data import Table
from cohortium_connector.training.privacy_report import (
    CalibrateJob,
    CalibrationReport,
    Promise,
    Quality,
    UtilityPoint,
)
from cohortium_messages.study import BinaryLabel, RandomTreesRecipe, Study
from cohortium_protocol.metrics import exact_auc

Say = Callable[[str], None]


def run_calibration(job: CalibrateJob, tables: Mapping[str, Table], say: Say) -> CalibrationReport:
    """The report. Raises `SiteRefusal` for what cannot be trained, planned or measured."""
    started = time.monotonic()
    labels = _test_labels(job.study, tables)
    runs = [planned(_with_privacy(job, epsilon), len(tables)) for epsilon in job.epsilons]
    training = _training(runs[0].study, tables)
    seeds = range(job.seed, job.seed + job.repeats)
    say(f"without privacy, {job.repeats} times")
    without = _quality([training.without(seed) for seed in seeds], labels)
    points = []
    for epsilon, run in zip(job.epsilons, runs, strict=True):
        say(f"epsilon {epsilon:g}: {run.plan.steps} steps, noise multiplier {run.plan.noise_multiplier:.3g}")
        points.append(_point(epsilon, run, _quality([training.private(run, seed) for seed in seeds], labels)))
    return CalibrationReport(
        study=job.study.name,
        study_digest=job.study.digest().hex(),
        trainer=job.study.recipe.trainer,
        mode=job.privacy.mode,
        sites=len(tables),
        training_rows=sum(len(table.train) for table in tables.values()),
        test_rows=len(labels),
        patients=job.privacy.patients,
        clip=job.privacy.clip,
        repeats=job.repeats,
        seed=job.seed,
        without=without,
        points=tuple(points),
        seconds=time.monotonic() - started,
        versions=library_versions(),
    )


def _test_labels(study: Study, tables: Mapping[str, Table]) -> Scores:
    if not isinstance(study.dataset.label, BinaryLabel):
        raise SiteRefusal("LABEL_UNSUPPORTED", local="the curve shows the AUC, so the study needs a binary label")
    labels = np.concatenate([table.test.labels for table in tables.values()])
    if not 0 < labels.sum() < len(labels):
        raise SiteRefusal("TOO_FEW_ROWS", local="the test rows do not have both labels; check the study's split")
    return labels


def _training(study: Study, tables: Mapping[str, Table]) -> Networks | RandomTrees:
    if isinstance(study.recipe, RandomTreesRecipe):
        return RandomTrees.of(study, tables)
    return Networks(study, cohort_of(study, tables))


def _with_privacy(job: CalibrateJob, epsilon: float) -> Study:
    """The study at this ε, with the least noise that keeps it."""
    changes = {"epsilon": epsilon, "noise_multiplier": None, "evaluation_epsilon": None}
    return job.study.model_copy(update={"privacy": job.privacy.model_copy(update=changes)})


def _quality(scores: Sequence[Scores], labels: Scores) -> Quality:
    found = [exact_auc(own, labels) for own in scores]
    return Quality(auc=float(np.mean(found)), auc_least=min(found), auc_most=max(found))


def _point(epsilon: float, run: PlannedRun, quality: Quality) -> UtilityPoint:
    plan = run.plan
    promise = Promise(
        epsilon=epsilon,
        delta=plan.delta,
        epsilon_pld=plan.epsilon_pld,
        noise_multiplier=plan.noise_multiplier,
        sampling_rate=plan.sampling_rate,
        steps=plan.steps,
    )
    return UtilityPoint(promise=promise, noise_to_signal=plan.noise_to_signal, quality=quality)
