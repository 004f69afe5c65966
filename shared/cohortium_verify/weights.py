"""The numbers of a model whose files were verified: structure first, then tensors or trees, and scores from them."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cohortium_messages.model_schema import ModelSchema
from cohortium_messages.study import LightgbmRecipe, NoiseRecipe, RandomTreesRecipe, Study
from cohortium_protocol.attest import Statement
from cohortium_protocol.parameters import Layout, ModelRefused, from_safetensors, layout_of, model_hash
from cohortium_protocol.scoring import RowsRefused, network_scores, rows_from, schema_bytes, schema_of, tensors_of
from cohortium_protocol.statistics import Preprocessing, design_matrix
from cohortium_protocol.trees.binning import tree_columns
from cohortium_protocol.trees.bins import Binning
from cohortium_protocol.trees.predict import raw_scores, response
from cohortium_protocol.trees.text import MAX_BYTES, ModelText, TreeModelRefused
from cohortium_verify.bundle import MAX_JSON_BYTES
from cohortium_verify.model import MODEL_TEXT, PREPROCESSING, checked_trees
from cohortium_verify.not_loaded import StructureRefused

MODEL: Final = "model.safetensors"
CARD: Final = "card.json"


@dataclass(frozen=True, slots=True)
class LoadedWeights:
    """A network's parameters with their layout, or the trees with their text."""

    schema: ModelSchema
    rules: Preprocessing | Binning
    card: Mapping[str, Any]
    layout: Layout | None
    parameters: NDArray[np.float32] | None
    trees: ModelText | None
    text: str | None

    @property
    def schema_bytes(self) -> bytes:
        return schema_bytes(self.schema)

    @property
    def arrays(self) -> Mapping[str, NDArray[np.float32]] | None:
        """By tensor name; None for trees."""
        if self.layout is None or self.parameters is None:
            return None
        return tensors_of(self.layout, self.parameters)

    def scores(self, schema: ModelSchema, table: Mapping[str, Sequence[Any]]) -> NDArray[np.float64]:
        """Raises `RowsRefused` for rows that the model does not take."""
        rows = rows_from(schema, table)
        if self.trees is not None and isinstance(self.rules, Binning):
            return response(self.trees.objective, raw_scores(self.trees, tree_columns(self.rules, rows)))
        if self.layout is None or self.parameters is None or not isinstance(self.rules, Preprocessing):
            raise RowsRefused("a benchmark's model of noise scores nothing")
        return network_scores(self.layout, self.parameters, design_matrix(self.rules, rows))


def weights_from(files: Mapping[str, bytes], study: Study, signed: Statement | None) -> LoadedWeights:
    """The model of these files, of this study; `signed`: the aggregator's statement about it, where there is one.
    Raises `StructureRefused`."""
    has_trees = isinstance(study.recipe, LightgbmRecipe | RandomTreesRecipe)
    if isinstance(study.recipe, NoiseRecipe):
        raise StructureRefused("it is a benchmark's model of noise, which scores nothing")
    rules = _rules(files, study, Binning if has_trees else Preprocessing)
    name = MODEL_TEXT if has_trees else MODEL
    if name not in files:
        raise StructureRefused(f"{name} is missing, which the study's recipe {study.recipe.trainer} makes")
    _check_hash(files, name, signed)
    schema, card = schema_of(study, rules), _json(files, CARD)
    if isinstance(rules, Binning):
        trees = _trees(files[MODEL_TEXT], rules, study)
        return LoadedWeights(schema, rules, card, None, None, trees, files[MODEL_TEXT].decode("ascii"))
    try:
        layout = layout_of(study.recipe, rules.inputs)  # type: ignore[arg-type]
        parameters = from_safetensors(layout, files[MODEL])
    except (ModelRefused, ValueError) as refused:
        raise StructureRefused(f"{MODEL} must not be loaded: {refused}") from None
    return LoadedWeights(schema, rules, card, layout, parameters, None, None)


def _rules(files: Mapping[str, bytes], study: Study, kind: type[Preprocessing | Binning]) -> Preprocessing | Binning:
    content = files.get(PREPROCESSING, b"")
    if len(content) > MAX_JSON_BYTES:
        raise StructureRefused(f"{PREPROCESSING} is too large")
    try:
        rules = kind.from_canonical(content)
    except (ValueError, RecursionError):
        raise StructureRefused(f"{PREPROCESSING} is missing, or not in its canonical form") from None
    if (rules.study_id, rules.study_digest) != (study.name, study.digest()):
        raise StructureRefused(f"{PREPROCESSING} is of another study than study.json")
    if [one.name for one in rules.features] != [one.name for one in study.dataset.features]:
        raise StructureRefused(f"{PREPROCESSING} has other features than study.json")
    if isinstance(rules, Binning) and rules.refine:
        raise StructureRefused(f"{PREPROCESSING} has bins that were still to be refined")
    return rules


def _check_hash(files: Mapping[str, bytes], name: str, signed: Statement | None) -> None:
    """The hash that names the version in the log is that of these parameters with these rules."""
    if signed is None:
        return
    content = files[name]
    flat = content if name == MODEL_TEXT else memoryview(content)[8 + int.from_bytes(content[:8], "little") :]
    found = model_hash(hashlib.sha256(flat).digest(), files[PREPROCESSING]).hex()
    if found != (signed.predicate.get("model") or {}).get("model_hash"):
        raise StructureRefused(f"{name} and {PREPROCESSING} are not the version that the attestation names")


def _trees(text: bytes, rules: Binning, study: Study) -> ModelText:
    if len(text) > MAX_BYTES:
        raise StructureRefused(f"{MODEL_TEXT} has {len(text)} bytes, more than {MAX_BYTES}")
    try:
        trees = checked_trees(text, rules)
    except TreeModelRefused as refused:
        raise StructureRefused(f"{MODEL_TEXT} must not be loaded: {refused}") from None
    if trees.objective != study.objective:
        raise StructureRefused(f"{MODEL_TEXT} was grown for {trees.objective}, and the study for {study.objective}")
    return trees


def _json(files: Mapping[str, bytes], name: str) -> Mapping[str, Any]:
    try:
        found = json.loads(files[name])
    except (KeyError, ValueError, RecursionError):
        raise StructureRefused(f"{name} is missing, or no JSON") from None
    if not isinstance(found, dict):
        raise StructureRefused(f"{name} is no JSON object")
    return found
