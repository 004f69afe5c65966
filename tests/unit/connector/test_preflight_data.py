"""The trial looks at every file that the settings name, and a missing one is not hidden by a writable one."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from cohortium_connector.preflight import training
from cohortium_connector.settings import ConnectorSettings
from cohortium_connector.training.jobs import ConsentSource, DataSource


def looked(monkeypatch: pytest.MonkeyPatch, writable: set[Path], **datasets: DataSource) -> tuple[str, str | None, str]:
    """What is found where this account may write these files; root may write all, so the answer is the test's."""
    monkeypatch.setattr(os, "access", lambda path, _mode: path in writable)
    found = training.data(cast("ConnectorSettings", SimpleNamespace(datasets=datasets)))
    return found.state, found.code, str(found.facts.get("path", ""))


@pytest.fixture
def named(tmp_path: Path) -> dict[str, Path]:
    paths = {name: tmp_path / name for name in ("rows.csv", "consents.csv", "optouts.txt")}
    for path in paths.values():
        path.write_text("x")
    return paths


def source(named: dict[str, Path]) -> DataSource:
    return DataSource(
        path=str(named["rows.csv"]),
        person_column="person",
        consent=ConsentSource(kind="table", path=str(named["consents.csv"])),
        optout_path=str(named["optouts.txt"]),
    )


def test_files_that_can_be_read_and_not_written_are_good(
    monkeypatch: pytest.MonkeyPatch, named: dict[str, Path]
) -> None:
    assert looked(monkeypatch, set(), heart=source(named)) == ("ok", None, "")


@pytest.mark.parametrize("name", ["rows.csv", "consents.csv", "optouts.txt"])
def test_each_file_is_looked_at(monkeypatch: pytest.MonkeyPatch, named: dict[str, Path], name: str) -> None:
    path = named[name]
    assert looked(monkeypatch, {path}, heart=source(named)) == ("warning", "DATA_WRITABLE", str(path))
    path.unlink()
    assert looked(monkeypatch, set(), heart=source(named)) == ("failed", "DATA_MISSING", str(path))


def test_a_missing_file_counts_before_a_writable_one(monkeypatch: pytest.MonkeyPatch, named: dict[str, Path]) -> None:
    gone = DataSource(path=str(named["rows.csv"].parent / "gone.csv"))
    found = looked(monkeypatch, {named["rows.csv"]}, heart=source(named), lung=gone)
    assert found == ("failed", "DATA_MISSING", gone.path)
