"""What a hospital's witness has kept is given to the verifier as the witness wrote it."""

from pathlib import Path

import pytest
import yaml
from cohortium_hospital import __main__ as hospital

from cohortium_connector.witness import WitnessBook, WitnessState
from cohortium_protocol.notes import Checkpoint, VerifierKey, open_checkpoint, sign_checkpoint
from cohortium_protocol.signing import IdentityKey
from cohortium_verify.command import OptionRefused, main, verify_folder
from cohortium_verify.kept import NotKept, read_kept
from cohortium_verify.report import Check, VerificationReport
from governance_stage import FEDERATION, STUDY, Stage

Honest = tuple[Stage, Path]
ORIGIN = f"{FEDERATION}/audit/{STUDY}"


def own_notes(result: Path) -> list[str]:
    return [file.read_text() for file in sorted((result / "checkpoints").iterdir(), key=lambda path: int(path.stem))]


def size_of(note: str) -> int:
    return int(note.split("\n")[1])


def fork_of(stage: Stage, size: int) -> str:
    """What the log's own key signed of another history."""
    return sign_checkpoint(Checkpoint(ORIGIN, size, b"\x07" * 32), stage.service_key("audit"))


def state_of(stage: Stage, note: str) -> WitnessState:
    """The state of a witness that cosigned this note."""
    key = VerifierKey(ORIGIN, stage.service_key("audit").public)
    return WitnessState().after(open_checkpoint(note, key), note)


def verified(result: Path, pinned: tuple[bytes, ...], *kept: Path) -> VerificationReport:
    return verify_folder(result, [key.hex() for key in pinned], kept, None)


def against(report: VerificationReport) -> Check:
    return next(check for check in report.checks if check.name == "entries against checkpoints")


def test_the_state_of_an_honest_witness_verifies(
    honest: Honest, result: Path, pinned: tuple[bytes, ...], tmp_path: Path
) -> None:
    book = WitnessBook(tmp_path / "witness")
    for note in own_notes(result):
        book.save(STUDY, state_of(honest[0], note))
        report = verified(result, pinned, tmp_path / "witness" / f"{STUDY}.json")
        assert report.verified, report.text()


@pytest.mark.parametrize("ahead", [0, 1, -1])
def test_a_fork_is_named_and_the_note_that_fits_is_not(
    ahead: int, honest: Honest, result: Path, pinned: tuple[bytes, ...], tmp_path: Path
) -> None:
    held = own_notes(result)[-2]
    size = size_of(held) + ahead
    state = state_of(honest[0], held).model_copy(update={"fork": fork_of(honest[0], size)})
    book = WitnessBook(tmp_path / "witness")
    book.save(STUDY, state)
    evidence, written = book.keep_evidence(STUDY, state), tmp_path / "witness" / f"{STUDY}.json"
    says = f"does not fit: the log signed another history of {size} entries than this bundle's"
    for kept, name in ((evidence, f"{STUDY}.fork.txt, note 2 of 2"), (written, f"{STUDY}.json, the fork")):
        report = verified(result, pinned, kept)
        assert {check.name for check in report.checks if check.state == "failed"} == {"entries against checkpoints"}
        (failure,) = against(report).failures
        assert failure.text.startswith(f"the checkpoint you gave (1: {name}) {says}")
        assert failure.index is None  # no entry of this bundle is wrong


def test_the_bundle_of_the_other_history_is_refuted_by_the_note_held(
    honest: Honest, result: Path, pinned: tuple[bytes, ...], tmp_path: Path
) -> None:
    offered = own_notes(result)[-1]
    held = fork_of(honest[0], size_of(offered) - 2)
    state = state_of(honest[0], held).model_copy(update={"fork": offered})
    book = WitnessBook(tmp_path)
    tmp_path.joinpath("lone.txt").write_text(held)
    report = verified(result, pinned, tmp_path / "lone.txt", book.keep_evidence(STUDY, state))
    assert [failure.text.partition(" does not fit")[0] for failure in against(report).failures] == [
        "the checkpoint you gave (1)",
        f"the checkpoint you gave (2: {STUDY}.fork.txt, note 1 of 2)",
    ]


def test_a_fork_longer_than_the_bundle_is_named_too(
    honest: Honest, result: Path, pinned: tuple[bytes, ...], tmp_path: Path
) -> None:
    held = own_notes(result)[-1]
    state = state_of(honest[0], held).model_copy(update={"fork": fork_of(honest[0], size_of(held) + 5)})
    (failure,) = against(verified(result, pinned, WitnessBook(tmp_path).keep_evidence(STUDY, state))).failures
    assert f"note 2 of 2) is of {size_of(held) + 5} entries, the bundle holds {size_of(held)}" in failure.text


def test_a_note_that_the_log_did_not_sign_is_named(result: Path, pinned: tuple[bytes, ...], tmp_path: Path) -> None:
    good = own_notes(result)[0]
    (tmp_path / "two.txt").write_text(f"{good}----\nhello\n")
    report = verified(result, pinned, tmp_path / "two.txt")
    (failed,) = (check for check in report.checks if check.state == "failed")
    assert failed.name == "checkpoints"
    assert failed.fact.startswith("the checkpoint you gave (1: two.txt, note 2 of 2) is not a checkpoint of")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "is empty"),
        ("\n----\n\n", "is empty"),
        ('{"note": ', "begins as JSON and is none"),
        ('{"note": 3}', "is not text"),
        (WitnessState().model_dump_json(), "has cosigned nothing yet"),
    ],
)
def test_a_file_without_a_note_is_refused(
    text: str, why: str, result: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "kept").write_text(text)
    with pytest.raises(NotKept, match=why):
        read_kept(text, "kept", 1)
    with pytest.raises(OptionRefused, match=why):
        verified(result, (), tmp_path / "kept")
    assert main([str(result), "--checkpoint", str(tmp_path / "kept")]) == 2
    assert why in capsys.readouterr().err


# `cohortium-connector verify FOLDER --config FILE`


def configured(stage: Stage, folder: Path, *states: WitnessState, keys: tuple[bytes, ...] = ()) -> Path:
    """The settings of a hospital whose witness has been through these states."""
    for state in states:
        WitnessBook(folder / "spool" / "witness").save(STUDY, state)
    settings = {
        "amqp_url": "memory://",
        "spool_dir": str(folder / "spool"),
        "governance_keys": [key.hex() for key in keys or (officer.public for officer in stage.files.officers)],
        "governance_threshold": 2,
    }
    file = folder / "connector.yaml"
    file.write_text(yaml.safe_dump(settings))
    return file


def held_of(stage: Stage, result: Path, count: int) -> WitnessState:
    """The state of a witness that cosigned the first `count` checkpoints, one after the other."""
    state, key = WitnessState(), VerifierKey(ORIGIN, stage.service_key("audit").public)
    for note in own_notes(result)[:count]:
        state = state.after(open_checkpoint(note, key), note)
    return state


def by_hospital(capsys: pytest.CaptureFixture[str], result: Path, config: Path, *more: str) -> tuple[int, str]:
    code = hospital.main(["verify", str(result), "--config", str(config), *more])
    said = capsys.readouterr()
    return code, said.out + said.err


def cut(result: Path, checkpoints: int) -> int:
    """The bundle as it was when it had so many checkpoints; returns its size."""
    notes = sorted((result / "checkpoints").iterdir(), key=lambda path: int(path.stem))
    size = int(notes[checkpoints - 1].stem)
    for note in notes[checkpoints:]:
        note.unlink()
    entries = (result / "entries.jsonl").read_bytes().splitlines(keepends=True)
    (result / "entries.jsonl").write_bytes(b"".join(entries[:size]))
    return size


def test_a_hospital_needs_nothing_but_the_bundle(
    honest: Honest, result: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = configured(honest[0], tmp_path, held_of(honest[0], result, 3))
    code, text = by_hospital(capsys, result.parent, config)
    size = size_of(own_notes(result)[2])
    assert code == 0, text
    assert f"VERIFIED. The governance keys are those of {config}." in text
    assert f"seen by this hospital: 3 states that this hospital cosigned, the last of {size} entries" in text


def test_a_hospital_that_cosigned_nothing_is_told_so(
    honest: Honest, result: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, text = by_hospital(capsys, result, configured(honest[0], tmp_path))
    assert code == 0
    assert "has cosigned nothing of this log: nothing to hold it against" in text


def test_the_keys_of_its_configuration_count(
    honest: Honest, result: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Officers of another federation, or too few of its own, are found; keys given by hand come in their place."""
    strangers = tuple(IdentityKey.generate().public for _ in range(2))
    code, text = by_hospital(capsys, result, configured(honest[0], tmp_path, keys=strangers))
    assert (code, "FAILED  trust document" in text) == (1, True)
    own = [officer.public.hex() for officer in honest[0].files.officers]
    given = [word for key in own for word in ("--governance-key", key)]
    config = configured(honest[0], tmp_path, keys=strangers)
    code, text = by_hospital(capsys, result, config, *given)
    assert (code, "VERIFIED. The governance keys are the ones you gave." in text) == (0, True)


def test_a_bundle_older_than_what_the_hospital_saw_is_called_so(
    honest: Honest, result: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saw = held_of(honest[0], result, 4)
    size = cut(result, 2)
    code, text = by_hospital(capsys, result, configured(honest[0], tmp_path, saw))
    assert code == 1
    assert (
        f"this hospital cosigned {saw.size} entries, and the bundle holds {size}: it is older than what you saw, "
        f"and continues what you saw up to {size}; fetch a newer one" in text
    )
    assert "the checkpoint that this hospital cosigned (witness/heart-disease.json) is of" in text


@pytest.mark.parametrize("older", [False, True])
def test_a_bundle_of_another_history_than_the_hospital_saw_is_called_a_fork(
    older: bool, honest: Honest, result: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whether it is as long as what was seen, or an older one."""
    saw = held_of(honest[0], result, 4)
    forked = tuple(one.model_copy(update={"root": b"\x07" * 32}) for one in saw.seen[:1])
    if older:
        cut(result, 2)
    state = saw.model_copy(update={"seen": (*forked, *saw.seen[1:])})
    code, text = by_hospital(capsys, result, configured(honest[0], tmp_path, state))
    assert code == 1
    assert f"cosigned another history of {forked[0].size} entries than this bundle's: the log forked" in text


def test_a_fork_that_the_witness_found_is_held_against_the_bundle(
    honest: Honest, result: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saw = held_of(honest[0], result, 2)
    state = saw.model_copy(update={"fork": fork_of(honest[0], saw.size + 1)})
    code, text = by_hospital(capsys, result, configured(honest[0], tmp_path, state))
    assert code == 1
    assert f"the fork it was shown (witness/{STUDY}.json) does not fit" in text


def test_what_cannot_be_read_is_named_and_nothing_is_verified(
    honest: Honest, result: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = configured(honest[0], tmp_path, held_of(honest[0], result, 2))
    (tmp_path / "spool" / "witness" / f"{STUDY}.json").write_text("{")
    code, text = by_hospital(capsys, result, config)
    assert (code, f"{STUDY}.json cannot be read (it is damaged)" in text) == (2, True)
    code, text = by_hospital(capsys, result, tmp_path / "nowhere.yaml")
    assert (code, "nowhere.yaml" in text) == (2, True)
    code, text = by_hospital(capsys, tmp_path, configured(honest[0], tmp_path))
    assert (code, "holds no audit bundle" in text) == (2, True)
