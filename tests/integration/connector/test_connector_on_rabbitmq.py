"""The connector against a real RabbitMQ: a whole window, a broken connection, and kill -9 at every stage."""

import asyncio
import hashlib
import signal
from uuid import uuid4

import pytest
from connector_on_broker import BrokerWorld
from connector_session import Session
from connector_world import PATIENCE_S, STUDY

from cohortium_messages.governance import GrantGiven
from cohortium_messages.ids import RunId
from cohortium_messages.secure_sum import Echo, Ready, ReceiptAsked, Unmask, UploadHeader
from cohortium_messages.study import Study
from cohortium_protocol.codec import codec_for
from cohortium_protocol.opening import check_vector

pytestmark = pytest.mark.real
NOISE = {**STUDY, "name": "noise", "recipe": {"trainer": "benchmark.noise", "parameters": 200_000}}


async def test_a_window_goes_its_whole_way(world: BrokerWorld) -> None:
    async with world.running():
        await world.enrol()
        await world.offer()
        await world.expect(GrantGiven)
        session = Session(world, world.params(), world.manifest())
        await session.up_to_unmask()
        await session.close()
        await world.reaches(session.params.window_id, "DONE")
        session.never_both()
        assert await world.dead() == []


async def test_the_queues_may_come_later_than_the_connector(world: BrokerWorld) -> None:
    await world.bus.delete(_site_queues(world))
    async with world.running():
        await asyncio.sleep(0.5)
        await world.declare()
        await world.enrol()
        await world.offer()
        await world.expect(GrantGiven)


def _site_queues(world: BrokerWorld):  # type: ignore[no-untyped-def]
    from cohortium_messages.topology import Topology, site_topology

    return Topology((), site_topology(world.site_id).queues)


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_kill_9_at_every_stage_and_the_window_is_finished(world: BrokerWorld) -> None:
    """A process of its own, killed as a power cut would: nothing is lost, nothing goes out in two versions (R1)."""
    world.study = Study.model_validate(NOISE)
    world.run_id = RunId(str(uuid4()))
    policy = {"approvals": "listed", "approved_studies": [world.study.digest().hex()]}
    config = world.write_config(policy=policy, trainer={"isolation": "warn"})

    async def killed_and_started() -> None:
        await world.kill_process()
        await world.start_process(config)

    await world.start_process(config)
    await world.enrol()
    await world.offer()
    await world.expect(GrantGiven)
    session = Session(world, world.update_params(world.model(0)[0]), world.manifest())
    await world.open(session.params)
    await world.give_model(0, chunk_bytes=65536, only=[0, 1])
    await killed_and_started()
    await world.give_model(0, chunk_bytes=65536)
    world.kill_after_chunks = 5
    await session.fix_roster()
    header = await session.collect()
    assert world.process is not None
    assert await asyncio.wait_for(world.process.wait(), PATIENCE_S) == -signal.SIGKILL
    await world.start_process(config)
    await world.expect(ReceiptAsked)
    await world.say("aggregator", session.receipt_for(world.chunks(session.params.window_id)))
    await session.receipt()
    plan = codec_for(session.params.vector, session.view.n).plan
    chunks = world.chunks(session.params.window_id)
    check_vector(header, [hashlib.sha256(chunks[number]).digest() for number in sorted(chunks)], plan)
    await killed_and_started()
    await world.say("aggregator", session.show())
    echo = await world.expect(Echo)
    await killed_and_started()
    await world.say("aggregator", session.certify([echo, *session.others()]))
    await world.expect(Unmask)
    await killed_and_started()
    await session.close()
    later = world.update_params(world.model(0)[0], round=2)
    await world.open(later)
    ready = await world.expect(Ready)
    while ready.window_id != later.window_id:  # what left just before a kill may leave again after it
        assert ready.window_id == session.params.window_id
        ready = await world.expect(Ready)
    session.never_both()
    for kind in (UploadHeader, Echo):
        assert len({message.model_dump_json() for message in world.all(kind)}) == 1
