"""A hospital's grant ends by the calendar in the middle of a run; and a hospital whose clock is wrong."""

import asyncio
import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest
from tests.integration.simulation.noise import noise_plan, noise_study, started

from cohortium_kit.bus import Bus, Delivery, Disposition, Handler, Start, Subscription
from cohortium_kit.clock import SystemClock
from cohortium_messages.events import FaultSeen, GrantStarted, TaskDeclined, TaskTaken, UploadSealed, WindowEnded
from cohortium_messages.governance import Invitation
from cohortium_messages.oversight import Expired
from cohortium_messages.secure_sum import Roster
from cohortium_messages.status import RunStatus
from cohortium_sim import simulate
from cohortium_sim.plan import Plan, SiteTable
from cohortium_sim.simulate import Simulation
from cohortium_verify.verification import verify_bundle

pytestmark = [pytest.mark.torch, pytest.mark.slow, pytest.mark.timeout(400)]

LEAVER = "a"
GRANT_S = 240.0
"""The leaver's grant, from its signature on; the clock of all parts is set ahead to its end."""
DAY_S = 86_400.0
DEADLINES = {"ready_s": 60, "upload_s": 300, "echo_s": 60, "unmask_s": 60, "expire_s": 900}


class Waiting:
    """The leaver's bus: from its second roster on, a roster waits until the grant has ended. So the site has trained by
    then, and was about to send."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._rosters = 0
        self.ended = asyncio.Event()
        self.held = asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bus, name)

    async def consume(self, queue: str, handler: Handler, *, prefetch: int, start: Start | None = None) -> Subscription:
        async def late(delivery: Delivery) -> Disposition:
            if delivery.type == Roster.type_name:
                self._rosters += 1
                if self._rosters > 1:
                    self.held.set()
                    await self.ended.wait()
            return await handler(delivery)

        return await self._bus.consume(queue, late, prefetch=prefetch, start=start)


class Expiring(Simulation):
    """A simulation in one process in which one hospital grants for a few seconds only."""

    leaver: Waiting

    def _buses(self, make: Any) -> Any:
        def waiting(name: str) -> Bus:
            bus = make(name)
            if name != f"connector-{LEAVER}":
                return cast("Bus", bus)
            self.leaver = Waiting(bus)
            return cast("Bus", self.leaver)

        return waiting

    def _connector_config(self, site: SiteTable, invitation: Invitation) -> Path:
        self._site = site.name
        return super()._connector_config(site, invitation)

    def _policy(self) -> dict[str, Any]:
        short = {"grant_days": GRANT_S / DAY_S} if self._site == LEAVER else {}
        return {**super()._policy(), **short}


async def entries(simulation: Simulation, log: str) -> list[dict[str, Any]]:
    client = simulation.world.operator._clients["audit"]
    found = (await client.get(f"/logs/{log}/entries")).raise_for_status().text
    return [json.loads(line)["event"] for line in found.splitlines()]


def of(events: list[dict[str, Any]], kind: type[Any], **fields: Any) -> list[dict[str, Any]]:
    """Events of a type whose data have these fields."""
    found = [one for one in events if one["type"] == kind.type_name]
    return [one for one in found if all(one["data"].get(name) == value for name, value in fields.items())]


def verified(simulation: Simulation) -> None:
    report = verify_bundle(simulation.plan.out / "audit", list(simulation.files.trust.governance_keys))
    assert report.verified, report.text()


class Movable(SystemClock):
    """Everybody's clock, which can be set ahead."""

    by = timedelta(0)

    def now(self) -> datetime:
        return super().now() + self.by


async def others_have_sealed(simulation: Expiring, study: str, leaver: str) -> None:
    """All but the leaver have made their uploads for its newest task: the time that is set ahead is not theirs."""
    while True:
        events = await entries(simulation, study)
        window = of(events, TaskTaken, site_id=leaver)[-1]["data"]["window_id"]
        if len(of(events, UploadSealed, window_id=window)) == 3:
            return
        await asyncio.sleep(0.1)


async def run_over_the_end(simulation: Expiring, clock: Movable) -> tuple[str, RunStatus, datetime]:
    """A run during whose second window with the leaver its grant ends, and that moment."""
    study, site = simulation.plan.study.name, simulation.sites[LEAVER].site_id
    run_id = await simulation.submit()
    watching = asyncio.create_task(simulation.watch(run_id, None))
    try:
        await asyncio.wait_for(simulation.leaver.held.wait(), 200)
        await asyncio.wait_for(others_have_sealed(simulation, study, site), 100)
        (started_,) = of(await entries(simulation, study), GrantStarted, site_id=site)
        ends = datetime.fromisoformat(started_["data"]["not_after"])
        left = ends - clock.now()
        assert left > timedelta(0), "the machine is too slow for this test: the grant ended before a second window"
        clock.by += left + timedelta(seconds=1)
        simulation.leaver.ended.set()
        for _ in range(1000):
            if of(await entries(simulation, study), TaskDeclined, site_id=site):
                break
            await asyncio.sleep(0.1)
        clock.by += timedelta(seconds=DEADLINES["upload_s"]) - left  # nobody waits for its upload in vain
        return run_id, await watching, ends
    finally:
        watching.cancel()


@pytest.mark.parametrize("least", [3, 4])
async def test_a_grant_that_ends_in_a_run_stops_its_hospital_at_its_border(
    least: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it had trained stays at home, nothing more is read. Three others go on if the study lets them."""
    study = noise_study(3, 2_000, min_sites=least, deadlines=DEADLINES)
    clock = Movable()
    monkeypatch.setattr(simulate, "SystemClock", lambda: clock)
    async with started(noise_plan(tmp_path, study), Expiring) as simulation:
        assert isinstance(simulation, Expiring)
        run_id, status, ended = await run_over_the_end(simulation, clock)
        site = simulation.sites[LEAVER].site_id
        if least == 3:
            assert (status.state, status.reason) == ("FINISHED", "")
            assert set(status.rounds_done[-1].cohort) == {"b", "c", "d"}
        else:
            assert status.state == "FAILED"
        await simulation.fetch(run_id, status)
        verified(simulation)
        events = await entries(simulation, study.name)
        mine = [one for one in events if one["data"].get("site_id") == site]
        late = [one for one in mine if datetime.fromisoformat(one["time"]) >= ended]
        assert of(late, TaskTaken) == [], "before rows"
        assert of(late, UploadSealed) == [], "before the upload"
        ((told),) = of(events, Expired)
        assert (told["data"]["kind"], told["data"]["site_id"]) == ("grant", site)
        assert datetime.fromisoformat(told["data"]["ended_at"]) == ended
        declined = {one["data"]["code"] for one in of(late, TaskDeclined)}
        assert declined == {"GRANT_EXPIRED"}


class Shifted(SystemClock):
    """A clock that is wrong by as much at all times."""

    def __init__(self, by: timedelta) -> None:
        self._by = by

    def now(self) -> datetime:
        return super().now() + self._by


MINUTES = {"a": 10, "b": -4, "c": 4}
"""How far ahead these hospitals' clocks are. Five minutes are allowed."""


class Skewed(Simulation):
    """A simulation in one process in which some hospitals' clocks are wrong."""

    def __init__(self, plan: Plan, work: Path) -> None:
        super().__init__(plan, work)
        world: Any = self.world
        start = world.start_connector

        async def start_connector(name: str, config: Path) -> None:
            world._clock = Shifted(timedelta(minutes=MINUTES.get(name, 0)))
            await start(name, config)
            world._clock = self.clock

        world.start_connector = start_connector


async def test_a_hospitals_clock_may_be_five_minutes_off_and_the_log_shows_it(tmp_path: Path) -> None:
    """Its events bear its own time, the log keeps its own beside it. Further ahead, its grant has not begun for the
    others, who go on without it, and its clock is named in the platform's log."""
    study = noise_study(2, 2_000, deadlines=DEADLINES)
    async with started(noise_plan(tmp_path, study), Skewed) as simulation:
        run_id = await simulation.submit()
        status = await simulation.watch(run_id, None)
        assert (status.state, status.reason) == ("FINISHED", "")
        assert [set(done.cohort) for done in status.rounds_done] == [{"b", "c", "d"}] * 2
        await simulation.fetch(run_id, status)
        verified(simulation)
        platform, entered = await entries(simulation, "-"), await entries(simulation, study.name)
        ended = datetime.fromisoformat(of(entered, WindowEnded)[-1]["time"])
        for name, site in simulation.sites.items():
            minutes = MINUTES.get(name, 0)
            faults = of(platform, FaultSeen, key_id=f"site:{site.site_id}", code="CLOCK_AHEAD")
            assert bool(faults) == (minutes > 5)
            mine = [one for one in entered if one["source"].endswith(site.site_id)]
            assert mine
            if minutes <= 5:
                ahead = datetime.fromisoformat(mine[-1]["time"]) - ended
                assert abs(ahead - timedelta(minutes=minutes)) < timedelta(minutes=1), "the entry itself tells"
