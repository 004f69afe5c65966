"""Load a released model, or refuse it: the one way from a model's files to numbers.

    from cohortium_verify.loading import Trust, load_model

    model = load_model("model.zip", Trust.read("trust.json"))
    scores = model.predict({"age": [63, 41], "sex": ["male", "female"]})

Verified in this order, and nothing later is looked at before what is earlier holds: the officers' signatures under the
trust document; the signatures of aggregator, governance officer and hospitals under attestation and release; the digest
of every file; the log's proof of the release, in a checkpoint that a quorum of hospitals cosigned; then the structure
of tensors or trees. Every file is read once: what was verified is what is loaded.

No training library is imported: scores come from numpy. `model.text` of a model of trees may be given to LightGBM.
"""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from cohortium_messages.events import ReleaseSigned
from cohortium_messages.governance import Manifest, TrustDocument
from cohortium_messages.ids import Wire
from cohortium_messages.model_schema import SCHEMA_FILE, ModelSchema
from cohortium_messages.privacy_test import PrivacyTest
from cohortium_messages.study import Study
from cohortium_protocol.documents import GovernancePin, verify_manifest, verify_trust
from cohortium_protocol.encoding import sha256
from cohortium_protocol.errors import AttestationRefused, LogRefused, ProtocolError
from cohortium_protocol.logproof import MAX_TEXT, RELEASE_PROOF, LogProof, check_release_proof, study_log
from cohortium_protocol.notes import Checkpoint
from cohortium_protocol.release import ATTESTATION, MODEL_TYPE, RELEASE, Candidate, Signed, check_release
from cohortium_protocol.signing import service_key_id
from cohortium_verify.freshness import check_stands
from cohortium_verify.model_files import is_flat, read_files
from cohortium_verify.not_loaded import (
    FilesRefused,
    NoBundle,
    NotLoaded,
    ProofRefused,
    QuorumMissed,
    SignaturesRefused,
    StructureRefused,
    TrustRefused,
)
from cohortium_verify.quorum import WITNESSES, ReleaseWitnesses, check_quorum, read_witnesses
from cohortium_verify.release import STUDY, roles_of
from cohortium_verify.weights import LoadedWeights, weights_from

__all__ = ["LoadedModel", "NotLoaded", "Provenance", "Trust", "UnverifiedModelWarning", "load_model", "verify_model"]

W = TypeVar("W", bound=Wire)


class UnverifiedModelWarning(UserWarning):
    """A model was loaded without asking who made or released it."""


@dataclass(frozen=True, slots=True)
class Trust:
    """What a reader holds a model to: the federation's trust document, the officers' keys, and memberships.

    `pin`: the officers' keys as the reader has them from the officers. `manifests`: memberships that the reader has
    seen; one in a bundle that is older than these is not believed.
    """

    document: TrustDocument
    pin: GovernancePin
    manifests: tuple[Manifest, ...] = ()

    @classmethod
    def read(
        cls, trust: str | Path, *, governance_keys: Iterable[str] = (), manifests: Iterable[str | Path] = ()
    ) -> "Trust":
        """From `trust.json`; `governance_keys` in hexadecimal. Without them the document's own officers are taken, so
        the file must have come from somebody who is trusted. Raises `TrustRefused`."""
        document = _read(TrustDocument, Path(trust))
        try:
            keys = frozenset(bytes.fromhex(one) for one in governance_keys)
        except ValueError:
            raise TrustRefused("a governance key has 64 hexadecimal digits") from None
        pin = GovernancePin(keys, min(document.threshold, len(keys))) if keys else GovernancePin.of(document)
        return cls(document, pin, tuple(_read(Manifest, Path(one)) for one in manifests))

    def check(self) -> None:
        """The officers signed it all. Raises `TrustRefused`."""
        try:
            verify_trust(self.document, self.pin)
            for manifest in self.manifests:
                verify_manifest(manifest, self.pin)
        except ProtocolError as error:
            raise TrustRefused(
                f"the officers did not sign the trust document or a membership ({error}); compare their keys"
            ) from None


def _read(kind: type[W], path: Path) -> W:
    try:
        return kind.model_validate_json(path.read_bytes())
    except OSError as error:
        raise TrustRefused(f"{path} cannot be read: {error.strerror}") from None
    except ValidationError as error:
        raise TrustRefused(f"{path} is no {kind.__name__}: {error.errors()[0]['msg']}") from None


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where a verified model comes from. `witnesses`: the hospitals that cosigned the log with its release in it."""

    federation: str
    study: str
    run: str
    version: int
    model_hash: str
    released_at: str
    officer: str
    sites: tuple[str, ...]
    witnesses: tuple[str, ...]
    log_index: int
    privacy: Mapping[str, Any] | None
    privacy_test: PrivacyTest | None


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model that may be used. `state`: `unverified` only where the caller asked for no verification.

    `weights`: arrays by name, of a network; `text`: LightGBM's model text, of a model of trees. One of them is None.
    """

    state: Literal["released", "unverified"]
    schema: ModelSchema
    study: Study
    card: Mapping[str, Any]
    provenance: Provenance | None
    _loaded: LoadedWeights

    @property
    def weights(self) -> Mapping[str, NDArray[np.float32]] | None:
        return self._loaded.arrays

    @property
    def text(self) -> str | None:
        return self._loaded.text

    def predict(self, table: Mapping[str, Sequence[Any]]) -> NDArray[np.float64]:
        """Scores of rows, given as columns by name; `schema.output` says what they are. Raises `RowsRefused`."""
        return self._loaded.scores(self.schema, table)


@dataclass(frozen=True, slots=True)
class _Verified:
    files: Mapping[str, bytes]
    candidate: Candidate
    provenance: Provenance


def load_model(
    path: str | Path,
    trust: Trust | None = None,
    *,
    quorum: int | None = None,
    log: str | Path | None = None,
    unsafe_dev: bool = False,
) -> LoadedModel:
    """The model of a bundle (a ZIP archive, or its folder) that people released for use. Raises a `NotLoaded`.

    `quorum`: how many hospitals must have cosigned the log with the release in it; left out, so many that none of them
    could have been shown another history (0: not asked). `log`: a later audit bundle of the study; a model that it
    retires or supersedes is refused.

    `unsafe_dev`: load files that nobody signed, as a developer has them; structure alone is checked, and an
    `UnverifiedModelWarning` is given. Never in a program that serves patients.
    """
    if unsafe_dev:
        warnings.warn(f"{path} is loaded without asking who made or released it", UnverifiedModelWarning, stacklevel=2)
        return _loaded(_files_of(_folder_of(Path(path))), "unverified", None, None)
    if trust is None:
        raise NoBundle("a model is loaded with the federation's trust document: Trust.read('trust.json')")
    verified = _verify(Path(path), trust, quorum, log)
    return _loaded(verified.files, "released", verified.provenance, verified.candidate)


def verify_model(
    path: str | Path, trust: Trust, *, quorum: int | None = None, log: str | Path | None = None
) -> Provenance:
    """All that `load_model` verifies, structure included; what is known of the model then."""
    verified = _verify(Path(path), trust, quorum, log)
    _loaded(verified.files, "released", verified.provenance, verified.candidate)
    return verified.provenance


def _folder_of(path: Path) -> Path:
    """A single file of a model stands for the folder in which the others lie."""
    return path.parent if path.is_file() and path.suffix in (".safetensors", ".txt") else path


def _files_of(path: Path) -> Mapping[str, bytes]:
    try:
        return read_files(path)
    except FileNotFoundError:
        raise NoBundle(f"there is no model at {path}") from None


def _verify(path: Path, trust: Trust, quorum: int | None, log: str | Path | None) -> _Verified:
    trust.check()
    if path.suffix in (".safetensors", ".txt"):
        raise NoBundle(f"{path} is a model's file without its bundle, so nobody vouches for it; name the bundle")
    files = _files_of(path)
    if ATTESTATION not in files:
        raise NoBundle(f"{path} holds no {ATTESTATION}, so it is no model of a federation")
    candidate = _candidate(files, trust)
    study = str(candidate.bound["study"])
    witnesses = read_witnesses(files[WITNESSES], trust.pin, study) if WITNESSES in files else None
    known = (*trust.manifests, *((witnesses.manifest,) if witnesses is not None else ()))
    manifests = sorted((one for one in known if one.study_id == study), key=lambda one: one.version)
    signed = _signed(files, candidate, trust, manifests)
    _check_digests(files, candidate)
    proof, checkpoint, event = _proven(files, candidate, trust, study)
    cosigned = _cosigned(proof, checkpoint, witnesses, manifests, trust, quorum)
    if log is not None:
        check_stands(Path(log), trust.document, trust.pin, event, checkpoint)
    provenance = Provenance(
        federation=trust.document.federation,
        study=study,
        run=event.run_id,
        version=event.model.version,
        model_hash=event.model.model_hash.hex(),
        released_at=signed.at,
        officer=signed.officer_name,
        sites=signed.sites,
        witnesses=cosigned,
        log_index=proof.index,
        privacy=candidate.statement.predicate.get("privacy"),
        privacy_test=signed.privacy_test,
    )
    return _Verified(files, candidate, provenance)


def _candidate(files: Mapping[str, bytes], trust: Trust) -> Candidate:
    try:
        candidate = Candidate.of(files[ATTESTATION], trust.document.services.aggregator)
    except AttestationRefused as refused:
        raise SignaturesRefused(f"the aggregator did not sign {ATTESTATION} ({refused})") from None
    if candidate.statement.predicate_type != MODEL_TYPE:
        raise SignaturesRefused(f"{ATTESTATION} is a statement about something else than a model")
    if candidate.bound["federation"] != trust.document.federation:
        raise SignaturesRefused(f"the model is of {candidate.bound['federation']}, another federation")
    return candidate


def _signed(files: Mapping[str, bytes], candidate: Candidate, trust: Trust, manifests: Sequence[Manifest]) -> Signed:
    if RELEASE not in files:
        raise SignaturesRefused(f"the model is a candidate: there is no {RELEASE}, so nobody released it for use")
    # How many hospitals must sign is in the study, which is one of the files: its digest is looked at here already.
    if sha256(files.get(STUDY, b"")) != candidate.subjects.get(STUDY):
        raise FilesRefused(f"{STUDY} is missing, or is not the file that was signed")
    needed = _study(files).release_sites
    try:
        return check_release(files[RELEASE], candidate, roles_of(trust.document, trust.pin, manifests), needed)
    except AttestationRefused as refused:
        raise SignaturesRefused(str(refused)) from None


def _check_digests(files: Mapping[str, bytes], candidate: Candidate) -> None:
    for name, digest in candidate.subjects.items():
        if not is_flat(name):
            raise FilesRefused(f"the attestation names a file outside of the model's folder: {name!r}")
        if name not in files:
            raise FilesRefused(f"{name} is missing")
        if sha256(files[name]) != digest:
            raise FilesRefused(f"{name} is not the file that was signed")


def _proven(
    files: Mapping[str, bytes], candidate: Candidate, trust: Trust, study: str
) -> tuple[LogProof, Checkpoint, ReleaseSigned]:
    content = files.get(RELEASE_PROOF)
    if content is None or len(content) > MAX_TEXT:
        raise ProofRefused(f"{RELEASE} comes without {RELEASE_PROOF}: no log is shown to hold it")
    services = trust.document.services
    key = study_log(trust.document.federation, study, services.audit)
    try:
        text = content.decode()
        proof = check_release_proof(text, candidate.attestation, files[RELEASE], services.aggregator, key)
        checkpoint = proof.check(key)
        _, event = proof.event(service_key_id("aggregator"), services.aggregator)
    except (LogRefused, UnicodeDecodeError) as refused:
        raise ProofRefused(f"{RELEASE_PROOF} does not prove the release of this model ({refused})") from None
    bound = candidate.bound
    if not isinstance(event, ReleaseSigned) or (event.run_id, _named(event)) != (bound["run"], bound["model"]):
        raise ProofRefused(f"{RELEASE_PROOF} is of another run or model than the attestation")
    return proof, checkpoint, event


def _named(event: ReleaseSigned) -> dict[str, Any]:
    return {"version": event.model.version, "model_hash": event.model.model_hash.hex()}


def _cosigned(
    proof: LogProof,
    checkpoint: Checkpoint,
    witnesses: ReleaseWitnesses | None,
    manifests: Sequence[Manifest],
    trust: Trust,
    quorum: int | None,
) -> tuple[str, ...]:
    if witnesses is None:
        if quorum == 0:
            return ()
        raise QuorumMissed(
            f"there is no {WITNESSES}, so no hospital is shown to have seen the log with this release; fetch the model "
            "with `cohortium model export` when they have cosigned it"
        )
    return check_quorum(proof, checkpoint, witnesses, manifests[-1], trust.document.federation, quorum)


def _study(files: Mapping[str, bytes]) -> Study:
    try:
        return Study.model_validate_json(files[STUDY])
    except (KeyError, ValidationError):
        raise StructureRefused(f"{STUDY} is missing, or no study of this version") from None


def _loaded(
    files: Mapping[str, bytes],
    state: Literal["released", "unverified"],
    provenance: Provenance | None,
    candidate: Candidate | None,
) -> LoadedModel:
    study = _study(files)
    signed = None if candidate is None else candidate.statement
    weights = weights_from(files, study, signed)
    if SCHEMA_FILE in files and files[SCHEMA_FILE] != weights.schema_bytes:
        raise StructureRefused(f"{SCHEMA_FILE} does not describe this model")
    return LoadedModel(state, weights.schema, study, weights.card, provenance, weights)
