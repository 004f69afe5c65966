"""Pages of a list: in order, without a gap, whatever is added in between."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from cohortium_kit.db import Database
from cohortium_kit.paging import CursorUnknown, behind, page_of

table = sa.Table("thing", sa.MetaData(), sa.Column("name", sa.Text, primary_key=True), sa.Column("at", sa.Double))
MOMENTS = {"a": 3.0, "b": 1.0, "c": 1.0, "d": 1.0, "e": 2.5, "f": 0.1 + 0.2, "g": 0.3}


@pytest.fixture
async def db(tmp_path: Path) -> AsyncIterator[Database]:
    opened = Database(f"sqlite:///{tmp_path}/things.db", schema="things")
    async with opened.transaction("make") as tx:
        await tx.execute(sa.schema.CreateTable(table))
        await tx.execute(sa.insert(table), [{"name": name, "at": at} for name, at in MOMENTS.items()])
    yield opened
    await opened.close()


async def read(db: Database, limit: int, after: str | None, *, newest_first: bool) -> tuple[list[str], str | None]:
    query = sa.select(table.c.name)
    order = [table.c.at, table.c.name]
    async with db.reading("page") as tx:
        if after is not None:
            query = query.where(await behind(tx, table.c.at, table.c.name, after, newest_first=newest_first))
        rows = await tx.rows(query.order_by(*[one.desc() if newest_first else one for one in order]).limit(limit + 1))
    page = page_of(rows, limit, lambda row: str(row.name), str)
    return list(page.items), page.next


@pytest.mark.parametrize("newest_first", [False, True])
@pytest.mark.parametrize("limit", [1, 2, 3, 7, 8])
async def test_all_pages_together_are_the_list(db: Database, limit: int, newest_first: bool) -> None:
    told, after = list[str](), None
    for _ in range(len(MOMENTS)):
        items, after = await read(db, limit, after, newest_first=newest_first)
        assert 0 < len(items) <= limit
        told += items
        if after is None:
            break
    assert after is None
    assert told == sorted(MOMENTS, key=lambda name: (MOMENTS[name], name), reverse=newest_first)


async def test_what_is_added_in_between_moves_nothing(db: Database) -> None:
    first, after = await read(db, 3, None, newest_first=True)
    async with db.transaction("add") as tx:
        await tx.execute(sa.insert(table).values(name="new", at=9.0))
    second, _ = await read(db, 3, after, newest_first=True)
    assert first == ["a", "e", "d"]
    assert second == ["c", "b", "f"]


async def test_a_page_behind_nothing_known_is_refused_and_is_not_an_end(db: Database) -> None:
    with pytest.raises(CursorUnknown, match="begin again"):
        await read(db, 3, "nobody", newest_first=False)


@given(st.lists(st.integers(), max_size=9, unique=True), st.integers(1, 9))
def test_a_page_says_whether_there_is_more(found: list[int], limit: int) -> None:
    page = page_of(found[: limit + 1], limit, str, str)
    assert [int(one) for one in page.items] == found[:limit]
    assert (page.next is not None) == (len(found) > limit)
    assert page.next is None or page.next == page.items[-1]
