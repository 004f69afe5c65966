"""A session that ends early is gone on with from the journals: the same model, and no sum is asked for twice."""

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lightgbm_cases import binary_sites, cases, mixed_sites, multiclass_sites, number_sites, study_of
from lightgbm_world import Prepared, Session, World, model_of, trees_of

from cohortium_connector.training.live_wire import AGREE, RELAY, SUM
from cohortium_connector.training.runner import TrainingFailed, TrainingRefused, TrainingStopped

pytest.importorskip("lightgbm", reason="the training extra is not installed")

BINARY = {"type": "binary"}
CLASSES = {"type": "multiclass", "levels": ["mild", "severe", "critical"]}
NUMBER = {"type": "number", "range": [0.0, 4.0]}
SIZES = (150, 500, 250, 300)
CATEGORIES = {"min_data_per_group": 20, "cat_smooth": 2.0, "max_cat_to_onehot": 3}
STOPPING = {"early_stopping_round": 2, "learning_rate": 0.9, "num_leaves": 40, "min_data_in_leaf": 5}
CASES: dict[str, tuple[Any, Any]] = {
    "binary": (study_of(BINARY, rounds=6), binary_sites(SIZES)),
    "multiclass": (study_of(CLASSES, rounds=6), multiclass_sites(SIZES, CLASSES["levels"])),
    "regression": (study_of(NUMBER, rounds=6), number_sites(SIZES)),
    "fractions": (
        study_of(BINARY, rounds=6, params={"feature_fraction": 0.5, "feature_fraction_bynode": 0.6}),
        binary_sites(SIZES, seed=30),
    ),
    "extra trees with categories": (
        study_of(BINARY, rounds=6, categories=2, missing="native", params=CATEGORIES | {"extra_trees": True}),
        mixed_sites(SIZES, seed=31),
    ),
    "early stopping": (study_of(BINARY, rounds=40, params=STOPPING), binary_sites(SIZES, seed=32)),
}


def in_round(number: int, sums: int) -> Callable[[Session], bool]:
    """When a session is in this round, counted from 1, and has asked for so many sums in it."""
    begun: list[int] = []

    def reached(session: Session) -> bool:
        if len(session.rounds) < number - 1:
            return False
        begun.append(session.kinds[-1])
        return begun.count(SUM) >= sums

    return reached


@pytest.mark.parametrize("name", cases(CASES, "multiclass", "extra trees with categories", "early stopping"))
def test_a_session_stopped_inside_a_tree_is_gone_on_with(world: World, name: str) -> None:
    study, tables = CASES[name]
    prepared = world.prepare(study, tables)
    whole = world.train(prepared)
    first = world.train(prepared, stop=in_round(4, 5))
    assert [getattr(result, "code", result) for result in first.results] == ["SITE_SILENT"] * 4
    assert [getattr(result, "rounds", None) for result in first.results] == [3] * 4
    second = world.train(prepared, trees_done=3, chain=first.chains[2])
    assert second.end == whole.end
    assert first.rounds + second.rounds == whole.rounds
    assert second.header == first.header == whole.header
    assert {result.replayed for result in second.results} == {3}


def test_nothing_that_stands_is_asked_for_again(world: World) -> None:
    study, tables = CASES["binary"]
    prepared = world.prepare(study, tables)
    whole = world.train(prepared)
    first = world.train(prepared, stop=in_round(4, 5))
    second = world.train(prepared, trees_done=3, chain=first.chains[2])
    assert second.kinds[0] == AGREE, "the header, before the first sum"
    asked = len(second.kinds) - 1
    agreed = [place for place, kind in enumerate(whole.kinds) if kind == AGREE]
    assert asked == len(whole.kinds) - agreed[3] - 1, "as many as were asked after the third round"


def test_a_round_stands_although_its_answer_never_came(world: World) -> None:
    study, tables = CASES["binary"]
    prepared = world.prepare(study, tables)
    whole = world.train(prepared)
    first = world.train(prepared, lose=lambda session: len(session.rounds) == 2)
    assert len(first.rounds) == 2
    second = world.train(prepared, trees_done=2, chain=first.chains[1])
    assert first.rounds + second.rounds == whole.rounds


def test_a_round_that_was_not_agreed_on_is_grown_again(world: World) -> None:
    study, tables = CASES["binary"]
    prepared = world.prepare(study, tables)
    whole = world.train(prepared)
    first = world.train(prepared, stop=lambda session: len(session.rounds) == 2 and session.kinds[-1] == AGREE)
    second = world.train(prepared, trees_done=2, chain=first.chains[1])
    assert first.rounds + second.rounds == whole.rounds


def test_a_session_can_be_gone_on_with_twice_and_from_an_earlier_round(world: World) -> None:
    study, tables = CASES["fractions"]
    prepared = world.prepare(study, tables)
    whole = world.train(prepared)
    first = world.train(prepared, stop=in_round(3, 4))
    second = world.train(prepared, trees_done=2, chain=first.chains[1], stop=in_round(3, 2))
    assert len(second.rounds) == 2
    third = world.train(prepared, trees_done=3, chain=second.chains[0])
    assert whole.rounds == first.rounds + second.rounds[:1] + third.rounds


def test_a_process_that_is_killed_goes_on_from_what_is_on_disk(world: World) -> None:
    study, tables = CASES["binary"]
    prepared = world.prepare(study, tables)
    whole = world.train(prepared)
    first = world.train(prepared, hang_up=in_round(4, 3))
    assert all(isinstance(result, TrainingFailed) for result in first.results)
    for site in range(4):
        torn = prepared.folder / f"journal {site}"
        with torn.open("ab") as file:
            file.write(b"\x05\x18\x00\x00\x00only half of a record")
    second = world.train(prepared, trees_done=3, chain=first.chains[2])
    assert first.rounds + second.rounds == whole.rounds


def ruined(prepared: Prepared, how: str) -> dict[str, Any]:
    """What the next session says, after something has happened to a journal."""
    journal = prepared.folder / "journal 2"
    match how:
        case "lost":
            journal.unlink()
        case "another study's":
            data = bytearray(journal.read_bytes())
            data[10] ^= 1
            journal.write_bytes(data)
        case "too short":
            journal.write_bytes(journal.read_bytes()[:200])
        case "another chain":
            return {"chain": bytes(31) + b"\1"}
        case "an answer changed":
            data = bytearray(journal.read_bytes())
            place = data.index(b"\x07" + struct.pack("<I", 2 * (94 + 4 * 32)))  # the first split that was found
            data[place + 5 + 24 + 6] ^= 1  # a leading digit of its left side's value
            journal.write_bytes(data)
    return {}


@pytest.mark.parametrize("how", ["lost", "another study's", "too short", "another chain", "an answer changed"])
def test_a_journal_that_cannot_be_gone_on_with_is_refused(world: World, how: str) -> None:
    study, tables = CASES["binary"]
    prepared = world.prepare(study, tables)
    first = world.train(prepared, stop=in_round(3, 3))
    spec = {"chain": first.chains[1]} | ruined(prepared, how)
    second = world.train(prepared, trees_done=2, **spec)
    refused = [result for result in second.results if isinstance(result, TrainingRefused)]
    assert [result.code for result in refused] == ["JOURNAL_UNUSABLE"] * (4 if how == "another chain" else 1)
    assert not second.rounds


def test_rows_that_changed_since_the_run_began_are_refused(world: World) -> None:
    study, tables = CASES["binary"]
    prepared = world.prepare(study, tables)
    table = prepared.tables[0]
    lines = table.read_text().splitlines()
    table.write_text("\n".join([lines[0], *lines[2:], lines[1]]) + "\n")
    session = world.train(prepared)
    assert [getattr(result, "code", "") for result in session.results].count("DATA_CHANGED") == 1
    assert not session.questions


def test_other_sites_go_on_from_the_published_model(world: World, tmp_path: Path) -> None:
    """One hospital stays away: the others boost on from the model so far; and that session can be gone on with too."""
    study, tables = CASES["binary"]
    prepared = world.prepare(study, tables)
    first = world.train(prepared, stop=in_round(4, 3))
    base = tmp_path / "model.txt"
    base.write_text(model_of(first))
    rest = [0, 1, 3]
    whole = world.train(prepared, trees_done=3, base=base, chain=first.chains[2], sites=rest)
    assert whole.end == {"best_round": 6, "rounds": 6}
    assert whole.kinds[:3] == [SUM, SUM, AGREE], "no first score: it starts from the model's"
    assert whole.kinds[3] == SUM
    begun = world.train(
        prepared, trees_done=3, base=base, chain=first.chains[2], sites=rest, stop=lambda s: len(s.rounds) == 1
    )
    after = world.train(prepared, trees_done=4, chain=begun.chains[0], sites=rest)
    assert begun.rounds + after.rounds == whole.rounds
    text = model_of(whole, before=model_of(first))
    assert trees_of(text).count("Tree=") == 6


def test_a_model_that_is_gone_on_from_is_checked_before_lightgbm_sees_it(world: World, tmp_path: Path) -> None:
    study, tables = CASES["binary"]
    prepared = world.prepare(study, tables)
    first = world.train(prepared, stop=in_round(3, 3))
    base = tmp_path / "model.txt"
    base.write_text(model_of(first).replace("left_child=1", "left_child=999999999", 1))
    session = world.train(prepared, trees_done=2, base=base, chain=first.chains[1], sites=[0, 1, 2])
    assert [getattr(result, "code", "") for result in session.results] == ["MODEL_REFUSED"] * 3
    assert all(runner.pid for runner in world.runners[:3])


def test_processes_are_ready_for_the_next_job_after_a_stop(world: World) -> None:
    study, tables = CASES["binary"]
    prepared = world.prepare(study, tables)
    before = [runner.pid for runner in world.runners]
    stopped = world.train(prepared, stop=lambda session: session.kinds[-1] == RELAY)
    assert all(isinstance(result, TrainingStopped) for result in stopped.results)
    assert world.train(prepared).end == {"best_round": 6, "rounds": 6}
    assert [runner.pid for runner in world.runners] == before
