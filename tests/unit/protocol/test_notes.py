"""Notes and checkpoints: the right text from the right key, or a refusal."""

import pytest
from federation_in_memory import digest

from cohortium_protocol.errors import LogRefused
from cohortium_protocol.notes import (
    MAX_SIGNATURES,
    Checkpoint,
    VerifierKey,
    open_checkpoint,
    open_note,
    sign_checkpoint,
    sign_note,
)
from cohortium_protocol.signing import IdentityKey

KEY = IdentityKey.from_seed(digest("log"))
OTHER = IdentityKey.from_seed(digest("other"))
ORIGIN = "fed.example.org/audit/heart"
VERIFIER = VerifierKey(ORIGIN, KEY.public)
CHECKPOINT = Checkpoint(ORIGIN, 48211, digest("root"))


def test_checkpoint_round_trip() -> None:
    note = sign_checkpoint(CHECKPOINT, KEY)
    assert note.startswith(f"{ORIGIN}\n48211\n")
    assert open_checkpoint(note, VERIFIER) == CHECKPOINT
    assert VerifierKey.parse(str(VERIFIER)) == VERIFIER


def test_more_signatures_and_extension_lines_do_no_harm() -> None:
    text = CHECKPOINT.text() + "extension\n"
    note = sign_note(text, ORIGIN, KEY) + sign_note(text, "witness", OTHER).split("\n\n")[1]
    assert open_checkpoint(note, VERIFIER) == CHECKPOINT
    assert open_note(note, (VerifierKey("witness", OTHER.public),)) == text


@pytest.mark.parametrize(
    "change",
    [
        lambda note: note.replace("48211", "48212"),
        lambda note: note.replace("48211", "048211"),
        lambda note: note[:-1],
        lambda note: note.replace("\n\n", "\n"),
        lambda note: note.replace("\u2014 ", "- "),
        lambda note: note[:-10] + "AAAA" + note[-6:],
        lambda note: note + "\u2014 x\n",
        lambda note: note + "\u2014 witness !!!\n",
        lambda note: note + "\u2014 witness AAAA\n",
        lambda note: note + "\u2014 witness AAAAAAAA\n" * (MAX_SIGNATURES + 1),
        lambda note: "",
    ],
)
def test_changed_notes_are_refused(change: object) -> None:
    with pytest.raises(LogRefused):
        open_checkpoint(change(sign_checkpoint(CHECKPOINT, KEY)), VERIFIER)


def test_another_key_or_origin_is_refused() -> None:
    with pytest.raises(LogRefused):
        open_checkpoint(sign_checkpoint(CHECKPOINT, OTHER), VERIFIER)
    foreign = Checkpoint("fed.example.org/audit/lung", 1, bytes(32))
    with pytest.raises(LogRefused, match="another log"):
        open_checkpoint(sign_note(foreign.text(), ORIGIN, KEY), VERIFIER)


@pytest.mark.parametrize(
    "text", ["", "origin\n1\n", "origin\n-1\nAAAA\n", "origin\nx\nAAAA\n", "origin\n1\nAAAA\n", "\n1\n\n"]
)
def test_text_that_is_no_checkpoint_is_refused(text: str) -> None:
    with pytest.raises(LogRefused):
        Checkpoint.parse(text)


@pytest.mark.parametrize(
    "text", ["", "name", "name+00000000+AAAA", "a b+00000000+AAAA", str(VERIFIER).replace("heart", "lung")]
)
def test_text_that_is_no_key_is_refused(text: str) -> None:
    with pytest.raises(LogRefused):
        VerifierKey.parse(text)


@pytest.mark.parametrize(
    ("text", "name"), [("no newline", "name"), ("tab\t\n", "name"), ("text\n", "two words"), ("text\n", "a+b")]
)
def test_what_no_note_can_hold_is_an_error(text: str, name: str) -> None:
    with pytest.raises(ValueError):
        sign_note(text, name, KEY)
