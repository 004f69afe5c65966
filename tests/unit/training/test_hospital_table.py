"""What a hospital's table may look like, and what is said when it does not fit the study."""

import math
from pathlib import Path

import duckdb
import pytest

from cohortium_connector.training.data import DataRefused, read_table
from cohortium_connector.training.jobs import DataSource
from cohortium_messages.study_file import parse_study

TEXT = (Path(__file__).resolve().parents[2] / "studies" / "example.yaml").read_text()
STUDY = parse_study(TEXT)
BY_SHARE = parse_study(TEXT.replace("{column: split, train: train, test: test}", "{test: 0.3, seed: 7}"))
WITH_LEVEL = parse_study(TEXT.replace('levels: ["0", "1"]}', 'levels: ["0", "1", "other"], missing: level}'))
WHOLE = parse_study(TEXT.replace("age,      type: float", "age,      type: int"))
HEADER = "age,sex,trestbps,disease,split\n"
GOOD = "50,0,120,0,train\n60,1,,1,train\n70,1,140,1,test\n"


def source(tmp_path: Path, text: str, name: str = "site.csv") -> DataSource:
    path = tmp_path / name
    path.write_text(text)
    return DataSource(path=str(path))


def test_rows_are_split_by_the_column_and_others_left_out(tmp_path: Path) -> None:
    table = read_table(STUDY, source(tmp_path, HEADER + GOOD + "999,x,bad,,excluded\n"))
    assert table.train.columns["age"].tolist() == [50, 60]
    assert table.train.columns["sex"].tolist() == [0, 1]
    assert math.isnan(table.train.columns["trestbps"][1])
    assert table.train.labels.tolist() == [0, 1]
    assert table.test.columns["age"].tolist() == [70]


@pytest.mark.parametrize("missing", ["", "?", "NA", "na", "NaN", "NULL", " ", "None", "n/a", '""'])
def test_a_missing_value_has_many_spellings(tmp_path: Path, missing: str) -> None:
    table = read_table(STUDY, source(tmp_path, HEADER + GOOD + f"55,0,{missing},1,train\n"))
    assert math.isnan(table.train.columns["trestbps"][2])


@pytest.mark.parametrize(
    ("text", "level"), [("1", 1), ("1.0", 1), (" 0 ", 0), ("0.00", 0), ("1e0", 1), ("other", 2), ("?", -1)]
)
def test_a_category_is_matched_as_text_or_as_number(tmp_path: Path, text: str, level: int) -> None:
    table = read_table(WITH_LEVEL, source(tmp_path, HEADER + GOOD + f"55,{text},120,1,train\n"))
    assert table.train.columns["sex"][2] == level


@pytest.mark.parametrize(("text", "label"), [("1", 1), ("0", 0), ("1.0", 1), ("true", 1), ("False", 0), ("TRUE", 1)])
def test_labels_have_many_spellings(tmp_path: Path, text: str, label: int) -> None:
    table = read_table(STUDY, source(tmp_path, HEADER + GOOD + f"55,1,120,{text},train\n"))
    assert table.train.labels[2] == label


REFUSED = {
    "out of range": ("120,0,120,0,train\n17,0,120,0,test\n", "VALUE_OUT_OF_RANGE", "age", 2, (4, 5)),
    "infinite": ("inf,0,120,0,train\n", "VALUE_OUT_OF_RANGE", "age", 1, (4,)),
    "no number": ("old,0,120,0,train\n", "VALUE_NOT_A_NUMBER", "age", 1, (4,)),
    "missing where refused": (",0,120,0,train\n", "MISSING_REFUSED", "age", 1, (4,)),
    "unknown level": ("50,2,120,0,train\n", "LEVEL_UNKNOWN", "sex", 1, (4,)),
    "missing level where refused": ("50,?,120,0,train\n", "MISSING_REFUSED", "sex", 1, (4,)),
    "label out of place": ("50,0,120,2,train\n", "LABEL_INVALID", "disease", 1, (4,)),
    "label missing": ("50,0,120,,test\n", "LABEL_INVALID", "disease", 1, (4,)),
}


@pytest.mark.parametrize(("line", "code", "column", "count", "rows"), REFUSED.values(), ids=REFUSED)
def test_a_value_outside_the_contract_is_refused_with_its_rows(
    tmp_path: Path, line: str, code: str, column: str, count: int, rows: tuple[int, ...]
) -> None:
    with pytest.raises(DataRefused) as caught:
        read_table(STUDY, source(tmp_path, HEADER + GOOD + line))
    refused = caught.value
    assert (refused.code, refused.column, refused.count, refused.rows) == (code, column, count, rows)
    assert str(rows[0]) not in str(refused), "row numbers are for the local log alone"
    assert str(rows[0]) in refused.local


def test_an_int_feature_takes_whole_numbers_only(tmp_path: Path) -> None:
    assert len(read_table(WHOLE, source(tmp_path, HEADER + GOOD)).train) == 2
    with pytest.raises(DataRefused) as caught:
        read_table(WHOLE, source(tmp_path, HEADER + GOOD + "50.5,0,120,0,train\n"))
    assert (caught.value.code, caught.value.rows) == ("VALUE_NOT_WHOLE", (4,))


def test_everything_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(DataRefused) as caught:
        read_table(STUDY, source(tmp_path, HEADER + "5,9,1000,7,train\n"))
    codes = [(finding.code, finding.column) for finding in caught.value.findings]
    assert codes == [
        ("VALUE_OUT_OF_RANGE", "age"),
        ("LEVEL_UNKNOWN", "sex"),
        ("VALUE_OUT_OF_RANGE", "trestbps"),
        ("LABEL_INVALID", "disease"),
    ]


def test_the_local_log_gets_rows_but_no_values(tmp_path: Path) -> None:
    with pytest.raises(DataRefused) as caught:
        read_table(STUDY, source(tmp_path, HEADER + GOOD + "7777,0,120,0,train\n" * 80))
    assert "80 times; rows 4, 5, 6" in caught.value.local
    assert "7777" not in caught.value.local


def test_a_missing_column_is_named_and_a_similar_one_hinted_at(tmp_path: Path) -> None:
    with pytest.raises(DataRefused) as caught:
        read_table(STUDY, source(tmp_path, (HEADER + GOOD).replace("age", "Age")))
    assert (caught.value.code, caught.value.column) == ("COLUMN_MISSING", "age")
    assert "did you mean 'Age'?" in caught.value.local


@pytest.mark.parametrize("again", ["age", "Age", " age "])
def test_a_column_that_stands_twice_is_refused_by_its_name(tmp_path: Path, again: str) -> None:
    """DuckDB would rename the second one, and read the first without a word."""
    header, *lines = (HEADER + GOOD).splitlines()
    text = "\n".join([f"{header},{again}", *[f"{line},44" for line in lines]]) + "\n"
    with pytest.raises(DataRefused) as caught:
        read_table(STUDY, source(tmp_path, text))
    assert (caught.value.code, caught.value.column) == ("COLUMN_TWICE", "age")
    assert "2 columns of the file have this name" in caught.value.local


def test_a_column_that_nobody_reads_may_stand_twice(tmp_path: Path) -> None:
    header, *lines = (HEADER + GOOD).splitlines()
    text = "\n".join([f"{header},note,note", *[f"{line},a,b" for line in lines]]) + "\n"
    assert len(read_table(STUDY, source(tmp_path, text)).train) == 2


def test_a_file_without_header_does_not_put_its_values_into_the_log(tmp_path: Path) -> None:
    with pytest.raises(DataRefused) as caught:
        read_table(STUDY, source(tmp_path, "4321,0,120,0,train\n50,0,120,0,train\n"))
    assert caught.value.code == "COLUMN_MISSING"
    assert "4321" not in caught.value.local


def test_a_table_without_training_rows_is_refused(tmp_path: Path) -> None:
    for text in (HEADER, HEADER + "70,1,140,1,test\n"):
        with pytest.raises(DataRefused) as caught:
            read_table(STUDY, source(tmp_path, text))
        assert caught.value.code == "NO_TRAINING_ROWS"


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(b"PAR1 not really")
    starred = tmp_path / "a*b.csv"
    starred.write_text(HEADER + GOOD)
    for path in (tmp_path / "absent.csv", tmp_path, broken, starred):
        with pytest.raises(DataRefused) as caught:
            read_table(STUDY, DataSource(path=str(path)))
        assert caught.value.code == "FILE_UNREADABLE"


def test_what_the_csv_reader_says_of_a_line_stays_out_of_the_log(tmp_path: Path) -> None:
    with pytest.raises(DataRefused) as caught:
        read_table(STUDY, source(tmp_path, HEADER + GOOD + '50,0,"4321' + "\n51,0" * 3))
    assert "4321" not in caught.value.local


def test_separators_quotes_and_order_of_columns_do_not_matter(tmp_path: Path) -> None:
    text = 'split;extra;disease;sex;age;trestbps\n"train";x;0;"1.0";"50.5";\ntrain;;1;0;60;120\ntest;;1;0;61;120\n'
    table = read_table(STUDY, source(tmp_path, text, "a'b c.csv"))
    assert table.train.columns["age"].tolist() == [50.5, 60]
    assert table.train.columns["sex"].tolist() == [1, 0]


@pytest.mark.parametrize("note", ["#12", "# see letter", "'s-Gravenhage", "//", "--"])
def test_no_row_is_taken_for_a_comment_or_for_part_of_another(tmp_path: Path, note: str) -> None:
    rows = [f"{'A' if row < 7 else note},{30 + row},0,120,{row % 2},train\n" for row in range(60)]
    rows += [f"{note},70,1,120,1,test\n", f"{note}',70,1,120,0,test\n"]
    table = read_table(STUDY, source(tmp_path, "note," + HEADER + "".join(rows)))
    assert (len(table.train), len(table.test)) == (60, 2)


def test_a_row_with_a_field_too_few_is_what_the_hint_is_about(tmp_path: Path) -> None:
    with pytest.raises(DataRefused) as refused:
        read_table(STUDY, source(tmp_path, HEADER + GOOD + "50\n" + GOOD))
    assert "as many fields as the header" in str(refused.value.local)


def test_parquet_with_its_own_types_means_the_same(tmp_path: Path) -> None:
    csv = source(tmp_path, HEADER + GOOD)
    parquet = tmp_path / "site.parquet"
    with duckdb.connect() as database:
        database.execute(
            "COPY (SELECT age::DOUBLE AS age, sex::DOUBLE AS sex, trestbps::INT AS trestbps, "  # noqa: S608 - our own file
            f"disease = 1 AS disease, split FROM read_csv('{csv.path}')) TO '{parquet}' (FORMAT parquet)"
        )
    one, two = read_table(STUDY, csv), read_table(STUDY, DataSource(path=str(parquet)))
    for name in ("age", "sex", "trestbps"):
        assert one.train.columns[name].tolist()[0] == two.train.columns[name].tolist()[0]
    assert one.train.labels.tolist() == two.train.labels.tolist()
    assert one.test.columns["age"].tolist() == two.test.columns["age"].tolist()


def test_one_table_of_all_sites_is_read_by_its_site_column(tmp_path: Path) -> None:
    lines = GOOD.splitlines()
    text = HEADER.replace("split", "split,hospital") + "".join(
        f"{line},{hospital}\n" for line, hospital in zip(lines * 2, ["1", "1", "1", "2.0", "2.0", "2.0"], strict=True)
    )
    path = source(tmp_path, text).path
    assert len(read_table(STUDY, DataSource(path=path, site_column="hospital", site_value="2")).train) == 2
    with pytest.raises(DataRefused) as caught:
        read_table(STUDY, DataSource(path=path, site_column="hospital", site_value="3"))
    assert caught.value.code == "NO_TRAINING_ROWS"
    with pytest.raises(DataRefused) as caught:
        read_table(STUDY, DataSource(path=path, site_column="clinic", site_value="3"))
    assert (caught.value.code, caught.value.column) == ("COLUMN_MISSING", "clinic")


def test_rows_are_numbered_as_in_the_file_even_with_a_site_column(tmp_path: Path) -> None:
    text = "age,sex,trestbps,disease,split,h\n50,0,120,0,train,a\n50,0,120,0,train,b\n500,0,120,0,train,b\n"
    with pytest.raises(DataRefused) as caught:
        read_table(STUDY, DataSource(path=source(tmp_path, text).path, site_column="h", site_value="b"))
    assert caught.value.rows == (3,)


def test_a_share_is_set_aside_stratified_and_repeatable(tmp_path: Path) -> None:
    lines = [f"{20 + i % 80},{i % 2},120,{int(i % 5 == 0)}\n" for i in range(200)]
    where = source(tmp_path, "age,sex,trestbps,disease\n" + "".join(lines))
    table = read_table(BY_SHARE, where)
    assert len(table.test) == 60
    assert int(table.test.labels.sum()) == 12
    again = read_table(BY_SHARE, where)
    assert table.test.columns["age"].tolist() == again.test.columns["age"].tolist()
    other = parse_study(TEXT.replace("{column: split, train: train, test: test}", "{test: 0.3, seed: 8}"))
    assert table.test.columns["age"].tolist() != read_table(other, where).test.columns["age"].tolist()


def test_names_and_levels_with_quotes_are_only_text(tmp_path: Path) -> None:
    text = TEXT.replace('"0", "1"', '"it\'s", "1); DROP TABLE x; --"')
    table = read_table(
        parse_study(text), source(tmp_path, HEADER + "50,it's,120,0,train\n50,1); DROP TABLE x; --,1e2,0,train\n")
    )
    assert table.train.columns["sex"].tolist() == [0, 1]
    assert table.train.columns["trestbps"].tolist() == [120, 100]
