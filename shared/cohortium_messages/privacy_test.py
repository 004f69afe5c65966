"""What somebody found who attacked a model: the file that an officer attaches to its release."""

from datetime import date
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from cohortium_messages.ids import Bytes32, RunIdField, Wire

Share = Annotated[float, Field(ge=0, le=1)]


class PrivacyTest(Wire):
    """A membership-inference test of one model: how well an attacker tells the rows that it was trained on from others.

    `auc`: area under the attacker's ROC curve, 0.5 for a guess; `interval`: its confidence interval at `confidence`.
    Only these totals: no row, no score of a row, no hospital.
    """

    format: Literal["cohortium/privacy-test/1"] = "cohortium/privacy-test/1"
    run: RunIdField
    model_hash: Bytes32
    attack: Literal["membership_inference"] = "membership_inference"
    method: Annotated[str, Field(min_length=1, max_length=400)]
    """Which attack, with what knowledge, against which rows."""
    auc: Share
    interval: tuple[Share, Share]
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95
    members: Annotated[int, Field(ge=1)]
    non_members: Annotated[int, Field(ge=1)]
    made_on: date
    made_by: Annotated[str, Field(min_length=1, max_length=200)]

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.interval[0] <= self.auc <= self.interval[1]:
            raise ValueError("auc lies outside of its own interval")
        return self
