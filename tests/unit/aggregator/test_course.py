"""Windows through the whole service, without loops: every message is delivered twice."""

from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from aggregator_world import World, grid_spec, integer_spec

from cohortium_aggregator.domain.states import Ended
from cohortium_messages import events
from cohortium_messages.runs import SessionClosed
from cohortium_messages.secure_sum import EchoCert, Receipt, Roster, Survivors, WindowClosed

ROWS = np.array([10, 300_000, 12_000_000_000, 10, 5, 4, 2], dtype=np.int64)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = await World.of(tmp_path)
    yield made
    await made.close()


async def test_a_statistics_window_makes_version_0(world: World) -> None:
    window = await world.statistics()
    assert len(await world.heard(Roster)) == 4
    await world.release(window, dict.fromkeys(window.view.indices, ROWS))
    state = await world.state(window)
    assert state.outcome == "RELEASED"
    (closed,) = await world.heard(SessionClosed)
    assert (closed.state, closed.training_rows, closed.parameters) == ("RELEASED", 40, 2)
    assert closed.model is not None
    assert closed.model.version == 0
    assert closed.bytes_up > 0
    assert closed.bytes_down > 0
    assert len(await world.heard(WindowClosed)) == 4
    assert [len(await world.heard(kind)) for kind in (events.AggregateOpened, events.ModelReleased)] == [1, 1]
    assert (await world.heard(events.WindowEnded))[0].state == "RELEASED"
    assert not await world.heard(events.FaultSeen)


async def test_an_update_moves_the_model_by_the_mean(world: World) -> None:
    base = await world.first_model()
    window = await world.open(world.params("update", grid_spec(2), (base,)))
    updates = {1: [0.1, 0.2], 2: [0.3, -0.2], 3: [0.5, 0.0], 4: [-0.1, 0.4]}
    before = np.fromfile(world.app.ctx.data.model_dir(world.run_id, 0) / "parameters.f32", dtype="<f4")
    await world.release(window, {index: np.array(value, dtype=np.float32) for index, value in updates.items()})
    newest = await world.newest()
    assert newest.version == 1
    after = np.fromfile(world.app.ctx.data.model_dir(world.run_id, 1) / "parameters.f32", dtype="<f4")
    np.testing.assert_allclose(after - before, np.mean(list(updates.values()), axis=0), atol=1e-3)
    assert not list((world.app.ctx.data.root / "uploads").iterdir())


async def test_a_site_that_never_uploads_is_left_out_and_the_sum_is_that_of_the_others(world: World) -> None:
    base = await world.first_model()
    window = await world.open(world.params("evaluation", integer_spec(303), (base,)))
    vectors = {}
    for index in (1, 2, 4):
        vector = np.zeros(303, dtype=np.int64)
        vector[50], vector[150], vector[300] = index, 1, index
        vector[250] = 0
        vector[200 + 50] = (index + 1) * int(0.505 * (1 << 32))
        vectors[index] = vector
    await world.release(window, vectors, [1, 2, 4])
    state = await world.state(window)
    assert isinstance(state, Ended)
    assert state.outcome == "RELEASED", state.reason
    closed = (await world.heard(SessionClosed))[-1]
    assert closed.dropped == (window.sites[3].site_id,)
    assert closed.evaluation is not None
    assert (closed.evaluation.rows, closed.evaluation.positives) == (10, 3)


async def test_a_header_is_answered_and_chunks_are_counted(world: World) -> None:
    window = await world.open(world.params("statistics", integer_spec(1000)))
    window.mask(1, np.arange(1000, dtype=np.int64))
    assert len(window.sites[1].chunks) > 3
    await window.send_chunks(1, [0, 2])
    await window.send_header(1)
    from cohortium_messages.secure_sum import ReceiptAsked

    await window.say(1, ReceiptAsked(window_id=window.params.window_id, step=0, index=1))
    receipt = await world.last_to(window.sites[1], Receipt)
    assert receipt is not None
    assert (receipt.header_stored, receipt.complete, receipt.chunks_stored) == (True, False, bytes([0b101]))
    await window.send_chunks(1)
    receipt = await world.last_to(window.sites[1], Receipt)
    assert receipt is not None
    assert receipt.complete


async def test_an_upload_that_comes_late_is_answered_with_the_certificate_that_excludes_it(world: World) -> None:
    window = await world.statistics()
    for index in (1, 2, 3):
        await window.upload(index, ROWS)
    await world.pass_time(31)
    await window.echo_and_unmask([1, 2, 3])
    window.mask(4, ROWS)
    await world.hear()
    world.sent.clear()
    await window.send_header(4)
    assert await world.last_to(window.sites[4], EchoCert) is not None
    await world.app.opener.open(window.params.window_id)
    assert (await world.state(window)).outcome == "RELEASED"
    world.sent.clear()
    await window.send_header(4)
    assert await world.last_to(window.sites[4], EchoCert) is not None
    assert await world.last_to(window.sites[4], Survivors) is None
