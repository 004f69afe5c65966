"""The table of AUC at ε: what is chosen on which rows, what is kept, what is printed."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="the training extra is not installed")

from cohortium_kit.errors import CohortiumError
from cohortium_messages.privacy import DistributedPrivacy, LocalPrivacy
from cohortium_privacy.plan import steps_of
from cohortium_privacy.windows import usual_course
from cohortium_sim import privacy_table
from cohortium_sim.bench_noise import SPEED_SIGMAS, sampler_lines
from cohortium_sim.privacy_arms import Arms, Worth, in_one_place, private_study
from cohortium_sim.privacy_data import VALIDATION, DataSet, Method, Setting, heart
from cohortium_sim.privacy_table import METHODS, Bench, Cell, Store, lines, main

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    return heart(tmp_path_factory.mktemp("heart"), 1)


def cell(method: Method, epsilon: float | None, seed: int, auc: float) -> Cell:
    return Cell("heart", method, epsilon, seed, auc, auc - 0.1, Setting(10, 1.0), 0.8, 2.5, 0.9)


class Told:
    """Arms whose worth is a function of the setting alone, and which remember what they were asked."""

    def __init__(self, aucs: dict[Setting, float]) -> None:
        self.aucs = aucs
        self.asked: list[tuple[Method, Setting, int]] = []

    def worth(self, method: Method, epsilon: float | None, setting: Setting, seed: int) -> Worth:
        self.asked.append((method, setting, seed))
        return Worth(self.aucs[setting], 0.5)


def test_settings_are_chosen_on_training_rows_alone(data: DataSet) -> None:
    """Every row that a setting is judged by, or trained on to be judged, is one that the final model trains on."""
    choice = data.for_choice()
    for name, table in choice.tables.items():
        rows = data.tables[name].train
        assert len(table.train) + len(table.test) == len(rows)
        assert len(table.test) == pytest.approx(VALIDATION * len(rows), abs=1)
        assert np.mean(table.test.labels) == pytest.approx(np.mean(rows.labels), abs=0.05)
        for column, values in rows.columns.items():
            parts = np.concatenate([table.train.columns[column], table.test.columns[column]])
            np.testing.assert_array_equal(np.sort(parts), np.sort(values))
    assert (choice.patients, choice.smallest) == (448, 56)
    again = data.for_choice().tables["va"].test
    np.testing.assert_array_equal(again.labels, choice.tables["va"].test.labels)


def test_the_best_setting_on_validation_rows_is_tested_once(data: DataSet, monkeypatch: pytest.MonkeyPatch) -> None:
    validated = Told({one: 0.9 if one.lr == 4.0 else 0.7 for one in data.settings})
    tested = Told(dict.fromkeys(data.settings, 0.6))
    made = iter([tested, validated])
    monkeypatch.setattr("cohortium_sim.privacy_table.Arms", lambda _: next(made))
    bench = Bench(data)
    found = [bench.cell("central", 1.0, seed) for seed in (1, 2)]
    best = next(one for one in data.settings if one.lr == 4.0)
    assert [(one.setting, one.auc, one.validation_auc) for one in found] == [(best, 0.6, 0.9)] * 2
    assert tested.asked == [("central", best, 1), ("central", best, 2)], "test rows are looked at once a model"
    assert len(validated.asked) == 2 * len(data.settings), "and settings are not chosen again for another seed"


def test_one_method_may_choose_for_all(data: DataSet, monkeypatch: pytest.MonkeyPatch) -> None:
    arms = Told({one: one.lr for one in data.settings} | {one: one.lr for one in data.open_settings})
    monkeypatch.setattr("cohortium_sim.privacy_table.Arms", lambda _: arms)
    for chosen_by, asked in (("central", ["central"]), (None, ["distributed", "local"])):
        arms.asked.clear()
        bench = Bench(replace(data, chosen_by=chosen_by))
        bench.chosen("distributed", 1.0)
        bench.chosen("distributed", None)
        assert list(dict.fromkeys(method for method, _, _ in arms.asked)) == asked


@pytest.mark.parametrize("method", METHODS)
def test_a_study_has_the_steps_of_its_setting(data: DataSet, method: Method) -> None:
    for setting in (Setting(40, 1.0), Setting(300, 1.0, 4.0, 0.02)):
        own = replace(data, steps_a_round=50 if setting.steps == 300 else 5)
        study = private_study(own, method, 3.0, setting, seed=7)
        assert isinstance(study.privacy, LocalPrivacy | DistributedPrivacy)
        assert steps_of(study.privacy, usual_course(study)) == setting.steps
        assert (study.privacy.clip, study.privacy.sampling_rate) == (setting.clip, setting.sampling_rate)
        assert study.privacy.patients == (80 if method == "local" else 640)
        assert study.federation.seed == 7


def test_one_place_has_everybodys_rows_in_the_same_order(data: DataSet) -> None:
    cohort = Arms(data)._cohort
    (pooled,) = in_one_place(cohort).sites
    np.testing.assert_array_equal(pooled.train.inputs, np.concatenate([site.train.inputs for site in cohort.sites]))
    np.testing.assert_array_equal(pooled.test.labels, np.concatenate([site.test.labels for site in cohort.sites]))


def test_a_cell_is_what_the_promise_and_the_seed_say(data: DataSet) -> None:
    arms, setting = Arms(data), Setting(10, 1.0)
    first = arms.worth("distributed", 3.0, setting, 1)
    assert first == arms.worth("distributed", 3.0, setting, 1)
    assert first.auc != arms.worth("distributed", 3.0, setting, 2).auc
    assert first.epsilon_pld is not None
    assert 2 < first.epsilon_pld < 3
    assert arms.worth("local", None, Setting(5, 0.03), 1).auc > 0.8
    weak, strong = (arms.worth("central", epsilon, setting, 1) for epsilon in (0.2, 8.0))
    assert weak.noise_multiplier is not None
    assert strong.noise_multiplier is not None
    assert weak.noise_multiplier > 15 * strong.noise_multiplier
    assert strong.auc > 0.85


def test_cells_are_kept_and_not_made_again(tmp_path: Path) -> None:
    path = tmp_path / "cells.json"
    store = Store(path)
    store.add(cell("local", 1.0, 1, 0.8))
    store.add(cell("central", None, 1, 0.9))
    assert Store(path).cells == store.cells
    assert not list(tmp_path.glob("*.part"))
    document = json.loads(path.read_text())
    assert {"date", "machine"} < document.keys()


@pytest.mark.parametrize("text", ["{}", "[]", "no", '{"format": "cohortium/privacy-table/1", "cells": [{"auc": 1}]}'])
def test_a_file_of_something_else_is_refused(tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "cells.json"
    path.write_text(text)
    with pytest.raises(CohortiumError, match="holds no table"):
        Store(path)
    assert main(["--json", str(path)]) == 1
    assert "name another file" in capsys.readouterr().err
    assert path.read_text() == text


def test_what_is_printed(tmp_path: Path) -> None:
    cells = [
        cell(method, epsilon, seed, 0.8 + seed / 100)
        for method in METHODS
        for epsilon in (3.0, None)
        for seed in (1, 3)
    ]
    cells += [cell("distributed", 1.0, 1, 0.7)]
    text = list(lines(cells))
    assert text[1].split() == ["heart", "1", "-", "0.700", "-", "0.90"]
    assert text[2].split() == ["heart", "3", *["0.820", "±", "0.014"] * 3, "+0.0000", "0.90"]
    assert text[3].split()[:3] == ["heart", "none", "0.820"]
    assert "0.774 at ε = 5" in text[-1]


def test_the_sampler_s_speed_is_said_for_each_deviation(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(privacy_table, "sampler_lines", lambda: sampler_lines(samples=2000, repeats=2))
    assert main(["--sampler"]) == 0
    said = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert said[0][-2:] == ["sample", "quickest"]
    assert [float(line[0]) for line in said[1:]] == list(SPEED_SIGMAS)
    assert all(float(line[1]) >= float(line[2]) > 0 for line in said[1:])
