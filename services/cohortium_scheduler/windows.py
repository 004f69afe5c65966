"""What a window asks of the sites: its parameters, made from the study and the run."""

from dataclasses import dataclass

from cohortium_messages.governance import Manifest
from cohortium_messages.ids import RunId, StudyId
from cohortium_messages.secure_sum import MAX_CHUNK_BYTES, ModelRef, Purpose, VectorSpec, WindowParams
from cohortium_messages.study import NoiseRecipe, Study
from cohortium_protocol.metrics import evaluation_length
from cohortium_protocol.statistics import statistics_length
from cohortium_scheduler.domain import weight_cap

RANGE_FACTOR = 6.0
"""Grid range over the rms coordinate of a clipped, rotated update (section 1.7, step 6)."""


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What the parameters depend on, besides the study: the members, the models so far, the sums so far."""

    run_id: RunId
    study: Study
    study_digest: bytes
    manifest: Manifest
    manifest_hash: bytes
    models: tuple[ModelRef, ...]
    parameters: int | None
    training_rows: int | None
    aggregator_seal_pk: bytes


def least_cohort(facts: RunFacts) -> int:
    """The fewest sites a roster may have: the study's minimum, and what the collusion bound demands (1.3)."""
    manifest = facts.manifest
    return max(3, facts.study.federation.min_sites, manifest.collusion + 2, manifest.k_min_floor)


def window_params(
    facts: RunFacts, purpose: Purpose, round_: int, *, permitted: int, window_id: bytes, seeds: tuple[bytes, bytes]
) -> WindowParams:
    """The parameters of one window; `seeds` are 32 public random bytes each, for rotation and for random-k."""
    federation = facts.study.federation
    buffered = purpose == "update" and federation.mode == "buffered"
    least = least_cohort(facts)
    return WindowParams(
        study_id=StudyId(facts.study.name),
        study_digest=facts.study_digest,
        run_id=facts.run_id,
        window_id=window_id,
        purpose=purpose,
        kind="buffered" if buffered else "sync",
        round=round_,
        manifest_hash=facts.manifest_hash,
        bases=_bases(facts, purpose, buffered=buffered),
        max_staleness=federation.max_staleness if buffered else 0,
        vector=_vector(facts, purpose, seeds, permitted),
        privacy_mode="none",
        target_cohort=max(least, min(permitted, federation.buffer)) if buffered else max(3, min(200, permitted)),
        least_cohort=least,
        deadlines=federation.deadlines,
        aggregator_seal_pk=facts.aggregator_seal_pk,
    )


def _bases(facts: RunFacts, purpose: Purpose, *, buffered: bool) -> tuple[ModelRef, ...]:
    if purpose == "statistics":
        return ()
    wanted = facts.study.federation.max_staleness + 1 if buffered else 1
    return facts.models[-wanted:]


def _vector(facts: RunFacts, purpose: Purpose, seeds: tuple[bytes, bytes], permitted: int) -> VectorSpec:
    if purpose != "update":
        length = statistics_length(facts.study) if purpose == "statistics" else evaluation_length()
        return VectorSpec(
            encoding="integer",
            dimension=length,
            ring_bits=64,
            rotate=False,
            rotation_seed=seeds[0],
            keep=1.0,
            keep_seed=seeds[1],
            clip_norm_l2=1.0,
            range_factor=1.0,
            weight_cap=1,
            chunk_bytes=MAX_CHUNK_BYTES,
        )
    if facts.parameters is None:
        raise ValueError(f"run {facts.run_id} has no model yet: its statistics window must be released first")
    compression = facts.study.federation.compression
    rows = facts.training_rows or 0
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
        weight_cap=weight_cap(rows, permitted) if rows else 1,
        chunk_bytes=MAX_CHUNK_BYTES,
    )


def evaluates(study: Study) -> bool:
    """Whether the study's models are evaluated: the benchmark's trainer reads no row, so it has nothing to test."""
    return bool(study.metrics) and not isinstance(study.recipe, NoiseRecipe)
