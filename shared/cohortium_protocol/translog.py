"""Merkle tree of RFC 9162 (2.1) over stored nodes: roots, inclusion and consistency proofs, and their verification.

Only roots of complete subtrees are stored, and a stored node never changes, so the store may be any append-only table.
Where a store answers only asynchronously, fetch what `nodes_for_...` names in one query and give that mapping as `get`.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from cohortium_protocol.encoding import sha256
from cohortium_protocol.errors import LogRefused

EMPTY_ROOT: Final = sha256(b"")


@dataclass(frozen=True, slots=True)
class Node:
    """The root of the complete subtree over leaves [index << level, (index + 1) << level)."""

    level: int
    index: int


class _Span(NamedTuple):
    """Leaves [low, high)."""

    low: int
    high: int


def leaf_hash(data: bytes) -> bytes:
    """SHA-256(0x00 || data)."""
    return sha256(b"\0" + data)


def node_hash(left: bytes, right: bytes) -> bytes:
    """SHA-256(0x01 || left || right): another prefix than a leaf's, so a node is never taken for a leaf."""
    return sha256(b"\1" + left + right)


def _split(size: int) -> int:
    """The largest power of two below `size` (at least 2)."""
    return 1 << (size - 1).bit_length() - 1


def _complete(span: _Span) -> list[Node]:
    """The complete subtrees whose roots, joined from the right, give the root over a span, from left to right."""
    nodes = []
    low = span.low
    while low < span.high:
        level = (span.high - low).bit_length() - 1
        if low:
            level = min(level, (low & -low).bit_length() - 1)
        nodes.append(Node(level, low >> level))
        low += 1 << level
    return nodes


def _inclusion_spans(index: int, size: int) -> list[_Span]:
    """RFC 9162, 2.1.3.1: PATH(m, D_n), from the leaf upwards."""
    low, high = 0, size
    spans = []
    while high - low > 1:
        middle = low + _split(high - low)
        if index < middle:
            spans.append(_Span(middle, high))
            high = middle
        else:
            spans.append(_Span(low, middle))
            low = middle
    return spans[::-1]


def _consistency_spans(old: int, new: int) -> list[_Span]:
    """RFC 9162, 2.1.4.1: PROOF(m, D_n), from the smallest subtree upwards."""
    if old in (0, new):
        return []
    low, high, known = 0, new, True
    spans = []
    while old != high:
        middle = low + _split(high - low)
        if old <= middle:
            spans.append(_Span(middle, high))
            high = middle
        else:
            spans.append(_Span(low, middle))
            low, known = middle, False
    if not known:
        spans.append(_Span(low, high))
    return spans[::-1]


def _nodes(spans: Iterable[_Span]) -> list[Node]:
    return [node for span in spans for node in _complete(span)]


def nodes_for_append(size: int) -> list[Node]:
    """What `Tree.append` reads in a tree of `size` leaves: the left halves of the subtrees that the new leaf
    completes."""
    nodes = []
    level = 0
    while size >> level & 1:
        nodes.append(Node(level, (size >> level) - 1))
        level += 1
    return nodes


def nodes_for_root(size: int) -> list[Node]:
    """What `Tree.root` reads."""
    return _complete(_Span(0, size))


def nodes_for_inclusion(index: int, size: int) -> list[Node]:
    """What `Tree.inclusion` reads."""
    return _nodes(_inclusion_spans(index, size))


def nodes_for_consistency(old: int, new: int) -> list[Node]:
    """What `Tree.consistency` reads."""
    return _nodes(_consistency_spans(old, new))


class Tree:
    """A log's tree of `size` leaves. `get` reads a stored node; `put` stores a new one."""

    __slots__ = ("_get", "_put", "size")

    def __init__(self, size: int, get: Callable[[Node], bytes], put: Callable[[Node, bytes], None]) -> None:
        self.size = size
        self._get = get
        self._put = put

    @classmethod
    def of(cls, leaves: Iterable[bytes] = ()) -> "Tree":
        """A tree in memory over these leaf hashes; it keeps two nodes a leaf."""
        stored: dict[Node, bytes] = {}
        tree = cls(0, stored.__getitem__, stored.__setitem__)
        for leaf in leaves:
            tree.append(leaf)
        return tree

    def append(self, leaf: bytes) -> int:
        """Append a leaf hash and return its index. Stores the leaf and each subtree that it completes."""
        index, level, digest = self.size, 0, leaf
        self._put(Node(0, index), digest)
        while self.size >> level & 1:
            digest = node_hash(self._get(Node(level, (self.size >> level) - 1)), digest)
            level += 1
            self._put(Node(level, index >> level), digest)
        self.size += 1
        return index

    def root(self, size: int | None = None) -> bytes:
        """The root over the first `size` leaves, all of them if left out."""
        size = self.size if size is None else size
        self._check(size)
        return self._span_root(_Span(0, size))

    def inclusion(self, index: int, size: int) -> list[bytes]:
        """Proof that leaf `index` is in the tree of the first `size` leaves."""
        self._check(size)
        if not 0 <= index < size:
            raise ValueError(f"leaf {index} is not in a tree of {size}")
        return [self._span_root(span) for span in _inclusion_spans(index, size)]

    def consistency(self, old: int, new: int) -> list[bytes]:
        """Proof that the tree of the first `old` leaves is a prefix of that of the first `new`."""
        self._check(new)
        if not 0 <= old <= new:
            raise ValueError(f"no consistency from {old} to {new}")
        return [self._span_root(span) for span in _consistency_spans(old, new)]

    def _check(self, size: int) -> None:
        if not 0 <= size <= self.size:
            raise ValueError(f"the tree has {self.size} leaves, not {size}")

    def _span_root(self, span: _Span) -> bytes:
        digests = [self._get(node) for node in _complete(span)]
        if not digests:
            return EMPTY_ROOT
        root = digests.pop()
        while digests:
            root = node_hash(digests.pop(), root)
        return root


def verify_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> None:
    """RFC 9162, 2.1.3.2: `leaf` is leaf `index` of the tree of `size` leaves with this root. Raises `LogRefused`."""
    if not 0 <= index < size:
        raise LogRefused(f"leaf {index} is not in a tree of {size}")
    node, last, digest = index, size - 1, leaf
    for sibling in proof:
        if last == 0:
            raise LogRefused("the proof is too long")
        if node & 1 or node == last:
            digest = node_hash(sibling, digest)
            while node and not node & 1:
                node, last = node >> 1, last >> 1
        else:
            digest = node_hash(digest, sibling)
        node, last = node >> 1, last >> 1
    if last != 0 or digest != root:
        raise LogRefused("the proof does not lead to the root")


def verify_consistency(old: int, new: int, proof: Sequence[bytes], old_root: bytes, new_root: bytes) -> None:
    """RFC 9162, 2.1.4.2: the tree of `old` leaves is a prefix of that of `new`. Raises `LogRefused`."""
    if not 0 <= old <= new:
        raise LogRefused(f"the tree shrank from {old} to {new}")
    if old in (0, new):
        expected = EMPTY_ROOT if old == 0 else new_root
        if proof or old_root != expected:
            raise LogRefused("a wrong root, or a proof where none is needed")
        return
    path = [old_root, *proof] if old & (old - 1) == 0 else list(proof)
    if not path or _walk(old, new, path) != (old_root, new_root):
        raise LogRefused("the proof does not lead from the old root to the new one")


def _walk(old: int, new: int, path: Sequence[bytes]) -> tuple[bytes, bytes] | None:
    """Both roots that a consistency path leads to; None if it is too long or too short."""
    node, last = old - 1, new - 1
    while node & 1:
        node, last = node >> 1, last >> 1
    first = second = path[0]
    for sibling in path[1:]:
        if last == 0:
            return None
        if node & 1 or node == last:
            first, second = node_hash(sibling, first), node_hash(sibling, second)
            while node and not node & 1:
                node, last = node >> 1, last >> 1
        else:
            second = node_hash(second, sibling)
        node, last = node >> 1, last >> 1
    return (first, second) if last == 0 else None
