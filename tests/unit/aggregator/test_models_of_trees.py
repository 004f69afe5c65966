"""Models of trees: bins from sums, random trees from leaf sums, metrics with importance, and the finished bundle."""

import hashlib
import io
import json
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aggregator_world import STUDY, Window, World, integer_spec
from strict_world import (
    ROUNDS,
    TREES,
    end,
    header,
    open_session,
    rows,
    spec_of,
    statistics_of,
    tree_model,
)

from cohortium_aggregator.tree_models import NO_TREES
from cohortium_kit.bus import Ack
from cohortium_messages import events
from cohortium_messages.runs import ModelOffered, ModelWanted, RunEnded, SessionClosed
from cohortium_messages.secure_sum import ModelRef
from cohortium_messages.study import Study
from cohortium_protocol.attest import verify_statement
from cohortium_protocol.keys import SealKey
from cohortium_protocol.parameters import model_hash
from cohortium_protocol.statistics import Rows
from cohortium_protocol.trees.binning import (
    Binning,
    binning_from_sums,
    needs_refinement,
    refined,
    refinement_vector,
    tree_columns,
)
from cohortium_protocol.trees.evaluation import evaluation_vector
from cohortium_protocol.trees.grid import tree_statistics_vector
from cohortium_protocol.trees.predict import raw_scores, response
from cohortium_protocol.trees.random_trees import check_random_trees, leaf_vector, next_model
from cohortium_protocol.trees.vectors import integer_length

RANDOM: dict[str, Any] = TREES | {
    "recipe": {"trainer": "lightgbm.random_trees", "trees": 5, "depth": 3, "trees_per_sum": 2, "grid": 16},
    "metrics": ["auc", "accuracy", "log_loss"],
}
SKEWED: dict[str, Any] = TREES | {
    "dataset": TREES["dataset"] | {"features": [{"name": "bill", "type": "float", "range": [0, 1_000_000]}]}
}


async def world_of(root: Path, study: dict[str, Any]) -> World:
    return await World.of(root, study=study)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = await world_of(tmp_path, TREES)
    yield made
    await made.app.engine.close()
    await made.close()


async def integers(world: World, purpose: Any, base: tuple[ModelRef, ...], **changes: Any) -> Window:
    length = integer_length(world.study, purpose)
    return await world.open(world.params(purpose, integer_spec(length), base, **changes))


async def closed(world: World) -> SessionClosed:
    found: SessionClosed = (await world.heard(SessionClosed))[-1]
    return found


def text_of(world: World, version: int) -> bytes:
    return (world.app.ctx.data.model_dir(world.run_id, version) / "model.txt").read_bytes()


async def test_statistics_of_a_study_with_trees_make_bins(world: World) -> None:
    ref = await tree_model(world)
    over = await closed(world)
    sums = sum(statistics_of(world.study, index) for index in range(1, 5))
    bins = binning_from_sums(world.study, sums, 4)
    version = await world.newest()
    assert version.preprocessing == bins
    assert (over.training_rows, over.refine, over.parameters, over.trees) == (250, False, 0, None)
    assert (version.version, version.trees, version.file_bytes) == (0, 0, 0)
    assert text_of(world, 0) == NO_TREES
    assert ref.model_hash == model_hash(hashlib.sha256(b"").digest(), bins.canonical())


async def test_an_empty_model_is_offered_without_chunks(world: World) -> None:
    ref = await tree_model(world)
    site = world.prepare(world.params("training", integer_spec(1), (ref,), kind="strict", strict=spec_of(world))).sites[
        1
    ]
    wanted = ModelWanted(run_id=world.run_id, version=0, site_id=site.site_id, seal_pk=SealKey.generate().public)
    assert await world.site_says(site, wanted) == Ack()
    offer = await world.last_to(site, ModelOffered)
    assert offer is not None
    assert (offer.size, offer.chunks, offer.parameters_sha256) == (0, 0, hashlib.sha256(b"").digest())
    assert Binning.model_validate(offer.preprocessing) == (await world.newest()).preprocessing


def bills(index: int) -> Rows:
    draw = np.random.default_rng(index)
    values = np.minimum(draw.lognormal(4.0, 1.5, 400), 1e6)
    return Rows({"bill": values}, np.zeros(400, dtype=np.uint8))


async def test_skewed_features_are_refined_before_anything_is_grown(tmp_path: Path) -> None:
    world = await world_of(tmp_path, SKEWED)
    study, nothing = world.study, bills(0).take(np.zeros(0, dtype=np.int64))
    window = await integers(world, "statistics", ())
    await world.release(
        window, {index: tree_statistics_vector(study, bills(index), nothing) for index in window.view.indices}
    )
    first = await closed(world)
    assert first.refine
    assert first.model is not None
    coarse = (await world.newest()).preprocessing
    training = world.params("training", integer_spec(1), (first.model,), kind="strict", strict=spec_of(world))
    state = await world.state(await world.open(training))
    assert (state.outcome, state.reason) == ("CANCELLED", "BASE_MODEL_UNKNOWN")
    second = await integers(world, "refinement", (first.model,))
    vectors = {index: refinement_vector(coarse, bills(index)) for index in second.view.indices}
    await world.release(second, vectors)
    over = await closed(world)
    assert (over.state, over.refine, over.training_rows) == ("RELEASED", False, 1600)
    version = await world.newest()
    assert (version.version, version.preprocessing) == (1, refined(coarse, sum(vectors.values())))
    assert not needs_refinement(version.preprocessing)
    lineage = [(one.model.version, one.parent) for one in await world.heard(events.ModelReleased)]
    assert lineage == [(0, None), (1, first.model)]
    again = await integers(world, "refinement", (over.model,))  # type: ignore[arg-type]
    assert (await world.state(again)).reason == "SUPERSEDED"
    await world.close()


async def test_random_trees_grow_from_leaf_sums(tmp_path: Path) -> None:
    world = await world_of(tmp_path, RANDOM)
    study, ref = world.study, await tree_model(world)
    rules = (await world.newest()).preprocessing
    parts = {index: rows(60 + index, index) for index in range(1, 5)}
    text = b""
    for round_ in range(1, study.rounds + 1):
        model = check_random_trees(study, text) if text else None
        window = await integers(world, "update", (ref,), round=round_)
        vectors = {
            index: leaf_vector(study, round_, model, tree_columns(rules, part), part.labels)
            for index, part in parts.items()
        }
        await world.release(window, vectors)
        text = next_model(study, round_, text, sum(vectors.values()))
        version = await world.newest()
        assert text_of(world, version.version) == text
        assert (version.version, version.trees) == (round_, min(2 * round_, 5))
        ref = version.ref
    assert study.rounds == 3
    result = await evaluate(world, ref, parts)
    assert result.rows == 250
    assert result.auc is not None
    assert result.auc > 0.8
    files = await bundle(world, ref)
    assert files["model.txt"] == text
    card = json.loads(files["card.json"])
    assert (card["trees"]["rounds"], card["trees"]["objective"], card["secure_sum"]["ring_bits"]) == (5, "binary", 64)
    await world.close()


async def evaluate(world: World, ref: ModelRef, parts: dict[int, Rows]) -> Any:
    """Every site scores its rows with the published text."""
    version = await world.newest()
    text = text_of(world, version.version)
    study, rules = world.study, version.preprocessing
    from cohortium_aggregator.tree_models import check_text

    model = check_text(study, rules, text)
    window = await integers(world, "evaluation", (ref,), round=1)
    vectors = {}
    for index, part in parts.items():
        scores = response("binary", raw_scores(model, tree_columns(rules, part)))
        shap = np.array([index, 0.5, 0.0]) * len(part)
        vectors[index] = evaluation_vector(study, scores, part.labels, shap)
    await world.release(window, vectors)
    over = await closed(world)
    assert over.state == "RELEASED", over.reason
    return over.evaluation


async def bundle(world: World, ref: ModelRef) -> dict[str, bytes]:
    """The files of the finished run, which are those that were signed for."""
    ended = RunEnded(run_id=world.run_id, study_id=world.study.name, state="FINISHED", model=ref)
    await world.say("scheduler", ended)
    assert await world.app.bundler.bundle_finished() == 1
    with zipfile.ZipFile(io.BytesIO(world.app.ctx.data.bundle_zip(world.run_id).read_bytes())) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    assert set(files) == {
        "model.txt",
        "preprocessing.json",
        "study.json",
        "schema.json",
        "card.json",
        "card.md",
        "mlbom.cdx.json",
        "attestation.dsse.json",
    }
    statement = verify_statement(files["attestation.dsse.json"], [world.keys["aggregator"].public], 1)
    assert {name: hashlib.sha256(files[name]).digest() for name in statement.subjects} == statement.subjects
    assert "model.txt" in statement.subjects
    digest = hashlib.sha256(files["model.txt"]).digest()
    assert model_hash(digest, files["preprocessing.json"]) == ref.model_hash
    assert Binning.from_canonical(files["preprocessing.json"]) == (await world.newest()).preprocessing
    return files


async def test_a_grown_model_is_measured_and_bundled(world: World) -> None:
    training = await open_session(world, await tree_model(world))
    await training.agree(b"H" + header())
    await training.grow(range(1, ROUNDS + 1))
    await training.agree(end(ROUNDS, ROUNDS))
    await world.app.engine.settle()
    await world.app.opener.open(training.window.params.window_id)
    ref = (await closed(world)).model
    assert ref is not None
    parts = {index: rows(60 + index, index) for index in range(1, 5)}
    result = await evaluate(world, ref, parts)
    assert (result.rows, result.auc) == (250, pytest.approx(1.0))
    by_name = {one.name: one for one in result.importance}
    wanted = sum(index * (60 + index) for index in range(1, 5)) / 250
    assert by_name["age"].shap == pytest.approx(wanted, rel=1e-5)
    assert (by_name["age"].splits, by_name["age"].gain) == (ROUNDS, pytest.approx(12.5 * ROUNDS))
    assert (by_name["ward"].splits, by_name["ward"].gain) == (0, 0.0)
    files = await bundle(world, ref)
    card, text = json.loads(files["card.json"]), files["card.md"].decode()
    assert [one["name"] for one in card["trees"]["importance"]] == ["age", "pressure", "ward"]
    assert card["inputs"] == ["age", "pressure", "ward"]
    facts = {"sessions": 1, "cohort_changes": 0, "n": 4, "sums": 3}
    assert card["secure_sum"] | facts == card["secure_sum"]
    assert "seen by the aggregator and by every site" in text
    assert "The cohort changed" not in text
    assert "| Boosting rounds | 3 of 1 trees (binary) |" in text
    assert "| age | " in text


async def test_the_card_tells_that_the_cohort_has_changed(world: World) -> None:
    first = await open_session(world, await tree_model(world))
    await first.agree(b"H" + header())
    chain = await first.grow((1,))
    await first.sum()
    await world.pass_time(21)
    await world.app.opener.open(first.window.params.window_id)
    model = (await closed(world)).model
    assert model is not None
    others = [site for site in world.identities if site != first.window.sites[2].site_id]
    second = await open_session(world, model, spec_of(world, 1, chain, from_model=model), among=others)
    await second.agree(b"H" + header())
    await second.grow((2,))
    await second.agree(end(2, 2))
    await world.app.engine.settle()
    await world.app.opener.open(second.window.params.window_id)
    files = await bundle(world, (await closed(world)).model)  # type: ignore[arg-type]
    card = json.loads(files["card.json"])
    assert (card["secure_sum"]["sessions"], card["secure_sum"]["cohort_changes"]) == (2, 1)
    assert "The cohort changed while the model was grown" in files["card.md"].decode()


def test_a_random_trees_study_has_its_own_windows() -> None:
    study = Study.model_validate(RANDOM)
    assert (study.rounds, study.trees_per_round, study.objective) == (3, 1, "binary")
    assert Study.model_validate(STUDY).objective is None


async def test_the_released_text_is_what_lightgbm_predicts_with(world: World) -> None:
    lightgbm = pytest.importorskip("lightgbm")
    training = await open_session(world, await tree_model(world))
    await training.agree(b"H" + header())
    await training.grow(range(1, ROUNDS + 1))
    await training.agree(end(ROUNDS, ROUNDS))
    await world.app.engine.settle()
    await world.app.opener.open(training.window.params.window_id)
    version = await world.newest()
    booster = lightgbm.Booster(model_str=text_of(world, version.version).decode())
    matrix = tree_columns(version.preprocessing, rows(50, 1))
    wanted = np.where(matrix[:, 0] <= 64.5, -0.125 * 6, 0.25 * 6)
    assert np.array_equal(booster.predict(matrix, raw_score=True), wanted)
