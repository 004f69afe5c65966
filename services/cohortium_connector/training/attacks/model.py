"""The attack on one given model, the one that is to be released: does it fit its training rows better than others?

The attacker has the model, and rows with their outcome; whoever's loss is small is taken for a member (Yeom et al., CSF
2018). Which rows of these tables were in the training, the study's own split says. Nothing is trained for it.
No consent is asked here: the tables must hold permitted patients only, or rows that were never trained on count as
members, and the model seems to give away less than it does.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from cohortium_connector.training.attacks.bounds import Scores, auc_interval
from cohortium_connector.training.attacks.membership import true_label_logits
from cohortium_connector.training.attacks.setting import RecipeUnsupported, examples_of, joined, scores_of
from cohortium_connector.training.base import Examples, SiteRefusal
from cohortium_connector.training.data import Table
from cohortium_connector.training.privacy_report import ModelFigures
from cohortium_messages.study import LogisticRecipe, MlpRecipe, Study
from cohortium_protocol.errors import ProtocolError
from cohortium_protocol.parameters import from_safetensors, layout_of
from cohortium_protocol.statistics import Preprocessing


def attack_model(folder: Path, study: Study, tables: Mapping[str, Table]) -> ModelFigures:
    """Raises `SiteRefusal` for a model of another study, a recipe that is no network, or tables without test rows."""
    recipe = study.recipe
    if not isinstance(recipe, LogisticRecipe | MlpRecipe):
        raise RecipeUnsupported(recipe.trainer)
    try:
        rules = Preprocessing.model_validate_json((folder / "preprocessing.json").read_bytes())
        weights = from_safetensors(layout_of(recipe, rules.inputs), (folder / "model.safetensors").read_bytes())
    except (OSError, ValidationError, ProtocolError) as error:
        raise SiteRefusal(
            "MODEL_REFUSED",
            local=f"{folder} holds no model of this study that can be attacked ({type(error).__name__})",
        ) from None
    if rules.study_digest != study.digest():
        raise SiteRefusal("MODEL_REFUSED", local=f"the model in {folder} is of another version of {rules.study_id}")

    def confidence(rows: Examples) -> Scores:
        return true_label_logits(scores_of(recipe, weights, rows.inputs), rows.labels)

    train = joined([examples_of(rules, table.train) for table in tables.values()])
    test = joined([examples_of(rules, table.test) for table in tables.values()])
    if not len(test.labels):
        raise SiteRefusal("TOO_FEW_ROWS", local="no row is for testing, so there is nobody who was not in the training")
    found = auc_interval(*(np.asarray(confidence(rows), np.float64) for rows in (train, test)))
    return ModelFigures(
        method="threshold on the loss (Yeom et al., CSF 2018), by who has the model and rows with their outcome; "
        f"members are the training rows, others the test rows, of {len(tables)} tables as they are now: all "
        "their rows, for no consent was asked; a row whose patient was never in the training counts as a member",
        auc=found.mean,
        auc_low=found.low,
        auc_high=found.high,
        members=len(train.labels),
        others=len(test.labels),
    )
