"""Strict sessions of a connector against a real RabbitMQ: a whole one, and one whose connections break all the time."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from connector_on_broker import BrokerWorld
from connector_strict import COURSE, TreesWorld, begun, until
from yarl import URL

from cohortium_kit.testing.proxy import CuttingProxy
from cohortium_messages.secure_sum import SessionLeft

pytestmark = pytest.mark.real


class BrokerTreesWorld(BrokerWorld, TreesWorld):
    """The played federation with a study of LightGBM, on RabbitMQ. The connector's way there can be cut."""

    def __init__(self, folder: Path, amqp_url: str, namespace: str) -> None:
        super().__init__(folder, amqp_url, namespace)
        address = URL(amqp_url)
        self.proxy = CuttingProxy(address.host or "127.0.0.1", address.port or 5672)

    async def start_proxy(self) -> None:
        await self.proxy.start()
        self.sites_url = str(URL(self.amqp_url).with_host("127.0.0.1").with_port(self.proxy.port))


@pytest.fixture
async def trees(tmp_path: Path, amqp_url: str, namespace: str) -> AsyncIterator[BrokerTreesWorld]:
    world = BrokerTreesWorld(tmp_path, amqp_url, namespace)
    await world.declare()
    await world.listen()
    await world.start_proxy()
    try:
        async with world.running():
            await world.join()
            yield world
    finally:
        await world.proxy.close()
        await world.remove()


async def test_a_session_goes_its_whole_way_over_rabbitmq(trees: BrokerTreesWorld) -> None:
    play = await begun(trees)
    await play.steps(len(COURSE))
    await until(lambda: len(trees.play.answers) == len(COURSE))
    await play.close()
    await trees.reaches(play.window_id, "DONE")
    play.one_content_each()
    assert await trees.dead() == []


async def test_a_connection_that_breaks_in_every_step_loses_nothing(trees: BrokerTreesWorld) -> None:
    """Cut before the step leaves, after it left, and before its result comes."""
    play = await begun(trees)
    for number in range(len(COURSE)):
        if number % 3 == 0:
            trees.proxy.cut()
        result = await play.gather()
        if number % 3 == 1:
            trees.proxy.cut()
        await play.tell(play.seal(result))
        if number % 3 == 2:
            trees.proxy.cut()
    await until(lambda: len(trees.play.answers) == len(COURSE))
    await play.close()
    await trees.reaches(play.window_id, "DONE")
    play.one_content_each()
    assert trees.all(SessionLeft) == []
