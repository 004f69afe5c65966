"""What the log must say together about who left: each lie is found by its rule. Pure: entries are made, not signed."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from cohortium_messages import events as ev
from cohortium_messages import withdrawals as wd
from cohortium_messages.envelope import Envelope
from cohortium_messages.events import AuditEvent
from cohortium_messages.ids import RunId, SiteId
from cohortium_messages.secure_sum import ModelRef
from cohortium_verify.log import Entry
from cohortium_verify.rules import windows_of
from cohortium_verify.withdrawals import check_withdrawals

NOW = datetime(2027, 1, 1, tzinfo=UTC)
GONE, *STAY = (SiteId(f"{n}0000000-0000-4000-8000-00000000000{n}") for n in (1, 2, 3, 4))
OLD, NEW = RunId("a0000000-0000-4000-8000-00000000000a"), RunId("b0000000-0000-4000-8000-00000000000b")
LEFT = {"withdrawal": b"w" * 32}


def model(version: int, run: RunId = OLD) -> ModelRef:
    return ModelRef(version=version, model_hash=bytes([version, run == OLD]) * 16)


def of_window(number: int, sites: list[SiteId], run: RunId, version: int) -> list[AuditEvent]:
    name: dict[str, Any] = {"run_id": run, "window_id": bytes([number]) * 16}
    parent = model(version - 1, run) if version else None
    fixed = ev.CohortFixed(**name, roster_hash=b"r" * 32, sites=tuple(sites), n=len(sites), t=3, c=1, k_min=3)
    opened = ev.AggregateOpened(**name, survivors_hash=b"s" * 32, survivors=tuple(sites), dropped=())
    return [fixed, opened, ev.ModelReleased(**name, model=model(version, run), parent=parent)]


def honest() -> list[AuditEvent]:
    """The site is in the sums of the old run; the study is trained again without it, and the old models are retired."""
    models = tuple(wd.RunModel(run_id=OLD, model=model(version)) for version in (0, 1))
    again = {"run_id": NEW, "from_run": OLD, "without": GONE, "start": None, "basis": "SITE_IN_STATISTICS"}
    return [
        *of_window(1, [GONE, *STAY], OLD, 0),
        *of_window(2, [GONE, *STAY], OLD, 1),
        wd.WithdrawalRecorded(
            **LEFT,
            type="institution",
            site_id=GONE,
            study_digest=b"d" * 32,
            requested_effect="retrain",
            received_at=NOW,
        ),
        wd.WithdrawalEffective(**LEFT, site_id=GONE, without=(), models=models, sums=2),
        wd.WithdrawalDecided(**LEFT, decision=b"e" * 32, effect="retrain", people=("olga", "otto")),
        wd.RetrainingStarted.model_validate({**LEFT, **again}),
        *of_window(3, STAY, NEW, 0),
        *of_window(4, STAY, NEW, 1),
        ev.RunStateChanged(run_id=NEW, state="FINISHED"),
        *(wd.ModelRetired(**LEFT, run_id=OLD, model=model(version)) for version in (0, 1)),
        wd.WithdrawalProven(**LEFT, effect="retrain", receipt_sha256=b"p" * 32),
    ]


def judged(said: list[AuditEvent]) -> list[str]:
    """Every failure."""
    entries = []
    for index, message in enumerate(said):
        at = NOW + timedelta(minutes=2 * index)
        data = message.model_dump(mode="json")
        envelope = Envelope(id=f"event-{index:04}", source="/test", type=message.type_name, time=at, data=data)
        entries.append(Entry(index, "service:test", envelope, message))
    return [failure.text for failure in check_withdrawals(entries, windows_of(entries)).failures]


def without(kind: type[AuditEvent]) -> Callable[[list[AuditEvent]], list[AuditEvent]]:
    return lambda said: [one for one in said if not isinstance(one, kind)]


def changed(kind: type[AuditEvent], **fields: Any) -> Callable[[list[AuditEvent]], list[AuditEvent]]:
    return lambda said: [one.model_copy(update=fields) if isinstance(one, kind) else one for one in said]


def kept() -> list[AuditEvent]:
    """The hospital left; its models are used on, and the run goes on from them."""
    later = wd.WithdrawalExtended(**LEFT, models=(wd.RunModel(run_id=OLD, model=model(2)),), sums=0)
    return [
        *honest()[:8],
        *of_window(5, STAY, OLD, 2),
        later,
        wd.WithdrawalDecided(**LEFT, decision=b"e" * 32, effect="stop_future", people=("olga", "otto")),
        wd.WithdrawalProven(**LEFT, effect="stop_future", receipt_sha256=b"p" * 32),
        wd.WithdrawalClosed(**LEFT),
        *of_window(6, STAY, OLD, 3),
        ev.RunStateChanged(run_id=OLD, state="FINISHED"),
    ]


def came_back() -> list[AuditEvent]:
    """The hospital grants anew and is in a later window; a withdrawal is about what was made before it."""
    asked = ev.WindowAuthorised(
        run_id=NEW, window_id=bytes([7]) * 16, round=0, purpose="statistics", params_hash=b"h" * 32, permits=()
    )
    granted = ev.GrantStarted(
        site_id=GONE, study_digest=b"d" * 32, grant_digest=b"g" * 32, not_before=NOW, not_after=NOW + timedelta(days=9)
    )
    return [*honest()[:8], granted, asked, *of_window(7, [GONE, *STAY], NEW, 0), *[asked] * 3]


def test_an_honest_log_passes() -> None:
    assert judged(honest()) == []
    assert judged(kept()) == []
    assert judged(came_back()) == []


def test_what_is_made_of_listed_models_must_be_listed_until_the_case_is_closed() -> None:
    assert any("does not list it" in text for text in judged(without(wd.WithdrawalExtended)(kept())))
    unclosed = without(wd.WithdrawalClosed)(kept())
    assert any("version 3" in text for text in judged(unclosed))
    assert judged(unclosed[:-1]) == [], "what came last may be on its way to consent"


def test_a_model_of_a_sum_that_was_set_aside_is_a_lie() -> None:
    aside = wd.SumSetAside(run_id=OLD, window_id=bytes([2]) * 16, sites=(GONE,), opened=True)
    assert any("set aside" in text for text in judged([*honest(), aside]))


@pytest.mark.parametrize(
    ("lie", "words"),
    [
        (without(wd.WithdrawalRecorded), "not on record"),
        (lambda said: [*said, *of_window(5, [GONE, *STAY], OLD, 2)], "in a cohort after its withdrawal"),
        (changed(wd.WithdrawalEffective, models=()), "does not list it"),
        (without(wd.WithdrawalDecided), "nobody decided it"),
        (lambda said: [*said, *of_window(5, STAY, OLD, 2)], "made from a retired one"),
        (
            lambda said: [*said, wd.ModelCarried(run_id=NEW, model=model(1), from_run=OLD)],
            "begins with a retired model",
        ),
        (
            lambda said: [*said, ev.ModelBundled(run_id=OLD, model=model(1), attestation_sha256=b"a" * 32)],
            "made ready to be handed out",
        ),
        (changed(wd.RetrainingStarted, start=model(1)), "begins with a model that learnt from who left"),
        (changed(wd.RetrainingStarted, start=model(9)), "never released"),
        (lambda said: [*said, *of_window(5, [GONE, *STAY], NEW, 2)], "in a run that trains without it"),
        (without(wd.ModelRetired), "not all models that it is about are retired"),
        (without(ev.RunStateChanged), "no such run finished"),
        (changed(wd.WithdrawalProven, effect="retire"), "what was not decided"),
    ],
)
def test_each_lie_is_found(lie: Callable[[list[AuditEvent]], list[AuditEvent]], words: str) -> None:
    assert any(words in text for text in judged(lie(honest())))
