"""Which rows belong to which hospital, from the command line's words."""

from collections.abc import Sequence
from pathlib import Path

import duckdb

from cohortium_sim.plan import PlanError, SiteTable, parse_site

MAX_SITES = 200


def site_tables(sites: Sequence[str], data: Path | None, column: str | None) -> tuple[SiteTable, ...]:
    """One table per hospital: from `NAME=FILE` words, or from one file and the column that names the hospital."""
    if sites and data:
        raise PlanError("give either --site NAME=FILE for each hospital, or --data FILE --site-column COLUMN, not both")
    if data is None:
        if not sites:
            raise PlanError("no hospital given: use --site NAME=FILE for each, or --data FILE --site-column COLUMN")
        return tuple(parse_site(text) for text in sites)
    if column is None:
        raise PlanError(f"--data {data}: name the column that says which hospital a row belongs to with --site-column")
    if not data.is_file():
        raise PlanError(f"--data {data}: there is no such file")
    path = data.resolve()
    return tuple(SiteTable(value, path, column, value) for value in _values(path, column))


def _values(path: Path, column: str) -> list[str]:
    reader = "read_parquet(?)" if path.suffix.lower() == ".parquet" else "read_csv(?, all_varchar = true)"
    connection = duckdb.connect()
    try:
        columns = [row[0] for row in connection.execute(f"DESCRIBE SELECT * FROM {reader}", [str(path)]).fetchall()]  # noqa: S608
        if column not in columns:
            raise PlanError(f"--site-column {column}: {path.name} has no such column; it has {', '.join(columns[:30])}")
        quoted = '"' + column.replace('"', '""') + '"'
        query = f"SELECT DISTINCT {quoted}::VARCHAR FROM {reader} WHERE {quoted} IS NOT NULL ORDER BY 1"  # noqa: S608
        values = [row[0] for row in connection.execute(query, [str(path)]).fetchall()]
    except duckdb.Error as error:
        raise PlanError(f"--data {path}: cannot be read as CSV or Parquet ({type(error).__name__})") from None
    finally:
        connection.close()
    if len(values) > MAX_SITES:
        raise PlanError(f"--site-column {column}: more than {MAX_SITES} different values; is it the hospital's column?")
    return values
