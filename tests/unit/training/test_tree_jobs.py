"""Trees in the training process, but for the session: statistics, random trees, evaluation, baselines, refusals."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from cohortium_connector.training.data import read_table
from cohortium_connector.training.jobs import (
    ComputeRefinement,
    ComputeStatistics,
    DataSource,
    Evaluate,
    NamedSource,
    PrepareTrees,
    TrainBaselines,
    TrainLocally,
    TrainTrees,
)
from cohortium_connector.training.live_wire import LiveBridge
from cohortium_connector.training.runner import TrainingFailed, TrainingRefused, TrainingRunner
from cohortium_messages.runs import EvaluationResult
from cohortium_messages.secure_sum import ModelRef, StrictSpec
from cohortium_messages.study import Study
from cohortium_messages.study_file import parse_study
from cohortium_protocol.metrics import exact_auc
from cohortium_protocol.parameters import ModelRefused
from cohortium_protocol.trees.binning import binning_from_sums, needs_refinement, refined, tree_columns
from cohortium_protocol.trees.bins import Binning
from cohortium_protocol.trees.evaluation import evaluation_from_sums
from cohortium_protocol.trees.random_trees import check_random_trees, next_model, vector_length
from cohortium_protocol.trees.text import header_of, render, tree_blocks

lightgbm = pytest.importorskip("lightgbm", reason="the training extra is not installed")

STUDIES = Path(__file__).resolve().parents[2] / "studies"
TREES = parse_study((STUDIES / "heart-trees.yaml").read_text())
RANDOM = parse_study((STUDIES / "heart-random-trees.yaml").read_text())
NOWHERE = ModelRef(version=1, model_hash=bytes(32))


class Sites:
    """Four hospitals in one training process, one after the other."""

    def __init__(self, study: Study, tables: Mapping[str, Path], folder: Path) -> None:
        self.study = study
        self.tables = {name: DataSource(path=str(path)) for name, path in tables.items()}
        self.folder = folder
        self.binning_path = folder / "binning.json"
        self.runner = TrainingRunner(work_dir=folder / "work", isolation="warn", say=lambda line: None)

    async def sums(self, make: Any) -> NDArray[np.int64]:
        path = self.folder / "vector.i64"
        vectors = []
        for source in self.tables.values():
            await self.runner.run(make(source, str(path)))
            vectors.append(np.fromfile(path, dtype="<i8"))
        return np.asarray(np.sum(vectors, axis=0))

    async def binning(self) -> Binning:
        statistics = await self.sums(
            lambda source, path: ComputeStatistics(study=self.study, source=source, vector_path=path)
        )
        binning = binning_from_sums(self.study, statistics, len(self.tables))
        self.binning_path.write_bytes(binning.canonical())
        if needs_refinement(binning):
            more = await self.sums(
                lambda source, path: ComputeRefinement(
                    study=self.study, source=source, preprocessing_path=str(self.binning_path), vector_path=path
                )
            )
            binning = refined(binning, more)
            self.binning_path.write_bytes(binning.canonical())
        return binning

    async def evaluated(self, model: Path) -> EvaluationResult:
        counts = await self.sums(
            lambda source, path: Evaluate(
                study=self.study,
                source=source,
                preprocessing_path=str(self.binning_path),
                model_path=str(model),
                vector_path=path,
            )
        )
        return evaluation_from_sums(self.study, counts, None, NOWHERE)

    def rows(self, binning: Binning, part: str) -> tuple[NDArray[np.float64], NDArray[Any]]:
        found = [getattr(read_table(self.study, source), part) for source in self.tables.values()]
        columns = np.concatenate([tree_columns(binning, rows) for rows in found])
        return columns, np.concatenate([rows.labels for rows in found])


async def test_random_trees_are_filled_round_by_round(heart_sites: dict[str, Path], tmp_path: Path) -> None:
    sites = Sites(RANDOM, heart_sites, tmp_path)
    try:
        binning = await sites.binning()
        model = tmp_path / "model.txt"
        model.write_bytes(b"")
        for version in range(RANDOM.rounds):
            update = await sites.sums(
                lambda source, path, round_=version: TrainLocally(
                    study=RANDOM,
                    source=source,
                    preprocessing_path=str(sites.binning_path),
                    model_path=str(model),
                    update_path=path,
                    round=round_,
                    site_index=0,
                )
            )
            assert update.size == vector_length(RANDOM)
            model.write_bytes(next_model(RANDOM, version + 1, model.read_bytes(), update))
        found = await sites.evaluated(model)
    finally:
        await sites.runner.aclose()
    check_random_trees(RANDOM, model.read_bytes(), RANDOM.rounds)
    columns, labels = sites.rows(binning, "test")
    exact = exact_auc(lightgbm.Booster(model_file=str(model)).predict(columns), labels)
    assert found.auc == pytest.approx(exact, abs=found.auc_error_bound or 0)
    assert found.auc is not None
    assert found.auc > 0.75
    assert found.rows == len(labels)


async def test_a_round_of_random_trees_needs_the_model_before_it(heart_sites: dict[str, Path], tmp_path: Path) -> None:
    sites = Sites(RANDOM, heart_sites, tmp_path)
    model = tmp_path / "model.txt"
    try:
        await sites.binning()
        for text, round_ in ((b"", 1), (b"tree\nversion=v4\n", 0), (b"tree\n", 1)):
            model.write_bytes(text)
            job = TrainLocally(
                study=RANDOM,
                source=next(iter(sites.tables.values())),
                preprocessing_path=str(sites.binning_path),
                model_path=str(model),
                update_path=str(tmp_path / "update"),
                round=round_,
                site_index=0,
            )
            with pytest.raises(TrainingRefused, match="MODEL_REFUSED"):
                await sites.runner.run(job)
            assert not (tmp_path / "update").exists()
    finally:
        await sites.runner.aclose()


def pooled_text(sites: Sites, binning: Binning) -> bytes:
    """A model such as a federation could have made, from LightGBM on all rows."""
    columns, labels = sites.rows(binning, "train")
    categories = [place for place, feature in enumerate(binning.features) if feature.type == "category"]
    data = lightgbm.Dataset(
        columns, label=labels, feature_name=list(binning.feature_names()), categorical_feature=categories
    )
    booster = lightgbm.train({"objective": "binary", "verbosity": -1, "num_leaves": 4}, data, num_boost_round=20)
    text = booster.model_to_string()
    return render(header_of(text), tree_blocks(text), {})


async def test_evaluation_is_that_of_the_raw_scores(heart_sites: dict[str, Path], tmp_path: Path) -> None:
    sites = Sites(TREES, heart_sites, tmp_path)
    try:
        binning = await sites.binning()
        model = tmp_path / "model.txt"
        model.write_bytes(pooled_text(sites, binning))
        found = await sites.evaluated(model)
        model.write_bytes(model.read_bytes().replace(b"left_child=1", b"left_child=99", 1))
        with pytest.raises(TrainingRefused, match="MODEL_REFUSED"):
            await sites.evaluated(model)
    finally:
        await sites.runner.aclose()
    columns, labels = sites.rows(binning, "test")
    scores = lightgbm.Booster(model_str=pooled_text(sites, binning).decode()).predict(columns)
    assert found.auc == pytest.approx(exact_auc(scores, labels), abs=found.auc_error_bound or 0)
    assert found.accuracy == pytest.approx(np.mean((scores >= 0.5) == labels))


async def test_importance_is_the_mean_of_absolute_shap_values(heart_sites: dict[str, Path], tmp_path: Path) -> None:
    sites = Sites(TREES, heart_sites, tmp_path)
    try:
        binning = await sites.binning()
        text = pooled_text(sites, binning)
        (tmp_path / "model.txt").write_bytes(text)
        counts = await sites.sums(
            lambda source, path: Evaluate(
                study=TREES,
                source=source,
                preprocessing_path=str(sites.binning_path),
                model_path=str(tmp_path / "model.txt"),
                vector_path=path,
            )
        )
    finally:
        await sites.runner.aclose()
    columns, _ = sites.rows(binning, "test")
    shap = lightgbm.Booster(model_str=text.decode()).predict(columns, pred_contrib=True)[:, :-1]
    words = counts[-columns.shape[1] :] / 2.0**24 / len(columns)
    assert np.allclose(words, np.abs(shap).mean(axis=0), atol=1e-6)


async def test_baselines_of_lightgbm(heart_sites: dict[str, Path], tmp_path: Path) -> None:
    missing = tmp_path / "missing.csv"
    missing.write_text("age,disease,split\n")
    sources = heart_sites | {"elsewhere": missing}
    named = tuple(NamedSource(name=name, source=DataSource(path=str(path))) for name, path in sources.items())
    async with TrainingRunner(work_dir=tmp_path, isolation="warn", say=lambda line: None) as runner:
        done = await runner.run(TrainBaselines(study=TREES, sites=named))
        again = await runner.run(TrainBaselines(study=TREES, sites=named))
    assert done.refused == (("elsewhere", "COLUMN_MISSING"),)
    assert [baseline.name for baseline in done.local] == list(heart_sites)
    assert done.bagging is not None
    assert done.pooled.training_rows == done.bagging.training_rows == sum(site.training_rows for site in done.local)
    aucs = [baseline.exact_auc or 0 for baseline in (done.pooled, done.bagging, *done.local)]
    assert aucs[0] > 0.75
    assert aucs[0] > max(aucs[2:]) - 0.02
    assert [baseline.exact_auc for baseline in again.local] == aucs[2:], "training is repeatable"
    assert done.pooled.evaluation is not None
    assert done.pooled.evaluation.auc == done.pooled.binned.auc


async def test_baselines_of_random_trees(heart_sites: dict[str, Path], tmp_path: Path) -> None:
    named = tuple(NamedSource(name=name, source=DataSource(path=str(path))) for name, path in heart_sites.items())
    async with TrainingRunner(work_dir=tmp_path, isolation="warn", say=lambda line: None) as runner:
        done = await runner.run(TrainBaselines(study=RANDOM, sites=named))
    assert done.bagging is None
    assert done.pooled.exact_auc is not None
    assert done.pooled.exact_auc > 0.75
    assert len(done.local) == 4


async def test_bins_of_another_study_are_refused(heart_sites: dict[str, Path], tmp_path: Path) -> None:
    sites = Sites(TREES, heart_sites, tmp_path)
    source = next(iter(sites.tables.values()))
    try:
        binning = await sites.binning()
        job = PrepareTrees(study=TREES, source=source, preprocessing_path=str(sites.binning_path))
        prepared = await sites.runner.run(job)
        assert prepared.rows > 0
        assert (await sites.runner.run(job)).data_digest == prepared.data_digest
        other = TREES.model_copy(update={"purpose": "another"})
        for text, study in ((binning.canonical(), other), (b"{}", TREES), (binning.canonical() + b" ", TREES)):
            sites.binning_path.write_bytes(text)
            with pytest.raises(TrainingRefused, match="MODEL_REFUSED"):
                await sites.runner.run(job.model_copy(update={"study": study}))
    finally:
        await sites.runner.aclose()


async def test_lightgbm_is_not_trained_in_rounds_of_averaging(heart_sites: dict[str, Path], tmp_path: Path) -> None:
    sites = Sites(TREES, heart_sites, tmp_path)
    try:
        job = TrainLocally(
            study=TREES,
            source=next(iter(sites.tables.values())),
            model_path=str(tmp_path / "none"),
            update_path=str(tmp_path / "update"),
            round=0,
            site_index=0,
        )
        with pytest.raises(TrainingRefused, match="MODEL_REFUSED"):
            await sites.runner.run(job)
    finally:
        await sites.runner.aclose()


def session_job(sites: Sites, digest: bytes, **spec: Any) -> TrainTrees:
    strict = {"step_s": 1, "rounds": 2, "trees_done": 0, "chain": bytes(32), "total_rows": 10_000} | spec
    return TrainTrees(
        study=TREES,
        source=next(iter(sites.tables.values())),
        preprocessing_path=str(sites.binning_path),
        journal_path=str(sites.folder / "journal"),
        strict=StrictSpec.model_validate(strict),
        sites=4,
        index=1,
        data_digest=digest,
    )


def open_files(pid: int | None) -> int:
    """0 where nobody may look."""
    try:
        return len(list(Path(f"/proc/{pid}/fd").iterdir()))
    except OSError:
        return 0


async def test_a_line_that_ends_ends_the_job_and_the_next_one_has_its_own(
    heart_sites: dict[str, Path], tmp_path: Path
) -> None:
    sites = Sites(TREES, heart_sites, tmp_path)
    source = next(iter(sites.tables.values()))
    try:
        await sites.binning()
        prepared = await sites.runner.run(
            PrepareTrees(study=TREES, source=source, preprocessing_path=str(sites.binning_path))
        )
        first = sites.runner.pid
        for _ in range(3):
            bridge, other = LiveBridge.pair()
            task = asyncio.create_task(sites.runner.run(session_job(sites, prepared.data_digest), bridge=other))
            request = await asyncio.wait_for(bridge.recv(), 30)
            assert request is not None
            bridge.close()
            with pytest.raises(TrainingFailed, match="BridgeDead"):
                await asyncio.wait_for(task, 30)
            assert other.fileno() == -1
        assert sites.runner.pid == first
        before = open_files(first)
        bridge, other = LiveBridge.pair()
        wrong = session_job(sites, bytes(32))
        with pytest.raises(TrainingRefused, match="DATA_CHANGED"):
            await sites.runner.run(wrong, bridge=other)
        assert await bridge.recv() is None
        bridge.close()
        assert open_files(first) == before, "no line is left open"
    finally:
        await sites.runner.aclose()


async def test_a_job_that_waits_for_a_cancelled_line_is_killed(heart_sites: dict[str, Path], tmp_path: Path) -> None:
    sites = Sites(TREES, heart_sites, tmp_path)
    source = next(iter(sites.tables.values()))
    try:
        await sites.binning()
        prepared = await sites.runner.run(
            PrepareTrees(study=TREES, source=source, preprocessing_path=str(sites.binning_path))
        )
        bridge, other = LiveBridge.pair()
        task = asyncio.create_task(sites.runner.run(session_job(sites, prepared.data_digest), bridge=other))
        assert await asyncio.wait_for(bridge.recv(), 30) is not None
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert sites.runner.pid is None
        assert await asyncio.wait_for(bridge.recv(), 30) is None
        bridge.close()
    finally:
        await sites.runner.aclose()


def test_a_model_of_another_trainer_has_no_averaging_trainer() -> None:
    from cohortium_connector.training.base import trainer_for

    with pytest.raises(ModelRefused, match="rounds of averaging"):
        trainer_for(TREES, 3)
