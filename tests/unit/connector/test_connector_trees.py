"""Studies with trees beside their strict sessions: random trees, models that are text, bins, and what is refused."""

import asyncio
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from connector_session import Session
from connector_strict import TREES, TreesWorld

from cohortium_connector.training.jobs import Evaluate, TrainLocally
from cohortium_connector.tree_models import check_text, checked_binning
from cohortium_messages.events import FaultSeen
from cohortium_messages.runs import TaskRefused
from cohortium_messages.secure_sum import ModelRef, Ready
from cohortium_messages.study import Study
from cohortium_protocol.codec import codec_for
from cohortium_protocol.opening import check_vector
from cohortium_protocol.parameters import ModelRefused
from cohortium_protocol.trees.random_trees import next_model
from cohortium_protocol.trees.vectors import integer_length

RANDOM = {
    **TREES,
    "name": "random-trees",
    "recipe": {"trainer": "lightgbm.random_trees", "trees": 3, "depth": 2},
    "federation": {"min_sites": 3, "deadlines": TREES["federation"]["deadlines"]},
}
STUDY, RANDOM_STUDY = Study.model_validate(TREES), Study.model_validate(RANDOM)


def text(rounds: int = 1) -> bytes:
    """A genuine model text: both studies have the same column, and the random trees are small enough for the other."""
    found = b""
    for round_ in range(1, rounds + 1):
        sums = np.full(integer_length(RANDOM_STUDY, "update"), 1000, dtype=np.int64)
        found = next_model(RANDOM_STUDY, round_, found, sums)
    return found


class RandomTreesWorld(TreesWorld):
    """A federation that fills random trees."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.study = RANDOM_STUDY
        self.script = None

    def model(self, version: int) -> tuple[ModelRef, bytes, dict[str, Any]]:
        self.text = text(version)
        return super().model(version)

    def trees_params(self, base: ModelRef, **changes: Any) -> Any:
        vector = self.integer_vector(integer_length(self.study, "update"))
        return self.params(**{"purpose": "update", "round": 1, "bases": (base,), "vector": vector, **changes})


async def test_an_update_of_random_trees_goes_out_as_integers(tmp_path: Path) -> None:
    world = RandomTreesWorld(tmp_path)
    await world.declare()
    async with world.running():
        await world.join()
        base, model, _ = world.model(1)
        session = Session(world, world.trees_params(base, round=2), world.manifest())
        await world.open(session.params)
        await world.give_model(1, chunk_bytes=512)
        await session.fix_roster()
        header = await session.collect()
        await session.receipt()
        plan = codec_for(session.params.vector, session.view.n).plan
        chunks = world.chunks(session.params.window_id)
        check_vector(header, [hashlib.sha256(chunks[number]).digest() for number in sorted(chunks)], plan)
        job = world.runners[0].jobs[-1]
        assert isinstance(job, TrainLocally)
        assert job.round == 1
        assert await asyncio.to_thread(Path(job.model_path).read_bytes) == model
        assert json.loads(await asyncio.to_thread(Path(job.preprocessing_path or "").read_bytes))["version"] == (
            "cohortium/binning/1"
        )


async def test_what_a_study_of_random_trees_does_not_sum_is_refused(tmp_path: Path) -> None:
    world = RandomTreesWorld(tmp_path)
    await world.declare()
    async with world.running():
        await world.join()
        base = world.model(0)[0]
        good = world.trees_params(base)
        training = world.training_params(base)
        wrong = [
            good.model_copy(update={"kind": "buffered"}),
            good.model_copy(update={"kind": "strict"}),
            good.model_copy(update={"round": 4}),
            good.model_copy(update={"vector": good.vector.model_copy(update={"dimension": 7})}),
            good.model_copy(update={"vector": good.vector.model_copy(update={"ring_bits": 32})}),
            good.model_copy(update={"vector": good.vector.model_copy(update={"encoding": "grid"})}),
            good.model_copy(update={"purpose": "refinement"}),
            training,
        ]
        for number, params in enumerate(wrong):
            await world.open(params.model_copy(update={"window_id": bytes([number]) * 16}))
            assert (await world.expect(TaskRefused)).code == "POLICY_REFUSED", number
        assert world.all(Ready) == []


# Texts


async def test_a_text_is_evaluated_after_it_was_read(trees: TreesWorld) -> None:
    trees.text = text(3)
    base = trees.model(2)[0]
    vector = trees.integer_vector(integer_length(trees.study, "evaluation"))
    await trees.open(trees.params(purpose="evaluation", round=1, bases=(base,), vector=vector))
    await trees.give_model(2, chunk_bytes=1000)
    await trees.expect(Ready)
    job = trees.runners[0].jobs[-1]
    assert isinstance(job, Evaluate)
    assert await asyncio.to_thread(Path(job.model_path).read_bytes) == trees.text


async def test_a_text_that_must_not_be_given_to_lightgbm_never_gets_near_it(trees: TreesWorld) -> None:
    """The digest fits what the signed window named: it is the scheduler and the aggregator that lie together."""
    trees.text = text(3).replace(b"left_child=", b"left_child=-9 ", 1)
    base = trees.model(2)[0]
    vector = trees.integer_vector(integer_length(trees.study, "evaluation"))
    await trees.open(trees.params(purpose="evaluation", round=1, bases=(base,), vector=vector))
    await trees.give_model(2, chunk_bytes=1000)
    assert (await trees.expect(TaskRefused)).code == "MODEL_REFUSED"
    assert not any(runner.jobs for runner in trees.runners)
    assert not list(trees.app.desk.spool.models.rglob("*.model"))


@pytest.mark.parametrize("change", ["no bins at all", "another study", "other features"])
async def test_bins_of_something_else_are_refused_when_they_are_offered(
    trees: TreesWorld, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    honest = trees.model

    def lying(version: int) -> tuple[ModelRef, bytes, dict[str, Any]]:
        _, model, document = honest(version)
        if change == "no bins at all":
            document = {"version": "cohortium/preprocessing/1"}
        elif change == "another study":
            other = Study.model_validate({**TREES, "purpose": "something else"})
            document["study_digest"] = binning(other)["study_digest"]
        else:
            document["features"][0]["name"] = "weight"
        return trees.ref_of(version, model, document), model, document

    monkeypatch.setattr(trees, "model", lying)
    params = trees.training_params(trees.model(0)[0])
    await trees.open(params)
    await trees.give_model(0)
    await trees.settled()
    assert [event.code for event in trees.all(FaultSeen)] == ["MODEL_REFUSED"]
    assert not any(runner.jobs for runner in trees.runners)


def binning(study: Study) -> dict[str, Any]:
    world = object.__new__(TreesWorld)
    world.study, world.text = study, b""
    return TreesWorld.model(world, 0)[2]


def test_an_empty_text_is_the_model_before_the_first_tree() -> None:
    check_text(STUDY, checked_binning(STUDY, binning(STUDY)), b"")


@pytest.mark.parametrize(
    ("study", "rounds", "changes"),
    [
        (STUDY, 4, {}),
        (STUDY, 3, {"recipe": {"trainer": "lightgbm", "rounds": 2}}),
        (STUDY, 3, {"recipe": {"trainer": "lightgbm", "rounds": 3, "params": {"num_leaves": 3}}}),
        (RANDOM_STUDY, 3, {"federation": {**RANDOM["federation"], "seed": 5}}),
    ],
)
def test_a_text_that_the_study_cannot_have_come_to_is_refused(
    study: Study, rounds: int, changes: dict[str, Any]
) -> None:
    other = Study.model_validate({**study.model_dump(mode="json"), **changes})
    found = text(min(rounds, 3))
    if rounds > 3:
        found = found.replace(b"Tree=2", b"Tree=7")
    with pytest.raises(ModelRefused):
        check_text(other, checked_binning(other, binning(other)), found)


def test_a_study_without_trees_has_no_text() -> None:
    torch = Study.model_validate({**TREES, "recipe": {"trainer": "torch.logistic"}, "federation": {"rounds": 1}})
    with pytest.raises(ModelRefused):
        check_text(torch, checked_binning(STUDY, binning(STUDY)), text())
