"""What breaks the protocol is parked with its reason, named in the log, and changes nothing."""

import secrets
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from aggregator_world import Window, World, delivery_of, integer_spec

from cohortium_aggregator.domain.states import Collecting
from cohortium_aggregator.store import windows
from cohortium_kit.bus import Ack, Dead, Outgoing
from cohortium_kit.penalties import MOST_REFUSED, SILENCE_S
from cohortium_messages import events
from cohortium_messages.runs import ModelUnavailable, ModelWanted, RunEnded, SessionClosed
from cohortium_messages.secure_sum import Echo, EchoCert, ReceiptAsked, Survivors, Unmask
from cohortium_messages.topology import chunk_key, uplink_key
from cohortium_protocol.chunks import ChunkPlace, seal_frame
from cohortium_protocol.keys import SealKey, seal
from cohortium_protocol.signing import IdentityKey
from cohortium_protocol.survivors import unmask_bytes, unmask_context

ROWS = np.array([10, 300_000, 12_000_000_000, 10, 5, 4, 2], dtype=np.int64)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = await World.of(tmp_path)
    yield made
    await made.close()


async def faults(world: World) -> list[tuple[str, str]]:
    return [(fault.key_id, fault.code) for fault in await world.heard(events.FaultSeen)]


async def collecting(world: World) -> Window:
    window = await world.open(world.params("statistics", integer_spec(7)))
    window.mask(1, ROWS)
    return window


async def test_a_service_may_send_only_its_own_types(world: World) -> None:
    ended = RunEnded(run_id=world.run_id, study_id=world.study.name, state="STOPPED")
    assert await world.say("consent", ended) == Dead("wrong_sender")
    assert ("service:consent", "WRONG_SENDER") in await faults(world)


async def test_a_site_speaks_only_under_its_own_key_and_index(world: World) -> None:
    window = await collecting(world)
    first, second = window.sites[1], window.sites[2]
    asked = ReceiptAsked(window_id=window.params.window_id, step=0, index=1)
    assert await world.site_says(second, asked) == Dead("wrong_index")
    assert await world.site_says(first, asked, key=uplink_key(second.site_id, "aggregator")) == Dead(
        "wrong_routing_key"
    )
    assert await world.site_says(first, asked, identity=IdentityKey.generate()) == Dead("bad_signature")
    assert {code for _, code in await faults(world)} == {"WRONG_INDEX", "WRONG_ROUTING_KEY", "BAD_SIGNATURE"}


async def test_who_repeats_a_bad_message_is_blamed_once(world: World) -> None:
    """Two events of one id would be the aggregator's own fault: the log names it for them."""
    window = await collecting(world)
    bad = window.frame_delivery(1, 0, window.frame(1, 0)[:-1] + b"x")
    asked = ReceiptAsked(window_id=window.params.window_id, step=0, index=1)
    for _ in range(3):
        assert await world.take_frames([bad, bad]) == [Dead("bad_signature")] * 2
    assert await world.site_says(window.sites[2], asked, times=3) == Dead("wrong_index")
    await world.hear()
    faults = [sent.message_id for sent in world.sent if isinstance(sent.message, events.FaultSeen)]
    assert len(faults) == len(set(faults)) == 2


async def test_a_window_that_nobody_opened_is_poison(world: World) -> None:
    window = await collecting(world)
    asked = ReceiptAsked(window_id=bytes(16), step=0, index=1)
    assert await window.say(1, asked) == Dead("unknown_window")


async def test_a_second_header_of_a_site_is_refused(world: World) -> None:
    window = await collecting(world)
    assert await window.send_header(1) == Ack()
    window.mask(1, ROWS + 1)
    assert await window.send_header(1) == Dead("header_changed")


async def test_a_chunk_with_other_content_is_refused_and_the_first_one_stays(world: World) -> None:
    window = await collecting(world)
    assert await window.send_chunks(1) == [Ack(), Ack()]
    path = world.app.ctx.data.window_dir(window.params.window_id, 0) / "1.vec"
    before = path.read_bytes()
    window.mask(1, ROWS + 1)
    assert await window.send_chunks(1) == [Dead("chunk_changed")] * 2
    assert path.read_bytes() == before
    assert (f"site:{window.sites[1].site_id}", "CHUNK_CHANGED") in await faults(world)


async def test_chunks_are_checked_before_they_are_stored(world: World) -> None:
    window = await collecting(world)
    good = window.frame(1, 0)
    site, params = window.sites[1], window.params

    def forged(identity: IdentityKey, **changes: int | bytes) -> bytes:
        values = {"window_id": params.window_id, "step": 0, "index": 1, "chunk": 0, "chunk_count": 1} | changes
        return seal_frame(ChunkPlace(**values), site.chunks[0], identity, params.aggregator_seal_pk)  # type: ignore[arg-type]

    to_other = ChunkPlace(params.window_id, 0, 1, 0, 1)
    bad = {
        "bad_signature": forged(IdentityKey.generate()),
        "unknown_window": forged(site.identity, window_id=bytes(16)),
        "wrong_index": forged(site.identity, index=9),
        "wrong_routing_key": forged(site.identity, index=2),
        "wrong_chunk_count": forged(site.identity, chunk_count=2),
        "chunk_refused": seal_frame(to_other, site.chunks[0], site.identity, SealKey.generate().public),
    }
    for reason, frame in bad.items():
        assert await world.take_frames([window.frame_delivery(1, 0, frame)]) == [Dead(reason)]
    flipped = good[:-1] + bytes([good[-1] ^ 1])
    assert await world.take_frames([window.frame_delivery(1, 0, flipped)]) == [Dead("bad_signature")]
    assert await world.take_frames([window.frame_delivery(1, 0, b"no frame")]) == [Dead("chunk_refused")]
    assert not (world.app.ctx.data.window_dir(params.window_id, 0) / "1.vec").exists()
    assert await world.take_frames([window.frame_delivery(1, 0, good)]) == [Ack()]


async def test_one_bad_frame_does_not_stop_the_others_of_its_batch(world: World) -> None:
    window = await collecting(world)
    stranger = chunk_key(window.sites[2].site_id, 0)
    wrong = delivery_of(Outgoing("uplink", stranger, b"nonsense", secrets.token_hex(8), "chunk"), "chunks.0")
    assert await world.take_frames([wrong, window.frame_delivery(1, 0)]) == [Dead("chunk_refused"), Ack()]


async def test_chunks_that_are_not_those_of_the_header_never_complete(world: World) -> None:
    window = await collecting(world)
    await window.send_chunks(1)
    window.mask(1, ROWS)  # another self seed, so other words
    await window.send_header(1)
    state = await world.state(window)
    assert isinstance(state, Collecting)
    assert not state.uploads
    assert (f"site:{window.sites[1].site_id}", "VECTOR_REFUSED") in await faults(world)


async def test_a_site_whose_seeds_are_everybody_elses_denies_no_window(world: World) -> None:
    """It differs from three others, and of four at most one lies: the three are summed without it."""
    window = await world.statistics()
    for index in (1, 2, 4):
        await window.upload(index, ROWS)
    other = world.prepare(window.params)  # the same window, but site 3 has other keys than the roster says
    window.sites[3].keys = other.sites[3].keys
    window.sites[3].prepared = None
    window.mask(3, ROWS)
    await window.send_header(3)
    await window.send_chunks(3)
    site = f"site:{window.sites[3].site_id}"
    assert [key_id for key_id, code in await faults(world) if code == "EDGE_COMMITS_FALSE"] == [site]
    await window.echo_and_unmask([1, 2, 4])
    await world.app.opener.open(window.params.window_id)
    (closed,) = await world.heard(SessionClosed)
    assert (closed.state, closed.reason) == ("RELEASED", "")
    assert closed.dropped == (window.sites[3].site_id,)
    assert closed.training_rows == 3 * int(ROWS[-4])


async def test_an_echo_of_another_set_is_refused(world: World) -> None:
    window = await world.statistics()
    for index in window.view.indices:
        await window.upload(index, ROWS)
    shown = await world.last_to(window.sites[1], Survivors)
    assert shown is not None
    echo = window.echo(1, shown)
    other = Echo(**(echo.model_dump() | {"survivors_hash": bytes(32)}))
    assert await window.say(1, other) == Dead("echo_mismatch")
    assert await window.say(2, echo) == Dead("wrong_index")


async def test_wrong_shares_of_one_site_are_outvoted_when_another_answers(tmp_path: Path) -> None:
    world = await World.of(tmp_path, 5)  # t = 4
    window = await world.statistics()
    for index in window.view.indices:
        await window.upload(index, ROWS)
    await window.echo_and_unmask([1, 2, 3, 4])
    assert await world.state(window)  # four honest answers would open it; so begin again with a liar
    await world.close()

    world = await World.of(tmp_path / "second", 5)
    window = await world.statistics()
    for index in window.view.indices:
        await window.upload(index, ROWS)
    for index in (1, 2, 3, 4):
        shown = await world.last_to(window.sites[index], Survivors)
        assert shown is not None
        await window.say(index, window.echo(index, shown))
    for index in (1, 2, 3):
        cert = await world.last_to(window.sites[index], EchoCert)
        assert cert is not None
        await window.say(index, window.unmask(index, cert))
    await window.say(4, lying(window, 4))
    await world.app.opener.open(window.params.window_id)
    assert (await world.state(window)).need == 5
    shown, cert = await world.last_to(window.sites[5], Survivors), await world.last_to(window.sites[5], EchoCert)
    assert shown is not None
    assert cert is not None
    window.echo(5, shown)
    await window.say(5, window.unmask(5, cert))
    await world.app.opener.open(window.params.window_id)
    (closed,) = await world.heard(SessionClosed)
    assert (closed.state, closed.training_rows) == ("RELEASED", 50)
    await world.close()


async def test_shares_that_never_fit_fail_the_window_and_name_the_dealer(world: World) -> None:
    window = await world.statistics()
    for index in window.view.indices:
        await window.upload(index, ROWS)
    for index in window.view.indices:
        shown = await world.last_to(window.sites[index], Survivors)
        assert shown is not None
        await window.say(index, window.echo(index, shown))
    for index in window.view.indices:
        await window.say(index, lying(window, index))
    for _ in range(2):
        await world.app.opener.open(window.params.window_id)
    (closed,) = await world.heard(SessionClosed)
    assert (closed.state, closed.reason) == ("FAILED", "SHARES_INCONSISTENT")
    assert closed.blamed == (window.sites[1].site_id,), "the scheduler leaves it out of the next attempt"
    assert (f"site:{window.sites[1].site_id}", "SHARES_INCONSISTENT") in await faults(world)
    assert await world.newest() is None


def lying(window: Window, index: int) -> Unmask:
    """An answer of the right form with shares out of the air."""
    survivors = window.sites[index].survivors
    assert survivors is not None
    checked = window.checked(index, survivors)
    digest = checked.survivors.digest
    content = unmask_context(digest, index) + secrets.token_bytes(32 * len(checked.survivors.members))
    sealed = seal(window.params.aggregator_seal_pk, content)
    return Unmask(
        window_id=window.params.window_id,
        step=0,
        survivors_hash=digest,
        index=index,
        sealed=sealed,
        sig=window.sites[index].identity.sign(unmask_bytes(digest, index, sealed)),
    )


async def test_a_model_is_given_to_members_only(world: World) -> None:
    ref = await world.first_model()
    window = await world.statistics()
    stranger = window.sites[1]
    wanted = ModelWanted(run_id=world.run_id, version=7, site_id=stranger.site_id, seal_pk=SealKey.generate().public)
    await world.site_says(stranger, wanted)
    refusal = await world.last_to(stranger, ModelUnavailable)
    assert refusal is not None
    assert refusal.reason == "BASE_MODEL_UNKNOWN"
    claimed = wanted.model_copy(update={"version": ref.version, "site_id": window.sites[2].site_id})
    assert await world.site_says(stranger, claimed) == Dead("wrong_site")


async def test_a_site_whose_frames_are_refused_again_and_again_costs_the_others_nothing(world: World) -> None:
    """A frame of rubbish costs a signature check, a transaction and a dead letter: so many, and no more."""
    window = await collecting(world)
    window.mask(2, ROWS)
    bad = [window.frame_delivery(1, 0, f"no frame {number}".encode()) for number in range(3 * MOST_REFUSED)]
    # Each is a message of its own, as a site that wants to make trouble would send it.
    answers = []
    for number, one in enumerate(bad):
        answers += await world.take_frames([replace(one, message_id=f"bad-{number}")])
    assert answers[: MOST_REFUSED + 1] == [Dead("chunk_refused")] * MOST_REFUSED + [Dead("too_many_refused")]
    assert answers[MOST_REFUSED + 1 :] == [Ack()] * (2 * MOST_REFUSED - 1)
    site = f"site:{window.sites[1].site_id}"
    assert len([code for key_id, code in await faults(world) if key_id == site]) == MOST_REFUSED + 1
    assert (site, "TOO_MANY_REFUSED") in await faults(world)

    async def stored(index: int) -> int:
        async with world.app.ctx.db.reading("chunks") as tx:
            found = await windows.find_window(tx, world.app.ctx.sessions, window.params.window_id)
            assert found is not None
            return await windows.chunk_count(tx, found.session, index)

    assert await world.app.intake.handle(window.frame_delivery(1, 0)) == Ack()
    assert await stored(1) == 0, "taken off the queue unread"
    assert await world.take_frames([window.frame_delivery(2, 0)]) == [Ack()]
    assert await stored(2) == 1, "the others are heard as ever"
    await world.pass_time(SILENCE_S + 1)
    assert await world.take_frames([window.frame_delivery(1, 0)]) == [Ack()]
    assert await stored(1) == 1
