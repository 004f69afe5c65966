"""What a window asks of the sites: its parameters, made from the study and the run."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cohortium_messages.governance import Manifest, PartPrice
from cohortium_messages.ids import RunId, StudyId
from cohortium_messages.privacy import LocalPrivacy
from cohortium_messages.secure_sum import MAX_CHUNK_BYTES, ModelRef, NoiseSpec, StrictSpec, VectorSpec, WindowParams
from cohortium_messages.study import TREE_TRAINERS, Deadlines, NoiseRecipe, Study
from cohortium_privacy.windows import evaluates_privately, formal, mode_of, noise_for, plan_for, private_spec
from cohortium_protocol.codec import integer_spec
from cohortium_protocol.trees.vectors import integer_length
from cohortium_scheduler.domain.cohorts import weight_cap
from cohortium_scheduler.domain.course import Course, Training, session_start
from cohortium_scheduler.domain.pace import Pace
from cohortium_scheduler.domain.windows import Rejoining, Remaining, Window

if TYPE_CHECKING:
    from cohortium_privacy.plan import PrivacyPlan

RANGE_FACTOR = 6.0
"""Grid range over the rms coordinate of a clipped, rotated update (section 1.7, step 6)."""


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What the parameters depend on, besides the study: the members, the models so far, the sums so far. `plan`: of a
    private study, `plan_of` it."""

    run_id: RunId
    study: Study
    study_digest: bytes
    manifest: Manifest
    manifest_hash: bytes
    models: tuple[ModelRef, ...]
    parameters: int | None
    training_rows: int | None
    training: Training
    aggregator_seal_pk: bytes
    plan: "PrivacyPlan | None" = None


def least_cohort(study: Study, manifest: Manifest) -> int:
    """The fewest sites a roster may have: the study's minimum, and what the collusion bound demands (1.3)."""
    return max(3, study.federation.min_sites, manifest.collusion + 2, manifest.k_min_floor)


def course_of(study: Study, manifest: Manifest, max_attempts: int) -> Course:
    """What decides the course of a run of this study. An evaluation that is paid for is of the last model alone."""
    return Course(
        rounds=study.rounds,
        evaluate_every=study.federation.evaluate_every if formal(study) is None else study.rounds,
        evaluates=evaluates(study),
        max_attempts=max_attempts,
        boosts=study.boosting_rounds > 0,
        allow_cohort_change=study.federation.allow_cohort_change,
        least_cohort=least_cohort(study, manifest),
        charges=formal(study) is not None,
    )


def plan_of(study: Study, manifest: Manifest) -> "PrivacyPlan | None":
    """What a private study promises, with these members; None for others. May compute for a second."""
    return plan_for(study, len(manifest.members), least_cohort(study, manifest), manifest.collusion)


def prices_of(study: Study, manifest: Manifest) -> tuple[PartPrice, ...]:
    """What a run of a private study costs a site's patients; nothing for others. May compute for a second."""
    plan = plan_of(study, manifest)
    if plan is None:
        return ()
    from cohortium_privacy.prices import planned_parts  # needs dp-accounting

    parts = planned_parts(plan, study.rounds)
    return tuple(PartPrice(part=one.part, uses=one.uses, prices=one.prices) for one in parts)


def window_params(
    facts: RunFacts, window: Window, *, permitted: int, seeds: tuple[bytes, bytes], pace: Pace | None = None
) -> WindowParams:
    """The parameters of a planned window; `seeds` are 32 public random bytes each, for rotation and for random-k. With
    `pace` uploads are waited for as long as it says.

    Raises `ValueError` for a window that needs the release of one that was not released, or that a private study does
    not have.
    """
    federation = facts.study.federation
    buffered = _is_buffered(facts.study, window)
    strict = window.purpose == "training"
    least = least_cohort(facts.study, facts.manifest)
    return WindowParams(
        study_id=StudyId(facts.study.name),
        study_digest=facts.study_digest,
        run_id=facts.run_id,
        window_id=window.window_id,
        purpose=window.purpose,
        kind="strict" if strict else "buffered" if buffered else "sync",
        round=window.round,
        manifest_hash=facts.manifest_hash,
        bases=_bases(facts, window),
        max_staleness=federation.max_staleness if buffered else 0,
        vector=_vector(facts, window, seeds, permitted),
        privacy_mode=mode_of(facts.study),
        target_cohort=max(least, min(permitted, federation.buffer)) if buffered else max(3, min(200, permitted)),
        least_cohort=least,
        deadlines=_deadlines(facts.study, window, pace),
        aggregator_seal_pk=facts.aggregator_seal_pk,
        noise=_noise(facts, window),
        strict=_strict(facts, window) if strict else None,
    )


def _is_buffered(study: Study, window: Window) -> bool:
    return window.purpose == "update" and study.federation.mode == "buffered"


def _deadlines(study: Study, window: Window, pace: Pace | None) -> Deadlines:
    """The study's; but a session that goes on waits for its sites as long as the study says they may be away, and a
    round for uploads as long as its sites' lines need. `ready_s` stays the study's here: a round that found too few
    sites ready within its own shorter time is extended by it."""
    federation = study.federation
    if isinstance(window.cohort, Rejoining | Remaining):
        return federation.deadlines.model_copy(update={"ready_s": federation.rejoin_s})
    if pace is not None:
        return federation.deadlines.model_copy(update={"upload_s": pace.upload_s})
    return federation.deadlines


def _bases(facts: RunFacts, window: Window) -> tuple[ModelRef, ...]:
    if window.purpose == "statistics":
        return ()
    if window.purpose == "training":
        start = session_start(facts.training, window.cohort)
        return (start.model or start.base,)
    wanted = facts.study.federation.max_staleness + 1 if _is_buffered(facts.study, window) else 1
    return facts.models[-wanted:]


def _strict(facts: RunFacts, window: Window) -> StrictSpec:
    if not facts.training_rows:
        raise ValueError(f"run {facts.run_id} has counted no rows: its statistics window must be released first")
    start = session_start(facts.training, window.cohort)
    return StrictSpec(
        step_s=facts.study.federation.deadlines.step_s,
        rounds=facts.study.boosting_rounds,
        trees_done=start.trees_done,
        chain=start.chain,
        from_model=start.model,
        total_rows=facts.training_rows,
    )


def _noise(facts: RunFacts, window: Window) -> NoiseSpec | None:
    least = least_cohort(facts.study, facts.manifest)
    return noise_for(facts.study, window.purpose, facts.plan, least, facts.manifest.collusion)


def _vector(facts: RunFacts, window: Window, seeds: tuple[bytes, bytes], permitted: int) -> VectorSpec:
    private = private_spec(facts.study, window.purpose, seeds)
    if private is not None:
        return private
    if window.purpose == "training":
        return integer_spec(1, 64, seeds)  # every step of a session has its own length
    if window.purpose != "update" or facts.study.recipe.trainer in TREE_TRAINERS:
        return integer_spec(integer_length(facts.study, window.purpose), 64, seeds)
    if facts.parameters is None:
        raise ValueError(f"run {facts.run_id} has no model yet: its statistics window must be released first")
    compression = facts.study.federation.compression
    # Where updates are private, their weights are public, and all alike.
    rows = 0 if isinstance(facts.study.privacy, LocalPrivacy) else facts.training_rows or 0
    return VectorSpec(
        encoding="grid",
        dimension=facts.parameters,
        ring_bits=compression.ring_bits,
        rotate=compression.rotate,
        rotation_seed=seeds[0],
        keep=compression.keep,
        keep_seed=seeds[1],
        clip_norm_l2=compression.clip_norm_l2,
        range_factor=RANGE_FACTOR,
        weight_cap=weight_cap(rows, len(facts.training.counted) or permitted) if rows else 1,
        chunk_bytes=MAX_CHUNK_BYTES,
    )


def evaluates(study: Study) -> bool:
    """Whether the study's models are evaluated: the benchmark's trainer reads no row, so it has nothing to test, and a
    private study has to pay for it."""
    if formal(study) is not None:
        return evaluates_privately(study)
    return bool(study.metrics) and not isinstance(study.recipe, NoiseRecipe)
