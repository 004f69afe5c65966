"""Strict sessions as they run: on the in-memory bus with SQLite, and on RabbitMQ with PostgreSQL.

On real parts the aggregator is a process of its own, and killed means SIGKILL.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
from aggregator_world import World
from live import PATIENCE_S, Live, write_config
from live_strict import SessionOver, StrictLive, course, vector
from strict_world import ROUNDS, TREES, Training, spec_of

from cohortium_aggregator.store import runs
from cohortium_aggregator.store.rounds import round_count
from cohortium_kit.amqp import RabbitBus
from cohortium_kit.bus import Bus
from cohortium_kit.clock import SystemClock
from cohortium_kit.db import Database
from cohortium_kit.envelopes import Sender
from cohortium_kit.memory import MemoryBroker, MemoryBus
from cohortium_kit.migrate import drop_schema
from cohortium_messages.events import StrictSessionSummed
from cohortium_messages.governance import GrantEnded
from cohortium_messages.ids import RunId, StudyId
from cohortium_messages.runs import RunStarted, SessionClosed
from cohortium_messages.topology import SERVICES, platform_topology, site_topology
from cohortium_protocol.parameters import model_hash
from cohortium_protocol.signing import EnvelopeSigner, service_key_id
from cohortium_protocol.strict.session import Answer
from cohortium_protocol.trees.text import check_model_text

QUICK: dict[str, Any] = TREES | {
    "federation": TREES["federation"] | {"deadlines": TREES["federation"]["deadlines"] | {"step_s": 5, "upload_s": 20}}
}


@pytest.fixture(params=["embedded", "real"])
async def strict(request: pytest.FixtureRequest, tmp_path: Path, namespace: str) -> AsyncIterator[StrictLive]:
    clock = SystemClock()
    more: dict[str, Any] = {"tick_s": 0.02, "session_lease_s": 4}
    if request.param == "embedded":
        broker = MemoryBroker(clock)

        def make_bus() -> Bus:
            return MemoryBus(broker, namespace)
    else:
        amqp_url: str = request.getfixturevalue("amqp_url")
        more |= {"database_url": request.getfixturevalue("postgres_url"), "schema": namespace}
        more |= {"amqp_url": amqp_url, "namespace": namespace}

        def make_bus() -> Bus:
            return RabbitBus(amqp_url, namespace, connection_name="test")

    bus = make_bus()
    await bus.connect()
    await bus.declare(platform_topology())
    world = await World.of(tmp_path, study=QUICK, clock=clock, make_bus=make_bus, **more)
    live = Live(world, bus)
    await live.listen()
    if request.param == "real":
        live.config = write_config(world, tmp_path / "aggregator.yaml")
    await live.start()
    strict = StrictLive(live)
    await strict.listen()
    yield strict
    await live.finish()
    await world.close()
    for site in world.identities:
        await bus.delete(site_topology(site))
    await bus.delete(platform_topology())
    await bus.close()
    if request.param == "real":
        database = Database(more["database_url"], schema=namespace)
        await drop_schema(database)
        await database.close()


async def kept(strict: StrictLive, count: int) -> None:
    """Return when so many rounds of the run are on record, which steps do not wait for."""
    settings = strict.live.world.settings
    database = Database(settings.database_url, schema=settings.db_schema)
    try:
        async with asyncio.timeout(PATIENCE_S):
            while True:
                async with database.reading("rounds") as tx:
                    if await round_count(tx, strict.live.world.run_id) >= count:
                        return
                await asyncio.sleep(0.02)
    finally:
        await database.close()


async def check_model(strict: StrictLive, closed: SessionClosed, rounds: int) -> None:
    """The file of the released version is what its hash says, and holds these trees."""
    world = strict.live.world
    assert closed.model is not None
    database = Database(world.settings.database_url, schema=world.settings.db_schema)
    async with database.reading("version") as tx:
        version = await runs.find_version(tx, closed.run_id, closed.model.version)
    await database.close()
    assert version is not None
    path = world.settings.data_dir / "models" / closed.run_id / str(closed.model.version) / "model.txt"
    text = path.read_bytes()
    assert model_hash(hashlib.sha256(text).digest(), version.preprocessing.canonical()) == closed.model.model_hash
    names = ("age", "pressure", "ward")
    model = check_model_text(text, features=names, classes=1, max_trees=ROUNDS, max_leaves=4, objective="binary")
    assert [list(one.leaf_value) for one in model.trees] == [[-0.125 * k, 0.25 * k] for k in range(1, rounds + 1)]


def check_sums(training: Training, found: dict[int, Any]) -> None:
    """Every site was shown the same, and the sums are right."""
    wanted = sum(vector(index) for index in training.indices)
    for answers in found.values():
        assert not isinstance(answers, BaseException), answers
        assert [answer.payload for answer in answers] == [answer.payload for answer in found[1]]
    sums: list[Answer] = [answer for answer in found[1] if answer.kind == 1]
    assert sums
    assert all(np.array_equal(answer.values(), wanted) for answer in sums)


@pytest.mark.real
async def test_a_session_from_its_roster_to_the_released_text(strict: StrictLive) -> None:
    training = await strict.open(await strict.bins())
    found = await strict.run_all(training, course(range(1, ROUNDS + 1), best=ROUNDS))
    check_sums(training, found)
    closed = await strict.closed(training.window)
    assert (closed.state, closed.trees, closed.steps, closed.dropped) == ("RELEASED", ROUNDS, 11, ())
    await check_model(strict, closed, ROUNDS)


@pytest.mark.real
async def test_a_silent_site_pauses_the_session_and_another_one_goes_on(strict: StrictLive) -> None:
    first = await strict.open(await strict.bins())
    whole, part = course(range(1, ROUNDS + 1), best=ROUNDS), course(range(1, 3))[:6]
    tasks = [strict.run_site(first, index, part if index == 2 else whole) for index in first.indices]
    found = await asyncio.gather(*tasks, return_exceptions=True)
    assert [isinstance(one, SessionOver) for one in found] == [True, False, True, True]
    paused = await strict.closed(first.window)
    assert (paused.state, paused.reason, paused.trees) == ("PAUSED", "SITE_SILENT", 1)
    assert paused.dropped == (first.window.sites[2].site_id,)
    assert paused.model is not None
    assert paused.chain is not None
    await check_model(strict, paused, 1)
    second = await strict.open(paused.model, spec_of(strict.live.world, 1, paused.chain))
    check_sums(second, await strict.run_all(second, course(range(2, ROUNDS + 1), best=ROUNDS)))
    closed = await strict.closed(second.window)
    assert (closed.state, closed.trees) == ("RELEASED", ROUNDS)
    await check_model(strict, closed, ROUNDS)


@pytest.mark.real
async def test_two_sessions_at_once(strict: StrictLive) -> None:
    world = strict.live.world
    first = await strict.open(await strict.bins())
    world.run_id = RunId(str(uuid4()))
    started = RunStarted(
        run_id=world.run_id, study=world.study, study_digest=world.study.digest(), manifest=world.manifest
    )
    signer = EnvelopeSigner(service_key_id("scheduler"), world.keys["scheduler"])
    await strict.live.bus.publish(
        Sender("/scheduler", signer, world.clock).outgoing(SERVICES.name, "aggregator", started)
    )
    second = await strict.open(await strict.bins())
    found = await asyncio.gather(
        strict.run_all(first, course(range(1, ROUNDS + 1), best=1)),
        strict.run_all(second, course(range(1, ROUNDS + 1), best=ROUNDS)),
    )
    for training, of_one, rounds in zip((first, second), found, (1, ROUNDS), strict=True):
        check_sums(training, of_one)
        closed = await strict.closed(training.window)
        assert closed.state == "RELEASED"
        await check_model(strict, closed, rounds)


@pytest.mark.real
async def test_an_aggregator_that_is_killed_costs_no_tree(strict: StrictLive) -> None:
    """Embedded it is told to stop, for there is no process to kill; what is on record is the same."""
    live = strict.live
    first = await strict.open(await strict.bins())
    unending = [*course(range(1, 3)), *[course(range(1, 2))[1]] * 10_000]
    stepping = asyncio.create_task(strict.run_all(first, unending))
    await strict.reached(first, 9)
    await kept(strict, 2)
    if live.process is not None:
        await live.kill()
    else:
        await live.finish()
        await live.world.restart()
        await live.start()
    found = await asyncio.wait_for(stepping, PATIENCE_S)
    assert {type(one) for one in found.values()} == {SessionOver}
    paused = await strict.closed(first.window)
    assert (paused.state, paused.reason) == ("PAUSED", "SESSION_LOST")
    assert paused.trees == 2
    assert paused.model is not None
    assert paused.chain is not None
    await check_model(strict, paused, paused.trees)
    second = await strict.open(paused.model, spec_of(live.world, paused.trees, paused.chain))
    left = course(range(paused.trees + 1, ROUNDS + 1), best=ROUNDS)
    check_sums(second, await strict.run_all(second, left))
    closed = await strict.closed(second.window)
    assert (closed.state, closed.trees) == ("RELEASED", ROUNDS)
    await check_model(strict, closed, ROUNDS)


@pytest.mark.real
@pytest.mark.parametrize("strict", ["real"], indirect=True)
async def test_another_aggregator_takes_over_and_the_run_goes_on(strict: StrictLive, tmp_path: Path) -> None:
    """It is given the queue of steps when the first one dies; the memory of the first is not to be had."""
    live = strict.live
    assert live.process is not None
    settings = live.world.settings.model_copy(update={"data_dir": tmp_path / "other"})
    config = write_config(live.world, tmp_path / "other.yaml")
    config.write_text(config.read_text().replace(str(live.world.settings.data_dir), str(settings.data_dir)))
    first = await strict.open(await strict.bins())
    other = Live(live.world, live.bus, config=config)
    await other.start()
    try:
        unending = [*course(range(1, 3)), *[course(range(1, 2))[1]] * 10_000]
        await asyncio.sleep(3)  # the other one is waiting for the queue by now
        stepping = asyncio.create_task(strict.run_all(first, unending))
        await strict.reached(first, 12)
        live.process.kill()
        await live.process.wait()
        found = await asyncio.wait_for(stepping, PATIENCE_S)
        assert {type(one) for one in found.values()} == {SessionOver}
        paused = await strict.closed(first.window)
        assert (paused.state, paused.reason) == ("PAUSED", "SESSION_LOST")
        assert paused.model is not None
        assert paused.chain is not None
        second = await strict.open(paused.model, spec_of(live.world, paused.trees or 0, paused.chain))
        left = course(range((paused.trees or 0) + 1, ROUNDS + 1), best=ROUNDS)
        check_sums(second, await strict.run_all(second, left))
        assert (await strict.closed(second.window)).state == "RELEASED"
    finally:
        live.process = other.process  # which the fixture tells to stop


@pytest.mark.real
async def test_the_log_is_told_of_every_session(strict: StrictLive) -> None:
    live = strict.live
    training = await strict.open(await strict.bins())
    await strict.run_all(training, course(range(1, 2), best=1))
    closed = await strict.closed(training.window)
    for _ in range(500):
        delivery = await live.bus.get("audit.inbox")
        if delivery is not None and delivery.type == StrictSessionSummed.type_name:
            break
        if delivery is None:
            await asyncio.sleep(0.01)
    else:
        pytest.fail("no event of the session")
    assert delivery is not None
    assert closed.chain is not None
    assert closed.chain.hex().encode() in delivery.body


@pytest.mark.real
async def test_a_withdrawn_grant_ends_the_session_at_once(strict: StrictLive) -> None:
    live, world = strict.live, strict.live.world
    training = await strict.open(await strict.bins())
    unending = [*course(range(1, 2)), *[course(range(1, 2))[1]] * 10_000]
    stepping = asyncio.create_task(strict.run_all(training, unending))
    await strict.reached(training, 6)
    await kept(strict, 1)
    site = training.window.sites[2].site_id
    ended = GrantEnded(
        site_id=site, study_id=StudyId(world.study.name), study_digest=world.study.digest(), reason="GRANT_WITHDRAWN"
    )
    signer = EnvelopeSigner(service_key_id("consent"), world.keys["consent"])
    await live.bus.publish(Sender("/consent", signer, world.clock).outgoing(SERVICES.name, "aggregator", ended))
    closed = await strict.closed(training.window)
    assert (closed.state, closed.reason, closed.dropped, closed.trees) == ("PAUSED", "SITE_LEFT", (site,), 1)
    found = await asyncio.wait_for(stepping, PATIENCE_S)
    assert {type(one) for one in found.values()} == {SessionOver}
    last = max(session.step for session in training.sessions.values())
    await asyncio.sleep(0.5)
    assert max(session.step for session in training.sessions.values()) == last
