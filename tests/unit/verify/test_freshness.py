"""A fresher log can only take a model away: it retires it, or releases a later one; another history is refused."""

import json
import shutil
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest

from cohortium_messages import events as ev
from cohortium_messages.envelope import Envelope
from cohortium_messages.ids import RunId
from cohortium_messages.withdrawals import ModelRetired
from cohortium_protocol.documents import GovernancePin
from cohortium_protocol.encoding import sha256
from cohortium_protocol.notes import Checkpoint
from cohortium_verify import not_loaded as refused
from cohortium_verify.bundle import open_bundle
from cohortium_verify.freshness import check_not_taken_back, check_stands
from cohortium_verify.log import Entry, MerkleTree
from cohortium_verify.verification import verify_bundle
from governance_stage import FEDERATION, STUDY, Stage
from study_story import RUN, Line, attestation, bundle_of, model, study_lines

LATER = RunId("00000000-0000-4000-8000-0000000000bb")
WITHDRAWAL = bytes(32)


def released(stage: Stage) -> ev.ReleaseSigned:
    return ev.ReleaseSigned(
        run_id=RUN,
        model=model(1),
        attestation_sha256=sha256(attestation(stage)),
        release_sha256=bytes(32),
        officers=(stage.files.officers[0].public,),
        sites=(),
    )


async def told(stage: Stage, folder: Path, *more: ev.AuditEvent) -> Path:
    """The audit bundle of an honest study whose model is released, and what the aggregator says after that."""
    lines: Sequence[Line] = [*study_lines(stage), *(Line("aggregator", one) for one in (released(stage), *more))]
    audit = await bundle_of(stage, lines, folder)
    shutil.rmtree(folder / "model")  # a loader has its model elsewhere
    return audit


def check(stage: Stage, folder: Path, *, size: int | None = None, root: bytes | None = None) -> None:
    tree = MerkleTree(open_bundle(folder).entries())
    size = tree.size if size is None else size
    at = Checkpoint(f"{FEDERATION}/audit/{STUDY}", size, root or tree.root(min(size, tree.size)))
    trust = stage.files.trust
    check_stands(folder, trust, GovernancePin.of(trust), released(stage), at)


async def test_a_model_stands_while_the_log_says_nothing_else(tmp_path: Path) -> None:
    stage = Stage.at(tmp_path)
    folder = await told(stage, tmp_path / "result")
    report = verify_bundle(folder)
    assert report.verified, report.text()
    check(stage, folder)
    with pytest.raises(refused.LogNotFresh, match="fewer than the 9999 of the release"):
        check(stage, folder, size=9999)
    with pytest.raises(refused.LogNotFresh, match="another history"):
        check(stage, folder, root=bytes(32))
    (folder / "entries.jsonl").write_bytes((folder / "entries.jsonl").read_bytes().replace(b"auc", b"AUC", 1))
    with pytest.raises(refused.LogNotFresh, match="does not verify"):
        check(stage, folder)


def entries(*messages: ev.AuditEvent) -> list[Entry]:
    found = []
    for index, message in enumerate(messages):
        data = json.loads(message.model_dump_json())
        time = datetime(2026, 11, 21, tzinfo=UTC)
        envelope = Envelope(id=f"e{index:031}", source="/x", type=message.type_name, time=time, data=data)
        found.append(Entry(index, "service:aggregator", envelope, message))
    return found


def test_a_retired_model_is_refused(tmp_path: Path) -> None:
    release = released(Stage.at(tmp_path))
    retired = ModelRetired(run_id=RUN, model=model(1), withdrawal=WITHDRAWAL)
    check_not_taken_back(entries(release, retired.model_copy(update={"model": model(0)})), release)
    with pytest.raises(refused.ModelIsRetired, match=r"entry 1 .* retires this model, after withdrawal 0000"):
        check_not_taken_back(entries(release, retired), release)


def test_a_model_that_another_one_followed_is_refused(tmp_path: Path) -> None:
    release = released(Stage.at(tmp_path))
    other = release.model_copy(update={"run_id": LATER})
    check_not_taken_back(entries(other, release), release)
    with pytest.raises(refused.ModelIsSuperseded, match=f"entry 1 .* a later model of this study, of run {LATER}"):
        check_not_taken_back(entries(release, other), release)
    with pytest.raises(refused.LogNotFresh, match="does not hold the release"):
        check_not_taken_back(entries(other), release)
