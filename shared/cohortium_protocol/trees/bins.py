"""The published document of a study with trees: how a row becomes the columns that trees split."""

from itertools import pairwise
from typing import Annotated, Final, Literal, Self

import rfc8785
from pydantic import Field, model_validator

from cohortium_messages.ids import STUDY_PATTERN, Bytes32, Wire
from cohortium_messages.study import ColumnName, Label, Level
from cohortium_protocol.trees.grid import MOST_ROWS, REFINED_CELLS, Scale

MOST_EDGES: Final = 1024
Count = Annotated[int, Field(ge=0, le=MOST_ROWS)]


class NumberBins(Wire):
    """A numeric feature; bin k holds edges[k-1] < x <= edges[k], the first also `low`, the last everything above.

    Edges of a `whole` feature are half-integers. `native`: a missing value stays one, and the trees learn its side.
    """

    name: ColumnName
    type: Literal["number"] = "number"
    low: float
    high: float
    whole: bool
    edges: Annotated[tuple[float, ...], Field(max_length=MOST_EDGES)]
    missing: Literal["refuse", "native"]

    @model_validator(mode="after")
    def _ascending(self) -> Self:
        if not all(first < second for first, second in pairwise(self.edges)):
            raise ValueError(f"edges of {self.name} do not ascend")
        if self.edges and not self.low <= self.edges[0] <= self.edges[-1] < self.high:
            raise ValueError(f"edges of {self.name} are not inside its range")
        if self.whole and any((edge - 0.5) % 1 for edge in self.edges):
            raise ValueError(f"edges of {self.name}, which has whole numbers, are not half-integers")
        return self

    @property
    def scale(self) -> Scale:
        return Scale(self.low, self.high, self.whole)


class CategoryBins(Wire):
    """A category: a bin for each level, in their order, and one more for missing values where `missing` is `level`."""

    name: ColumnName
    type: Literal["category"] = "category"
    levels: Annotated[tuple[Level, ...], Field(min_length=2, max_length=256)]
    missing: Literal["refuse", "level", "native"]

    @property
    def codes(self) -> int:
        """Codes that the column can have, from 0."""
        return len(self.levels) + (self.missing == "level")


FeatureBins = Annotated[NumberBins | CategoryBins, Field(discriminator="type")]


class Refinement(Wire):
    """Where the refining sum is to look closer at one numeric feature.

    `feature`: its place in the study. `bins`: the most that it may have in the end. `rows`: training rows of all sites
    in each bin that its `edges` make for now, 0 where they are fewer than five. `cells`: places of bins to look into,
    and in how many parts, a power of two each.
    """

    feature: Annotated[int, Field(ge=0, lt=4096)]
    bins: Annotated[int, Field(ge=2, le=255)]
    rows: Annotated[tuple[Count, ...], Field(min_length=1, max_length=MOST_EDGES + 1)]
    cells: Annotated[
        tuple[tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=2, le=REFINED_CELLS)]], ...],
        Field(min_length=1, max_length=REFINED_CELLS // 2),
    ]

    @model_validator(mode="after")
    def _fits(self) -> Self:
        places = [place for place, _ in self.cells]
        if not all(first < second for first, second in pairwise(places)) or places[-1] >= len(self.rows):
            raise ValueError("cells to look into are not places of bins, in ascending order")
        if sum(parts for _, parts in self.cells) > REFINED_CELLS or any(parts & (parts - 1) for _, parts in self.cells):
            raise ValueError(f"parts are powers of two, together at most {REFINED_CELLS}")
        return self


class Binning(Wire):
    """How a row becomes the columns that trees split: a part of the model, published and signed with it.

    While `refine` names features, their edges are only those of the first look: `refined` must follow before a tree is
    grown.
    """

    version: Literal["cohortium/binning/1"] = "cohortium/binning/1"
    study_id: Annotated[str, Field(pattern=STUDY_PATTERN)]
    study_digest: Bytes32
    features: Annotated[tuple[FeatureBins, ...], Field(min_length=1, max_length=4096)]
    label: Label
    training_rows: Annotated[int, Field(ge=1, le=MOST_ROWS)]
    sites: Annotated[int, Field(ge=1)]
    refine: Annotated[tuple[Refinement, ...], Field(max_length=4096)] = ()

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if len(set(self.feature_names())) != len(self.features):
            raise ValueError("two features have the same name")
        places = [refinement.feature for refinement in self.refine]
        if not all(first < second for first, second in pairwise(places)):
            raise ValueError("features to refine are not in ascending order")
        for refinement in self.refine:
            feature = self.features[refinement.feature] if refinement.feature < len(self.features) else None
            if not isinstance(feature, NumberBins) or not feature.scale.coarse:
                raise ValueError(f"feature {refinement.feature} is none that can be refined")
            if len(refinement.rows) != len(feature.edges) + 1:
                raise ValueError(f"rows of {feature.name} are not one number for each bin")
        return self

    def feature_names(self) -> tuple[str, ...]:
        """The columns in the order in which the model takes them."""
        return tuple(feature.name for feature in self.features)

    def canonical(self) -> bytes:
        """RFC 8785 JSON: the same bytes wherever the same sums were opened."""
        return rfc8785.dumps(self.model_dump(mode="json"))

    @classmethod
    def from_canonical(cls, data: bytes) -> "Binning":
        """Raises `ValueError` unless `data` is exactly what `canonical` gives."""
        binning = cls.model_validate_json(data)
        if binning.canonical() != data:
            raise ValueError("binning is not in canonical form")
        return binning
