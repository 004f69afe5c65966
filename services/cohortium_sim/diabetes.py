"""Diabetes 130-US hospitals (Strack et al. 2014, UCI, CC BY 4.0) as four tables that fit `studies/diabetes-trees.yaml`.

The public file names no hospital. `pseudo_site` groups encounters by what the hospital's system recorded (payer code or
not, medical specialty or not), a trace of different systems: neither column is a feature. The split is by patient, and
the study's unit is one encounter.
"""

import csv
import gzip
import os
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Final

from cohortium_messages.study import CategoryFeature, Study
from cohortium_messages.study_file import parse_study
from cohortium_sim.plan import PlanError, SiteTable

FOLDER, TABLE, SPLIT = "diabetes-130", "diabetic_data.csv.gz", "split.csv.gz"
SITES: Final = ("A_both", "B_payer_only", "C_specialty_only", "D_neither")
LABEL: Final = "readmitted_30"
_DIAGNOSES: Final = ("diag_1", "diag_2", "diag_3")
_MEASURED: Final = ("max_glu_serum", "A1Cresult")


def data_dir() -> Path | None:
    """Where the public data sets lie: `COHORTIUM_DATA_DIR`, or shared/data beside the repository; None where neither
    has this one."""
    named = os.environ.get("COHORTIUM_DATA_DIR")
    found = Path(named) if named else Path(__file__).resolve().parents[2].parent / "shared" / "data"
    return found if (found / FOLDER / TABLE).is_file() else None


def diabetes_study() -> Study:
    """Readmission within 30 days, by LightGBM, from 42 findings of the stay."""
    text = resources.files("cohortium_sim").joinpath("studies/diabetes-trees.yaml").read_text(encoding="utf-8")
    return parse_study(text, file="diabetes-trees.yaml")


def write_diabetes_sites(source: Path, folder: Path) -> tuple[SiteTable, ...]:
    """Write one CSV for each pseudo-site, with columns `readmitted_30` and `split`; `source` is a `data_dir()`.

    Raises `PlanError` where the files are not those of the data set.
    """
    study = diabetes_study()
    folder.mkdir(parents=True, exist_ok=True)
    paths = {site: folder / f"{site}.csv" for site in SITES}
    columns = [feature.name for feature in study.dataset.features]
    files = {site: path.open("w", encoding="utf-8", newline="") for site, path in paths.items()}
    try:
        writers = {site: csv.writer(file) for site, file in files.items()}
        for writer in writers.values():
            writer.writerow([*columns, LABEL, "split"])
        levels = _levels(study)
        for site, row, part in _rows(source):
            writers[site].writerow([*_values(row, columns, levels), "1" if row["readmitted"] == "<30" else "0", part])
    except KeyError as error:
        raise PlanError(f"{source / FOLDER}: not the data set's files: there is no {error}") from None
    finally:
        for file in files.values():
            file.close()
    return tuple(SiteTable(site, path.resolve()) for site, path in paths.items())


def _levels(study: Study) -> dict[str, frozenset[str]]:
    return {
        feature.name: frozenset(feature.levels)
        for feature in study.dataset.features
        if isinstance(feature, CategoryFeature)
    }


def _rows(source: Path) -> Iterator[tuple[str, dict[str, str], str]]:
    """Pseudo-site, row and part (train or test) of each encounter, in the order of the file."""
    with gzip.open(source / FOLDER / SPLIT, "rt", encoding="utf-8", newline="") as file:
        parts = {row["encounter_id"]: (row["pseudo_site"], row["split"]) for row in csv.DictReader(file)}
    with gzip.open(source / FOLDER / TABLE, "rt", encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            site, part = parts[row["encounter_id"]]
            yield site, row, part


def _values(row: Mapping[str, str], columns: list[str], levels: Mapping[str, frozenset[str]]) -> Iterator[str]:
    for name in columns:
        value = row[name]
        if name == "age":
            # An interval as text, [70-80): its lower end.
            value = value.strip("[)").split("-")[0]
        elif name in _MEASURED and value == "None":
            value = "unmeasured"
        elif name in _DIAGNOSES and value != "?":
            # The first three characters are the disease, what follows its details; rare ones are one level.
            value = value[:3] if value[:3] in levels[name] else "other"
        yield "" if value in ("?", "Unknown/Invalid") else value
