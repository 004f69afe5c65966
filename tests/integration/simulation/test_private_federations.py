"""Private studies on a real RabbitMQ and PostgreSQL, each part a process of its own.

And two of them one after the other, with every part killed in between: what the first one cost a hospital's patients
is not forgotten.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.integration.simulation.promises import LOCAL, LOGISTIC, SUMMED, TREES, check_promise, plan_of

from cohortium_connector.ledger.local import LocalLedger
from cohortium_connector.ledger.view import LedgerView
from cohortium_connector.settings import ConnectorSettings
from cohortium_kit.testing.servers import PrivateRabbit
from cohortium_messages.governance import Invitation
from cohortium_messages.ids import StudyId
from cohortium_messages.status import RunStatus
from cohortium_messages.study import Study
from cohortium_sim.demo import demo_tables
from cohortium_sim.plan import Plan, SiteTable
from cohortium_sim.simulate import Simulation, run_plan
from cohortium_sim.worlds import SERVICES, ManyProcesses
from cohortium_verify.verification import verify_bundle

SITES = 3
"""As many as a sum needs, so that every one of them is in every sum."""
ROUNDS = 2
FIRST, SECOND = StudyId("heart-first"), StudyId("heart-second")

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(600)]


def real(folder: Path, private_rabbit: PrivateRabbit, postgres_url: str) -> dict[str, Any]:
    """What makes a plan one of real parts."""
    return {
        "sites": demo_tables(folder / "sites")[:SITES],
        "amqp_url": private_rabbit.url,
        "database_url": postgres_url,
        "processes": True,
    }


@pytest.mark.torch
@pytest.mark.parametrize(
    "privacy", [pytest.param(LOCAL, id="local"), pytest.param(SUMMED | {"sampling_rate": 0.5}, id="distributed")]
)
async def test_a_private_run(
    tmp_path: Path, private_rabbit: PrivateRabbit, postgres_url: str, privacy: dict[str, Any]
) -> None:
    parts = real(tmp_path, private_rabbit, postgres_url)
    plan = plan_of(tmp_path, LOGISTIC, privacy, ROUNDS, **parts)
    check_promise(plan, await run_plan(plan, live=False))


class TwoStudies(Simulation):
    """A federation whose hospitals approve of a second study too, and one of which can pay for one of them alone."""

    poor = "cleveland"

    def __init__(self, plan: Plan, second: Study, work: Path) -> None:
        self.second = second
        self.configs: dict[str, Path] = {}
        super().__init__(plan, work)

    def _connector_config(self, site: SiteTable, invitation: Invitation) -> Path:
        path = super()._connector_config(site, invitation)
        settings = yaml.safe_load(path.read_text())
        settings["policy"]["approved_studies"].append(self.second.digest().hex())
        if site.name == self.poor:
            settings["privacy"] = {"epsilon_max": 1.2 * SUMMED["epsilon"], "delta": SUMMED["delta"]}
        path.write_text(yaml.safe_dump(settings))
        self.configs[site.name] = path
        return path

    async def budget(self, site: str) -> LedgerView:
        """What `cohortium budget` shows there."""
        async with LocalLedger.open(ConnectorSettings.load(self.configs[site])) as ledger:
            return await ledger.look()


@pytest.fixture
async def federation(tmp_path: Path, private_rabbit: PrivateRabbit, postgres_url: str) -> AsyncIterator[TwoStudies]:
    parts = real(tmp_path, private_rabbit, postgres_url)
    plan = plan_of(tmp_path, TREES, SUMMED, None, **parts)
    plan = replace(plan, study=plan.study.model_copy(update={"name": FIRST}))
    second = plan.study.model_copy(update={"name": SECOND})
    (tmp_path / "work").mkdir()
    federation = TwoStudies(plan, second, tmp_path / "work")
    try:
        yield federation
    finally:
        await federation.clear()


async def end_of(federation: TwoStudies) -> RunStatus:
    run_id = await federation.submit()
    async with asyncio.timeout(240):
        return await federation.watch(run_id, None)


async def kill_everything(federation: TwoStudies, rabbit: PrivateRabbit) -> None:
    """kill -9 of every service, every connector and the broker, and what a supervisor does then."""
    world = federation.world
    assert isinstance(world, ManyProcesses)
    names = [*(f"connector-{site.name}" for site in federation.plan.sites), *SERVICES]
    for name in names:
        await world.kill(name)
    # In this thread, not in a worker: the kernel ends the server with the thread that started it.
    rabbit.kill()
    rabbit.start()
    for name in reversed(names):
        await world.restart(name)
    for role in SERVICES:
        for _ in range(2400):
            if await world.operator.healthy(role):
                break
            world.check()
            await asyncio.sleep(0.05)
        else:
            raise AssertionError(f"{role} did not come back")


async def test_the_second_study_is_cut_off_by_what_the_first_one_cost(
    federation: TwoStudies, private_rabbit: PrivateRabbit
) -> None:
    await federation.start()
    first = await end_of(federation)
    assert first.state == "FINISHED", first.reason
    _check_status(first)
    await federation.fetch(first.run_id, first)
    keys = list(federation.files.trust.governance_keys)
    report = verify_bundle(federation.plan.out / "audit", keys)
    assert report.verified, report.text()
    before = await federation.budget(federation.poor)
    (account,) = before.accounts
    assert [(run.study, run.run) for run in account.runs] == [(FIRST, first.run_id)]
    assert account.committed_share > 0.5
    assert account.reserved_share == 0, "the run is over, so nothing of it is set aside"

    await kill_everything(federation, private_rabbit)
    # A row that is read now would be missing: the study must be refused before one is.
    next(site.path for site in federation.plan.sites if site.name == federation.poor).unlink()
    federation.plan = replace(federation.plan, study=federation.second, out=federation.plan.out / "second")
    second = await end_of(federation)
    assert (second.state, second.rounds_done) == ("FAILED", ())
    codes = {site.name: site.code for site in second.sites}
    assert codes == {site.name: None for site in federation.plan.sites} | {federation.poor: "EPSILON_EXHAUSTED"}
    assert await federation.budget(federation.poor) == before, "a study that was refused costs nothing"
    _check_hospitals_log(federation)
    await _check_public_log(federation, second)
    told = {one.site_name: {run.study_id for run in one.runs} for one in await federation.world.operator.budgets()}
    assert told == {site.name: {FIRST, SECOND} for site in federation.plan.sites} | {federation.poor: {FIRST}}
    others = await federation.budget(next(name for name in federation.configs if name != federation.poor))
    assert [run.committed_share > 0 for run in others.accounts[0].runs] == [True], "what was not begun came back"


def _check_status(status: RunStatus) -> None:
    """The plan was used up, by the scheduler's count, and cost no more than was promised."""
    privacy = status.privacy
    assert privacy is not None
    told = privacy.statement
    assert (told.mode, told.unit, told.accountant, told.epsilon) == ("distributed", "patient", "rdp", 8)
    assert (privacy.sums_charged, privacy.sums_planned) == (2, 2)
    assert told.epsilon is not None
    assert 0.5 * told.epsilon < privacy.epsilon_spent <= told.epsilon


def _check_hospitals_log(federation: TwoStudies) -> None:
    """Who spent the budget is told inside the hospital, in words."""
    text = (federation.files.directory / "logs" / f"connector-{federation.poor}.log").read_text()
    told = [line for line in text.splitlines() if "privacy_budget_short" in line]
    assert told
    assert all(f"spent so far: {FIRST} " in line and "of its budget left" in line for line in told)


async def _check_public_log(federation: TwoStudies, second: RunStatus) -> None:
    """What the log has of the second study: the refusal's code, no charge of the hospital that refused, and nothing of
    its limits."""
    await federation.fetch(second.run_id, second)
    out = federation.plan.out / "audit"
    report = verify_bundle(out, list(federation.files.trust.governance_keys))
    assert report.verified, report.text()
    entries = "\n".join(file.read_text() for file in sorted(out.rglob("*.json*")))
    assert "EPSILON_EXHAUSTED" in entries
    poor = federation.sites[federation.poor].site_id
    planned = [line for line in entries.splitlines() if '"reason":"PLANNED"' in line]
    assert not any(json.dumps(str(poor)) in line for line in planned)
    assert "epsilon_max" not in entries
