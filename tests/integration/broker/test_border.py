"""What a site can and cannot do at a broker that asks enrolment. Everything refused is on record."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aio_pika
import httpx
import pytest
from broker_world import FEDERATION, NAMESPACE, GuardedBroker, GuardedWorld, Hospital, hello, take
from fastapi import FastAPI
from fastapi.responses import PlainTextResponse

from cohortium_cli.pki import key_pem, make_authority, make_server, pem
from cohortium_enrolment.store import pass_table
from cohortium_kit.amqp import RabbitBus
from cohortium_kit.db import Tx
from cohortium_kit.errors import AccessRefused, BrokerUnavailable, BusError, Refused
from cohortium_kit.http import serve, server_context
from cohortium_messages.events import BrokerRefusal
from cohortium_messages.ids import SiteId
from cohortium_messages.topology import (
    bulk_queue,
    chunk_key,
    control_queue,
    inbox,
    results_queue,
    site_topology,
    steps_key,
    uplink_key,
)
from cohortium_protocol.logins import Audience

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]


async def refused_login(world: GuardedWorld, url: str) -> None:
    with pytest.raises((AccessRefused, BrokerUnavailable)) as caught:
        async with world.bus(url):
            pass
    assert isinstance(caught.value, AccessRefused), caught.value


async def test_a_site_may_do_its_part(guarded: GuardedWorld) -> None:
    site = await guarded.hospital("Cleveland")
    me = site.site_id
    async with guarded.bus(guarded.address(site), user_id=me) as bus:
        services = [
            uplink_key(me, name) for name in ("enrolment", "consent", "scheduler", "aggregator", "audit", "presence")
        ]
        for key in (*services, chunk_key(me, 0), chunk_key(me, 1), steps_key(me, 1)):
            await bus.publish(hello(key))
        for queue in (control_queue(me), bulk_queue(me), results_queue(me)):
            await (await bus.consume(queue, take, prefetch=1)).cancel()


async def test_a_site_may_do_nothing_else_and_every_try_is_on_record(guarded: GuardedWorld) -> None:
    site, other = await guarded.hospital("Cleveland"), await guarded.hospital("Budapest")
    me, they = site.site_id, other.site_id
    async with guarded.bus(guarded.address(site), user_id=me) as bus:
        for key in (
            uplink_key(they, "scheduler"),
            f"site.{me}x.scheduler",
            f"site.{me}.operator",
            "#",
            chunk_key(they, 0),
        ):
            with pytest.raises(AccessRefused):
                await bus.publish(hello(key))
        await guarded.refused("KEY_FORBIDDEN", site)
        for exchange, key in (
            ("services", "scheduler"),
            ("tasks", control_queue(they)),
            ("events", "-.cohortium.audit.fault_seen.v1"),
            ("dead", "sites"),
        ):
            with pytest.raises(AccessRefused):
                await bus.publish(hello(key, exchange))
        await guarded.refused("EXCHANGE_FORBIDDEN", site)
        for queue in (
            control_queue(they),
            bulk_queue(they),
            results_queue(they),
            inbox("scheduler"),
            "chunks.0",
            "sites.dead",
        ):
            with pytest.raises(AccessRefused):
                await bus.consume(queue, take, prefetch=1)
        await guarded.refused("QUEUE_FORBIDDEN", site)
        with pytest.raises(BusError):
            await bus.declare(site_topology(SiteId("33333333-3333-4333-8333-333333333333")))
        await guarded.refused("DECLARE_FORBIDDEN", site)


async def test_the_default_exchange_and_another_senders_name_are_closed(guarded: GuardedWorld) -> None:
    site, other = await guarded.hospital("Cleveland"), await guarded.hospital("Budapest")
    async with guarded.bus(guarded.address(site)) as bus:
        channel = await (await bus._out.connection()).channel()
        queue = f"{NAMESPACE}.{control_queue(other.site_id)}"
        with pytest.raises(Exception, match="ACCESS_REFUSED"):
            await channel.default_exchange.publish(aio_pika.Message(b"{}"), queue, timeout=10)
        await guarded.refused("EXCHANGE_FORBIDDEN", site)
    async with guarded.bus(guarded.address(site), user_id=other.site_id) as liar:
        await guarded.log_is_heard()
        with pytest.raises(Refused):
            await liar.publish(hello(uplink_key(site.site_id, "scheduler")))
        await guarded.refused("SENDER_FORGED", site)


async def test_an_oversized_message_is_refused(guarded: GuardedWorld) -> None:
    site = await guarded.hospital("Cleveland")
    async with guarded.bus(guarded.address(site), user_id=site.site_id) as bus:
        await guarded.log_is_heard()
        with pytest.raises(Refused):
            await bus.publish(hello(uplink_key(site.site_id, "scheduler"), body=bytes((4 << 20) + 1)))
        await guarded.refused("MESSAGE_TOO_LARGE", site)
        await bus.publish(hello(uplink_key(site.site_id, "scheduler"), body=bytes(4 << 20)))


class TestLogins:
    @pytest.mark.parametrize(
        ("code", "changes"),
        [
            ("LOGIN_ENDED", {"since": -700, "seconds": 600}),
            ("LOGIN_EARLY", {"since": 400}),
            ("LOGIN_TOO_LONG", {"seconds": 3601}),
            ("LOGIN_BAD_PROOF", {"audience": Audience("other.example", NAMESPACE)}),
            ("LOGIN_BAD_PROOF", {"audience": Audience(FEDERATION, "other")}),
            ("LOGIN_BAD_PROOF", {"site": SiteId("33333333-3333-4333-8333-333333333333")}),
        ],
    )
    async def test_a_statement_that_does_not_hold(
        self, guarded: GuardedWorld, code: str, changes: dict[str, object]
    ) -> None:
        site = await guarded.hospital("Cleveland")
        await refused_login(guarded, guarded.address(site, site.password(**changes)))  # type: ignore[arg-type]
        await guarded.refused(code, site)

    async def test_clocks_may_differ_by_five_minutes(self, guarded: GuardedWorld) -> None:
        site = await guarded.hospital("Cleveland")
        for since in (-290, 290):
            async with guarded.bus(guarded.address(site, site.password(since=since, seconds=3600))):
                pass

    async def test_another_sites_statement_a_word_and_a_stranger(self, guarded: GuardedWorld) -> None:
        site, other = await guarded.hospital("Cleveland"), await guarded.hospital("Budapest")
        await refused_login(guarded, guarded.address(site, other.password()))
        await guarded.refused("LOGIN_BAD_PROOF", site)
        await refused_login(guarded, guarded.address(site, "a-word"))
        await guarded.refused("LOGIN_MALFORMED", site)
        for name in ("33333333-3333-4333-8333-333333333333", "admin", "enrolment"):
            await refused_login(guarded, guarded.broker.url(name, other.password()))
        await guarded.refused("SITE_UNKNOWN", None)

    async def test_an_older_statement_is_good_until_a_newer_one_has_taken_its_place(
        self, guarded: GuardedWorld
    ) -> None:
        site = await guarded.hospital("Cleveland")
        older, newer = site.password(since=-20), site.password()
        for password in (older, older, newer, older):  # the last one in the overlap
            async with guarded.bus(guarded.address(site, password)):
                pass
        await guarded.db.run("test_age", _a_minute_passes)
        await refused_login(guarded, guarded.address(site, older))
        await guarded.refused("LOGIN_RETIRED", site)
        async with guarded.bus(guarded.address(site, newer)):
            pass

    async def test_bad_logins_by_the_hundred_are_few_events(self, guarded: GuardedWorld) -> None:
        site = await guarded.hospital("Cleveland")
        for _ in range(200):
            assert await guarded.app.gate.border.login(site.site_id, "x") is None
        await guarded.refused("LOGIN_MALFORMED", site)
        events = [one for one in await guarded.recorded(BrokerRefusal) if isinstance(one, BrokerRefusal)]
        assert len([one for one in events if one.code == "LOGIN_MALFORMED"]) <= 2


class TestInvited:
    async def test_it_may_register_and_nothing_else(self, guarded: GuardedWorld) -> None:
        site = await guarded.invite("Cleveland")
        me = site.site_id
        async with guarded.bus(guarded.address(site), user_id=me) as bus:
            await bus.publish(hello(uplink_key(me, "enrolment")))
            await (await bus.consume(control_queue(me), take, prefetch=1)).cancel()
            with pytest.raises(AccessRefused):
                await bus.publish(hello(uplink_key(me, "scheduler")))
            with pytest.raises(AccessRefused):
                await bus.consume(bulk_queue(me), take, prefetch=1)
        await guarded.refused("KEY_FORBIDDEN", site)

    async def test_without_the_token_it_is_nobody(self, guarded: GuardedWorld) -> None:
        site = await guarded.invite("Cleveland")
        for token in (None, "x" * 43):
            await refused_login(guarded, guarded.address(site, Hospital(site.site_id, site.key, token).password()))
        await guarded.refused("LOGIN_BAD_PROOF", site)


class TestTls:
    async def test_plain_text_does_not_get_in(self, guarded: GuardedWorld) -> None:
        site = await guarded.hospital("Cleveland")
        plain = guarded.address(site).replace("amqps://", "amqp://").partition("?")[0]
        await guarded.log_is_heard()
        with pytest.raises(BrokerUnavailable):
            async with guarded.bus(plain):
                pass
        await guarded.refused("TLS_REFUSED", None)

    async def test_an_older_tls_does_not_get_in(self, guarded: GuardedWorld) -> None:
        context = ssl.create_default_context(cafile=str(guarded.broker.folder / "ca.crt"))
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        with pytest.raises(ssl.SSLError, match="PROTOCOL_VERSION"):
            await asyncio.open_connection("localhost", guarded.broker.tls_port, ssl=context)

    @pytest.mark.parametrize("wrong", [{"host": "127.0.0.1"}, {"ca": "stranger.crt"}], ids=["name", "authority"])
    async def test_a_certificate_that_is_not_the_brokers(
        self, guarded_broker: GuardedBroker, wrong: dict[str, str]
    ) -> None:
        url = guarded_broker.url("scheduler", guarded_broker.passwords["scheduler"], **wrong)
        bus = RabbitBus(url, NAMESPACE, connection_name="test")
        with pytest.raises(BrokerUnavailable, match="certificate"):
            await bus.connect()
        await bus.close()


class TestWhoAnswersTheBroker:
    @contextlib.asynccontextmanager
    async def answering_allow(self, broker: GuardedBroker, tmp_path: Path, authority: Any) -> AsyncIterator[list[str]]:
        """Somebody in enrolment's place who lets everybody in, with a certificate of this authority for its name."""
        certificate, key = make_server(*authority, ["localhost"], datetime.now(UTC))
        (tmp_path / "tls.crt").write_text(pem(certificate))
        (tmp_path / "tls.key").write_text(key_pem(key))
        (tmp_path / "tls.key").chmod(0o600)
        asked: list[str] = []
        app = FastAPI()

        @app.post("/broker/{question}")
        async def answer(question: str) -> PlainTextResponse:
            asked.append(question)
            return PlainTextResponse("allow")

        stop, tls = asyncio.Event(), server_context(tmp_path / "tls.crt", tmp_path / "tls.key")
        up: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        serving = asyncio.create_task(serve(app, "127.0.0.1", broker.auth_port, stop, on_port=up.set_result, tls=tls))
        try:
            await up
            yield asked
        finally:
            stop.set()
            await serving

    async def test_another_authoritys_enrolment_is_not_believed(
        self, guarded_broker: GuardedBroker, tmp_path: Path
    ) -> None:
        name = "33333333-3333-4333-8333-333333333333"
        bus = RabbitBus(guarded_broker.url(name, "x"), NAMESPACE, connection_name="test")
        async with self.answering_allow(
            guarded_broker, tmp_path, make_authority("stranger.example", datetime.now(UTC))
        ) as asked:
            with pytest.raises((AccessRefused, BrokerUnavailable)):
                await bus.connect()
            await bus.close()
            assert asked == [], "the broker hung up before it said anything"
        bus = RabbitBus(guarded_broker.url(name, "x"), NAMESPACE, connection_name="test")
        async with self.answering_allow(guarded_broker, tmp_path, guarded_broker.authority) as asked:
            await bus.connect()
            await bus.close()
            assert "user" in asked, "with the right certificate it would have been let in"

    async def test_management_is_not_to_be_had_in_the_clear(self, guarded_broker: GuardedBroker) -> None:
        async with httpx.AsyncClient(trust_env=False) as client:
            with pytest.raises(httpx.TransportError):
                await client.get(f"http://127.0.0.1:{guarded_broker.management_port}/api/overview")


async def _a_minute_passes(tx: Tx) -> None:
    """Every pass was first seen a minute and more ago."""
    await tx.execute(pass_table.update().values(first_seen=pass_table.c.first_seen - 61))
