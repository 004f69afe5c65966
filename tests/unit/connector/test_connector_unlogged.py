"""No row is read for a task whose authorisation is not in the study's log, as this hospital knows the log."""

from collections.abc import Callable
from dataclasses import replace

from connector_world import World

from cohortium_messages.events import ForkDetected, TaskDeclined, TaskTaken
from cohortium_messages.ids import RunId, SiteId
from cohortium_messages.runs import TaskRefused
from cohortium_messages.secure_sum import WindowOpen, WindowParams
from cohortium_messages.witness import CheckpointCosigned, CheckpointElsewhere, Continuation, Logged
from cohortium_protocol.logproof import LogProof
from cohortium_protocol.signing import IdentityKey
from cohortium_protocol.window import sign_window
from task_log import TaskLog

OTHER_RUN = RunId("99999999-9999-4999-8999-999999999999")
OTHER_SITE = SiteId("88888888-8888-4888-8888-888888888888")
Forge = Callable[[World, WindowParams], Logged | None]


def another_log(world: World, *, words: int = 0, **changes: object) -> TaskLog:
    """A log with the same keys and name, and another history of `words` entries."""
    log = replace(world.log, sizes=[], tree=type(world.log.tree).of(), **changes)
    for number in range(words):
        log.add(log.event(world.params(), [world.site_id], round=number))
    return log


def replayed(world: World, _: WindowParams) -> Logged:
    return world.log.authorise(world.params(), [world.site_id])


def by_another_key(world: World, params: WindowParams) -> Logged:
    entry, index = world.log.add(world.log.event(params, [world.site_id]))
    return world.log.prove(entry, index, key=IdentityKey.generate())


def not_by_the_scheduler(world: World, params: WindowParams) -> Logged:
    log = replace(world.log, scheduler=IdentityKey.generate())
    entry, index = log.add(log.event(params, [world.site_id]))
    return log.prove(entry, index)


def not_in_the_tree(world: World, params: WindowParams) -> Logged:
    logged = world.log.authorise(params, [world.site_id])
    proof = LogProof.parse(logged.proof)
    beside, _ = replace(world.log, tree=type(world.log.tree).of()).add(world.log.event(params, [world.site_id]))
    return logged.model_copy(update={"proof": replace(proof, entry=beside).text()})


def with_a_false_way(world: World, params: WindowParams) -> Logged:
    logged = world.log.authorise(params, [world.site_id])
    false = tuple(Continuation(from_size=one.from_size, hashes=(bytes(32),) * 2) for one in logged.continues)
    return logged.model_copy(update={"continues": false})


def without_a_way(world: World, params: WindowParams) -> Logged:
    return world.log.authorise(params, [world.site_id]).model_copy(update={"continues": ()})


FORGED: dict[str, Forge] = {
    "no proof": lambda _, __: None,
    "no proof at all, but text": lambda _, __: Logged(proof="c2sp.org/tlog-proof@v1\nindex 0\n\nnothing"),
    "another study's log": lambda world, params: another_log(world, study="lungs").authorise(params, [world.site_id]),
    "another run": lambda world, params: world.log.authorise(params, [world.site_id], run_id=OTHER_RUN),
    "another round": lambda world, params: world.log.authorise(params, [world.site_id], round=params.round + 1),
    "other parameters": lambda world, params: world.log.authorise(params, [world.site_id], params_hash=bytes(32)),
    "another site": lambda world, params: world.log.authorise(params, [OTHER_SITE]),
    "an old authorisation": replayed,
    "a checkpoint of another key": by_another_key,
    "an event that the scheduler did not sign": not_by_the_scheduler,
    "an event beside the tree": not_in_the_tree,
    "a smaller log than was seen": lambda world, params: another_log(world, words=1).authorise(params, [world.site_id]),
    "a false way from what was seen": with_a_false_way,
    "no way from what was seen": without_a_way,
}


async def task(world: World, forge: Forge) -> WindowOpen:
    params = world.params()
    signed = sign_window(params, world.services["scheduler"])
    message = signed.model_copy(update={"logged": forge(world, params)})
    await world.say("scheduler", message)
    return message


async def test_a_task_that_is_not_logged_is_refused_before_a_row_is_read(joined: World) -> None:
    # The hospital has seen eight entries of the log by then.
    for number in range(7):
        joined.log.add(joined.log.event(joined.params(), [joined.site_id], round=number))
    first = await task(joined, lambda world, params: world.log.authorise(params, [world.site_id]))
    assert (await joined.expect(TaskTaken)).window_id == first.params.window_id
    assert (await joined.expect(CheckpointCosigned)).size == 8
    joined.runners[0].jobs.clear()
    for told, forge in FORGED.items():
        forged = await task(joined, forge)
        refused = await joined.expect(TaskRefused)
        assert (refused.window_id, refused.code) == (forged.params.window_id, "UNLOGGED_TASK"), told
        declined = await joined.expect(TaskDeclined)
        assert (declined.window_id, declined.code) == (forged.params.window_id, "UNLOGGED_TASK"), told
    await joined.settled()
    assert len(joined.all(TaskTaken)) == len(joined.all(CheckpointCosigned)) == 1
    # What only lacked its way is shown anew: the log is told from where.
    assert {one.size for one in joined.all(CheckpointElsewhere)} == {8}
    joined.log.sizes = [8]
    await task(joined, lambda world, params: world.log.authorise(params, [world.site_id]))
    await joined.expect(TaskTaken)
    assert (await joined.expect(CheckpointCosigned)).size == joined.log.tree.size


async def test_a_task_that_comes_after_a_newer_checkpoint_is_taken_if_its_own_was_seen(joined: World) -> None:
    log, params = joined.log, joined.params()
    entry, index = log.add(log.event(params, [joined.site_id]))
    await task(joined, lambda world, asked: world.log.authorise(asked, [world.site_id]))
    for _ in range(2):
        await task(joined, lambda world, asked: world.log.authorise(asked, [world.site_id]))
    await joined.settled()
    signed = sign_window(params, joined.services["scheduler"])
    await joined.say("scheduler", signed.model_copy(update={"logged": log.prove(entry, index, size=2)}))
    await joined.settled()
    assert [one.window_id for one in joined.all(TaskTaken)][3:] == [params.window_id]
    assert [one.size for one in joined.all(CheckpointCosigned)] == [2, 3, 4]


async def test_two_histories_of_one_size_stop_the_hospital(joined: World) -> None:
    await task(joined, lambda world, params: world.log.authorise(params, [world.site_id]))
    await joined.expect(TaskTaken)
    await task(joined, lambda world, params: another_log(world).authorise(params, [world.site_id]))
    assert (await joined.expect(TaskRefused)).code == "LOG_FORKED"
    assert (await joined.expect(ForkDetected)).held_size == 1
