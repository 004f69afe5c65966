"""The tables that `make accuracy` and `make bench` print, and what they are made from."""

import csv
import gzip
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from cohortium_kit.bus import Ack, Delivery
from cohortium_kit.testing.clock import ManualClock
from cohortium_messages.ids import SiteId
from cohortium_protocol.strict.steps import Kind
from cohortium_sim import diabetes
from cohortium_sim.bench_trees import Size, Tap, bench_study, line, tap_topology, write_tables
from cohortium_sim.diabetes import diabetes_study, write_diabetes_sites
from cohortium_sim.plan import PlanError
from cohortium_sim.trees_table import Accuracy, lines

SITE = SiteId("00000000-0000-4000-8000-000000000001")
HEADER = struct.Struct("<4sB16sIHBHHI32s")


def frame(step: int, *, down: bool = False) -> Any:
    """A frame as a bus hands it over."""
    head = HEADER.pack(b"CHre" if down else b"CHst", 1, b"w" * 16, step, 0 if down else 1, Kind.SUM, 0, 1, 8, bytes(32))
    body = head + bytes(64 if down else 0) + bytes(8 + 16)
    return cast("Delivery", SimpleNamespace(body=body, exchange="x.bulk" if down else "x.uplink"))


def table_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


class TestTap:
    async def test_a_steps_time_is_from_its_frame_to_its_result(self) -> None:
        clock = ManualClock()
        tap = Tap(clock)
        for step, wait_s in enumerate((0.010, 0.020, 0.040)):
            assert await tap.take(frame(step)) == Ack()
            await clock.advance(wait_s)
            await tap.take(frame(step))  # sent again: the first one counts
            await tap.take(frame(step, down=True))
            await clock.advance(1.0)
        await tap.take(frame(3))
        assert tap.latencies_s() == pytest.approx([0.010, 0.020, 0.040])
        assert tap.seconds == pytest.approx(2.070)

    async def test_what_is_no_frame_is_let_pass(self) -> None:
        tap = Tap(ManualClock())
        assert await tap.take(cast("Delivery", SimpleNamespace(body=b"no", exchange="x.uplink"))) == Ack()
        assert tap.latencies_s() == []

    def test_it_listens_to_one_site_only(self) -> None:
        (queue,) = tap_topology(SITE).queues
        assert tap_topology(SITE).exchanges == ()
        assert {binding.key for binding in queue.bindings} == {f"site.{SITE}.steps.*", f"site.{SITE}.results"}


def test_the_benchmark_has_the_rows_that_it_says(tmp_path: Path) -> None:
    size = Size(sites=3, rows=100, features=5, trees=7, leaves=4)
    study = bench_study(size)
    assert (study.boosting_rounds, len(study.dataset.features)) == (7, 5)
    tables = write_tables(size, tmp_path)
    rows = [row for table in tables for row in table_rows(table.path)]
    assert len(tables) == 3
    assert sum(row["part"] == "train" for row in rows) == 100
    assert {row["label"] for row in rows} == {"0", "1"}
    values = np.array([[float(row[f"x{place}"]) for place in range(5)] for row in rows])
    assert np.abs(values).max() <= 8
    assert np.isfinite(values).all()


def test_a_benchmark_is_told_in_one_line() -> None:
    run = {
        "sites": 4, "rows": 20000, "features": 40, "trees": 100, "leaves": 15, "session_seconds": 12.3,
        "training_seconds": 14.1, "steps": 3006, "steps_per_second": 244.4, "step_ms": {"p50": 3.2, "p99": 9.1},
        "sockets_seconds": 1.1, "largest_difference": 0.0,
    }  # fmt: skip
    text = line(run)
    for words in ("20,000 rows x 40 features", "3,006 steps, 244 a second", "p50 3.2 ms, p99 9.1 ms", "sockets: 1.1 s"):
        assert words in text


class TestTable:
    def test_models_stand_beside_pooled(self) -> None:
        aucs = {"federated": 0.90, "pooled": 0.89, "bagging": 0.87, "only a": 0.80}
        other = {name: value + 0.02 for name, value in aucs.items()}
        runs = [Accuracy("heart", one, 275, 60, 486, 5.0) for one in (aucs, other)]
        text = list(lines([*runs, Accuracy("diabetes", aucs, 25420, 100, 1406, 20.0)]))
        federated = next(row for row in text if "federated" in row and row.startswith("heart"))
        assert federated.split() == ["heart", "federated", "0.9100", "0.014", "+0.0100"]
        assert any("2 runs, 275 test rows, 60 rounds in 486 steps, 5.0 s" in row for row in text)
        assert any("1 run, 25,420 test rows" in row for row in text)
        assert next(row for row in text if row.startswith("diabetes") and "only a" in row).split()[-1] == "-0.0900"


class TestDiabetes:
    @pytest.fixture
    def source(self, tmp_path: Path) -> Path:
        """Three encounters as the public file writes them."""
        columns = [feature.name for feature in diabetes_study().dataset.features]
        usual = dict.fromkeys(columns, "No") | {
            "race": "Caucasian", "gender": "Female", "age": "[70-80)", "admission_type_id": "1",
            "discharge_disposition_id": "1", "admission_source_id": "7", "max_glu_serum": "None", "A1Cresult": ">7",
            "diag_1": "428.0", "diag_2": "250.83", "diag_3": "V99.1",
        }  # fmt: skip
        rows = [
            {**usual, "encounter_id": "1", "readmitted": "<30"},
            {**usual, "encounter_id": "2", "readmitted": ">30", "race": "?", "gender": "Unknown/Invalid"},
            {**usual, "encounter_id": "3", "readmitted": "NO", "age": "[0-10)", "diag_1": "?"},
        ]
        parts = [
            {"encounter_id": number, "pseudo_site": site, "split": part}
            for number, site, part in (("1", "A_both", "train"), ("2", "A_both", "test"), ("3", "D_neither", "train"))
        ]
        folder = tmp_path / diabetes.FOLDER
        folder.mkdir()
        for name, table in ((diabetes.TABLE, rows), (diabetes.SPLIT, parts)):
            with gzip.open(folder / name, "wt", newline="") as file:
                writer = csv.DictWriter(file, fieldnames=list(table[0]))
                writer.writeheader()
                writer.writerows(table)
        return tmp_path

    def test_each_pseudo_site_gets_its_rows_as_the_study_wants_them(self, source: Path, tmp_path: Path) -> None:
        tables = {one.name: one.path for one in write_diabetes_sites(source, tmp_path / "sites")}
        assert list(tables) == list(diabetes.SITES)
        rows = {name: table_rows(path) for name, path in tables.items()}
        assert [len(found) for found in rows.values()] == [2, 0, 0, 1]
        first, second = rows["A_both"]
        assert (first["age"], first["max_glu_serum"], first["A1Cresult"]) == ("70", "unmeasured", ">7")
        assert (first["diag_1"], first["diag_2"], first["diag_3"]) == ("428", "250", "other")
        assert (first["readmitted_30"], first["split"]) == ("1", "train")
        assert (second["race"], second["gender"], second["readmitted_30"], second["split"]) == ("", "", "0", "test")
        (third,) = rows["D_neither"]
        assert (third["age"], third["diag_1"], third["readmitted_30"]) == ("0", "", "0")
        assert "encounter_id" not in third

    def test_other_files_are_refused(self, source: Path, tmp_path: Path) -> None:
        with gzip.open(source / diabetes.FOLDER / diabetes.SPLIT, "wt") as file:
            file.write("encounter_id,split\n1,train\n")
        with pytest.raises(PlanError, match="not the data set's files: there is no 'pseudo_site'"):
            write_diabetes_sites(source, tmp_path / "sites")

    def test_where_the_data_are(self, source: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("COHORTIUM_DATA_DIR", str(source))
        assert diabetes.data_dir() == source
        monkeypatch.setenv("COHORTIUM_DATA_DIR", str(tmp_path / "nowhere"))
        assert diabetes.data_dir() is None
