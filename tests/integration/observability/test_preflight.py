"""The trial at a hospital, on a real broker: what it finds, what it tells, and that nothing else leaves."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from cohortium_cli.operator import Operator
from cohortium_connector.preflight.trial import Trial, carry_out
from cohortium_connector.preflight.words import lines
from cohortium_connector.settings import ConnectorSettings
from cohortium_kit.db import Database
from cohortium_kit.errors import ConfigurationError
from cohortium_kit.testing.proxy import CuttingProxy
from cohortium_messages.preflight import PreflightReport
from cohortium_protocol.signing import envelope_bytes, verify
from cohortium_scheduler.handlers.capacities import capacities_of
from cohortium_sim.bench import bench_study
from cohortium_sim.plan import Plan, SiteTable
from cohortium_sim.simulate import Simulation

pytestmark = [pytest.mark.real, pytest.mark.torch, pytest.mark.slow, pytest.mark.timeout(600)]

SITES = ("north", "south", "west")


@asynccontextmanager
async def enrolled(
    folder: Path, amqp_url: str, postgres_url: str
) -> AsyncIterator[tuple[Simulation, ConnectorSettings]]:
    """A federation whose hospitals are enrolled; the first one's connector stands still."""
    table = folder / "ZZCANARY.csv"
    table.write_text("unused,label\n0,0\n1,1\n", encoding="ascii")
    plan = Plan(
        study=bench_study(10, 1, 3),
        sites=tuple(SiteTable(name, table) for name in SITES),
        out=folder / "out",
        amqp_url=amqp_url,
        database_url=postgres_url,
    )
    (folder / "work").mkdir()
    simulation = Simulation(plan, folder / "work")
    try:
        await simulation.start()
        world = simulation.world
        first = simulation.sites["north"].site_id
        world._vanish("north")  # type: ignore[attr-defined]
        await asyncio.wait([world._tasks["connector-north"]])  # type: ignore[attr-defined]
        yield simulation, ConnectorSettings.load(simulation.files.directory / "sites" / first / "connector.yaml")
    finally:
        await simulation.clear()


def states(trial: Trial) -> dict[str, str]:
    return {finding.name: finding.state for finding in trial.findings}


async def told(operator: Operator, site: str) -> dict[str, Any]:
    """What enrolment shows of the site, once its report has come."""
    for _ in range(900):
        (found,) = [one for one in await operator.sites() if one["site_id"] == site]
        if found["preflight"] is not None:
            return dict(found)
        await asyncio.sleep(0.1)
    raise AssertionError("the report never came")


async def test_a_trial_finds_measures_signs_and_reports(tmp_path: Path, amqp_url: str, postgres_url: str) -> None:
    async with enrolled(tmp_path, amqp_url, postgres_url) as (simulation, settings):
        trial = await carry_out(settings)

        expected = {"identity", "name", "connection", "login", "queues", "clock", "processor", "disk", "training"}
        found = states(trial)
        assert {name for name in expected if found[name] not in {"ok", "warning"}} == set()
        assert found["training"] == "ok"
        capacity = trial.report.capacity
        assert capacity.round_trip_ms is not None
        assert capacity.clock_offset_s is not None
        assert abs(capacity.clock_offset_s) < 5, "one machine, one clock"
        assert capacity.up_mbit_s
        assert capacity.down_mbit_s
        assert capacity.training_s
        assert trial.sent == ("enrolment", "scheduler")

        shown = await told(simulation.world.operator, trial.site)
        assert PreflightReport.model_validate(shown["preflight"]) == trial.report
        signed = json.loads(trial.as_json())["signed"]
        body = signed["body"].encode()
        key = bytes.fromhex(shown["identity_pk"])
        verify(key, envelope_bytes(signed["key_id"], body), bytes.fromhex(signed["signature"]))

        text = "\n".join(lines(trial))
        assert "ZZCANARY" in text, "the hospital's own report names the table"
        assert b"ZZCANARY" not in body, "what leaves does not"
        assert "127.0.0.1" not in body.decode()

        scheduler = Database(postgres_url, schema=f"{simulation.namespace.replace('-', '_')}_scheduler")
        try:
            async with scheduler.reading("capacities") as tx:
                assert await capacities_of(tx) == {trial.site: capacity}
        finally:
            await scheduler.close()


async def test_what_is_broken_is_named_with_a_way_out(tmp_path: Path, amqp_url: str, postgres_url: str) -> None:
    async with enrolled(tmp_path, amqp_url, postgres_url) as (_, settings):
        proxy = CuttingProxy("127.0.0.1", 5672)
        await proxy.start()
        nobody = proxy.port
        await proxy.close()
        there = settings.model_copy(
            update={
                "amqp_url": f"amqp://guest:guest@127.0.0.1:{nobody}/",
                "datasets": {"*": settings.datasets["*"].model_copy(update={"path": str(tmp_path / "none.csv")})},
            }
        )
        trial = await carry_out(there)
        found = {finding.name: finding for finding in trial.findings}
        assert found["connection"].code == "NO_CONNECTION"
        assert found["login"].state == "failed"
        assert found["data"].code == "DATA_MISSING"
        assert found["line"].state == found["clock"].state == "skipped"
        assert found["training"].state == "ok", "one fault does not hide the rest"
        assert not trial.passed
        assert trial.sent == ()
        text = "\n".join(lines(trial))
        for finding in trial.findings:
            assert finding.code is None or finding.advice in text


async def test_a_running_connector_is_not_disturbed(tmp_path: Path, amqp_url: str, postgres_url: str) -> None:
    async with enrolled(tmp_path, amqp_url, postgres_url) as (simulation, _):
        second = simulation.sites["south"].site_id
        running = ConnectorSettings.load(simulation.files.directory / "sites" / second / "connector.yaml")
        with pytest.raises(ConfigurationError, match="in use by another connector"):
            await carry_out(running)
