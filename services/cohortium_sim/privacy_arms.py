"""One cell of the table of AUC at ε: a model by one method, trained by the hospitals' own code, and what it is worth.

`central` is `local` with one hospital that has everybody's rows: the same DP-SGD, planned by the same rules.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cohortium_connector.training.attacks.setting import Cohort, RecipeUnsupported, SiteRows, cohort_of, joined
from cohortium_connector.training.attacks.utility_networks import Networks
from cohortium_connector.training.attacks.utility_plan import planned
from cohortium_messages.study import LogisticRecipe, Study
from cohortium_protocol.metrics import exact_auc
from cohortium_sim.privacy_data import DataSet, Method, Setting

BATCH_WITHOUT = 64


@dataclass(frozen=True, slots=True)
class Worth:
    """Of one model on test rows: the AUC over all sites' rows together, and the mean over the sites of the share that
    a threshold of 0.5 gets right (FLamby's measure). `noise_multiplier` and `epsilon_pld`: of the plan."""

    auc: float
    site_accuracy: float
    noise_multiplier: float | None = None
    epsilon_pld: float | None = None


def private_study(data: DataSet, method: Method, epsilon: float, setting: Setting, seed: int) -> Study:
    """The study file of a cell. `seed`: of the first model."""
    q = setting.sampling_rate
    privacy: dict[str, Any] = {"epsilon": epsilon, "delta": data.delta, "clip": setting.clip, "sampling_rate": q}
    match method:
        case "distributed":
            privacy |= {"mode": "distributed", "patients": data.patients}
            rounds, epochs = setting.steps, 1
        case "local":
            privacy |= {"mode": "local", "patients": data.smallest}
            each = min(data.steps_a_round, setting.steps)
            rounds, epochs = setting.steps // each, round(each * q)
        case _:
            privacy |= {"mode": "local", "patients": data.patients}
            rounds, epochs = 1, round(setting.steps * q)
    local = {"optimizer": "sgd", "lr": setting.lr, "epochs": epochs}
    return _changed(data.study, local, rounds, seed, privacy)


def open_study(data: DataSet, setting: Setting, seed: int) -> Study:
    """The study of a model without privacy: averaging after each pass over the rows. It has a privacy block all the
    same, from which inputs are scaled as in the private models, and nothing else."""
    local = {"optimizer": "sgd", "lr": setting.lr, "epochs": 1, "batch_size": BATCH_WITHOUT}
    scaled = {"mode": "distributed", "epsilon": 1.0, "delta": data.delta, "patients": data.patients}
    return _changed(data.study, local, setting.steps, seed, scaled)


def _changed(study: Study, local: dict[str, Any], rounds: int, seed: int, privacy: dict[str, Any]) -> Study:
    fields = study.model_dump(mode="json")
    fields["recipe"]["local"] = local
    fields["federation"] |= {"rounds": rounds, "seed": seed}
    return Study.model_validate(fields | {"privacy": privacy})


class Arms:
    """Models of one data set. Rows are made into inputs once."""

    def __init__(self, data: DataSet) -> None:
        self.data = data
        self._cohort = cohort_of(open_study(data, data.open_settings[0], 0), data.tables)

    def worth(self, method: Method, epsilon: float | None, setting: Setting, seed: int) -> Worth:
        """Train one model and test it. `epsilon` None: without privacy, where `local` and `distributed` are the same.

        Raises `CannotPlan` for a setting with which no plan keeps ε.
        """
        if epsilon is None:
            study = open_study(self.data, setting, seed)
            return self._judged(self._networks(study, method).without(seed))
        study = private_study(self.data, method, epsilon, setting, seed)
        run = planned(study, len(self._cohort.sites))
        plan = run.plan
        found = self._judged(self._networks(study, method).private(run, seed))
        return replace(found, noise_multiplier=plan.noise_multiplier, epsilon_pld=plan.epsilon_pld)

    def _networks(self, study: Study, method: Method) -> Networks:
        if not isinstance(study.recipe, LogisticRecipe):
            raise RecipeUnsupported(study.recipe.trainer)
        cohort = replace(self._cohort, recipe=study.recipe)
        return Networks(study, in_one_place(cohort) if method == "central" else cohort)

    def _judged(self, scores: NDArray[np.float64]) -> Worth:
        labels = [site.test.labels for site in self._cohort.sites]
        ends = np.cumsum([len(own) for own in labels])[:-1]
        right = [
            float(np.mean((own >= 0.5) == (true == 1)))
            for own, true in zip(np.split(scores, ends), labels, strict=True)
        ]
        return Worth(exact_auc(scores, np.concatenate(labels)), float(np.mean(right)))


def in_one_place(cohort: Cohort) -> Cohort:
    """The same rows as one site's."""
    train, test = ([getattr(site, part) for site in cohort.sites] for part in ("train", "test"))
    return replace(cohort, sites=(SiteRows("all", joined(train), joined(test)),))
