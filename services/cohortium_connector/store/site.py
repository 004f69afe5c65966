"""This site itself: who it is, whether it is registered, and how often it has saved what it must not do twice."""

from dataclasses import dataclass

import sqlalchemy as sa

from cohortium_connector.store.tables import site
from cohortium_kit.db import Tx
from cohortium_kit.tables import outbox
from cohortium_messages.ids import SiteId

# Statements of every promise, built once.
_FIND = sa.select(site.c.site_id, site.c.name, site.c.federation, site.c.registered, site.c.refused, site.c.generation)
_NEXT = (
    sa.update(site)
    .values(generation=site.c.generation + 1, updated_at=sa.bindparam("now"), updated_by=sa.bindparam("who"))
    .returning(site.c.generation)
)


@dataclass(frozen=True, slots=True)
class SiteRecord:
    """`refused`: the code of a refused registration, else empty. `generation` grows with each promise that is saved."""

    site_id: SiteId
    name: str
    federation: str
    registered: bool
    refused: str
    generation: int


async def find_site(tx: Tx) -> SiteRecord | None:
    """The one row, or None before the first start."""
    row = await tx.row(_FIND)
    if row is None:
        return None
    return SiteRecord(SiteId(row.site_id), row.name, row.federation, row.registered, row.refused, row.generation)


async def create_site(tx: Tx, site_id: SiteId, name: str, federation: str, *, by: str) -> SiteRecord:
    """Write the row of a first start."""
    record = SiteRecord(site_id, name, federation, registered=False, refused="", generation=0)
    values = {
        "site_id": site_id,
        "name": name,
        "federation": federation,
        "registered": False,
        "refused": "",
        "generation": 0,
    }
    await tx.execute(sa.insert(site).values(**values, updated_at=tx.now, updated_by=by))
    return record


async def mark_registered(tx: Tx, *, by: str) -> None:
    await tx.execute(sa.update(site).values(registered=True, refused="", updated_at=tx.now, updated_by=by))


async def mark_refused(tx: Tx, code: str, *, by: str) -> None:
    """Registration was refused; a site that is registered stays so."""
    unregistered = site.c.registered.is_(False)
    await tx.execute(sa.update(site).where(unregistered).values(refused=code, updated_at=tx.now, updated_by=by))


async def forget_refusal(tx: Tx, *, by: str) -> None:
    """A restart asks once more: perhaps with another invitation."""
    await tx.execute(sa.update(site).values(refused="", updated_at=tx.now, updated_by=by))


async def next_generation(tx: Tx, *, by: str) -> int:
    """Count one more saved promise: the number that goes in the file beside the database after the commit."""
    return int((await tx.execute(_NEXT, {"now": tx.now, "who": by})).scalar_one())


async def set_generation(tx: Tx, generation: int, *, by: str) -> None:
    await tx.execute(sa.update(site).values(generation=generation, updated_at=tx.now, updated_by=by))


async def unsent_messages(tx: Tx) -> int:
    """Messages in the outbox that the broker has not taken yet."""
    return int(await tx.scalar(sa.select(sa.func.count()).select_from(outbox).where(outbox.c.sent_at.is_(None))) or 0)
