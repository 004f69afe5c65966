"""A private study's promise is to a person, however many rows the hospital's table has of one."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("torch", reason="the training extra is not installed")
pytest.importorskip("opacus", reason="the training extra is not installed")
pytest.importorskip("numba", reason="the training extra is not installed")
pytest.importorskip("lightgbm", reason="the training extra is not installed")

from pydantic import ValidationError

from cohortium_connector.training import dp_sgd, private_jobs
from cohortium_connector.training.base import trainer_for
from cohortium_connector.training.data import DataRefused, Table, read_table
from cohortium_connector.training.dp_random import Randomness
from cohortium_connector.training.jobs import (
    CountDone,
    CountPatients,
    DataSource,
    Evaluate,
    PrivateWork,
    Refusal,
    TrainDone,
    TrainLocally,
)
from cohortium_connector.training.persons import Owners
from cohortium_connector.training.work import Desk
from cohortium_messages.secure_sum import Purpose
from cohortium_messages.study import Study
from cohortium_privacy.public_inputs import public_rules
from cohortium_privacy.windows import count_factor, noise_for, plan_for
from cohortium_protocol.parameters import initial_parameters
from cohortium_protocol.statistics import input_count
from cohortium_protocol.trees.random_trees import CLIP, NOISY_BITS

pytestmark = pytest.mark.torch

SITES, LEAST, COLLUSION, SEED = 4, 3, 1, bytes([7]) * 32
FIELDS: dict[str, Any] = {
    "apiVersion": "cohortium/study/1",
    "governance": "trial",
    "name": "heart",
    "purpose": "test",
    "dataset": {
        "features": [{"name": "age", "type": "float", "range": [18, 110]}],
        "label": {"name": "disease", "type": "binary"},
        "split": {"column": "part", "train": "train", "test": "test"},
    },
    "recipe": {"trainer": "torch.logistic", "local": {"optimizer": "sgd", "lr": 0.5}},
    "federation": {"rounds": 1, "min_sites": 3},
    "metrics": ["auc"],
}
DISTRIBUTED: dict[str, Any] = {
    "mode": "distributed",
    "epsilon": 8.0,
    "delta": 1e-5,
    "patients": 2000,
    "evaluation_epsilon": 2.0,
}
LOCAL: dict[str, Any] = {"mode": "local", "epsilon": 8.0, "delta": 1e-4, "sampling_rate": 1.0, "patients": 400}
TREES: dict[str, Any] = {"trainer": "lightgbm.random_trees", "trees": 1, "depth": 2, "trees_per_sum": 1}
GRADIENTS = Study.model_validate({**FIELDS, "privacy": DISTRIBUTED})
LEAVES = Study.model_validate({**FIELDS, "privacy": DISTRIBUTED, "recipe": TREES, "federation": {"min_sites": 3}})
SHARES = Study.model_validate(
    {**FIELDS, "dataset": {**FIELDS["dataset"], "split": {"test": 0.4, "seed": 3}}, "privacy": DISTRIBUTED}
)
OTHERS = tuple(f"{30 + number},{number % 2},train,p{number},2024-05-01" for number in range(40))
MANY = tuple(f"{90 + number % 20},1,train,grandmother,2025-01-07" for number in range(50))
HEAD = "age,disease,part,person,since"


@dataclass
class Site:
    """One hospital's table, and what was published for it."""

    folder: Path
    study: Study

    def write(self, *rows: str) -> "Site":
        (self.folder / "table.csv").write_text("\n".join([HEAD, *rows]) + "\n")
        return self

    def source(self, **changes: Any) -> DataSource:
        fields = {"person_column": "person", "first_record_column": "since", **changes}
        return DataSource(path=str(self.folder / "table.csv"), **fields)

    def table(self, **changes: Any) -> Table:
        return read_table(self.study, self.source(**changes))

    def count(self, **changes: Any) -> CountDone:
        done = Desk(isolated=False).answer(CountPatients(study=self.study, source=self.source(**changes)))
        assert isinstance(done, CountDone)
        return done

    def private(self, purpose: Purpose, blocks: tuple[str, ...] | None = None) -> PrivateWork:
        noise = noise_for(self.study, purpose, plan_for(self.study, SITES, LEAST, COLLUSION), LEAST, COLLUSION)
        assert noise is not None
        return PrivateWork(noise=noise, seed=SEED, sites=SITES, blocks=blocks)

    def words(self, purpose: Purpose = "update", blocks: tuple[str, ...] | None = None) -> NDArray[np.int64]:
        """What the site would send, by a process of its own."""
        target = self.folder / "vector"
        (self.folder / "rules.json").write_bytes(public_rules(self.study, SITES).canonical())
        trees = self.study.recipe.trainer == "lightgbm.random_trees"
        model = b"" if trees else initial_parameters(trainer_for(self.study, input_count(self.study)).layout, 0)
        (self.folder / "base.model").write_bytes(bytes(model))
        fields: dict[str, Any] = {
            "study": self.study,
            "source": self.source(),
            "preprocessing_path": str(self.folder / "rules.json"),
            "model_path": str(self.folder / "base.model"),
            "private": self.private(purpose, blocks),
        }
        if purpose == "update":
            done = Desk(isolated=False).answer(TrainLocally(**fields, update_path=str(target), round=0, site_index=0))
            assert isinstance(done, TrainDone)
        else:
            answer = Desk(isolated=False).answer(Evaluate(**fields, vector_path=str(target)))
            assert answer.done == "evaluate"
        return np.frombuffer(target.read_bytes(), dtype="<f4" if self.study.privacy.mode == "local" else "<i8")


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sums themselves, whose difference is to be bounded: no noise."""
    nothing = lambda values, *_: values  # noqa: E731
    monkeypatch.setattr(private_jobs, "noised", nothing)
    monkeypatch.setattr(dp_sgd, "noised", nothing)


def test_persons_are_counted_and_not_rows(tmp_path: Path) -> None:
    rows = [f"{40 + number},1,train,p{number % 11},2024-05-01" for number in range(60)]
    site = Site(tmp_path, GRADIENTS).write(*rows)
    assert site.count().patients == 11
    assert site.count(person_column=None, first_record_column=None).patients == 60


@pytest.mark.usefixtures("silent")
def test_a_person_with_fifty_rows_moves_a_gradient_sum_by_at_most_the_clip(tmp_path: Path) -> None:
    site = Site(tmp_path, GRADIENTS)
    without = site.write(*OTHERS).words()
    moved = np.linalg.norm((site.write(*OTHERS, *MANY).words() - without).astype(float))
    noise = site.private("update").noise
    assert 0 < moved <= 1.01 * noise.clip / noise.step


@pytest.mark.usefixtures("silent")
def test_a_person_with_fifty_rows_moves_leaf_sums_by_at_most_one_row_s_bound(tmp_path: Path) -> None:
    site = Site(tmp_path, LEAVES)
    without = site.write(*OTHERS).words()
    moved = np.linalg.norm((site.write(*OTHERS, *MANY).words() - without).astype(float))
    assert 0 < moved <= CLIP["binary"] * 2**NOISY_BITS + 2


@pytest.mark.usefixtures("silent")
@pytest.mark.parametrize("study", [GRADIENTS])
def test_a_tested_person_with_fifty_rows_is_one_count(study: Study, tmp_path: Path) -> None:
    site = Site(tmp_path, study)
    tested = tuple(row.replace("train", "test") for row in MANY)
    few = (*OTHERS, "50,0,test,q,2024-05-01")
    without, factor = site.write(*few).words("evaluation"), count_factor(site.private("evaluation").noise)
    assert np.abs(site.write(*few, *tested).words("evaluation") - without).sum() == factor


def test_local_training_samples_persons_and_one_row_of_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []
    real = dp_sgd.PoissonRecords.draw

    def draw(records: dp_sgd.PoissonRecords, randomness: Randomness, step: int) -> NDArray[np.int64]:
        chosen = real(records, randomness, step)
        drawn.append(len(chosen))
        return chosen

    monkeypatch.setattr(dp_sgd.PoissonRecords, "draw", draw)
    site = Site(tmp_path, Study.model_validate({**FIELDS, "privacy": LOCAL}))
    assert np.isfinite(site.write(*OTHERS, *MANY).words()).all()
    assert set(drawn) == {len(OTHERS) + 1}  # of everybody, with a rate of 1, one row


class TestParts:
    def test_a_person_is_in_one_part_only_and_nobody_else_has_a_say(self, tmp_path: Path) -> None:
        site = Site(tmp_path, SHARES)
        rows = [f"{20 + number % 60},{number % 2},x,p{number % 30},2024-05-01" for number in range(120)]
        table = site.write(*rows).table()
        assert len(table.training.owners.first) + len(table.testing.owners.first) == 30
        assert 5 <= len(table.testing.owners.first) <= 20
        fewer = site.write(*(row for row in rows if ",p7," not in row)).table()
        gone = {len(table.train) - len(fewer.train), len(table.test) - len(fewer.test)}
        assert gone == {0, 4}

    def test_a_row_without_a_name_is_split_by_what_it_says_alone(self, tmp_path: Path) -> None:
        site = Site(tmp_path, SHARES)
        rows = [f"{20 + number / 3:.2f},{number % 2},x,," for number in range(90)]
        nobody = {"person_column": None, "first_record_column": None}
        tested = site.write(*rows).table(**nobody).test.columns["age"]
        assert 18 <= len(tested) <= 54
        later = site.write(*rows[31:]).table(**nobody).test.columns["age"]
        assert set(later) == {age for age in tested if age >= 20 + 31 / 3 - 0.005}

    def test_who_has_a_row_to_train_on_is_not_tested(self, tmp_path: Path) -> None:
        site = Site(tmp_path, GRADIENTS).write(*OTHERS, "61,1,test,p3,2024-05-01", "62,1,test,new,2024-05-01")
        table = site.table()
        assert table.test.columns["age"].tolist() == [62.0]
        assert len(table.train) == len(OTHERS)

    def test_rows_that_name_nobody_are_left_out_even_where_they_are_wrong(self, tmp_path: Path) -> None:
        site = Site(tmp_path, GRADIENTS).write(*OTHERS, "999,1,train, ,2024-05-01")
        assert len(site.table().train) == len(OTHERS)

    def test_two_ways_to_write_a_name_are_one_person(self, tmp_path: Path) -> None:
        site = Site(tmp_path, GRADIENTS).write("40,1,train,Zo\u00eb,", "41,1,train,Zoe\u0308,", "42,0,train,x,")
        assert site.count(first_record_column=None).patients == 2


class TestBlocks:
    def test_patients_are_counted_by_the_quarter_of_their_first_record(self, tmp_path: Path) -> None:
        site = Site(tmp_path, GRADIENTS).write(*OTHERS, *MANY)
        assert site.count().blocks == {"2024-Q2": len(OTHERS), "2025-Q1": 1}
        assert site.count(first_record_column=None).blocks == {"all": len(OTHERS) + 1}

    def test_one_patient_without_a_day_puts_everybody_in_one_block(self, tmp_path: Path) -> None:
        site = Site(tmp_path, GRADIENTS).write(*OTHERS, "61,1,train,dateless,")
        assert site.count().blocks == {"all": len(OTHERS) + 1}

    @pytest.mark.usefixtures("silent")
    def test_nobody_of_a_quarter_that_was_not_charged_is_in_a_sum(self, tmp_path: Path) -> None:
        site = Site(tmp_path, GRADIENTS)
        alone = site.write(*OTHERS).words()
        later = site.write(*OTHERS, *MANY, "61,1,train,dateless,")
        assert (later.words(blocks=("2024-Q2",)) == alone).all()
        assert (later.words() != alone).any()

    @pytest.mark.usefixtures("silent")
    def test_nobody_of_a_quarter_that_was_not_charged_is_tested(self, tmp_path: Path) -> None:
        site = Site(tmp_path, GRADIENTS)
        few = (*OTHERS, "50,0,test,q,2024-05-01")
        alone = site.write(*few).words("evaluation")
        later = site.write(*few, *(row.replace("train", "test") for row in MANY))
        assert (later.words("evaluation", blocks=("2024-Q2",)) == alone).all()

    @pytest.mark.parametrize("day", ["soon", "0203-01-01", "2024-02-30", "2024-05-02"])
    def test_a_first_record_that_is_no_day_or_two_days_is_refused(self, day: str, tmp_path: Path) -> None:
        site = Site(tmp_path, GRADIENTS).write(*OTHERS, f"61,1,train,p3,{day}")
        with pytest.raises(DataRefused) as caught:
            site.table()
        assert (caught.value.code, caught.value.column, caught.value.rows) == ("FIRST_RECORD_INVALID", "since", (41,))

    def test_a_site_whose_update_would_have_no_row_refuses(self, tmp_path: Path) -> None:
        privacy = {"mode": "site", "epsilon": 4.0, "delta": 1e-3, "sites": 60}
        federation = {"rounds": 1, "min_sites": 60}
        site = Site(tmp_path, Study.model_validate({**FIELDS, "privacy": privacy, "federation": federation}))
        (tmp_path / "rules.json").write_bytes(public_rules(site.study, SITES).canonical())
        layout = trainer_for(site.study, input_count(site.study)).layout
        (tmp_path / "base.model").write_bytes(initial_parameters(layout, 0).tobytes())
        noise = noise_for(site.study, "update", plan_for(site.study, 60, 60, COLLUSION), 60, COLLUSION)
        assert noise is not None
        job = TrainLocally(
            study=site.study,
            source=site.write(*OTHERS).source(),
            preprocessing_path=str(tmp_path / "rules.json"),
            model_path=str(tmp_path / "base.model"),
            update_path=str(tmp_path / "vector"),
            round=0,
            site_index=0,
            private=PrivateWork(noise=noise, seed=SEED, sites=60, blocks=("1999-Q1",)),
        )
        refused = Desk(isolated=False).answer(job)
        assert isinstance(refused, Refusal)
        assert refused.code == "NO_TRAINING_ROWS"

    def test_a_column_of_first_records_needs_persons(self) -> None:
        with pytest.raises(ValidationError, match="first_record_column needs person_column"):
            DataSource(path="table.csv", first_record_column="since")


def test_one_row_of_each_is_drawn_from_all_of_the_person_s_own() -> None:
    owners = Owners(np.array([0, 1, 0, 1, 0, 2]), (None, None, None))
    drawn = [owners.one_each(Randomness(bytes([number]) * 32)).tolist() for number in range(60)]
    assert {places[0] for places in drawn} == {0, 2, 4}
    assert {places[1] for places in drawn} == {1, 3}
    assert {places[2] for places in drawn} == {5}


def test_the_source_stays_readable_as_a_line(tmp_path: Path) -> None:
    source = Site(tmp_path, GRADIENTS).source()
    assert DataSource.model_validate(json.loads(source.model_dump_json())) == source
