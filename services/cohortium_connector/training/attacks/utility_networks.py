"""Federations of `torch.logistic` and `torch.mlp` in one process, without privacy, with local and with distributed
noise.

Training, noise, lattice and server step are those of real sites and services. What is left out is transport and masks;
in mode `local`, the secure sum's rounding of updates, too. Tests hold both against a whole federation.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from cohortium_connector.training.attacks.bounds import Scores
from cohortium_connector.training.attacks.private import chance_of
from cohortium_connector.training.attacks.setting import Cohort, scores_of
from cohortium_connector.training.attacks.utility_plan import CannotPlan, PlannedRun
from cohortium_connector.training.base import Floats, Trained
from cohortium_connector.training.dp_gradients import LastingData
from cohortium_connector.training.dp_random import Randomness
from cohortium_connector.training.dp_sgd import BatchRule, LayoutSteps, PrivateRule, train_layout
from cohortium_connector.training.torch_ import TorchTrainer
from cohortium_messages.privacy import DistributedPrivacy, LocalPrivacy
from cohortium_messages.study import Study
from cohortium_privacy.plan import local_steps
from cohortium_privacy.windows import share_for, update_scale
from cohortium_protocol.parameters import initial_parameters
from cohortium_protocol.server_step import initial_state, step

MeanUpdate = Callable[[Floats, int], Floats]
"""From the model and the number of the round, from 0, to the mean update."""

Chance = Callable[[int, int], Randomness]
"""From the number of the round and the place of a site to what that site draws in that round."""


@dataclass(frozen=True, slots=True)
class Networks:
    """`cohort`: the rows of `study`, of whose privacy block only the inputs' scaling depends on."""

    study: Study
    cohort: Cohort
    _rows: tuple[LastingData, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        rows = tuple(LastingData(site.train.inputs, site.train.labels) for site in self.cohort.sites)
        object.__setattr__(self, "_rows", rows)

    def without(self, seed: int) -> Scores:
        """Scores of all test rows after federated averaging, weighted by rows."""
        recipe = self.cohort.recipe
        trainer = TorchTrainer(recipe, self.cohort.preprocessing.inputs, self.study.federation.proximal_mu)
        rows = [len(site.train.labels) for site in self.cohort.sites]

        def mean(model: Floats, round_: int) -> Floats:
            seeds = np.random.default_rng([seed, 5, round_]).integers(1 << 31, size=len(rows)).tolist()
            trained = [
                trainer.train(model, site.train, epochs=recipe.local.epochs, seed=own)
                for site, own in zip(self.cohort.sites, seeds, strict=True)
            ]
            return _mean_update(model, trained, rows)

        return self.scores(self._trained(mean))

    def private(self, run: PlannedRun, seed: int) -> Scores:
        """Scores of all test rows after a private run. Raises `CannotPlan` for a mode that is not for patients."""
        return self.scores(self.private_model(run, lambda round_, place: chance_of("utility", seed, round_, place)))

    def private_model(self, run: PlannedRun, chance: Chance) -> Floats:
        """The model of a private run in which every site draws from `chance`. Raises `CannotPlan`."""
        match run.study.privacy:
            case LocalPrivacy() as privacy:
                return self._trained(self._local(run, privacy, chance))
            case DistributedPrivacy() as privacy:
                return self._trained(self._distributed(run, privacy, chance))
        raise CannotPlan(f"mode {run.study.privacy.mode} cannot be calibrated; use local or distributed")

    def _local(self, run: PlannedRun, privacy: LocalPrivacy, chance: Chance) -> MeanUpdate:
        """DP-SGD at every site, and equal weights."""
        recipe, mu = self.cohort.recipe, self.study.federation.proximal_mu
        rule = PrivateRule(_batch(privacy), run.plan.noise_multiplier, local_steps(privacy, recipe))

        def mean(model: Floats, round_: int) -> Floats:
            trained = [
                train_layout(self.cohort.layout, model, rows, rule, recipe.local, chance(round_, place), proximal_mu=mu)
                for place, rows in enumerate(self._rows)
            ]
            return _mean_update(model, trained, [1] * len(trained))

        return mean

    def _distributed(self, run: PlannedRun, privacy: DistributedPrivacy, chance: Chance) -> MeanUpdate:
        """One sum of clipped gradients a round, every site with its share of the noise."""
        batch = _batch(privacy)
        share = share_for(run.study, "update", run.noise, len(self._rows))
        scale = update_scale(run.study, run.noise, len(self._rows))
        sites = [LayoutSteps(self.cohort.layout, rows, batch) for rows in self._rows]

        def mean(model: Floats, round_: int) -> Floats:
            shares = [
                site.share(model, share, chance(round_, place), round_=round_) for place, site in enumerate(sites)
            ]
            return np.asarray(-np.sum(shares, axis=0) * scale, dtype=np.float32)

        return mean

    def _trained(self, mean: MeanUpdate) -> Floats:
        """All rounds with the study's server step."""
        federation = self.study.federation
        model = initial_parameters(self.cohort.layout, federation.seed)
        state = initial_state(federation.server, model.size)
        for round_ in range(self.study.rounds):
            stepped = step(federation.server, model, mean(model, round_), state)
            model, state = stepped.model, stepped.state
        return model

    def scores(self, model: Floats) -> Scores:
        """Of the test rows of all sites."""
        return np.concatenate([scores_of(self.cohort.recipe, model, site.test.inputs) for site in self.cohort.sites])


def _batch(privacy: LocalPrivacy | DistributedPrivacy) -> BatchRule:
    return BatchRule(privacy.clip, privacy.sampling_rate, privacy.sampling_rate * privacy.patients)


def _mean_update(model: Floats, trained: Sequence[Trained], weights: Sequence[int]) -> Floats:
    updates = [np.concatenate(list(own.slices)) - model for own in trained]
    return np.asarray(np.average(updates, axis=0, weights=weights), dtype=np.float32)
