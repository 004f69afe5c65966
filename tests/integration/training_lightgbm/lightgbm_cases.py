"""Hospitals whose rows differ: what they measure is skewed, some are small, some see one outcome only."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from cohortium_messages.study import Study

FEATURES = 8
RANGE = (-6.0, 6.0)
LEVELS = tuple(f"ward {place}" for place in range(12))
Columns = dict[str, NDArray[Any]]


def cases(names: Iterable[str], *quick: str) -> list[Any]:
    """To parametrise by: the others vary the same proof and are `long`."""
    return [pytest.param(name, marks=() if name in quick else pytest.mark.long) for name in names]


def study_of(
    label: dict[str, Any],
    *,
    rounds: int = 8,
    params: dict[str, Any] | None = None,
    categories: int = 0,
    missing: str = "refuse",
    **recipe: Any,
) -> Study:
    features: list[dict[str, Any]] = [
        {"name": f"f{place}", "type": "float", "range": list(RANGE), "missing": missing} for place in range(FEATURES)
    ]
    features += [
        {"name": f"c{place}", "type": "category", "levels": list(LEVELS), "missing": "level" if place else "native"}
        for place in range(categories)
    ]
    return Study.model_validate(
        {
            "apiVersion": "cohortium/study/1",
            "governance": "trial",
            "name": "trees",
            "purpose": "a test",
            "dataset": {
                "features": features,
                "label": {"name": "y"} | label,
                "split": {"column": "part", "train": "train", "test": "test"},
            },
            "recipe": {"trainer": "lightgbm", "rounds": rounds, "params": params or {}} | recipe,
            "federation": {},
        }
    )


def inputs(rows: int, seed: int) -> NDArray[np.float64]:
    """Measurements on a fine grid, so that their text is short; nothing depends on it."""
    drawn = np.random.Generator(np.random.PCG64(seed)).normal(size=(rows, FEATURES))
    return np.rint(np.clip(drawn, *RANGE) * 4096) / 4096


def signal(x: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    noise = np.random.Generator(np.random.PCG64(seed + 1)).normal(size=len(x))
    return np.asarray(x[:, 0] + np.sin(2 * x[:, 1]) + x[:, 2] * x[:, 3] + 0.5 * noise)


def columns_of(x: NDArray[np.float64], y: NDArray[Any], **more: NDArray[Any]) -> Columns:
    named = {f"f{place}": x[:, place] for place in range(x.shape[1])}
    return named | more | {"y": y, "part": np.full(len(x), "train")}


def skewed(x: NDArray[np.float64], sizes: Sequence[int]) -> list[NDArray[np.int64]]:
    """Sites that differ as much as they can: rows in the order of the first measurement."""
    order = np.argsort(x[:, 0], kind="stable")
    return np.split(order, np.cumsum(sizes)[:-1])


def split(columns: Columns, parts: Sequence[NDArray[np.int64]]) -> list[Columns]:
    return [{name: column[part] for name, column in columns.items()} for part in parts]


def binary_sites(sizes: Sequence[int], seed: int = 0) -> list[Columns]:
    x = inputs(sum(sizes), seed)
    y = (signal(x, seed) > 0).astype(int)
    return split(columns_of(x, y), skewed(x, sizes))


def one_class_and_tiny_sites(seed: int = 1) -> list[Columns]:
    """One site has only label 1, one has 12 rows."""
    x = inputs(2000, seed)
    y = (signal(x, seed) > 0).astype(int)
    ones, others = np.flatnonzero(y == 1)[:300], np.setdiff1d(np.arange(2000), np.flatnonzero(y == 1)[:300])
    return split(columns_of(x, y), [others[:12], ones, others[12:700], others[700:]])


def multiclass_sites(sizes: Sequence[int], levels: Sequence[str], seed: int = 2) -> list[Columns]:
    x = inputs(sum(sizes), seed)
    places = np.digitize(signal(x, seed), [-0.7, 0.9])
    return split(columns_of(x, np.array(levels)[places]), skewed(x, sizes))


def number_sites(sizes: Sequence[int], seed: int = 3, steps: float = 64.0) -> list[Columns]:
    """Labels between 0 and 4, in steps of 1/64 by default."""
    x = inputs(sum(sizes), seed)
    y = np.clip(np.rint((signal(x, seed) / 3 + 2) * steps) / steps, 0, 4)
    return split(columns_of(x, y), skewed(x, sizes))


def count_sites(size: int, sites: int, seed: int = 4) -> list[Columns]:
    """Counts up to 15; each site has the same counts, on other rows."""
    generator = np.random.Generator(np.random.PCG64(seed))
    found = []
    for site in range(sites):
        x = inputs(size, seed + 10 * site + 10)
        x[:, 0] = np.clip(x[:, 0] + site - 1, *RANGE)
        strength = np.argsort(np.argsort(signal(x, seed)))
        counts = np.sort(np.clip(np.random.Generator(np.random.PCG64(seed)).poisson(3, size), 0, 15))
        mixed = np.clip(strength + generator.integers(-size // 6, size // 6, size), 0, size - 1)
        found.append(columns_of(x, counts[np.argsort(np.argsort(mixed, kind="stable"))]))
    return found


def mixed_sites(sizes: Sequence[int], seed: int = 5) -> list[Columns]:
    """Categories with many levels, and values that are missing more often the sicker the patient."""
    x = inputs(sum(sizes), seed)
    generator = np.random.Generator(np.random.PCG64(seed + 2))
    codes = generator.integers(0, len(LEVELS), size=(len(x), 2))
    effect = np.array([-1.5, 0.2, 1.0, -0.3, 2.0, 0.0, -2.0, 0.7, -0.9, 1.4, 0.1, -0.6])
    score = signal(x, seed) + effect[codes[:, 0]] - effect[codes[:, 1]]
    y = (score > 0).astype(int)
    wards = np.array(LEVELS)[codes].astype(object)
    x[generator.random(x.shape) < 0.05 + 0.1 * y[:, None]] = np.nan
    wards[generator.random(wards.shape) < 0.1] = ""
    parts = np.split(np.arange(len(x)), np.cumsum(sizes)[:-1])
    return split(columns_of(x, y, c0=wards[:, 0], c1=wards[:, 1]), parts)
