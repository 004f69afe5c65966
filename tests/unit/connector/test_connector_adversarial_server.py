"""Section 7.4: scheduler and aggregator are in an attacker's hands, keys and all. Each attack must end in refusal."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from connector_peers import Peer
from connector_session import Session
from connector_world import World

from cohortium_connector.training.jobs import ComputeStatistics
from cohortium_messages.events import FaultSeen, TaskDeclined
from cohortium_messages.governance import GrantGiven
from cohortium_messages.runs import ModelOffered, ModelWanted, TaskRefused
from cohortium_messages.secure_sum import (
    AbortVote,
    DealtBox,
    Echo,
    EchoCert,
    Ready,
    Roster,
    Survivors,
    Unmask,
    UploadHeader,
)
from cohortium_protocol.chunks import wrap_model_key
from cohortium_protocol.opening import freeze_survivors, make_survivors
from cohortium_protocol.signing import IdentityKey
from cohortium_protocol.survivors import survivor_set
from cohortium_protocol.upload import header_hash
from cohortium_protocol.window import make_roster, sign_window


@pytest.fixture
async def session(joined: World) -> AsyncIterator[Session]:
    """A statistics window; after each attack the recording is looked through."""
    session = Session(joined, joined.params(), joined.manifest())
    yield session
    if hasattr(session, "survivors"):
        session.never_both()


def faults(world: World) -> list[str]:
    return [event.code for event in world.all(FaultSeen)]


def refusals(world: World) -> list[str]:
    declined = [event.code for event in world.all(TaskDeclined)]
    assert declined == [refused.code for refused in world.all(TaskRefused)]
    return declined


def shown(session: Session, headers: dict[int, UploadHeader]) -> Survivors:
    """A survivors message for these headers that is right in itself."""
    return make_survivors(session.view, freeze_survivors(session.view, 0, headers), headers, session.me)


async def certificate(session: Session, headers: dict[int, UploadHeader]) -> EchoCert:
    """A certificate of another set than the one the connector saw: the other hospitals echo what they are shown."""
    session.survivors = freeze_survivors(session.view, 0, headers)
    return session.certify(session.others(headers))


# Survivor sets


async def test_split_survivors_are_echoed_once_and_never_opened(joined: World, session: Session) -> None:
    await session.up_to_echo()
    honest = session.survivors
    peer = session.view.index_of(joined.peers[0].site_id)
    fewer = {index: header for index, header in session.headers.items() if index != peer}
    await joined.say("aggregator", shown(session, fewer))
    await joined.say("aggregator", await certificate(session, fewer))
    await joined.settled()
    assert [echo.survivors_hash for echo in joined.all(Echo)] == [honest.digest]
    assert joined.all(Unmask) == []
    assert faults(joined) == ["SURVIVORS_CHANGED", "SURVIVORS_SPLIT"]
    assert (await joined.state(session.params.window_id)).state.phase == "ECHOED"


async def test_after_the_answer_no_other_set_is_answered(joined: World, session: Session) -> None:
    await session.up_to_unmask()
    honest = session.survivors
    peer = session.view.index_of(joined.peers[1].site_id)
    fewer = {index: header for index, header in session.headers.items() if index != peer}
    await joined.say("aggregator", shown(session, fewer))
    await joined.say("aggregator", await certificate(session, fewer))
    await joined.settled()
    assert {answer.survivors_hash for answer in joined.all(Unmask)} == {honest.digest}
    assert faults(joined) == ["SURVIVORS_CHANGED", "CERTIFICATE_CHANGED"]
    session.survivors = honest


async def test_a_set_below_k_min_is_not_confirmed(joined: World, session: Session) -> None:
    await session.up_to_upload()
    message = session.show()
    bits = sum(1 << (index - 1) for index in (session.me, session.view.others(session.me)[0]))
    kept = [index for index in session.view.indices if bits >> (index - 1) & 1]
    shrunk = message.model_copy(
        update={
            "bitmap": bytes([bits]),
            "header_hashes": tuple(header_hash(session.headers[index]) for index in kept),
            "boxes": tuple(box for box in message.boxes if box.dealer in kept),
        }
    )
    await joined.say("aggregator", shrunk)
    await joined.settled()
    assert joined.all(Echo) == []
    assert await joined.dead() == ["too_few_survivors"]
    assert faults(joined) == ["TOO_FEW_SURVIVORS"]
    assert (await joined.state(session.params.window_id)).state.phase == "UPLOADED"


async def test_a_swapped_box_is_not_confirmed(joined: World, session: Session) -> None:
    await session.up_to_upload()
    message = session.show()
    first, second, *rest = message.boxes
    swapped = (
        DealtBox(dealer=first.dealer, box=second.box, sig=second.sig),
        DealtBox(dealer=second.dealer, box=first.box, sig=first.sig),
        *rest,
    )
    await joined.say("aggregator", message.model_copy(update={"boxes": swapped}))
    await joined.settled()
    assert joined.all(Echo) == []
    assert faults(joined) == ["BOX_REFUSED"]


async def test_a_box_for_another_receiver_is_not_confirmed(joined: World, session: Session) -> None:
    await session.up_to_upload()
    message = session.show()
    dealer = message.boxes[0].dealer
    others = session.view.others(dealer)
    wrong = next(index for index in others if index != session.me)
    box = session.headers[dealer].boxes[others.index(wrong)]
    boxes = (DealtBox(dealer=dealer, box=box.box, sig=box.sig), *message.boxes[1:])
    await joined.say("aggregator", message.model_copy(update={"boxes": boxes}))
    await joined.settled()
    assert joined.all(Echo) == []
    assert faults(joined) == ["BOX_REFUSED"]


async def test_a_header_that_was_not_sent_is_not_confirmed(joined: World, session: Session) -> None:
    await session.up_to_upload()
    other = session.view.others(session.me)[0]
    hashes = {index: header_hash(header) for index, header in session.headers.items()}
    forged = survivor_set(session.view, 0, {**hashes, session.me: hashes[other]})
    message = session.show().model_copy(update={"header_hashes": forged.header_hashes})
    await joined.say("aggregator", message)
    await joined.settled()
    assert joined.all(Echo) == []
    assert faults(joined) == ["OWN_HEADER_CHANGED"]


async def test_a_certificate_with_too_few_echoes_opens_nothing(joined: World, session: Session) -> None:
    echo = await session.up_to_echo()
    cert = session.certify([echo, *session.others()])
    await joined.say("aggregator", cert.model_copy(update={"echoes": cert.echoes[:2]}))
    await joined.say("aggregator", cert.model_copy(update={"echoes": (cert.echoes[0],) * 3}))
    await joined.settled()
    assert joined.all(Unmask) == []
    assert faults(joined) == ["QUORUM_MISSING", "MALFORMED"]


# Rosters


async def test_a_forged_member_gets_no_upload(joined: World, session: Session) -> None:
    await joined.open(session.params)
    ready = await joined.expect(Ready)
    sybil = Peer(9)
    manifest = session.manifest
    readies = [peer.ready(session.params, session.base) for peer in (*joined.peers[:2], sybil)]
    honest = make_roster(session.params, manifest, [ready, *readies[:2]])
    entries = tuple(sorted((*honest.entries, readies[2]), key=lambda entry: entry.site_id))
    await joined.say("aggregator", honest.model_copy(update={"entries": entries, "n": 4, "t": 3}))
    await joined.settled()
    await joined.none_of(UploadHeader)
    assert faults(joined) == ["NOT_A_MEMBER"]
    assert (await joined.state(session.params.window_id)).state.phase == "READY_SENT"


@pytest.mark.parametrize("change", [{"t": 1}, {"k_min": 1}, {"c": 0}])
async def test_weakened_thresholds_get_no_upload(joined: World, session: Session, change: dict[str, Any]) -> None:
    await joined.open(session.params)
    ready = await joined.expect(Ready)
    readies = [peer.ready(session.params, session.base) for peer in joined.peers]
    roster = make_roster(session.params, session.manifest, [ready, *readies])
    await joined.say("aggregator", roster.model_copy(update=change))
    await joined.settled()
    await joined.none_of(UploadHeader)
    assert faults(joined) == ["ROSTER_REFUSED"]


async def test_a_roster_with_another_key_under_our_name_gets_no_upload(joined: World, session: Session) -> None:
    await joined.open(session.params)
    ready = await joined.expect(Ready)
    readies = [peer.ready(session.params, session.base) for peer in joined.peers]
    roster = make_roster(session.params, session.manifest, [ready, *readies])
    stranger = Peer(9).ready(session.params, session.base)
    entries = tuple(
        entry.model_copy(update={"mask_pk": stranger.mask_pk}) if entry.site_id == joined.site_id else entry
        for entry in roster.entries
    )
    await joined.say("aggregator", roster.model_copy(update={"entries": entries}))
    await joined.settled()
    await joined.none_of(UploadHeader)
    assert faults(joined) == ["BAD_SIGNATURE"]


async def test_a_second_roster_gets_no_second_upload(joined: World, session: Session) -> None:
    await joined.open(session.params)
    ready = await joined.expect(Ready)
    readies = [peer.ready(session.params, session.base) for peer in joined.peers]
    whole = make_roster(session.params, session.manifest, [ready, *readies])
    smaller = make_roster(session.params, session.manifest, [ready, *readies[:2]])
    await joined.say("aggregator", whole)
    first = await joined.expect(UploadHeader)
    await joined.say("aggregator", smaller)
    await joined.settled()
    await joined.none_of(UploadHeader)
    assert faults(joined) == ["TWO_ROSTERS"]
    assert {header.roster_hash for header in joined.all(UploadHeader)} == {first.roster_hash}


async def test_different_models_in_one_synchronous_roster_get_no_upload(joined: World) -> None:
    ref, _, _ = joined.model(3)
    session = Session(joined, joined.update_params(ref), joined.manifest())
    await joined.open(session.params)
    await joined.give_model(3)
    ready = await joined.expect(Ready)
    readies = [peer.ready(session.params, session.base) for peer in joined.peers]
    roster = make_roster(session.params, session.manifest, [ready, *readies])
    entries = tuple(
        entry.model_copy(update={"base_model_hash": bytes(32)}) if entry.site_id == joined.peers[0].site_id else entry
        for entry in roster.entries
    )
    await joined.say("aggregator", roster.model_copy(update={"entries": entries}))
    await joined.settled()
    await joined.none_of(UploadHeader)
    assert faults(joined) == ["BASE_MODEL_REFUSED"]


async def test_a_model_that_no_signed_window_named_is_not_trained_on(joined: World) -> None:
    ref, _, _ = joined.model(3)
    other, parameters, preprocessing = joined.model(4)
    await joined.open(joined.update_params(ref))
    wanted = await joined.expect(ModelWanted)
    offered = ModelOffered(
        run_id=joined.run_id,
        version=3,
        model_hash=other.model_hash,
        parameters_sha256=bytes(32),
        size=len(parameters),
        chunk_bytes=8,
        chunks=-(-len(parameters) // 8),
        preprocessing=preprocessing,
        wrapped_key=wrap_model_key(joined.model_key, joined.run_id, 3, wanted.seal_pk),
    )
    await joined.say("aggregator", offered)
    await joined.say("aggregator", offered.model_copy(update={"model_hash": ref.model_hash}))
    await joined.settled()
    await joined.none_of(Ready)
    assert faults(joined) == ["MODEL_HASH_WRONG", "MODEL_HASH_WRONG"]
    assert joined.runners[0].jobs == []


# Replays and windows


async def test_a_replayed_window_is_not_worked_on_again(joined: World, session: Session) -> None:
    await session.up_to_unmask()
    await session.close()
    await joined.reaches(session.params.window_id, "DONE")
    before = len(joined.runners[0].jobs)
    await joined.open(session.params)
    await joined.say("aggregator", session.roster)
    await joined.say("aggregator", session.show())
    await joined.settled()
    await joined.none_of(Ready)
    assert len(joined.runners[0].jobs) == before
    assert len(joined.all(UploadHeader)) == len(joined.all(Echo)) == len(joined.all(Unmask)) == 1


async def test_a_window_id_is_never_used_for_other_parameters(joined: World, session: Session) -> None:
    await joined.open(session.params)
    await joined.expect(Ready)
    await joined.open(joined.params(window_id=session.params.window_id, round=1))
    await joined.settled()
    assert faults(joined) == ["WINDOW_REPLAYED"]
    assert len(joined.all(Ready)) == 1


async def test_a_window_that_the_scheduler_did_not_sign_reads_no_row(joined: World, session: Session) -> None:
    forged = sign_window(session.params, IdentityKey.generate())
    await joined.say("scheduler", forged)
    await joined.settled()
    assert refusals(joined) == ["BAD_SCHEDULER_SIGNATURE"]
    assert joined.runners[0].jobs == []


async def test_a_service_cannot_speak_for_another(joined: World, session: Session) -> None:
    await joined.say("aggregator", sign_window(session.params, joined.services["scheduler"]))
    await joined.say(
        "scheduler",
        session.params and sign_window(session.params, joined.services["scheduler"]),
        key=joined.services["aggregator"],
    )
    await joined.settled()
    assert faults(joined) == ["WRONG_SENDER"]
    assert sorted(await joined.dead()) == ["bad_signature", "wrong_sender"]
    assert joined.runners[0].jobs == []


# Late uploads, aborts, reruns


async def test_a_late_upload_frees_the_update_and_the_same_one_is_used_later(joined: World, session: Session) -> None:
    await session.up_to_upload()
    fewer = {index: header for index, header in session.headers.items() if index != session.me}
    await joined.say("aggregator", await certificate(session, fewer))
    record = await joined.reaches(session.params.window_id, "FREED")
    assert record.state.phase == "FREED"
    again = Session(joined, joined.params(), joined.manifest())
    await joined.open(again.params)
    await again.fix_roster()
    await joined.expect(UploadHeader)
    assert len([job for job in joined.runners[0].jobs if isinstance(job, ComputeStatistics)]) == 1
    assert joined.all(Unmask) == []


async def test_an_excluded_site_helps_to_open_the_sum_of_the_others(joined: World, session: Session) -> None:
    """It confirms a set without itself, gives its shares of the others, and its own vector stays masked."""
    await session.up_to_upload()
    fewer = {index: header for index, header in session.headers.items() if index != session.me}
    await joined.say("aggregator", session.show(fewer))
    echo = await joined.expect(Echo)
    await joined.say("aggregator", session.certify([echo, *session.others(fewer)]))
    await joined.expect(Unmask)
    await session.close()
    await joined.reaches(session.params.window_id, "FREED")


async def test_after_an_abort_without_certificate_the_work_is_done_again(joined: World, session: Session) -> None:
    await session.up_to_upload()
    await session.close("ABORTED")
    await joined.reaches(session.params.window_id, "SPENT")
    again = Session(joined, joined.params(), joined.manifest())
    await joined.open(again.params)
    await again.fix_roster(joined.peers[:2])
    await joined.expect(UploadHeader)
    assert len(joined.runners[0].jobs) == 2


async def test_an_abort_certificate_frees_the_update(joined: World, session: Session) -> None:
    await session.up_to_upload()
    await session.ask_abort()
    vote = await joined.expect(AbortVote)
    votes = [vote, *(peer.vote(session.view) for peer in joined.peers)]
    await joined.say("aggregator", session.abort_cert(votes).model_copy(update={"votes": ()}))
    await joined.settled()
    assert faults(joined) == ["QUORUM_MISSING"]
    await joined.say("aggregator", session.abort_cert(votes))
    await joined.reaches(session.params.window_id, "FREED")


async def test_after_an_abort_vote_nothing_is_unmasked(joined: World, session: Session) -> None:
    echo = await session.up_to_echo()
    await session.ask_abort()
    await joined.expect(AbortVote)
    await joined.say("aggregator", session.certify([echo, *session.others()]))
    await joined.settled()
    assert joined.all(Unmask) == []


async def test_after_the_answer_no_abort_is_promised(joined: World, session: Session) -> None:
    await session.up_to_unmask()
    await session.ask_abort()
    await joined.settled()
    assert joined.all(AbortVote) == []


async def test_a_rerun_with_one_site_fewer_is_not_confirmed(joined: World, session: Session) -> None:
    """R9: the difference of the two sums would be the site that was left out."""
    await session.up_to_unmask()
    await session.close("FAILED_INTEGRITY")
    await joined.reaches(session.params.window_id, "SPENT")
    again = Session(joined, joined.params(), joined.manifest())
    await joined.open(again.params)
    await again.fix_roster(joined.peers[:2])
    await again.collect(without=joined.peers[2:])
    await joined.say("aggregator", again.show())
    await joined.settled()
    assert len(joined.all(Echo)) == 1
    assert refusals(joined) == ["COHORT_DIFFERS_BY_ONE"]


# Restored backups


async def test_a_restored_backup_answers_nothing_in_open_windows(world: World) -> None:
    spool, copy = world.folder / "spool" / "spool.db", world.folder / "backup.db"
    async with world.running():
        await world.enrol()
        await world.offer()
        await world.expect(GrantGiven)
        session = Session(world, world.params(), world.manifest())
        await session.up_to_upload()
    await asyncio.to_thread(shutil.copy, spool, copy)
    async with world.running():
        await world.say("aggregator", session.show())
        echo = await world.expect(Echo)
    await asyncio.to_thread(_restore, copy, spool)
    async with world.running():
        await world.reaches(session.params.window_id, "SPENT")
        await world.say("aggregator", session.show())
        await world.say("aggregator", session.certify([echo, *session.others()]))
        await world.settled()
        assert len(world.all(Echo)) == 1
        assert world.all(Unmask) == []
        assert list((world.folder / "spool" / "products").iterdir()) == []


def _restore(copy: Path, spool: Path) -> None:
    for name in ("spool.db-wal", "spool.db-shm"):
        (spool.parent / name).unlink(missing_ok=True)
    shutil.copy(copy, spool)


async def test_a_roster_for_a_window_that_was_never_opened_is_a_fault(joined: World, session: Session) -> None:
    await joined.open(session.params)
    ready = await joined.expect(Ready)
    readies = [peer.ready(session.params, session.base) for peer in joined.peers]
    roster: Roster = make_roster(session.params, session.manifest, [ready, *readies])
    await joined.say("aggregator", roster.model_copy(update={"window_id": bytes(16)}))
    await joined.settled()
    assert faults(joined) == ["WINDOW_UNKNOWN"]
