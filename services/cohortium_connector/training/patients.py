"""Who may be used: the candidates of a hospital's table, held against the hospital's own consent source.

Persons are counted; rows only where the table does not say whose they are. Nothing here leaves the hospital but the
root of the commitment; counts leave as bands.
"""

import json
import os
import re
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import duckdb

from cohortium_connector.training.base import SiteRefusal
from cohortium_connector.training.consents import (
    OPTIONAL_COLUMNS,
    REQUIRED_COLUMNS,
    Cohort,
    Decision,
    SourceUnreadable,
    decide,
    of_rows,
)
from cohortium_connector.training.data import (
    PARQUET,
    alike,
    column_text,
    header_of,
    lock_down,
    matches,
    reader_of,
    without_values,
)
from cohortium_connector.training.fhir_consents import of_fhir
from cohortium_connector.training.jobs import CohortTaken, ConsentSource, DataSource, TakeCohort
from cohortium_protocol.cohorts import commitment, person_name, tags_of
from cohortium_protocol.encoding import sha256


@dataclass(frozen=True, slots=True)
class Candidates:
    """The distinct persons with a row, and how many rows name nobody."""

    persons: frozenset[str]
    rows_unnamed: int
    texts: Mapping[str, frozenset[str]]
    """How the table writes each person."""


def take_cohort(job: TakeCohort, peak_mb: float) -> CohortTaken:
    """Decide who may be used, and write the list and its tags into the job's folder. Raises `SiteRefusal`."""
    started = time.monotonic()
    if job.source.person_column is None:
        return _take_rows(job, started, peak_mb)
    candidates = read_candidates(job.source)
    cohort = permitted_of(job, candidates)
    tags = tags_of(job.salt, job.context, cohort.permitted)
    folder = Path(job.folder)
    texts = [text for person in cohort.permitted for text in candidates.texts[person]]
    listed = json.dumps(sorted(texts)).encode()
    # Named after its content: while nobody's decision changes, tables that were read stay good.
    permitted_path = folder / f"permitted-{sha256(listed).hex()[:32]}.json"
    _write(permitted_path, listed)
    return CohortTaken(
        persons=len(candidates.persons),
        permitted=len(cohort.permitted),
        excluded={str(reason): count for reason, count in cohort.excluded.items()},
        rows_unnamed=candidates.rows_unnamed,
        root=commitment(tags),
        permitted_path=str(permitted_path),
        tags_path=_write_tags(job, tags),
        seconds=time.monotonic() - started,
        peak_mb=peak_mb,
    )


def _take_rows(job: TakeCohort, started: float, peak_mb: float) -> CohortTaken:
    """Every row of a table that names nobody."""
    rows = read_rows(job.source)
    tags = tags_of(job.salt, job.context, rows)
    return CohortTaken(
        persons=len(rows),
        permitted=len(rows),
        excluded={},
        rows_unnamed=0,
        root=commitment(tags),
        permitted_path=None,
        tags_path=_write_tags(job, tags),
        seconds=time.monotonic() - started,
        peak_mb=peak_mb,
    )


def read_rows(source: DataSource) -> list[str]:
    """A name for each row of a table: the digest of all that it says, and which of the equal rows it is. So the same
    rows in another order are the same cohort. Raises `SiteRefusal` where the table cannot be read."""
    path = _readable(source.path, "FILE_UNREADABLE")
    reader = reader_of(path)
    try:
        with duckdb.connect(":memory:") as database:
            lock_down(database, path)
            described = database.execute(f"DESCRIBE SELECT * FROM {reader}", [str(path)]).fetchall()  # noqa: S608
            names = [str(row[0]) for row in described]
            # With its length before it, a value cannot run into its neighbour; NULL has none.
            values = (f'CAST("{name.replace(chr(34), chr(34) * 2)}" AS VARCHAR)' for name in names)
            said = ", ".join(f"coalesce(length({value}) || ':' || {value}, '-')" for value in values)
            kept = ""
            if source.site_column is not None:
                _present(source.site_column, names, path, "COLUMN_MISSING")
                kept = f"WHERE {matches(column_text(source.site_column), source.site_value or '')}"
            query = f"SELECT sha256(concat({said})), count(*) FROM {reader} {kept} GROUP BY 1"  # noqa: S608
            found = database.execute(query, [str(path)]).fetchall()
    except duckdb.Error as error:
        raise SiteRefusal("FILE_UNREADABLE", "", 1, f"{path}: {without_values(error)}") from None
    return [f"{digest}:{which}" for digest, count in found for which in range(count)]


def permitted_of(job: TakeCohort, candidates: Candidates) -> Cohort:
    """Who of the candidates may be used. Raises `SourceUnreadable`."""
    source = job.source
    decisions = () if source.consent is None else _decisions(source.consent, job)
    opted_out = frozenset[str]() if source.optout_path is None else _opted_out(Path(source.optout_path))
    return decide(candidates.persons, decisions, opted_out, required=job.required, at=job.at)


def read_candidates(source: DataSource) -> Candidates:
    """The persons of a table. Raises `SiteRefusal` where it cannot be read or has no such column."""
    column = source.person_column
    if column is None:
        raise ValueError("a table without person_column has no persons")
    path = _readable(source.path, "FILE_UNREADABLE")
    kept, texts = "", f"{column_text(column)} AS person"
    if source.site_column is not None:
        texts += f", {column_text(source.site_column)} AS site_text"
        kept = f"WHERE {matches('site_text', source.site_value or '')}"
    reader = reader_of(path)
    try:
        with duckdb.connect(":memory:") as database:
            lock_down(database, path)
            _check(database, reader, path, (column, source.site_column), "COLUMN_MISSING", person=column)
            query = f"SELECT person, count(*) FROM (SELECT {texts} FROM {reader}) {kept} GROUP BY person"  # noqa: S608
            rows = database.execute(query, [str(path)]).fetchall()
    except duckdb.Error as error:
        raise SiteRefusal("FILE_UNREADABLE", "", 1, f"{path}: {without_values(error)}") from None
    written: dict[str, set[str]] = defaultdict(set)
    unnamed = 0
    for text, count in rows:
        person = "" if text is None else person_name(text)
        if person:
            written[person].add(text)
        else:
            unnamed += count
    return Candidates(frozenset(written), unnamed, {person: frozenset(found) for person, found in written.items()})


def _decisions(consent: ConsentSource, job: TakeCohort) -> Iterator[Decision]:
    path = _readable(consent.path, "CONSENT_SOURCE_UNREADABLE")
    if consent.kind == "fhir":
        yield from of_fhir(path, consent.policy, consent.purpose, job.at)
        return
    reader = reader_of(path)
    try:
        with duckdb.connect(":memory:") as database:
            lock_down(database, path)
            code = "CONSENT_SOURCE_UNREADABLE"
            present = _check(database, reader, path, REQUIRED_COLUMNS, code, person="person_id")
            _check_names(database, path, present)
            names = [*REQUIRED_COLUMNS, *(name for name in OPTIONAL_COLUMNS if name in present)]
            texts = ", ".join(f'CAST("{name}" AS VARCHAR)' for name in names)
            rows = database.execute(f"SELECT {texts} FROM {reader}", [str(path)]).fetchall()  # noqa: S608
    except duckdb.Error as error:
        raise SourceUnreadable("", f"{path}: {without_values(error)}") from None
    yield from of_rows((dict(zip(names, row, strict=True)) for row in rows), consent.policy, consent.purpose)


def _opted_out(file: Path) -> frozenset[str]:
    path = _readable(str(file), "CONSENT_SOURCE_UNREADABLE")
    try:
        lines = path.read_text("utf-8-sig").splitlines()  # a mark at its beginning is not the first person's
    except UnicodeDecodeError:
        raise SourceUnreadable("", f"{path} is not UTF-8 text") from None
    for number, line in enumerate(lines, 1):
        # A CSV file, or UTF-16: nobody's name would be found in it, and everybody who opted out would be used.
        if any(sign in '",;' or not sign.isprintable() for sign in line.strip()):
            raise SourceUnreadable("", f"{path}: line {number} is not one person; no quotes, commas, semicolons, tabs")
    return frozenset(person_name(line) for line in lines if line.strip())


def _readable(name: str, code: str) -> Path:
    path = Path(name).resolve()
    if not path.is_file() or not os.access(path, os.R_OK) or any(sign in str(path) for sign in "*?[]{}"):
        raise SiteRefusal(code, "", 1, f"{code}: {path} is not a file that this process may read")
    return path


def _check(
    database: duckdb.DuckDBPyConnection,
    reader: str,
    path: Path,
    wanted: tuple[str | None, ...],
    code: str,
    *,
    person: str,
) -> frozenset[str]:
    described = database.execute(f"DESCRIBE SELECT * FROM {reader}", [str(path)]).fetchall()  # noqa: S608
    types = {str(row[0]): str(row[1]) for row in described}
    for name in wanted:
        if name is not None:
            _present(name, list(types), path, code)
    if re.match(r"FLOAT|DOUBLE|DECIMAL(?!\(\d+,0\))", types[person]):
        # 7 would be 7.0 here and 7 in another file, and a number with many digits another patient's.
        hint = f"{path}: {person} is {types[person]}; persons are text or whole numbers"
        raise SiteRefusal(code, person, 1, f"{code}: {hint}")
    return frozenset(types)


def _present(name: str, columns: list[str], path: Path, code: str) -> None:
    if name not in columns:
        raise SiteRefusal(code, name, 1, f"{code}: {path} has no column {name}; {alike(name, columns)}")


def _check_names(database: duckdb.DuckDBPyConnection, path: Path, present: frozenset[str]) -> None:
    """A column that is nearly one of ours would be passed over: an end of validity, for instance."""
    ours = (*REQUIRED_COLUMNS, *OPTIONAL_COLUMNS)
    names = present if path.suffix.lower() in PARQUET else header_of(database, path)
    folded = Counter(re.sub(r"[\W_]", "", name).casefold() for name in names)
    for name in ours:
        if folded[name.replace("_", "")] > (name in present):
            raise SourceUnreadable(name, f"{path} has a column that is nearly {name}, or has it twice; name it {name}")


def _write_tags(job: TakeCohort, tags: list[bytes]) -> str:
    path = Path(job.folder) / f"{job.context.hex()}.tags"
    _write(path, b"".join(tags))
    return str(path)


def _write(path: Path, content: bytes) -> None:
    """At once: the other training process may be reading the same list."""
    # Only its owner can read it. What a crash leaves goes with the lists of a study in which nothing runs.
    handle, name = tempfile.mkstemp(dir=path.parent, prefix="permitted-", suffix=".json")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
