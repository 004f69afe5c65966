"""What a training process does for private studies: vectors with the promised noise, the same again after a crash."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("torch", reason="the training extra is not installed")
pytest.importorskip("opacus", reason="the training extra is not installed")
pytest.importorskip("numba", reason="the training extra is not installed")

from cohortium_connector.training import private_jobs
from cohortium_connector.training.base import trainer_for
from cohortium_connector.training.data import read_table
from cohortium_connector.training.jobs import (
    Answer,
    ComputeStatistics,
    CountDone,
    CountPatients,
    DataSource,
    Evaluate,
    EvaluateDone,
    Job,
    PrivateWork,
    Refusal,
    StatisticsDone,
    TrainDone,
    TrainLocally,
)
from cohortium_connector.training.work import Desk
from cohortium_messages.secure_sum import Purpose
from cohortium_messages.study import Study
from cohortium_privacy.public_inputs import public_rules
from cohortium_privacy.windows import (
    count_factor,
    noise_for,
    plan_for,
    private_vector_length,
    share_for,
    update_scale,
)
from cohortium_protocol.metrics import evaluation_vector
from cohortium_protocol.parameters import initial_parameters
from cohortium_protocol.statistics import Preprocessing, design_matrix, input_count
from cohortium_protocol.trees.binning import Binning, tree_columns
from cohortium_protocol.trees.random_trees import leaf_vector, next_model, vector_length

pytestmark = pytest.mark.torch

ROWS, SITES, LEAST, COLLUSION = 600, 4, 3, 1
SEED, OTHER_SEED = bytes([1]) * 32, bytes([2]) * 32
STUDY: dict[str, Any] = {
    "apiVersion": "cohortium/study/1",
    "governance": "trial",
    "name": "heart",
    "purpose": "test",
    "dataset": {
        "features": [
            {"name": "age", "type": "float", "range": [18, 110]},
            {"name": "sex", "type": "category", "levels": ["0", "1"]},
        ],
        "label": {"name": "disease", "type": "binary"},
        "split": {"test": 0.25, "seed": 7},
    },
    "recipe": {"trainer": "torch.logistic", "local": {"epochs": 1, "batch_size": 32, "optimizer": "sgd", "lr": 0.5}},
    "federation": {"rounds": 4, "min_sites": 3},
    "metrics": ["auc"],
}
DISTRIBUTED: dict[str, Any] = {
    "mode": "distributed",
    "epsilon": 8.0,
    "delta": 1e-5,
    "patients": 2000,
    "evaluation_epsilon": 2.0,
}
LOCAL: dict[str, Any] = {"mode": "local", "epsilon": 3.0, "delta": 1e-4, "sampling_rate": 0.2, "patients": 400}
SITE: dict[str, Any] = {"mode": "site", "epsilon": 8.0, "delta": 1e-3, "sites": 60}
TREES: dict[str, Any] = {"trainer": "lightgbm.random_trees", "trees": 4, "depth": 2, "trees_per_sum": 2}


def study_of(privacy: dict[str, Any], **changes: Any) -> Study:
    return Study.model_validate({**STUDY, "privacy": privacy, **changes})


@dataclass
class Site:
    """One hospital's table and training process, with what was published for it."""

    folder: Path
    study: Study
    model: bytes
    rules: Preprocessing | Binning

    @classmethod
    def at(cls, folder: Path, study: Study, model: bytes | None = None) -> "Site":
        chance = np.random.default_rng(3)
        ages, sexes = chance.uniform(20, 100, ROWS), chance.integers(0, 2, ROWS)
        sick = (ages + 10 * sexes + chance.normal(0, 10, ROWS) > 65).astype(int)
        lines = [f"{age:.2f},{sex},{label}" for age, sex, label in zip(ages, sexes, sick, strict=True)]
        (folder / "table.csv").write_text("\n".join(["age,sex,disease", *lines]) + "\n")
        rules = public_rules(study, SITES)
        (folder / "rules.json").write_bytes(rules.canonical())
        if model is None:
            model = initial_parameters(trainer_for(study, input_count(study)).layout, 0).tobytes()
        (folder / "base.model").write_bytes(model)
        return cls(folder, study, model, rules)

    @property
    def source(self) -> DataSource:
        return DataSource(path=str(self.folder / "table.csv"))

    def private(self, purpose: Purpose, seed: bytes = SEED) -> PrivateWork:
        plan = plan_for(self.study, SITES, LEAST, COLLUSION)
        noise = noise_for(self.study, purpose, plan, LEAST, COLLUSION)
        assert noise is not None
        return PrivateWork(noise=noise, seed=seed, sites=SITES)

    def answer(self, job: Job) -> Answer:
        """By a process of its own, which remembers nothing."""
        return Desk(isolated=False).answer(job)

    def train(self, seed: bytes = SEED, round_: int = 0, private: PrivateWork | None = None) -> bytes:
        target = self.folder / "update.vector"
        target.unlink(missing_ok=True)
        job = TrainLocally(
            study=self.study,
            source=self.source,
            preprocessing_path=str(self.folder / "rules.json"),
            model_path=str(self.folder / "base.model"),
            update_path=str(target),
            round=round_,
            site_index=0,
            private=private or self.private("update", seed),
        )
        done = self.answer(job)
        assert isinstance(done, TrainDone)
        assert (done.rows, done.loss, done.norm_l2) == (1, None, None)
        return target.read_bytes()

    def words(self, seed: bytes = SEED) -> NDArray[np.int64]:
        return np.frombuffer(self.train(seed), dtype="<i8")

    def evaluate(self, seed: bytes = SEED) -> NDArray[np.int64]:
        target = self.folder / "counts.vector"
        job = Evaluate(
            study=self.study,
            source=self.source,
            preprocessing_path=str(self.folder / "rules.json"),
            model_path=str(self.folder / "base.model"),
            vector_path=str(target),
            private=self.private("evaluation", seed),
        )
        done = self.answer(job)
        assert isinstance(done, EvaluateDone)
        assert done.rows == 1
        return np.frombuffer(target.read_bytes(), dtype="<i8")


CASES: dict[str, Study] = {
    "local": study_of(LOCAL),
    "distributed": study_of(DISTRIBUTED),
    "site": study_of(SITE),
    "random trees": study_of(DISTRIBUTED, recipe=TREES, federation={"min_sites": 3}),
}


@pytest.fixture(params=list(CASES))
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Site:
    """A site of a study of each mode, before its first round."""
    study = CASES[request.param]
    if request.param == "random trees":
        pytest.importorskip("lightgbm", reason="the training extra is not installed")
        return Site.at(tmp_path, study, model=b"")
    return Site.at(tmp_path, study)


def test_the_same_seed_gives_the_same_bytes_after_a_crash_and_another_gives_others(site: Site) -> None:
    first = site.train()
    assert site.train() == first
    assert site.train(OTHER_SEED) != first
    length = private_vector_length(site.study, "update")
    assert len(first) == (4 * input_count(site.study) + 4 if length is None else 8 * length)


def test_one_row_more_has_other_noise(site: Site) -> None:
    """With the same noise the difference of two vectors would be the row."""
    local = site.study.privacy.mode == "local"
    before = np.frombuffer(site.train(), dtype="<f4" if local else "<i8")
    with (site.folder / "table.csv").open("a") as table:
        table.write("99.0,1,1\n" * 4)
    after = np.frombuffer(site.train(), dtype="<f4" if local else "<i8")
    if local:
        assert (after != before).all()
        return
    noise = site.private("update").noise
    assert share_for(site.study, "update", noise, SITES).sigma >= noise.site_sigma
    assert np.std(after - before) > noise.site_sigma / 2


def test_without_an_order_for_noise_nothing_is_made(site: Site) -> None:
    target = site.folder / "update.vector"
    job = TrainLocally(
        study=site.study,
        source=site.source,
        preprocessing_path=str(site.folder / "rules.json"),
        model_path=str(site.folder / "base.model"),
        update_path=str(target),
        round=0,
        site_index=0,
    )
    refusal = site.answer(job)
    assert isinstance(refusal, Refusal)
    assert refusal.code == "MODEL_REFUSED"
    assert not target.exists()


def test_the_first_sum_is_one_word_and_opens_no_table(site: Site) -> None:
    target = site.folder / "statistics.vector"
    nowhere = DataSource(path=str(site.folder / "missing.csv"))
    done = site.answer(ComputeStatistics(study=site.study, source=nowhere, vector_path=str(target)))
    assert isinstance(done, StatisticsDone)
    assert (done.train_rows, done.test_rows) == (0, 0)
    assert np.frombuffer(target.read_bytes(), dtype="<i8").tolist() == [0]


def test_all_patients_of_the_table_are_counted(site: Site) -> None:
    counted = site.answer(CountPatients(study=site.study, source=site.source))
    assert isinstance(counted, CountDone)
    assert counted.patients == ROWS


def test_the_distributed_share_is_minus_the_clipped_gradient_sum_and_noise(tmp_path: Path) -> None:
    site = Site.at(tmp_path, CASES["distributed"])
    noise = site.private("update").noise
    train = read_table(site.study, site.source).train
    assert isinstance(site.rules, Preprocessing)
    inputs = design_matrix(site.rules, train).astype(np.float64)
    base = np.frombuffer(site.model, dtype="<f4").astype(np.float64)
    rows = np.column_stack([inputs, np.ones(len(inputs))])
    residual = 1 / (1 + np.exp(-rows @ base)) - train.labels
    gradients = residual[:, None] * rows
    gradients *= np.minimum(1, noise.clip / np.linalg.norm(gradients, axis=1))[:, None]
    expected = -gradients.sum(axis=0) / noise.step
    found = np.array([site.words(bytes([number]) * 32) for number in range(40)])
    sigma = noise.site_sigma
    assert np.abs(expected).max() > 20 * sigma
    assert np.abs(found.mean(axis=0) - expected).max() < 5 * sigma / np.sqrt(40) + 0.01 * np.abs(expected).max()
    assert 0.75 * sigma < np.std(found, axis=0).mean() < 1.25 * sigma
    step = update_scale(site.study, noise, SITES) * found[0]
    assert step @ (-gradients.sum(axis=0)) > 0


def test_the_site_s_update_is_clipped_and_noised(tmp_path: Path) -> None:
    site = Site.at(tmp_path, CASES["site"])
    noise = site.private("update").noise
    found = np.array([site.words(bytes([number]) * 32) for number in range(30)]) * noise.step
    sigma = noise.site_sigma * noise.step
    centre = found.mean(axis=0)
    assert np.linalg.norm(centre) < noise.clip + 5 * sigma * np.sqrt(found.shape[1] / 30)
    assert 0.7 * sigma < np.std(found, axis=0).mean() < 1.3 * sigma


def test_an_update_that_left_the_numbers_is_no_refusal_but_zeros(tmp_path: Path) -> None:
    """In mode site nothing may depend on one hospital but through the noise."""
    site = Site.at(tmp_path, study_of(SITE), model=np.full(4, 3e38, dtype="<f4").tobytes())
    noise = site.private("update").noise
    assert np.abs(site.words()).max() < 10 * noise.site_sigma


def test_leaves_are_noised_on_the_lattice_of_their_sums(tmp_path: Path) -> None:
    pytest.importorskip("lightgbm", reason="the training extra is not installed")
    site = Site.at(tmp_path, CASES["random trees"], model=b"")
    noise, train = site.private("update").noise, read_table(site.study, site.source).train
    assert isinstance(site.rules, Binning)

    class Silence:
        def integers(self, count: int) -> NDArray[np.int64]:
            return np.zeros(count, dtype=np.int64)

    exact = leaf_vector(site.study, 1, None, tree_columns(site.rules, train), train.labels, Silence())
    found = site.words() - exact
    assert len(found) == vector_length(site.study)
    assert found.any()
    assert 0.6 * noise.site_sigma < np.std(found) < 1.5 * noise.site_sigma
    assert np.abs(found).max() < 7 * noise.site_sigma


@pytest.mark.parametrize("case", ["distributed", "random trees"])
def test_an_evaluation_is_two_noisy_histograms(case: str, tmp_path: Path) -> None:
    study = CASES[case]
    if case == "random trees":
        pytest.importorskip("lightgbm", reason="the training extra is not installed")
        zeros = np.zeros(vector_length(study), dtype=np.int64)
        site = Site.at(tmp_path, study, model=next_model(study, 1, b"", zeros))
    else:
        site = Site.at(tmp_path, study)
    noise, test = site.private("evaluation").noise, read_table(study, site.source).test
    scores = _scores(site)
    exact = evaluation_vector(scores, test.labels)[:200] * count_factor(noise)
    found = site.evaluate() - exact
    assert found.any()
    assert 0.8 * noise.site_sigma < np.std(found) < 1.2 * noise.site_sigma
    assert (site.evaluate() - exact == found).all()
    assert (site.evaluate(OTHER_SEED) - exact != found).any()


def _scores(site: Site) -> NDArray[np.float64]:
    test = read_table(site.study, site.source).test
    if isinstance(site.rules, Preprocessing):
        trainer = trainer_for(site.study, input_count(site.study))
        return trainer.scores(np.frombuffer(site.model, dtype="<f4"), design_matrix(site.rules, test))
    from cohortium_connector.training import lightgbm_

    return lightgbm_.predictions(lightgbm_.open_booster(site.model), tree_columns(site.rules, test))


def test_a_score_that_is_no_number_counts_as_undecided(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = Site.at(tmp_path, CASES["distributed"])
    test = read_table(site.study, site.source).test
    wild = np.where(np.arange(len(test)) % 2, np.nan, np.inf)
    monkeypatch.setattr(private_jobs, "_scores", lambda *_: wild)
    noise = site.private("evaluation").noise
    exact = evaluation_vector(np.full(len(test), 0.5), test.labels)[:200] * count_factor(noise)
    assert np.abs(site.evaluate() - exact).max() < 7 * noise.site_sigma


def test_local_training_learns_and_tells_no_loss(tmp_path: Path) -> None:
    loud = {**LOCAL, "epsilon": 60.0}
    site = Site.at(tmp_path, study_of(loud))
    update = np.frombuffer(site.train(), dtype="<f4")
    base = np.frombuffer(site.model, dtype="<f4")
    train = read_table(site.study, site.source).train
    assert isinstance(site.rules, Preprocessing)
    trainer = trainer_for(site.study, input_count(site.study))
    inputs = design_matrix(site.rules, train)
    before = np.mean((trainer.scores(base, inputs) > 0.5) == train.labels)
    after = np.mean((trainer.scores(base + update, inputs) > 0.5) == train.labels)
    assert after > max(before, 0.7)


def test_the_seed_is_in_no_text_of_a_job() -> None:
    noise = Site.private(Site(Path(), CASES["distributed"], b"", public_rules(CASES["distributed"], SITES)), "update")
    assert "seed" not in repr(noise)
