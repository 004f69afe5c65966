"""The tree, against the definitions of RFC 9162: every proof up to 130 leaves, and every wrong one up to 64."""

import hashlib
from collections.abc import Sequence
from functools import cache

import pytest

from cohortium_protocol import translog
from cohortium_protocol.errors import LogRefused
from cohortium_protocol.translog import EMPTY_ROOT, Node, Tree, leaf_hash, node_hash

SIZE = 64
LEAVES = [leaf_hash(bytes([i])) for i in range(SIZE)]


@cache
def defined_root(low: int, high: int) -> bytes:
    """MTH(D[low:high]), as written in 2.1.1."""
    if low == high:
        return EMPTY_ROOT
    if high - low == 1:
        return LEAVES[low]
    k = 1
    while 2 * k < high - low:
        k *= 2
    return node_hash(defined_root(low, low + k), defined_root(low + k, high))


class Store:
    """Nodes that are written once, and a record of what was read."""

    def __init__(self) -> None:
        self.nodes: dict[Node, bytes] = {}
        self.read: list[Node] = []

    def get(self, node: Node) -> bytes:
        self.read.append(node)
        return self.nodes[node]

    def put(self, node: Node, digest: bytes) -> None:
        assert node not in self.nodes
        self.nodes[node] = digest

    def reads(self) -> list[Node]:
        read, self.read = sorted(self.read, key=repr), []
        return read


@pytest.fixture(scope="module")
def store() -> Store:
    store = Store()
    tree = Tree(0, store.get, store.put)
    for size, leaf in enumerate(LEAVES):
        assert tree.append(leaf) == size
        assert store.reads() == sorted(translog.nodes_for_append(size), key=repr)
    return store


@pytest.fixture
def tree(store: Store) -> Tree:
    store.reads()
    return Tree(SIZE, store.get, store.put)


def test_only_complete_subtrees_are_stored(store: Store) -> None:
    assert set(store.nodes) == {Node(level, i) for level in range(7) for i in range(SIZE >> level)}


def test_roots(store: Store, tree: Tree) -> None:
    for size in range(SIZE + 1):
        assert tree.root(size) == defined_root(0, size)
        assert store.reads() == sorted(translog.nodes_for_root(size), key=repr)
    assert tree.root() == defined_root(0, SIZE)


def test_every_inclusion_proof_verifies_and_no_other_does(store: Store, tree: Tree) -> None:
    for size in range(1, SIZE + 1):
        root = defined_root(0, size)
        for index in range(size):
            proof = tree.inclusion(index, size)
            assert store.reads() == sorted(translog.nodes_for_inclusion(index, size), key=repr)
            translog.verify_inclusion(LEAVES[index], index, size, proof, root)
            wrong = [
                (LEAVES[index - 1] if size > 1 else bytes(32), index, size, proof, root),
                (LEAVES[index], index, size, proof, bytes(32)),
                (LEAVES[index], index, size, [*proof, bytes(32)], root),
                (LEAVES[index], size, size, proof, root),
            ]
            if proof:
                wrong.append((LEAVES[index], index, size, proof[:-1], root))
                wrong.append((LEAVES[index], index, size, [bytes(32), *proof[1:]], root))
            for case in wrong:
                with pytest.raises(LogRefused):
                    translog.verify_inclusion(*case)


def test_every_consistency_proof_verifies_and_no_other_does(store: Store, tree: Tree) -> None:
    for new in range(SIZE + 1):
        new_root = defined_root(0, new)
        for old in range(new + 1):
            old_root = defined_root(0, old)
            proof = tree.consistency(old, new)
            assert store.reads() == sorted(translog.nodes_for_consistency(old, new), key=repr)
            translog.verify_consistency(old, new, proof, old_root, new_root)
            wrong = [
                (old, new, proof, bytes(32), new_root),
                (old, new, [*proof, bytes(32)], old_root, new_root),
                (new + 1, new, proof, old_root, new_root),
            ]
            if old:
                wrong.append((old, new, proof, old_root, bytes(32)))
            if proof:
                wrong.append((old, new, proof[:-1], old_root, new_root))
                wrong.append((old, new, [bytes(32), *proof[1:]], old_root, new_root))
            for case in wrong:
                with pytest.raises(LogRefused):
                    translog.verify_consistency(*case)


def test_a_mapping_of_the_named_nodes_is_enough(store: Store) -> None:
    """How a service with an asynchronous store makes a proof."""
    wanted = translog.nodes_for_inclusion(5, 23) + translog.nodes_for_root(23)
    fetched = {node: store.nodes[node] for node in wanted}
    tree = Tree(23, fetched.__getitem__, fetched.__setitem__)
    translog.verify_inclusion(LEAVES[5], 5, 23, tree.inclusion(5, 23), tree.root())


def test_questions_beyond_the_tree_are_errors(tree: Tree) -> None:
    for question in (
        lambda: tree.root(SIZE + 1),
        lambda: tree.inclusion(3, 3),
        lambda: tree.inclusion(0, SIZE + 1),
        lambda: tree.consistency(5, 4),
    ):
        with pytest.raises(ValueError):
            question()


class Oracle:
    """RFC 9162, 2.1.1 to 2.1.4, word for word, with nothing of ours: an implementation to hold ours against."""

    def __init__(self, data: Sequence[bytes]) -> None:
        self._data = data
        self._known: dict[tuple[int, int], bytes] = {}

    def mth(self, low: int, high: int) -> bytes:
        """MTH(D[low:high])."""
        if (low, high) not in self._known:
            if high == low:
                digest = hashlib.sha256(b"")
            elif high - low == 1:
                digest = hashlib.sha256(b"\x00" + self._data[low])
            else:
                middle = low + self._k(high - low)
                digest = hashlib.sha256(b"\x01" + self.mth(low, middle) + self.mth(middle, high))
            self._known[low, high] = digest.digest()
        return self._known[low, high]

    def path(self, m: int, low: int, high: int) -> list[bytes]:
        """PATH(m, D[low:high])."""
        n = high - low
        if n == 1:
            return []
        k = self._k(n)
        if m < k:
            return [*self.path(m, low, low + k), self.mth(low + k, high)]
        return [*self.path(m - k, low + k, high), self.mth(low, low + k)]

    def subproof(self, m: int, low: int, high: int, *, complete: bool) -> list[bytes]:
        """SUBPROOF(m, D[low:high], complete); PROOF(m, D_n) is SUBPROOF(m, D_n, true)."""
        n = high - low
        if m == n:
            return [] if complete else [self.mth(low, high)]
        k = self._k(n)
        if m <= k:
            return [*self.subproof(m, low, low + k, complete=complete), self.mth(low + k, high)]
        return [*self.subproof(m - k, low + k, high, complete=False), self.mth(low, low + k)]

    def _k(self, n: int) -> int:
        """The largest power of two smaller than n."""
        return max(1 << power for power in range(n.bit_length()) if 1 << power < n)


def test_every_root_and_proof_of_every_tree_up_to_130_leaves_is_the_oracles() -> None:
    """Past two powers of two, with every shape of the right edge; and each proof verifies."""
    stored: dict[Node, bytes] = {}
    tree = Tree(0, stored.__getitem__, stored.__setitem__)
    data = [b"%d" % number for number in range(130)]
    oracle = Oracle(data)
    roots = [oracle.mth(0, size) for size in range(131)]
    for size in range(131):
        assert tree.root() == roots[size]
        if size < 130:
            tree.append(leaf_hash(data[size]))
    for size in range(1, 131):
        for index in range(size):
            inclusion = tree.inclusion(index, size)
            assert inclusion == oracle.path(index, 0, size)
            translog.verify_inclusion(leaf_hash(data[index]), index, size, inclusion, roots[size])
            consistency = tree.consistency(index, size)
            assert consistency == (oracle.subproof(index, 0, size, complete=True) if index else [])
            translog.verify_consistency(index, size, consistency, roots[index], roots[size])
