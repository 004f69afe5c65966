"""Made-up patients of three hospitals: as tables, as rows of a model, and the study that fits them."""

import csv
from pathlib import Path

import numpy as np

from cohortium_connector.training.jobs import DataSource, NamedSource
from cohortium_messages.privacy import LocalPrivacy
from cohortium_messages.study import Study

HOSPITALS = ("north", "south", "west")
LOCAL = LocalPrivacy(mode="local", epsilon=1.0, delta=1e-5, sampling_rate=0.2, patients=60)


def study_of(recipe: dict[str, object] | None = None, **changes: object) -> Study:
    trees = recipe is not None and recipe["trainer"] == "lightgbm.random_trees"
    absent = ("native", "level") if trees else ("impute", "level")
    rounds = {} if trees else {"rounds": 3}
    fields: dict[str, object] = {
        "apiVersion": "cohortium/study/1",
        "governance": "trial",
        "name": "made-up-patients",
        "purpose": "A test of attacks",
        "dataset": {
            "features": [
                {"name": "age", "type": "float", "range": [20, 100]},
                {"name": "pressure", "type": "float", "range": [60, 220], "missing": absent[0]},
                {"name": "ward", "type": "category", "levels": ["a", "b", "c"], "missing": absent[1]},
                {"name": "smoker", "type": "category", "levels": ["0", "1"]},
            ],
            "label": {"name": "ill", "type": "binary"},
            "split": {"test": 0.3},
        },
        "recipe": recipe or {"trainer": "torch.logistic", "local": {"optimizer": "sgd", "lr": 0.5, "batch_size": 16}},
        "federation": {"min_sites": 3, **rounds},
    }
    return Study.model_validate(fields | changes)


def write_tables(folder: Path, rows: int = 100, seed: int = 0) -> tuple[NamedSource, ...]:
    """One CSV for each hospital: the older and the smokers are ill more often."""
    chance = np.random.default_rng(seed)
    sources = []
    for hospital in HOSPITALS:
        path = folder / f"{hospital}.csv"
        with path.open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["age", "pressure", "ward", "smoker", "ill"])
            for _ in range(rows):
                age, smoker = chance.uniform(20, 100), chance.integers(2)
                ill = chance.random() < 1 / (1 + np.exp(-(age - 60) / 8 - 2 * smoker + 1))
                pressure = "" if chance.random() < 0.1 else f"{chance.uniform(90, 200):.1f}"
                table.writerow([f"{age:.1f}", pressure, "abc"[chance.integers(3)], smoker, int(ill)])
        sources.append(NamedSource(name=hospital, source=DataSource(path=str(path))))
    return tuple(sources)
