"""The two data sets of the table of AUC at ε (`privacy_table`), with what a study of theirs would make public."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from cohortium_connector.training.data import Table, read_table
from cohortium_connector.training.jobs import DataSource
from cohortium_messages.study import Study
from cohortium_protocol.statistics import Rows
from cohortium_sim.demo import demo_tables
from cohortium_sim.diabetes import diabetes_study, write_diabetes_sites
from cohortium_sim.plan import SiteTable
from cohortium_sim.trees_table import heart_study

Name = Literal["heart", "diabetes"]
Method = Literal["local", "distributed", "central"]
"""M1, M2, and DP-SGD on the rows of all sites in one place."""

VALIDATION: Final = 0.3
"""Share of each site's training rows, by label, that settings are chosen on."""


DIAGNOSES: Final = ("diag_1", "diag_2", "diag_3")


@dataclass(frozen=True, slots=True)
class Setting:
    """What is chosen. `steps`: noisy gradient steps in the whole run; without privacy, passes over the rows."""

    steps: int
    lr: float
    clip: float = 1.0
    sampling_rate: float = 1.0


@dataclass(frozen=True, slots=True)
class DataSet:
    """Rows, and the public numbers of a study of them. `study`: logistic regression, its privacy yet to be said.

    `patients` and `smallest`: training patients that every study file would name, of all sites and of the smallest.
    `steps_a_round`: of `local`, at each site between two sums. `validated`: models that each setting is judged by.
    `chosen_by`: the method that settings are chosen with for all of them, where one has to do; None: each its own.
    `split`: data sets of one split have the same rows.
    """

    name: Name
    split: int
    study: Study
    tables: Mapping[str, Table]
    patients: int
    smallest: int
    delta: float
    steps_a_round: int
    validated: int
    chosen_by: Method | None
    settings: tuple[Setting, ...]
    open_settings: tuple[Setting, ...]

    def for_choice(self) -> "DataSet":
        """Only training rows: of each site a part to train on, and the rest to choose settings by."""
        tables = {
            name: _parted(table.train, [self.split, place]) for place, (name, table) in enumerate(self.tables.items())
        }
        left = 1 - VALIDATION
        return replace(self, tables=tables, patients=round(left * self.patients), smallest=round(left * self.smallest))


def heart(folder: Path, seed: int) -> DataSet:
    """UCI Heart Disease: four hospitals, 920 patients; the seed draws the test rows."""
    return DataSet(
        name="heart",
        split=seed,
        study=(study := _logistic(heart_study(seed))),
        tables=_read(study, demo_tables(folder)),
        patients=640,
        smallest=80,
        delta=1e-5,
        steps_a_round=5,
        validated=2,
        chosen_by=None,
        settings=tuple(Setting(steps, lr) for steps, lr in ((10, 0.3), (10, 1.0), (10, 4.0), (40, 1.0))),
        open_settings=tuple(Setting(20, lr) for lr in (0.01, 0.03, 0.1)),
    )


def diabetes(folder: Path, source: Path) -> DataSet:
    """Diabetes 130: four pseudo-sites, 101,766 encounters; the data set comes with its test rows. The unit of the
    promise is one encounter.

    Without the three diagnoses, whose levels are two thirds of all inputs: noise grows with the inputs, and what
    these are worth (an AUC of 0.01) does not.
    """
    return DataSet(
        name="diabetes",
        split=0,
        study=(study := _logistic(diabetes_study(), left_out=DIAGNOSES)),
        tables=_read(study, write_diabetes_sites(source, folder)),
        patients=76_000,
        smallest=12_000,
        delta=1e-6,
        steps_a_round=50,
        validated=1,
        chosen_by="central",
        settings=(Setting(400, 0.5, 2.0, 0.02), Setting(400, 0.5, 4.0, 0.02)),
        open_settings=tuple(Setting(10, lr) for lr in (0.03, 0.1, 0.3)),
    )


def _logistic(study: Study, left_out: tuple[str, ...] = ()) -> Study:
    """The study of trees as one of logistic regression: a missing value is a level, or the middle of the range."""
    fields: dict[str, Any] = json.loads(study.model_dump_json())
    features = fields["dataset"]["features"]
    fields["dataset"]["features"] = [feature for feature in features if feature["name"] not in left_out]
    for feature in fields["dataset"]["features"]:
        if feature["missing"] == "native":
            feature["missing"] = "level" if feature["type"] == "category" else "impute"
    changes = {"recipe": {"trainer": "torch.logistic"}, "federation": {"min_sites": 3, "rounds": 1}, "metrics": ["auc"]}
    return Study.model_validate(fields | changes)


def _read(study: Study, sites: tuple[SiteTable, ...]) -> dict[str, Table]:
    return {site.name: read_table(study, DataSource(path=str(site.path))) for site in sites}


def _parted(rows: Rows, seed: list[int]) -> Table:
    chance, held = np.random.default_rng(seed), np.zeros(len(rows), dtype=bool)
    for label in (0, 1):
        places = np.flatnonzero(rows.labels == label)
        held[chance.choice(places, round(VALIDATION * len(places)), replace=False)] = True
    return Table(rows.take(~held), rows.take(held))
