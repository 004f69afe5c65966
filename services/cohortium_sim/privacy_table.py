"""`make privacy-table`: the AUC that is left at each ε, on two real data sets: `python -m cohortium_sim.privacy_table`.

Logistic regression with local noise (M1), with shares of noise inside the secure sum (M2), and by DP-SGD on all rows
in one place, trained by the code that hospitals and services run (`privacy_arms`). Settings (steps, rate, clip) are
chosen for each ε and split of the rows, for each method or by `central` for all (`DataSet.chosen_by`), by the AUC on
validation rows, which are a part of the training rows. The model is then trained on all training rows, once for each
seed, and tested once. Test rows choose nothing.
"""

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any, Final, get_args

from cohortium_connector.training.base import SiteRefusal
from cohortium_connector.training.torch_ import use_threads
from cohortium_kit.errors import CohortiumError
from cohortium_sim.bench import machine
from cohortium_sim.bench_noise import sampler_lines
from cohortium_sim.diabetes import data_dir
from cohortium_sim.plan import PlanError
from cohortium_sim.privacy_arms import Arms
from cohortium_sim.privacy_data import DataSet, Method, Name, Setting, diabetes, heart

FORMAT: Final = "cohortium/privacy-table/1"
EPSILONS: Final[tuple[float | None, ...]] = (0.5, 1.0, 3.0, 8.0, None)
METHODS: Final[tuple[Method, ...]] = get_args(Method)
MOST_EPSILON: Final = 100.0

FLAMBY: Final = {5.0: 0.774, 1.0: 0.781, 0.1: 0.664}
"""Accuracy, the mean over the four hospitals, of FedAvg with local DP-SGD on Fed-Heart-Disease by ε; 0.776 without
(Ogier du Terrail et al. 2022, FLamby, arXiv 2210.04620)."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One trained and tested model, with what was chosen for it."""

    data: Name
    method: Method
    epsilon: float | None
    seed: int
    auc: float
    site_accuracy: float
    setting: Setting
    validation_auc: float
    noise_multiplier: float | None
    epsilon_pld: float | None

    @property
    def key(self) -> tuple[Name, Method, float | None, int]:
        return self.data, self.method, self.epsilon, self.seed

    @classmethod
    def of(cls, fields: dict[str, Any]) -> "Cell":
        return cls(**(fields | {"setting": Setting(**fields["setting"])}))


class Store:
    """Cells that are measured, in a file where one is named: a table may be made in pieces, and go on after a stop."""

    def __init__(self, path: Path | None) -> None:
        """Raises `CohortiumError` for a file that holds something else."""
        self._path = path
        self.cells: dict[tuple[Name, Method, float | None, int], Cell] = {}
        if path is not None and path.exists():
            try:
                document = json.loads(path.read_text(encoding="utf-8"))
                cells = [Cell.of(fields) for fields in document["cells"]] if document["format"] == FORMAT else None
            except (ValueError, KeyError, TypeError):
                cells = None
            if cells is None:
                raise CohortiumError(f"--json {path}: it holds no table of AUC at ε; name another file")
            self.cells = {cell.key: cell for cell in cells}

    def add(self, cell: Cell) -> None:
        self.cells[cell.key] = cell
        if self._path is not None:
            document = {"format": FORMAT, **machine(), "cells": [asdict(one) for one in self.cells.values()]}
            part = self._path.with_name(self._path.name + ".part")
            part.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
            part.replace(self._path)


class Bench:
    """Measures cells of one data set. Settings are chosen once for each split of the rows."""

    def __init__(self, data: DataSet) -> None:
        self.data = data
        self._arms = Arms(data)
        self._choosing = Arms(data.for_choice())
        self._chosen: dict[tuple[Method, float | None], tuple[float, Setting]] = {}

    def chosen(self, method: Method, epsilon: float | None) -> tuple[float, Setting]:
        """The setting with the best mean AUC on validation rows, and that AUC; of equals the first."""
        method = self.data.chosen_by or ("local" if epsilon is None and method == "distributed" else method)
        if (method, epsilon) not in self._chosen:
            settings = self.data.open_settings if epsilon is None else self.data.settings
            seeds = range(1, self.data.validated + 1)
            judged = [
                (mean(self._choosing.worth(method, epsilon, one, seed).auc for seed in seeds), one) for one in settings
            ]
            self._chosen[method, epsilon] = max(judged, key=lambda pair: pair[0])
        return self._chosen[method, epsilon]

    def cell(self, method: Method, epsilon: float | None, seed: int) -> Cell:
        """A model by the chosen setting, trained on all training rows. Raises `SiteRefusal` for what cannot be."""
        validation, setting = self.chosen(method, epsilon)
        worth = self._arms.worth(method, epsilon, setting, seed)
        return Cell(
            data=self.data.name,
            method=method,
            epsilon=epsilon,
            seed=seed,
            setting=setting,
            validation_auc=validation,
            **asdict(worth),
        )


def measure(benches: Iterator[tuple[Bench, int]], epsilons: Sequence[float | None], store: Store) -> None:
    """All cells that the store does not have yet, one seed after the other."""
    for bench, seed in benches:
        for epsilon in epsilons:
            for method in METHODS:
                if (bench.data.name, method, epsilon, seed) in store.cells:
                    continue
                started = time.monotonic()
                cell = bench.cell(method, epsilon, seed)
                store.add(cell)
                told = f"{cell.data} {_name(epsilon)} {method} seed {seed}: {cell.auc:.4f}"
                sys.stderr.write(f"{told} ({time.monotonic() - started:.0f} s)\n")


def benches(names: Sequence[Name], seeds: int, source: Path | None, folder: Path) -> Iterator[tuple[Bench, int]]:
    """A bench for each seed. The seed draws heart disease's test rows; of diabetes they are given."""
    if "heart" in names:
        for seed in range(1, seeds + 1):
            yield Bench(heart(folder / f"heart-{seed}", seed)), seed
    if "diabetes" in names and source is not None:
        bench = Bench(diabetes(folder / "diabetes", source))
        for seed in range(1, seeds + 1):
            yield bench, seed


# ------------------------------------------------------------------------------------------------------ what is printed


def lines(cells: Sequence[Cell]) -> Iterator[str]:
    """The table: AUC over the seeds, a row for each data set and ε, and what the plans cost by privacy-loss
    distributions, at most; then heart disease's accuracies beside FLamby's."""
    methods = "".join(f"{name:>18}" for name in ("M1 local", "M2 distributed", "central DP-SGD"))
    yield f"{'AUC':<10}{'ε':>5}{methods}{'M2 − central':>15}{'PLD ε':>8}"
    for name in dict.fromkeys(cell.data for cell in cells):
        own = [cell for cell in cells if cell.data == name]
        for epsilon in _epsilons(own):
            row = {m: [c.auc for c in own if (c.method, c.epsilon) == (m, epsilon)] for m in METHODS}
            shown = "".join(f"{_spread(row[method]):>18}" for method in METHODS)
            both = row["distributed"] and row["central"]
            less = f"{mean(row['distributed']) - mean(row['central']):+.4f}" if both else ""
            spent = [cell.epsilon_pld for cell in own if cell.epsilon == epsilon and cell.epsilon_pld is not None]
            cost = f"{max(spent):.2f}" if spent else ""
            yield f"{name:<10}{_name(epsilon):>5}{shown}{less:>15}{cost:>8}"
    yield from _beside_flamby([cell for cell in cells if cell.data == "heart"])


def _epsilons(cells: Sequence[Cell]) -> list[float | None]:
    """Ascending, and last of all without privacy."""
    return sorted({cell.epsilon for cell in cells}, key=lambda epsilon: math.inf if epsilon is None else epsilon)


def _beside_flamby(cells: Sequence[Cell]) -> Iterator[str]:
    if not cells:
        return
    yield ""
    yield "Heart disease, accuracy at 0.5, mean of the four hospitals (FLamby's measure)"
    for epsilon in _epsilons(cells):
        row = [[c.site_accuracy for c in cells if (c.method, c.epsilon) == (m, epsilon)] for m in METHODS]
        yield f"{'':<10}{_name(epsilon):>5}" + "".join(f"{_spread(values):>18}" for values in row)
    told = ", ".join(f"{accuracy:.3f} at ε = {epsilon:g}" for epsilon, accuracy in FLAMBY.items())
    yield f"FLamby (FedAvg, local DP-SGD; other rows and inputs): {told}; 0.776 without privacy"


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "-"
    return f"{mean(values):.3f} ± {stdev(values):.3f}" if len(values) > 1 else f"{mean(values):.3f}"


def _promise(text: str) -> float | None:
    if text == "none":
        return None
    value = float(text)
    if not 0 < value <= MOST_EPSILON:
        raise argparse.ArgumentTypeError(f"{text} is no ε; it lies above 0 and at most at {MOST_EPSILON:g}, or is none")
    return value


def _name(epsilon: float | None) -> str:
    return "none" if epsilon is None else f"{epsilon:g}"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what is missing, and print the table."""
    parser = argparse.ArgumentParser(prog="make privacy-table PRIVACY_TABLE=", description="AUC at each ε.")
    parser.add_argument("--only", choices=get_args(Name), help="one of the two data sets")
    parser.add_argument("--data", type=Path, help="folder with diabetes-130/ (default: COHORTIUM_DATA_DIR)")
    parser.add_argument("--seeds", type=int, default=5, help="models of each cell (default 5)")
    parser.add_argument("--epsilon", type=_promise, action="append", help="only this ε, or none for no privacy; repeat")
    parser.add_argument("--sampler", action="store_true", help="only: nanoseconds of one sample of noise, by deviation")
    parser.add_argument("--json", type=Path, help="keep the cells in this file; those that it has are not made again")
    options = parser.parse_args(argv)
    names: tuple[Name, ...] = (options.only,) if options.only else get_args(Name)
    epsilons = tuple(options.epsilon) if options.epsilon else EPSILONS
    source = options.data or data_dir()
    use_threads(1)
    if options.sampler:
        sys.stdout.writelines(line + "\n" for line in sampler_lines())
        return 0
    try:
        store = Store(options.json)
        with tempfile.TemporaryDirectory(prefix="cohortium-privacy-") as folder:
            measure(benches(names, max(1, options.seeds), source, Path(folder)), epsilons, store)
    except (CohortiumError, PlanError, SiteRefusal) as error:
        sys.stderr.write(f"error: {getattr(error, 'local', '') or error}\n")
        return 1
    for line in lines(list(store.cells.values())):
        sys.stdout.write(line + "\n")
    if source is None and "diabetes" in names:
        sys.stdout.write("Diabetes 130 is left out: name the folder of its files with --data or COHORTIUM_DATA_DIR.\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
