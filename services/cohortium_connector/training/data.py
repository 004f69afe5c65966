"""Reads a hospital's table and holds it against the study's columns.

DuckDB reads one CSV or Parquet file, with every other access turned off and the configuration locked. All values are
taken as text first, so a table means the same whatever types its file declares: a category `1.0` is the level `1`, and
an empty field, `?`, `NA`, `N/A`, `NaN`, `NULL` or `None` is a missing value.
"""

import difflib
import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
from numpy.typing import NDArray

from cohortium_connector.training.base import SiteRefusal
from cohortium_connector.training.jobs import DataSource
from cohortium_connector.training.parting import parted
from cohortium_connector.training.persons import YEARS, Named, Owners, Part, named
from cohortium_messages.study import (
    BinaryLabel,
    CategoryFeature,
    CountLabel,
    Label,
    MulticlassLabel,
    NumberFeature,
    NumberLabel,
    SplitColumn,
    Study,
)
from cohortium_messages.study_file import MISSING_VALUES
from cohortium_privacy.windows import formal
from cohortium_protocol.statistics import Rows

ROWS_NAMED = 50
"""Row numbers that the local log gets for one mistake, at most."""

PARQUET = (".parquet", ".pq")
MISSING_CODE, UNKNOWN_CODE = 0, -1


@dataclass(frozen=True, slots=True)
class Finding:
    """One way in which the table does not fit the study. `rows` count from 1, without the header; local log only."""

    code: str
    column: str
    count: int
    rows: tuple[int, ...] = ()
    hint: str = ""

    def __str__(self) -> str:
        where = f" column {self.column}:" if self.column else ""
        rows = f"; rows {', '.join(map(str, self.rows))}" if self.rows else ""
        more = ", …" if self.count > len(self.rows) > 0 else ""
        return f"{self.code}:{where} {self.count} times{rows}{more}{'; ' if self.hint else ''}{self.hint}"


class DataRefused(SiteRefusal):
    """The table does not fit the study. `code`, `column` and `count` are those of the first finding."""

    def __init__(self, *findings: Finding) -> None:
        first = findings[0]
        super().__init__(first.code, first.column, first.count, "\n".join(map(str, findings)))
        self.findings = findings

    @property
    def rows(self) -> tuple[int, ...]:
        """Row numbers of the first finding. For the site's own log only."""
        return self.findings[0].rows


@dataclass(frozen=True, slots=True)
class Table:
    """A site's checked rows, split. Of a private study also whose they are: nobody is in both parts."""

    train: Rows
    test: Rows
    train_owners: Owners | None = None
    test_owners: Owners | None = None

    @property
    def training(self) -> Part:
        """The training rows with their persons: each row its own, unless the table names them."""
        return Part(self.train, self.train_owners or Owners.each(len(self.train)))

    @property
    def testing(self) -> Part:
        """The test rows with their persons."""
        return Part(self.test, self.test_owners or Owners.each(len(self.test)))


def one_row(study: Study) -> Table:
    """Stands for the table of a site whose trainer reads none: every site weighs the same."""
    columns = {feature.name: np.full(1, np.nan) for feature in study.dataset.features}
    row = Rows(columns, np.zeros(1, dtype=np.uint8))
    return Table(train=row, test=row.take(np.zeros(1, dtype=bool)))


def read_table(study: Study, source: DataSource) -> Table:
    """The rows of `source` that the study trains and tests on. Raises `DataRefused` with everything that is wrong."""
    raw = _fetch(study, source)
    people = _people(source, raw)
    number = raw.pop("file_row")
    label = study.dataset.label
    labels = _filled(raw.pop("label"), np.nan).astype(np.float64)
    findings: list[Finding] = []
    columns: dict[str, NDArray[Any]] = {}
    for index, feature in enumerate(study.dataset.features):
        values = raw.pop(f"c{index}")
        if isinstance(feature, NumberFeature):
            columns[feature.name] = _filled(values, np.nan).astype(np.float64)
            findings += _number_findings(feature, values, number)
        else:
            columns[feature.name] = (_filled(values, MISSING_CODE) - 1).astype(np.int32)
            findings += _category_findings(feature, columns[feature.name], number)
    findings += _finding("LABEL_INVALID", label.name, ~_label_fits(label, labels), number)
    if findings:
        raise DataRefused(*findings)
    rows = Rows(columns, labels.astype(_LABEL_TYPES[label.type]))
    train, test = parted(study, rows, raw, people)
    table = Table(train.rows, test.rows, train.owners, test.owners)
    if not len(table.train):
        raise DataRefused(Finding("NO_TRAINING_ROWS", "", 0, hint=f"{len(rows)} rows in {source.path} are for testing"))
    return table


def _people(source: DataSource, raw: dict[str, Any]) -> Named | None:
    """Of a private study whose table names persons: whose rows they are. Rows that name nobody are left out of `raw`.
    Raises `DataRefused`."""
    persons, days = raw.pop("person", None), raw.pop("first_record", None)
    if persons is None:
        return None
    people = named(persons, days)
    if people.wrong.any():
        hint = f"a day such as 2024-03-31, of {YEARS[0]} to {YEARS[1]}, and one for each person in all rows"
        number, column = raw["file_row"], source.first_record_column or ""
        count, rows = int(people.wrong.sum()), tuple(int(row) for row in number[people.wrong][:ROWS_NAMED])
        raise DataRefused(Finding("FIRST_RECORD_INVALID", column, count, rows, hint))
    for name, values in raw.items():
        raw[name] = values[people.kept]
    return people


def _fetch(study: Study, source: DataSource) -> dict[str, Any]:
    path = Path(source.path).resolve()
    if not path.is_file() or not os.access(path, os.R_OK):
        raise DataRefused(Finding("FILE_UNREADABLE", "", 0, hint=f"{path} is not a file that this process may read"))
    if any(sign in str(path) for sign in "*?[]{}"):
        raise DataRefused(Finding("FILE_UNREADABLE", "", 0, hint=f"{path}: a path must not have any of *?[]{{}}"))
    reader = reader_of(path)
    try:
        with duckdb.connect(":memory:") as database:
            lock_down(database, path)
            permit(database, source)
            described = database.execute(f"DESCRIBE SELECT * FROM {reader}", [str(path)]).fetchall()  # noqa: S608
            _check_columns(study, source, [str(row[0]) for row in described])
            if path.suffix.lower() not in PARQUET:
                _check_twice(_wanted(study, source), header_of(database, path))
            query, parameters = _query(study, source, reader, path)
            found: dict[str, Any] = database.execute(query, parameters).fetchnumpy()
    except duckdb.Error as error:
        raise DataRefused(Finding("FILE_UNREADABLE", "", 0, hint=f"{path}: {without_values(error)}")) from None
    return found


def reader_of(path: Path) -> str:
    """DuckDB's function for this kind of file; its argument is the path."""
    # Left to guess, DuckDB takes rows that begin with # for comments, and texts that begin with ' for quoted ones: rows
    # would be left out, or run into one another, without a word.
    text = "read_csv(?, all_varchar = true, header = true, skip = 0, comment = '', quote = '\"')"
    return "read_parquet(?)" if path.suffix.lower() in PARQUET else text


def without_values(error: duckdb.Error) -> str:
    """What kind of error, and in which line of the file. The rest of DuckDB's text quotes the line itself."""
    line = re.search(r"on Line: (\d+)", str(error))
    return f"{type(error).__name__}{f' in line {line[1]}' if line else ''}; is it a whole CSV or Parquet file in UTF-8?"


def lock_down(database: duckdb.DuckDBPyConnection, path: Path) -> None:
    """Nothing but this file can be read from here on, and nothing written."""
    quoted = str(path).replace("'", "''")
    for statement in (
        "SET threads = 1",
        "SET temp_directory = ''",
        "SET autoinstall_known_extensions = false",
        "SET autoload_known_extensions = false",
        f"SET allowed_paths = ['{quoted}']",
        "SET enable_external_access = false",
        "SET lock_configuration = true",
    ):
        database.execute(statement)


def permit(database: duckdb.DuckDBPyConnection, source: DataSource) -> None:
    """The persons whose rows may be read, as the table `permitted`."""
    if source.permitted_path is not None:
        persons = json.loads(Path(source.permitted_path).read_bytes())
        database.execute("CREATE TABLE permitted AS SELECT DISTINCT unnest(?::VARCHAR[]) AS person", [persons])


def _wanted(study: Study, source: DataSource) -> list[str]:
    wanted = [feature.name for feature in study.dataset.features] + [study.dataset.label.name]
    if isinstance(study.dataset.split, SplitColumn):
        wanted.append(study.dataset.split.column)
    own = (source.site_column, source.person_column, source.first_record_column)
    return wanted + [name for name in own if name is not None]


def header_of(database: duckdb.DuckDBPyConnection, path: Path) -> list[str]:
    """The first line of a CSV file as it stands there: as a header, DuckDB would give a name that comes twice another
    one, and the first of the two columns would be read without a word."""
    reader = "read_csv(?, all_varchar = true, header = false, skip = 0, comment = '', quote = '\"')"
    first = database.execute(f"SELECT * FROM {reader} LIMIT 1", [str(path)]).fetchone()  # noqa: S608
    return [str(name or "") for name in first or ()]


def _check_twice(wanted: list[str], header: list[str]) -> None:
    """DuckDB compares names without their case, so `Age` beside `age` is the same doubt."""
    folded = Counter(name.strip().casefold() for name in header)
    twice = [
        Finding("COLUMN_TWICE", name, 1, hint=f"{folded[name.casefold()]} columns of the file have this name")
        for name in wanted
        if folded[name.casefold()] > 1
    ]
    if twice:
        raise DataRefused(*twice)


def _check_columns(study: Study, source: DataSource, present: list[str]) -> None:
    wanted = _wanted(study, source)
    missing = [Finding("COLUMN_MISSING", name, 1, hint=alike(name, present)) for name in wanted if name not in present]
    if missing:
        raise DataRefused(*missing)


def alike(name: str, present: list[str]) -> str:
    """Names only what looks like the column: in a file without a header, names are values of a patient."""
    folded = {other.strip().lower(): other for other in present}
    close = difflib.get_close_matches(name.lower(), folded, n=1, cutoff=0.8)
    if close:
        return f"did you mean {folded[close[0]]!r}?"
    if len(present) == 1:
        return "the file reads as a single column; has every row as many fields as the header?"
    return f"the file has {len(present)} other columns"


def _query(study: Study, source: DataSource, reader: str, path: Path) -> tuple[str, list[Any]]:
    """Two steps: the wanted columns as trimmed text, NULL where missing; then each as its type. Only wanted rows.

    A number is NULL where missing and NaN where it is no number. A category is the place of its level, from 1, NULL
    where missing and UNKNOWN_CODE where it is no level. A label is NULL or NaN where it is none. Of a private study
    also the persons as they are written, or, where the table names none, all that a row says.
    """
    names = [feature.name for feature in study.dataset.features]
    texts = [f"{column_text(name)} AS t{index}" for index, name in enumerate(names)]
    texts.append(f"{column_text(study.dataset.label.name)} AS label_text")
    typed = [_typed(feature, f"t{index}", f"c{index}") for index, feature in enumerate(study.dataset.features)]
    conditions: list[str] = []
    parameters: list[Any] = [str(path)]
    if source.site_column is not None:
        texts.append(f"{column_text(source.site_column)} AS site_text")
        conditions.append(matches("site_text", source.site_value or ""))
    if source.person_column is not None:
        texts.append(f"{column_text(source.person_column)} AS person_text")
        if source.permitted_path is not None:
            conditions.append("person_text IN (SELECT person FROM permitted)")
    if formal(study) is not None:
        typed += _owner_columns(source, [*(f"t{index}" for index in range(len(names))), "label_text"])
    if source.first_record_column is not None:
        texts.append(f"{column_text(source.first_record_column)} AS first_text")
    if isinstance(split := study.dataset.split, SplitColumn):
        texts.append(f"{column_text(split.column)} AS split_text")
        typed.append(f"coalesce({matches('split_text', split.test)}, false) AS testing")
        conditions.append(f"({matches('split_text', split.train)} OR {matches('split_text', split.test)})")
    kept = f"WHERE {' AND '.join(conditions)}" if conditions else ""
    query = (
        f"WITH texts AS (SELECT row_number() OVER () AS file_row, {', '.join(texts)} FROM {reader}) "  # noqa: S608
        f"SELECT file_row, {_label(study.dataset.label)} AS label, {', '.join(typed)} FROM texts {kept} "
        "ORDER BY file_row"
    )
    return query, parameters


def _owner_columns(source: DataSource, texts: list[str]) -> list[str]:
    if source.person_column is not None:
        first = ["first_text AS first_record"] if source.first_record_column is not None else []
        return ["person_text AS person", *first]
    return ["concat(" + ", chr(31), ".join(f"coalesce({text}, chr(0))" for text in texts) + ") AS content"]


_LABEL_TYPES: dict[str, type[np.generic]] = {
    "binary": np.uint8,
    "multiclass": np.int32,
    "number": np.float64,
    "count": np.float64,
}


def _label(label: Label) -> str:
    match label:
        case BinaryLabel():
            return (
                "CASE WHEN lower(label_text) = 'true' OR TRY_CAST(label_text AS DOUBLE) = 1 THEN 1 "
                "WHEN lower(label_text) = 'false' OR TRY_CAST(label_text AS DOUBLE) = 0 THEN 0 END"
            )
        case MulticlassLabel(levels=levels):
            return f"{_place_of_level(levels, 'label_text')} - 1"
        case NumberLabel() | CountLabel():
            return "TRY_CAST(label_text AS DOUBLE)"


def _label_fits(label: Label, values: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Comparisons with NaN are false, so a missing label fits nothing."""
    match label:
        case BinaryLabel() | MulticlassLabel():
            return np.asarray(values >= 0)
        case NumberLabel(range=(low, high)):
            return np.asarray((values >= low) & (values <= high))
        case CountLabel(most=most):
            return np.asarray((values >= 0) & (values <= most) & (values == np.rint(values)))


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def column_text(column: str) -> str:
    text = 'trim(CAST("' + column.replace('"', '""') + '" AS VARCHAR))'
    missing = ", ".join(_quoted(value) for value in sorted(MISSING_VALUES))
    return f"CASE WHEN lower({text}) IN ({missing}) THEN NULL ELSE {text} END"


def matches(text: str, value: str) -> str:
    number = _as_number(value)
    return f"({text} = {_quoted(value)}" + (f" OR TRY_CAST({text} AS DOUBLE) = {number})" if number else ")")


def _as_number(value: str) -> str:
    """The value as a DOUBLE in SQL, or nothing where it is no finite number."""
    try:
        number = float(value)
    except ValueError:
        return ""
    return f"{_quoted(repr(number))}::DOUBLE" if np.isfinite(number) else ""


def _typed(feature: NumberFeature | CategoryFeature, text: str, name: str) -> str:
    if isinstance(feature, NumberFeature):
        return f"CASE WHEN {text} IS NOT NULL THEN coalesce(TRY_CAST({text} AS DOUBLE), 'nan'::DOUBLE) END AS {name}"
    found = f"coalesce({_place_of_level(feature.levels, text)}, {UNKNOWN_CODE})"
    return f"CASE WHEN {text} IS NOT NULL THEN {found} END AS {name}"


def _place_of_level(levels: tuple[str, ...], text: str) -> str:
    """The place of a text among the levels, from 1: by its letters, else as a number. NULL where it is no level."""
    texts = ", ".join(_quoted(level) for level in levels)
    numbers = ", ".join(_as_number(level) or "'nan'::DOUBLE" for level in levels)
    number = f"TRY_CAST({text} AS DOUBLE)"
    by_number = f"CASE WHEN isfinite({number}) THEN list_position([{numbers}], {number}) END"
    return f"coalesce(list_position([{texts}], {text}), {by_number})"


def _filled(values: Any, missing: float) -> NDArray[np.float64]:
    filled: NDArray[np.float64] = np.ma.filled(values.astype(np.float64), missing)
    return filled


def _number_findings(feature: NumberFeature, raw: Any, number: NDArray[np.int64]) -> Iterator[Finding]:
    absent = np.ma.getmaskarray(raw)
    values = np.where(absent, feature.range[0], np.ma.getdata(raw))
    unread = np.isnan(values)
    values = np.where(unread, feature.range[0], values)
    if feature.missing == "refuse":
        yield from _finding("MISSING_REFUSED", feature.name, absent, number)
    yield from _finding("VALUE_NOT_A_NUMBER", feature.name, unread, number)
    outside = (values < feature.range[0]) | (values > feature.range[1])
    yield from _finding("VALUE_OUT_OF_RANGE", feature.name, outside, number)
    if feature.type == "int":
        yield from _finding("VALUE_NOT_WHOLE", feature.name, ~outside & (values != np.rint(values)), number)


def _category_findings(
    feature: CategoryFeature, codes: NDArray[np.int32], number: NDArray[np.int64]
) -> Iterator[Finding]:
    if feature.missing == "refuse":
        yield from _finding("MISSING_REFUSED", feature.name, codes == MISSING_CODE - 1, number)
    yield from _finding("LEVEL_UNKNOWN", feature.name, codes == UNKNOWN_CODE - 1, number)


def _finding(code: str, column: str, wrong: NDArray[np.bool_], number: NDArray[np.int64]) -> Iterator[Finding]:
    if count := int(np.count_nonzero(wrong)):
        yield Finding(code, column, count, tuple(int(row) for row in number[wrong][:ROWS_NAMED]))
