"""The model of the next round is fetched while the platform is still opening that round."""

from connector_session import Session
from connector_world import STUDY, World

from cohortium_messages.governance import GrantGiven
from cohortium_messages.runs import ModelWanted, RunEnded
from cohortium_messages.secure_sum import ModelRef, Ready
from cohortium_messages.study import Study


async def after_a_sum(world: World, made: ModelRef | None, state: str = "RELEASED") -> Session:
    """A whole window of which this model came; nothing has to be fetched for it."""
    session = Session(world, world.params(), world.manifest())
    await session.up_to_unmask()
    await session.close(state, model=made)
    await world.reaches(session.params.window_id, "DONE")
    return session


async def test_the_next_rounds_model_is_here_when_its_window_opens(joined: World) -> None:
    base = joined.model(1)[0]
    await after_a_sum(joined, base)
    await joined.give_model(1)
    await joined.settled()
    await joined.open(joined.update_params(base))
    ready = await joined.expect(Ready)
    while ready.base_model_hash != base.model_hash:
        ready = await joined.expect(Ready)
    assert len(joined.all(ModelWanted)) == 1


async def test_a_window_may_name_another_model_than_was_expected(joined: World) -> None:
    """The version that was announced never comes; what the signed window names is fetched without waiting for it."""
    wrong = joined.model(2)[0].model_copy(update={"version": 1})
    right = joined.model(1)[0]
    await after_a_sum(joined, wrong)
    await joined.expect(ModelWanted)
    await joined.open(joined.update_params(right))
    await joined.give_model(1)
    ready = await joined.expect(Ready)
    while ready.base_model_hash != right.model_hash:
        ready = await joined.expect(Ready)


async def test_nothing_is_fetched_after_the_last_round(world: World) -> None:
    world.study = Study.model_validate({**STUDY, "metrics": []})
    async with world.running():
        await world.enrol()
        await world.offer()
        await world.expect(GrantGiven)
        base, last = world.model(1)[0], world.model(2)[0]
        params = world.update_params(base, round=world.study.federation.rounds)
        session = Session(world, params, world.manifest())
        await world.open(params)
        await world.give_model(1)
        await session.fix_roster()
        await session.collect()
        await session.receipt()
        await world.reaches(params.window_id, "UPLOADED")
        await session.close(model=last)
        await world.settled()
        assert [wanted.version for wanted in world.all(ModelWanted)] == [1]


async def test_what_is_fetched_ahead_ends_with_the_run(joined: World) -> None:
    expected = joined.model(1)[0]
    await after_a_sum(joined, expected)
    await joined.expect(ModelWanted)
    await joined.say("scheduler", RunEnded(run_id=joined.run_id, study_id=joined.study.name, state="STOPPED"))
    await joined.until(lambda: joined.app._downloads._ahead is None)
