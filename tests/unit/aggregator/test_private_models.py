"""Private studies at the aggregator: public inputs, noisy sums as steps, noisy metrics, the promise on every paper."""

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from aggregator_world import STUDY, Window, World, grid_spec

from cohortium_messages import events
from cohortium_messages.runs import RunEnded, SessionClosed
from cohortium_messages.secure_sum import AbortAsked, ModelRef, Purpose, Survivors
from cohortium_privacy.evaluation import histogram_vector
from cohortium_privacy.public_inputs import public_rules
from cohortium_privacy.study_plans import statement_of
from cohortium_privacy.windows import count_factor, noise_for, plan_for, private_spec, update_scale
from cohortium_protocol.attest import verify_statement
from cohortium_protocol.trees.random_trees import leaf_values, next_model

SUMMED = {"mode": "distributed", "epsilon": 4, "delta": 1e-5, "sampling_rate": 0.5, "patients": 800}
LOCAL = {"mode": "local", "epsilon": 4, "delta": 1e-5, "sampling_rate": 0.2, "patients": 300}
PAID = SUMMED | {"evaluation_epsilon": 2}
TREES = {"trainer": "lightgbm.random_trees", "trees": 2, "depth": 2, "trees_per_sum": 2}
ZERO = np.zeros(1, dtype=np.int64)


async def world_of(root: Path, privacy: dict[str, Any], **changes: Any) -> World:
    return await World.of(root, study=STUDY | {"privacy": privacy} | changes)


async def opened(world: World, purpose: Purpose, base: tuple[ModelRef, ...] = (), **changes: Any) -> Window:
    """A window as the scheduler asks for it."""
    study, c = world.study, world.manifest.collusion
    plan = plan_for(study, len(world.identities), 3, c)
    spec = private_spec(study, purpose, (bytes(32), bytes(32))) or grid_spec(2, weight_cap=1)
    noise = noise_for(study, purpose, plan, 3, c)
    params = world.params(
        purpose, spec, base, privacy_mode=study.privacy.mode, noise=noise, round=1 if base else 0, **changes
    )
    return await world.open(params)


async def released(world: World, window: Window, vectors: dict[int, npt.NDArray[Any]]) -> SessionClosed:
    await world.release(window, vectors)
    over: SessionClosed = (await world.heard(SessionClosed))[-1]
    return over


async def first(world: World) -> ModelRef:
    window = await opened(world, "statistics")
    over = await released(world, window, dict.fromkeys(window.view.indices, ZERO))
    assert over.model is not None, over.reason
    return over.model


def numbers(world: World, version: int) -> npt.NDArray[np.float32]:
    path = world.app.ctx.data.model_dir(world.run_id, version) / "parameters.f32"
    return np.fromfile(path, dtype="<f4")


async def bundle(world: World, ref: ModelRef) -> dict[str, bytes]:
    ended = RunEnded(run_id=world.run_id, study_id=world.study.name, state="FINISHED", model=ref)
    await world.say("scheduler", ended)
    assert await world.app.bundler.bundle_finished() == 1
    with zipfile.ZipFile(io.BytesIO(world.app.ctx.data.bundle_zip(world.run_id).read_bytes())) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.mark.parametrize("privacy", [SUMMED, LOCAL])
async def test_inputs_are_public_and_nobody_is_counted(tmp_path: Path, privacy: dict[str, Any]) -> None:
    world = await world_of(tmp_path, privacy)
    await first(world)
    over = (await world.heard(SessionClosed))[-1]
    assert (await world.newest()).preprocessing == public_rules(world.study, 4)
    assert over.training_rows == (800 if privacy is SUMMED else 900)
    await world.close()


async def test_a_first_sum_that_says_something_is_thrown_away(tmp_path: Path) -> None:
    world = await world_of(tmp_path, SUMMED)
    window = await opened(world, "statistics")
    over = await released(world, window, {index: ZERO + (index == 2) for index in window.view.indices})
    assert (over.state, over.reason, over.model) == ("FAILED", "SUMS_REFUSED", None)
    await world.close()


async def test_a_noisy_sum_is_one_step_of_the_studys_rate(tmp_path: Path) -> None:
    world = await world_of(tmp_path, SUMMED)
    ref = await first(world)
    before = numbers(world, 0)
    window = await opened(world, "update", (ref,))
    vectors = {index: np.array([1000 * index, -70], dtype=np.int64) for index in window.view.indices}
    over = await released(world, window, vectors)
    assert over.state == "RELEASED"
    noise = window.params.noise
    assert noise is not None
    scale = update_scale(world.study, noise, 4)
    assert scale == pytest.approx(world.study.recipe.local.lr * noise.step / 400)  # type: ignore[union-attr]
    assert numbers(world, 1) - before == pytest.approx(np.array([10_000, -280]) * scale, rel=1e-4)
    await world.close()


async def test_local_updates_weigh_alike_or_are_thrown_away(tmp_path: Path) -> None:
    world = await world_of(tmp_path, LOCAL)
    ref = await first(world)
    before = numbers(world, 0)
    window = await opened(world, "update", (ref,))
    over = await released(world, window, dict.fromkeys(window.view.indices, np.array([0.1, -0.2], dtype=np.float32)))
    assert over.state == "RELEASED"
    assert numbers(world, 1) - before == pytest.approx([0.1, -0.2], abs=0.01)
    assert over.model is not None
    params = world.params(
        "update", grid_spec(2, weight_cap=200), (over.model,), privacy_mode="local", round=2, noise=window.params.noise
    )
    weighted = await world.open(params)
    after = await released(world, weighted, dict.fromkeys(weighted.view.indices, np.ones(2, dtype=np.float32)))
    assert (after.state, after.reason) == ("FAILED", "SUMS_REFUSED")
    await world.close()


@pytest.mark.parametrize(("noisy", "shown"), [(True, False), (False, True)])
async def test_noise_shared_out_for_four_is_not_opened_over_three(tmp_path: Path, noisy: bool, shown: bool) -> None:
    """Sites would not confirm the set, and the window would stay open until it expires."""
    world = await world_of(tmp_path, SUMMED)
    ref = await first(world)
    noise = (await opened(world, "update", (ref,))).params.noise
    spec = private_spec(world.study, "update", (bytes(32), bytes(32)))
    assert spec is not None
    params = world.params(
        "update", spec, (ref,), privacy_mode="distributed", round=2, least_cohort=4, noise=noise if noisy else None
    )
    window = await world.open(params)
    for index in (1, 2, 4):
        await window.upload(index, np.array([5, -7], dtype=np.int64))
    await world.pass_time(31)
    await world.pass_time(31)
    survivors = [one for one in await world.heard(Survivors) if one.window_id == params.window_id]
    asked = [one for one in await world.heard(AbortAsked) if one.window_id == params.window_id]
    assert (bool(survivors), bool(asked)) == (shown, not shown)
    if noisy:
        assert {one.reason for one in asked} == {"NOT_ENOUGH_UPLOADS"}
    await world.close()


async def test_leaf_sums_are_read_with_their_noise(tmp_path: Path) -> None:
    world = await world_of(tmp_path, SUMMED | {"sampling_rate": 1}, recipe=TREES, federation={"min_sites": 3})
    ref = await first(world)
    window = await opened(world, "update", (ref,))
    draw = np.random.default_rng(1)
    vectors = {
        index: draw.normal(0, 3000, window.params.vector.dimension).astype(np.int64) for index in window.view.indices
    }
    over = await released(world, window, vectors)
    assert over.state == "RELEASED", over.reason
    total, noise = sum(vectors.values()), window.params.noise
    assert noise is not None
    text = (world.app.ctx.data.model_dir(world.run_id, 1) / "model.txt").read_bytes()
    assert text == next_model(world.study, 1, b"", total, 2 * noise.site_sigma)
    assert np.abs(leaf_values(world.study, 1, total, 2 * noise.site_sigma)).max() < 1
    await world.close()


async def test_the_promise_is_on_every_paper(tmp_path: Path) -> None:
    world = await world_of(tmp_path, PAID)
    ref = await first(world)
    window = await opened(world, "evaluation", (ref,))
    noise = window.params.noise
    assert noise is not None
    draw = np.random.default_rng(2)
    vectors = {}
    for index in window.view.indices:
        labels = draw.integers(0, 2, 200)
        scores = np.clip(0.3 + 0.4 * labels + draw.normal(0, 0.1, 200), 0, 1)
        vectors[index] = histogram_vector(scores, labels, count_factor(noise))
    over = await released(world, window, vectors)
    assert over.evaluation is not None
    assert over.evaluation.count_noise is not None
    assert over.evaluation.rows == 800
    files, promised = await bundle(world, ref), statement_of(world.study).model_dump(mode="json")
    card = json.loads(files["card.json"])
    assert {name: card["privacy"][name] for name in promised} == promised
    assert card["privacy"]["statement"].startswith("Whatever someone concludes")
    signed = verify_statement(files["attestation.dsse.json"], [world.keys["aggregator"].public], 1)
    assert signed.predicate["privacy"] == promised
    (logged,) = await world.heard(events.ModelBundled)
    assert logged.privacy == statement_of(world.study)
    text = files["card.md"].decode()
    assert "| ε | at most 4; the plan costs " in text
    assert "| Patients (public number) | 800 |" in text
    assert "From counts with noise of a standard deviation of " in text
    await world.close()


async def test_a_study_without_privacy_says_that_there_is_no_guarantee(tmp_path: Path) -> None:
    world = await world_of(tmp_path, {"mode": "none"})
    ref = await world.first_model()
    files = await bundle(world, ref)
    assert json.loads(files["card.json"])["privacy"]["mode"] == "none"
    assert "No formal privacy guarantee" in files["card.md"].decode()
    (logged,) = await world.heard(events.ModelBundled)
    assert logged.privacy is not None
    assert (logged.privacy.mode, logged.privacy.epsilon) == ("none", None)
    await world.close()
