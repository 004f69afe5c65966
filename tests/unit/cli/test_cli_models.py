"""`cohortium model`: what is exported, released and checked, and every model that is refused."""

import hashlib
import io
import json
import zipfile
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cli_stage import RUN_ID, CommandLine, Federation, PlayedServices

from cohortium_messages.events import ReleaseSigned
from cohortium_messages.secure_sum import ModelRef
from cohortium_platform.identity import read_key
from cohortium_protocol.attest import Statement, add_signature, sign_statement, verify_statement
from cohortium_protocol.encoding import sha256
from cohortium_protocol.release import Candidate, sign_release
from cohortium_protocol.signing import IdentityKey
from task_log import TaskLog

AT = datetime(2026, 11, 21, tzinfo=UTC)
PREDICATE = {
    "federation": "f",
    "study": "heart-disease",
    "study_digest": "00",
    "run": RUN_ID,
    "model": {"version": 1, "model_hash": "ab" * 32},
}
MANIFEST = {
    "study_id": "heart-disease",
    "version": 1,
    "prev_hash": "00" * 32,
    "study_digest": "5a" * 32,
    "members": [
        {
            "site_id": f"00000000-0000-4000-8000-00000000000{number}",
            "name": f"H{number}",
            "identity_pk": f"0{number}" * 32,
        }
        for number in (1, 2, 3)
    ],
    "collusion": 0,
    "k_min_floor": 0,
    "signatures": [],
}
FILES = {"model.safetensors": b"weights", "card.json": b"{}"}


class Model:
    """A model that this federation's aggregator signed, and what its officers sign."""

    def __init__(self, federation: Federation) -> None:
        self.aggregator = read_key(federation.folder / "secrets" / "aggregator.key")
        self.audit = read_key(federation.folder / "secrets" / "audit.key")
        self.federation = json.loads((federation.folder / "trust.json").read_text())["federation"]
        self.officer_file = federation.folder / "governance" / "officer-1.key"
        self.officer = read_key(self.officer_file)
        subjects = {name: hashlib.sha256(content).digest() for name, content in FILES.items()}
        attestation = sign_statement(Statement(subjects, "x", PREDICATE), [self.aggregator])
        self.candidate = Candidate.of(attestation, self.aggregator.public)
        self.files = {**FILES, "attestation.dsse.json": attestation}

    def release(self, officer: IdentityKey | None = None, by: IdentityKey | None = None) -> bytes:
        signed = sign_release(self.candidate, "O. Fficer", AT, officer or self.officer)
        return add_signature(signed, by or self.aggregator)

    def proof(self, release: bytes, audit: IdentityKey, **changes: bytes) -> bytes:
        """The log's proof of this release."""
        said = {"attestation_sha256": sha256(self.files["attestation.dsse.json"]), "release_sha256": sha256(release)}
        model = ModelRef(version=1, model_hash=bytes(32))
        event = ReleaseSigned.model_validate(
            {"run_id": RUN_ID, "model": model, "officers": (self.officer.public,), "sites": (), **said, **changes}
        )
        log = TaskLog(self.federation, "heart-disease", audit, self.aggregator, role="aggregator")
        return log.prove(*log.add(event)).proof.encode()


def zipped(files: dict[str, bytes]) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as bundle:
        for name, data in files.items():
            bundle.writestr(name, data)
    return made.getvalue()


@pytest.fixture
def model(federation: Federation, services: PlayedServices) -> Model:
    made = Model(federation)
    services.answer(f"GET /runs/{RUN_ID}/model", zipped(made.files))
    services.answer("GET /trust", (federation.folder / "trust.json").read_bytes())
    return made


def test_a_candidate_is_exported_and_called_so(cli: CommandLine, model: Model, tmp_path: Path) -> None:
    facts = cli.facts("model", "export", RUN_ID, "--out", "model.zip")
    assert (facts["state"], facts["bytes"]) == ("candidate", (tmp_path / "model.zip").stat().st_size)
    assert "a candidate: nobody has released it" in cli.ok("model", "export", RUN_ID, "--out", "model.zip")
    assert "No such file or directory" in cli.error("model", "export", RUN_ID, "--out", "gone/model.zip", code=1)


def test_an_officer_releases_a_model(cli: CommandLine, model: Model, services: PlayedServices, tmp_path: Path) -> None:
    view = {"run_id": RUN_ID, "state": "waiting", "missing": ["1 more member hospital"], "envelope": {}}
    services.answer(f"POST /runs/{RUN_ID}/release", view)
    words = ("model", "release", RUN_ID, "--key", str(model.officer_file), "--name", "O. Fficer")
    assert "waits for 1 more member hospital" in cli.ok(*words, "--out", "release.json")
    sent = json.dumps(json.loads(services.asked[-1][2])).encode()
    whole = add_signature(sent, model.aggregator)
    proof = model.proof(whole, model.audit)
    released = {**model.files, "release.dsse.json": whole, "release.tlog-proof": proof}
    services.answer(f"GET /runs/{RUN_ID}/model", zipped(released))
    services.answer("GET /manifests/heart-disease", {"manifest": MANIFEST})
    facts = cli.facts("model", "export", RUN_ID, "--out", "model.zip")
    assert (facts["state"], facts["cosigned"]) == ("released", False)
    exported = cli.ok("model", "export", RUN_ID, "--out", "model.zip")
    assert "released at" in exported
    assert "hospitals have not cosigned the log with its release" in exported
    for unproven in (
        None,
        model.proof(whole, IdentityKey.generate()),
        model.proof(whole, model.audit, release_sha256=bytes(32)),
        proof.replace(b"index 0", b"index 1"),
        b"\xff",
    ):
        released.pop("release.tlog-proof", None)
        more = {} if unproven is None else {"release.tlog-proof": unproven}
        services.answer(f"GET /runs/{RUN_ID}/model", zipped(released | more))
        assert "release.tlog-proof" in cli.error("model", "export", RUN_ID, "--out", "unproven.zip", code=1)
        assert not (tmp_path / "unproven.zip").exists()
    (tmp_path / "stranger.key").write_text("07" * 32)
    (tmp_path / "stranger.key").chmod(0o600)
    stranger = ("model", "release", RUN_ID, "--key", "stranger.key", "--name", "X")
    assert "not the key of a governance officer" in cli.error(*stranger, code=2)
    assert "give --key and --name" in cli.error("model", "release", RUN_ID, code=2)


def test_an_officer_signs_what_a_privacy_test_found(
    cli: CommandLine, model: Model, services: PlayedServices, tmp_path: Path
) -> None:
    services.answer(f"POST /runs/{RUN_ID}/release", {"run_id": RUN_ID, "state": "released", "missing": []})
    test = {
        "run": RUN_ID,
        "model_hash": "ab" * 32,
        "method": "likelihood ratio against 64 shadow models",
        "auc": 0.53,
        "interval": [0.5, 0.56],
        "members": 500,
        "non_members": 400,
        "made_on": "2026-11-20",
        "made_by": "Hospital 1",
    }
    words = ("model", "release", RUN_ID, "--key", str(model.officer_file), "--name", "O. Fficer")
    (tmp_path / "test.json").write_text(json.dumps(test))
    cli.ok(*words, "--privacy-test", "test.json")
    sent = json.dumps(json.loads(services.asked[-1][2])).encode()
    statement = verify_statement(sent, [model.officer.public], 1)
    assert statement.predicate["privacy_test"]["auc"] == 0.53
    for wrong, text in (
        ({"model_hash": "cd" * 32}, "of another model"),
        ({"auc": 0.9}, "outside of its own interval"),
        ({"auc": 2}, "less than or equal to 1"),
    ):
        (tmp_path / "test.json").write_text(json.dumps(test | wrong))
        assert text in cli.error(*words, "--privacy-test", "test.json", code=2)
    (tmp_path / "release.json").write_bytes(sent)
    late = ("model", "release", RUN_ID, "--signed", "release.json", "--privacy-test", "test.json")
    assert "give it with --key" in cli.error(*late, code=2)


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ("no officer", "not signed by a governance officer"),
        ("officer of another federation", "not signed by a governance officer"),
        ("no aggregator", "not signed by the aggregator"),
        ("altered model", "model.safetensors is not the file that was signed"),
        ("altered card", "card.json is not the file that was signed"),
        ("release of another model", "the release is of other files"),
        ("other aggregator", "fewer than 1 of the expected keys signed"),
    ],
)
def test_what_is_not_released_by_whom_it_needs_is_refused(
    wrong: str, text: str, cli: CommandLine, federation: Federation, tmp_path: Path
) -> None:
    model, stranger = Model(federation), IdentityKey.generate()
    files = {**model.files, "release.dsse.json": model.release()}
    match wrong:
        case "no officer":
            files["release.dsse.json"] = model.release(officer=model.aggregator)
        case "officer of another federation":
            files["release.dsse.json"] = model.release(officer=stranger)
        case "no aggregator":
            files["release.dsse.json"] = model.release(by=model.officer)
        case "altered model":
            files["model.safetensors"] = b"other weights"
        case "altered card":
            files["card.json"] = b'{"better": true}'
        case "release of another model":
            subjects = {"model.safetensors": b"o" * 32}
            other = Candidate.of(
                sign_statement(Statement(subjects, "x", PREDICATE), [model.aggregator]), model.aggregator.public
            )
            signed = sign_release(other, "O. Fficer", AT, model.officer)
            files["release.dsse.json"] = add_signature(signed, model.aggregator)
        case _:
            files["attestation.dsse.json"] = sign_statement(model.candidate.statement, [stranger])
    (tmp_path / "model.zip").write_bytes(zipped(files))
    assert text in cli.error("model", "check", "model.zip", "--trust", "fed/trust.json", code=1)


def test_a_candidate_is_accepted_only_when_it_is_asked_for(
    cli: CommandLine, federation: Federation, tmp_path: Path
) -> None:
    (tmp_path / "model.zip").write_bytes(zipped(Model(federation).files))
    words = ("model", "check", "model.zip", "--trust", "fed/trust.json")
    assert "give --candidate" in cli.error(*words, code=1)
    assert cli.facts(*words, "--candidate")["state"] == "candidate"
    keys = ("--governance-key", "00" * 32)
    assert "compare their keys" in cli.error(*words, *keys, "--candidate", code=1)
