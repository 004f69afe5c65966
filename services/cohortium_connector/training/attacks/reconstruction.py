"""Gradient inversion against what different onlookers have of one step: a plain update, the secure sum, noise.

The worst case for the patients: every hospital takes one step on very few rows, at a model that the attacker knows.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cohortium_connector.training.attacks.inversion import Inverter, Likeness, likeness
from cohortium_connector.training.attacks.private import Terms, chance_of, distributed_step, local_step
from cohortium_connector.training.attacks.setting import NetworkRecipe, taken
from cohortium_connector.training.attacks.wire_view import view_of_updates
from cohortium_connector.training.base import Examples, Floats
from cohortium_connector.training.dp_sgd import BatchRule, PrivateRule
from cohortium_connector.training.privacy_report import InversionFigures, Promise, Seen
from cohortium_connector.training.torch_ import TorchTrainer
from cohortium_messages.study import Compression, LocalTraining

Rows = NDArray[np.int64]
View = Callable[[Rows, int], Floats]
"""From the rows of each site (sites × patients) and the number of the trial to the gradient that is seen."""


@dataclass(frozen=True, slots=True)
class Scene:
    """One model, one table of rows, and how the sites send updates."""

    recipe: NetworkRecipe
    inverter: Inverter
    table: Examples
    compression: Compression
    sites: int
    trials: int
    seed: int

    def plain(self, rows: Rows) -> Floats:
        """The update of one site: one step of size 1 of the repository's trainer on these rows together."""
        local = LocalTraining(epochs=1, batch_size=len(rows), optimizer="sgd", lr=1.0)
        recipe = self.recipe.model_copy(update={"local": local})
        trainer = TorchTrainer(recipe, self.table.inputs.shape[1], proximal_mu=0.0)
        trained = trainer.train(self.inverter.base, taken(self.table, rows), epochs=1, seed=0)
        update: Floats = np.concatenate(list(trained.slices)) - self.inverter.base
        return update


def reconstructed(scene: Scene, patients: int, terms: Terms, promise: Promise) -> Iterator[InversionFigures]:
    """All onlookers' attempts, with so many patients at each site."""
    chance = np.random.default_rng([scene.seed, 3, patients])
    size = scene.sites * patients
    drawn = [
        chance.choice(len(scene.table.labels), size, replace=False).reshape(scene.sites, patients)
        for _ in range(scene.trials)
    ]
    views: dict[Seen, View] = {
        "update": lambda rows, _: -scene.plain(rows[0]),
        "masked": lambda rows, _: -view_of_updates([scene.plain(own) for own in rows], scene.compression).masked[0],
        "sum": lambda rows, _: -view_of_updates([scene.plain(own) for own in rows], scene.compression).mean,
        "local": lambda rows, trial: _local(scene, rows, terms.rule, trial),
        "distributed": lambda rows, trial: _distributed(scene, rows, terms.rule, trial),
    }
    for seen, view in views.items():
        whole = seen in ("sum", "distributed")
        noisy = seen in ("local", "distributed")
        found = list(_attempts(scene, view, drawn, whole=whole))
        yield InversionFigures(
            seen=seen,
            promise=promise if noisy else None,
            patients=patients,
            sites=scene.sites,
            error=float(np.mean([one.error for one in found])),
            identified=sum(one.identified for one in found),
            wanted=(size if whole else patients) * scene.trials,
            guessed=(size if whole else patients) / len(scene.table.labels),
        )


def _attempts(scene: Scene, view: View, drawn: list[Rows], *, whole: bool) -> Iterator[Likeness]:
    """One for each trial. The attacker of a whole sum looks for the patients of all sites."""
    gradients = [view(rows, trial) for trial, rows in enumerate(drawn)]
    wanted = [rows.reshape(-1) if whole else rows[0] for rows in drawn]
    guesses = scene.inverter.rows_behind(gradients, len(wanted[0]), scene.seed)
    chance = np.random.default_rng([scene.seed, 4])
    for own, true in zip(guesses, wanted, strict=True):
        rest = np.setdiff1d(np.arange(len(scene.table.labels)), true)
        yield likeness(own, true, scene.table.inputs, chance.choice(rest, len(true), replace=False))


def _local(scene: Scene, rows: Rows, rule: PrivateRule, trial: int) -> Floats:
    chance = chance_of("local step", scene.seed, trial)
    return local_step(scene.inverter.layout, scene.inverter.base, taken(scene.table, rows[0]), rule, chance)


def _distributed(scene: Scene, rows: Rows, rule: PrivateRule, trial: int) -> Floats:
    """All rows take part, as nobody samples to hide in a step that is attacked alone."""
    whole = PrivateRule(BatchRule(rule.batch.clip, 1.0, float(rows.size)), rule.noise_multiplier, 1)
    chances = [chance_of("distributed step", scene.seed, trial, site) for site in range(len(rows))]
    sites = [taken(scene.table, own) for own in rows]
    return distributed_step(scene.inverter.layout, scene.inverter.base, sites, whole, chances)
