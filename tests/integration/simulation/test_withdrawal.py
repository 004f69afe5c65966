"""Hospitals leave in the middle of a round, at two moments; officers decide; the study is trained again; the receipt
verifies offline, and so does the log."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import pytest
from tests.integration.simulation.noise import in_round, noise_plan, noise_study, started

from cohortium_aggregator.handlers.membership import MembershipHandlers
from cohortium_aggregator.making import Job
from cohortium_aggregator.opener import Opener
from cohortium_cli.operator import Operator, OperatorError
from cohortium_cli.verify import verify_bundle
from cohortium_connector.commands import LocalSite
from cohortium_connector.settings import ConnectorSettings
from cohortium_kit.consumer import Received
from cohortium_kit.db import Tx
from cohortium_messages.consent import ConsentFile, Effect, Record, WithdrawalEffect
from cohortium_messages.governance import GrantEnded
from cohortium_protocol.consent.files import sign_documents
from cohortium_protocol.documents import GovernancePin
from cohortium_protocol.receipts import ReceiptRefused, verify_receipt
from cohortium_sim.simulate import Simulation

T = TypeVar("T")
SITES = ("a", "b", "c", "d", "e")
FINAL = ("FINISHED", "FAILED", "STOPPED")


async def until(ask: Callable[[], Awaitable[T | None]], what: str) -> T:
    for _ in range(6000):
        found = await ask()
        if found:
            return found
        await asyncio.sleep(0.05)
    raise AssertionError(f"{what} did not come")


@asynccontextmanager
async def hospital(simulation: Simulation, name: str) -> AsyncIterator[LocalSite]:
    folder = simulation.files.directory / "sites" / simulation.sites[name].site_id
    async with LocalSite.open(ConnectorSettings.load(folder / "connector.yaml")) as site:
        yield site


async def leave(simulation: Simulation, name: str, effect: Effect) -> None:
    async with hospital(simulation, name) as site:
        assert await site.withdraw(simulation.plan.study.name, effect) == 1


async def case_of(simulation: Simulation, name: str, *states: str) -> dict[str, Any]:
    """The withdrawal of this hospital, once it stands at one of these states."""

    async def look() -> dict[str, Any] | None:
        for case in await simulation.world.operator.withdrawals():
            if case["site_id"] == simulation.sites[name].site_id and case["state"] in states:
                return case
        return None

    return await until(look, f"a withdrawal of {name} at {states}")


async def decide(simulation: Simulation, case: dict[str, Any], effect: Effect) -> None:
    """One officer writes the decision, another one approves it."""
    fields = {name: case[name] for name in ("withdrawal", "site_id", "study_id", "study_digest")}
    made = WithdrawalEffect.model_validate(fields | {"effect": effect, "decided_at": datetime.now(UTC)})
    file, now = ConsentFile(records=(Record(document=made),)), datetime.now(UTC)
    author, other = simulation.files.officers[:2]
    file = sign_documents(file, "submit", "Olga Officer", now, author)
    operator = simulation.world.operator
    await operator.add_documents(file)
    assert (await case_of(simulation, _name(simulation, case), "VERIFIED", "EFFECTIVE"))["decision"] is None
    await operator.add_documents(sign_documents(file, "approve", "Otto Officer", now, other))


def _name(simulation: Simulation, case: dict[str, Any]) -> str:
    return next(name for name, one in simulation.sites.items() if one.site_id == case["site_id"])


class Gate:
    """Stops the aggregator between the shares and the sum, in the first round of training after the first one that this
    site is in. A slow machine may have missed a round of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached, self.go_on, self.told = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.site, self.round = "", 0
        load, ended = Opener._load, MembershipHandlers.on_grant_ended

        async def heard(handlers: MembershipHandlers, tx: Tx, received: Received[GrantEnded]) -> None:
            await ended(handlers, tx, received)
            if received.message.site_id == self.site:
                tx.after_commit(lambda _: self.told.set())

        async def held(opener: Opener, window_id: bytes) -> Job | None:
            job = await load(opener, window_id)
            if job is not None and self._is_it(job):
                self.round = job.window.session.params.round
                self.reached.set()
                await self.go_on.wait()
            return job

        monkeypatch.setattr(Opener, "_load", held)
        monkeypatch.setattr(MembershipHandlers, "on_grant_ended", heard)

    def _is_it(self, job: Job) -> bool:
        session = job.window.session
        inside = {session.site(index) for index in job.inputs.survivors.members}
        return session.params.purpose == "update" and session.params.round > 1 and self.site in inside


async def finished(operator: Operator, run_id: str) -> Any:
    async def look() -> Any:
        status = await operator.run(run_id)
        return status if status.state in FINAL else None

    return await until(look, f"the end of {run_id}")


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_hospitals_leave_at_two_moments_and_the_study_is_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it trains; and after its sum can leave it out no more."""
    gate = Gate(monkeypatch)
    patient = {"ready_s": 200, "upload_s": 100, "echo_s": 100, "unmask_s": 100, "expire_s": 600}
    plan = noise_plan(tmp_path, noise_study(5, deadlines=patient), SITES, slow={"e": 600.0})
    async with started(plan) as simulation:
        operator = simulation.world.operator
        gate.site = simulation.sites["d"].site_id
        run_id = await simulation.submit()
        await in_round(operator, run_id, 1)
        await leave(simulation, "e", "stop_future")
        gone = await case_of(simulation, "e", "EFFECTIVE")
        assert gone["models"]
        assert gone["sums"] == 1  # of the statistics: what scales the inputs comes from it

        await asyncio.wait_for(gate.reached.wait(), 300)
        await leave(simulation, "d", "retrain")
        await asyncio.wait_for(gate.told.wait(), 300)
        gate.go_on.set()
        status = await finished(operator, run_id)
        assert (status.state, status.reason) == ("FINISHED", "")
        cohorts = {one.number: set(one.cohort) for one in status.rounds_done}
        assert not any("e" in cohort for cohort in cohorts.values())
        assert not any("d" in cohort for number, cohort in cohorts.items() if number >= gate.round)  # asked again
        case = await case_of(simulation, "d", "EFFECTIVE")
        listed = [one["model"]["version"] for one in case["models"]]
        assert listed == list(range(gate.round))  # from version 0 on, whose statistics it was in

        await decide(simulation, case, "retrain")
        case = await case_of(simulation, "d", "PROVEN")
        again = await finished(operator, case["retrained"]["run_id"])
        assert again.state == "FINISHED"
        assert {name for one in again.rounds_done for name in one.cohort} <= {"a", "b", "c"}
        assert len(case["retired"]) == 6
        with pytest.raises(OperatorError) as refused:
            await operator.model_bundle(run_id)
        assert refused.value.code == "MODEL_RETIRED"

        receipt = await operator.receipt(case)
        pin = GovernancePin.of(simulation.files.trust)
        assert verify_receipt(receipt, pin).facts["models"]["retrained"]["basis"] == "SITE_IN_STATISTICS"
        assert (await operator.close_withdrawal(case["withdrawal"]))["state"] == "CLOSED"
        forged = receipt.model_copy(update={"statement": receipt.statement.replace('"sig":"', '"sig":"0', 1)})
        with pytest.raises(ReceiptRefused):
            verify_receipt(forged, pin)

        await simulation.fetch(str(again.run_id), again)
        report = verify_bundle(plan.out / "audit", list(simulation.files.trust.governance_keys))
        assert report.verified, report.text()
