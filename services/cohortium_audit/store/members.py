"""Who may speak: sites' keys (`site_keys`), and the manifests that say whose study is whose."""

import sqlalchemy as sa

from cohortium_audit.store.tables import manifest_table, site_keys
from cohortium_kit.db import Tx
from cohortium_messages.governance import Manifest
from cohortium_messages.ids import SiteId, StudyId

__all__ = ["add_manifest", "all_members", "manifests", "site_keys"]


async def manifests(tx: Tx, study_id: StudyId) -> list[Manifest]:
    """Every version of a study's manifest, the first one first."""
    query = sa.select(manifest_table.c.manifest_json).where(manifest_table.c.study_id == study_id)
    rows = await tx.rows(query.order_by(manifest_table.c.version))
    return [Manifest.model_validate_json(row.manifest_json) for row in rows]


async def all_members(tx: Tx) -> dict[StudyId, frozenset[SiteId]]:
    """Every site that was ever a member, by study."""
    members: dict[StudyId, frozenset[SiteId]] = {}
    for row in await tx.rows(sa.select(manifest_table.c.study_id, manifest_table.c.manifest_json)):
        manifest = Manifest.model_validate_json(row.manifest_json)
        sites = frozenset(member.site_id for member in manifest.members)
        members[StudyId(row.study_id)] = members.get(StudyId(row.study_id), frozenset()) | sites
    return members


async def add_manifest(tx: Tx, manifest: Manifest) -> None:
    """Record a new version. A manifest never changes."""
    values = {
        "study_id": manifest.study_id,
        "version": manifest.version,
        "manifest_json": manifest.model_dump_json(),
        "created_at": tx.now,
    }
    await tx.execute(sa.insert(manifest_table).values(values))
