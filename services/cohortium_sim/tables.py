"""Which rows belong to which hospital, from the command line's words."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import duckdb

from cohortium_sim.plan import SITE_NAME, SITE_NAME_RULE, PlanError, SiteTable, existing_table, parse_site

MAX_SITES = 200
PARQUET = (".parquet", ".pq")


def site_tables(sites: Sequence[str], data: Path | None, column: str | None) -> tuple[SiteTable, ...]:
    """One table per hospital: from `NAME=FILE` words, or from one file and the column that names the hospital.

    Each file is opened once, so that one that is no table is said now and not by a hospital that drops out.
    """
    if sites and data:
        raise PlanError("give either --site NAME=FILE for each hospital, or --data FILE --site-column COLUMN, not both")
    if data is None:
        if column is not None:
            raise PlanError(f"--site-column {column}: names a column of --data FILE, which is not given")
        if not sites:
            raise PlanError("no hospital given: use --site NAME=FILE for each, or --data FILE --site-column COLUMN")
        tables = tuple(parse_site(text) for text in sites)
        for table in tables:
            with _opened(table.path, f"--site {table.name}={table.path}"):
                pass
        return tables
    if column is None:
        raise PlanError(f"--data {data}: name the column that says which hospital a row belongs to with --site-column")
    path = existing_table(data, f"--data {data}")
    return tuple(SiteTable(value, path, column, value) for value in _values(path, column))


@dataclass(frozen=True, slots=True)
class _Opened:
    connection: duckdb.DuckDBPyConnection
    reader: str
    columns: list[str]


@contextmanager
def _opened(path: Path, option: str) -> Iterator[_Opened]:
    """The table, read as a connector reads it: nothing of a CSV's form that could lose a row is left to guess."""
    parquet = path.suffix.lower() in PARQUET
    text = "read_csv(?, all_varchar = true, header = true, skip = 0, comment = '', quote = '\"')"
    reader = "read_parquet(?)" if parquet else text
    try:
        with duckdb.connect(":memory:") as connection:
            described = connection.execute(f"DESCRIBE SELECT * FROM {reader}", [str(path)]).fetchall()  # noqa: S608
            yield _Opened(connection, reader, [str(row[0]) for row in described])
    except duckdb.Error as error:
        kind = "Parquet" if parquet else "CSV"
        raise PlanError(
            f"{option}: cannot be read as {kind} ({type(error).__name__}); is it a whole {kind} file, in UTF-8?"
        ) from None


def _values(path: Path, column: str) -> list[str]:
    with _opened(path, f"--data {path}") as table:
        if column not in table.columns:
            shown = ", ".join(table.columns[:30])
            raise PlanError(f"--site-column {column}: {path.name} has no such column; it has {shown}")
        quoted = '"' + column.replace('"', '""') + '"'
        query = f"SELECT DISTINCT {quoted}::VARCHAR FROM {table.reader} WHERE {quoted} IS NOT NULL ORDER BY 1"  # noqa: S608
        values = [str(row[0]) for row in table.connection.execute(query, [str(path)]).fetchmany(MAX_SITES + 1)]
    if len(values) > MAX_SITES:
        raise PlanError(f"--site-column {column}: more than {MAX_SITES} different values; is it the hospital's column?")
    wrong = [value for value in values if not SITE_NAME.fullmatch(value)]
    if wrong:
        raise PlanError(f"--site-column {column}: {wrong[0][:80]!r} cannot be a site's name: {SITE_NAME_RULE}")
    return values
