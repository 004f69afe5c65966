"""From files to the persons whose rows are read: the training process's part, on real files."""

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import pytest

from cohortium_connector.training.base import SiteRefusal
from cohortium_connector.training.data import DataRefused, read_table
from cohortium_connector.training.jobs import CohortTaken, ConsentSource, DataSource, TakeCohort
from cohortium_connector.training.patients import take_cohort
from cohortium_messages.study_file import parse_study
from cohortium_protocol.cohorts import commitment, tags_of

NOW = datetime(2026, 6, 1, tzinfo=UTC)
STUDY = parse_study(
    """
apiVersion: cohortium/study/1
governance: trial
name: ages
purpose: a test
dataset:
  unit: person
  features: [{name: age, type: int, range: [0, 120]}]
  label: {name: ill, type: binary}
  split: {test: 0.2, seed: 1}
recipe: {trainer: torch.logistic}
federation: {rounds: 1}
"""
)
ROWS = [("a", 30, 0, "x"), ("a", 31, 1, "x"), ("b", 40, 0, "x"), ("c", 50, 1, "x"), ("", 60, 0, "x"), ("d", 70, 1, "y")]


def job(folder: Path, **changes: Any) -> TakeCohort:
    table = folder / "rows.csv"
    table.write_text("mrn,age,ill,site\n" + "".join(f"{p},{age},{ill},{site}\n" for p, age, ill, site in ROWS))
    source = DataSource(path=str(table), person_column="mrn").model_copy(update=changes.pop("source", {}))
    fixed: dict[str, Any] = {"required": False, "at": NOW, "context": b"c" * 16, "salt": b"s" * 32}
    return TakeCohort(source=source, folder=str(folder), **(fixed | changes))


def persons(taken: CohortTaken) -> list[str]:
    assert taken.permitted_path is not None
    found: list[str] = json.loads(Path(taken.permitted_path).read_bytes())
    return found


def test_persons_are_counted_and_not_rows(tmp_path: Path) -> None:
    taken = take_cohort(job(tmp_path), 1.0)
    assert (taken.persons, taken.permitted, taken.rows_unnamed, taken.excluded) == (4, 4, 1, {})
    assert persons(taken) == ["a", "b", "c", "d"]
    tags = tags_of(b"s" * 32, b"c" * 16, "abcd")
    assert Path(taken.tags_path).read_bytes() == b"".join(tags)
    assert taken.root == commitment(tags)
    assert os.stat(str(taken.permitted_path)).st_mode & 0o077 == 0


def test_only_the_rows_of_permitted_persons_are_read(tmp_path: Path) -> None:
    optout = tmp_path / "optout.txt"
    optout.write_text("b\n\n d \n")
    asked = job(tmp_path, source={"optout_path": str(optout)})
    taken = take_cohort(asked, 1.0)
    assert taken.excluded == {"opted_out": 2}
    source = asked.source.model_copy(update={"permitted_path": taken.permitted_path})
    table = read_table(STUDY, source)
    ages = sorted([*table.train.columns["age"], *table.test.columns["age"]])
    assert ages == [30, 31, 50]  # two rows of a, one of c; the row that names nobody is left out


def test_only_the_sites_own_patients_are_candidates(tmp_path: Path) -> None:
    taken = take_cohort(job(tmp_path, source={"site_column": "site", "site_value": "y"}), 1.0)
    assert persons(taken) == ["d"]


def rows_of(folder: Path, text: str, **source: Any) -> CohortTaken:
    """The cohort of a table that names nobody; always with the same salt, so that roots can be compared."""
    table = folder / "rows.csv"
    table.write_text(text)
    asked = DataSource(path=str(table), **source)
    fixed: dict[str, Any] = {"required": False, "at": NOW, "context": b"c" * 16, "salt": b"s" * 32}
    return take_cohort(TakeCohort(source=asked, folder=str(folder), **fixed), 1.0)


def test_where_the_table_names_nobody_every_row_counts(tmp_path: Path) -> None:
    taken = rows_of(tmp_path, "age,ill\n30,0\n30,0\n31,1\n")
    assert (taken.persons, taken.permitted, taken.excluded, taken.permitted_path) == (3, 3, {}, None)
    tags = Path(taken.tags_path).read_bytes()
    assert len(tags) == 3 * 32, "two rows that say the same are two"
    assert taken.root == commitment([tags[at : at + 32] for at in (0, 32, 64)])


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("a,b\n31,1\n1,23\n", True),  # in another order
        ("a,b\n31,1\n1,24\n", False),
        ("a,b\n31,1\n12,3\n", False),  # values do not run together
        ("a,b\n31,1\n1,23\n1,23\n", False),
        ("a,b\n31,1\n1,\n", False),
    ],
)
def test_a_commitment_to_rows_is_to_all_that_they_say(text: str, *, same: bool, tmp_path: Path) -> None:
    before = rows_of(tmp_path, "a,b\n1,23\n31,1\n").root
    assert (rows_of(tmp_path, text).root == before) == same


def test_a_column_may_be_named_as_it_likes(tmp_path: Path) -> None:
    taken = rows_of(tmp_path, "row,count,1\n30,0,a\n31,0,a\n31,0,b\n")
    tags = Path(taken.tags_path).read_bytes()
    assert (taken.permitted, len({tags[at : at + 32] for at in (0, 32, 64)})) == (3, 3)


def test_only_the_site_s_own_rows_count(tmp_path: Path) -> None:
    text = "age,site\n30,north\n31,south\n32,north\n"
    taken = rows_of(tmp_path, text, site_column="site", site_value="north")
    assert taken.permitted == 2
    with pytest.raises(SiteRefusal, match="COLUMN_MISSING"):
        rows_of(tmp_path, text, site_column="place", site_value="north")


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_table_of_decisions(suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"consents.{suffix}"
    decided = "VALUES ('a', 'permit', DATE '2026-01-01'), ('b', 'deny', DATE '2026-01-01'), ('c', 'permit', NULL)"
    duckdb.sql(f"COPY (SELECT * FROM ({decided}) t(person_id, decision, recorded_at)) TO '{file}'")  # noqa: S608
    consent = ConsentSource(kind="table", path=str(file))
    taken = take_cohort(job(tmp_path, source={"consent": consent}, required=True), 1.0)
    assert persons(taken) == ["a", "c"]
    assert taken.excluded == {"denied": 1, "no_record": 1}


def test_fhir_consents(tmp_path: Path) -> None:
    file = tmp_path / "consents.ndjson"
    base = {"resourceType": "Consent", "status": "active", "date": "2026-01-01"}
    lines = [
        base | {"subject": {"reference": "Patient/a"}, "decision": "permit"},
        base | {"subject": {"reference": "Patient/b"}, "decision": "deny"},
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    consent = ConsentSource(kind="fhir", path=str(file))
    taken = take_cohort(job(tmp_path, source={"consent": consent}, required=True), 1.0)
    assert persons(taken) == ["a"]
    assert taken.excluded == {"denied": 1, "no_record": 2}


def test_the_list_keeps_its_name_while_nobody_changes(tmp_path: Path) -> None:
    first = take_cohort(job(tmp_path), 1.0)
    again = take_cohort(job(tmp_path, context=b"d" * 16, salt=b"t" * 32), 1.0)
    assert first.permitted_path == again.permitted_path
    assert first.root != again.root


@pytest.mark.parametrize(
    ("source", "code", "column"),
    [
        ({"person_column": "patient"}, "COLUMN_MISSING", "patient"),
        ({"path": "/nowhere.csv"}, "FILE_UNREADABLE", ""),
        ({"optout_path": "/nowhere.txt"}, "CONSENT_SOURCE_UNREADABLE", ""),
        ({"consent": ConsentSource(kind="fhir", path="/nowhere")}, "CONSENT_SOURCE_UNREADABLE", ""),
        ({"consent": ConsentSource(kind="table", path="rows.csv")}, "CONSENT_SOURCE_UNREADABLE", "person_id"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(
    source: dict[str, Any], code: str, column: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SiteRefusal) as caught:
        take_cohort(job(tmp_path, source=source), 1.0)
    assert (caught.value.code, caught.value.column) == (code, column)


def test_a_missing_person_column_stops_the_reading_itself(tmp_path: Path) -> None:
    asked = job(tmp_path)
    with pytest.raises(DataRefused, match="COLUMN_MISSING"):
        read_table(STUDY, asked.source.model_copy(update={"person_column": "patient"}))


def test_a_source_of_consent_without_persons_is_no_setting() -> None:
    with pytest.raises(ValueError, match="person_column"):
        DataSource(path="rows.csv", optout_path="optout.txt")


@pytest.mark.parametrize("text", ["\ufeffb\nc\n", "b \t\nc\n", "\u00a0b\r\nc"])
def test_nobody_who_opted_out_is_missed_for_a_mark_or_a_blank(text: str, tmp_path: Path) -> None:
    optout = tmp_path / "optout.txt"
    optout.write_bytes(text.encode())
    assert persons(take_cohort(job(tmp_path, source={"optout_path": str(optout)}), 1.0)) == ["a", "d"]


@pytest.mark.parametrize("content", [b'"b"\n', b"b,2026-01-01\n", b"b;x", b"b\t1", "b\n".encode("utf-16-le")])
def test_a_list_that_is_not_one_person_a_line_is_refused(content: bytes, tmp_path: Path) -> None:
    optout = tmp_path / "optout.txt"
    optout.write_bytes(content)
    with pytest.raises(SiteRefusal) as caught:
        take_cohort(job(tmp_path, source={"optout_path": str(optout)}), 1.0)
    assert caught.value.code == "CONSENT_SOURCE_UNREADABLE"


def test_the_same_name_in_two_ways_of_unicode_is_one_person(tmp_path: Path) -> None:
    """The table has it in parts and with a blank that SQL's trim leaves; the list has it whole."""
    asked = job(tmp_path, source={"optout_path": str(tmp_path / "optout.txt")})
    (tmp_path / "optout.txt").write_text("M\u00fcller\n")
    Path(asked.source.path).write_text("mrn,age,ill\nMu\u0308ller\u00a0,30,1\nMeier\u00a0,40,0\n")
    taken = take_cohort(asked, 1.0)
    assert (taken.permitted, taken.excluded) == (1, {"opted_out": 1})
    table = read_table(STUDY, asked.source.model_copy(update={"permitted_path": taken.permitted_path}))
    assert [*table.train.columns["age"], *table.test.columns["age"]] == [40]
    assert Path(taken.tags_path).read_bytes() == b"".join(tags_of(b"s" * 32, b"c" * 16, ["Meier"]))


@pytest.mark.parametrize(("kind", "fits"), [("DOUBLE", False), ("DECIMAL(9,2)", False), ("DECIMAL(9,0)", True)])
def test_persons_are_no_fractions(kind: str, fits: bool, tmp_path: Path) -> None:
    """Else 7 is `7.0` in one file and `7` in the other, and who opted out is used."""
    file = tmp_path / "rows.parquet"
    duckdb.sql(f"COPY (SELECT 7::{kind} AS mrn, 30 AS age, 1 AS ill) TO '{file}'")
    asked = job(tmp_path, source={"path": str(file)})
    if fits:
        assert persons(take_cohort(asked, 1.0)) == ["7"]
    else:
        with pytest.raises(SiteRefusal) as caught:
            take_cohort(asked, 1.0)
        assert (caught.value.column, "persons are text or whole numbers" in caught.value.local) == ("mrn", True)


@pytest.mark.parametrize("name", ["Valid_To", "valid to", "VALIDTO", "valid_to,valid_to"])
def test_a_column_that_is_nearly_ours_is_not_passed_over(name: str, tmp_path: Path) -> None:
    """Permissions that have ended would be good for ever."""
    file = tmp_path / "consents.csv"
    file.write_text(f"person_id,decision,{name}\na,permit{',2020-01-01' * len(name.split(','))}\n")
    consent = ConsentSource(kind="table", path=str(file))
    with pytest.raises(SiteRefusal) as caught:
        take_cohort(job(tmp_path, source={"consent": consent}, required=True), 1.0)
    assert (caught.value.code, caught.value.column) == ("CONSENT_SOURCE_UNREADABLE", "valid_to")
