"""The jobs of private studies: vectors with the noise that the plan asks for, or made by training with it.

A promise is to a person. Where the table names persons (`person_column`), each has one row at most in every sum, drawn
anew for each step of `local` and `distributed`, for each round of random trees, and for the evaluation. In mode `site`
the hospital's whole update is clipped, whoever is in it. Only patients of blocks that the ledger charged are used
(`PrivateWork.blocks`). Where the table names nobody, each row counts as a person.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cohortium_connector.training.base import (
    Examples,
    Floats,
    SiteRefusal,
    Trained,
    open_model,
    trainer_for,
    write_update,
    write_words,
)
from cohortium_connector.training.dp_random import Randomness, noised
from cohortium_connector.training.jobs import Evaluate, PrivateWork, TrainLocally
from cohortium_connector.training.persons import Part
from cohortium_messages.privacy import DistributedPrivacy, LocalPrivacy, SitePrivacy
from cohortium_messages.secure_sum import Purpose
from cohortium_messages.study import GradientRecipe, RandomTreesRecipe, Study
from cohortium_privacy.evaluation import histogram_vector
from cohortium_privacy.lattice import Lattice, NoiseShare
from cohortium_privacy.windows import count_factor, formal, share_for
from cohortium_protocol.encoding import f64
from cohortium_protocol.parameters import Layout, ModelRefused, layout_of
from cohortium_protocol.statistics import Preprocessing, Rows, design_matrix, input_count
from cohortium_protocol.trees.evaluation import has_trees
from cohortium_protocol.vectors import slices

if TYPE_CHECKING:  # needs torch, which a process for random trees may do without
    from cohortium_connector.training.dp_gradients import PatientData

Words = NDArray[np.int64]
UNDECIDED = 0.5


def is_private(study: Study) -> bool:
    """Whether the study promises anything."""
    return formal(study) is not None


def checked(study: Study, private: PrivateWork | None) -> PrivateWork:
    """The order of a private study's job. Raises `ModelRefused` where it has none: nothing is made without noise."""
    if private is None:
        raise ModelRefused(f"the study is in privacy mode {study.privacy.mode}, and the job says nothing of noise")
    return private


def update(job: TrainLocally, preprocessing: Preprocessing, train: Part, *, seed: int) -> int:
    """One round of a trainer of PyTorch, into `update_path`; returns the model's parameters. `seed`: of what is no
    secret, the order of batches in mode `site`.

    Raises `ModelRefused`, `LatticeRefused`; in mode `site` `SiteRefusal` where no row is left to train on.
    """
    study, private, recipe = job.study, checked(job.study, job.private), job.study.recipe
    if not isinstance(recipe, GradientRecipe):
        raise ModelRefused(f"{recipe.trainer} does not train in mode {study.privacy.mode}")
    used = train.within(private.blocks)
    examples = Examples(design_matrix(preprocessing, used.rows), used.rows.labels.astype(np.float32))
    layout = layout_of(recipe, input_count(study))
    base, path = open_model(Path(job.model_path), layout), Path(job.update_path)
    match study.privacy:
        case LocalPrivacy() as privacy:
            patients = _patients(examples, used)
            write_update(path, base, _trained_locally(study, privacy, recipe, layout, base, patients, private))
        case DistributedPrivacy() as privacy:
            share = _share(study, "update", private)
            patients = _patients(examples, used)
            write_words(path, _gradients(privacy, layout, base, patients, share, private, round_=job.round))
        case SitePrivacy() as privacy:
            if not len(used.rows):
                raise SiteRefusal("NO_TRAINING_ROWS", local="no patient of the charged blocks has a row to train on")
            trained = trainer_for(study, input_count(study)).train(
                base, examples, epochs=recipe.local.epochs, seed=seed
            )
            words = _clipped(Lattice(privacy.clip, layout.size), base, trained)
            write_words(path, _noised(study, "update", words, private))
        case _:
            raise ModelRefused("the study promises nothing, and the job asks for noise")
    return layout.size


def _patients(examples: Examples, used: Part) -> "PatientData":
    """The rows with their persons, of whom a step samples, and of each it samples one row."""
    from cohortium_connector.training.dp_gradients import PatientData

    return PatientData(examples.inputs, examples.labels, None if used.owners.single else used.owners.of_row)


def _trained_locally(
    study: Study,
    privacy: LocalPrivacy,
    recipe: GradientRecipe,
    layout: Layout,
    base: Floats,
    patients: "PatientData",
    private: PrivateWork,
) -> Trained:
    from cohortium_connector.training.dp_sgd import BatchRule, PrivateRule, train_layout
    from cohortium_privacy.plan import local_steps

    noise = private.noise
    batch = BatchRule(noise.clip, noise.sampling_rate, noise.sampling_rate * privacy.patients)
    rule = PrivateRule(batch, noise.multiplier, local_steps(privacy, recipe))
    chance, mu = Randomness(private.seed), study.federation.proximal_mu
    return train_layout(layout, base, patients, rule, recipe.local, chance, proximal_mu=mu)


def _gradients(
    privacy: DistributedPrivacy,
    layout: Layout,
    base: Floats,
    patients: "PatientData",
    share: NoiseShare,
    private: PrivateWork,
    *,
    round_: int,
) -> Words:
    """Minus the clipped gradient sum, which is the direction that the model is to move in. The noise is as likely on
    either side."""
    from cohortium_connector.training.dp_sgd import BatchRule, layout_share

    noise = private.noise
    batch = BatchRule(noise.clip, noise.sampling_rate, noise.sampling_rate * privacy.patients)
    chance = Randomness(private.seed)
    return -layout_share(layout, base, patients, batch, share, chance, round_=round_)


def _clipped(lattice: Lattice, base: Floats, trained: Trained) -> Words:
    """The update on the lattice. Zeros where training left the numbers: to refuse the round would tell of the rows."""
    local = np.concatenate(list(trained.slices))
    difference = np.empty(len(local), dtype=np.float32)
    with np.errstate(invalid="ignore", over="ignore"):
        for where in slices(len(local)):
            difference[where] = local[where] - base[where]
    return lattice.clipped(difference)


def leaf_sums(job: TrainLocally, train: Part) -> Words:
    """One round of random trees, into `update_path`: sums of leaves over one row of each person, with noise."""
    from cohortium_connector.training import tree_jobs

    private = checked(job.study, job.private)
    if not isinstance(job.study.recipe, RandomTreesRecipe) or job.preprocessing_path is None:
        raise ModelRefused("the job is not one of random trees with their bins")
    model, round_ = Path(job.model_path), job.round + 1
    rows = _one_each(train, "update", private)
    exact = tree_jobs.leaf_sums(job.study, job.preprocessing_path, model, rows, round_=round_, noise=_Silence())
    words = _noised(job.study, "update", exact, private)
    write_words(Path(job.update_path), words)
    return words


def _one_each(part: Part, purpose: Purpose, private: PrivateWork) -> Rows:
    """One row of each person of the charged blocks: of all the sum, a person moves one row's part."""
    return part.within(private.blocks).one_each(Randomness(private.seed).bound(b"one row each", purpose.encode()))


def evaluation(job: Evaluate, preprocessing: Preprocessing | None, test: Part) -> None:
    """Two histograms of the last model's scores of one row of each person, with noise, into `vector_path`. A score that
    is no number counts as one in the middle: to refuse would tell of the row."""
    private = checked(job.study, job.private)
    rows = _one_each(test, "evaluation", private)
    scores = _scores(job, preprocessing, rows)
    scores = np.where(np.isfinite(scores), scores, UNDECIDED)
    counts = histogram_vector(scores, rows.labels, count_factor(private.noise))
    write_words(Path(job.vector_path), _noised(job.study, "evaluation", counts, private))


def _scores(job: Evaluate, preprocessing: Preprocessing | None, test: Rows) -> NDArray[np.float64]:
    if has_trees(job.study):
        from cohortium_connector.training import tree_jobs

        return tree_jobs.scores(job.study, job.preprocessing_path, Path(job.model_path), test)
    if preprocessing is None:
        raise ModelRefused("a model of this recipe needs its preprocessing")
    trainer = trainer_for(job.study, preprocessing.inputs)
    return trainer.scores(open_model(Path(job.model_path), trainer.layout), design_matrix(preprocessing, test))


def _noised(study: Study, purpose: Purpose, words: Words, private: PrivateWork) -> Words:
    """The words and this site's share of the noise. It is bound to the words themselves, so that the same seed never
    gives the same noise to two different vectors, whose difference would show what it hides."""
    noise = private.noise
    context = (purpose.encode(), f64(noise.site_sigma), words.astype("<i8").tobytes())
    chance = Randomness(private.seed).bound(*context)
    return noised(words, _share(study, purpose, private), chance.stream("noise"))


def _share(study: Study, purpose: Purpose, private: PrivateWork) -> NoiseShare:
    return share_for(study, purpose, private.noise, private.sites)


class _Silence:
    """Leaf sums on the lattice of noisy sums, without noise yet."""

    def integers(self, count: int) -> Words:
        return np.zeros(count, dtype=np.int64)
