"""Models of trees as they come from the aggregator: what is checked before they are kept, let alone used.

The bins are a document of their own, the trees are LightGBM's text. LightGBM's own reader ends the process on some
texts and reads beyond its memory on others, so no text gets near it that `cohortium_protocol.trees.text` has not read.
"""

from typing import Any

import rfc8785

from cohortium_messages.study import LightgbmRecipe, RandomTreesRecipe, Study
from cohortium_protocol.parameters import ModelRefused
from cohortium_protocol.trees.binning import Binning, CategoryBins
from cohortium_protocol.trees.random_trees import check_random_trees
from cohortium_protocol.trees.text import check_model_text

MOST_TEXT_BYTES = 256 << 20
"""5,000 trees of 1,024 leaves have less."""


def checked_binning(study: Study, document: dict[str, Any]) -> Binning:
    """The bins of a model of this study. Raises `ModelRefused`."""
    try:
        binning = Binning.from_canonical(rfc8785.dumps(document))
    except ValueError as error:
        raise ModelRefused("the bins cannot be read") from error
    if binning.study_digest != study.digest():
        raise ModelRefused("the bins were made for another study version")
    if binning.feature_names() != tuple(feature.name for feature in study.dataset.features):
        raise ModelRefused("the bins are of other features than the study's")
    return binning


def check_text(study: Study, binning: Binning, text: bytes) -> None:
    """Return if `text` is a model that this study can have come to, or empty as before the first tree. Raises
    `ModelRefused`, which names the rule that is broken."""
    if not text:
        return
    match study.recipe:
        case RandomTreesRecipe():
            check_random_trees(study, text)
        case LightgbmRecipe(params=params):
            if study.objective is None:
                raise ModelRefused("the study has no objective")
            check_model_text(
                text,
                features=binning.feature_names(),
                classes=study.trees_per_round,
                max_trees=study.boosting_rounds * study.trees_per_round,
                max_leaves=params.num_leaves,
                objective=study.objective,
                categories={bins.name: bins.codes for bins in binning.features if isinstance(bins, CategoryBins)},
            )
        case _:
            raise ModelRefused("the study has no trees")
