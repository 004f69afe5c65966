"""The structure of totally random trees: drawn from public numbers alone, so it says nothing about anybody.

Tree `number` of a study is a complete binary tree of the recipe's depth. Its node i has the children 2i + 1 and 2i + 2;
the last 2^depth places are the leaves, from the left. A node's split is drawn uniformly from the features that can
still divide what the splits above it have left, and from that feature's thresholds (`public_thresholds`) or sets of
codes that do. Where nothing can be divided any more, some split is made all the same: every tree has all its leaves.

The words of the draws are the AES-256-CTR key stream of SHA-256(label, study seed, number), read in the order of the
nodes: the same in every version of every library. A number below n is the first word under the greatest multiple of n,
modulo n.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from cohortium_messages.study import CategoryFeature, NumberFeature, RandomTreesRecipe, Study
from cohortium_protocol.encoding import H, le32, le64
from cohortium_protocol.labels import RANDOM_TREES
from cohortium_protocol.masking import MaskStream
from cohortium_protocol.trees.grid import public_thresholds
from cohortium_protocol.trees.tree_text import CATEGORY, DEFAULT_LEFT, MISSING_NAN, Tree

TRIES: Final = 64
"""Draws of a feature, or of a set of codes, before what is left is taken as it is."""
NARROWEST: Final = 1e-15
"""Width of a number's range: thresholds below LightGBM's own 0 (1e-35) would not come back from the text."""
_WORD: Final = 1 << 64
_WORDS_AT_ONCE: Final = 256

Span = tuple[int, int]
"""Of a number: its thresholds with places low <= place < high still divide. Of a category: (bits of its codes, 0)."""


@dataclass(frozen=True, slots=True)
class Column:
    """One feature as the splits see it: the thresholds of a number, or the number of codes of a category."""

    thresholds: tuple[float, ...]
    codes: int
    missing: bool
    """Whether a missing value reaches the trees as NaN."""

    @property
    def whole(self) -> Span:
        """Before any split."""
        return ((1 << self.codes) - 1, 0) if self.codes else (0, len(self.thresholds))


@dataclass(frozen=True, slots=True)
class Split:
    """A node: `threshold` of a number, or `left`, the bits of the codes that go left."""

    feature: int
    threshold: float
    left: int
    decision: int
    spans: tuple[Span, Span]
    """What is left of the feature below it, on either side."""


class _Draws:
    """The words of one tree's key stream, in order."""

    def __init__(self, seed: int, number: int) -> None:
        self._stream = MaskStream(H(RANDOM_TREES, le64(seed), le32(number)))
        self._read = 0
        self._words: list[int] = []

    def word(self) -> int:
        if not self._words:
            data = self._stream.keystream(8 * self._read, 8 * _WORDS_AT_ONCE)
            self._words = np.frombuffer(data, dtype="<u8")[::-1].tolist()
            self._read += _WORDS_AT_ONCE
        return self._words.pop()

    def below(self, count: int) -> int:
        """A number of 0..count − 1."""
        while (word := self.word()) >= _WORD - _WORD % count:
            pass
        return word % count

    def bits(self, count: int) -> int:
        """`count` fair coins."""
        return sum(self.word() << shift for shift in range(0, count, 64)) & ((1 << count) - 1)


def random_recipe(study: Study) -> RandomTreesRecipe:
    """The study's recipe. Raises `ValueError` for another trainer's."""
    if not isinstance(study.recipe, RandomTreesRecipe):
        raise ValueError(f"{study.recipe.trainer} has no random trees")
    return study.recipe


def columns_of(study: Study) -> tuple[Column, ...]:
    """The study's features in their order. Raises `ValueError` for a range that nothing divides."""
    grid = random_recipe(study).grid
    return tuple(_column(feature, grid) for feature in study.dataset.features)


def _column(feature: NumberFeature | CategoryFeature, grid: int) -> Column:
    if isinstance(feature, CategoryFeature):
        return Column((), len(feature.levels) + (feature.missing == "level"), feature.missing == "native")
    thresholds = tuple(public_thresholds(feature, grid).tolist())
    if not thresholds or feature.range[1] - feature.range[0] < NARROWEST:
        raise ValueError(f"the range of {feature.name} is too narrow to be divided: widen it")
    return Column(thresholds, 0, feature.missing == "native")


def random_tree(study: Study, number: int, columns: tuple[Column, ...] | None = None) -> Tree:
    """Tree `number` (from 0) with leaves of value 0 and no text. `columns`: `columns_of(study)`, where many trees are
    asked for."""
    columns = columns_of(study) if columns is None else columns
    draws = _Draws(study.federation.seed, number)
    nodes = (1 << random_recipe(study).depth) - 1
    splits: list[Split] = []
    above: list[dict[int, Span]] = [{}]
    for node in range(nodes):
        split = _drawn(draws, columns, above[node])
        splits.append(split)
        above.extend(above[node] | {split.feature: span} for span in split.spans)
    return _tree(splits)


def _drawn(draws: _Draws, columns: tuple[Column, ...], spans: dict[int, Span]) -> Split:
    feature = draws.below(len(columns))
    for _ in range(TRIES):
        span = spans.get(feature, columns[feature].whole)
        if _divides(columns[feature], span):
            return _split(draws, feature, columns[feature], span)
        feature = draws.below(len(columns))
    return _split(draws, feature, columns[feature], columns[feature].whole)


def _divides(column: Column, span: Span) -> bool:
    return span[0].bit_count() > 1 if column.codes else span[0] < span[1]


def _split(draws: _Draws, feature: int, column: Column, span: Span) -> Split:
    missing = MISSING_NAN if column.missing else 0
    if column.codes:
        left = _subset(draws, span[0])
        return Split(feature, 0.0, left, CATEGORY | missing, ((left, 0), (span[0] & ~left, 0)))
    low, high = span
    place = low + draws.below(high - low)
    side = DEFAULT_LEFT if not column.missing or draws.below(2) else 0
    return Split(feature, column.thresholds[place], 0, missing | side, ((low, place), (place + 1, high)))


def _subset(draws: _Draws, codes: int) -> int:
    """Some of the codes, neither all nor none."""
    places = [place for place in range(codes.bit_length()) if codes >> place & 1]
    for _ in range(TRIES):
        coins = draws.bits(len(places))
        if 0 < coins.bit_count() < len(places):
            return sum(1 << place for toss, place in enumerate(places) if coins >> toss & 1)
    return 1 << places[0]


def _tree(splits: list[Split]) -> Tree:
    nodes = len(splits)
    places = np.arange(nodes)
    children = [np.where(child < nodes, child, ~(child - nodes)) for child in (2 * places + 1, 2 * places + 2)]
    sets = [split.left for split in splits if split.left]
    words = [_words_of(codes) for codes in sets]
    ends = np.cumsum([0, *map(len, words)]) if words else np.zeros(0)
    decisions = np.array([split.decision for split in splits], dtype=np.int64)
    thresholds = np.array([split.threshold for split in splits], dtype=np.float64)
    thresholds[decisions & CATEGORY == CATEGORY] = np.arange(len(sets))
    return Tree(
        block="",
        leaves=nodes + 1,
        depth=nodes.bit_length(),
        split_feature=np.array([split.feature for split in splits], dtype=np.int64),
        split_gain=np.zeros(nodes),
        threshold=thresholds,
        decision_type=decisions,
        left_child=children[0],
        right_child=children[1],
        leaf_value=np.zeros(nodes + 1),
        cat_boundaries=ends.astype(np.int64),
        cat_threshold=np.array([word for group in words for word in group], dtype=np.int64),
    )


def _words_of(codes: int) -> list[int]:
    """The bits as LightGBM keeps them: words of 32, no more than there are."""
    return [codes >> shift & 0xFFFFFFFF for shift in range(0, codes.bit_length(), 32)]
