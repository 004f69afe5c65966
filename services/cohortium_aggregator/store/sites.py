"""Who may speak, and who is a member."""

import sqlalchemy as sa

from cohortium_aggregator.store.tables import grant_word, manifest, site_key
from cohortium_kit.db import Tx
from cohortium_messages.governance import Manifest
from cohortium_messages.ids import SiteId, StudyId


async def save_site(tx: Tx, site_id: SiteId, name: str, identity_pk: bytes) -> None:
    """The key that speaks for a site from now on. A revoked site stays revoked under its old key."""
    known = await tx.row(sa.select(site_key.c.identity_pk).where(site_key.c.site_id == site_id))
    if known is not None and bytes(known.identity_pk) == identity_pk:
        return
    row = {
        "site_id": site_id,
        "name": name,
        "identity_pk": identity_pk,
        "revoked": False,
        "updated_at": tx.now,
        "updated_by": tx.name,
    }
    if known is None:
        await tx.execute(sa.insert(site_key).values(row))
    else:
        await tx.execute(sa.update(site_key).where(site_key.c.site_id == site_id).values(row))


async def revoke_site(tx: Tx, site_id: SiteId) -> None:
    """Nothing from this site is valid any more. Twice is once."""
    changed = {"revoked": True, "updated_at": tx.now, "updated_by": tx.name}
    await tx.execute(sa.update(site_key).where(site_key.c.site_id == site_id).values(changed))


async def good_keys(tx: Tx) -> dict[SiteId, bytes]:
    """The identity keys of all sites that are not revoked."""
    query = sa.select(site_key.c.site_id, site_key.c.identity_pk).where(site_key.c.revoked.is_(sa.false()))
    return {SiteId(row.site_id): bytes(row.identity_pk) for row in await tx.rows(query)}


async def hear_of_grant(tx: Tx, study_digest: bytes, site_id: SiteId, said_at: float, *, ended: bool) -> None:
    """Consent's word on a grant, said at this moment by consent's clock. An older word than the known one is late."""
    where = (grant_word.c.study_digest == study_digest, grant_word.c.site_id == site_id)
    known = await tx.scalar(sa.select(grant_word.c.said_at).where(*where))
    if known is not None and known > said_at:
        return
    row = {"ended": ended, "said_at": said_at, "updated_at": tx.now, "updated_by": tx.name}
    if known is None:
        await tx.execute(sa.insert(grant_word).values(study_digest=study_digest, site_id=site_id, **row))
    else:
        await tx.execute(sa.update(grant_word).where(*where).values(row))


async def left(tx: Tx, study_digest: bytes) -> frozenset[SiteId]:
    """Sites whose grant for this study version is over by consent's newest word."""
    query = sa.select(grant_word.c.site_id).where(
        grant_word.c.study_digest == study_digest, grant_word.c.ended.is_(sa.true())
    )
    return frozenset(SiteId(row.site_id) for row in await tx.rows(query))


async def save_manifest(tx: Tx, published: Manifest) -> None:
    """Keep one version of a study's membership. Twice is once."""
    where = (manifest.c.study_id == published.study_id, manifest.c.version == published.version)
    if await tx.row(sa.select(manifest.c.version).where(*where)) is None:
        row = {
            "study_id": published.study_id,
            "version": published.version,
            "manifest_json": published.model_dump_json(),
        }
        await tx.execute(sa.insert(manifest).values(row))


async def newest_manifest(tx: Tx, study_id: StudyId) -> Manifest | None:
    """The study's membership as it is now."""
    query = sa.select(manifest.c.manifest_json).where(manifest.c.study_id == study_id)
    text = await tx.scalar(query.order_by(manifest.c.version.desc()).limit(1))
    return None if text is None else Manifest.model_validate_json(text)


async def manifest_version(tx: Tx, study_id: StudyId, version: int) -> Manifest | None:
    """One version of a study's membership, if it is known."""
    text = await tx.scalar(
        sa.select(manifest.c.manifest_json).where(manifest.c.study_id == study_id, manifest.c.version == version)
    )
    return None if text is None else Manifest.model_validate_json(text)


async def is_good(tx: Tx, site_id: SiteId) -> bool:
    """Whether the site is known and not revoked."""
    return (await tx.scalar(sa.select(site_key.c.revoked).where(site_key.c.site_id == site_id))) in (False, 0)
