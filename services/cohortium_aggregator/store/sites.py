"""Who is a member, and who has left. Who may speak is in `site_keys`."""

import sqlalchemy as sa

from cohortium_aggregator.store.tables import grant_word, manifest
from cohortium_kit import manifests
from cohortium_kit.db import Tx
from cohortium_messages.governance import Manifest
from cohortium_messages.ids import SiteId, StudyId


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
    return await manifests.newest_manifest(tx, manifest, study_id)


async def manifest_version(tx: Tx, study_id: StudyId, version: int) -> Manifest | None:
    """One version of a study's membership, if it is known."""
    return await manifests.manifest_version(tx, manifest, study_id, version)
