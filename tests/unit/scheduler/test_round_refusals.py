"""A finished round says who refused it, by the names that the manifest gives."""

import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from cohortium_messages.governance import Manifest, Member
from cohortium_messages.ids import RunId, SiteId, StudyId
from cohortium_messages.runs import SessionClosed
from cohortium_messages.secure_sum import ModelRef, Ready, Roster
from cohortium_messages.study import Study
from cohortium_messages.study_file import parse_study
from cohortium_scheduler.domain.windows import Ended, Refusal, Window
from cohortium_scheduler.status import status
from cohortium_scheduler.store import Run

STUDY = """\
apiVersion: cohortium/study/1
governance: trial
name: small
purpose: Tell who refused
dataset:
  features: [{name: age, type: float, range: [18, 110]}]
  label: {name: disease, type: binary}
  split: {test: 0.3}
recipe: {trainer: benchmark.noise, parameters: 100}
federation: {rounds: 5, min_sites: 3}
metrics: []
"""
BEGUN = datetime(2026, 11, 21, 9, 30, tzinfo=UTC)
RUN = RunId("8f14e45f-ceea-467f-9c5b-0d8a5c3b7a11")
NAMES = ("North", "South", "West", "East")
SITES = {name: SiteId(str(uuid.UUID(int=number + 1, version=4))) for number, name in enumerate(NAMES)}


def manifest(study: Study) -> Manifest:
    members = tuple(
        Member(site_id=site, name=name, identity_pk=bytes([number + 1]) * 32)
        for number, (name, site) in enumerate(SITES.items())
    )
    return Manifest(
        study_id=StudyId(study.name),
        version=1,
        prev_hash=bytes(32),
        study_digest=study.digest(),
        members=members,
        collusion=1,
        k_min_floor=0,
    )


def released(number: int, *refused: str) -> Window:
    """An update window that ended well without these sites."""
    survivors = tuple(site for name, site in SITES.items() if name not in refused)
    closed = SessionClosed(
        run_id=RUN,
        window_id=bytes([number]) * 16,
        purpose="update",
        state="RELEASED",
        survivors=survivors,
        model=ModelRef(version=number, model_hash=bytes(32)),
    )
    refusals = tuple(Refusal(SITES[name], "COLUMN_MISSING", "age") for name in refused)
    state = Ended("RELEASED", "", BEGUN + timedelta(seconds=2), BEGUN, refusals, None, closed)
    return Window(bytes([number]) * 16, RUN, number, "update", number, 1, state)


def test_each_round_names_those_who_refused_it() -> None:
    study = parse_study(STUDY)
    run = Run(RUN, study, study.digest(), "TRAINING", "", BEGUN)
    windows = [released(1), released(2, "East"), released(3)]
    shown = status(run, windows, manifest(study), [], {}, [], frozenset())
    assert [done.refused for done in shown.rounds_done] == [(), ("East",), ()]
    assert shown.rounds_done[1].cohort == ("North", "South", "West")


def test_random_trees_are_measured_by_the_sums_of_their_leaves() -> None:
    text = STUDY.replace("benchmark.noise, parameters: 100", "lightgbm.random_trees, trees: 5, depth: 3")
    study = parse_study(text.replace("rounds: 5, ", "").replace("metrics: []\n", ""))
    run = Run(RUN, study, study.digest(), "TRAINING", "", BEGUN, parameters=0)
    window = released(1)
    assert isinstance(window.state, Ended)
    assert window.state.closed is not None
    entries = tuple(
        Ready(
            window_id=bytes(16),
            site_id=site,
            params_hash=bytes(32),
            base_model_hash=bytes(32),
            mask_pk=bytes(32),
            seal_pk=bytes(32),
            sig=bytes(64),
        )
        for site in SITES.values()
    )
    roster = Roster(window_id=bytes(16), params_hash=bytes(32), n=4, t=3, c=1, k_min=3, entries=entries)
    closed = window.state.closed.model_copy(update={"bytes_up": 4 * 8 * 16})
    window = replace(window, state=replace(window.state, roster=roster, closed=closed))
    shown = status(run, [window], manifest(study), [], {}, [], frozenset())
    assert shown.boosting is None
    assert shown.secure_sum is not None
    assert (shown.secure_sum.ring_bits, shown.secure_sum.parameters) == (64, 16), "a tree, 8 leaves, 2 sums each"
    assert shown.secure_sum.bytes_per_parameter == 8
