"""What people are shown of a run with trees: live, printed, and in the report."""

from pathlib import Path

import pytest
import sample_run
import sample_trees
from page_reading import Page, read_page
from test_live_view import NOW, lines_of, shown, terminal
from test_report_charts import inside
from test_result_table import text_of

from cohortium_messages.result import MetricsResult, Result
from cohortium_messages.study import Study
from cohortium_messages.study_file import parse_study
from cohortium_sim.charts import NARROW, WIDE
from cohortium_sim.live import LiveView, round_line
from cohortium_sim.metric_words import WORDS, compared, main_metric, measured, plain
from cohortium_sim.report import render_report
from cohortium_sim.report_bars import bar_chart, bars
from cohortium_sim.report_trees import importance_chart

STUDIES = Path(__file__).parents[2] / "studies"


@pytest.fixture(scope="module")
def study() -> Study:
    return parse_study((STUDIES / "heart-trees.yaml").read_text("utf-8"))


def report(result: Result | None = None) -> Page:
    result = result or sample_trees.boosted_result()
    return read_page(render_report(result, sample_trees.boosted()))


class TestLive:
    @pytest.mark.parametrize("width", [20, 40, 80, 120])
    def test_the_picture_fits_and_counts_trees(self, study: Study, width: int) -> None:
        lines = shown(terminal(width), study, sample_trees.growing(37))
        assert max(len(line) for line in lines) <= width
        if width >= 80:
            assert "boosting round 37 of 60, session 2" in "\n".join(lines)
            assert " 61 %" in "\n".join(lines)

    def test_the_studys_own_metrics_are_shown(self, study: Study) -> None:
        text = "\n".join(shown(terminal(), study, sample_trees.boosted()))
        assert "log loss 0.412" in text
        counted = study.model_copy(update={"metrics": ("rmse", "mae")})
        found = sample_trees.evaluation(auc=None, accuracy=None, brier=None, rmse=12.345, mae=8.5)
        done = sample_trees.boosted().rounds_done[0].model_copy(update={"evaluation": found})
        text = "\n".join(shown(terminal(), counted, sample_trees.boosted(rounds_done=(done,))))
        assert "RMSE" in text
        assert "12.3" in text
        assert "MAE 8.5" in text
        assert "AUC" not in text

    def test_elsewhere_each_tenth_of_the_trees_is_one_line(self, study: Study) -> None:
        statuses = [sample_trees.growing(trees, 0) for trees in (0, 3, 6, 6, 7, 30, 59)] + [sample_trees.boosted()] * 2
        found = [line for line in lines_of(study, statuses) if line.startswith("boosting round")]
        assert found == [
            "boosting round 6 of 60",
            "boosting round 30 of 60",
            "boosting round 59 of 60",
            "boosting round 60 of 60",
        ]

    def test_the_round_is_told_with_its_trees(self) -> None:
        (done,) = sample_trees.boosted().rounds_done
        assert "60 boosting rounds, AUC 0.9" in round_line(done, 1)
        assert "dropped: Long Beach VA" in round_line(done, 1)

    def test_it_redraws(self, study: Study) -> None:
        console = terminal()
        with LiveView(study, console) as view:
            view.update(sample_trees.growing(5), 1.0, now=NOW)
            view.update(sample_trees.growing(6), 2.0, now=NOW)
        console.file.flush()


class TestTable:
    def test_models_training_and_its_changes_are_there(self, tmp_path: Path) -> None:
        text = text_of(sample_trees.boosted_result(), tmp_path)
        rows = {line.split("  ")[0].strip(): line for line in text.splitlines()}
        assert "0.412" in rows["federated"]
        assert "0.872" in rows["bagging"]
        assert "Log loss" in text
        assert "60 of 60 boosting rounds, 2 sessions, 561 steps, cohort changed once" in text
        assert "Long Beach VA in 1 of 2 sessions" in text
        assert "grew one model together, of 60 boosting rounds." in " ".join(text.split())

    def test_numbers_have_their_own_columns(self, tmp_path: Path) -> None:
        text = text_of(sample_trees.number_result(), tmp_path, encoding="ascii")
        head = next(line for line in text.splitlines() if line.startswith("Model"))
        assert [word for word in head.split() if word != "|"] == ["Model", "RMSE", "MAE", "R2"]
        assert "14.2" in next(line for line in text.splitlines() if line.startswith("federated"))

    def test_a_run_that_lost_a_site_for_good_says_so(self, tmp_path: Path) -> None:
        fewer = sample_trees.BOOSTED.model_copy(update={"trees": 31, "cohort_changes": 0})
        status = sample_trees.boosted(fewer, reason="SITES_LOST", sentence="Sites were waited for in vain.")
        changes = {"reason": status.reason, "sentence": status.sentence}
        text = " ".join(text_of(sample_trees.boosted_result(status, **changes), tmp_path).split())
        assert "of 31 boosting rounds. 60 were planned: Sites were waited for in vain." in text
        assert "cohort changed" not in text


class TestReport:
    def test_trees_sessions_and_the_changed_cohort_are_told(self) -> None:
        text = report().text
        for words in (
            "60 of 60",
            "2 sessions, 561 steps",
            "strict sessions",
            "Training was interrupted once",
            "The cohort changed once, as the study allows",
            "What the trees look at",
            "mean |SHAP|",
        ):
            assert words in text
        assert "No cohort was formed" not in text
        assert "Round by round" not in text

    def test_a_cohort_that_never_changed_is_not_warned_of(self) -> None:
        calm = sample_trees.BOOSTED.model_copy(update={"sessions": 1, "cohort_changes": 0})
        text = report(sample_trees.boosted_result(sample_trees.boosted(calm))).text
        assert "The cohort changed" not in text
        assert "interrupted" not in text

    def test_every_feature_is_in_the_table_by_importance(self) -> None:
        html = render_report(sample_trees.boosted_result(), sample_trees.boosted())
        places = [html.index(f'scope="row">{name}<') for name in sample_trees.FEATURES]
        assert places == sorted(places)
        assert "Importance of the features" in html

    def test_without_shap_the_gain_decides(self) -> None:
        plainly = tuple(one.model_copy(update={"shap": None}) for one in sample_trees.IMPORTANCE)
        done = sample_trees.boosted().rounds_done[0]
        done = done.model_copy(update={"evaluation": sample_trees.evaluation(importance=plainly)})
        status = sample_trees.boosted(rounds_done=(done,))
        text = read_page(render_report(sample_trees.boosted_result(status), status)).text
        assert "their gain" in text
        assert "|SHAP|, on the scale" not in text

    def test_charts_have_words_and_tables(self) -> None:
        page = report()
        charts = [svg for svg in page.all("svg") if svg.get("role") == "img"]
        assert all(svg["aria-label"] for svg in charts)
        assert any((svg["aria-label"] or "").startswith("Features by mean |SHAP|: thal 0.9;") for svg in charts)
        ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
        assert len(ids) == len(set(ids))

    def test_a_number_label_is_shown_by_its_error(self) -> None:
        result = sample_trees.number_result()
        text = read_page(render_report(result, sample_run.finished())).text
        for words in ("RMSE, federated", "14.2", "RMSE by round", "R² by round", "On 400 test rows its RMSE is 14.2"):
            assert words in text
        assert "AUC" not in text
        assert "With outcome" not in text

    def test_the_same_run_gives_the_same_report(self) -> None:
        first, second = (render_report(sample_trees.boosted_result(), sample_trees.boosted()) for _ in range(2))
        assert first == second


@pytest.mark.parametrize("width", [WIDE, NARROW])
@pytest.mark.parametrize("explained", [True, False])
def test_importance_stays_in_its_image(width: int, explained: bool) -> None:
    inside(importance_chart(list(sample_trees.IMPORTANCE), explained, width), width)


@pytest.mark.parametrize("width", [WIDE, NARROW])
@pytest.mark.parametrize("r2", [1.0, 0.4, 0.0, -0.3, -250.0])
def test_bars_of_models_that_are_worse_than_the_mean_stay_in_their_image(width: int, r2: float) -> None:
    table = sample_trees.number_result().metrics
    assert table.federated is not None
    table = table.model_copy(update={"pooled": table.federated.model_copy(update={"r2": r2})})
    word = compared([table.pooled])
    assert word is not None
    inside(bar_chart(bars(table, word), word, width), width)


def test_metrics_are_chosen_by_what_there_is() -> None:
    classes = MetricsResult(rows=10, positives=0, accuracy=0.5, log_loss=1.1)
    loss_only = MetricsResult(rows=10, positives=0, log_loss=1.1)
    assert [word.field for word in measured([classes, None])] == ["accuracy", "log_loss"]
    assert [word.field for word in measured([None])] == ["auc", "accuracy", "brier"]
    assert compared([loss_only]) is None
    assert {word.field for word in WORDS} <= set(MetricsResult.model_fields)
    chosen = [main_metric(metrics) for metrics in (classes, loss_only, sample_trees.numbers(3))]
    assert [word.field if word else None for word in chosen] == ["accuracy", "log_loss", "rmse"]


@pytest.mark.parametrize(
    ("value", "shown_as"),
    [(None, "–"), (0.0, "0.000"), (1.23456, "1.23"), (99.96, "100"), (1234.5, "1,234"), (1e-6, "1.00e-06")],
)
def test_numbers_in_an_unknown_unit_have_the_digits_that_count(value: float | None, shown_as: str) -> None:
    assert plain(value) == shown_as


def test_a_tree_result_survives_being_written_and_read() -> None:
    result = sample_trees.boosted_result()
    assert Result.from_json(result.to_json()) == result
    assert result.training is not None
    assert (result.training.trees, result.training.sessions, result.training.seconds) == (60, 2, 48.2)
