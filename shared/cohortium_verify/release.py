"""Whether a model was released by the people who must: the release beside it, against the log, the trust document and
the membership. Without one it is a candidate."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from cohortium_messages import events
from cohortium_messages.governance import Manifest, TrustDocument
from cohortium_messages.study import Study
from cohortium_protocol.documents import GovernancePin
from cohortium_protocol.encoding import sha256
from cohortium_protocol.errors import AttestationRefused, LogRefused
from cohortium_protocol.logproof import MAX_TEXT, RELEASE_PROOF, LogProof, check_release_proof, study_log
from cohortium_protocol.release import ATTESTATION, RELEASE, Candidate, Roles, Signed, check_release
from cohortium_verify.bundle import MAX_JSON_BYTES
from cohortium_verify.log import Entry, MerkleTree
from cohortium_verify.report import Check, Failure, failed, passed
from cohortium_verify.rules import Said, said, verdict

NAME: Final = "model release"
STUDY: Final = "study.json"


def roles_of(trust: TrustDocument, pin: GovernancePin, manifests: Sequence[Manifest]) -> Roles:
    """Whose keys sign a release: the trust document's aggregator, pinned officers, members of any of these manifests,
    each with the newest key that is on record."""
    members: dict[str, bytes] = {one.site_id: one.identity_pk for manifest in manifests for one in manifest.members}
    return Roles(trust.services.aggregator, pin.keys, members)


def release_beside(folder: Path, candidate: Candidate, roles: Roles) -> Signed | None:
    """The release that lies beside a model whose files were checked; None for a candidate. Raises `AttestationRefused`
    for one that does not count."""
    path = folder / RELEASE
    if not path.exists():
        return None
    return check_release(path.read_bytes(), candidate, roles, _sites_needed(folder, candidate))


def check_logged(folder: Path, trust: TrustDocument, study: str) -> LogProof:
    """The log's proof of the release beside a model. Raises `AttestationRefused` without one that holds."""
    path = folder / RELEASE_PROOF
    if not path.is_file() or path.stat().st_size > MAX_TEXT:
        raise AttestationRefused(f"{RELEASE} comes without {RELEASE_PROOF}: no log is shown to hold it")
    key = study_log(trust.federation, study, trust.services.audit)
    attestation, release = (folder / ATTESTATION).read_bytes(), (folder / RELEASE).read_bytes()
    try:
        text = path.read_text(encoding="utf-8")
        return check_release_proof(text, attestation, release, trust.services.aggregator, key)
    except (LogRefused, UnicodeDecodeError) as refused:
        raise AttestationRefused(f"{RELEASE_PROOF} does not prove the release ({refused})") from None


def check_proof(path: Path, trust: TrustDocument, study: str, tree: MerkleTree) -> Check:
    """The proof that was handed over with a released model leads into this very log."""
    if not path.with_name(RELEASE).exists():
        return passed("release proof", "no released model lies beside the bundle")
    try:
        proof = check_logged(path.parent, trust, study)
        checkpoint = proof.check(study_log(trust.federation, study, trust.services.audit))
    except AttestationRefused as refused:
        return failed("release proof", Failure(str(refused)))
    if checkpoint.size > tree.size or tree.root(checkpoint.size) != checkpoint.root:
        text = f"{RELEASE_PROOF} is of another history of this log, of {checkpoint.size} entries"
        return failed("release proof", Failure(text, proof.index))
    return passed("release proof", f"entry {proof.index} released the model, in a checkpoint of {checkpoint.size}")


def _sites_needed(folder: Path, candidate: Candidate) -> int:
    path = folder / STUDY
    if STUDY not in candidate.subjects or not path.is_file() or path.stat().st_size > MAX_JSON_BYTES:
        return 0
    content = path.read_bytes()
    if sha256(content) != candidate.subjects[STUDY]:
        raise AttestationRefused(f"{STUDY} is not the file that was signed")
    try:
        return Study.model_validate_json(content).release_sites
    except ValidationError:
        raise AttestationRefused(f"{STUDY} is no study of this version, so nobody knows who must sign") from None


def study_beside(attestation: Path) -> Study | None:
    """The study that lies beside a model, for who compares its digest with what is on record; None if none does."""
    path = attestation.with_name(STUDY)
    if not path.is_file() or path.stat().st_size > MAX_JSON_BYTES:
        return None
    try:
        return Study.model_validate_json(path.read_bytes())
    except ValidationError:
        return None


def check_releases(path: Path, roles: Roles, entries: Sequence[Entry]) -> Check:
    """Every release on record is of a model that was bundled, and what lies beside the model is what is on record."""
    recorded = list(said(entries, events.ReleaseSigned))
    failures = list(_unknown(recorded, entries))
    facts = [f"{len(recorded)} on record"] if recorded else []
    attestation = path.read_bytes() if path.exists() else None
    mine = [
        one for one in recorded if attestation is not None and one.message.attestation_sha256 == sha256(attestation)
    ]
    release = path.with_name(RELEASE)
    if attestation is not None and (mine or release.exists()):
        try:
            signed = release_beside(path.parent, Candidate.of(attestation, roles.aggregator), roles)
        except AttestationRefused as refused:
            failures.append(Failure(f"the model is said to be released, and is not: {refused}"))
        else:
            failures += _against_record(release, signed, mine)
            facts += [told(signed)] if signed is not None else []
    elif attestation is not None:
        facts.append("the model is a candidate; nobody released it")
    return verdict(NAME, "; ".join(facts) or "no model was released", failures)


def told(signed: Signed) -> str:
    """Who released a model, in words."""
    hospitals = f" and {len(signed.sites)} hospital{'' if len(signed.sites) == 1 else 's'}" if signed.sites else ""
    test = signed.privacy_test
    low, high = (0.0, 1.0) if test is None else test.interval
    tested = (
        "" if test is None else f"; membership inference AUC {test.auc:.3g} ({low:.3g} to {high:.3g}, {test.made_on})"
    )
    return f"released at {signed.at} by {signed.officer_name or 'an officer'}, governance officer{hospitals}{tested}"


def _unknown(recorded: Sequence[Said[events.ReleaseSigned]], entries: Sequence[Entry]) -> Iterator[Failure]:
    bundled = {
        (one.message.run_id, one.message.model, one.message.attestation_sha256)
        for one in said(entries, events.ModelBundled)
    }
    seen = set()
    for one in recorded:
        message = one.message
        if (message.run_id, message.model, message.attestation_sha256) not in bundled:
            yield Failure("a model was released that was not bundled in this run", one.index)
        if message.run_id in seen:
            yield Failure("the model of this run was released twice", one.index)
        seen.add(message.run_id)


def _against_record(
    release: Path, signed: Signed | None, mine: Sequence[Said[events.ReleaseSigned]]
) -> Iterator[Failure]:
    if signed is None:
        yield Failure(f"the log has a release of this model, and {RELEASE} does not lie beside it", mine[0].index)
    elif not mine:
        yield Failure(f"{RELEASE} lies beside the model, and the log has no release of it")
    elif mine[0].message.release_sha256 != sha256(release.read_bytes()):
        yield Failure(f"{RELEASE} is not the one on record", mine[0].index)
    elif (mine[0].message.officers, tuple(mine[0].message.sites)) != (signed.officers, signed.sites):
        yield Failure(f"{RELEASE} is signed by other people than the log says", mine[0].index)
