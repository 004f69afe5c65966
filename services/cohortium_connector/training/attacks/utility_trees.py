"""Federations of random trees in one process, without privacy and with distributed noise."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cohortium_connector.training.attacks.bounds import Scores
from cohortium_connector.training.attacks.private import chance_of
from cohortium_connector.training.attacks.utility_plan import CannotPlan, PlannedRun
from cohortium_connector.training.data import Table
from cohortium_connector.training.dp_random import SiteNoise
from cohortium_messages.study import Study
from cohortium_privacy.public_inputs import public_rules
from cohortium_privacy.windows import share_for, total_sigma
from cohortium_protocol.statistics import Preprocessing
from cohortium_protocol.trees.binning import tree_columns
from cohortium_protocol.trees.predict import raw_scores, response
from cohortium_protocol.trees.random_trees import NoiseSource, check_random_trees, leaf_vector, next_model

Matrix = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class RandomTrees:
    """`sites`: columns and labels of each site's training rows. The structure of the trees follows from the study."""

    study: Study
    sites: tuple[tuple[Matrix, Scores], ...]
    test: Matrix

    @classmethod
    def of(cls, study: Study, tables: Mapping[str, Table]) -> "RandomTrees":
        """For a study with a privacy block, whose bins come from public ranges. Raises `CannotPlan` for networks."""
        rules = public_rules(study, len(tables))
        if isinstance(rules, Preprocessing):
            raise CannotPlan(f"the trainer {study.recipe.trainer} grows no random trees")
        sites = tuple((tree_columns(rules, table.train), table.train.labels) for table in tables.values())
        return cls(study, sites, np.concatenate([tree_columns(rules, table.test) for table in tables.values()]))

    def without(self, seed: int) -> Scores:  # noqa: ARG002 - nothing is drawn
        """Scores of all test rows. The same for every seed."""
        return self._scored(self.study, [None] * len(self.sites), 0.0)

    def private(self, run: PlannedRun, seed: int) -> Scores:
        """Scores of all test rows after a private run."""
        share = share_for(run.study, "update", run.noise, len(self.sites))
        noises = [
            SiteNoise(chance_of("utility", seed, place).stream("noise"), share.sigma)
            for place in range(len(self.sites))
        ]
        return self._scored(run.study, noises, total_sigma(run.study, "update", run.noise, len(self.sites)))

    def _scored(self, study: Study, noises: list[NoiseSource] | list[SiteNoise] | list[None], spread: float) -> Scores:
        text, model = b"", None
        for round_ in range(1, study.rounds + 1):
            vectors = [
                leaf_vector(study, round_, model, columns, labels, noise)
                for (columns, labels), noise in zip(self.sites, noises, strict=True)
            ]
            text = next_model(study, round_, text, np.sum(vectors, axis=0), spread)
            model = check_random_trees(study, text, round_)
        if model is None:
            raise CannotPlan("the study has no round, so there is no model")
        return response("binary", raw_scores(model, self.test))
