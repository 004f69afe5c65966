"""A withdrawal's case over the bus and over HTTP: its list follows what is made, and so does its receipt."""

import asyncio
import hashlib
from dataclasses import replace
from typing import Any

import pytest

from cohortium_consent.app import App
from cohortium_consent.cases import cases_of, save_case
from cohortium_consent.withdrawals import Decision, EffectDecided
from cohortium_kit.bus import Ack, Dead, Requeue
from cohortium_kit.db import Tx
from cohortium_messages.consent import Effect
from cohortium_messages.governance import GrantGiven
from cohortium_messages.ids import RunId
from cohortium_messages.registry import Message
from cohortium_messages.secure_sum import ModelRef
from cohortium_messages.topology import inbox
from cohortium_messages.withdrawals import (
    EffectDone,
    EffectRefused,
    EffectStarted,
    Retrained,
    RunModel,
    WithdrawalExtended,
    WithdrawalFollowed,
    WithdrawalOverdue,
    WithdrawalProven,
    WithdrawalTraced,
)
from cohortium_protocol.attest import verify_statement
from governance_stage import Stage, delivery, hear, sent, sent_of

RUN, AGAIN = RunId("00000000-0000-4000-8000-0000000000aa"), RunId("00000000-0000-4000-8000-0000000000bb")
DECISION = b"e" * 32


def models(*versions: int) -> tuple[RunModel, ...]:
    return tuple(
        RunModel(run_id=RUN, model=ModelRef(version=version, model_hash=bytes([version]) * 32)) for version in versions
    )


async def opened(stage: Stage, consent: App) -> bytes:
    """The first hospital left; returns the withdrawal's digest."""
    site = stage.hospitals[0]
    await hear(consent, "consent", stage.from_site(site, "consent", GrantGiven(grant=stage.grant(site))))
    await stage.clock.advance(1)
    await hear(consent, "consent", stage.from_site(site, "consent", stage.withdrawal(site)))
    return (await view(stage, consent))["withdrawal_bytes"]  # type: ignore[no-any-return]


async def view(stage: Stage, consent: App) -> dict[str, Any]:
    async with stage.client(consent) as client:
        (item,) = (await client.get("/withdrawals")).raise_for_status().json()["items"]
        after = (await client.get("/withdrawals", params={"after": item["withdrawal"]})).json()
        assert after == {"items": [], "next": None}
    return {**item, "withdrawal_bytes": bytes.fromhex(item["withdrawal"])}


async def say(stage: Stage, consent: App, message: Message, role: str = "scheduler") -> Any:
    return await hear(consent, "consent", stage.from_service(role, "consent", message))


async def decided(consent: App, effect: Effect) -> None:
    """As if officers had signed: who may is the documents' own test."""

    async def work(tx: Tx) -> None:
        (case,) = await cases_of(tx)
        now = case.received_at
        decision = Decision(DECISION, effect, ("olga", "otto"), now)
        state = EffectDecided(now)
        await save_case(
            tx, replace(case, decision=decision, state=state, reached={**case.reached, "EFFECT_DECIDED": now})
        )

    await consent.db.run("decided", work)


def listed(item: dict[str, Any], name: str = "models") -> list[int]:
    return [one["model"]["version"] for one in item[name]]


async def receipt_of(stage: Stage, consent: App, item: dict[str, Any]) -> tuple[bytes, dict[str, Any]]:
    async with stage.client(consent) as client:
        signed = (await client.get(f"/withdrawals/{item['withdrawal']}/receipt")).raise_for_status().content
    return signed, dict(verify_statement(signed, [stage.service_key("consent").public], 1).predicate)


@pytest.mark.usefixtures("members")
async def test_the_case_and_its_receipt_follow_what_is_made_until_it_is_closed(stage: Stage, consent: App) -> None:
    left = await opened(stage, consent)
    early = WithdrawalFollowed(withdrawal=left, models=models(1), sums=0)
    waiting = stage.from_service("scheduler", "consent", early)
    handling = asyncio.ensure_future(consent.consumer.handle(delivery(waiting, inbox("consent"))))
    while not handling.done():
        await stage.clock.advance(1)
        await asyncio.sleep(0.01)
    assert handling.result() == Requeue(), "it waits for the list that it adds to"
    assert await say(stage, consent, early, "aggregator") == Dead("sender_not_allowed")
    await say(stage, consent, WithdrawalTraced(withdrawal=left, without=(), models=models(0), sums=1))
    await say(stage, consent, WithdrawalFollowed(withdrawal=left, models=models(1), sums=0))
    item = await view(stage, consent)
    assert (item["state"], listed(item), item["sums"]) == ("EFFECTIVE", [0, 1], 1)
    await decided(consent, "stop_future")
    await say(stage, consent, EffectStarted(withdrawal=left, decision=DECISION))
    await say(stage, consent, EffectDone(withdrawal=left, decision=DECISION))
    first = await view(stage, consent)
    _, facts = await receipt_of(stage, consent, first)
    assert (first["state"], [one["model"]["version"] for one in facts["models"]["flagged"]]) == ("PROVEN", [0, 1])

    await say(stage, consent, WithdrawalFollowed(withdrawal=left, models=models(1, 2), sums=1))
    item = await view(stage, consent)
    assert (item["state"], listed(item), item["sums"]) == ("PROVEN", [0, 1, 2], 2)
    signed, facts = await receipt_of(stage, consent, item)
    assert [one["model"]["version"] for one in facts["models"]["flagged"]] == [0, 1, 2]
    assert facts["events"] == item["events"]
    assert item["events"]["proven"] != first["events"]["proven"]
    proofs = {
        one.row.message_id: one.message for one in await sent(consent) if isinstance(one.message, WithdrawalProven)
    }
    assert proofs.keys() == {first["events"]["proven"], item["events"]["proven"]}
    assert proofs[item["events"]["proven"]].receipt_sha256 == hashlib.sha256(signed).digest()
    told = [extended.models for _, extended in await sent_of(consent, WithdrawalExtended)]
    assert told == [models(1), models(2)], "the log learns of each model once"

    async with stage.client(consent) as client:
        await client.post(f"/withdrawals/{item['withdrawal']}/close")
    assert await say(stage, consent, WithdrawalFollowed(withdrawal=left, models=models(3), sums=0)) == Ack()
    assert listed(await view(stage, consent)) == [0, 1, 2]


@pytest.mark.usefixtures("members")
async def test_officers_see_in_the_case_which_hospitals_refuse_and_why(stage: Stage, consent: App) -> None:
    left = await opened(stage, consent)
    await say(stage, consent, WithdrawalTraced(withdrawal=left, without=(), models=models(0), sums=1))
    await decided(consent, "retrain")
    retrained = Retrained(run_id=AGAIN, from_run=RUN, start=None, basis="SITE_IN_STATISTICS")
    await say(stage, consent, EffectStarted(withdrawal=left, decision=DECISION, retrained=retrained))
    others = [site.site_id for site in stage.hospitals[1:3]]
    for site in others:
        refused = EffectRefused(
            withdrawal=left, decision=DECISION, run_id=AGAIN, site_id=site, code="COHORT_DIFFERS_BY_ONE"
        )
        await say(stage, consent, refused)
    item = await view(stage, consent)
    assert (item["state"], item["fault"]) == ("EXECUTING", None)
    assert [(one["site_id"], one["code"]) for one in item["refused"]] == [
        (site, "COHORT_DIFFERS_BY_ONE") for site in others
    ]
    failed = EffectDone(withdrawal=left, decision=DECISION, fault="COHORT_DIFFERS_BY_ONE", retrained=retrained)
    await say(stage, consent, failed)
    item = await view(stage, consent)
    assert (item["state"], item["fault"]) == ("EXECUTING", "COHORT_DIFFERS_BY_ONE")


DAY_S = 86_400.0


async def overdue(consent: App) -> tuple[int, list[str]]:
    """One look at the deadlines: how many are overdue and not met, and all that the log was told so far."""
    count = await consent.db.run("tell_overdue", consent._cases.tell_overdue)
    return count, [event.deadline for _, event in await sent_of(consent, WithdrawalOverdue)]


@pytest.mark.usefixtures("members")
async def test_each_deadline_that_passes_is_told_to_the_log_once(stage: Stage, consent: App) -> None:
    left = await opened(stage, consent)
    assert await overdue(consent) == (0, [])
    told: list[str] = []
    for days, late in ((0.01, ["EFFECTIVE"]), (16, ["DECIDED"]), (15, ["STARTED", "ANSWERED"])):
        await stage.clock.advance(days * DAY_S)
        told += late
        assert await overdue(consent) == (len(told), told)
        assert await overdue(consent) == (len(told), told), "a second look tells nothing"
    await say(stage, consent, WithdrawalTraced(withdrawal=left, without=(), models=models(0), sums=1))
    assert await overdue(consent) == (len(told) - 1, told), "met late, and told before"
    events = [event for _, event in await sent_of(consent, WithdrawalOverdue)]
    due = {one["name"]: one["due"] for one in (await view(stage, consent))["deadlines"]}
    assert {event.withdrawal for event in events} == {left}
    assert {event.deadline: f"{event.due:%Y-%m-%dT%H:%M}" for event in events} == {
        name: due[name][:16] for name in told
    }


@pytest.mark.usefixtures("members")
async def test_of_a_case_that_is_closed_nothing_is_overdue(stage: Stage, consent: App) -> None:
    left = await opened(stage, consent)
    await stage.clock.advance(31 * DAY_S)
    await say(stage, consent, WithdrawalTraced(withdrawal=left, without=(), models=models(0), sums=1))
    await decided(consent, "stop_future")
    await say(stage, consent, EffectStarted(withdrawal=left, decision=DECISION))
    await say(stage, consent, EffectDone(withdrawal=left, decision=DECISION))
    async with stage.client(consent) as client:
        (await client.post(f"/withdrawals/{left.hex()}/close")).raise_for_status()
    assert await overdue(consent) == (0, [])
