"""Sites' keys as each service keeps them: what was revoked stays so, in whatever order it hears."""

from collections.abc import AsyncIterator
from itertools import permutations
from pathlib import Path
from typing import Literal

import pytest
import sqlalchemy as sa

from cohortium_kit.db import Database
from cohortium_kit.site_keys import SiteKey, SiteKeys
from cohortium_messages.ids import SiteId

metadata = sa.MetaData()
keys = SiteKeys(metadata)
SITE, OTHER = SiteId("5a1e3ba3-0000-4000-8000-000000000001"), SiteId("5a1e3ba3-0000-4000-8000-000000000002")
GOOD = SiteKey(SITE, "North", b"k" * 32, revoked=False)
Said = Literal["added", "added again", "revoked"]


@pytest.fixture
async def db(tmp_path: Path) -> AsyncIterator[Database]:
    opened = Database(f"sqlite:///{tmp_path}/keys.db", schema="keys")
    async with opened.transaction("make") as tx:
        for table in metadata.sorted_tables:
            await tx.execute(sa.schema.CreateTable(table))
    yield opened
    await opened.close()


async def say(db: Database, said: Said) -> bool:
    async with db.transaction("say") as tx:
        if said == "revoked":
            await keys.revoke(tx, SITE)
            return False
        return await keys.add(tx, GOOD)


@pytest.mark.parametrize("order", list(permutations(("added", "added again", "revoked"))))
async def test_a_revoked_key_never_comes_back(db: Database, order: tuple[Said, ...]) -> None:
    """The same three messages in any order: redelivered, redriven from the dead letters, or in another instance."""
    for place, said in enumerate(order):
        told_good = await say(db, said)
        assert told_good == (said != "revoked" and "revoked" not in order[:place])
    async with db.reading("test") as tx:
        assert await keys.good(tx) == {}
        assert await keys.revoked(tx) == {SITE}
        assert not await keys.is_good(tx, SITE)


async def test_a_good_key_is_told_and_the_first_one_stays(db: Database) -> None:
    await say(db, "added")
    async with db.transaction("other") as tx:
        assert await keys.add(tx, SiteKey(SITE, "North", b"x" * 32, revoked=False))
        assert await keys.add(tx, SiteKey(OTHER, "South", b"s" * 32, revoked=False))
    async with db.reading("test") as tx:
        assert await keys.good(tx) == {SITE: b"k" * 32, OTHER: b"s" * 32}
        assert await keys.one(tx, SITE) == GOOD
        assert await keys.is_good(tx, OTHER)
        assert await keys.revoked(tx) == frozenset()
        assert {one.name for one in await keys.all(tx)} == {"North", "South"}
