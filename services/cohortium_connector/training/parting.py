"""Which rows train and which test, as a study asks: rows by label, or in a private study each person alone."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cohortium_connector.training.persons import Named, Owners, Part, tested
from cohortium_messages.study import BinaryLabel, Label, MulticlassLabel, SplitColumn, SplitFraction, Study
from cohortium_privacy.windows import formal
from cohortium_protocol.statistics import Rows


def parted(study: Study, rows: Rows, raw: dict[str, Any], people: Named | None) -> tuple[Part, Part]:
    """Training and test rows. `raw` has `testing` for a split by column, and `content` for a private study by shares
    whose rows name nobody; `people`: whose the rows are, of a private study.

    In a private study a person is in one part only, and nobody else's rows have a say in which (`persons`).
    """
    split = study.dataset.split
    owners = Owners.each(len(rows)) if people is None else people.owners
    if isinstance(split, SplitColumn):
        testing: NDArray[np.bool_] = np.ma.filled(raw["testing"], False).astype(bool)
        if people is not None:  # who has a row to train on is not tested on the others
            apart = ~testing | ~np.isin(owners.of_row, np.unique(owners.of_row[~testing]))
            rows, owners, testing = rows.take(apart), owners.take(apart), testing[apart]
    elif formal(study) is None:
        testing = _stratified(_strata(study.dataset.label, rows), split)
    elif people is not None:
        testing = np.array([tested(split, name) for name in people.names], dtype=bool)[owners.of_row]
    else:
        testing = np.array([tested(split, text) for text in raw["content"].tolist()], dtype=bool)
    parts = [Part(rows.take(choice), owners.take(choice)) for choice in (~testing, testing)]
    return parts[0], parts[1]


def _strata(label: Label, rows: Rows) -> NDArray[np.int64]:
    """What a random split is stratified by: the class; all rows together where the label has none."""
    if isinstance(label, BinaryLabel | MulticlassLabel):
        return rows.labels.astype(np.int64)
    return np.zeros(len(rows), dtype=np.int64)


def _stratified(strata: NDArray[np.int64], split: SplitFraction) -> NDArray[np.bool_]:
    """Of each label, the nearest whole number of rows to the share asked for. Depends on seed and row order alone."""
    keys = np.random.PCG64(split.seed).random_raw(strata.size)
    testing = np.zeros(strata.size, dtype=bool)
    for stratum in np.unique(strata):
        rows = np.flatnonzero(strata == stratum)
        order = rows[np.argsort(keys[rows], kind="stable")]
        testing[order[: round(split.test * rows.size)]] = True
    return testing
