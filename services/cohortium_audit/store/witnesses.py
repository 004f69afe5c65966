"""How far each hospital has cosigned each log, and every cosignature."""

import json
from collections import defaultdict
from dataclasses import dataclass

import sqlalchemy as sa

from cohortium_audit.domain import LogName
from cohortium_audit.store.tables import cosignature_table, leaf_table, witness_table
from cohortium_kit.db import Tx
from cohortium_messages.events import WitnessNamed
from cohortium_messages.ids import SiteId

_WITNESSES = sa.select(
    witness_table.c.site_id,
    witness_table.c.size,
    witness_table.c.asked_size,
    witness_table.c.asked_at,
    witness_table.c.witness_key,
).where(witness_table.c.log == sa.bindparam("of_log"))
_STANDS = ("size", "asked_size", "asked_at", "witness_key", "updated_at", "updated_by")
_SAVE_WITNESS = (
    sa.update(witness_table)
    .where(witness_table.c.log == sa.bindparam("of_log"), witness_table.c.site_id == sa.bindparam("of_site"))
    .values({name: sa.bindparam(name) for name in _STANDS})
)
_COSIGNERS = sa.select(cosignature_table.c.site_id).where(
    cosignature_table.c.log == sa.bindparam("of_log"), cosignature_table.c.size == sa.bindparam("of_size")
)
_COSIGNED = sa.select(cosignature_table.c.size).where(
    cosignature_table.c.log == sa.bindparam("of_log"),
    cosignature_table.c.size == sa.bindparam("of_size"),
    cosignature_table.c.site_id == sa.bindparam("of_site"),
)
_ADD_COSIGNATURE = sa.insert(cosignature_table)


@dataclass(frozen=True, slots=True)
class Witness:
    """One hospital and one log: `size` is the largest checkpoint that it cosigned, or says that it holds. `asked_size`:
    the request that it has not answered yet, 0 without one."""

    site_id: SiteId
    size: int
    asked_size: int
    asked_at: float
    witness_key: bytes


async def witnesses(tx: Tx, log: LogName) -> dict[SiteId, Witness]:
    """Everybody who was ever asked about this log."""
    rows = await tx.rows(_WITNESSES, {"of_log": log})
    return {
        SiteId(row.site_id): Witness(SiteId(row.site_id), row.size, row.asked_size, row.asked_at, row.witness_key)
        for row in rows
    }


async def save_witness(tx: Tx, log: LogName, witness: Witness, *, by: str) -> None:
    """Write where this witness stands."""
    values = {
        "size": witness.size,
        "asked_size": witness.asked_size,
        "asked_at": witness.asked_at,
        "witness_key": witness.witness_key,
        "updated_at": tx.now,
        "updated_by": by,
    }
    done = await tx.execute(_SAVE_WITNESS, {"of_log": log, "of_site": witness.site_id, **values})
    if done.rowcount == 0:
        await tx.execute(sa.insert(witness_table).values({"log": log, "site_id": witness.site_id} | values))


async def show_witnesses(tx: Tx, log: LogName, sites: frozenset[SiteId], size: int) -> None:
    """Write that a request for the checkpoint of `size` leaves is under way to these, where none is."""
    columns = witness_table.c
    free = (columns.log == log) & (columns.asked_size == 0) & columns.site_id.in_(sorted(sites))
    values = {"asked_size": size, "asked_at": tx.now, "updated_at": tx.now, "updated_by": tx.name}
    await tx.execute(sa.update(witness_table).where(free).values(values))


async def announcements(tx: Tx, log: LogName) -> dict[tuple[SiteId, bytes], bytes]:
    """The entries in which hospitals named their witness keys, by hospital and key; the first of each."""
    columns = leaf_table.c
    query = sa.select(columns.data).where(columns.log == log, columns.type == WitnessNamed.type_name)
    found: dict[tuple[SiteId, bytes], bytes] = {}
    for row in await tx.rows(query.order_by(columns.idx)):
        named = WitnessNamed.model_validate(json.loads(row.data)["event"]["data"])
        found.setdefault((named.site_id, named.witness_key), bytes(row.data))
    return found


async def add_cosignature(tx: Tx, log: LogName, size: int, site_id: SiteId, line: str) -> None:
    """Keep a cosignature; the first one of a site over a checkpoint stays."""
    if await tx.scalar(_COSIGNED, {"of_log": log, "of_size": size, "of_site": site_id}) is None:
        values = {"log": log, "size": size, "site_id": site_id, "line": line, "created_at": tx.now}
        await tx.execute(_ADD_COSIGNATURE, values)


async def cosignatures(tx: Tx, log: LogName, least: int, most: int) -> dict[int, list[str]]:
    """The cosignature lines of every checkpoint of `least` to `most` leaves, by its size, each by site."""
    columns = cosignature_table.c
    query = sa.select(columns.size, columns.line).where(columns.log == log, columns.size.between(least, most))
    found: dict[int, list[str]] = defaultdict(list)
    for row in await tx.rows(query.order_by(columns.size, columns.site_id)):
        found[row.size].append(row.line)
    return found


async def cosigners(tx: Tx, log: LogName, size: int) -> frozenset[SiteId]:
    """Whose line there is over the checkpoint of `size` leaves."""
    rows = await tx.rows(_COSIGNERS, {"of_log": log, "of_size": size})
    return frozenset(SiteId(row.site_id) for row in rows)


async def witnessed_size(tx: Tx, log: LogName, among: frozenset[SiteId], quorum: int) -> int:
    """The largest checkpoint that `quorum` of these sites cosigned; 0 if there is none."""
    columns = cosignature_table.c
    counted = sa.func.count(columns.site_id)
    query = sa.select(columns.size).where(columns.log == log, columns.site_id.in_(sorted(among)))
    row = await tx.row(query.group_by(columns.size).having(counted >= quorum).order_by(columns.size.desc()).limit(1))
    return 0 if row is None else int(row.size)
