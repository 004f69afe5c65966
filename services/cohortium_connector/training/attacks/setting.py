"""What the attacks and the utility curve work on: rows of some sites as model inputs, and ways to fit a model to them.

Inputs are scaled by the study's public ranges, as where training is private: then nothing about the rows but what the
models learnt is in any model, and models with and without privacy are compared on the same inputs.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cohortium_connector.training.attacks.bounds import Flags, Scores
from cohortium_connector.training.base import Examples, Floats, SiteRefusal
from cohortium_connector.training.data import Table
from cohortium_connector.training.torch_ import TorchTrainer
from cohortium_messages.study import LogisticRecipe, MlpRecipe, Study
from cohortium_privacy.public_inputs import public_rules
from cohortium_protocol.parameters import Layout, initial_parameters, layout_of
from cohortium_protocol.statistics import Preprocessing, Rows, design_matrix

NetworkRecipe = LogisticRecipe | MlpRecipe


class RecipeUnsupported(SiteRefusal):
    """Only logistic regression and networks have gradients that these attacks and this training know."""

    def __init__(self, trainer: str) -> None:
        super().__init__(
            "RECIPE_UNSUPPORTED",
            local=f"the trainer {trainer} is none of torch.logistic and torch.mlp; use one of them",
        )


@dataclass(frozen=True, slots=True)
class SiteRows:
    """One site's rows as inputs and labels."""

    name: str
    train: Examples
    test: Examples


@dataclass(frozen=True, slots=True)
class Cohort:
    """All sites' rows in one place, which only a benchmark has."""

    recipe: NetworkRecipe
    preprocessing: Preprocessing
    sites: tuple[SiteRows, ...]
    seed: int

    @property
    def layout(self) -> Layout:
        return layout_of(self.recipe, self.preprocessing.inputs)

    def pool(self, most: int) -> Examples:
        """All rows, of training and testing alike; of more than `most` a choice by the study's seed."""
        parts = [part for site in self.sites for part in (site.train, site.test)]
        rows = joined(parts)
        if len(rows.labels) <= most:
            return rows
        chosen = np.random.default_rng([self.seed, 1]).choice(len(rows.labels), most, replace=False)
        return taken(rows, np.sort(chosen))


def cohort_of(study: Study, tables: Mapping[str, Table]) -> Cohort:
    """The sites' rows for the recipe of a study with a privacy block. Raises `RecipeUnsupported`."""
    rules = public_rules(study, len(tables))
    if not isinstance(study.recipe, LogisticRecipe | MlpRecipe) or not isinstance(rules, Preprocessing):
        raise RecipeUnsupported(study.recipe.trainer)
    sites = (
        SiteRows(name, examples_of(rules, table.train), examples_of(rules, table.test))
        for name, table in tables.items()
    )
    return Cohort(study.recipe, rules, tuple(sites), study.federation.seed)


def examples_of(rules: Preprocessing, rows: Rows) -> Examples:
    """Rows as a model takes them."""
    return Examples(design_matrix(rules, rows), rows.labels.astype(np.float32))


def joined(parts: list[Examples]) -> Examples:
    """The rows of all parts, one after the other."""
    return Examples(np.concatenate([part.inputs for part in parts]), np.concatenate([part.labels for part in parts]))


def taken(examples: Examples, choice: Flags | NDArray[np.int64]) -> Examples:
    """The rows that a mask or an index array chooses."""
    return Examples(examples.inputs[choice], examples.labels[choice])


def library_versions() -> dict[str, str]:
    """Of what the figures depend on."""
    return {name: version(name) for name in ("torch", "opacus", "dp-accounting", "numpy")}


class Fit(Protocol):
    """A way to make a model of rows: the same rows and seed give the same model."""

    def __call__(self, rows: Examples, seed: int) -> Floats:
        """The model as a flat array."""
        ...


@dataclass(frozen=True, slots=True)
class PlainFit:
    """The repository's own trainer without privacy: `epochs` passes from the study's first model."""

    recipe: NetworkRecipe
    inputs: int
    epochs: int
    start_seed: int

    def __call__(self, rows: Examples, seed: int) -> Floats:
        trainer = TorchTrainer(self.recipe, self.inputs, proximal_mu=0.0)
        start = initial_parameters(trainer.layout, self.start_seed)
        return np.concatenate(list(trainer.train(start, rows, epochs=self.epochs, seed=seed).slices))


def scores_of(recipe: NetworkRecipe, model: Floats, inputs: Floats) -> Scores:
    """The model's probability of label 1 for each row."""
    return TorchTrainer(recipe, inputs.shape[1], proximal_mu=0.0).scores(model, inputs)
