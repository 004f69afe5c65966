"""Windows that do not open: too few, too late, withdrawn, stopped."""

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from aggregator_world import Window, World, grid_spec, integer_spec

from cohortium_aggregator.domain.states import Aborting, Collecting, Ended, Opening
from cohortium_kit.bus import Ack, Dead
from cohortium_messages import events
from cohortium_messages.governance import GrantEnded, ManifestPublished, Permit, SiteRevoked
from cohortium_messages.runs import RunEnded, SessionClosed
from cohortium_messages.secure_sum import AbortAsked, AbortCert, EchoCert, ModelRef, Roster, Survivors, WindowClosed
from cohortium_messages.withdrawals import SumSetAside
from cohortium_protocol.documents import manifest_hash, sign_manifest
from cohortium_protocol.survivors import verify_abort_cert

ROWS = np.array([10, 300_000, 12_000_000_000, 10, 5, 4, 2], dtype=np.int64)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = await World.of(tmp_path)
    yield made
    await made.close()


async def upload(window: Window, *indices: int) -> None:
    for index in indices:
        await window.upload(index, ROWS)


async def closed(world: World) -> SessionClosed:
    return (await world.heard(SessionClosed))[-1]


async def test_too_few_uploads_extend_once_then_abort_with_a_certificate(world: World) -> None:
    window = await world.statistics()
    await upload(window, 1, 2)
    await world.pass_time(31)
    assert isinstance(await world.state(window), Collecting)
    await world.pass_time(31)
    assert isinstance(await world.state(window), Aborting)
    assert len(await world.heard(AbortAsked)) == 4
    await window.vote_abort([1, 2])
    assert not await world.heard(AbortCert)
    await window.vote_abort([3])
    cert = await world.last_to(window.sites[4], AbortCert)
    assert cert is not None
    verify_abort_cert(window.view, cert)
    end = await closed(world)
    assert (end.state, end.reason, end.survivors) == ("ABORTED", "NOT_ENOUGH_UPLOADS", ())
    assert set(end.dropped) == {window.sites[3].site_id, window.sites[4].site_id}
    world.sent.clear()
    window.mask(4, ROWS)
    await window.send_header(4)
    assert await world.last_to(window.sites[4], AbortCert) is not None


async def test_a_third_upload_during_the_extension_is_enough(world: World) -> None:
    window = await world.statistics()
    await upload(window, 1, 2)
    await world.pass_time(31)
    await upload(window, 3)
    await world.pass_time(31)
    assert (await world.state(window)).survivors.members == (1, 2, 3)


async def test_sites_without_votes_fail_the_window_when_it_expires(world: World) -> None:
    await world.statistics()
    await world.pass_time(31)
    await world.pass_time(31)
    await world.pass_time(16)
    assert len(await world.heard(AbortAsked)) == 8  # asked again, under other ids
    await world.pass_time(400)
    assert (await closed(world)).state == "FAILED"


async def test_survivors_are_shown_again_to_those_who_do_not_echo_until_the_window_aborts(world: World) -> None:
    window = await world.statistics()
    await upload(window, 1, 2, 3, 4)
    await window.say(1, window.echo(1, await shown(world, window, 1)))
    first = len(await world.heard(Survivors))
    await world.pass_time(16)
    assert len(await world.heard(Survivors)) == first + 3
    await world.pass_time(400)
    state = await world.state(window)
    assert isinstance(state, Aborting)
    assert state.reason == "NOT_ENOUGH_ECHOES"


async def test_shares_are_asked_for_until_the_window_fails(world: World) -> None:
    window = await world.statistics()
    await upload(window, 1, 2, 3, 4)
    for index in (1, 2, 3):
        await window.say(index, window.echo(index, await shown(world, window, index)))
    cert = await world.last_to(window.sites[1], EchoCert)
    assert cert is not None
    await window.say(1, window.unmask(1, cert))
    certificates = len(await world.heard(EchoCert))
    await world.pass_time(31)
    assert len(await world.heard(EchoCert)) == certificates + 3
    await world.pass_time(400)
    end = await closed(world)
    assert (end.state, end.reason) == ("FAILED", "NOT_ENOUGH_SHARES")
    assert not await world.heard(events.AggregateOpened)


async def shown(world: World, window: Window, index: int) -> Survivors:
    found = await world.last_to(window.sites[index], Survivors)
    assert found is not None
    return found


async def test_a_withdrawn_site_is_left_out_while_uploads_come_in(world: World) -> None:
    window = await world.statistics()
    await upload(window, 1, 2)
    ended = grant_ended(world, window, 2)
    assert await world.say("consent", ended) == Ack()
    await upload(window, 3, 4)
    assert (await world.state(window)).survivors.members == (1, 3, 4)


async def test_a_withdrawal_after_the_survivors_are_fixed_aborts_and_frees_the_others(world: World) -> None:
    window = await world.statistics()
    await upload(window, 1, 2, 3, 4)
    await world.say("consent", grant_ended(world, window, 2))
    assert isinstance(await world.state(window), Aborting)
    await window.vote_abort([1, 3, 4])
    assert ((await closed(world)).state, (await closed(world)).reason) == ("ABORTED", "SITE_LEFT")
    assert not await world.heard(events.AggregateOpened)


async def certified(window: Window) -> EchoCert:
    """A window whose survivors are certified: from here on the protocol can leave nobody out."""
    await upload(window, 1, 2, 3, 4)
    for index in (1, 2, 3):
        await window.say(index, window.echo(index, await shown(window.world, window, index)))
    cert = await window.world.last_to(window.sites[1], EchoCert)
    assert cert is not None
    return cert


async def test_a_certified_sum_of_a_site_that_left_is_never_opened(world: World) -> None:
    window = await world.statistics()
    cert = await certified(window)
    await world.say("consent", grant_ended(world, window, 2))
    end = await closed(world)
    assert (end.state, end.reason, end.model) == ("FAILED", "SITE_LEFT", None)
    (aside,) = await world.heard(SumSetAside)
    assert (aside.sites, aside.opened) == ((window.sites[2].site_id,), False)
    for index in (1, 2, 3):
        await window.say(index, window.unmask(index, cert))
    await world.app.opener.open(window.params.window_id)
    assert not await world.heard(events.AggregateOpened)


async def test_an_opened_sum_of_a_site_that_left_makes_no_model(world: World) -> None:
    window = await world.statistics()
    cert = await certified(window)
    for index in (1, 2, 3):
        await window.say(index, window.unmask(index, cert))
    assert isinstance(await world.state(window), Opening)
    await world.say("consent", grant_ended(world, window, 2))
    await world.app.opener.open(window.params.window_id)
    end = await closed(world)
    assert (end.state, end.reason, end.model) == ("FAILED", "SITE_LEFT", None)
    (aside,) = await world.heard(SumSetAside)
    assert aside.opened
    assert len(await world.heard(events.AggregateOpened)) == 1  # a sum that cannot leave it out is on record
    assert not await world.heard(events.ModelReleased)
    assert not list((world.app.ctx.data.root / "models").glob("*/*"))


async def until(world: World, window: Window, **seconds: float) -> Window:
    """The same window, with permissions of these sites that end so many seconds from now."""
    end = {int(name[1:]): world.clock.now() + timedelta(seconds=after) for name, after in seconds.items()}
    permits = tuple(
        Permit(site_id=site.site_id, permitted=True, grant_digest=bytes(32), until=end.get(index))
        for index, site in window.sites.items()
    )
    window.opened = window.opened.model_copy(update={"permits": permits})
    assert await world.say("scheduler", window.opened) == Ack()
    return window


async def test_a_permission_that_ends_leaves_the_site_out_without_a_message(world: World) -> None:
    prepared = world.prepare(world.params("statistics", integer_spec(7)))
    window = await until(world, prepared, s2=10, s3=3600)
    await upload(window, 1, 2, 3)
    await world.restart()  # the moment is on record with the window
    await world.pass_time(11)
    await upload(window, 4)
    assert (await world.state(window)).survivors.members == (1, 3, 4)


async def test_a_permission_that_ends_after_the_survivors_are_fixed_aborts_when_consent_says_so(world: World) -> None:
    window = await until(world, world.prepare(world.params("statistics", integer_spec(7))), s2=10)
    await upload(window, 1, 2, 3, 4)
    before = await world.state(window)
    assert before.survivors.members == (1, 2, 3, 4)
    await world.clock.advance(11)  # type: ignore[attr-defined]
    assert await world.state(window) == before  # its moment alone changes nothing any more
    await world.say("consent", grant_ended(world, window, 2))
    assert isinstance(await world.state(window), Aborting)


async def test_two_permissions_that_end_together_leave_too_few(world: World) -> None:
    window = await until(world, world.prepare(world.params("statistics", integer_spec(7))), s2=10, s3=10)
    await upload(window, 1, 2)
    await world.pass_time(11)
    await upload(window, 4)
    assert isinstance(await world.state(window), Aborting)


async def test_a_withdrawal_that_leaves_too_few_aborts_at_once(tmp_path: Path) -> None:
    world = await World.of(tmp_path, 3)
    window = await world.statistics()
    await world.say("consent", grant_ended(world, window, 2))
    assert isinstance(await world.state(window), Aborting)
    await world.close()


def grant_ended(world: World, window: Window, index: int) -> GrantEnded:
    return GrantEnded(
        study_id=world.study.name,
        study_digest=world.study.digest(),
        site_id=window.sites[index].site_id,
        reason="GRANT_WITHDRAWN",
    )


async def test_a_revoked_site_is_left_out_and_not_heard_any_more(world: World) -> None:
    window = await world.statistics()
    window.mask(2, ROWS)
    await world.say("enrolment", SiteRevoked(site_id=window.sites[2].site_id, reason="SITE_REVOKED"))
    assert await window.send_header(2) == Dead("bad_signature")
    assert await window.send_chunks(2) == [Dead("site_revoked")] * 2
    await world.restart()
    assert await window.send_header(2) == Dead("bad_signature")
    await upload(window, 1, 3, 4)
    assert (await world.state(window)).survivors.members == (1, 3, 4)


async def test_a_member_who_is_removed_gives_the_collecting_window_up(world: World) -> None:
    window = await world.statistics()
    gone = window.sites[4].site_id
    changed = world.manifest.model_copy(
        update={
            "version": 2,
            "prev_hash": manifest_hash(world.manifest),
            "members": tuple(member for member in world.manifest.members if member.site_id != gone),
            "signatures": (),
        }
    )
    for officer in world.officers:
        changed = sign_manifest(changed, officer)
    assert await world.say("enrolment", ManifestPublished(manifest=changed)) == Ack()
    assert (await world.state(window)).reason == "MANIFEST_CHANGED"
    late = await world.open(world.params("statistics", integer_spec(7)))
    state = await world.state(late)
    assert (state.outcome, state.reason) == ("CANCELLED", "MANIFEST_CHANGED")
    assert not [s for s in world.sent if isinstance(s.message, Roster) and s.message.window_id == late.params.window_id]


async def test_a_manifest_that_officers_did_not_sign_is_refused(world: World) -> None:
    forged = world.manifest.model_copy(update={"collusion": 0})
    assert await world.say("enrolment", ManifestPublished(manifest=forged)) == Dead("too_few_signatures")


async def test_a_session_that_the_scheduler_did_not_sign_is_refused(world: World) -> None:
    window = world.prepare(world.params("statistics", integer_spec(7)))
    forged = window.opened.model_copy(update={"open": window.opened.open.model_copy(update={"sig": bytes(64)})})
    assert await world.say("scheduler", forged) == Dead("bad_signature")
    assert await world.state(window) is None


async def test_a_window_from_an_unknown_model_is_cancelled(world: World) -> None:
    window = await world.open(world.params("update", grid_spec(2), (ModelRef(version=0, model_hash=bytes(32)),)))
    state = await world.state(window)
    assert (state.outcome, state.reason) == ("CANCELLED", "BASE_MODEL_UNKNOWN")
    assert (await closed(world)).state == "CANCELLED"


async def test_a_run_that_is_stopped_ends_its_windows(world: World) -> None:
    window = await world.statistics()
    await upload(window, 1)
    await world.say("scheduler", RunEnded(run_id=world.run_id, study_id=world.study.name, state="STOPPED"))
    state = await world.state(window)
    assert isinstance(state, Ended)
    assert (state.outcome, state.reason) == ("FAILED", "STOPPED_BY_OPERATOR")
    assert len(await world.heard(WindowClosed)) == 4
    await world.app.ticker.sweep()
    assert not list((world.app.ctx.data.root / "uploads").iterdir())


async def test_a_sum_whose_parts_contradict_each_other_is_thrown_away(world: World) -> None:
    window = await world.statistics()
    impossible = np.array([11, 0, 0, 10, 5, 4, 2], dtype=np.int64)  # more values than rows
    await world.release(window, dict.fromkeys(window.view.indices, impossible))
    end = await closed(world)
    assert (end.state, end.reason, end.model) == ("FAILED", "SUMS_REFUSED", None)
    assert not await world.heard(events.ModelReleased)
    assert not list((world.app.ctx.data.root / "models").glob("*/*"))


async def test_a_flipped_bit_on_our_own_disk_fails_the_canary(world: World) -> None:
    window = await world.statistics()
    await upload(window, 1, 2, 3, 4)
    await window.echo_and_unmask()
    path = world.app.ctx.data.window_dir(window.params.window_id, 0) / "1.vec"
    content = bytearray(path.read_bytes())
    content[-56] ^= 1  # the first of the four canaries
    path.write_bytes(content)
    await world.app.opener.open(window.params.window_id)
    end = await closed(world)
    assert (end.state, end.reason) == ("FAILED_INTEGRITY", "CANARY_MISMATCH")
