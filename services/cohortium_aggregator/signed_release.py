"""The release of a finished run's model: signatures of people come in, ours is added last, the bundle gets both."""

import asyncio
from pathlib import Path

from cohortium_aggregator.bundle import write_archive
from cohortium_aggregator.context import Context, message_id
from cohortium_aggregator.files import sync_file
from cohortium_aggregator.store import runs, sites
from cohortium_aggregator.store.releases import StoredRelease, release_of, save_proof, save_release
from cohortium_aggregator.store.runs import Run
from cohortium_aggregator.store.tables import site_keys
from cohortium_kit.consumer import Received
from cohortium_kit.db import Tx
from cohortium_kit.errors import CohortiumError, Poison
from cohortium_messages.events import ReleaseSigned
from cohortium_messages.ids import RunId, SiteId
from cohortium_messages.topology import SERVICES
from cohortium_messages.witness import EventProven, ProofAsked
from cohortium_protocol.attest import add_signature, gather
from cohortium_protocol.encoding import sha256
from cohortium_protocol.errors import AttestationRefused, LogRefused
from cohortium_protocol.logproof import RELEASE_PROOF, LogProof
from cohortium_protocol.release import ATTESTATION, RELEASE, Candidate, Roles, Signed, check_release, read_release
from cohortium_protocol.signing import service_key_id


class NoCandidate(CohortiumError):
    """The run has no finished model, so there is nothing to release."""


class ReleaseRefused(CohortiumError):
    """What was handed over is no release of this run's model."""


class AlreadyReleased(CohortiumError):
    """The model is released by another signed statement; a release is made once."""


class Releases:
    """The signatures under each run's release."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx

    async def found(self, run: Run) -> tuple[StoredRelease, Signed] | None:
        """What is signed so far; None if nobody signed yet."""
        async with self._ctx.db.reading("signed_release") as tx:
            stored, roles = await release_of(tx, run.run_id), await self._roles(tx, run)
        if stored is None:
            return None
        return stored, read_release(stored.envelope, await self._candidate(run), roles)

    async def offer(self, run: Run, envelope: bytes) -> Signed:
        """Add the signatures in this envelope. The last one that is needed releases the model, once: ours is added, the
        event is recorded in the same transaction, and the bundle is written with it.

        Raises `NoCandidate`, `ReleaseRefused`, or `AlreadyReleased`.
        """
        candidate = await self._candidate(run)
        signed = await self._ctx.db.run("offer_release", lambda tx: self._add(tx, run, candidate, envelope))
        await self.complete_bundle(run.run_id)
        return signed

    async def complete_bundle(self, run_id: RunId) -> None:
        """Put a complete release into the bundle. Found again here if a crash came between the record and the file."""
        target = self._ctx.data.bundle_dir(run_id) / RELEASE
        if target.exists():
            return
        async with self._ctx.db.reading("complete_release") as tx:
            stored = await release_of(tx, run_id)
        if stored is None or not stored.complete:
            return
        envelope, proof = stored.envelope, stored.proof
        if proof is None:
            await self._ctx.db.run("ask_for_proof", lambda tx: self._ask(tx, run_id, envelope))
        else:
            await asyncio.to_thread(self._write, target, envelope, proof.encode())

    async def on_proven(self, tx: Tx, received: Received[EventProven]) -> None:
        """The log holds a release: from now on the model is released."""
        if received.key_id != service_key_id("audit"):
            raise Poison("sender_not_allowed", received.envelope.type)
        proof = received.message.logged.proof
        try:
            _, event = LogProof.parse(proof).event(service_key_id("aggregator"), self._ctx.key.public)
        except LogRefused as refused:
            raise Poison(refused.code.lower()) from refused
        if isinstance(event, ReleaseSigned):
            await save_proof(tx, event.run_id, proof)

    async def _ask(self, tx: Tx, run_id: RunId, envelope: bytes) -> None:
        """The proof did not come yet; it is asked for when somebody asks for the model."""
        run = await runs.find_run(tx, run_id)
        if run is not None:
            asked = ProofAsked(study_id=run.study_id, event_id=_event_id(run_id, sha256(envelope)))
            outgoing = self._ctx.post.sender.outgoing(SERVICES.name, "audit", asked, study=run.study_id)
            await tx.send(outgoing, ordering_key="audit")

    def _write(self, target: Path, envelope: bytes, proof: bytes) -> None:
        working = target.parent.with_name(f".{target.parent.name}.{RELEASE}.tmp")
        working.write_bytes(envelope)
        sync_file(working)
        papers = {RELEASE: envelope, RELEASE_PROOF: proof}
        target.with_name(RELEASE_PROOF).unlink(missing_ok=True)  # of an attempt that a crash cut short
        write_archive(self._ctx.data.bundle_zip(target.parent.name), target.parent, papers)
        target.with_name(RELEASE_PROOF).write_bytes(proof)
        working.rename(target)

    async def _candidate(self, run: Run) -> Candidate:
        path = self._ctx.data.bundle_dir(run.run_id) / ATTESTATION
        if run.attestation_sha256 is None or not path.is_file():
            raise NoCandidate(f"run {run.run_id} is {run.state} and has no finished model; it is made when it FINISHED")
        return Candidate.of(await asyncio.to_thread(path.read_bytes), self._ctx.key.public)

    async def _roles(self, tx: Tx, run: Run) -> Roles:
        manifest = await sites.newest_manifest(tx, run.study_id)
        good = await site_keys.good(tx)
        members = {} if manifest is None else {one.site_id: one.identity_pk for one in manifest.members}
        known: dict[str, bytes] = {site: key for site, key in members.items() if good.get(site) == key}
        return Roles(self._ctx.key.public, self._ctx.governance.keys, known)

    async def _add(self, tx: Tx, run: Run, candidate: Candidate, envelope: bytes) -> Signed:
        roles, stored = await self._roles(tx, run), await release_of(tx, run.run_id)
        try:
            gathered = _together(stored, envelope, candidate, roles)
            signed = read_release(gathered, candidate, roles)
            if not signed.officers:
                raise ReleaseRefused("a governance officer of this federation writes the release and signs it first")
            if stored is not None and stored.complete:
                return signed
            if signed.missing(run.study.release_sites):
                await save_release(tx, run.run_id, StoredRelease(gathered, complete=False))
                return signed
            whole = add_signature(gathered, self._ctx.key)
            signed = check_release(whole, candidate, roles, run.study.release_sites)
        except AttestationRefused as refused:
            raise ReleaseRefused(str(refused)) from None
        await save_release(tx, run.run_id, StoredRelease(whole, complete=True))
        await self._record(tx, run, candidate, whole, signed)
        return signed

    async def _record(self, tx: Tx, run: Run, candidate: Candidate, envelope: bytes, signed: Signed) -> None:
        version = candidate.statement.predicate["model"]["version"]
        (released,) = [one for one in await runs.versions_of(tx, run.run_id) if one.version == version]
        digest = sha256(envelope)
        event = ReleaseSigned(
            run_id=run.run_id,
            model=released.ref,
            attestation_sha256=sha256(candidate.attestation),
            release_sha256=digest,
            officers=signed.officers,
            sites=tuple(SiteId(site) for site in signed.sites),
        )
        unique = _event_id(run.run_id, digest)
        await self._ctx.post.record(tx, event, study=run.study_id, unique=unique)


def _event_id(run_id: RunId, digest: bytes) -> str:
    return message_id(run_id, ReleaseSigned.type_name, digest)


def _together(stored: StoredRelease | None, envelope: bytes, candidate: Candidate, roles: Roles) -> bytes:
    """What was signed before and what is offered now. An officer may write a release anew until it is complete."""
    offered = read_release(envelope, candidate, roles)
    people = (*sorted(roles.officers), *roles.members.values())
    if stored is None:
        return gather((envelope,), people)
    earlier = read_release(stored.envelope, candidate, roles)
    if earlier.statement.to_bytes() != offered.statement.to_bytes():
        if stored.complete:
            raise AlreadyReleased(f"the model is released already, by a statement of {earlier.at}")
        return gather((envelope,), people)
    return stored.envelope if stored.complete else gather((stored.envelope, envelope), people)
