"""What sites say of their machines, from their trials: used until the scheduler knows their times itself."""

from functools import lru_cache

import sqlalchemy as sa

from cohortium_kit.consumer import Received
from cohortium_kit.db import Tx
from cohortium_messages.ids import SiteId
from cohortium_messages.preflight import Capacity, PreflightReport
from cohortium_scheduler.handlers.desk import only_site
from cohortium_scheduler.store import capacity_table as table


async def on_preflight(tx: Tx, received: Received[PreflightReport]) -> None:
    """Keep the newest declaration of this site; an older one that comes late changes nothing."""
    report = received.message
    only_site(received, report.site_id)
    made_at = report.made_at.timestamp()
    known = await tx.scalar(sa.select(table.c.made_at).where(table.c.site_id == report.site_id))
    if known is not None and known > made_at:
        return
    values = {
        "made_at": made_at,
        "capacity_json": report.capacity.model_dump_json(),
        "updated_at": tx.now,
        "updated_by": tx.name,
    }
    if known is None:
        await tx.execute(sa.insert(table).values(site_id=report.site_id, **values))
    else:
        await tx.execute(sa.update(table).where(table.c.site_id == report.site_id).values(values))


async def capacities_of(tx: Tx) -> dict[SiteId, Capacity]:
    """What each site says of itself, where it did."""
    rows = await tx.rows(sa.select(table.c.site_id, table.c.capacity_json))
    return {SiteId(row.site_id): _capacity(row.capacity_json) for row in rows}


@lru_cache(maxsize=4096)
def _capacity(text: str) -> Capacity:
    return Capacity.model_validate_json(text)
