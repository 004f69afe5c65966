"""`study check` of a study with trees: what it tells of cost and of a lost site before anybody trains."""

from pathlib import Path

import pytest
from cli_stage import RUN_ID, CommandLine, PlayedServices, run_status, run_summary

STUDIES = Path(__file__).resolve().parents[2] / "studies"
TREES = (STUDIES / "heart-trees.yaml").read_text()


def told(cli: CommandLine, folder: Path, *pairs: tuple[str, str]) -> str:
    text = TREES
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new, 1)
    (folder / "study.yaml").write_text(text)
    return cli.ok("study", "check", "study.yaml")


def test_a_tree_study_is_told_with_its_cost(cli: CommandLine, tmp_path: Path) -> None:
    text = told(cli, tmp_path)
    for words in (
        "13 features, lightgbm, 60 boosting rounds, at least 3 sites",
        "objective binary, label disease (binary); metrics auc, accuracy, brier, log_loss",
        "about 480 steps",
        "at most 63 bins a number",
        "the others wait 600 s for it, then the trees so far are the model",
    ):
        assert words in text
    assert "stops early" not in text


@pytest.mark.parametrize(
    ("pairs", "steps"),
    [
        ([("num_leaves: 4", "num_leaves: 31")], "about 3,720 steps"),
        ([("num_leaves: 4", "num_leaves: 31\n    max_depth: 2")], "about 480 steps"),
        (
            [
                ("{name: disease, type: binary}", "{name: stage, type: multiclass, levels: [calm, mild, grave]}"),
                ("metrics: [auc, accuracy, brier, log_loss]\n", ""),
            ],
            "about 1,320 steps",
        ),
    ],
    ids=["leaves", "depth", "a tree for each class"],
)
def test_steps_grow_with_leaves_and_classes(
    pairs: list[tuple[str, str]], steps: str, cli: CommandLine, tmp_path: Path
) -> None:
    assert steps in told(cli, tmp_path, *pairs)


def test_what_a_change_of_the_cohort_shows_is_said(cli: CommandLine, tmp_path: Path) -> None:
    text = told(cli, tmp_path, ("  min_sites: 3", "  min_sites: 3\n  allow_cohort_change: true\n  rejoin_s: 45"))
    assert "the others wait 45 s for it, then go on without it" in text
    assert "sees that site's part" in text


def test_early_stopping_is_told(cli: CommandLine, tmp_path: Path) -> None:
    text = told(cli, tmp_path, ("    lambda_l2: 1", "    lambda_l2: 1\n    early_stopping_round: 7\n    metric: auc"))
    assert "stops early when auc has not got better for 7 rounds, on 20 % of the training rows" in text


def test_a_program_learns_the_same(cli: CommandLine, tmp_path: Path) -> None:
    told(cli, tmp_path)
    facts = cli.facts("study", "check", "study.yaml")
    assert facts["expected_steps"] == 480
    assert (facts["objective"], facts["boosting_rounds"], facts["max_bin"]) == ("binary", 60, 63)
    assert facts["allow_cohort_change"] is False
    assert facts["metrics"] == ["auc", "accuracy", "brier", "log_loss"]


def test_random_trees_are_told_in_sums(cli: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text((STUDIES / "heart-random-trees.yaml").read_text())
    text = cli.ok("study", "check", "study.yaml")
    assert "60 trees in 20 sums" in text
    assert "drawn from public ranges" in text
    facts = cli.facts("study", "check", "study.yaml")
    assert (facts["trees"], facts["sums"]) == (60, 20)
    assert "expected_steps" not in facts


BOOSTING = {"trees": 37, "rounds": 60, "sessions": 1, "steps": 300, "cohort_changes": 1}


def test_a_run_is_listed_with_its_trees(cli: CommandLine, services: PlayedServices) -> None:
    services.listed("GET /runs", [run_summary(boosting=BOOSTING)])
    assert "37/60 trees" in cli.ok("runs")
    assert cli.facts("runs")[0]["boosting"]["trees"] == 37


def test_a_run_is_shown_with_its_sessions_and_the_labels_own_metric(cli: CommandLine, services: PlayedServices) -> None:
    evaluation = {"model": {"version": 3, "model_hash": "00" * 32}, "rows": 9, "positives": 0, "rmse": 8.25}
    (done,) = run_status()["rounds_done"]
    status = run_status(boosting=BOOSTING, rounds_done=[{**done, "trees": 37, "evaluation": evaluation}])
    services.answer(f"GET /runs/{RUN_ID}", status)
    text = cli.ok("run-status", RUN_ID)
    for words in ("boosting round 37 of 60, 1 session ended, 1 change of the cohort", "RMSE", "8.2500"):
        assert words in text
    assert "AUC" not in text
