"""Enrolment's tables, and one function per thing that is read or written. Rows go in and out as domain objects."""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, assert_never

import sqlalchemy as sa

from cohortium_enrolment.domain.passes import Pass
from cohortium_enrolment.domain.sites import Active, Invited, Lapsed, Revoked, Site
from cohortium_kit import manifests
from cohortium_kit.db import Tx
from cohortium_kit.paging import behind
from cohortium_messages.governance import Manifest
from cohortium_messages.ids import SiteId, StudyId
from cohortium_messages.rights import Standing

metadata = sa.MetaData()

site_table = sa.Table(
    "site",
    metadata,
    sa.Column("site_id", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("identity_pk", sa.LargeBinary),
    sa.Column("sealed_token", sa.LargeBinary),
    sa.Column("expires_at", sa.Double),
    sa.Column("since", sa.Double),
    sa.Column("reason", sa.Text),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("updated_at", sa.Double, nullable=False),
    sa.Column("updated_by", sa.Text, nullable=False),
)
manifest_table = sa.Table(
    "manifest",
    metadata,
    sa.Column("study_id", sa.Text, primary_key=True),
    sa.Column("version", sa.BigInteger, primary_key=True),
    sa.Column("manifest_hash", sa.LargeBinary, nullable=False),
    sa.Column("manifest_json", sa.Text, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
)

pass_table = sa.Table(
    "broker_pass",
    metadata,
    sa.Column("site_id", sa.Text, primary_key=True),
    sa.Column("nonce", sa.LargeBinary, primary_key=True),
    sa.Column("standing", sa.Text, primary_key=True),
    sa.Column("issued_at", sa.Double, nullable=False),
    sa.Column("ends_at", sa.Double, nullable=False),
    sa.Column("first_seen", sa.Double, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
)

preflight_table = sa.Table(
    "preflight",
    metadata,
    sa.Column("site_id", sa.Text, primary_key=True),
    sa.Column("report_json", sa.Text, nullable=False),
    sa.Column("received_at", sa.Double, nullable=False),
    sa.Column("updated_by", sa.Text, nullable=False),
    sa.Column("recorded_at", sa.Double),
)

_PASS_COLUMNS = (
    pass_table.c.site_id,
    pass_table.c.nonce,
    pass_table.c.standing,
    pass_table.c.issued_at,
    pass_table.c.ends_at,
    pass_table.c.first_seen,
)
_COLUMNS = (
    site_table.c.site_id,
    site_table.c.name,
    site_table.c.state,
    site_table.c.identity_pk,
    site_table.c.sealed_token,
    site_table.c.expires_at,
    site_table.c.since,
    site_table.c.reason,
)


async def site(tx: Tx, site_id: SiteId) -> Site | None:
    """One site, or None if no invitation was ever made for it."""
    row = await tx.row(sa.select(*_COLUMNS).where(site_table.c.site_id == site_id))
    return None if row is None else _site(row)


async def sites(tx: Tx) -> list[Site]:
    """Every site, the oldest invitation first."""
    query = sa.select(*_COLUMNS).order_by(site_table.c.created_at, site_table.c.site_id)
    return [_site(row) for row in await tx.rows(query)]


async def sites_page(
    tx: Tx, limit: int, *, only: Iterable[SiteId] | None = None, after: SiteId | None = None
) -> list[Site]:
    """So many sites, of these or of all, the oldest invitation first, behind the one `after`. Raises
    `CursorUnknown`."""
    known = site_table.c
    query = sa.select(*_COLUMNS).order_by(known.created_at, known.site_id).limit(limit)
    if only is not None:
        query = query.where(known.site_id.in_(list(only)))
    if after is not None:
        query = query.where(await behind(tx, known.created_at, known.site_id, after))
    return [_site(row) for row in await tx.rows(query)]


async def sites_named(tx: Tx, name: str) -> list[Site]:
    """Every site that has or had this name."""
    return [_site(row) for row in await tx.rows(sa.select(*_COLUMNS).where(site_table.c.name == name))]


async def sites_with_ids(tx: Tx, ids: Iterable[SiteId]) -> dict[SiteId, Site]:
    """Those of these sites that are known."""
    rows = await tx.rows(sa.select(*_COLUMNS).where(site_table.c.site_id.in_(list(ids))))
    return {SiteId(row.site_id): _site(row) for row in rows}


async def add_site(tx: Tx, new: Site, by: str) -> None:
    """Record a site that is not there yet."""
    values = {"site_id": new.site_id, "created_at": tx.now, "updated_at": tx.now, "updated_by": by, **_values(new)}
    await tx.execute(sa.insert(site_table).values(values))


async def save_site(tx: Tx, changed: Site, by: str) -> None:
    """Write a known site's state. What the state does not hold (a used token) is gone from the row."""
    statement = sa.update(site_table).where(site_table.c.site_id == changed.site_id)
    await tx.execute(statement.values(updated_at=tx.now, updated_by=by, **_values(changed)))


async def wipe_expired_tokens(tx: Tx) -> int:
    """Delete the tokens of invitations that are over; returns how many. The invitations stay on record."""
    statement = sa.update(site_table).where(
        site_table.c.state == "invited",
        site_table.c.expires_at <= tx.now,
        site_table.c.sealed_token != b"",
    )
    done = await tx.execute(statement.values(sealed_token=b"", updated_at=tx.now, updated_by="wipe_expired_tokens"))
    return done.rowcount


async def passes(tx: Tx, site_id: SiteId) -> list[Pass]:
    """Every pass of this site that is on record, the newest first."""
    query = sa.select(*_PASS_COLUMNS).where(pass_table.c.site_id == site_id)
    return [_pass(row) for row in await tx.rows(query.order_by(pass_table.c.first_seen.desc()))]


async def all_passes(tx: Tx) -> dict[SiteId, list[Pass]]:
    """Every pass that has not ended, by site."""
    found: dict[SiteId, list[Pass]] = {}
    for row in await tx.rows(sa.select(*_PASS_COLUMNS).where(pass_table.c.ends_at > tx.now)):
        found.setdefault(SiteId(row.site_id), []).append(_pass(row))
    return found


async def add_pass(tx: Tx, new: Pass) -> None:
    """Record a pass that is not there yet."""
    values = {
        "site_id": new.site_id,
        "nonce": new.nonce,
        "standing": new.standing.value,
        "issued_at": new.issued_at.timestamp(),
        "ends_at": new.ends_at.timestamp(),
        "first_seen": new.first_seen.timestamp(),
        "created_at": tx.now,
    }
    await tx.execute(sa.insert(pass_table).values(values))


async def forget_passes(tx: Tx, older_than_s: float) -> int:
    """Delete passes that ended so long ago; returns how many."""
    done = await tx.execute(sa.delete(pass_table).where(pass_table.c.ends_at < tx.now - older_than_s))
    return done.rowcount


async def latest_manifest(tx: Tx, study_id: StudyId) -> Manifest | None:
    """The study's newest manifest."""
    return await manifests.newest_manifest(tx, manifest_table, study_id)


async def manifest_version(tx: Tx, study_id: StudyId, version: int) -> Manifest | None:
    """One version of a study's manifest."""
    return await manifests.manifest_version(tx, manifest_table, study_id, version)


async def add_manifest(tx: Tx, manifest: Manifest, digest: bytes) -> None:
    """Record a new version. A manifest never changes."""
    values = {
        "study_id": manifest.study_id,
        "version": manifest.version,
        "manifest_hash": digest,
        "manifest_json": manifest.model_dump_json(),
        "created_at": tx.now,
    }
    await tx.execute(sa.insert(manifest_table).values(values))


def _values(site: Site) -> dict[str, Any]:
    values: dict[str, Any] = dict.fromkeys(("identity_pk", "sealed_token", "expires_at", "since", "reason"))
    values["name"] = site.name
    match site:
        case Invited():
            values |= {"state": "invited", "sealed_token": site.sealed_token, "expires_at": site.expires_at.timestamp()}
        case Lapsed():
            values |= {"state": "lapsed"}
        case Active():
            values |= {"state": "active", "identity_pk": site.identity_pk, "since": site.since.timestamp()}
        case Revoked():
            values |= {"state": "revoked", "identity_pk": site.identity_pk}
            values |= {"reason": site.reason, "since": site.at.timestamp()}
        case _:
            assert_never(site)
    return values


def _site(row: sa.Row[Any]) -> Site:
    site_id = SiteId(row.site_id)
    match row.state:
        case "invited":
            return Invited(site_id, row.name, _moment(row.expires_at), row.sealed_token)
        case "lapsed":
            return Lapsed(site_id, row.name)
        case "active":
            return Active(site_id, row.name, row.identity_pk, _moment(row.since))
        case "revoked":
            return Revoked(site_id, row.name, row.identity_pk, row.reason, _moment(row.since))
        case _:
            raise ValueError(f"site {site_id} has a state of no known name")


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _pass(row: sa.Row[Any]) -> Pass:
    times = _moment(row.issued_at), _moment(row.ends_at), _moment(row.first_seen)
    return Pass(SiteId(row.site_id), row.nonce, Standing(row.standing), *times)
