"""Four real hospitals: federated averaging, with nothing but sums, learns about as well as pooling the rows.

No network, no masks: the arithmetic of the whole chain alone, with plain means in place of secure sums.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from cohortium_connector.training.base import trainer_for
from cohortium_connector.training.baselines import train_baselines
from cohortium_connector.training.data import Table, read_table
from cohortium_connector.training.jobs import DataSource, NamedSource, TrainBaselines
from cohortium_connector.training.runner import TrainingRunner
from cohortium_connector.training.work import examples_of, task_seed
from cohortium_messages.study import Study
from cohortium_messages.study_file import parse_study
from cohortium_protocol.metrics import Metrics, evaluation_vector, metrics_from_sums
from cohortium_protocol.parameters import initial_parameters
from cohortium_protocol.server_step import initial_state, step
from cohortium_protocol.statistics import design_matrix, preprocessing_from_sums, statistics_vector

pytest.importorskip("torch", reason="the training extra is not installed")

pytestmark = pytest.mark.torch

STUDIES = Path(__file__).resolve().parents[2] / "studies"
LOGISTIC = parse_study((STUDIES / "heart.yaml").read_text())
MLP = parse_study((STUDIES / "heart-mlp.yaml").read_text())


def federated(study: Study, tables: Mapping[str, Table], seed: int) -> Metrics:
    """All rounds, with every site in each."""
    sums = np.sum([statistics_vector(study, table.train, table.test) for table in tables.values()], axis=0)
    preprocessing = preprocessing_from_sums(study, sums, len(tables))
    trainer = trainer_for(study, preprocessing.inputs)
    sites = [examples_of(preprocessing, table.train) for table in tables.values()]
    weights = np.array([len(site.labels) for site in sites], dtype=np.float32)
    model, state = initial_parameters(trainer.layout, seed), initial_state(study.federation.server, trainer.layout.size)
    for round_ in range(study.federation.rounds):
        updates = [
            np.concatenate(
                list(trainer.train(model, site, epochs=1, seed=task_seed(seed, round_, index)).slices),
            )
            - model
            for index, site in enumerate(sites)
        ]
        mean = np.average(updates, axis=0, weights=weights).astype(np.float32)
        stepped = step(study.federation.server, model, mean, state)
        model, state = stepped.model, stepped.state
    counts = [
        evaluation_vector(trainer.scores(model, design_matrix(preprocessing, table.test)), table.test.labels)
        for table in tables.values()
    ]
    return metrics_from_sums(np.sum(counts, axis=0), study.metrics)


@pytest.mark.parametrize(
    "study", [pytest.param(LOGISTIC, id="logistic"), pytest.param(MLP, id="mlp", marks=pytest.mark.long)]
)
def test_federated_is_within_a_hundredth_of_pooled_and_above_every_site(
    study: Study, heart_sites: dict[str, Path]
) -> None:
    tables = {name: read_table(study, DataSource(path=str(path))) for name, path in heart_sites.items()}
    found = federated(study, tables, seed=0)
    pooled, local = train_baselines(study, tables, seed=0)
    assert found.auc is not None
    assert pooled.exact_auc is not None
    assert found.auc > pooled.exact_auc - 0.01
    assert found.auc > max(site.exact_auc or 0 for site in local)
    assert found.auc_error_bound is not None
    assert found.auc_error_bound < 0.005
    assert [site.name for site in local] == ["cleveland", "hungarian", "switzerland", "va"]
    assert pooled.training_rows == sum(site.training_rows for site in local)


async def test_baselines_are_a_job_of_the_training_process(heart_sites: dict[str, Path], tmp_path: Path) -> None:
    missing = tmp_path / "missing.csv"
    missing.write_text("age,disease,split\n")
    sources = heart_sites | {"elsewhere": missing}
    sites = tuple(NamedSource(name=name, source=DataSource(path=str(path))) for name, path in sources.items())
    async with TrainingRunner(work_dir=tmp_path, isolation="warn", say=lambda line: None) as runner:
        done = await runner.run(TrainBaselines(study=LOGISTIC, sites=sites))
    assert done.refused == (("elsewhere", "COLUMN_MISSING"),)
    assert done.pooled.exact_auc is not None
    assert done.pooled.binned.auc == pytest.approx(done.pooled.exact_auc, abs=done.pooled.binned.auc_error_bound)
    assert len(done.local) == 4


def test_a_measurement_that_a_whole_hospital_lacks_is_no_obstacle(heart_sites: dict[str, Path]) -> None:
    table = read_table(LOGISTIC, DataSource(path=str(heart_sites["switzerland"])))
    assert np.isnan(table.train.columns["chol"]).all()
    preprocessing = preprocessing_from_sums(LOGISTIC, statistics_vector(LOGISTIC, table.train, table.test), 1)
    assert np.isfinite(design_matrix(preprocessing, table.train)).all()
