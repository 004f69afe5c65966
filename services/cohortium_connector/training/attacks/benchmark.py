"""All attacks on one study's rows, for `cohortium privacy benchmark`."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from cohortium_connector.training.attacks import canaries, membership
from cohortium_connector.training.attacks.bounds import advantage_limit, auc_limit
from cohortium_connector.training.attacks.inversion import Inverter, blocks_of
from cohortium_connector.training.attacks.model import attack_model
from cohortium_connector.training.attacks.private import PrivateFit, Terms, terms_for
from cohortium_connector.training.attacks.reconstruction import Scene, reconstructed
from cohortium_connector.training.attacks.setting import (
    Cohort,
    Fit,
    NetworkRecipe,
    PlainFit,
    cohort_of,
    library_versions,
    taken,
)
from cohortium_connector.training.base import Examples, SiteRefusal
from cohortium_connector.training.data import Table
from cohortium_connector.training.dp_sgd import BatchRule
from cohortium_connector.training.privacy_report import (
    AttackFigures,
    BenchmarkJob,
    BenchmarkReport,
    CanaryFigures,
    InversionFigures,
    MembershipFigures,
    Promise,
)
from cohortium_messages.privacy import LocalPrivacy
from cohortium_messages.study import LocalTraining, MlpRecipe, Study
from cohortium_protocol.parameters import initial_parameters, layout_of

Say = Callable[[str], None]

WIDE = MlpRecipe(trainer="torch.mlp", hidden=(64,), local=LocalTraining(batch_size=32, optimizer="adam", lr=0.01))
"""The network that is attacked with and without a promise: wide enough to know some hundred rows by heart."""
WIDE_EPOCHS = 60
RATE, PASSES, CLIP = 0.1, 15, 1.0
"""Of private training: sampling rate, passes over the rows, clip."""
STEP_PATIENTS = (1, 4)
"""Patients at each hospital in the step that is inverted."""
CANARY_ROWS, CANARY_RATE, CANARY_STEPS = 30, 0.5, 4
CANARY_ERROR = 0.001
"""Chance of a bound above the true ε, for each audit."""
CONTROL_SHARE = 1 / 16
"""Of the noise, that the control leaves in."""
LEAST_ROWS = 60


def run_benchmark(job: BenchmarkJob, tables: Mapping[str, Table], say: Say) -> BenchmarkReport:
    """The report. Raises `SiteRefusal` for a recipe that is no network, too few rows, or δ too large for them."""
    started = time.monotonic()
    # First, since it takes a moment: a model that does not fit is not found out after the minutes that the rest takes.
    given = None if job.model is None else attack_model(Path(job.model), job.study, tables)
    cohort = cohort_of(_with_ranges(job.study, job.delta), tables)
    pool = cohort.pool(job.most_rows)
    _check(job, pool)
    bench = _Bench(job, cohort, pool, say)
    return BenchmarkReport(
        study=job.study.name,
        study_digest=job.study.digest().hex(),
        sites=len(tables),
        rows=len(pool.labels),
        seed=job.seed,
        membership=tuple(bench.membership()),
        inversion=tuple(bench.inversion()),
        canaries=tuple(bench.canaries()) if job.runs else (),
        seconds=time.monotonic() - started,
        versions=library_versions(),
        model=given,
    )


def _with_ranges(study: Study, delta: float) -> Study:
    """The study with a privacy block, so that its inputs come from public ranges."""
    block = LocalPrivacy(mode="local", epsilon=1.0, delta=delta, sampling_rate=RATE, patients=1000)
    return study.model_copy(update={"privacy": block})


def _check(job: BenchmarkJob, pool: Examples) -> None:
    rows, positives = len(pool.labels), int(pool.labels.sum())
    if rows < LEAST_ROWS or not 10 <= positives <= rows - 10:
        raise SiteRefusal(
            "TOO_FEW_ROWS",
            local=f"{rows} rows, {positives} of them with the outcome, are too few to attack; a benchmark needs at "
            f"least {LEAST_ROWS} rows and 10 of each label",
        )
    if job.delta >= 1 / rows:
        raise SiteRefusal(
            "DELTA_TOO_LARGE",
            local=f"delta {job.delta:g} is not below 1/{rows}, one over the rows: it would allow to publish one; use "
            "a smaller one",
        )


@dataclass(frozen=True, slots=True)
class _Bench:
    job: BenchmarkJob
    cohort: Cohort
    pool: Examples
    say: Say

    @property
    def inputs(self) -> int:
        return int(self.pool.inputs.shape[1])

    def terms(self, epsilon: float) -> Terms:
        """Of private training on a random half of the rows."""
        batch = BatchRule(CLIP, RATE, RATE * len(self.pool.labels) / 2)
        return terms_for((epsilon, self.job.delta), batch, round(PASSES / RATE))

    def membership(self) -> Iterator[MembershipFigures]:
        study, seed = self.job.study, self.job.study.federation.seed
        own = self.cohort.recipe
        epochs = study.rounds * own.local.epochs
        yield self._members("recipe", own, PlainFit(own, self.inputs, epochs, seed), None)
        yield self._members("overfitted", WIDE, PlainFit(WIDE, self.inputs, WIDE_EPOCHS, seed), None)
        for epsilon in self.job.epsilons:
            terms = self.terms(epsilon)
            yield self._members("private", WIDE, PrivateFit(WIDE, self.inputs, terms.rule, seed), terms)

    def _members(self, kind: str, recipe: NetworkRecipe, fit: Fit, terms: Terms | None) -> MembershipFigures:
        self.say(f"membership: {self.job.models} models, {kind}{_at(terms)}")
        observed = membership.observe(fit, recipe, self.pool, self.job.models, self.job.seed)
        scores = {"loss": membership.loss_scores(observed), "likelihood": membership.likelihood_scores(observed)}
        return MembershipFigures.model_validate(
            {
                "kind": kind,
                "promise": promise_of(terms) if terms else None,
                "models": self.job.models,
                "member_auc": observed.member_auc,
                "other_auc": observed.other_auc,
                "attacks": [
                    _figures(attack, membership.attacked(observed, found), terms) for attack, found in scores.items()
                ],
            }
        )

    def inversion(self) -> Iterator[InversionFigures]:
        layout = layout_of(WIDE, self.inputs)
        base = initial_parameters(layout, self.job.study.federation.seed)
        federation = self.job.study.federation
        scene = Scene(
            recipe=WIDE,
            inverter=Inverter(layout, base, blocks_of(self.cohort.preprocessing)),
            table=self.pool,
            compression=federation.compression,
            sites=federation.min_sites,
            trials=self.job.trials,
            seed=self.job.seed,
        )
        terms = self.terms(min(self.job.epsilons))
        for patients in STEP_PATIENTS:
            self.say(f"inversion: {self.job.trials} steps, {patients} patients at each of {scene.sites} hospitals")
            yield from reconstructed(scene, patients, terms, promise_of(terms))

    def canaries(self) -> Iterator[CanaryFigures]:
        batch = BatchRule(CLIP, CANARY_RATE, CANARY_RATE * CANARY_ROWS)
        for epsilon in self.job.epsilons:
            terms = terms_for((epsilon, self.job.delta), batch, CANARY_STEPS)
            yield self._audited("local", terms, terms)
            yield self._audited("distributed", terms, terms)
        first = terms_for((min(self.job.epsilons), self.job.delta), batch, CANARY_STEPS)
        less = replace(first.rule, noise_multiplier=first.rule.noise_multiplier * CONTROL_SHARE)
        yield self._audited("local", first, replace(first, rule=less))

    def _audited(self, mode: str, promised: Terms, kept: Terms) -> CanaryFigures:
        control = kept.rule != promised.rule
        self.say(f"canaries: {2 * self.job.runs} runs, {mode}{_at(promised)}{', control' if control else ''}")
        run = canaries.local_run if mode == "local" else canaries.distributed_run
        rows = taken(self.pool, np.arange(CANARY_ROWS))
        found = canaries.audit(run, rows, kept, runs=self.job.runs, error=CANARY_ERROR, seed=self.job.seed)
        return CanaryFigures.model_validate(
            {
                "mode": mode,
                "control": control,
                "promise": promise_of(promised),
                "hits": found.guesses.hits,
                "present": found.guesses.present,
                "alarms": found.guesses.alarms,
                "absent": found.guesses.absent,
                "bound": found.bound,
                "error": found.error,
            }
        )


def promise_of(terms: Terms) -> Promise:
    """The terms as a report has them."""
    return Promise(
        epsilon=terms.epsilon,
        delta=terms.delta,
        epsilon_pld=terms.epsilon_pld,
        noise_multiplier=terms.rule.noise_multiplier,
        sampling_rate=terms.rule.batch.sampling_rate,
        steps=terms.rule.steps,
    )


def _figures(attack: str, found: membership.Attacked, terms: Terms | None) -> AttackFigures:
    promise = (terms.epsilon, terms.delta) if terms else None
    return AttackFigures.model_validate(
        {
            "attack": attack,
            "auc": found.auc.mean,
            "auc_low": found.auc.low,
            "auc_high": found.auc.high,
            "advantage": found.roc.advantage,
            "hits_at_1_percent": found.roc.hits_at_1_percent,
            "auc_limit": auc_limit(*promise) if promise else None,
            "advantage_limit": advantage_limit(*promise) if promise else None,
            "curve": found.roc.points,
        }
    )


def _at(terms: Terms | None) -> str:
    return f", epsilon {terms.epsilon:g}" if terms else ""
