"""What a recipe reaches at each ε: planned as a federation would be, trained, measured, refused with a reason."""

from pathlib import Path

import numpy as np
import pytest
from attack_stage import HOSPITALS, LOCAL, study_of, write_tables

pytest.importorskip("torch", reason="the training extra is not installed")

from cohortium_connector.training.attacks.setting import RecipeUnsupported, cohort_of
from cohortium_connector.training.attacks.utility import run_calibration
from cohortium_connector.training.attacks.utility_plan import CannotPlan, planned
from cohortium_connector.training.base import SiteRefusal
from cohortium_connector.training.data import Table, read_table
from cohortium_connector.training.privacy_report import CalibrateJob, CalibrationReport, NamedSource
from cohortium_messages.privacy import DistributedPrivacy
from cohortium_messages.study import Study
from cohortium_privacy.accounting import GaussianSteps, epsilon

pytestmark = pytest.mark.torch

SUMMED = DistributedPrivacy(mode="distributed", epsilon=1.0, delta=1e-5, sampling_rate=1.0, patients=210)
TREES = {"trainer": "lightgbm.random_trees", "trees": 12, "depth": 3, "trees_per_sum": 3}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> tuple[NamedSource, ...]:
    return write_tables(tmp_path_factory.mktemp("tables"))


def tables_of(study: Study, sources: tuple[NamedSource, ...]) -> dict[str, Table]:
    return {site.name: read_table(study, site.source) for site in sources}


def curve(job: CalibrateJob) -> CalibrationReport:
    return run_calibration(job, tables_of(job.study, job.sites), lambda _: None)


def test_local_noise_costs_less_the_larger_epsilon_is(sources: tuple[NamedSource, ...]) -> None:
    study = study_of()
    job = CalibrateJob(study=study, sites=sources, privacy=LOCAL, epsilons=(0.3, 50.0), repeats=2)
    report = curve(job)
    least, most = report.points
    assert report.without.auc > 0.8
    assert most.quality.auc > report.without.auc - 0.05
    assert least.quality.auc < most.quality.auc - 0.02
    assert least.noise_to_signal > 20 * most.noise_to_signal
    assert least.promise.steps == most.promise.steps == 3 * 5
    assert (report.sites, report.training_rows, report.test_rows) == (3, 210, 90)


def test_distributed_steps_descend(sources: tuple[NamedSource, ...]) -> None:
    """Sixty gradient steps at a large ε are about as good as averaging; a step in the wrong direction would be worse
    than a coin."""
    study = study_of(federation={"min_sites": 3, "rounds": 60})
    report = curve(CalibrateJob(study=study, sites=sources, privacy=SUMMED, epsilons=(50.0,), repeats=1))
    assert report.points[0].quality.auc > report.without.auc - 0.05
    assert report.points[0].promise.steps == 60


def test_random_trees_are_calibrated_too(sources: tuple[NamedSource, ...]) -> None:
    study = study_of(TREES)
    report = curve(CalibrateJob(study=study, sites=sources, privacy=SUMMED, epsilons=(0.3, 50.0), repeats=2))
    assert report.trainer == "lightgbm.random_trees"
    assert report.without.auc > 0.75
    assert report.points[1].quality.auc == pytest.approx(report.without.auc, abs=0.06)
    assert report.points[0].quality.auc < report.points[1].quality.auc
    assert report.points[1].promise.steps == 4


def test_the_same_job_gives_the_same_figures(sources: tuple[NamedSource, ...]) -> None:
    job = CalibrateJob(study=study_of(), sites=sources, privacy=LOCAL, epsilons=(2.0,), repeats=1, seed=3)
    first, second = (curve(job).model_dump(exclude={"seconds"}) for _ in range(2))
    assert first == second
    other = curve(job.model_copy(update={"seed": 4}))
    assert other.points[0].quality != first["points"][0]["quality"]


@pytest.mark.parametrize("privacy", [LOCAL, SUMMED])
def test_what_is_shown_is_what_the_plan_costs(sources: tuple[NamedSource, ...], privacy: DistributedPrivacy) -> None:
    report = curve(CalibrateJob(study=study_of(), sites=sources, privacy=privacy, epsilons=(1.0,), repeats=1))
    promise = report.points[0].promise
    event = GaussianSteps(promise.noise_multiplier, promise.sampling_rate, promise.steps)
    assert epsilon((event,), promise.delta) == pytest.approx(promise.epsilon_pld)
    assert promise.epsilon_pld < promise.epsilon


def test_fewer_sites_than_a_sum_needs_are_refused() -> None:
    study = study_of(privacy=SUMMED, federation={"min_sites": 5, "rounds": 3})
    with pytest.raises(CannotPlan) as refused:
        planned(study, 3)
    assert "3 sites are fewer than the 5" in refused.value.local
    with pytest.raises(CannotPlan) as unplanned:
        planned(study_of(), 3)
    assert "promises nothing" in unplanned.value.local


def test_a_plan_that_cannot_be_says_every_reason(sources: tuple[NamedSource, ...]) -> None:
    privacy = LOCAL.model_copy(update={"sampling_rate": 0.01, "delta": 9e-3, "patients": 200})
    with pytest.raises(CannotPlan) as refused:
        curve(CalibrateJob(study=study_of(), sites=sources, privacy=privacy, epsilons=(1.0,)))
    assert "privacy.delta" in refused.value.local
    assert "privacy.sampling_rate" in refused.value.local


def test_inputs_depend_on_no_row(sources: tuple[NamedSource, ...], tmp_path: Path) -> None:
    """Other rows, same rules: nothing about the rows is in the scaling."""
    study = study_of(privacy=LOCAL)
    other = write_tables(tmp_path, rows=40, seed=9)
    first, second = (cohort_of(study, tables_of(study, tables)).preprocessing for tables in (sources, other))
    assert first == second
    assert len(HOSPITALS) == 3


def test_recipes_without_gradients_are_refused(sources: tuple[NamedSource, ...]) -> None:
    study = study_of({"trainer": "lightgbm.random_trees", "trees": 4}, privacy=SUMMED)
    with pytest.raises(RecipeUnsupported) as refused:
        cohort_of(study, tables_of(study, sources))
    assert "lightgbm.random_trees" in refused.value.local


def test_test_rows_of_one_label_are_refused(sources: tuple[NamedSource, ...]) -> None:
    tables = tables_of(study_of(), sources)
    healthy = {
        name: Table(table.train, table.test.take(np.flatnonzero(table.test.labels == 0)))
        for name, table in tables.items()
    }
    job = CalibrateJob(study=study_of(), sites=sources, privacy=LOCAL)
    with pytest.raises(SiteRefusal, match="TOO_FEW_ROWS"):
        run_calibration(job, healthy, lambda _: None)
