"""A bundle proves what it says, and every way of tampering with its files is found."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cohortium_protocol.documents import sign_trust
from cohortium_protocol.notes import Checkpoint, sign_checkpoint
from cohortium_protocol.signing import EnvelopeSigner, IdentityKey
from cohortium_protocol.translog import Tree, leaf_hash
from cohortium_verify.kept import KnownCheckpoint
from cohortium_verify.report import VerificationReport
from cohortium_verify.verification import verify_bundle
from governance_stage import FEDERATION, STUDY, Stage
from study_story import study_lines

Honest = tuple[Stage, Path]


def failed(report: VerificationReport) -> set[str]:
    return {check.name for check in report.checks if check.state == "failed"}


def lines(folder: Path) -> list[bytes]:
    return (folder / "entries.jsonl").read_bytes()[:-1].split(b"\n")


def write(folder: Path, entries: list[bytes]) -> None:
    (folder / "entries.jsonl").write_bytes(b"".join(entry + b"\n" for entry in entries))


def root_of(entries: list[bytes]) -> bytes:
    stored: dict[Any, bytes] = {}
    tree = Tree(0, stored.__getitem__, stored.__setitem__)
    for entry in entries:
        tree.append(leaf_hash(entry))
    return tree.root()


def newest_checkpoint(folder: Path) -> Path:
    return max((folder / "checkpoints").iterdir())


def test_an_honest_bundle_is_proven(honest: Honest, result: Path, pinned: tuple[bytes, ...]) -> None:
    report = verify_bundle(result, pinned)
    assert report.verified, report.text()
    assert report.exit_code == 0
    assert report.keys_pinned
    assert report.tree_size == len(study_lines(honest[0]))
    assert report.origin == f"{FEDERATION}/audit/{STUDY}"
    assert "VERIFIED" in report.text()
    assert "run 00000000-0000-4000-8000-0000000000aa stands at FINISHED" in report.text()
    assert json.loads(json.dumps(report.as_dict()))["root"] == root_of(lines(result)).hex()


def test_without_pinned_keys_the_report_says_what_it_could_not_prove(result: Path) -> None:
    report = verify_bundle(result)
    assert report.verified
    assert not report.keys_pinned
    assert "come from the bundle itself" in report.text()


def test_an_edited_entry_is_found_at_its_place(result: Path, pinned: tuple[bytes, ...]) -> None:
    entries = lines(result)
    place = next(i for i, entry in enumerate(entries) if b"aggregate_opened" in entry)
    entries[place] = entries[place].replace(b'"dropped":[]', b'"dropped":["00000000-0000-4000-8000-0000000000ff"]')
    write(result, entries)
    report = verify_bundle(result, pinned)
    assert report.exit_code == 1
    assert {"entries", "entries against checkpoints"} <= failed(report)
    entry_check = next(check for check in report.checks if check.name == "entries")
    assert entry_check.failures[0].index == place
    assert f"entry {place}" in report.text()
    assert report.first_failing_index is not None
    assert report.first_failing_index <= place


def test_a_dropped_entry_is_found_between_two_checkpoints(result: Path, pinned: tuple[bytes, ...]) -> None:
    entries = lines(result)
    write(result, entries[:9] + entries[10:])
    report = verify_bundle(result, pinned)
    assert "entries against checkpoints" in failed(report)
    assert report.first_failing_index == 7  # checkpoints are at 7 and 14; entry 9 was dropped
    assert "one of the entries 7 to 13" in report.text()


def test_reordered_entries_are_found_though_each_is_signed(result: Path, pinned: tuple[bytes, ...]) -> None:
    entries = lines(result)
    entries[2], entries[3] = entries[3], entries[2]
    write(result, entries)
    report = verify_bundle(result, pinned)
    assert "entries" not in failed(report)
    assert "entries against checkpoints" in failed(report)
    assert report.first_failing_index == 0


def test_an_entry_repeated_is_found(result: Path, pinned: tuple[bytes, ...]) -> None:
    entries = lines(result)
    write(result, [*entries, entries[5]])
    report = verify_bundle(result, pinned)
    assert {"entries", "entries against checkpoints"} <= failed(report)
    assert "the same event is entry 5 already" in report.text()


def test_a_truncated_bundle_is_found(result: Path, pinned: tuple[bytes, ...]) -> None:
    entries = lines(result)
    write(result, entries[:20])
    report = verify_bundle(result, pinned)
    assert "entries against checkpoints" in failed(report)
    assert report.first_failing_index == 20
    assert "cut off" in report.text()


def test_a_bundle_cut_at_a_checkpoint_is_found_by_the_model_beside_it_and_by_a_known_checkpoint(
    result: Path, pinned: tuple[bytes, ...]
) -> None:
    kept = newest_checkpoint(result).read_text()
    for note in sorted((result / "checkpoints").iterdir())[3:]:
        note.unlink()
    write(result, lines(result)[:21])
    (result / "proofs" / "inclusion.json").write_text("[]")
    assert failed(verify_bundle(result, pinned)) == {"model bundle", "witnesses"}
    shutil.rmtree(result.parent / "model")
    assert failed(verify_bundle(result, pinned)) == {"witnesses"}  # the part before had no cosignatures yet
    assert verify_bundle(result, pinned, quorum=0).verified  # nothing else inside can tell; somebody's memory can
    known = KnownCheckpoint("the checkpoint you gave (1)", kept)
    report = verify_bundle(result, pinned, known_checkpoints=[known], quorum=0)
    assert failed(report) == {"entries against checkpoints"}


def test_stripped_cosignatures_are_found(result: Path, pinned: tuple[bytes, ...]) -> None:
    note = newest_checkpoint(result)
    lines_of_note = note.read_text().splitlines(keepends=True)
    assert len(lines_of_note) == 9  # origin, size, root, empty, the log's line and one for each of four hospitals
    note.write_text("".join(lines_of_note[:-2]))
    report = verify_bundle(result, pinned)
    assert failed(report) == {"witnesses"}
    assert "no checkpoint has the cosignatures of 3 of the 4 hospitals, the best has 2" in report.text()
    assert verify_bundle(result, pinned, quorum=2).verified
    note.write_text("".join(lines_of_note[:-1]))
    assert verify_bundle(result, pinned).verified


def test_a_forged_cosignature_is_found(result: Path, pinned: tuple[bytes, ...]) -> None:
    note = newest_checkpoint(result)
    *rest, last = note.read_text().splitlines(keepends=True)
    at = len(last) - 10
    note.write_text("".join([*rest, last[:at] + ("A" if last[at] != "A" else "B") + last[at + 1 :]]))
    report = verify_bundle(result, pinned)
    assert failed(report) == {"witnesses"}
    assert "bad cosignature of" in report.text()


def test_a_cosignature_of_another_checkpoint_is_found(result: Path, pinned: tuple[bytes, ...]) -> None:
    *_, older, newest = sorted((result / "checkpoints").iterdir())
    older.write_text(older.read_text() + newest.read_text().splitlines(keepends=True)[-1])
    assert failed(verify_bundle(result, pinned)) == {"witnesses"}


def test_a_forked_log_is_found_though_the_log_key_signed_both(
    honest: Honest, result: Path, pinned: tuple[bytes, ...]
) -> None:
    key = honest[0].service_key("audit")
    other = Checkpoint(f"{FEDERATION}/audit/{STUDY}", 14, b"\7" * 32)
    (result / "checkpoints" / "000000000014b.txt").write_text(sign_checkpoint(other, key))
    report = verify_bundle(result, pinned)
    assert {"entries against checkpoints", "consistency of all checkpoints"} <= failed(report)
    assert "two histories" in report.text()


def test_history_rewritten_and_signed_again_does_not_continue_the_older_checkpoints(
    honest: Honest, result: Path, pinned: tuple[bytes, ...]
) -> None:
    """The log's operator drops an event and signs a new last checkpoint; the older ones are already out."""
    entries = [entry for place, entry in enumerate(lines(result)) if place != 3]
    write(result, entries)
    newest_checkpoint(result).unlink()
    rewritten = Checkpoint(f"{FEDERATION}/audit/{STUDY}", len(entries), root_of(entries))
    note = sign_checkpoint(rewritten, honest[0].service_key("audit"))
    (result / "checkpoints" / f"{len(entries):012}.txt").write_text(note)
    report = verify_bundle(result, pinned)
    assert {"entries against checkpoints", "consistency of all checkpoints"} <= failed(report)


def test_an_entry_resigned_by_a_stranger_is_found(result: Path, pinned: tuple[bytes, ...]) -> None:
    entries = lines(result)
    whole = json.loads(entries[0])
    body = json.dumps(whole["event"], sort_keys=True, separators=(",", ":")).encode()
    whole["signature"] = EnvelopeSigner(whole["key_id"], IdentityKey.generate()).sign(body).hex()
    entries[0] = json.dumps(whole, sort_keys=True, separators=(",", ":")).encode()
    write(result, entries)
    report = verify_bundle(result, pinned)
    assert "entries" in failed(report)
    assert report.first_failing_index == 0
    assert "somebody else signed it" in report.text()


def test_a_bundle_made_whole_by_a_stranger_fails_only_the_pinned_keys(
    honest: Honest, result: Path, pinned: tuple[bytes, ...]
) -> None:
    """A forger makes officers of his own: only the reader's own keys tell."""
    forgers = (IdentityKey.generate(), IdentityKey.generate())
    trust = honest[0].files.trust.model_copy(
        update={"governance_keys": tuple(sorted(key.public for key in forgers)), "signatures": ()}
    )
    for forger in forgers:
        trust = sign_trust(trust, forger)
    (result / "trust.json").write_text(trust.model_dump_json())
    report = verify_bundle(result, pinned)
    assert {"trust document", "membership"} & failed(report) == {"trust document"}
    assert "trust document" not in failed(verify_bundle(result))
    assert "membership" in failed(verify_bundle(result))


def test_one_stolen_officer_key_cannot_lower_the_threshold(
    honest: Honest, result: Path, pinned: tuple[bytes, ...]
) -> None:
    trust = honest[0].files.trust.model_copy(update={"threshold": 1, "signatures": ()})
    trust = sign_trust(trust, honest[0].files.officers[0])
    (result / "trust.json").write_text(trust.model_dump_json())
    assert "trust document" in failed(verify_bundle(result, pinned))


def test_a_service_cannot_have_another_key_while_a_log_lives(
    honest: Honest, result: Path, pinned: tuple[bytes, ...]
) -> None:
    """The officers exchange a key that leaked: what it signed before is nobody's any more. The bundle from before
    stays what it was."""
    before = honest[0].files.trust
    services = before.services.model_copy(update={"scheduler": IdentityKey.generate().public})
    trust = before.model_copy(update={"version": 2, "services": services, "signatures": ()})
    for officer in honest[0].files.officers:
        trust = sign_trust(trust, officer)
    (result / "trust.json").write_text(trust.model_dump_json())
    report = verify_bundle(result, pinned)
    assert "trust document" not in failed(report)
    assert "entries" in failed(report)
    assert "not one of service:scheduler" in report.text()
    assert "or that service has another key since (verify the bundle that was exported before)" in report.text()
    (result / "trust.json").write_text(before.model_dump_json())
    assert verify_bundle(result, pinned).verified


def _resign_checkpoint(folder: Path) -> None:
    note = newest_checkpoint(folder)
    size = len(lines(folder))
    checkpoint = Checkpoint(f"{FEDERATION}/audit/{STUDY}", size, root_of(lines(folder)))
    note.write_text(sign_checkpoint(checkpoint, IdentityKey.generate()))


def _edit_proof(name: str) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / "proofs" / name
        proofs = json.loads(path.read_text())
        proofs[-1]["hashes"][0] = "00" * 32
        path.write_text(json.dumps(proofs))

    return edit


def _strip(name: str) -> Callable[[Path], None]:
    def strip(folder: Path) -> None:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return strip


def _overwrite(name: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(text) and None


def _strip_signatures(folder: Path) -> None:
    path = folder / "manifests" / "000001.json"
    manifest = json.loads(path.read_text())
    manifest["signatures"] = manifest["signatures"][:1]
    path.write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("damage", "check"),
    [
        (_strip("trust.json"), "parts of the bundle"),
        (_strip("entries.jsonl"), "parts of the bundle"),
        (_strip("manifests"), "parts of the bundle"),
        (_strip("checkpoints"), "checkpoints"),
        (_strip("proofs"), "consistency of all checkpoints"),
        (_strip("proofs/inclusion.json"), "inclusion of model entries"),
        (_strip("proofs/consistency.json"), "consistency of all checkpoints"),
        (_overwrite("proofs/inclusion.json", "[]"), "inclusion of model entries"),
        (_overwrite("proofs/consistency.json", "[]"), "consistency of all checkpoints"),
        (_overwrite("trust.json", "{"), "parts of the bundle"),
        (_overwrite("manifests/000001.json", '{"study_id": 3}'), "parts of the bundle"),
        (_overwrite("entries.jsonl", "{}"), "parts of the bundle"),
        (_overwrite("entries.jsonl", "[" * 3000 + "\n"), "entries"),
        (_overwrite("entries.jsonl", '{"event":{},"key_id":"service:audit","signature":"00"}\n'), "entries"),
        (_edit_proof("inclusion.json"), "inclusion of model entries"),
        (_edit_proof("consistency.json"), "consistency of all checkpoints"),
        (_resign_checkpoint, "checkpoints"),
        (_strip_signatures, "membership"),
        (_overwrite("../model/card.json", "{ }"), "model bundle"),
        (_overwrite("../model/attestation.dsse.json", "{}"), "model bundle"),
        (_strip("../model/model.safetensors"), "model bundle"),
    ],
)
def test_every_damaged_part_is_named_and_nothing_crashes(
    result: Path, pinned: tuple[bytes, ...], damage: Callable[[Path], None], check: str
) -> None:
    damage(result)
    report = verify_bundle(result, pinned)
    assert report.exit_code == 1
    assert check in failed(report), report.text()
    assert "NOT VERIFIED" in report.text()


def test_what_is_no_bundle_is_unreadable_and_not_refuted(tmp_path: Path) -> None:
    for folder in (tmp_path / "nowhere", tmp_path):
        report = verify_bundle(folder)
        assert report.exit_code == 2
        assert not report.verified
        assert str(folder) in report.text()


@pytest.mark.parametrize("name", ["consent.json", "platform/1.tlog-proof", "../model/attestation.dsse.json"])
def test_what_would_be_read_without_end_is_no_bundle(result: Path, pinned: tuple[bytes, ...], name: str) -> None:
    place = result / name
    place.parent.mkdir(exist_ok=True)
    place.unlink(missing_ok=True)
    place.symlink_to("/dev/zero")
    report = verify_bundle(result, pinned)
    assert (report.exit_code, f"{place.name} is no plain file" in report.text()) == (2, True)


def test_a_result_without_a_model_beside_it_says_so(result: Path, pinned: tuple[bytes, ...]) -> None:
    shutil.rmtree(result.parent / "model")
    report = verify_bundle(result, pinned)
    assert report.verified
    assert "none lies beside the bundle" in report.text()


def test_a_file_beside_the_model_that_nobody_signed_is_mentioned(result: Path, pinned: tuple[bytes, ...]) -> None:
    (result.parent / "model" / "extra.bin").write_bytes(b"?")
    report = verify_bundle(result, pinned)
    assert report.verified
    assert "extra.bin" in report.text()
