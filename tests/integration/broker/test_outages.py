"""Faults of the guarded broker and of what it asks: who may not come in does not, and who may comes back by itself."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from broker_world import NAMESPACE, GuardedWorld, Hospital, hello, take
from test_connector_at_the_broker import connector
from test_ending import gone, listed
from yarl import URL

from cohortium_connector.app import App
from cohortium_connector.store import site as site_store
from cohortium_enrolment import store
from cohortium_kit.amqp import RabbitBus
from cohortium_kit.clock import SystemClock
from cohortium_kit.errors import AccessRefused, BusError
from cohortium_kit.testing.proxy import CuttingProxy
from cohortium_messages.rights import Standing
from cohortium_messages.topology import control_queue, inbox, uplink_key
from governance_stage import eventually, running

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.timeout(300)]

OUTAGE_S = 12.0
"""Longer than the connector's login lasts."""
LONG_S = 150.0
"""A connector waits up to half a minute between two tries, and a broker takes some ten seconds to start."""


@contextlib.asynccontextmanager
async def at_work(world: GuardedWorld, folder: Path) -> AsyncIterator[tuple[App, Hospital]]:
    """A hospital's own connector, registered; its login is renewed every few seconds."""
    invitation = await world.invitation("Cleveland")
    app = await connector(world, folder, invitation)
    async with running(app):

        async def registered() -> bool:
            async with app.db.reading("test") as tx:
                record = await site_store.find_site(tx)
            return record is not None and record.registered

        await eventually(registered, timeout_s=LONG_S)
        yield app, Hospital(invitation.site_id, app.desk.identity.key)


async def logins(world: GuardedWorld, site: Hospital) -> int:
    """How many logins of this site, as an active one, were let in so far."""
    async with world.db.reading("test") as tx:
        return sum(one.standing is Standing.ACTIVE for one in await store.passes(tx, site.site_id))


async def comes_in_again(world: GuardedWorld, app: App, site: Hospital, before: int) -> None:
    async def again() -> bool:
        return app._bus.connected and await logins(world, site) > before

    await eventually(again, timeout_s=LONG_S)


async def is_shut_out(url: str) -> None:
    bus = RabbitBus(url, NAMESPACE, connection_name="test")
    try:
        with pytest.raises(BusError):
            await bus.connect()
    finally:
        await bus.close()


async def test_a_login_that_has_to_be_renewed_while_enrolment_is_away(guarded: GuardedWorld, tmp_path: Path) -> None:
    other = await guarded.hospital("Budapest")
    async with at_work(guarded, tmp_path / "hospital") as (app, site):
        async with guarded.enrolment_away():
            before = await logins(guarded, site)
            await is_shut_out(guarded.address(other))
            await asyncio.sleep(OUTAGE_S)
            assert await logins(guarded, site) == before
        await comes_in_again(guarded, app, site, before)
    async with guarded.bus(guarded.address(other), user_id=other.site_id) as bus:
        await bus.publish(hello(uplink_key(other.site_id, "audit")))


async def test_a_broker_that_is_restarted_while_enrolment_is_away(guarded: GuardedWorld, tmp_path: Path) -> None:
    other = await guarded.hospital("Budapest")
    async with at_work(guarded, tmp_path / "hospital") as (app, site):
        before = await logins(guarded, site)
        async with guarded.enrolment_away():
            guarded.broker.rabbit.stop()
            guarded.broker.rabbit.start()
            await is_shut_out(guarded.address(other))
            async with guarded.bus(guarded.broker.user("scheduler")) as service:
                assert await service.queue_depth(inbox("scheduler")) >= 0, "services need nobody's word"
            assert not app._bus.connected, "a hospital came in, and nobody was asked"
        await comes_in_again(guarded, app, site, before)


@pytest.mark.parametrize("way", ["reset", "dead"])
async def test_a_site_that_is_revoked_while_its_line_is_cut(guarded: GuardedWorld, way: str) -> None:
    site = await guarded.hospital("Cleveland")
    line = CuttingProxy("127.0.0.1", guarded.broker.tls_port)
    await line.start()
    url = str(URL(guarded.address(site)).with_port(line.port))
    try:
        async with guarded.bus(url, user_id=site.site_id) as bus:
            await bus.consume(control_queue(site.site_id), take, prefetch=1)
            await listed(guarded, site, 2)
            (line.block if way == "reset" else line.freeze)()
            await guarded.revoke(site.site_id)
            if way == "dead":  # the broker knows of no cut: what is open there has to be closed
                await guarded.cut("SITE_REVOKED", site)
            (line.unblock if way == "reset" else line.thaw)()
            await gone(bus)
            with pytest.raises(AccessRefused):
                await bus.publish(hello(uplink_key(site.site_id, "audit")))
            await guarded.refused("SITE_REVOKED", site)
    finally:
        await line.close()


class SetClock(SystemClock):
    """A wall clock that somebody sets."""

    step = timedelta()

    def now(self) -> datetime:
        return super().now() + self.step


@pytest.mark.parametrize(("hours", "code"), [(2, "LOGIN_ENDED"), (-2, "LOGIN_EARLY")])
async def test_enrolments_clock_jumps_by_hours_and_is_set_right(guarded: GuardedWorld, hours: int, code: str) -> None:
    site = await guarded.hospital("Cleveland")
    gate, clock = guarded.app.gate, SetClock()
    assert gate.reaper is not None
    gate.border.clock = gate.reaper.clock = clock
    clock.step = timedelta(hours=hours)
    await is_shut_out(guarded.address(site))
    await guarded.refused(code, site)
    clock.step = timedelta()
    async with guarded.bus(guarded.address(site), user_id=site.site_id) as bus:
        await bus.publish(hello(uplink_key(site.site_id, "audit")))
