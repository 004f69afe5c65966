"""A study of a thousand members: no window asks more than one roster holds, all have their turn, and messages fit."""

from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest
from course_story import ended
from scheduler_stage import STUDY

from cohortium_kit.envelopes import Sender
from cohortium_kit.testing.clock import START, ManualClock
from cohortium_kit.testing.signing import HmacSigner
from cohortium_messages.events import WindowAuthorised
from cohortium_messages.governance import MAX_MEMBERS, MAX_ROSTER, Manifest, Member, Permit
from cohortium_messages.ids import RunId, SiteId
from cohortium_messages.runs import StudyOffered
from cohortium_messages.study import Study
from cohortium_scheduler.choosing import Asking, ask, with_turns
from cohortium_scheduler.domain.windows import Window
from cohortium_scheduler.store import Run

SITES = [SiteId(str(UUID(int=number))) for number in range(1, 1001)]
PERMITS = tuple(Permit(site_id=site, permitted=True) for site in SITES)


def run_of(**federation: Any) -> Run:
    study = Study.model_validate({**STUDY, "federation": {"rounds": 2, **federation}})
    return Run(RunId(str(UUID(int=7))), study, bytes(32), "TRAINING", "", created_at=START)


def asking(run: Run, purpose: Any, sequence: int = 1) -> tuple[Asking, Run]:
    window: Window = replace(ended("update", "RELEASED", "", round_=1, attempt=1), purpose=purpose, sequence=sequence)
    asked = ask(run, window, PERMITS, SITES, 3)
    return asked, with_turns(run, asked.choices)


def asked_in(asking: Asking) -> set[SiteId]:
    return {permit.site_id for permit in asking.permits if permit.permitted}


@pytest.mark.parametrize("mode", ["synchronous", "buffered"])
@pytest.mark.parametrize("purpose", ["statistics", "update", "evaluation"])
def test_every_window_asks_as_many_as_a_roster_holds_in_turns(purpose: str, mode: str) -> None:
    run = run_of(mode=mode)
    met: set[SiteId] = set()
    for sequence in range(5):
        one, run = asking(run, purpose, sequence)
        assert len(asked_in(one)) == MAX_ROSTER
        met |= asked_in(one)
    assert met == set(SITES)


def test_the_study_may_ask_fewer_and_each_is_asked_before_anybody_twice() -> None:
    run = run_of(participants=20)
    first, run = asking(run, "statistics")
    assert len(asked_in(first)) == 20
    met: list[SiteId] = []
    for sequence in range(2, 52):
        one, run = asking(run, "update", sequence)
        met += asked_in(one)
    assert sorted(met) == SITES


def test_the_largest_messages_fit() -> None:
    sites = [SiteId(str(UUID(int=number))) for number in range(1, MAX_MEMBERS + 1)]
    members = tuple(Member(site_id=site, name="N" * 80, identity_pk=bytes(32)) for site in sites)
    manifest = Manifest(
        study_id="heart",
        version=1,
        prev_hash=bytes(32),
        study_digest=bytes(32),
        members=members,
        collusion=66,
        k_min_floor=0,
    )
    permits = tuple(
        Permit(site_id=site, permitted=True, grant_digest=bytes(32), permit_digest=bytes(32), until=START)
        for site in sites
    )
    event = WindowAuthorised(
        run_id=str(UUID(int=7)),
        window_id=bytes(16),
        round=1,
        purpose="update",
        params_hash=bytes(32),
        permits=permits,
    )
    study = run_of().study
    offer = StudyOffered(study=study, study_digest=study.digest(), run_id=str(UUID(int=7)), manifest=manifest)
    sender = Sender("/scheduler", HmacSigner("service-1"), ManualClock())
    for message in (offer, event):
        sender.outgoing("tasks", "key", message)  # refuses what no receiver would read
