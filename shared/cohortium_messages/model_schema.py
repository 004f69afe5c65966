"""What a model takes and what it gives: `schema.json` of its bundle, for whoever builds the program around it."""

from typing import Annotated, Literal

from pydantic import Field

from cohortium_messages.ids import STUDY_PATTERN, Bytes32, Wire
from cohortium_messages.study import Feature, Label

SCHEMA_FILE = "schema.json"


class ModelOutput(Wire):
    """What one row's score is.

    `probability`: of the second of `classes`; `probabilities`: one of each of `classes`, which add up to 1; `value`: in
    the label's own unit; `expected_count`: a number that is not negative.
    """

    kind: Literal["probability", "probabilities", "value", "expected_count"]
    classes: Annotated[tuple[str, ...], Field(max_length=256)] = ()


class ModelSchema(Wire):
    """Inputs, units and classes of one model. `columns`: what the weights or trees take after `preprocessing.json`, in
    their order."""

    format: Literal["cohortium/model-schema/1"] = "cohortium/model-schema/1"
    study: Annotated[str, Field(pattern=STUDY_PATTERN)]
    study_digest: Bytes32
    trainer: str
    inputs: Annotated[tuple[Feature, ...], Field(min_length=1, max_length=4096)]
    label: Label
    output: ModelOutput
    columns: tuple[str, ...]
