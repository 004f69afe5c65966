"""A window from end to end: the connector's part, with the real protocol on the other side."""

import asyncio
import hashlib
from pathlib import Path

from connector_session import Session
from connector_world import World

from cohortium_messages import events
from cohortium_messages.secure_sum import ReceiptAsked, Unmask
from cohortium_protocol.codec import codec_for
from cohortium_protocol.opening import check_header, check_unmask, check_vector


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
    assert kinds == [events.TaskTaken, events.UploadSealed, events.SharesGiven]
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
