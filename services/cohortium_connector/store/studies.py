"""Studies that were offered, their manifests and runs, and the grants that this hospital gave."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import sqlalchemy as sa

from cohortium_connector.domain.policy import HeldGrant, StudyFacts
from cohortium_connector.store.parsed import parsed
from cohortium_connector.store.tables import consent_records, manifest, run, site_grant, study
from cohortium_kit.db import Tx
from cohortium_messages.governance import Manifest, SiteGrant
from cohortium_messages.ids import RunId, StudyId
from cohortium_messages.study import Study
from cohortium_protocol.documents import grant_digest, manifest_hash

OfferState = Literal["OFFERED", "APPROVED", "WITHDRAWN"]

# Statements of every message and every look, built once.
_OFFER = sa.select(study.c.study_digest, study.c.study_json, study.c.state, study.c.offered_at)
_FIND_OFFER = _OFFER.where(study.c.study_digest == sa.bindparam("digest"))
_NEWEST_MANIFEST = (
    sa.select(manifest.c.manifest_json)
    .where(manifest.c.study_id == sa.bindparam("study"))
    .order_by(manifest.c.version.desc())
    .limit(1)
)
_MANIFEST = sa.select(manifest.c.manifest_json).where(manifest.c.manifest_hash == sa.bindparam("digest"))
_OPEN = sa.select(run.c.run_id).where(run.c.state == sa.literal_column("'OPEN'"))
_OPEN_OF_STUDY = _OPEN.where(run.c.study_digest == sa.bindparam("digest"))
_ALL_OPEN = _OPEN.join(study, study.c.study_digest == run.c.study_digest).where(
    study.c.state != sa.literal_column("'WITHDRAWN'")
)
_STUDY_OF_RUN = sa.select(run.c.study_digest).where(run.c.run_id == sa.bindparam("run"))
_GRANTS = sa.select(site_grant.c.grant_json, site_grant.c.grant_digest, site_grant.c.withdrawn_at).where(
    site_grant.c.study_digest == sa.bindparam("digest")
)


@dataclass(frozen=True, slots=True)
class Offer:
    """A study version that asks, or asked, for this hospital's grant."""

    study: Study
    study_digest: bytes
    state: OfferState
    offered_at: datetime

    @property
    def study_id(self) -> StudyId:
        return StudyId(self.study.name)


async def add_manifest(tx: Tx, document: Manifest) -> None:
    """Keep a verified manifest; one that is known already changes nothing."""
    known = await tx.scalar(
        sa.select(manifest.c.version).where(
            manifest.c.study_id == document.study_id, manifest.c.version == document.version
        )
    )
    if known is not None:
        return
    row = {
        "study_id": document.study_id,
        "version": document.version,
        "manifest_hash": manifest_hash(document),
        "study_digest": document.study_digest,
        "manifest_json": document.model_dump_json(),
    }
    await tx.execute(sa.insert(manifest).values(row))


async def newest_manifest(tx: Tx, study_id: StudyId) -> Manifest | None:
    text = await tx.scalar(_NEWEST_MANIFEST, {"study": study_id})
    return None if text is None else parsed(Manifest, text)


async def is_member(tx: Tx, study_id: StudyId) -> bool:
    """Whether a manifest of this study names this hospital: no other is sent here."""
    return await tx.scalar(_NEWEST_MANIFEST, {"study": study_id}) is not None


async def manifest_by_hash(tx: Tx, digest: bytes) -> Manifest | None:
    text = await tx.scalar(_MANIFEST, {"digest": digest})
    return None if text is None else parsed(Manifest, text)


async def save_offer(tx: Tx, offered: Study, digest: bytes, *, by: str) -> Offer:
    """Keep an offered study version; one that is known already keeps its state."""
    known = await find_offer(tx, digest)
    if known is not None:
        return known
    row = {
        "study_digest": digest,
        "study_id": offered.name,
        "study_json": offered.model_dump_json(),
        "state": "OFFERED",
        "offered_at": tx.now,
        "updated_at": tx.now,
        "updated_by": by,
    }
    await tx.execute(sa.insert(study).values(row))
    return Offer(offered, digest, "OFFERED", datetime.fromtimestamp(tx.now, UTC))


async def set_offer_state(tx: Tx, digest: bytes, state: OfferState, *, by: str) -> None:
    changed = sa.update(study).where(study.c.study_digest == digest)
    await tx.execute(changed.values(state=state, updated_at=tx.now, updated_by=by))


async def find_offer(tx: Tx, digest: bytes) -> Offer | None:
    row = await tx.row(_FIND_OFFER, {"digest": digest})
    return None if row is None else _offer(row)


async def offers(tx: Tx) -> tuple[Offer, ...]:
    """All of them, the oldest first."""
    return tuple(_offer(row) for row in await tx.rows(_OFFER.order_by(study.c.offered_at)))


def _offer(row: sa.Row[Any]) -> Offer:
    offered_at = datetime.fromtimestamp(row.offered_at, UTC)
    return Offer(parsed(Study, row.study_json), row.study_digest, row.state, offered_at)


async def add_run(tx: Tx, run_id: RunId, digest: bytes, *, by: str) -> None:
    """Remember a run of a study version; one that is known already changes nothing."""
    if await tx.scalar(sa.select(run.c.run_id).where(run.c.run_id == run_id)) is None:
        row = {"run_id": run_id, "study_digest": digest, "state": "OPEN", "reason": ""}
        await tx.execute(sa.insert(run).values(**row, updated_at=tx.now, updated_by=by))


async def end_run(tx: Tx, run_id: RunId, reason: str, *, by: str) -> None:
    changed = sa.update(run).where(run.c.run_id == run_id)
    await tx.execute(changed.values(state="ENDED", reason=reason, updated_at=tx.now, updated_by=by))


async def open_runs(tx: Tx, digest: bytes) -> frozenset[RunId]:
    return frozenset(RunId(row.run_id) for row in await tx.rows(_OPEN_OF_STUDY, {"digest": digest}))


async def all_open_runs(tx: Tx) -> frozenset[RunId]:
    """Runs that go on, of studies that this hospital has not left."""
    return frozenset(RunId(row.run_id) for row in await tx.rows(_ALL_OPEN))


async def run_goes_on(tx: Tx, run_id: RunId) -> bool:
    """Whether this run is open, of a study version that the hospital approved and has not left."""
    offer = await study_of_run(tx, run_id)
    return offer is not None and offer.state == "APPROVED" and run_id in await open_runs(tx, offer.study_digest)


async def study_of_run(tx: Tx, run_id: RunId) -> Offer | None:
    digest = await tx.scalar(_STUDY_OF_RUN, {"run": run_id})
    return None if digest is None else await find_offer(tx, digest)


async def add_grant(tx: Tx, grant: SiteGrant, *, by: str) -> bytes:
    """Keep a grant that this site signed; returns its digest."""
    digest = grant_digest(grant)
    row = {"grant_digest": digest, "study_digest": grant.study_digest, "grant_json": grant.model_dump_json()}
    await tx.execute(sa.insert(site_grant).values(**row, withdrawn_at=None, updated_at=tx.now, updated_by=by))
    return digest


async def withdraw_grants(tx: Tx, study_digest: bytes, *, by: str) -> int:
    """Mark every grant of a study version as withdrawn; returns how many were in force."""
    live = sa.update(site_grant).where(site_grant.c.study_digest == study_digest, site_grant.c.withdrawn_at.is_(None))
    done = await tx.execute(live.values(withdrawn_at=tx.now, updated_at=tx.now, updated_by=by))
    return done.rowcount


async def grants(tx: Tx, study_digest: bytes) -> tuple[HeldGrant, ...]:
    rows = await tx.rows(_GRANTS, {"digest": study_digest})
    return tuple(
        HeldGrant(parsed(SiteGrant, row.grant_json), row.grant_digest, row.withdrawn_at is not None) for row in rows
    )


async def facts(tx: Tx, study_digest: bytes) -> StudyFacts | None:
    """All that the policy asks about a study version, or None if it was never offered."""
    offer = await find_offer(tx, study_digest)
    if offer is None:
        return None
    newest = await newest_manifest(tx, offer.study_id)
    fitting = newest if newest is not None and newest.study_digest == study_digest else None
    return StudyFacts(
        study=offer.study,
        runs=await open_runs(tx, study_digest),
        manifest=fitting,
        manifest_hash=manifest_hash(fitting) if fitting is not None else bytes(32),
        grants=await grants(tx, study_digest),
        consent=await consent_records.load(tx),  # of a trial, too: it needs no document, but heeds one that stops
    )
