"""Cosignatures, requests for them, and what a witness agrees to: C2SP tlog-cosignature and tlog-witness."""

import base64
import hashlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cohortium_protocol.errors import LogRefused
from cohortium_protocol.notes import Checkpoint, VerifierKey, open_checkpoint, sign_checkpoint
from cohortium_protocol.signing import IdentityKey
from cohortium_protocol.translog import Tree, leaf_hash
from cohortium_protocol.witness import (
    NOTHING,
    Continues,
    CosignerKey,
    Elsewhere,
    Held,
    LogForked,
    Request,
    check_cosignature,
    cosign,
    cosignatures,
    judge,
    quorum,
)

ORIGIN = "fl.example.org/audit/heart"
LOG = IdentityKey.from_seed(bytes(32))
LOG_KEY = VerifierKey(ORIGIN, LOG.public)
WITNESS = IdentityKey.from_seed(b"\1" * 32)
NAME = "fl.example.org/witness/a"


class Log:
    """A log whose leaves are told apart by `word`: two words, two histories."""

    def __init__(self, size: int, word: bytes = b"leaf", *, same: int = 0) -> None:
        stored: dict[Any, bytes] = {}
        self.tree = Tree(0, stored.__getitem__, stored.__setitem__)
        for number in range(size):
            self.tree.append(leaf_hash((b"leaf" if number < same else word) + b"%d" % number))

    def checkpoint(self, size: int) -> Checkpoint:
        return Checkpoint(ORIGIN, size, self.tree.root(size))

    def request(self, old: int, new: int) -> Request:
        proof = self.tree.consistency(old, new) if old else []
        return Request(old, tuple(proof), sign_checkpoint(self.checkpoint(new), LOG))

    def held(self, size: int) -> Held:
        return Held(size, self.tree.root(size)) if size else NOTHING


def test_a_cosignature_is_what_the_specification_says() -> None:
    checkpoint = Log(5).checkpoint(5)
    line = cosign(checkpoint, NAME, WITNESS, 1_700_000_000)
    prefix, name, encoded = line.rstrip("\n").split(" ")
    blob = base64.b64decode(encoded)
    key_hash = hashlib.sha256(NAME.encode() + b"\n\x04" + WITNESS.public).digest()[:4]
    assert (prefix, name) == ("\u2014", NAME)
    assert blob[:12] == key_hash + (1_700_000_000).to_bytes(8, "big")
    text = f"cosignature/v1\ntime 1700000000\n{ORIGIN}\n5\n{base64.b64encode(checkpoint.root).decode()}\n"
    assert blob[12:] == WITNESS.sign(text.encode())
    assert check_cosignature(line, checkpoint, CosignerKey(NAME, WITNESS.public)) == 1_700_000_000


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        (cosign(Log(6).checkpoint(6), NAME, WITNESS, 7), "bad cosignature"),
        (cosign(Log(5).checkpoint(5), NAME, LOG, 7), "not a cosignature by the key"),
        (cosign(Log(5).checkpoint(5), "fl.example.org/witness/b", WITNESS, 7), "not a signature line"),
        ("\u2014 fl.example.org/witness/a ***\n", "not base64"),
        ("- fl.example.org/witness/a AAAA\n", "not a signature line"),
    ],
)
def test_what_is_no_cosignature_of_this_checkpoint_is_refused(line: str, fault: str) -> None:
    with pytest.raises(LogRefused, match=fault):
        check_cosignature(line, Log(5).checkpoint(5), CosignerKey(NAME, WITNESS.public))


def test_the_time_cannot_be_changed() -> None:
    checkpoint = Log(5).checkpoint(5)
    _, _, encoded = cosign(checkpoint, NAME, WITNESS, 7).rstrip("\n").split(" ")
    blob = bytearray(base64.b64decode(encoded))
    blob[11] += 1
    line = f"\u2014 {NAME} {base64.b64encode(blob).decode()}\n"
    with pytest.raises(LogRefused, match="bad cosignature"):
        check_cosignature(line, checkpoint, CosignerKey(NAME, WITNESS.public))


def test_cosignatures_are_found_in_a_note_beside_others() -> None:
    checkpoint = Log(5).checkpoint(5)
    note = sign_checkpoint(checkpoint, LOG)
    note += cosign(checkpoint, "somebody.else/w", LOG, 3) + cosign(checkpoint, NAME, WITNESS, 9)
    assert cosignatures(note, checkpoint, [CosignerKey(NAME, WITNESS.public)]) == {NAME: 9}
    assert cosignatures(note, checkpoint, []) == {}


@given(old=st.integers(0, 40), new=st.integers(1, 40))
def test_a_request_reads_back_as_it_was_written(old: int, new: int) -> None:
    request = Log(40).request(min(old, new), new)
    assert Request.parse(request.text()) == request


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "not a request"),
        ("old 01\n\nnote\n\n", "not a request"),
        ("old -1\n\nnote", "not a request"),
        ("old 1\nAAAA\n\nnote", "32 bytes"),
        ("old 1\n$\n\nnote", "not base64"),
        ("old 1\n" + "A" * 40_000, "too long"),
        ("old 1\n" + (base64.b64encode(bytes(32)).decode() + "\n") * 64 + "\nnote", "not a request"),
    ],
)
def test_a_malformed_request_is_refused(text: str, fault: str) -> None:
    with pytest.raises(LogRefused, match=fault):
        Request.parse(text)


@given(old=st.integers(0, 60), new=st.integers(1, 60))
def test_a_witness_agrees_to_whatever_continues_what_it_holds(old: int, new: int) -> None:
    log = Log(60)
    old = min(old, new)
    assert judge(log.request(old, new), log.held(old), LOG_KEY) == Continues(log.checkpoint(new))


@given(same=st.integers(0, 30), held=st.integers(1, 30), more=st.integers(0, 30))
def test_a_history_that_differs_before_what_is_held_is_a_fork(same: int, held: int, more: int) -> None:
    mine, other = Log(held), Log(held + more, b"other", same=same)
    if same >= held:
        assert isinstance(judge(other.request(held, held + more), mine.held(held), LOG_KEY), Continues)
        return
    with pytest.raises(LogForked):
        judge(other.request(held, held + more), mine.held(held), LOG_KEY)


def test_a_request_from_elsewhere_is_answered_with_what_is_held() -> None:
    log = Log(20)
    assert judge(log.request(5, 12), log.held(9), LOG_KEY) == Elsewhere(9)
    assert judge(log.request(0, 12), log.held(9), LOG_KEY) == Elsewhere(9)
    assert judge(log.request(5, 8), log.held(9), LOG_KEY) == Elsewhere(9)  # late; the witness does not go back


def test_what_another_key_signed_is_not_looked_at() -> None:
    log = Log(20)
    forged = Request(0, (), sign_checkpoint(log.checkpoint(12), WITNESS))
    with pytest.raises(LogRefused):
        judge(forged, NOTHING, LOG_KEY)


@given(witnesses=st.integers(1, 200), colluding=st.integers(0, 199))
def test_two_quorums_share_an_honest_witness_and_no_smaller_quorum_does(witnesses: int, colluding: int) -> None:
    needed = quorum(witnesses, colluding)
    assert 2 * needed - witnesses > colluding
    assert 2 * (needed - 1) - witnesses <= colluding


def test_all_the_hospitals_of_the_largest_study_can_cosign() -> None:
    log = Log(5)
    checkpoint, note = log.checkpoint(5), log.request(0, 5).note
    keys = [IdentityKey.from_seed(number.to_bytes(32, "big")) for number in range(1, 201)]
    cosigners = [CosignerKey(f"fl.example.org/witness/{place}", key.public) for place, key in enumerate(keys)]
    note += "".join(cosign(checkpoint, one.name, key, 7) for one, key in zip(cosigners, keys, strict=True))
    assert open_checkpoint(note, LOG_KEY) == checkpoint
    assert len(cosignatures(note, checkpoint, cosigners)) == 200
    doubled = note + cosign(checkpoint, cosigners[0].name, keys[0], 8)
    assert len(cosignatures(doubled, checkpoint, cosigners)) == 200
