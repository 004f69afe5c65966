"""The four hospitals of UCI Heart Disease as four tables that fit heart.yaml, where the data are at hand."""

import csv
import os
import random
from pathlib import Path

SITES = ("cleveland", "hungarian", "switzerland", "va")
FINDINGS = (
    "age",
    "sex",
    "cp",
    "trestbps",
    "chol",
    "fbs",
    "restecg",
    "thalach",
    "exang",
    "oldpeak",
    "slope",
    "ca",
    "thal",
)


def data_dir() -> Path | None:
    """`COHORTIUM_DATA_DIR`, or shared/data beside the repository; None where there is neither."""
    named = os.environ.get("COHORTIUM_DATA_DIR")
    beside = Path(__file__).resolve().parents[2].parent / "shared" / "data"
    found = Path(named) if named else beside
    return found if (found / "uci-heart-disease" / "heart_disease.csv").is_file() else None


def write_heart_sites(source: Path, folder: Path, seed: int, test_share: float = 0.3) -> dict[str, Path]:
    """One CSV per hospital, with columns `disease` and `split`; the split is stratified by label within each hospital.

    `chol` of 0 means that it was not measured, so it becomes an empty field.
    """
    with (source / "uci-heart-disease" / "heart_disease.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    folder.mkdir(parents=True, exist_ok=True)
    return {
        site: _write_site(folder, site, [row for row in rows if row["site"] == site], seed, test_share)
        for site in SITES
    }


def _write_site(folder: Path, site: str, rows: list[dict[str, str]], seed: int, test_share: float) -> Path:
    chance = random.Random(f"{seed} {site}")  # noqa: S311 - a split for tests
    testing: set[int] = set()
    for label in ("0", "1"):
        places = [place for place, row in enumerate(rows) if row["target"] == label]
        testing.update(chance.sample(places, round(test_share * len(places))))
    path = folder / f"{site}.csv"
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow([*FINDINGS, "disease", "split"])
        for place, row in enumerate(rows):
            values = ["" if name == "chol" and float(row[name] or 0) == 0 else row[name] for name in FINDINGS]
            table.writerow([*values, row["target"], "test" if place in testing else "train"])
    return path
