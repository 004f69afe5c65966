"""A window from end to end: the connector's part, with the real protocol on the other side."""

import asyncio
import hashlib
from pathlib import Path
from uuid import uuid4

from connector_session import Session
from connector_world import STUDY, World

from cohortium_connector.commands import LocalSite
from cohortium_connector.domain.window_states import Freed
from cohortium_connector.store import windows
from cohortium_connector.store.windows import Material
from cohortium_kit.bus import Outgoing
from cohortium_messages import events
from cohortium_messages.envelope import CHUNK_CONTENT_TYPE
from cohortium_messages.governance import GrantGiven
from cohortium_messages.ids import RunId
from cohortium_messages.secure_sum import (
    AbortVote,
    Echo,
    Ready,
    ReceiptAsked,
    Unmask,
    UploadHeader,
    WindowClosed,
)
from cohortium_messages.study import Study
from cohortium_protocol.chunks import open_header
from cohortium_protocol.codec import codec_for
from cohortium_protocol.opening import check_header, check_unmask, check_vector

NOISE = {**STUDY, "name": "noise", "recipe": {"trainer": "benchmark.noise", "parameters": 20_000}}


async def test_a_statistics_window_goes_its_whole_way(joined: World) -> None:
    session = Session(joined, joined.params(), joined.manifest())
    unmask = await session.up_to_unmask()
    header = session.headers[session.me]
    plan = codec_for(session.params.vector, session.view.n).plan
    chunks = joined.chunks(session.params.window_id)

    check_header(session.view, header, 0, plan.vec_len)
    check_vector(header, [hashlib.sha256(chunks[number]).digest() for number in sorted(chunks)], plan)
    check_unmask(session.view, session.survivors, unmask, joined.seal)
    await session.close()
    record = await joined.reaches(session.params.window_id, "DONE")
    assert record.state.phase.value == "DONE"
    kinds = [type(sent.message) for sent in joined.sent if isinstance(sent.message, events.AuditEvent)]
    assert kinds == [events.WitnessNamed, events.TaskTaken, events.UploadSealed, events.SharesGiven]
    assert await joined.dead() == []


async def test_an_update_is_trained_from_the_model_that_was_fetched(joined: World) -> None:
    ref, parameters, _ = joined.model(3)
    session = Session(joined, joined.update_params(ref), joined.manifest())
    await joined.open(session.params)
    wanted = await joined.give_model(3)
    assert wanted.have is None
    await session.fix_roster()
    await session.collect()
    await session.receipt()
    job = joined.runners[0].jobs[-1]
    assert job.round == 3
    assert await asyncio.to_thread(Path(job.model_path).read_bytes) == parameters
    await joined.reaches(session.params.window_id, "UPLOADED")
    await joined.none_of(ReceiptAsked)
    await joined.none_of(Unmask, 0.1)


async def test_every_message_may_come_twice(joined: World) -> None:
    joined.repeat = 2
    session = Session(joined, joined.params(), joined.manifest())
    await session.up_to_unmask()
    await session.close()
    await joined.reaches(session.params.window_id, "DONE")
    await joined.settled()
    assert [len(joined.all(kind)) for kind in (Ready, UploadHeader, Echo, Unmask)] == [1, 1, 1, 1]
    assert [len(joined.all(kind)) for kind in (events.TaskTaken, events.UploadSealed, events.SharesGiven)] == [1, 1, 1]
    assert joined.all(events.FaultSeen) == []


async def test_who_is_asked_again_gives_the_same_answer(joined: World) -> None:
    """The platform lost an answer, and asks in a message of its own."""
    session = Session(joined, joined.params(), joined.manifest())
    echo = await session.up_to_echo()
    await joined.say("aggregator", session.show())
    assert await joined.expect(Echo) == echo
    cert = session.certify([echo, *session.others()])
    await joined.say("aggregator", cert)
    unmask = await joined.expect(Unmask)
    await joined.say("aggregator", cert)
    assert await joined.expect(Unmask) == unmask
    await joined.say("aggregator", session.show())
    assert await joined.expect(Unmask) == unmask


async def test_a_missed_echo_is_made_up_for_before_the_shares_are_given(joined: World) -> None:
    session = Session(joined, joined.params(), joined.manifest())
    await session.up_to_upload()
    survivors = session.show()
    await joined.say("aggregator", session.certify(session.others()))
    await joined.settled()
    assert joined.all(Unmask) == []
    await joined.say("aggregator", survivors)
    await joined.expect(Echo)
    await joined.expect(Unmask)


async def test_an_abort_that_is_asked_twice_gets_the_same_vote(joined: World) -> None:
    session = Session(joined, joined.params(), joined.manifest())
    await session.up_to_upload()
    await session.ask_abort()
    vote = await joined.expect(AbortVote)
    await session.ask_abort()
    assert await joined.expect(AbortVote) == vote


async def test_the_keys_of_a_window_are_gone_when_it_has_ended(joined: World) -> None:
    session = Session(joined, joined.params(), joined.manifest())
    await session.up_to_unmask()
    window_id = session.params.window_id
    async with joined.app.db.reading("test") as tx:
        assert (await windows.material(tx, window_id)).keys is not None
    await session.close()
    await joined.reaches(window_id, "DONE")
    async with joined.app.db.reading("test") as tx:
        assert await windows.material(tx, window_id) == Material()


async def test_a_newer_window_takes_the_place_of_one_that_waits(joined: World) -> None:
    first = joined.params()
    await joined.open(first)
    ready = await joined.expect(Ready)
    second = joined.params()
    await joined.open(second)
    again = await joined.expect(Ready)
    assert (ready.window_id, again.window_id) == (first.window_id, second.window_id)
    assert (ready.mask_pk, ready.seal_pk) != (again.mask_pk, again.seal_pk)
    assert (await joined.state(first.window_id)).state == Freed("SUPERSEDED")
    assert len(joined.runners[0].jobs) == 1


async def test_a_newer_window_waits_while_a_roster_is_accepted(joined: World) -> None:
    session = Session(joined, joined.params(), joined.manifest())
    await session.up_to_upload()
    later = joined.params()
    await joined.open(later)
    await joined.settled()
    assert len(joined.all(Ready)) == 1
    await session.close("ABORTED")
    ready = await joined.expect(Ready)
    assert ready.window_id == later.window_id


async def test_a_cancelled_window_leaves_the_update_free(joined: World) -> None:
    params = joined.params()
    await joined.open(params)
    await joined.expect(Ready)
    closed = WindowClosed(window_id=params.window_id, step=0, state="CANCELLED", reason="NOT_ENOUGH_READY")
    await joined.say("scheduler", closed)
    await joined.reaches(params.window_id, "FREED")
    await joined.open(joined.params())
    await joined.expect(Ready)
    assert len(joined.runners[0].jobs) == 1


async def test_the_scheduler_cannot_end_a_session_for_the_aggregator(joined: World) -> None:
    session = Session(joined, joined.params(), joined.manifest())
    await session.up_to_upload()
    closed = WindowClosed(window_id=session.params.window_id, step=0, state="RELEASED", reason="")
    await joined.say("scheduler", closed)
    await joined.settled()
    assert (await joined.state(session.params.window_id)).state.phase == "UPLOADED"
    assert [event.code for event in joined.all(events.FaultSeen)] == ["WRONG_SENDER"]


async def test_chunks_that_are_refused_or_lost_are_sent_again(joined: World) -> None:
    joined.study = Study.model_validate(NOISE)
    joined.run_id = RunId(str(uuid4()))
    await joined.say("scheduler", joined.offer_message())
    await approve(joined)
    ref, _, _ = joined.model(0)
    session = Session(joined, joined.update_params(ref), joined.manifest())
    seen: list[str] = []

    def refuse_every_second(outgoing: Outgoing) -> bool:
        if outgoing.content_type != CHUNK_CONTENT_TYPE:
            return False
        seen.append(outgoing.message_id)
        return len(seen) % 2 == 0

    joined.refuse = refuse_every_second
    await joined.open(session.params)
    await joined.give_model(0, chunk_bytes=4096)
    await session.fix_roster()
    header = await session.collect()
    plan = codec_for(session.params.vector, session.view.n).plan
    assert plan.chunk_count > 8
    await joined.until(lambda: len(joined.chunks(session.params.window_id)) == plan.chunk_count)
    receipt = session.receipt_for(chunk for chunk in range(plan.chunk_count) if chunk != 2)
    before = len(joined.sent)
    for _ in range(2):  # the first one may only be behind; the second one shows that it stands still
        await joined.expect(ReceiptAsked)
        await joined.say("aggregator", receipt)
    await joined.until(lambda: any(s.outgoing.content_type == CHUNK_CONTENT_TYPE for s in joined.sent[before:]))
    again = [s for s in joined.sent[before:] if s.outgoing.content_type == CHUNK_CONTENT_TYPE]
    assert {open_header(s.outgoing.body, joined.site_pk).place.chunk for s in again} == {2}
    chunks = joined.chunks(session.params.window_id)
    check_vector(header, [hashlib.sha256(chunks[number]).digest() for number in sorted(chunks)], plan)
    await session.receipt()
    await joined.reaches(session.params.window_id, "UPLOADED")


async def approve(world: World) -> None:
    """Approve the world's study by hand, as the hospital's administrator would."""
    await world.settled()
    async with LocalSite.open(world.settings()) as site:
        assert await site.approve(world.study.name, ("Dr Grant",)) is not None
    await world.expect(GrantGiven)
