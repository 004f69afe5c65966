"""The login for integrators at a strict broker: it reads the stream of entries, and that is all."""

import aio_pika
import pytest
from aiormq.exceptions import ChannelAccessRefused
from broker_world import NAMESPACE, GuardedBroker

from cohortium_audit.domain import LogName
from cohortium_audit.feed import outgoing
from cohortium_kit.amqp import RabbitBus, client_context
from cohortium_messages.topology import ENTRIES_STREAM, EXCHANGES, platform_topology

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]


async def ignore(_: object) -> None:
    """Nothing is ever delivered here."""


async def test_an_integrator_reads_entries_and_nothing_else(guarded_broker: GuardedBroker) -> None:
    audit = RabbitBus(guarded_broker.user("audit"), NAMESPACE, connection_name="audit")
    await audit.connect()
    await audit.publish(outgoing(LogName("heart-disease"), 0, b"{}"))
    await audit.close()
    url = guarded_broker.user("integrator")
    async with await aio_pika.connect(url, ssl_context=client_context(url)) as connection:
        async with connection.channel() as channel:
            await channel.set_qos(prefetch_count=1)
            stream = await channel.get_queue(f"{NAMESPACE}.{ENTRIES_STREAM}", ensure=False)
            async with stream.iterator(arguments={"x-stream-offset": "last"}, timeout=20) as messages:
                assert (await anext(messages)).headers["cohortium-index"] == "0"
        for queue in platform_topology().queues:
            if queue.name != ENTRIES_STREAM:
                async with connection.channel() as channel:
                    await channel.set_qos(prefetch_count=1)
                    other = await channel.get_queue(f"{NAMESPACE}.{queue.name}", ensure=False)
                    with pytest.raises(ChannelAccessRefused):
                        await other.consume(ignore)
        for exchange in (*(f"{NAMESPACE}.{one.name}" for one in EXCHANGES), ""):
            async with connection.channel() as channel:
                target = await channel.get_exchange(exchange, ensure=False) if exchange else channel.default_exchange
                with pytest.raises(ChannelAccessRefused):
                    await target.publish(aio_pika.Message(b""), f"{NAMESPACE}.{ENTRIES_STREAM}")
        async with connection.channel() as channel:
            with pytest.raises(ChannelAccessRefused):
                await channel.declare_queue("mine", exclusive=True)
