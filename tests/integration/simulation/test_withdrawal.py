"""Hospitals leave in the middle of a round, at four moments; officers decide; the study is trained again; the receipt
verifies offline, and so does the log."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import pytest
from tests.integration.simulation.noise import in_round, noise_plan, noise_study, started

from cohortium_cli.operator import Operator, OperatorError
from cohortium_connector.commands import LocalSite
from cohortium_connector.settings import ConnectorSettings
from cohortium_messages.consent import ConsentFile, Effect, Record, WithdrawalEffect
from cohortium_messages.events import AggregateOpened, AuditEvent, ModelReleased, WindowEnded
from cohortium_messages.secure_sum import Echo, Unmask, UploadHeader
from cohortium_messages.withdrawals import SumSetAside
from cohortium_protocol.consent.files import sign_documents
from cohortium_protocol.documents import GovernancePin
from cohortium_protocol.receipts import ReceiptRefused, verify_receipt
from cohortium_sim.gates import GatedSimulation, GatedWindow, Hold
from cohortium_sim.simulate import Simulation
from cohortium_verify.verification import verify_bundle

T = TypeVar("T")
E = TypeVar("E", bound=AuditEvent)
SITES = ("a", "b", "c", "d", "e", "f", "g")
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


async def at_hospital(simulation: Simulation, name: str, phase: str, window: GatedWindow) -> None:
    """Until the hospital's own state of this window is `phase`."""

    async def look() -> bool:
        async with hospital(simulation, name) as site:
            found = {one.window: one.phase for one in (await site.status()).windows}
        return found.get(window.window_id.hex()) == phase

    await until(look, f"{phase} at {name}")


async def caught(hold: Hold) -> GatedWindow:
    async def look() -> GatedWindow | None:
        return hold.caught

    return await until(look, f"a {hold.kind.type_name} of a window with {hold.leaver}")


async def told(simulation: GatedSimulation, name: str) -> None:
    """Until the aggregator knows that this hospital left."""

    async def look() -> bool:
        return simulation.sites[name].site_id in simulation.gate.left

    await until(look, f"the end of {name}'s grant at the aggregator")


async def leave_after_upload(simulation: GatedSimulation, name: str, hold: Hold) -> GatedWindow:
    """Its masked upload is stored, the others' are not: the survivors are not fixed."""
    window = await caught(hold)
    await at_hospital(simulation, name, "UPLOADED", window)
    await leave(simulation, name, "stop_future")
    folder = simulation.files.directory / "sites" / simulation.sites[name].site_id
    async with hospital(simulation, name) as site:
        assert (await site.status()).windows == ()
    assert not [file for file in folder.rglob("*") if window.window_id.hex() in file.name]
    await told(simulation, name)
    hold.release()
    return window


async def leave_before_unmask(simulation: GatedSimulation, name: str, hold: Hold) -> GatedWindow:
    """The survivors are fixed, and it is one of them; no hospital has given a share."""
    window = await caught(hold)
    assert not simulation.gate.answered(Unmask, window)
    await leave(simulation, name, "stop_future")
    await told(simulation, name)
    hold.release()
    return window


async def leave_after_unmask(simulation: GatedSimulation, name: str, hold: Hold) -> GatedWindow:
    """Everybody's shares are at the aggregator, which has not made the sum of them yet."""
    window = await caught(hold)
    with simulation.opening_held(window):
        hold.release()

        async def look() -> bool:
            return simulation.gate.answered(Unmask, window) == set(window.sites)

        await until(look, "everybody's shares")
        await leave(simulation, name, "retrain")
        await told(simulation, name)
    return window


def of_kind(simulation: GatedSimulation, window: GatedWindow, kind: type[E]) -> list[E]:
    """What the aggregator told the log of a window, of one type."""
    return [one for one in simulation.gate.events(window) if isinstance(one, kind)]


async def finished(operator: Operator, run_id: str) -> Any:
    async def look() -> Any:
        status = await operator.run(run_id)
        return status if status.state in FINAL else None

    return await until(look, f"the end of {run_id}")


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_hospitals_leave_at_four_moments_and_the_study_is_trained_again(tmp_path: Path) -> None:
    """While it trains; once its upload is stored; once the survivors are fixed; once everybody has given shares."""
    patient = {"ready_s": 200, "upload_s": 100, "echo_s": 100, "unmask_s": 100, "expire_s": 600}
    plan = noise_plan(tmp_path, noise_study(5, deadlines=patient, collusion=1), SITES, slow={"e": 600.0})
    async with started(plan, GatedSimulation) as simulation:
        assert isinstance(simulation, GatedSimulation)
        operator, gate = simulation.world.operator, simulation.gate
        ids = {name: one.site_id for name, one in simulation.sites.items()}
        with (
            gate.hold(UploadHeader, ids["f"], from_round=2) as uploading,
            gate.hold(Echo, ids["g"], from_round=3) as confirming,
            gate.hold(Unmask, ids["d"], from_round=4) as unmasking,
        ):
            run_id = await simulation.submit()
            await in_round(operator, run_id, 1)
            await leave(simulation, "e", "stop_future")
            gone = await case_of(simulation, "e", "EFFECTIVE")
            assert gone["models"]
            assert gone["sums"] == 1  # of the statistics: what scales the inputs comes from it
            after_upload = await leave_after_upload(simulation, "f", uploading)
            before_unmask = await leave_before_unmask(simulation, "g", confirming)
            after_unmask = await leave_after_unmask(simulation, "d", unmasking)
        status = await finished(operator, run_id)
        assert (status.state, status.reason) == ("FINISHED", "")
        cohorts = {one.number: set(one.cohort) for one in status.rounds_done}
        assert not any("e" in cohort for cohort in cohorts.values())
        for name, window in (("f", after_upload), ("g", before_unmask), ("d", after_unmask)):
            assert not any(name in cohort for number, cohort in cohorts.items() if number >= window.round)

        (opened,) = of_kind(simulation, after_upload, AggregateOpened)
        assert (ids["f"] in opened.survivors, ids["f"] in opened.dropped) == (False, True)
        assert not of_kind(simulation, before_unmask, AggregateOpened)
        (ended,) = of_kind(simulation, before_unmask, WindowEnded)
        assert (ended.state in ("ABORTED", "FAILED"), ended.reason) == (True, "SITE_LEFT")
        (aside,) = of_kind(simulation, after_unmask, SumSetAside)
        assert (aside.sites, aside.opened) == ((ids["d"],), True)
        assert not of_kind(simulation, after_unmask, ModelReleased)

        case = await case_of(simulation, "d", "EFFECTIVE")
        listed = [one["model"]["version"] for one in case["models"]]
        assert listed[: after_unmask.round] == list(range(after_unmask.round))  # from version 0 on, as it counted
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
