"""Scheduler, connector and aggregator agree on the length of every sum."""

import numpy as np
import pytest
from tree_studies import BINARY, COUNT, LAB, LIGHTGBM, MLP, NORTH, RANDOM, SEX, SOUTH, study_of

from cohortium_messages.study import NoiseRecipe
from cohortium_protocol.metrics import evaluation_length as binary_length
from cohortium_protocol.statistics import statistics_length, statistics_vector
from cohortium_protocol.trees.binning import refinement_length
from cohortium_protocol.trees.evaluation import evaluation_length, evaluation_vector
from cohortium_protocol.trees.grid import tree_statistics_length, tree_statistics_vector
from cohortium_protocol.trees.random_trees import vector_length
from cohortium_protocol.trees.vectors import integer_length

NOISE = NoiseRecipe(trainer="benchmark.noise", parameters=10)


def test_statistics_are_as_long_as_the_vector_that_a_site_makes() -> None:
    for recipe in (LIGHTGBM, RANDOM):
        study = study_of(recipe=recipe)
        length = integer_length(study, "statistics")
        assert length == tree_statistics_length(study) == tree_statistics_vector(study, NORTH, SOUTH).size
    for recipe in (MLP, NOISE):
        study = study_of(recipe=recipe)
        length = integer_length(study, "statistics")
        assert length == statistics_length(study) == statistics_vector(study, NORTH, SOUTH).size


def test_evaluations_are_as_long_as_the_vector_that_a_site_makes() -> None:
    for label in (BINARY, COUNT):
        for recipe in (LIGHTGBM, RANDOM, MLP):
            study = study_of(label=label, recipe=recipe)
            length = integer_length(study, "evaluation")
            assert length == evaluation_length(study) == evaluation_vector(study, np.zeros(0), np.zeros(0)).size
    assert integer_length(study_of(recipe=NOISE), "evaluation") == binary_length()


def test_the_refining_sum_and_random_trees_updates_are_integers() -> None:
    assert integer_length(study_of(), "refinement") == refinement_length(study_of()) > 0
    random = study_of(recipe=RANDOM)
    assert integer_length(random, "update") == vector_length(random) > 0


@pytest.mark.parametrize(
    ("study", "purpose"),
    [
        (study_of(recipe=MLP), "update"),
        (study_of(recipe=MLP), "refinement"),
        (study_of(recipe=NOISE), "update"),
        (study_of(recipe=RANDOM), "refinement"),
        (study_of(SEX), "refinement"),
        (study_of(LAB), "update"),
        (study_of(LAB), "training"),
    ],
)
def test_a_sum_that_the_study_does_not_have_is_refused(study: object, purpose: str) -> None:
    with pytest.raises(ValueError, match=f"no integer sum for {purpose}"):
        integer_length(study, purpose)
