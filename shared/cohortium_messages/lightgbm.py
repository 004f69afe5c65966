"""LightGBM parameters that a study may set: LightGBM's own names, LightGBM 4.7's own defaults.

A closed list. What is not here is refused, because someone must first show what it sends over the network, that all
sites choose the same, and that the result is still LightGBM's own. `cohortium_messages.lightgbm_names` says why of
each, and which name to write instead of another.
"""

from typing import Annotated, Any, Literal

from pydantic import Field

from cohortium_messages.ids import Wire

Objective = Literal["binary", "multiclass", "regression", "poisson"]
EarlyMetric = Literal["binary_logloss", "auc", "multi_logloss", "l2", "poisson"]

OBJECTIVES: dict[str, tuple[Objective, ...]] = {
    "binary": ("binary",),
    "multiclass": ("multiclass",),
    "number": ("regression",),
    "count": ("poisson", "regression"),
}
"""By the type of the study's label: objectives that fit it, the default first."""

EARLY_METRICS: dict[Objective, tuple[EarlyMetric, ...]] = {
    "binary": ("binary_logloss", "auc"),
    "multiclass": ("multi_logloss",),
    "regression": ("l2",),
    "poisson": ("poisson",),
}
"""By objective: metrics that early stopping can be decided on, the default first."""


class LightgbmParams(Wire):
    """Parameters of training, as `lightgbm.train` takes them. `objective` left out: the one that fits the label."""

    objective: Objective | None = None
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 0.1
    num_leaves: Annotated[int, Field(ge=2, le=1024)] = 31
    max_depth: Annotated[int, Field(ge=-1, le=64)] = -1
    min_data_in_leaf: Annotated[int, Field(ge=5, le=10_000_000)] = 20
    min_sum_hessian_in_leaf: Annotated[float, Field(ge=0, le=1e9)] = 1e-3
    min_gain_to_split: Annotated[float, Field(ge=0, le=1e9)] = 0.0
    lambda_l1: Annotated[float, Field(ge=0, le=1e9)] = 0.0
    lambda_l2: Annotated[float, Field(ge=0, le=1e9)] = 0.0
    max_delta_step: Annotated[float, Field(ge=0, le=1e9)] = 0.0
    path_smooth: Annotated[float, Field(ge=0, le=1e9)] = 0.0
    max_bin: Annotated[int, Field(ge=2, le=255)] = 63
    feature_fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    feature_fraction_bynode: Annotated[float, Field(gt=0, le=1)] = 1.0
    feature_fraction_seed: Annotated[int, Field(ge=0, lt=1 << 31)] = 2
    extra_trees: bool = False
    extra_seed: Annotated[int, Field(ge=0, lt=1 << 31)] = 6
    boost_from_average: bool = True
    scale_pos_weight: Annotated[float, Field(gt=0, le=1000)] = 1.0
    is_unbalance: bool = False
    poisson_max_delta_step: Annotated[float, Field(gt=0, le=10)] = 0.7
    monotone_constraints: dict[str, Literal[-1, 0, 1]] | None = None
    """By feature: 1 where the score may only rise with it, -1 where it may only fall."""
    monotone_penalty: Annotated[float, Field(ge=0, le=1e6)] = 0.0
    cat_smooth: Annotated[float, Field(ge=0, le=1e9)] = 10.0
    cat_l2: Annotated[float, Field(ge=0, le=1e9)] = 10.0
    max_cat_threshold: Annotated[int, Field(ge=1, le=256)] = 32
    max_cat_to_onehot: Annotated[int, Field(ge=1, le=256)] = 4
    min_data_per_group: Annotated[int, Field(ge=1, le=10_000_000)] = 100
    metric: EarlyMetric | None = None
    early_stopping_round: Annotated[int, Field(ge=0, le=1000)] = 0
    """0: no early stopping. Otherwise training ends when `metric`, a secure sum over the validation rows, has not got
    better for so many rounds; the trees after the best one are cut off."""
    early_stopping_min_delta: Annotated[float, Field(ge=0, le=1e6)] = 0.0

    def given(self) -> dict[str, Any]:
        """LightGBM's own parameters, all of them written out; without those that need the study to be read."""
        return self.model_dump(exclude={"monotone_constraints", "metric", "early_stopping_round", "objective"})
