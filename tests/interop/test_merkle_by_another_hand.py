"""Our Merkle trees against another hand's: roots, inclusion and consistency of RFC 6962, which are RFC 9162's.

`tamperlog` (MIT) makes proofs by the RFC's recursion over lists of leaves, and checks them by splitting a path into its
inner and border parts and by replaying the recursion: neither is how `translog` does it. It is a developer's tool, and
in no wheel.
"""

import random
from collections.abc import Callable

import pytest

from cohortium_protocol.errors import LogRefused
from cohortium_protocol.translog import Tree, leaf_hash, verify_consistency, verify_inclusion

merkle = pytest.importorskip("tamperlog.merkle", reason="tamperlog is not installed; it is in the extra `dev`")
errors = pytest.importorskip("tamperlog.errors")

EXHAUSTIVE = 40
LARGE = (63, 64, 65, 127, 128, 129, 1000, 1023, 1024, 1025, 2741)
LEAVES = [leaf_hash(b"%d" % number) for number in range(max(LARGE))]


def tree(size: int) -> Tree:
    made = Tree.of()
    for leaf in LEAVES[:size]:
        made.append(leaf)
    return made


WHOLE = tree(len(LEAVES))


def accepted(check: Callable[[], object]) -> bool:
    try:
        check()
    except (LogRefused, errors.ProofError):
        return False
    return True


def both_on_inclusion(leaf: bytes, index: int, size: int, proof: list[bytes], root: bytes) -> tuple[bool, bool]:
    return (
        accepted(lambda: verify_inclusion(leaf, index, size, proof, root)),
        accepted(lambda: merkle.verify_inclusion(index, size, leaf, proof, root)),
    )


def both_on_consistency(old: int, new: int, proof: list[bytes], first: bytes, second: bytes) -> tuple[bool, bool]:
    return (
        accepted(lambda: verify_consistency(old, new, proof, first, second)),
        accepted(lambda: merkle.verify_consistency(old, first, new, second, proof)),
    )


def spoilt(proof: list[bytes]) -> list[list[bytes]]:
    """What a proof must not be: one hash less, one more, another, two exchanged."""
    found = [proof[:-1], proof[1:], [*proof, bytes(32)], [bytes(32), *proof]]
    found += [[*proof[:at], bytes(32), *proof[at + 1 :]] for at in range(len(proof))]
    found += [[*proof[:at], proof[at + 1], proof[at], *proof[at + 2 :]] for at in range(len(proof) - 1)]
    return [other for other in found if other != proof]


@pytest.mark.parametrize("size", [*range(EXHAUSTIVE), *LARGE])
def test_roots_are_the_same(size: int) -> None:
    assert WHOLE.root(size) == merkle.merkle_root(LEAVES[:size])


@pytest.mark.parametrize("size", range(1, EXHAUSTIVE))
def test_inclusion_of_every_leaf_is_proven_and_refused_alike(size: int) -> None:
    root = WHOLE.root(size)
    for index in range(size):
        proof = WHOLE.inclusion(index, size)
        assert proof == merkle.inclusion_proof(index, LEAVES[:size])
        assert both_on_inclusion(LEAVES[index], index, size, proof, root) == (True, True)
        for other in spoilt(proof):
            assert both_on_inclusion(LEAVES[index], index, size, other, root) == (False, False)
        for place in {0, index + 1, size - 1} - {index}:
            assert both_on_inclusion(LEAVES[index], place, size, proof, root) == (False, False)


@pytest.mark.parametrize("new", range(1, EXHAUSTIVE))
def test_consistency_of_every_two_sizes_is_proven_and_refused_alike(new: int) -> None:
    second = WHOLE.root(new)
    for old in range(1, new + 1):
        first, proof = WHOLE.root(old), WHOLE.consistency(old, new)
        assert proof == merkle.consistency_proof(old, LEAVES[:new])
        assert both_on_consistency(old, new, proof, first, second) == (True, True)
        for other in spoilt(proof):
            assert both_on_consistency(old, new, other, first, second) == (False, False)
        if old < new:
            assert both_on_consistency(old, new, proof, second, first) == (False, False)


@pytest.mark.parametrize("size", LARGE)
def test_large_trees_are_proven_alike(size: int) -> None:
    chosen = random.Random(size)  # noqa: S311 - which leaves are looked at
    root = WHOLE.root(size)
    for index in {0, size - 1, *(chosen.randrange(size) for _ in range(5))}:
        proof = merkle.inclusion_proof(index, LEAVES[:size])
        assert WHOLE.inclusion(index, size) == proof
        assert both_on_inclusion(LEAVES[index], index, size, proof, root) == (True, True)
    for old in {1, size - 1, size, *(chosen.randrange(1, size) for _ in range(5))}:
        proof = merkle.consistency_proof(old, LEAVES[:size])
        assert WHOLE.consistency(old, size) == proof
        assert both_on_consistency(old, size, proof, WHOLE.root(old), root) == (True, True)
