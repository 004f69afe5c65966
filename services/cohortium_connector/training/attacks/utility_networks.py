"""Federations of `torch.logistic` and `torch.mlp` in one process, without privacy, with local and with distributed
noise."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from cohortium_connector.training.attacks.bounds import Scores
from cohortium_connector.training.attacks.private import chance_of
from cohortium_connector.training.attacks.setting import Cohort, scores_of
from cohortium_connector.training.attacks.utility_plan import CannotPlan, PlannedRun
from cohortium_connector.training.base import Floats, Trained
from cohortium_connector.training.dp_sgd import BatchRule, PrivateRule, layout_share, train_layout
from cohortium_connector.training.torch_ import TorchTrainer
from cohortium_messages.privacy import DistributedPrivacy, LocalPrivacy
from cohortium_messages.study import Study
from cohortium_privacy.plan import local_steps
from cohortium_privacy.windows import share_for, update_scale
from cohortium_protocol.parameters import initial_parameters
from cohortium_protocol.server_step import initial_state, step

MeanUpdate = Callable[[Floats, int], Floats]
"""From the model and the number of the round, from 0, to the mean update."""


@dataclass(frozen=True, slots=True)
class Networks:
    """`cohort`: the rows of `study`, of whose privacy block only the inputs' scaling depends on."""

    study: Study
    cohort: Cohort

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

        return self._scored(mean)

    def private(self, run: PlannedRun, seed: int) -> Scores:
        """Scores of all test rows after a private run. Raises `CannotPlan` for a mode that is not for patients."""
        match run.study.privacy:
            case LocalPrivacy() as privacy:
                return self._scored(self._local(run, privacy, seed))
            case DistributedPrivacy() as privacy:
                return self._scored(self._distributed(run, privacy, seed))
        raise CannotPlan(f"mode {run.study.privacy.mode} cannot be calibrated; use local or distributed")

    def _local(self, run: PlannedRun, privacy: LocalPrivacy, seed: int) -> MeanUpdate:
        """DP-SGD at every site, and equal weights."""
        recipe, mu = self.cohort.recipe, self.study.federation.proximal_mu
        rule = PrivateRule(_batch(privacy), run.plan.noise_multiplier, local_steps(privacy, recipe))

        def mean(model: Floats, round_: int) -> Floats:
            trained = [
                train_layout(
                    self.cohort.layout,
                    model,
                    site.train,
                    rule,
                    recipe.local,
                    chance_of("utility", seed, round_, place),
                    proximal_mu=mu,
                )
                for place, site in enumerate(self.cohort.sites)
            ]
            return _mean_update(model, trained, [1] * len(trained))

        return mean

    def _distributed(self, run: PlannedRun, privacy: DistributedPrivacy, seed: int) -> MeanUpdate:
        """One sum of clipped gradients a round, every site with its share of the noise."""
        sites, batch = self.cohort.sites, _batch(privacy)
        share = share_for(run.study, "update", run.noise, len(sites))
        scale = update_scale(run.study, run.noise, len(sites))

        def mean(model: Floats, round_: int) -> Floats:
            shares = [
                layout_share(
                    self.cohort.layout,
                    model,
                    site.train,
                    batch,
                    share,
                    chance_of("utility", seed, place),
                    round_=round_,
                )
                for place, site in enumerate(sites)
            ]
            return np.asarray(-np.sum(shares, axis=0) * scale, dtype=np.float32)

        return mean

    def _scored(self, mean: MeanUpdate) -> Scores:
        """All rounds with the study's server step, then the test rows of all sites."""
        federation = self.study.federation
        model = initial_parameters(self.cohort.layout, federation.seed)
        state = initial_state(federation.server, model.size)
        for round_ in range(self.study.rounds):
            stepped = step(federation.server, model, mean(model, round_), state)
            model, state = stepped.model, stepped.state
        return np.concatenate([scores_of(self.cohort.recipe, model, site.test.inputs) for site in self.cohort.sites])


def _batch(privacy: LocalPrivacy | DistributedPrivacy) -> BatchRule:
    return BatchRule(privacy.clip, privacy.sampling_rate, privacy.sampling_rate * privacy.patients)


def _mean_update(model: Floats, trained: Sequence[Trained], weights: Sequence[int]) -> Floats:
    updates = [np.concatenate(list(own.slices)) - model for own in trained]
    return np.asarray(np.average(updates, axis=0, weights=weights), dtype=np.float32)
