"""`make accuracy`: what trees over secure sums are worth, on two real data sets: `python -m cohortium_sim.trees_table`.

Beside the federated model stand, by the same recipe and tested on the same rows: the pooled one, whose rows lie in one
place and whose bins are the same; each site's own; and bagging, the sites' own models added up by their rows. UCI Heart
Disease comes with the extra `demo`; for Diabetes 130 the public files must lie in a folder (`--data`).
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from statistics import mean, stdev
from typing import Final

import numpy as np

from cohortium_connector.training.data import read_table
from cohortium_connector.training.jobs import DataSource
from cohortium_kit.errors import CohortiumError
from cohortium_kit.runtime import run_async
from cohortium_messages.study import Study
from cohortium_messages.study_file import parse_study
from cohortium_protocol.metrics import exact_auc
from cohortium_protocol.trees.binning import Binning, tree_columns
from cohortium_protocol.trees.predict import raw_scores
from cohortium_protocol.trees.text import check_model_text
from cohortium_sim.demo import demo_tables
from cohortium_sim.diabetes import data_dir, diabetes_study, write_diabetes_sites
from cohortium_sim.plan import Plan, SiteTable, check_plan
from cohortium_sim.simulate import run_plan

FEDERATED: Final = "federated"


@dataclass(frozen=True, slots=True)
class Accuracy:
    """AUCs of one run, of raw scores on all sites' test rows, by model; `seconds` is what the federation took."""

    data: str
    aucs: dict[str, float]
    test_rows: int
    trees: int
    steps: int
    seconds: float


def heart_study(seed: int) -> Study:
    """UCI Heart Disease, all 13 findings, by LightGBM; the seed draws the test rows."""
    text = resources.files("cohortium_sim").joinpath("studies/heart-trees.yaml").read_text(encoding="utf-8")
    study = parse_study(text, file="heart-trees.yaml")
    split = study.dataset.split.model_copy(update={"seed": seed})
    return study.model_copy(update={"dataset": study.dataset.model_copy(update={"split": split})})


def heart_plan(out: Path, seed: int) -> Plan:
    """Four hospitals, 920 patients; the seed draws the test rows."""
    return _plan(heart_study(seed), demo_tables(out / "sites"), out)


def diabetes_plan(out: Path, source: Path) -> Plan:
    """Four pseudo-sites, 101,766 encounters; the data set comes with its test rows."""
    return _plan(diabetes_study(), write_diabetes_sites(source, out / "sites"), out)


def _plan(study: Study, sites: tuple[SiteTable, ...], out: Path) -> Plan:
    return check_plan(Plan(study=study, sites=sites, out=out, compare=True))


async def measure(data: str, plan: Plan) -> Accuracy:
    """Carry the plan out. Raises `CohortiumError` if it did not end as planned."""
    outcome = await run_plan(plan, live=False)
    if outcome.surprises:
        raise CohortiumError(f"{data} did not end as planned: {'; '.join(outcome.surprises)}")
    result = outcome.result
    table, training = result.metrics, result.training
    if table.federated is None or training is None:
        raise CohortiumError(f"{data}: the trees were not evaluated")
    aucs = {FEDERATED: model_auc(plan)}
    others = {"pooled": table.pooled, "bagging": table.bagging} | {
        f"only {name}": one for name, one in table.local.items()
    }
    aucs |= {name: one.auc for name, one in others.items() if one is not None and one.auc is not None}
    return Accuracy(data, aucs, table.federated.rows, training.trees, training.steps, training.seconds)


def model_auc(plan: Plan) -> float:
    """The exact AUC of the released model on the rows that the sites tested it on, read where a simulation has them.

    What the federation published of it comes from summed histograms, and is known to a bound only.
    """
    study, folder = plan.study, plan.out / "model"
    binning = Binning.from_canonical((folder / "preprocessing.json").read_bytes())
    model = check_model_text(
        (folder / "model.txt").read_bytes(),
        features=binning.feature_names(),
        classes=1,
        max_trees=study.boosting_rounds,
        max_leaves=1024,
        objective="binary",
    )
    scores, labels = [], []
    for site in plan.sites:
        source = DataSource(path=str(site.path), site_column=site.column, site_value=site.value)
        rows = read_table(study, source).test
        scores.append(raw_scores(model, tree_columns(binning, rows)))
        labels.append(rows.labels)
    return exact_auc(np.concatenate(scores), np.concatenate(labels))


def lines(found: Sequence[Accuracy]) -> Iterator[str]:
    """The table: a row for each data set and model, the mean over the seeds and its spread."""
    yield f"{'data set':<16}{'model':<26}{'AUC':>7}{'spread':>9}   against pooled"
    for data in dict.fromkeys(one.data for one in found):
        runs = [one for one in found if one.data == data]
        pooled = mean(one.aucs["pooled"] for one in runs)
        for name in runs[0].aucs:
            values = [one.aucs[name] for one in runs]
            spread = f"{stdev(values):.3f}" if len(values) > 1 else ""
            yield f"{data:<16}{name:<26}{mean(values):>7.4f}{spread:>9}   {mean(values) - pooled:+.4f}"
        told = f"{len(runs)} runs" if len(runs) > 1 else "1 run"
        yield (
            f"{'':<16}{told}, {runs[0].test_rows:,} test rows, {runs[0].trees} rounds in {runs[0].steps} steps, "
            f"{mean(one.seconds for one in runs):.1f} s"
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table, and write it as JSON if asked to."""
    parser = argparse.ArgumentParser(prog="make accuracy ACCURACY=", description="Accuracy of federated trees.")
    parser.add_argument("--data", type=Path, help="folder with diabetes-130/ (default: COHORTIUM_DATA_DIR)")
    parser.add_argument("--seeds", type=int, default=5, help="splits of UCI Heart Disease (default 5)")
    parser.add_argument("--json", type=Path, help="write the runs to this file")
    options = parser.parse_args(argv)
    source = options.data or data_dir()
    try:
        found = run_async(_all(source, max(1, options.seeds)))
    except CohortiumError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    for line in lines(found):
        sys.stdout.write(line + "\n")
    if source is None:
        sys.stdout.write("Diabetes 130 is left out: name the folder of its files with --data or COHORTIUM_DATA_DIR.\n")
    if options.json:
        runs = [{field: getattr(one, field) for field in Accuracy.__slots__} for one in found]
        options.json.write_text(json.dumps(runs, indent=2) + "\n", encoding="utf-8")
    return 0


async def _all(source: Path | None, seeds: int) -> list[Accuracy]:
    with tempfile.TemporaryDirectory(prefix="cohortium-accuracy-") as name:
        folder = Path(name)
        found = [await measure("heart disease", heart_plan(folder / str(seed), seed)) for seed in range(1, seeds + 1)]
        if source is not None:
            found.append(await measure("diabetes 130", diabetes_plan(folder / "diabetes", source)))
    return found


if __name__ == "__main__":
    sys.exit(main())
