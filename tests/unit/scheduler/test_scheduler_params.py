"""What each window asks of the sites, by trainer and by what the run has come to."""

import uuid
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from cohortium_messages.governance import Manifest, Member
from cohortium_messages.ids import RunId, SiteId, StudyId
from cohortium_messages.secure_sum import ModelRef, Purpose, WindowParams
from cohortium_messages.study import Study
from cohortium_messages.study_file import parse_study
from cohortium_protocol.documents import manifest_hash
from cohortium_protocol.trees.vectors import integer_length
from cohortium_protocol.window import params_hash
from cohortium_scheduler.domain.course import NO_TRAINING, Training
from cohortium_scheduler.domain.windows import ANYONE, Among, Cohort, Planned, Rejoining, Remaining, Window
from cohortium_scheduler.windows import RunFacts, course_of, window_params

STUDY = """\
apiVersion: cohortium/study/1
governance: trial
name: small
purpose: Say what is asked
dataset:
  features:
    - {name: age, type: float, range: [18, 110]}
    - {name: sex, type: category, levels: [f, m]}
  label: {name: disease, type: binary}
  split: {test: 0.3}
recipe: %s
federation: %s
"""
FEDERATION = "{min_sites: 3, rejoin_s: 77, allow_cohort_change: true, deadlines: {ready_s: 50, step_s: 4}}"
TORCH = STUDY % ("{trainer: torch.logistic}", "{rounds: 3, mode: buffered, buffer: 3, max_staleness: 2}")
RANDOM = STUDY % ("{trainer: lightgbm.random_trees, trees: 10, trees_per_sum: 4}", "{min_sites: 3}")
LIGHTGBM = STUDY % ("{trainer: lightgbm, rounds: 25}", FEDERATION)
SITES = tuple(SiteId(str(uuid.UUID(int=number + 1, version=4))) for number in range(4))
MODELS = tuple(ModelRef(version=number, model_hash=bytes([number]) * 32) for number in range(4))
SEEDS = (bytes(32), bytes(32))


def facts(text: str, training: Training = NO_TRAINING, **changes: Any) -> RunFacts:
    study: Study = parse_study(text)
    manifest = Manifest(
        study_id=StudyId(study.name),
        version=1,
        prev_hash=bytes(32),
        study_digest=study.digest(),
        members=tuple(
            Member(site_id=site, name=site[-4:], identity_pk=bytes([place + 1]) * 32)
            for place, site in enumerate(SITES)
        ),
        collusion=1,
        k_min_floor=0,
    )
    known = RunFacts(
        run_id=RunId(str(uuid.UUID(int=9))),
        study=study,
        study_digest=study.digest(),
        manifest=manifest,
        manifest_hash=manifest_hash(manifest),
        models=MODELS,
        parameters=7,
        training_rows=400,
        training=training,
        aggregator_seal_pk=bytes(32),
    )
    return replace(known, **changes)


def asked(known: RunFacts, purpose: Purpose, cohort: Cohort = ANYONE, round_: int = 1) -> WindowParams:
    planned = Planned(bytes(16), datetime(2026, 1, 1, tzinfo=UTC))
    window = Window(bytes(16), known.run_id, 1, purpose, round_, 1, planned, cohort)
    return window_params(known, window, permitted=4, seeds=SEEDS)


def test_updates_of_a_network_are_on_the_grid_and_from_recent_versions() -> None:
    params = asked(facts(TORCH), "update")
    assert (params.kind, params.vector.encoding, params.vector.dimension) == ("buffered", "grid", 7)
    assert params.bases == MODELS[1:]
    assert params.strict is None
    with pytest.raises(ValueError, match="no model yet"):
        asked(facts(TORCH, parameters=None), "update")


@pytest.mark.parametrize("text", [TORCH, RANDOM, LIGHTGBM])
@pytest.mark.parametrize("purpose", ["statistics", "evaluation"])
def test_every_trainer_counts_and_evaluates_in_integers(text: str, purpose: Purpose) -> None:
    known = facts(text)
    params = asked(known, purpose, round_=0)
    assert (params.kind, params.vector.encoding, params.vector.ring_bits) == ("sync", "integer", 64)
    assert params.vector.dimension == integer_length(known.study, purpose)
    assert params.bases == (() if purpose == "statistics" else MODELS[-1:])


def test_random_trees_sum_their_leaves_as_integers_on_one_base() -> None:
    known = facts(RANDOM)
    params = asked(known, "update")
    assert (params.kind, params.max_staleness, params.bases) == ("sync", 0, MODELS[-1:])
    assert (params.vector.encoding, params.vector.ring_bits) == ("integer", 64)
    assert params.vector.dimension == integer_length(known.study, "update")
    course = course_of(known.study, known.manifest, 5)
    assert (course.rounds, course.boosts) == (3, False)


def test_bins_are_refined_on_the_first_version() -> None:
    known = facts(LIGHTGBM, models=MODELS[:1])
    params = asked(known, "refinement", round_=0)
    assert (params.kind, params.bases) == ("sync", MODELS[:1])
    assert params.vector.dimension == integer_length(known.study, "refinement")


GROWN = Training(
    counted=SITES, base=MODELS[1], roster=SITES, trees=9, chain=bytes([5]) * 32, checkpoint=MODELS[2], sessions=1
)


@pytest.mark.parametrize(
    ("training", "cohort", "ready_s", "base", "trees", "from_model"),
    [
        (replace(NO_TRAINING, counted=SITES, base=MODELS[1]), Among(SITES), 50, MODELS[1], 0, None),
        (GROWN, Rejoining(SITES), 77, MODELS[1], 9, None),
        (replace(GROWN, replays=False), Rejoining(SITES), 77, MODELS[2], 9, MODELS[2]),
        (GROWN, Remaining(SITES[:3]), 77, MODELS[2], 9, MODELS[2]),
        (replace(GROWN, trees=0, checkpoint=None), Remaining(SITES[:3]), 77, MODELS[1], 0, None),
    ],
)
def test_a_session_begins_where_the_last_one_ended(
    training: Training, cohort: Cohort, ready_s: float, base: ModelRef, trees: int, from_model: ModelRef | None
) -> None:
    params = asked(facts(LIGHTGBM, training), "training", cohort)
    strict = params.strict
    assert strict is not None
    assert (params.kind, params.vector.encoding, params.vector.ring_bits) == ("strict", "integer", 64)
    assert (params.deadlines.ready_s, params.bases) == (ready_s, (base,))
    assert (strict.trees_done, strict.from_model) == (trees, from_model)
    assert strict.chain == (training.chain if trees else bytes(32))
    assert (strict.step_s, strict.rounds, strict.total_rows) == (4, 25, 400)


def test_a_site_that_is_ready_for_one_session_is_not_ready_for_another() -> None:
    replayed = asked(facts(LIGHTGBM, GROWN), "training", Rejoining(SITES))
    changed = asked(facts(LIGHTGBM, GROWN), "training", Remaining(SITES))
    longer = asked(facts(LIGHTGBM, replace(GROWN, trees=10)), "training", Rejoining(SITES))
    assert len({params_hash(params) for params in (replayed, changed, longer)}) == 3


def test_no_session_without_bins_or_counted_rows() -> None:
    with pytest.raises(ValueError, match="bins"):
        asked(facts(LIGHTGBM), "training", Among(SITES))
    with pytest.raises(ValueError, match="counted no rows"):
        asked(facts(LIGHTGBM, GROWN, training_rows=None), "training", Rejoining(SITES))


def test_the_course_follows_from_the_study() -> None:
    course = course_of(facts(LIGHTGBM).study, facts(LIGHTGBM).manifest, 5)
    assert (course.boosts, course.rounds, course.allow_cohort_change, course.least_cohort) == (True, 1, True, 3)
    averaged = course_of(facts(TORCH).study, facts(TORCH).manifest, 5)
    assert (averaged.boosts, averaged.rounds, averaged.allow_cohort_change) == (False, 3, False)
