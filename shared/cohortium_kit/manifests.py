"""Membership manifests in a service's own table: `study_id`, `version` and `manifest_json` are in each of them."""

import sqlalchemy as sa

from cohortium_kit.db import Database, Tx
from cohortium_messages.governance import Manifest
from cohortium_messages.ids import SiteId, StudyId


async def newest_manifest(tx: Tx, table: sa.Table, study_id: StudyId) -> Manifest | None:
    """The study's membership as it is now."""
    query = sa.select(table.c.manifest_json).where(table.c.study_id == study_id)
    return _manifest(await tx.scalar(query.order_by(table.c.version.desc()).limit(1)))


async def manifest_version(tx: Tx, table: sa.Table, study_id: StudyId, version: int) -> Manifest | None:
    """One version of a study's membership, if it is known."""
    query = sa.select(table.c.manifest_json).where(table.c.study_id == study_id, table.c.version == version)
    return _manifest(await tx.scalar(query))


async def studies_of(db: Database, table: sa.Table, sites: frozenset[SiteId]) -> frozenset[StudyId]:
    """The studies in whose manifests one of these sites is or was a member."""
    named = sa.or_(*(table.c.manifest_json.contains(site) for site in sorted(sites)))
    async with db.reading("studies_of") as tx:
        rows = await tx.rows(sa.select(table.c.manifest_json).where(named))
    # A text that names a site may do so in another place than among the members.
    manifests = [Manifest.model_validate_json(row.manifest_json) for row in rows]
    return frozenset(one.study_id for one in manifests if any(member.site_id in sites for member in one.members))


def _manifest(text: str | None) -> Manifest | None:
    return None if text is None else Manifest.model_validate_json(text)
