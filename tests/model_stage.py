"""A released model with real signatures and a real proof, made without services; a test forges one part of it."""

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np

from cohortium_kit.clock import SystemClock
from cohortium_kit.envelopes import Sender
from cohortium_messages.envelope import SIGNATURE_HEADER
from cohortium_messages.events import ReleaseSigned, WitnessNamed
from cohortium_messages.governance import Manifest, Member, ServiceKeys, TrustDocument
from cohortium_messages.ids import SiteId, StudyId
from cohortium_messages.privacy_test import PrivacyTest
from cohortium_messages.secure_sum import ModelRef
from cohortium_messages.study import Study
from cohortium_protocol.attest import Statement, add_signature, sign_statement
from cohortium_protocol.documents import FIRST, GovernancePin, sign_manifest, sign_trust
from cohortium_protocol.encoding import sha256
from cohortium_protocol.logproof import RELEASE_PROOF, LogProof, entry_bytes, log_name
from cohortium_protocol.notes import Checkpoint
from cohortium_protocol.parameters import initial_parameters, layout_of, model_hash, to_safetensors
from cohortium_protocol.release import ATTESTATION, MODEL_TYPE, RELEASE, Candidate, sign_release
from cohortium_protocol.scoring import schema_bytes, schema_of
from cohortium_protocol.signing import EnvelopeSigner, IdentityKey, site_key_id
from cohortium_protocol.statistics import preprocessing_from_sums
from cohortium_protocol.witness import cosign, witness_name
from cohortium_verify.loading import Trust
from cohortium_verify.quorum import WITNESSES, ReleaseWitnesses
from task_log import TaskLog

FEDERATION = "test.example"
RUN = "00000000-0000-4000-8000-0000000000aa"
AT = datetime(2026, 11, 21, tzinfo=UTC)
STUDY: dict[str, Any] = {
    "apiVersion": "cohortium/study/1",
    "governance": "trial",
    "name": "heart",
    "purpose": "a test",
    "dataset": {
        "features": [
            {"name": "age", "type": "int", "range": [18, 110], "unit": "a", "missing": "impute"},
            {"name": "sex", "type": "category", "levels": ["female", "male"]},
        ],
        "label": {"name": "disease", "type": "binary"},
        "split": {"test": 0.3, "seed": 7},
    },
    "recipe": {"trainer": "torch.mlp", "hidden": [5, 3]},
    "federation": {"rounds": 2, "min_sites": 3},
}
SUMS = (90, 90 * 30000, 90 * 1_000_000_000, 100, 40, 50, 20)
ROWS = {"age": [63, 41, "", 18], "sex": ["male", "female", "male", "female"]}


@dataclass(frozen=True, slots=True)
class Site:
    """A hospital: its identity key and the key that it cosigns with."""

    site_id: SiteId
    identity: IdentityKey = field(default_factory=IdentityKey.generate)
    witness: IdentityKey = field(default_factory=IdentityKey.generate)

    def announces(self, key: bytes | None = None, by: IdentityKey | None = None) -> str:
        """The log's entry in which it names its witness key."""
        signer = EnvelopeSigner(site_key_id(self.site_id), by or self.identity)
        sender = Sender(f"/site/{self.site_id}", signer, SystemClock())
        event = WitnessNamed(site_id=self.site_id, witness_key=key or self.witness.public)
        out = sender.outgoing("events", "-", event, study=StudyId("heart"))
        signature = bytes.fromhex(out.headers[SIGNATURE_HEADER])
        return entry_bytes(json.loads(out.body), site_key_id(self.site_id), signature).decode()


@dataclass
class ModelStage:
    """The keys of a federation with four hospitals, and the model that it releases."""

    study: Study = field(default_factory=lambda: Study.model_validate(STUDY))
    run: str = RUN
    model_files: Mapping[str, bytes] | None = None
    """Preprocessing and model of another recipe; left out: a network's."""
    sums: Sequence[int] = SUMS
    privacy_test: PrivacyTest | None = None
    sites: Sequence[Site] = field(
        default_factory=lambda: [Site(SiteId(str(UUID(int=n, version=4)))) for n in range(1, 5)]
    )
    officers: Sequence[IdentityKey] = field(default_factory=lambda: [IdentityKey.generate() for _ in range(2)])
    aggregator: IdentityKey = field(default_factory=IdentityKey.generate)
    audit: IdentityKey = field(default_factory=IdentityKey.generate)

    @cached_property
    def document(self) -> TrustDocument:
        other = IdentityKey.generate().public
        services = ServiceKeys(
            enrolment=other,
            consent=other,
            scheduler=other,
            aggregator=self.aggregator.public,
            audit=self.audit.public,
            aggregator_seal=other,
        )
        keys = tuple(sorted(one.public for one in self.officers))
        document = TrustDocument(
            federation=FEDERATION, version=1, issued_at=AT, services=services, governance_keys=keys, threshold=2
        )
        for officer in self.officers:
            document = sign_trust(document, officer)
        return document

    @property
    def trust(self) -> Trust:
        return Trust(self.document, GovernancePin.of(self.document))

    def manifest(self, sites: Sequence[Site] | None = None, version: int = 1, study: str = "") -> Manifest:
        members = tuple(
            Member(site_id=one.site_id, name=f"H{place}", identity_pk=one.identity.public)
            for place, one in enumerate(self.sites if sites is None else sites)
        )
        made = Manifest(
            study_id=study or self.study.name,
            version=version,
            prev_hash=FIRST,
            study_digest=self.study.digest(),
            members=members,
            collusion=1,
            k_min_floor=0,
        )
        for officer in self.officers:
            made = sign_manifest(made, officer)
        return made

    @cached_property
    def inside(self) -> dict[str, bytes]:
        """The files that the attestation covers."""
        files = dict(self.model_files or self._network())
        files["study.json"] = self.study.canonical()
        files["card.json"] = b'{"purpose": "a test"}\n'
        return files

    def _network(self) -> dict[str, bytes]:
        rules = preprocessing_from_sums(self.study, self.sums, 4)
        layout = layout_of(self.study.recipe, rules.inputs)  # type: ignore[arg-type]
        return {
            "model.safetensors": to_safetensors(layout, initial_parameters(layout, 1)),
            "preprocessing.json": rules.canonical(),
            "schema.json": schema_bytes(schema_of(self.study, rules)),
        }

    @property
    def ref(self) -> ModelRef:
        files = self.inside
        content = files["model.txt" if "model.txt" in files else "model.safetensors"]
        if "model.txt" not in files:
            content = content[8 + int.from_bytes(content[:8], "little") :]
        return ModelRef(version=3, model_hash=model_hash(sha256(content), files["preprocessing.json"]))

    def attested(self, **changes: Any) -> Candidate:
        predicate = {
            "federation": FEDERATION,
            "study": self.study.name,
            "study_digest": self.study.digest().hex(),
            "run": self.run,
            "model": {"version": self.ref.version, "model_hash": self.ref.model_hash.hex()},
        }
        subjects = {name: sha256(content) for name, content in self.inside.items()}
        statement = Statement(subjects, MODEL_TYPE, predicate | changes)
        return Candidate.of(sign_statement(statement, [self.aggregator]), self.aggregator.public)

    def release(self, candidate: Candidate, *signers: IdentityKey) -> bytes:
        """An officer's release, with the aggregator's signature; or with those of `signers` instead."""
        first, *others = signers or (self.officers[0], self.aggregator)
        envelope = sign_release(candidate, "O. Fficer", AT, first, self.privacy_test)
        for key in others:
            envelope = add_signature(envelope, key)
        return envelope

    def proof(
        self, candidate: Candidate, release: bytes, cosigners: Sequence[Site] | None = None, **changes: Any
    ) -> bytes:
        """The log's proof, in a checkpoint that these hospitals cosigned (left out: all)."""
        event = {
            "run_id": self.run,
            "model": self.ref,
            "attestation_sha256": sha256(candidate.attestation),
            "release_sha256": sha256(release),
            "officers": (self.officers[0].public,),
            "sites": (),
        }
        log = TaskLog(FEDERATION, self.study.name, self.audit, self.aggregator, role="aggregator")
        entry, index = log.add(ReleaseSigned.model_validate(event | changes))
        proof = LogProof.parse(log.prove(entry, index).proof)
        size = log.tree.size
        checkpoint = Checkpoint(log_name(FEDERATION, self.study.name), size, log.tree.root(size))
        lines = [
            cosign(checkpoint, witness_name(FEDERATION, site.site_id), site.witness, 1_800_000_000)
            for site in (self.sites if cosigners is None else cosigners)
        ]
        return LogProof(proof.entry, proof.index, proof.hashes, proof.note + "".join(lines)).text().encode()

    def witnesses(self, manifest: Manifest | None = None, announcements: Sequence[str] | None = None) -> bytes:
        said = [site.announces() for site in self.sites] if announcements is None else announcements
        return (
            ReleaseWitnesses(manifest=manifest or self.manifest(), announcements=tuple(said)).model_dump_json().encode()
        )

    def files(self) -> dict[str, bytes]:
        """The whole bundle."""
        candidate = self.attested()
        release = self.release(candidate)
        return {
            **self.inside,
            ATTESTATION: candidate.attestation,
            RELEASE: release,
            RELEASE_PROOF: self.proof(candidate, release),
            WITNESSES: self.witnesses(),
        }


def zipped(files: Mapping[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return made.getvalue()


def write(folder: Path, files: Mapping[str, bytes]) -> Path:
    """The bundle as an archive."""
    path = folder / "model.zip"
    path.write_bytes(zipped(files))
    return path


def nan_tensor(content: bytes) -> bytes:
    """The safetensors file with its last number replaced by NaN."""
    return content[:-4] + np.array([np.nan], dtype="<f4").tobytes()


def extra_tensor(content: bytes) -> bytes:
    """The safetensors file with a tensor that no recipe makes."""
    length = int.from_bytes(content[:8], "little")
    header, body = json.loads(content[8 : 8 + length]), content[8 + length :]
    header["hidden"] = {"dtype": "F32", "shape": [1], "data_offsets": [len(body), len(body) + 4]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + body + bytes(4)
