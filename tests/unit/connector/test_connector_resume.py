"""A connector that ends anywhere goes on from its spool, and never does twice what must be done once."""

import asyncio

import pytest
from connector_session import Session
from connector_world import World

from cohortium_connector.app import App
from cohortium_connector.domain.window_states import Spent
from cohortium_kit.bus import Outgoing
from cohortium_kit.errors import ConfigurationError
from cohortium_messages.envelope import CHUNK_CONTENT_TYPE
from cohortium_messages.governance import GrantGiven
from cohortium_messages.runs import ModelWanted
from cohortium_messages.secure_sum import Echo, Ready, ReceiptAsked, Unmask, UploadHeader
from cohortium_messages.study import Deadlines


async def enrolled(world: World) -> None:
    await world.start()
    await world.enrol()
    await world.offer()
    await world.expect(GrantGiven)


@pytest.mark.parametrize("point", ["READY_SENT", "UPLOAD_SAVED", "UPLOADED", "ECHOED", "UNMASKED"])
async def test_a_window_is_finished_after_a_crash(world: World, point: str) -> None:
    await enrolled(world)
    session = Session(world, world.params(), world.manifest())

    async def crash_at(here: str) -> None:
        if here == point:
            await world.reaches(session.params.window_id, here)
            await world.crash()
            await world.start()

    await world.open(session.params)
    await world.reaches(session.params.window_id, "READY_SENT")
    await crash_at("READY_SENT")
    await session.fix_roster()
    await session.collect()
    await crash_at("UPLOAD_SAVED")
    await session.receipt()
    await world.reaches(session.params.window_id, "UPLOADED")
    await crash_at("UPLOADED")
    await world.say("aggregator", session.show())
    echo = await world.expect(Echo)
    await crash_at("ECHOED")
    await world.say("aggregator", session.certify([echo, *session.others()]))
    await world.expect(Unmask)
    await crash_at("UNMASKED")
    await session.close()
    await world.reaches(session.params.window_id, "DONE")
    session.never_both()
    for kind in (Ready, UploadHeader, Echo):
        assert len({message.model_dump_json() for message in world.all(kind)}) == 1
    await world.crash()


async def test_a_half_sent_upload_goes_on_with_the_same_bytes(world: World) -> None:
    """R1: what left before the crash and what leaves after it are parts of one upload."""
    await enrolled(world)
    ref, _, _ = world.model(0)
    session = Session(world, world.update_params(ref), world.manifest())
    sent: list[str] = []

    def only_the_header(outgoing: Outgoing) -> bool:
        sent.append(outgoing.type)
        return outgoing.content_type == CHUNK_CONTENT_TYPE

    world.refuse = only_the_header
    await world.open(session.params)
    await world.give_model(0)
    await session.fix_roster()
    header = await session.collect()
    saved = world.folder / "spool" / "uploads" / f"{session.params.window_id.hex()}.bin"
    before = await asyncio.to_thread(saved.read_bytes)
    await world.crash()
    world.refuse = None
    await world.start()
    await world.expect(ReceiptAsked)
    await world.say("aggregator", session.receipt_for([], header_stored=False))
    assert await world.expect(UploadHeader) == header
    await session.receipt()
    await world.reaches(session.params.window_id, "UPLOADED")
    assert b"".join(content for _, content in sorted(world.chunks(session.params.window_id).items())) == before
    await world.crash()


async def test_work_that_was_not_finished_is_done_again(world: World) -> None:
    await enrolled(world)
    world.runners[0].hold.clear()
    ref, _, _ = world.model(2)
    params = world.update_params(ref)
    await world.open(params)
    await world.give_model(2)
    while not world.runners[0].jobs:  # noqa: ASYNC110 - the fake has no bell
        await asyncio.sleep(0.01)
    await world.crash()
    await world.start()
    ready = await world.expect(Ready)
    assert ready.base_model_hash == ref.model_hash
    assert len(world.all(ModelWanted)) == 1
    await world.crash()


async def test_a_half_received_model_is_not_asked_for_from_the_start(world: World) -> None:
    await enrolled(world)
    ref, _, _ = world.model(6)
    await world.open(world.update_params(ref))
    await world.give_model(6, chunk_bytes=1, only=[0, 1, 5])
    wanted = await world.expect(ModelWanted)
    assert wanted.have is not None
    assert wanted.have[0] == 0b100011
    await world.crash()
    await world.start()
    await world.give_model(6, chunk_bytes=1)
    wanted = [message for message in world.all(ModelWanted) if message.have is not None][-1]
    assert wanted.have is not None
    assert wanted.have[0] == 0b100011
    await world.expect(Ready)
    await world.crash()


async def test_two_connectors_cannot_share_a_spool(world: World) -> None:
    await enrolled(world)
    second = await App.build(world.settings(), bus=world.make_bus(), clock=world.clock, make_runner=world.make_runner)
    with pytest.raises(ConfigurationError, match="in use by another connector"):
        await second.run(asyncio.Event())
    await world.crash()


async def test_an_outage_of_the_broker_in_the_middle_of_a_window_is_sat_out(joined: World) -> None:
    session = Session(joined, joined.params(), joined.manifest())
    await joined.open(session.params)
    await session.fix_roster()
    joined.broker.stop()
    await asyncio.sleep(0.5)
    joined.broker.start()
    await session.collect()
    await session.receipt()
    await joined.reaches(session.params.window_id, "UPLOADED")
    await joined.say("aggregator", session.show())
    await joined.expect(Echo)


async def test_a_window_that_nobody_ends_is_given_up_at_its_time(joined: World) -> None:
    short = Deadlines(ready_s=0.2, upload_s=0.01, echo_s=0.01, unmask_s=0.01, expire_s=0.01)
    left, waiting = joined.params(deadlines=short), joined.params(deadlines=short)
    session = Session(joined, left, joined.manifest())
    await session.up_to_upload()
    await joined.open(waiting)
    assert (await joined.reaches(left.window_id, "SPENT")).state == Spent("EXPIRED")
    await joined.reaches(waiting.window_id, "FREED")


async def test_a_slow_aggregator_is_not_sent_everything_again(joined: World) -> None:
    """What it has not stored yet waits for it at the broker. Only where its receipts stand still, chunks go again."""
    base = joined.model(1)[0]
    params = joined.params(purpose="evaluation", round=1, bases=(base,), vector=joined.integer_vector(303))
    session = Session(joined, params, joined.manifest())

    def sent() -> list[int]:
        frames = [one.outgoing.message_id for one in joined.sent if one.outgoing.content_type == CHUNK_CONTENT_TYPE]
        return sorted(int(name.rpartition("-")[2]) for name in frames)

    await joined.open(params)
    await joined.give_model(1)
    await session.fix_roster()
    await session.collect()
    await joined.until(lambda: sent() == [0, 1])
    await joined.expect(ReceiptAsked)
    await joined.say("aggregator", session.receipt_for([0]))
    await joined.expect(ReceiptAsked)
    assert sent() == [0, 1], "the second chunk was under way"
    await joined.say("aggregator", session.receipt_for([0]))
    await joined.until(lambda: sent() == [0, 1, 1])
    await session.receipt()
    await joined.reaches(params.window_id, "UPLOADED")


async def test_a_full_queue_loses_nothing_that_it_took_before(joined: World) -> None:
    """A refused frame is sent until it is taken, and the aggregator is not asked about the others."""
    session = Session(joined, joined.params(), joined.manifest())
    refused = iter([True, True])

    def full(outgoing: Outgoing) -> bool:
        return outgoing.content_type == CHUNK_CONTENT_TYPE and next(refused, False)

    joined.refuse = full
    await joined.open(session.params)
    await session.fix_roster()
    await session.collect()
    await joined.until(lambda: len(joined.chunks(session.params.window_id)) > 0)
    await joined.none_of(ReceiptAsked, 0.2)
    await session.receipt()
    await joined.reaches(session.params.window_id, "UPLOADED")
