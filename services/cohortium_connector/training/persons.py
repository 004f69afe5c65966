"""Whose rows they are. What a private study promises, it promises to a person, however many rows a table has of one.

Which part of the data a person is in, and in which block of the privacy ledger, follows from that person's own rows
alone: with one person more or less nobody else is moved. And every person is in one part only, since the ledger charges
training and evaluation to different people. Where the dataset names no `person_column`, each row is a person.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cohortium_connector.training.dp_random import Randomness, choose_records
from cohortium_messages.study import SplitFraction
from cohortium_privacy.ledger_plan import quarter_of
from cohortium_privacy.ledger_state import ALL
from cohortium_protocol import labels
from cohortium_protocol.cohorts import person_name
from cohortium_protocol.encoding import H, le64
from cohortium_protocol.statistics import Rows

YEARS: Final = (1920, 2119)
"""Of first records. A day outside of them is a mistake, and the ledger has a bound on the number of its blocks."""
Places = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Owners:
    """For each row of one part of a table the number of its person, 0 … n − 1 without gaps; and for each person the day
    of the first record, None where the table says none."""

    of_row: Places
    first: tuple[date | None, ...]

    @classmethod
    def each(cls, rows: int) -> "Owners":
        """Each row a person of its own."""
        return cls(np.arange(rows, dtype=np.int64), (None,) * rows)

    @property
    def single(self) -> bool:
        """Nobody has a second row."""
        return len(self.first) == len(self.of_row)

    def take(self, choice: NDArray[np.bool_]) -> "Owners":
        """Of some of the rows; persons are numbered anew."""
        kept, of_row = np.unique(self.of_row[choice], return_inverse=True)
        return Owners(of_row.astype(np.int64), tuple(self.first[person] for person in kept))

    def within(self, blocks: Sequence[str] | None) -> NDArray[np.bool_]:
        """Rows of the persons who are in one of these blocks of the ledger; None: everybody's."""
        if blocks is None or ALL in blocks:
            return np.ones(len(self.of_row), dtype=bool)
        charged = [day is not None and quarter_of(day) in blocks for day in self.first]
        return np.asarray(charged, dtype=bool)[self.of_row]

    def one_each(self, randomness: Randomness) -> Places:
        """One row of each person, drawn uniformly from that person's own; ascending by person."""
        counts = np.bincount(self.of_row, minlength=len(self.first)).astype(np.int64)
        which = choose_records(randomness.stream("records"), counts)
        order = np.argsort(self.of_row, kind="stable")
        return np.asarray(order[np.cumsum(counts) - counts + which]).astype(np.int64)


@dataclass(frozen=True, slots=True)
class Part:
    """Rows of one part of a table, and whose they are."""

    rows: Rows
    owners: Owners

    def within(self, blocks: Sequence[str] | None) -> "Part":
        """Rows of the persons who are in one of these blocks alone."""
        choice = self.owners.within(blocks)
        return Part(self.rows.take(choice), self.owners.take(choice))

    def one_each(self, randomness: Randomness) -> Rows:
        """One row of each person: where a sum takes every row, a person is in it once."""
        return self.rows.take(self.owners.one_each(randomness))


@dataclass(frozen=True, slots=True)
class Named:
    """The rows that name somebody (`kept`, of all rows), whose they are, and rows whose first record is no day or
    another one than in the same person's other rows (`wrong`, of all rows)."""

    kept: NDArray[np.bool_]
    names: tuple[str, ...]
    owners: Owners
    wrong: NDArray[np.bool_]


def named(persons: Any, days: Any | None) -> Named:
    """From the texts of a table's person column and of its column of first records; a missing text is masked."""
    texts = _texts(persons)
    every = [person_name(text) for text in texts]
    kept = np.array([bool(name) for name in every], dtype=bool)
    names = sorted({name for name in every if name})
    number = {name: place for place, name in enumerate(names)}
    of_row = np.array([number[name] for name in every if name], dtype=np.int64)
    first: list[date | None] = [None] * len(names)
    wrong = np.zeros(len(every), dtype=bool)
    for row, name, day, unread in _days(every, days):
        known = first[number[name]]
        wrong[row] = unread or (known is not None and day != known)
        first[number[name]] = known or day
    return Named(kept, tuple(names), Owners(of_row, tuple(first)), wrong)


def _days(every: list[str], days: Any | None) -> Iterator[tuple[int, str, date | None, bool]]:
    """Row, person, day, and whether the text there is no day. Rows without a person or a text are passed over."""
    if days is None:
        return
    for row, (name, text) in enumerate(zip(every, _texts(days), strict=True)):
        if not name or not text:
            continue
        try:
            day = datetime.fromisoformat(text).date()
        except ValueError:
            yield row, name, None, True
            continue
        yield row, name, day, not YEARS[0] <= day.year <= YEARS[1]


def _texts(column: Any) -> list[str]:
    """Of a column as DuckDB gives it; a missing text is empty."""
    return [str(text) for text in np.ma.filled(np.ma.asarray(column, dtype=object), "").tolist()]


def tested(split: SplitFraction, name: str) -> bool:
    """Whether who has this name is set aside for testing: with the chance that the split asks for, and for ever."""
    drawn = int.from_bytes(H(labels.PRIVATE_SPLIT, le64(split.seed), name.encode())[:8], "little")
    return drawn < split.test * 2.0**64
