"""A model that the log or the folder says is released is so, or the check fails; without both it is a candidate."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from cohortium_messages import events as ev
from cohortium_messages.envelope import Envelope
from cohortium_messages.ids import RunId, SiteId
from cohortium_messages.secure_sum import ModelRef
from cohortium_messages.study import Study
from cohortium_protocol.attest import Statement, add_signature, sign_statement
from cohortium_protocol.encoding import sha256
from cohortium_protocol.release import Candidate, Roles, sign_release
from cohortium_protocol.signing import IdentityKey
from cohortium_verify.log import Entry
from cohortium_verify.release import check_releases
from cohortium_verify.report import Check

RUN = RunId("00000000-0000-4000-8000-0000000000aa")
SITE_ID = SiteId("00000000-0000-4000-8000-000000000001")
MODEL = ModelRef(version=3, model_hash=b"m" * 32)
AT = datetime(2026, 11, 21, tzinfo=UTC)
AGGREGATOR, OFFICER, SITE, STRANGER = (IdentityKey.generate() for _ in range(4))
STUDY: dict[str, Any] = {
    "apiVersion": "cohortium/study/1",
    "name": "heart",
    "purpose": "test",
    "dataset": {
        "features": [{"name": "age", "type": "float", "range": [18, 110]}],
        "label": {"name": "disease", "type": "binary"},
        "split": {"test": 0.3, "seed": 7},
    },
    "recipe": {"trainer": "torch.logistic"},
    "federation": {"rounds": 2, "min_sites": 3},
}


@dataclass
class Story:
    """A model, its release and what the log says of them; a test changes one thing."""

    folder: Path
    sites_needed: int = 0
    signers: Sequence[IdentityKey] = (OFFICER, AGGREGATOR)
    event: dict[str, Any] = field(default_factory=dict)
    recorded: bool = True
    beside: bool = True

    def check(self) -> Check:
        study = Study.model_validate(STUDY | {"release_sites": self.sites_needed}).canonical()
        files = {"model.safetensors": b"w", "study.json": study}
        subjects = {name: hashlib.sha256(data).digest() for name, data in files.items()}
        attestation = sign_statement(Statement(subjects, "x", {"run": RUN, "model": {"version": 3}}), [AGGREGATOR])
        first, *others = self.signers
        release = sign_release(Candidate.of(attestation, AGGREGATOR.public), "O. Fficer", AT, first)
        for key in others:
            release = add_signature(release, key)
        for name, data in {**files, "attestation.dsse.json": attestation}.items():
            (self.folder / name).write_bytes(data)
        if self.beside:
            (self.folder / "release.dsse.json").write_bytes(release)
        bundled = ev.ModelBundled(run_id=RUN, model=MODEL, attestation_sha256=sha256(attestation))
        values = {
            "run_id": RUN,
            "model": MODEL,
            "attestation_sha256": sha256(attestation),
            "release_sha256": sha256(release),
            "officers": (OFFICER.public,),
            "sites": (SITE_ID,) if SITE in self.signers else (),
        }
        said = [bundled, *([ev.ReleaseSigned.model_validate(values | self.event)] if self.recorded else [])]
        roles = Roles(AGGREGATOR.public, frozenset({OFFICER.public}), {SITE_ID: SITE.public})
        return check_releases(self.folder / "attestation.dsse.json", roles, entries(said))


def entries(messages: Sequence[ev.AuditEvent]) -> list[Entry]:
    found = []
    for index, message in enumerate(messages):
        data = json.loads(message.model_dump_json())
        envelope = Envelope(id=f"e{index:031}", source="/x", type=message.type_name, time=AT, data=data)
        found.append(Entry(index, "service:aggregator", envelope, message))
    return found


def test_a_released_model_says_by_whom(tmp_path: Path) -> None:
    check = Story(tmp_path, sites_needed=1, signers=(OFFICER, SITE, AGGREGATOR)).check()
    assert check.state == "passed", check
    assert "by O. Fficer, governance officer and 1 hospital" in check.fact


def test_without_a_release_it_is_a_candidate(tmp_path: Path) -> None:
    check = Story(tmp_path, recorded=False, beside=False).check()
    assert (check.state, check.fact) == ("passed", "the model is a candidate; nobody released it")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"signers": (AGGREGATOR,)}, "not signed by a governance officer"),
        ({"signers": (STRANGER, AGGREGATOR)}, "not signed by a governance officer"),
        ({"signers": (OFFICER,)}, "not signed by the aggregator"),
        ({"sites_needed": 1}, "not signed by 1 more member hospital"),
        ({"beside": False}, "release.dsse.json does not lie beside it"),
        ({"recorded": False}, "the log has no release of it"),
        ({"event": {"release_sha256": b"x" * 32}}, "not the one on record"),
        ({"event": {"officers": (STRANGER.public,)}}, "other people than the log says"),
        ({"event": {"model": ModelRef(version=2, model_hash=b"m" * 32)}}, "was not bundled in this run"),
    ],
)
def test_what_is_said_to_be_released_and_is_not(changes: dict[str, Any], text: str, tmp_path: Path) -> None:
    check = Story(tmp_path, **changes).check()
    assert check.state == "failed"
    assert any(text in str(failure) for failure in check.failures), check.failures
