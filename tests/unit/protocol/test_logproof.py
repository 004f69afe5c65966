"""C2SP tlog-proof: what is written is read, and nothing else is."""

import base64

import pytest

from cohortium_protocol.errors import LogRefused
from cohortium_protocol.logproof import LogProof, authorisation_id, authorised_window, study_log
from cohortium_protocol.notes import Checkpoint, sign_checkpoint
from cohortium_protocol.signing import IdentityKey
from cohortium_protocol.translog import Tree, leaf_hash

KEY = IdentityKey.from_seed(bytes(31) + b"\x01")
ENTRIES = [b"entry %d" % number for number in range(7)]
TREE = Tree.of(leaf_hash(entry) for entry in ENTRIES)
LOG = study_log("hospitals.example", "heart", KEY.public)  # type: ignore[arg-type]


def proof(index: int = 4) -> LogProof:
    note = sign_checkpoint(Checkpoint(LOG.name, 7, TREE.root()), KEY)
    return LogProof(ENTRIES[index], index, tuple(TREE.inclusion(index, 7)), note)


def test_a_proof_is_written_as_the_standard_has_it_and_read_again() -> None:
    text = proof().text()
    lines = text.split("\n")
    assert lines[0] == "c2sp.org/tlog-proof@v1"
    assert lines[1] == f"extra {base64.b64encode(b'entry 4').decode()}"
    assert lines[2] == "index 4"
    assert [base64.b64decode(line) for line in lines[3:6]] == TREE.inclusion(4, 7)
    assert lines[6:9] == ["", "hospitals.example/audit/heart", "7"]
    assert LogProof.parse(text) == proof()
    assert LogProof.parse(text).check(LOG) == Checkpoint(LOG.name, 7, TREE.root())


def test_a_log_of_one_entry_needs_no_hashes() -> None:
    tree = Tree.of([leaf_hash(b"only")])
    alone = LogProof(b"only", 0, (), sign_checkpoint(Checkpoint(LOG.name, 1, tree.root()), KEY))
    assert LogProof.parse(alone.text()).check(LOG).size == 1


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("tlog-proof@v1", "tlog-proof@v2"),
        ("extra ", "other "),
        ("index 4", "index 04"),
        ("index 4", "index 5"),
        ("index 4", "index 9"),
        ("index 4\n", "index 4\n\n"),
        ("index 4\n", "index 4\nAAAA\n"),
        ("index 4\n", "index 4\n" + "A" * 43 + "=\n"),
        ("ZW50cnkgNA==", "ZW50cnkgNQ=="),
        ("\n7\n", "\n8\n"),
        ("audit/heart\n7", "audit/lungs\n7"),
    ],
)
def test_one_changed_word_makes_it_no_proof(old: str, new: str) -> None:
    text = proof().text()
    assert old in text
    with pytest.raises(LogRefused):
        LogProof.parse(text.replace(old, new, 1)).check(LOG)


def test_a_window_has_one_authorisation() -> None:
    assert authorised_window(authorisation_id(bytes(range(16)))) == bytes(range(16))
    with pytest.raises(LogRefused):
        authorised_window("not a window")
