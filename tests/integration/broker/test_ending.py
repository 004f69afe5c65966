"""Logins that end while somebody is connected: renewed without a gap, or cut. Nothing passes afterwards."""

import asyncio
import dataclasses
import time
from datetime import timedelta
from typing import Any

import httpx
import pytest
from broker_world import NAMESPACE, VHOST, GuardedWorld, Hospital, hello, take

from cohortium_enrolment import reaper as reaper_module
from cohortium_enrolment.management import Management
from cohortium_kit.amqp import Login, RabbitBus
from cohortium_kit.bus import Ack, Delivery, Disposition
from cohortium_kit.errors import AccessRefused, BusError
from cohortium_kit.testing.servers import free_port
from cohortium_messages.topology import TASKS, control_queue, inbox, uplink_key
from governance_stage import eventually

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]


class Ear:
    """Counts what arrives, by the number in the message's id. With a key only what came under it: what other tests
    sent to a service is in its queue, too."""

    def __init__(self, key: str | None = None) -> None:
        self.key = key
        self.numbers: list[int] = []
        self.last = 0.0

    async def hear(self, delivery: Delivery) -> Disposition:
        if self.key in (None, delivery.routing_key):
            self.numbers.append(int(delivery.message_id.split("-")[1]))
            self.last = time.monotonic()
        return Ack()


async def listed(world: GuardedWorld, site: Hospital, count: int = 1) -> None:
    """Return when the broker's management lists the site's connections: it does so seconds late."""
    reaper = world.app.gate.reaper
    assert reaper is not None

    async def enough() -> bool:
        return sum(one.user == site.site_id for one in await reaper.management.connections()) >= count

    await eventually(enough)


async def gone(bus: RabbitBus) -> None:
    """Return when the bus has lost its connections."""

    async def lost() -> bool:
        return not (bus._out.live or bus._in.live)

    await eventually(lost, timeout_s=120)


async def test_a_login_is_renewed_under_traffic_and_nothing_is_lost(guarded: GuardedWorld) -> None:
    site = await guarded.hospital("Cleveland")
    me, made, total = site.site_id, [], 600

    def login() -> Login:
        now = asyncio.get_running_loop().time()
        if not made or now >= made[-1].renew_at:
            made.append(Login(guarded.address(site, site.password(since=len(made) - 60, seconds=900)), now + 2.0))
        return made[-1]

    up, down = Ear(uplink_key(me, "scheduler")), Ear()
    async with (
        guarded.bus(login, user_id=me) as bus,
        guarded.bus(guarded.broker.user("scheduler"), user_id="scheduler") as platform,
    ):
        bus._out._handover_s = bus._in._handover_s = 1.5
        await bus.consume(control_queue(me), down.hear, prefetch=8)
        await platform.consume(inbox("scheduler"), up.hear, prefetch=32)

        async def speak(speaker: RabbitBus, key: str, exchange: str) -> None:
            for number in range(total):
                await speaker.publish(hello(key, exchange, number=number))
                await asyncio.sleep(0.01)

        await asyncio.gather(
            speak(bus, uplink_key(me, "scheduler"), "uplink"), speak(platform, control_queue(me), TASKS.name)
        )

        async def all_there() -> bool:
            return len(set(up.numbers)) == total and len(set(down.numbers)) == total

        await eventually(all_there, timeout_s=120)
    assert len(made) >= 4, "the login was not renewed while there was traffic"
    # An answer that is not through when the old connection closes is given again: the inbox absorbs that. It is rare.
    assert len(up.numbers) <= total + 8
    assert len(down.numbers) <= total + 8


async def test_when_a_login_ends_its_connections_do(guarded: GuardedWorld) -> None:
    site = await guarded.hospital("Cleveland")
    me, heard = site.site_id, Ear()
    ends = time.monotonic() + 8
    url = guarded.address(site, site.password(seconds=8))
    async with guarded.bus(url, user_id=me) as bus, guarded.bus(guarded.broker.user("scheduler")) as platform:
        await bus.consume(control_queue(me), heard.hear, prefetch=8)
        await bus.publish(hello(uplink_key(me, "audit")))

        async def speak() -> None:
            for number in range(10_000):
                await platform.publish(hello(control_queue(me), TASKS.name, number=number))
                await asyncio.sleep(0.05)

        speaking = asyncio.create_task(speak())
        await gone(bus)
        cut_at = time.monotonic()
        await guarded.cut("LOGIN_ENDED", site)
        await asyncio.sleep(2)
        speaking.cancel()
        await asyncio.gather(speaking, return_exceptions=True)
        assert heard.numbers, "nothing was heard before the end"
        assert heard.last <= cut_at
        assert cut_at >= ends - 1, "cut before the end"
        with pytest.raises(AccessRefused):
            await bus.publish(hello(uplink_key(me, "audit")))
    await guarded.refused("LOGIN_ENDED", site)


async def test_revocation_cuts_what_is_open_and_what_is_dialled(guarded: GuardedWorld) -> None:
    site, other = await guarded.hospital("Cleveland"), await guarded.hospital("Budapest")
    async with (
        guarded.bus(guarded.address(site), user_id=site.site_id) as bus,
        guarded.bus(guarded.address(other), user_id=other.site_id) as untouched,
    ):
        await bus.consume(control_queue(site.site_id), take, prefetch=1)
        await listed(guarded, site, 2)
        await guarded.revoke(site.site_id)
        await gone(bus)
        await guarded.cut("SITE_REVOKED", site)
        with pytest.raises(AccessRefused):
            await bus.publish(hello(uplink_key(site.site_id, "audit")))
        await guarded.refused("SITE_REVOKED", site)
        await untouched.publish(hello(uplink_key(other.site_id, "audit")))


async def test_a_connection_too_young_to_be_listed_is_cut_all_the_same(guarded: GuardedWorld) -> None:
    site = await guarded.hospital("Cleveland")
    async with guarded.bus(guarded.address(site), user_id=site.site_id) as bus:
        await guarded.revoke(site.site_id)
        await gone(bus)
    await guarded.cut("SITE_REVOKED", site)


async def test_a_stolen_older_login_is_cut_when_the_overlap_is_over(guarded: GuardedWorld) -> None:
    site = await guarded.hospital("Cleveland")
    gate = guarded.app.gate
    assert gate.reaper is not None
    gate.border.rules = gate.reaper.rules = dataclasses.replace(gate.border.rules, overlap=timedelta(seconds=3))
    stolen = site.password(since=-100)
    async with guarded.bus(guarded.address(site, stolen), user_id=site.site_id) as thief:
        await asyncio.sleep(3)  # what was opened within two seconds of the newer one might be that one's
        async with guarded.bus(guarded.address(site), user_id=site.site_id) as own:
            await gone(thief)
            await guarded.cut("LOGIN_RETIRED", site)
            assert own.connected
            await own.publish(hello(uplink_key(site.site_id, "audit")))


async def test_connections_and_channels_have_a_limit(guarded: GuardedWorld) -> None:
    site = await guarded.hospital("Cleveland")
    url = guarded.address(site)
    buses = [RabbitBus(url, NAMESPACE, connection_name=f"flood-{number}") for number in range(12)]
    try:
        await asyncio.gather(*[bus.connect() for bus in buses])
        await guarded.cut("TOO_MANY_CONNECTIONS", site)
    finally:
        await asyncio.gather(*[bus.close() for bus in buses])
    other = await guarded.hospital("Budapest")
    await guarded.log_is_heard()
    async with guarded.bus(guarded.address(other)) as bus:
        connection = await bus._out.connection()
        # aiormq says in several ways that the broker closed the connection.
        opened = await asyncio.gather(*[connection.channel() for _ in range(80)], return_exceptions=True)
        assert sum(isinstance(one, BaseException) for one in opened) >= 16
    # The line of the log quotes the connection's name, which the other side chose: so nobody is named.
    await guarded.refused("CHANNELS_TOO_MANY", None)


async def test_the_broker_is_where_it_says(guarded: GuardedWorld) -> None:
    assert VHOST == "cohortium"
    assert guarded.app.gate.border.vhost == VHOST
    site = await guarded.hospital("Cleveland")
    with pytest.raises(BusError):
        async with guarded.bus(guarded.address(site).replace(f"/{VHOST}?", "/%2F?")):
            pass


async def test_a_revocation_that_ends_nothing_is_told_where_the_management_interface_is_away(
    guarded: GuardedWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reaper_module, "LOOK_LIMIT_S", 1.0)
    reaper, app = guarded.app.gate.reaper, guarded.app
    assert reaper is not None

    def gauge() -> float:
        return app.db.metrics.registry.get_sample_value("cohortium_connections_unlooked_seconds") or 0.0

    transport = httpx.ASGITransport(app=app.http)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:

        async def readiness() -> dict[str, Any]:
            answer = await client.get("/readyz")
            assert answer.status_code == 200, "it serves: no balancer shall take it away"
            found: dict[str, Any] = answer.json()
            return found

        async def told() -> bool:
            return "connections" in (await readiness()).get("degraded", {})

        async def well() -> bool:
            return (await readiness())["status"] == "ready"

        site = await guarded.hospital("Cleveland")
        async with guarded.bus(guarded.address(site)) as bus:
            await listed(guarded, site)
            await eventually(well)
            working = reaper.management
            async with Management(f"http://reaper:x@127.0.0.1:{free_port()}") as closed:
                reaper.management = closed
                await guarded.revoke(site.site_id)
                await eventually(told)
                assert "its management interface" in (await readiness())["degraded"]["connections"]
                waited_s = gauge()
                assert waited_s > 1.0
                assert bus.connected, "the fault that is told of: a revoked site is connected still"
            reaper.management = working
            await gone(bus)
            await eventually(well)
            assert gauge() < waited_s
