"""The page on faults names every row of the yard, and no other."""

import re
from pathlib import Path

from tests.integration.faults.test_faults_on_real_parts import ROWS
from tests.integration.faults.yard import Yard

PAGE = Path(__file__).parents[3] / "contracts" / "faults.md"


def test_every_row_is_on_the_page_and_its_tables_name_no_other() -> None:
    page = PAGE.read_text()
    rows = {row.name for row in ROWS}
    assert {name for name in rows if f"`{name}`" not in page} == set()
    tables = "".join(line for line in page.splitlines() if line.startswith("|"))
    assert set(re.findall(r"`([a-z]+(?:-[a-z]+)*)`", tables)) <= rows


def test_every_fault_is_one_that_the_yard_can_do() -> None:
    assert [fault for row in ROWS for fault in row.faults if not callable(getattr(Yard, fault.what, None))] == []
