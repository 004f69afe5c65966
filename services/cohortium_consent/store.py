"""Consent's tables, and one function per thing that is read or written. Rows go in and out as domain objects.

The signed documents themselves are kept beside what was read from them: they are what can be shown later.
"""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, assert_never

import sqlalchemy as sa
from pydantic import TypeAdapter

from cohortium_consent.domain import Grant, Granted, GrantRecord, Membership, Superseded, Withdrawn
from cohortium_kit.consent_records import ConsentRecords
from cohortium_kit.db import Tx
from cohortium_kit.manifests import newest_manifest
from cohortium_kit.paging import behind
from cohortium_kit.site_keys import SiteKeys
from cohortium_messages.governance import AuthoriseAsked, GrantWithdrawn, Manifest, PartPrice, SiteGrant
from cohortium_messages.ids import RunId, SiteId, StudyId
from cohortium_messages.ledger import LedgerStatement

metadata = sa.MetaData()

site_keys = SiteKeys(metadata)
manifest_table = sa.Table(
    "manifest",
    metadata,
    sa.Column("study_id", sa.Text, primary_key=True),
    sa.Column("version", sa.BigInteger, primary_key=True),
    sa.Column("study_digest", sa.LargeBinary, nullable=False),
    sa.Column("manifest_json", sa.Text, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
)
grant_table = sa.Table(
    "site_grant",
    metadata,
    sa.Column("grant_digest", sa.LargeBinary, primary_key=True),
    sa.Column("study_id", sa.Text, nullable=False),
    sa.Column("study_digest", sa.LargeBinary, nullable=False),
    sa.Column("site_id", sa.Text, nullable=False),
    sa.Column("grant_json", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("ended_at", sa.Double),
    sa.Column("ended_reason", sa.Text),
    sa.Column("announced", sa.Boolean, nullable=False),
    sa.Column("recorded_at", sa.Double, nullable=False),
    sa.Column("updated_at", sa.Double, nullable=False),
    sa.Column("updated_by", sa.Text, nullable=False),
)
withdrawal_table = sa.Table(
    "withdrawal",
    metadata,
    sa.Column("study_digest", sa.LargeBinary, primary_key=True),
    sa.Column("site_id", sa.Text, primary_key=True),
    sa.Column("effective_at", sa.Double, nullable=False),
    sa.Column("withdrawal_json", sa.Text, nullable=False),
    sa.Column("updated_at", sa.Double, nullable=False),
    sa.Column("updated_by", sa.Text, nullable=False),
)

statement_table = sa.Table(
    "ledger_statement",
    metadata,
    sa.Column("site_id", sa.Text, primary_key=True),
    sa.Column("run_id", sa.Text, primary_key=True),
    sa.Column("part", sa.Text, primary_key=True),
    sa.Column("reason", sa.Text, primary_key=True),
    sa.Column("first_step", sa.BigInteger, primary_key=True),
    sa.Column("attempt", sa.BigInteger, primary_key=True),
    sa.Column("study_id", sa.Text, nullable=False),
    sa.Column("statement_json", sa.Text, nullable=False),
    sa.Column("recorded_at", sa.Double, nullable=False),
)
price_table = sa.Table(
    "run_price",
    metadata,
    sa.Column("run_id", sa.Text, primary_key=True),
    sa.Column("study_id", sa.Text, nullable=False),
    sa.Column("study_digest", sa.LargeBinary, nullable=False),
    sa.Column("prices_json", sa.Text, nullable=False),
    sa.Column("recorded_at", sa.Double, nullable=False),
)
consent_records = ConsentRecords(metadata)
_PRICES: TypeAdapter[tuple[PartPrice, ...]] = TypeAdapter(tuple[PartPrice, ...])


# Manifests


async def latest_manifest(tx: Tx, study_id: StudyId) -> Manifest | None:
    """The study's newest manifest."""
    return await newest_manifest(tx, manifest_table, study_id)


async def add_manifest(tx: Tx, manifest: Manifest) -> None:
    """Record a new version. A manifest never changes."""
    values = {
        "study_id": manifest.study_id,
        "version": manifest.version,
        "study_digest": manifest.study_digest,
        "manifest_json": manifest.model_dump_json(),
        "created_at": tx.now,
    }
    await tx.execute(sa.insert(manifest_table).values(values))


async def membership(tx: Tx, study_id: StudyId) -> Membership | None:
    """Who the members of a study are now."""
    manifest = await latest_manifest(tx, study_id)
    if manifest is None:
        return None
    members = frozenset(member.site_id for member in manifest.members)
    return Membership(study_id, manifest.study_digest, manifest.version, members)


# Grants

_GRANT_COLUMNS = (
    grant_table.c.grant_digest,
    grant_table.c.grant_json,
    grant_table.c.state,
    grant_table.c.ended_at,
    grant_table.c.ended_reason,
)


async def grant_with_digest(tx: Tx, grant_digest: bytes) -> GrantRecord | None:
    """One grant by its digest."""
    row = await tx.row(sa.select(*_GRANT_COLUMNS).where(grant_table.c.grant_digest == grant_digest))
    return None if row is None else _record(row)


async def signed_grants(tx: Tx, digests: Iterable[bytes]) -> dict[bytes, SiteGrant]:
    """The documents that hospitals signed, by their digests."""
    query = sa.select(grant_table.c.grant_digest, grant_table.c.grant_json)
    rows = await tx.rows(query.where(grant_table.c.grant_digest.in_(list(digests))))
    return {row.grant_digest: SiteGrant.model_validate_json(row.grant_json) for row in rows}


async def grants_of(tx: Tx, study_id: StudyId) -> list[SiteGrant]:
    """Every grant that was ever recorded for a study as the hospital signed it, the oldest first."""
    query = sa.select(grant_table.c.grant_json).where(grant_table.c.study_id == study_id)
    rows = await tx.rows(query.order_by(grant_table.c.recorded_at, grant_table.c.grant_digest))
    return [SiteGrant.model_validate_json(row.grant_json) for row in rows]


async def records(
    tx: Tx, study_id: StudyId, limit: int, *, sites: Iterable[SiteId] | None = None, after: bytes | None = None
) -> list[GrantRecord]:
    """Grants that were ever recorded for a study, of these sites or of all, the oldest first: so many, behind the one
    with the digest `after`. Raises `CursorUnknown`."""
    known = grant_table.c
    query = sa.select(*_GRANT_COLUMNS).where(known.study_id == study_id)
    if sites is not None:
        query = query.where(known.site_id.in_(list(sites)))
    if after is not None:
        query = query.where(await behind(tx, known.recorded_at, known.grant_digest, after))
    rows = await tx.rows(query.order_by(known.recorded_at, known.grant_digest).limit(limit))
    return [_record(row) for row in rows]


async def current_records(tx: Tx, study_digest: bytes, sites: Iterable[SiteId]) -> dict[SiteId, GrantRecord]:
    """For each of these sites the grant that counts: the one in force, or the last that was withdrawn."""
    query = sa.select(*_GRANT_COLUMNS).where(
        grant_table.c.study_digest == study_digest, grant_table.c.site_id.in_(list(sites))
    )
    found: dict[SiteId, GrantRecord] = {}
    for row in await tx.rows(query.order_by(grant_table.c.recorded_at, grant_table.c.grant_digest)):
        record = _record(row)
        counts = found.get(record.grant.site_id)
        if counts is None or not isinstance(counts, Granted):
            found[record.grant.site_id] = record
    return found


async def granted(
    tx: Tx, *, site_id: SiteId | None = None, study_id: StudyId | None = None, announced: bool | None = None
) -> list[Granted]:
    """The grants in force, as far as they were never ended: of a site, of a study, announced or not."""
    query = sa.select(*_GRANT_COLUMNS).where(grant_table.c.state == "granted")
    if site_id is not None:
        query = query.where(grant_table.c.site_id == site_id)
    if study_id is not None:
        query = query.where(grant_table.c.study_id == study_id)
    if announced is not None:
        query = query.where(grant_table.c.announced.is_(announced))
    rows = await tx.rows(query.order_by(grant_table.c.recorded_at, grant_table.c.grant_digest))
    return [record for record in map(_record, rows) if isinstance(record, Granted)]


async def add_record(tx: Tx, record: GrantRecord, signed: SiteGrant) -> None:
    """Record a grant that is not there yet, with the document that the hospital signed."""
    values = {
        "grant_digest": record.grant.grant_digest,
        "study_id": record.grant.study_id,
        "study_digest": record.grant.study_digest,
        "site_id": record.grant.site_id,
        "grant_json": signed.model_dump_json(),
        "announced": False,
        "recorded_at": tx.now,
        "updated_at": tx.now,
        "updated_by": "add_record",
        **_state_values(record),
    }
    await tx.execute(sa.insert(grant_table).values(values))


async def save_record(tx: Tx, record: GrantRecord, by: str) -> None:
    """Write a known grant's state."""
    statement = sa.update(grant_table).where(grant_table.c.grant_digest == record.grant.grant_digest)
    await tx.execute(statement.values(updated_at=tx.now, updated_by=by, **_state_values(record)))


async def mark_announced(tx: Tx, grants: Sequence[Grant], *, announced: bool = True) -> None:
    """Remember that the scheduler was told of these; or that it was told that they do not count for now."""
    digests = [grant.grant_digest for grant in grants]
    statement = sa.update(grant_table).where(grant_table.c.grant_digest.in_(digests))
    await tx.execute(statement.values(announced=announced, updated_at=tx.now, updated_by="mark_announced"))


# Withdrawals


async def withdrawn_at(tx: Tx, study_digest: bytes, site_id: SiteId) -> datetime | None:
    """Since when the site's withdrawal from this study version counts, if there is one."""
    query = sa.select(withdrawal_table.c.effective_at).where(
        withdrawal_table.c.study_digest == study_digest, withdrawal_table.c.site_id == site_id
    )
    seconds = await tx.scalar(query)
    return None if seconds is None else _moment(seconds)


async def withdrawals_of(tx: Tx, study_id: StudyId) -> list[GrantWithdrawn]:
    """Each hospital's latest withdrawal from each version of a study, as it signed it."""
    rows = await tx.rows(sa.select(withdrawal_table.c.withdrawal_json).order_by(withdrawal_table.c.site_id))
    signed = [GrantWithdrawn.model_validate_json(row.withdrawal_json) for row in rows]
    return [one for one in signed if one.study_id == study_id]


async def save_withdrawal(tx: Tx, signed: GrantWithdrawn, effective_at: datetime) -> None:
    """Record a site's latest withdrawal from a study version, with the document that the hospital signed."""
    key = sa.and_(withdrawal_table.c.study_digest == signed.study_digest, withdrawal_table.c.site_id == signed.site_id)
    values = {"effective_at": effective_at.timestamp(), "withdrawal_json": signed.model_dump_json()}
    values |= {"updated_at": tx.now, "updated_by": "save_withdrawal"}
    changed = await tx.execute(sa.update(withdrawal_table).where(key).values(values))
    if changed.rowcount == 0:
        values |= {"study_digest": signed.study_digest, "site_id": signed.site_id}
        await tx.execute(sa.insert(withdrawal_table).values(values))


# Privacy budgets


async def add_statement(tx: Tx, statement: LedgerStatement) -> None:
    """Record what a hospital signed about its ledger. The same words again are the same row."""
    key = {
        "site_id": statement.site_id,
        "run_id": statement.run_id,
        "part": statement.part,
        "reason": statement.reason,
        "first_step": statement.first_step,
        "attempt": statement.attempt,
    }
    known = sa.and_(*(statement_table.c[name] == value for name, value in key.items()))
    if await tx.scalar(sa.select(statement_table.c.study_id).where(known)) is None:
        values = key | {"study_id": statement.study_id, "statement_json": statement.model_dump_json()}
        await tx.execute(sa.insert(statement_table).values(values | {"recorded_at": tx.now}))


async def statements(tx: Tx, sites: Iterable[SiteId] | None = None) -> list[LedgerStatement]:
    """All that these sites, or any, ever said of their ledgers, the oldest first."""
    query = sa.select(statement_table.c.statement_json).order_by(statement_table.c.recorded_at)
    if sites is not None:
        query = query.where(statement_table.c.site_id.in_(list(sites)))
    return [LedgerStatement.model_validate_json(row.statement_json) for row in await tx.rows(query)]


async def sites_with_statements(tx: Tx, after: SiteId | None, limit: int) -> list[SiteId]:
    """Sites that ever said something of their ledgers, in the order of their ids: so many, behind `after`."""
    site_id = statement_table.c.site_id
    query = sa.select(site_id).distinct().order_by(site_id).limit(limit)
    rows = await tx.rows(query if after is None else query.where(site_id > after))
    return [SiteId(row.site_id) for row in rows]


async def save_prices(tx: Tx, asked: AuthoriseAsked) -> None:
    """Remember what a run costs; it is fixed before its first question."""
    if await tx.scalar(sa.select(price_table.c.run_id).where(price_table.c.run_id == asked.run_id)) is None:
        values = {"run_id": asked.run_id, "study_id": asked.study_id, "study_digest": asked.study_digest}
        values |= {"prices_json": _PRICES.dump_json(asked.prices).decode(), "recorded_at": tx.now}
        await tx.execute(sa.insert(price_table).values(values))


async def run_prices(tx: Tx) -> dict[RunId, tuple[PartPrice, ...]]:
    """What each private run costs."""
    rows = await tx.rows(sa.select(price_table.c.run_id, price_table.c.prices_json))
    return {RunId(row.run_id): _PRICES.validate_json(row.prices_json) for row in rows}


def grant_of(signed: SiteGrant, grant_digest: bytes) -> Grant:
    """The domain's view of a signed grant."""
    return Grant(
        study_id=signed.study_id,
        study_digest=signed.study_digest,
        site_id=signed.site_id,
        grant_digest=grant_digest,
        not_before=signed.not_before,
        not_after=signed.not_after,
        max_rounds=signed.max_rounds,
        approvers=signed.approvers,
    )


def _state_values(record: GrantRecord) -> dict[str, Any]:
    match record:
        case Granted():
            return {"state": "granted", "ended_at": None, "ended_reason": None}
        case Superseded():
            return {"state": "superseded", "ended_at": None, "ended_reason": None}
        case Withdrawn():
            return {"state": "withdrawn", "ended_at": record.at.timestamp(), "ended_reason": record.reason}
        case _:
            assert_never(record)


def _record(row: sa.Row[Any]) -> GrantRecord:
    grant = grant_of(SiteGrant.model_validate_json(row.grant_json), row.grant_digest)
    match row.state:
        case "granted":
            return Granted(grant)
        case "superseded":
            return Superseded(grant)
        case "withdrawn":
            return Withdrawn(grant, _moment(row.ended_at), row.ended_reason)
        case _:
            raise ValueError("a grant has a state of no known name")


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
