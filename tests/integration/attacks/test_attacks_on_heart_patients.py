"""The benchmark on four real hospitals: what succeeds without privacy, and does not with it."""

from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the training extra is not installed")

from cohortium_connector.training.attacks.benchmark import run_benchmark
from cohortium_connector.training.data import read_table
from cohortium_connector.training.jobs import DataSource, NamedSource
from cohortium_connector.training.privacy_report import BenchmarkJob, BenchmarkReport
from cohortium_connector.training.torch_ import use_threads
from cohortium_messages.study_file import parse_study

pytestmark = [pytest.mark.torch, pytest.mark.slow, pytest.mark.timeout(900)]

STUDY = parse_study((Path(__file__).resolve().parents[2] / "studies" / "heart.yaml").read_text())


@pytest.fixture(scope="module")
def report(heart_tables: dict[str, Path]) -> BenchmarkReport:
    use_threads(1)
    sites = tuple(NamedSource(name=name, source=DataSource(path=str(path))) for name, path in heart_tables.items())
    job = BenchmarkJob(study=STUDY, sites=sites, epsilons=(1.0,), models=12, runs=0, trials=4)
    return run_benchmark(job, {site.name: read_table(STUDY, site.source) for site in sites}, lambda _: None)


def test_membership_is_found_in_an_overfitted_model_and_not_at_epsilon_1(report: BenchmarkReport) -> None:
    recipe, overfitted, private = report.membership
    assert overfitted.member_auc > 0.99
    assert overfitted.strongest.auc_low > 0.6
    assert overfitted.strongest.attack == "likelihood"
    assert private.promise is not None
    assert private.promise.epsilon_pld <= private.promise.epsilon == 1.0
    for attack in private.attacks:
        assert attack.auc < 0.55
        assert attack.auc_limit is not None
        assert attack.auc_high < attack.auc_limit
        assert attack.advantage < (attack.advantage_limit or 0)
    assert overfitted.strongest.auc_low > private.strongest.auc_high
    assert recipe.strongest.auc < overfitted.strongest.auc
    assert private.other_auc > 0.8


def test_updates_show_patients_unless_masked_or_noised(report: BenchmarkReport) -> None:
    found = {(one.seen, one.patients): one for one in report.inversion}
    alone = found["update", 1]
    assert alone.identified == alone.wanted == 4
    assert alone.error < 1e-3
    assert found["update", 4].identified >= 0.5 * found["update", 4].wanted
    assert found["sum", 1].identified >= 0.5 * found["sum", 1].wanted
    for seen in ("masked", "local", "distributed"):
        assert found[seen, 1].identified <= 1
        assert found[seen, 4].identified <= 0.15 * found[seen, 4].wanted
        assert found[seen, 1].error > 0.5
