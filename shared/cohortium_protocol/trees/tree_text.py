"""One tree of a LightGBM model text: what it may say.

LightGBM 4.7 trusts the text it loads: a child out of range or a wrong boundary of a category's bits makes it read
memory that is not its own. So every field is read here first, by a grammar that is narrower than LightGBM's but takes
all that LightGBM writes, and a tree is accepted only if each node and each leaf hangs exactly once under a node of
smaller index.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cohortium_protocol.parameters import ModelRefused

FIELDS: Final = (
    *("num_leaves", "num_cat", "split_feature", "split_gain", "threshold", "decision_type", "left_child"),
    *("right_child", "leaf_value", "leaf_weight", "leaf_count", "internal_value", "internal_weight", "internal_count"),
    *("is_linear", "shrinkage"),
)
CATEGORY_FIELDS: Final = ("cat_boundaries", "cat_threshold")

CATEGORY, DEFAULT_LEFT, MISSING_NAN = 1, 2, 8
"""Bits of `decision_type`: a split by a set of codes; where a missing value goes; that a missing value is one (else it
is taken for 0)."""
DECISIONS: Final = (0, DEFAULT_LEFT, MISSING_NAN, MISSING_NAN | DEFAULT_LEFT, CATEGORY, CATEGORY | MISSING_NAN)
"""What LightGBM writes for our studies. Zero as missing (4) is not among them, nor a category's default side."""

LARGEST_LEAF: Final = 1e100
"""Scores and SHAP values are sums of leaves: no number of trees brings them out of range."""
INT_MAX: Final = (1 << 31) - 1
WORD_MAX: Final = (1 << 32) - 1

_INT = r"(?:0|-?[1-9][0-9]{0,9})"
FLOAT: Final = (
    r"(?:-?[1-9](?:\.[0-9]{1,24})?e[+-](?:[0-9]{2}|[12][0-9]{2}|30[0-7])"
    r"|-?(?:0|[1-9][0-9]{0,19})(?:\.[0-9]{1,24})?)"
)
"""A finite number as LightGBM prints it. No exponent below -307: LightGBM refuses subnormal numbers."""
_INTS = re.compile(rf"{_INT}(?: {_INT})*+")
_FLOATS = re.compile(rf"{FLOAT}(?: {FLOAT})*+")
_THRESHOLDS = re.compile(rf"(?:{FLOAT}|inf)(?: (?:{FLOAT}|inf))*+")
_ENDLESS = re.compile(r"(?:^| )[+-]?(?:nan|inf)", re.IGNORECASE)


class TreeModelRefused(ModelRefused):
    """The text is not one that may be given to LightGBM. `rule` names what it breaks; `tree` says where, None for the
    header or the end."""

    def __init__(self, rule: str, tree: int | None, detail: str) -> None:
        place = "" if tree is None else f"tree {tree}: "
        super().__init__(f"{rule}: {place}{detail}")
        self.rule = rule
        self.tree = tree


@dataclass(frozen=True, slots=True, eq=False)
class Tree:
    """One tree that was checked; its arrays are read-only.

    A tree of L leaves has L − 1 inner nodes; node 0 is the root, child `c` ≥ 0 is a node and `c` < 0 is leaf −1 − c.
    `threshold` of a node that splits a category counts the sets of codes: set k is the bits of
    `cat_threshold[cat_boundaries[k]:cat_boundaries[k + 1]]`. The threshold of a number is infinite where a split parts
    missing values, to the right, from all others. `block` is the text, from `Tree=` to the two empty lines
    after it; `depth` is the number of splits above the deepest leaf.
    """

    block: str
    leaves: int
    depth: int
    split_feature: NDArray[np.int64]
    split_gain: NDArray[np.float64]
    threshold: NDArray[np.float64]
    decision_type: NDArray[np.int64]
    left_child: NDArray[np.int64]
    right_child: NDArray[np.int64]
    leaf_value: NDArray[np.float64]
    cat_boundaries: NDArray[np.int64]
    cat_threshold: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class TreeLimits:
    """What trees of one study keep to. `codes`: of each category feature, by its place, how many codes it has; None
    where that is not known, and then only the bits' own places are checked."""

    features: int
    leaves: int
    codes: Mapping[int, int] | None = None


class _Block:
    """The fields of one block; refusals name the rule and the tree."""

    def __init__(self, block: str, number: int) -> None:
        self.number = number
        lines = block.split("\n")
        self.check(lines[-3:] == ["", "", ""], "layout", "a tree ends with two empty lines")
        pairs = [line.partition("=") for line in lines[1:-3]]
        names = [name for name, _, _ in pairs]
        self.check(len(set(names)) == len(names), "duplicate_key", "a field stands twice")
        self.fields = {name: value for name, _, value in pairs}
        known = {*FIELDS, *CATEGORY_FIELDS}
        self.check(set(names) <= known and all(sign for _, sign, _ in pairs), "unknown_key", "a line is not a field")
        self.check(set(FIELDS) <= set(names), "missing_key", "a field is missing")

    def check(self, holds: bool, rule: str, detail: str) -> None:
        if not holds:
            raise TreeModelRefused(rule, self.number, detail)

    def ints(self, name: str, count: int, low: int, high: int, rule: str) -> NDArray[np.int64]:
        """`count` integers of `low`..`high`."""
        text = self.fields[name]
        if text == "":
            self.check(count == 0, "lengths", f"{name} is empty")
            return np.zeros(0, dtype=np.int64)
        self.check(_INTS.fullmatch(text) is not None, "number", f"{name} is not a list of integers")
        values = np.fromstring(text, dtype=np.int64, sep=" ")
        self.check(len(values) == count, "lengths", f"{name} has {len(values)} values, not {count}")
        self.check(bool((values >= low).all() and (values <= high).all()), rule, f"{name} lies outside {low}..{high}")
        return values

    def floats(self, name: str, count: int, grammar: re.Pattern[str] = _FLOATS) -> NDArray[np.float64]:
        """`count` numbers of a grammar, by default finite ones."""
        text = self.fields[name]
        if text == "":
            self.check(count == 0, "lengths", f"{name} is empty")
            return np.zeros(0, dtype=np.float64)
        if grammar.fullmatch(text) is None:
            self.check(_ENDLESS.search(text) is None, "finite", f"{name} is not finite")
            self.check(False, "number", f"{name} is not a list of numbers as LightGBM prints them")
        values = np.fromstring(text, dtype=np.float64, sep=" ")
        self.check(len(values) == count, "lengths", f"{name} has {len(values)} values, not {count}")
        return values


def check_tree(block: str, number: int, limits: TreeLimits) -> Tree:
    """`block` as a tree, or `TreeModelRefused`. The caller has seen to its first line and that it is printable ASCII.

    Gains, weights and inner values are checked as numbers; counts are at least 1 where LightGBM divides by them.
    """
    fields = _Block(block, number)
    leaves = int(fields.ints("num_leaves", 1, 1, limits.leaves, "leaves")[0])
    nodes = leaves - 1
    fields.ints("is_linear", 1, 0, 0, "linear")
    fields.floats("shrinkage", 1)
    _check_numbers_beside(fields, leaves)
    left, right = (fields.ints(name, nodes, -leaves, nodes - 1, "child") for name in ("left_child", "right_child"))
    boundaries, words = _category_sets(fields)
    tree = Tree(
        block=block,
        leaves=leaves,
        depth=_depth(fields, left, right),
        split_feature=fields.ints("split_feature", nodes, 0, limits.features - 1, "split_feature"),
        split_gain=fields.floats("split_gain", nodes),
        threshold=fields.floats("threshold", nodes, _THRESHOLDS),
        decision_type=fields.ints("decision_type", nodes, 0, max(DECISIONS), "decision_type"),
        left_child=left,
        right_child=right,
        leaf_value=fields.floats("leaf_value", leaves),
        cat_boundaries=boundaries,
        cat_threshold=words,
    )
    fields.check(bool(np.isin(tree.decision_type, DECISIONS).all()), "decision_type", "a kind of split is unknown")
    ends = np.isfinite(tree.threshold) | (tree.decision_type == MISSING_NAN)
    fields.check(bool(ends.all()), "finite", "an endless threshold where missing values do not part from all others")
    fields.check(bool((np.abs(tree.leaf_value) <= LARGEST_LEAF).all()), "leaf_value", "a leaf is out of all proportion")
    _check_categories(fields, tree, limits.codes)
    for name in Tree.__slots__:
        if isinstance(values := getattr(tree, name), np.ndarray):
            values.setflags(write=False)
    return tree


def _check_numbers_beside(fields: _Block, leaves: int) -> None:
    """What prediction does not read. LightGBM's SHAP values divide by the counts of trees that split."""
    nodes = leaves - 1
    empty = leaves == 1 and fields.fields["leaf_weight"] == ""
    fields.floats("leaf_weight", 0 if empty else leaves)
    empty = leaves == 1 and fields.fields["leaf_count"] == ""
    fields.ints("leaf_count", 0 if empty else leaves, int(nodes > 0), INT_MAX, "counts")
    fields.ints("internal_count", nodes, 1, INT_MAX, "counts")
    fields.floats("internal_value", nodes)
    fields.floats("internal_weight", nodes)


def _category_sets(fields: _Block) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Boundaries and words of the sets of codes: boundaries rise from 0, and a set has at least one word."""
    sets = int(fields.ints("num_cat", 1, 0, INT_MAX, "categories")[0])
    given = [name for name in CATEGORY_FIELDS if name in fields.fields]
    if sets == 0:
        fields.check(not given, "categories", "codes of categories without a split that takes them")
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    fields.check(len(given) == 2, "missing_key", "a field of the categories is missing")
    boundaries = fields.ints("cat_boundaries", sets + 1, 0, INT_MAX, "categories")
    rising = boundaries[0] == 0 and bool((np.diff(boundaries) > 0).all())
    fields.check(rising, "categories", "cat_boundaries do not rise from 0")
    return boundaries, fields.ints("cat_threshold", int(boundaries[-1]), 0, WORD_MAX, "categories")


def _check_categories(fields: _Block, tree: Tree, codes: Mapping[int, int] | None) -> None:
    """Each set belongs to exactly one split of a category, and holds only codes that the category has."""
    split = tree.decision_type & CATEGORY == CATEGORY
    sets = tree.threshold[split]
    owned = np.array_equal(np.sort(sets), np.arange(max(len(tree.cat_boundaries) - 1, 0)))
    fields.check(owned, "categories", "a set of codes belongs to no split, or to two")
    if codes is None:
        return
    is_category = np.isin(tree.split_feature, list(codes))
    fields.check(np.array_equal(is_category, split), "categories", "a feature is split as what it is not")
    for feature, place in zip(tree.split_feature[split].tolist(), sets.astype(np.int64).tolist(), strict=True):
        start, end = tree.cat_boundaries[place : place + 2].tolist()
        words, room = tree.cat_threshold[start:end], codes[feature]
        most = int(words[-1]).bit_length() + 32 * (end - start - 1)
        fields.check(0 < most <= room, "categories", f"a set of codes does not fit the {room} codes of its feature")


def _depth(fields: _Block, left: NDArray[np.int64], right: NDArray[np.int64]) -> int:
    """Splits above the deepest leaf. Raises unless nodes and leaves form one tree, children after their parents."""
    nodes = len(left)
    children, parents = np.concatenate([left, right]), np.tile(np.arange(nodes), 2)
    inner = children >= 0
    fields.check(bool((children[inner] > parents[inner]).all()), "tree", "a node stands before its parent")
    once = np.array_equal(np.sort(children[inner]), np.arange(1, nodes))
    leaf_once = np.array_equal(np.sort(~children[~inner]), np.arange(nodes + 1 if nodes else 0))
    fields.check(once and leaf_once, "tree", "a node or a leaf hangs under no node, or under two")
    depths = [0] * nodes
    deepest = 0
    for node, pair in enumerate(zip(left.tolist(), right.tolist(), strict=True)):
        below = depths[node] + 1
        deepest = max(deepest, below)
        for child in pair:
            if child >= 0:
                depths[child] = below
    return deepest
