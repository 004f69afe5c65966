"""How long the integer vectors of a study are: scheduler, connector and aggregator ask here, so that they agree."""

from cohortium_messages.secure_sum import Purpose
from cohortium_messages.study import RandomTreesRecipe, Study
from cohortium_protocol.statistics import statistics_length
from cohortium_protocol.trees.binning import refinement_length
from cohortium_protocol.trees.evaluation import evaluation_length, has_trees
from cohortium_protocol.trees.grid import tree_statistics_length
from cohortium_protocol.trees.random_trees import vector_length


def integer_length(study: Study, purpose: Purpose) -> int:
    """Dimension of the vector that a window of this purpose sums as integers in a ring of 64 bits, for a study with any
    trainer. Raises `ValueError` where the study has no such sum: updates of a neural network are floats on a grid, and
    a strict session's steps have lengths of their own."""
    length = 0
    match purpose:
        case "statistics":
            length = tree_statistics_length(study) if has_trees(study) else statistics_length(study)
        case "refinement":
            length = refinement_length(study)
        case "update" if isinstance(study.recipe, RandomTreesRecipe):
            length = vector_length(study)
        case "evaluation":
            length = evaluation_length(study)
        case "update" | "training":
            pass
    if length == 0:
        raise ValueError(f"a study with the trainer {study.recipe.trainer} has no integer sum for {purpose}")
    return length
