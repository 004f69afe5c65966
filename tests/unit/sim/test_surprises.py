"""What did not go as planned is said in words; nothing is said of what did."""

import uuid
from dataclasses import replace
from typing import Any

import pytest

from cohortium_messages.status import RoundStatus, RunStatus, SiteStatus
from cohortium_sim.outcome import Facts, Stopwatch, make_result, surprises
from cohortium_sim.plan import Drop, Plan
from cohortium_verify.report import Failure, VerificationReport, failed, passed

GOOD = VerificationReport("x", "o", 10, "ab" * 32, True, (passed("entries", "10 entries"),))


def round_status(number: int, refused: tuple[str, ...] = ()) -> RoundStatus:
    return RoundStatus(
        number=number,
        model_version=number,
        cohort=("a", "b", "c"),
        dropped=(),
        refused=refused,
        seconds=0.5,
        bytes_up=100,
        bytes_down=200,
    )


def site(name: str, code: str | None = None) -> SiteStatus:
    words = None if code is None else f"words of {code}"
    number = str(uuid.uuid5(uuid.NAMESPACE_DNS, name))
    return SiteStatus(site_id=number, name=name, state="idle", last_seen=None, progress=None, code=code, sentence=words)


@pytest.fixture
def facts(plan: Plan) -> Facts:
    """A run of five rounds that went as planned."""
    status = RunStatus(
        run_id="8f14e45f-ceea-467f-9c5b-0d8a5c3b7a11",
        study_id="small",
        study_digest=plan.study.digest(),
        state="FINISHED",
        reason="",
        sentence=None,
        round=5,
        rounds=5,
        created_at="2026-11-21T09:30:00Z",  # type: ignore[arg-type]
        ended_at=None,
        purpose="Plan",
        mode="synchronous",
        model=None,
        rounds_done=tuple(round_status(number) for number in range(1, 6)),
        window=None,
        sites=(site("a"), site("b"), site("c")),
        secure_sum=None,
        attempts_failed=0,
    )
    return Facts(plan, status, GOOD, None, frozenset(), {"all": 100.0}, {})


def changed(facts: Facts, **changes: Any) -> Facts:
    return replace(facts, status=facts.status.model_copy(update=changes))


def test_what_went_as_planned_is_no_surprise(facts: Facts) -> None:
    assert surprises(facts) == ()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"state": "FAILED", "reason": "X", "sentence": "Too few."}, "the run ended FAILED: Too few."),
        ({"state": "STOPPED", "reason": "STOPPED"}, "the run ended STOPPED: STOPPED"),
        ({"state": "STOPPED"}, "the run ended STOPPED: no reason was given"),
        ({"rounds_done": ()}, "5 of 5 rounds were not done"),
    ],
)
def test_of_the_run(changes: dict[str, Any], said: str, facts: Facts) -> None:
    assert surprises(changed(facts, **changes)) == (said,)


def test_a_run_that_goes_on_without_a_site_that_refused_ends_as_planned(facts: Facts) -> None:
    assert surprises(changed(facts, sites=(site("a", "VALUE_OUT_OF_RANGE"),))) == ()


def test_of_the_log(facts: Facts) -> None:
    bad = replace(GOOD, checks=(failed("entries", Failure("edited", 7)),))
    assert surprises(replace(facts, verification=bad)) == ("the audit bundle does not verify, first at entry 7",)
    unreadable = replace(GOOD, unreadable="no bundle")
    assert surprises(replace(facts, verification=unreadable)) == ("the audit bundle does not verify",)


def test_of_losses(facts: Facts) -> None:
    dropping = replace(facts, plan=replace(facts.plan, drops=(Drop("a", 2, "after"),)))
    assert surprises(dropping) == ("a was to vanish and did not",)
    assert surprises(replace(dropping, vanished=frozenset({"a"}))) == ()
    assert surprises(replace(facts, vanished=frozenset({"b"}))) == ("b vanished and was not to",)


def test_a_site_that_was_to_vanish_may_have_stood_aside(facts: Facts) -> None:
    dropping = replace(
        changed(facts, sites=(site("a", "SITE_SILENT"), site("b"))),
        plan=replace(facts.plan, drops=(Drop("a", 2, "before"),)),
        vanished=frozenset({"a"}),
    )
    assert surprises(dropping) == ()


def test_the_result_holds_who_refused_and_how_long_it_took(facts: Facts) -> None:
    clock = iter([0.0, 1.0, 3.5, 10.0])
    watch = Stopwatch(lambda: next(clock))
    with watch.time("run"):
        pass
    rounds = tuple(round_status(number, ("d",) if number == 2 else ()) for number in range(1, 6))
    result, found = make_result(changed(facts, rounds_done=rounds), watch)
    assert found == ()
    assert [done.refused for done in result.rounds] == [(), ("d",), (), (), ()]
    assert (result.timing.run_s, result.timing.total_s) == (2.5, 10.0)
    assert result.processes == {"all": 104.9}
    assert result.audit is not None
    assert result.audit.verified
