# ruff: noqa: PT012 - a transaction is a block, and it is the block that fails
"""Statements that are built once: the driver gets them from the second use on, and nobody can tell the difference."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, IntegrityError, StatementError

from cohortium_kit._plans import Answer, Plans
from cohortium_kit.db import Database, Tx
from cohortium_kit.errors import TransactionConflict
from cohortium_kit.migrate import migrate

from .conftest import database
from .test_db import SAMPLE

metadata = sa.MetaData()
ward = sa.Table(
    "ward",
    metadata,
    sa.Column("id", sa.BigInteger, primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("beds", sa.BigInteger, nullable=False),
    sa.Column("load", sa.Double),
    sa.Column("open", sa.Boolean, nullable=False),
    sa.Column("badge", sa.LargeBinary),
    sa.Column("note", sa.Text),
)
ADD = sa.insert(ward)
FIND = sa.select(ward.c.beds, ward.c.load, ward.c.open, ward.c.badge, ward.c.note).where(
    ward.c.name == sa.bindparam("wanted"), ward.c.beds >= 0
)
FILL = sa.update(ward).where(ward.c.name == sa.bindparam("wanted")).values(beds=sa.bindparam("beds"))
COUNT = sa.select(sa.func.count(), sa.func.coalesce(sa.func.sum(ward.c.beds), 0).label("beds")).select_from(ward)
AMONG = sa.select(ward.c.name).where(ward.c.name.in_(sa.bindparam("wanted", expanding=True))).order_by(ward.c.name)
PAIRS = sa.select(ward.c.name).where(
    sa.tuple_(ward.c.name, ward.c.beds).in_(sa.bindparam("pairs", expanding=True)), ward.c.beds <= sa.bindparam("most")
)
REMOVE = sa.delete(ward).where(ward.c.name.in_(sa.bindparam("wanted", expanding=True)))
FULL = {"name": "east", "beds": 7, "load": 0.5, "open": True, "badge": b"\x00\xff", "note": None}


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.real)])
async def wards(request: pytest.FixtureRequest, namespace: str, tmp_path: Path) -> AsyncIterator[Database]:
    async with database(request, namespace, tmp_path) as made:
        await migrate(made, SAMPLE)
        yield made


async def test_every_use_of_a_statement_answers_alike(wards: Database) -> None:
    async with wards.transaction("add") as tx:
        for name in ("east", "west", "north"):
            await tx.execute(ADD, {**FULL, "name": name})
    for way in (wards.reading, wards.glance, wards.transaction):
        async with way("find") as tx:
            for _ in range(3):
                row = await tx.row(FIND, {"wanted": "west"})
                assert row is not None
                assert tuple(row) == (7, 0.5, True, b"\x00\xff", None)
                assert (row.beds, row.load, row.open, row.badge, row.note) == tuple(row)
                assert type(row.open) is bool
                assert type(row.badge) is bytes
                assert dict(row._mapping) == row._asdict() == dict(zip(row._fields, row, strict=True))
                assert await tx.row(FIND, {"wanted": "nobody"}) is None
                assert await tx.rows(FIND, {"wanted": "nobody"}) == []


async def test_the_driver_runs_it_from_the_second_use_on_but_for_what_is_not_plain(wards: Database) -> None:
    async with wards.transaction("add") as tx:
        await tx.execute(ADD, [{**FULL, "name": name} for name in ("east", "west")])
        await tx.execute(ADD, [{**FULL, "name": name} for name in ("north", "south")])
        for use in range(3):
            filled = await tx.execute(FILL, {"wanted": "south", "beds": use})
            assert filled.rowcount == 1
            assert isinstance(filled, Answer) is (use > 0)
        for _ in range(2):
            assert await tx.row(COUNT) == (4, 23)
            assert await tx.scalar(COUNT) == 4
        assert (await tx.execute(FILL, {"wanted": "nobody", "beds": 1})).rowcount == 0


async def test_a_list_has_a_text_for_each_length(wards: Database) -> None:
    async with wards.transaction("add") as tx:
        await tx.execute(ADD, [{**FULL, "name": name, "beds": beds} for beds, name in enumerate(("east", "west"))])
        for _ in range(3):
            for wanted in (["west", "east"], ["west"], [], ("east", "nobody"), ["nobody"]):
                found = [row.name for row in await tx.rows(AMONG, {"wanted": wanted})]
                assert found == sorted({"east", "west"} & set(wanted))
            pairs = [("east", 0), ("west", 0), ("west", 1)]
            assert {row.name for row in await tx.rows(PAIRS, {"pairs": pairs, "most": 7})} == {"east", "west"}
            assert {row.name for row in await tx.rows(PAIRS, {"pairs": pairs[:2], "most": 7})} == {"east"}
            assert await tx.rows(PAIRS, {"pairs": pairs, "most": -1}) == []
        assert isinstance(await tx.execute(AMONG, {"wanted": ["east"]}), Answer)
        assert isinstance(await tx.execute(PAIRS, {"pairs": pairs, "most": 7}), Answer)
        assert not isinstance(await tx.execute(AMONG, {"wanted": []}), Answer), "nothing has a text of its own"
        gone = await tx.execute(REMOVE, {"wanted": ["east", "west"]})
        assert gone.rowcount == 2


async def test_errors_are_those_of_sqlalchemy(wards: Database) -> None:
    async def twice(tx: Tx) -> None:
        await tx.execute(ADD, {**FULL, "id": 1})
        await tx.execute(ADD, {**FULL, "id": 1})

    for _ in range(3):
        with pytest.raises(IntegrityError) as caught:
            await wards.run("twice", twice)
        assert isinstance(caught.value, DBAPIError)
        assert "east" not in str(caught.value), "no value of a record in an error"
    async with wards.reading("find") as tx:
        for _ in range(3):
            with pytest.raises(StatementError):
                await tx.rows(FIND, {})
        assert await tx.scalar(COUNT) == 0, "all of them were rolled back"


@pytest.mark.real
@pytest.mark.parametrize("wards", ["postgresql"], indirect=True)
async def test_a_conflict_is_one_and_a_cancelled_statement_costs_its_connection_alone(wards: Database) -> None:
    """On SQLite no statement waits, and there is one writer."""
    async with wards.transaction("add") as tx:
        await tx.execute(ADD, FULL)
    for _ in range(2):
        with pytest.raises(TransactionConflict):
            async with wards.transaction("first") as one:
                await one.rows(COUNT)
                async with asyncio.timeout(10):
                    await asyncio.create_task(wards.run("second", lambda tx: _fill(tx, 1)))
                await one.execute(FILL, {"wanted": "east", "beds": 2})

    async def wait_behind() -> None:
        async with wards.transaction("behind") as tx:
            await _fill(tx, 3)

    async with wards.transaction("holder") as tx:
        await _fill(tx, 4)
        waiting = asyncio.create_task(wait_behind())
        await asyncio.sleep(0.2)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    async with wards.reading("after") as tx:
        row = await tx.row(FIND, {"wanted": "east"})
    assert row is not None
    assert row.beds == 4


async def _fill(tx: Tx, beds: int) -> None:
    await tx.execute(FILL, {"wanted": "east", "beds": beds})


def test_a_statement_that_is_gone_is_forgotten() -> None:
    plans = Plans(sa.create_engine("sqlite://").dialect)
    for _ in range(50):
        assert _found_again(plans, sa.select(ward.c.name).where(ward.c.beds == 1))
    assert len(plans._known) == 0


def _found_again(plans: Plans, statement: sa.Executable) -> bool:
    return plans.find(statement, None) is None and plans.find(statement, None) is not None
