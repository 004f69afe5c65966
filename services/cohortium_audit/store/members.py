"""Who may speak: sites' keys, and the manifests that say whose study is whose."""

from dataclasses import dataclass

import sqlalchemy as sa

from cohortium_audit.store.tables import manifest_table, site_key_table
from cohortium_kit.db import Tx
from cohortium_messages.governance import Manifest
from cohortium_messages.ids import SiteId, StudyId

_REVOKED = sa.select(site_key_table.c.site_id).where(site_key_table.c.revoked.is_(True))


@dataclass(frozen=True, slots=True)
class SiteKey:
    """Whose key is whose, as enrolment said."""

    site_id: SiteId
    name: str
    identity_pk: bytes
    revoked: bool


async def site_keys(tx: Tx) -> list[SiteKey]:
    """Every site that enrolment ever announced."""
    keys = site_key_table.c
    rows = await tx.rows(sa.select(keys.site_id, keys.name, keys.identity_pk, keys.revoked))
    return [SiteKey(SiteId(row.site_id), row.name, row.identity_pk, row.revoked) for row in rows]


async def add_site_key(tx: Tx, key: SiteKey) -> bool:
    """Record a site's key. One that is known already stays as it is, and revoked stays revoked: then False."""
    known = await tx.scalar(sa.select(site_key_table.c.revoked).where(site_key_table.c.site_id == key.site_id))
    if known is None:
        values = {"site_id": key.site_id, "name": key.name, "identity_pk": key.identity_pk, "revoked": key.revoked}
        values |= {"updated_at": tx.now, "updated_by": "add_site_key"}
        await tx.execute(sa.insert(site_key_table).values(values))
    return not known


async def revoke_site_key(tx: Tx, site_id: SiteId) -> None:
    """Mark a site's key as void; before its key is known, too, for another instance may have that message in hand."""
    changed = {"revoked": True, "updated_at": tx.now, "updated_by": "revoke_site_key"}
    done = await tx.execute(sa.update(site_key_table).where(site_key_table.c.site_id == site_id).values(changed))
    if done.rowcount == 0:
        await tx.execute(
            sa.insert(site_key_table).values({"site_id": site_id, "name": "", "identity_pk": b""} | changed)
        )


async def revoked_sites(tx: Tx) -> frozenset[SiteId]:
    """The sites whose keys are void."""
    return frozenset(SiteId(row.site_id) for row in await tx.rows(_REVOKED))


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
