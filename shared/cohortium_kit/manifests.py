"""Membership manifests in a service's own table: `study_id`, `version` and `manifest_json` are in each of them."""

import sqlalchemy as sa

from cohortium_kit.db import Tx
from cohortium_messages.governance import Manifest
from cohortium_messages.ids import StudyId


async def newest_manifest(tx: Tx, table: sa.Table, study_id: StudyId) -> Manifest | None:
    """The study's membership as it is now."""
    query = sa.select(table.c.manifest_json).where(table.c.study_id == study_id)
    return _manifest(await tx.scalar(query.order_by(table.c.version.desc()).limit(1)))


async def manifest_version(tx: Tx, table: sa.Table, study_id: StudyId, version: int) -> Manifest | None:
    """One version of a study's membership, if it is known."""
    query = sa.select(table.c.manifest_json).where(table.c.study_id == study_id, table.c.version == version)
    return _manifest(await tx.scalar(query))


def _manifest(text: str | None) -> Manifest | None:
    return None if text is None else Manifest.model_validate_json(text)
