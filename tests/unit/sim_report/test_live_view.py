"""The live view: a picture on a terminal of any width, lines everywhere else, and no steering by names."""

import io
from datetime import timedelta
from pathlib import Path

import pytest
import sample_run
from rich.console import Console

from cohortium_messages.status import RunStatus
from cohortium_messages.study import Study
from cohortium_messages.study_file import parse_study
from cohortium_sim.live import LiveView, picture, sparkline

NOW = sample_run.BEGUN + timedelta(seconds=24)
EVIL = "\x1b[2J\x1b]0;owned\x07[red]x[/red][/]\r\nnext\u202e"


@pytest.fixture(scope="module")
def study() -> Study:
    return parse_study((Path(__file__).parents[2] / "studies" / "example.yaml").read_text("utf-8"))


def terminal(width: int = 100, height: int = 40, encoding: str = "utf-8") -> Console:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, newline="")
    return Console(file=stream, width=width, height=height, force_terminal=True, color_system=None)


def printed(console: Console) -> str:
    console.file.flush()
    assert isinstance(console.file, io.TextIOWrapper)
    return console.file.buffer.getvalue().decode(console.file.encoding)  # type: ignore[attr-defined]


def shown(console: Console, study: Study, status: RunStatus) -> list[str]:
    console.print(picture(console, study, status, 24.2, NOW))
    return printed(console).splitlines()


@pytest.mark.parametrize("width", [20, 40, 60, 76, 80, 100, 200])
@pytest.mark.parametrize("rounds", [0, 1, 18, 30])
def test_the_picture_fits_the_terminal(study: Study, width: int, rounds: int) -> None:
    lines = shown(terminal(width), study, sample_run.running(rounds))
    assert max(len(line) for line in lines) <= width
    assert len(lines) < 40


def test_the_picture_says_who_does_what(study: Study) -> None:
    text = "\n".join(shown(terminal(), study, sample_run.running(18)))
    for words in (
        "heart-disease",
        "buffered",
        "round 18 of 30",
        "● training",
        "! silent",
        "× refused",
        "Budapest: A column has values outside the study's range",
        "update, round 19: sites work; ready: Budapest",
        "280.8 kB up, 533.6 kB down",
        "0.897 ± 0.004",
    ):
        assert words in text


def test_a_narrow_terminal_still_says_who_does_what(study: Study) -> None:
    text = "\n".join(shown(terminal(60), study, sample_run.running(18)))
    for words in ("heart-disease", "Long Beach VA", "● training", "× refused", "0.897 ± 0.004"):
        assert words in text


def test_two_hundred_sites_do_not_outgrow_the_terminal(study: Study) -> None:
    status = sample_run.running(3)
    many = tuple(
        status.sites[0].model_copy(
            update={"name": f"Hospital {number}", "state": "silent" if number == 150 else "idle"}
        )
        for number in range(200)
    )
    lines = shown(terminal(80, 24), study, status.model_copy(update={"sites": many}))
    assert len(lines) <= 24
    assert any("Hospital 150" in line and "! silent" in line for line in lines)
    assert any("and 192 more sites" in line for line in lines)


def test_a_terminal_without_unicode_gets_ascii(study: Study) -> None:
    text = "\n".join(shown(terminal(encoding="ascii"), study, sample_run.running(18)))
    assert "* training" in text
    assert "0.897 +/- 0.004" in text


def test_names_cannot_steer_the_terminal(study: Study) -> None:
    status = sample_run.running(18)
    sites = tuple(
        site.model_copy(update={"name": EVIL, "sentence": EVIL, "state": EVIL, "code": "LABEL_INVALID"})
        for site in status.sites
    )
    hostile = status.model_copy(update={"purpose": EVIL, "sites": sites, "mode": EVIL})
    text = "\n".join(shown(terminal(), study, hostile))
    assert not set(text) & set("\x1b\x07\u202e\r")
    assert "[red]x[/red][/]" in text


def test_a_study_without_metrics_shows_none(study: Study) -> None:
    bare = study.model_copy(update={"metrics": ()})
    assert not any("AUC" in line for line in shown(terminal(), bare, sample_run.running(4)))


def test_on_a_terminal_it_redraws_and_leaves_the_last_picture(study: Study) -> None:
    console = terminal()
    with LiveView(study, console) as view:
        for rounds in (1, 2, 3):
            view.update(sample_run.running(rounds), float(rounds), now=NOW)
    text = printed(console)
    assert text.rindex("round 3 of 30") > text.rindex("round 2 of 30")
    assert text.endswith("\x1b[?25h")  # the cursor is back


def lines_of(study: Study, statuses: list[RunStatus], form: str = "auto") -> list[str]:
    stream = io.StringIO()
    console = Console(file=stream, width=80, force_terminal=form == "lines")
    with LiveView(study, console, "lines" if form == "lines" else "auto") as view:
        for status in statuses:
            view.update(status, 12.0, now=NOW)
    return stream.getvalue().splitlines()


@pytest.mark.parametrize("form", ["auto", "lines"], ids=["not a terminal", "asked for"])
def test_elsewhere_each_round_is_one_line_and_comes_once(study: Study, form: str) -> None:
    statuses = [sample_run.running(rounds) for rounds in (0, 1, 1, 2, 5, 5, 18)] + [sample_run.finished()] * 2
    found = lines_of(study, statuses, form)
    rounds = [line for line in found if line.startswith("round")]
    assert [int(line.split()[1]) for line in rounds] == list(range(1, 31))
    assert not any("\x1b" in line for line in found)
    assert found[0] == "heart-disease: trains"
    assert found[-1] == "heart-disease: finished after 12.0 s"
    assert "dropped: Zurich" in rounds[6]


def test_a_rounds_line_waits_for_its_evaluation(study: Study) -> None:
    before = lines_of(study, [sample_run.running(2)])
    assert [line.split()[1] for line in before if line.startswith("round")] == ["1"]
    after = lines_of(study, [sample_run.running(2), sample_run.running(3)])
    assert all("AUC" in line for line in after if line.startswith("round"))


def test_a_refusal_is_said_once(study: Study) -> None:
    found = lines_of(study, [sample_run.running(18), sample_run.running(18), sample_run.running(19)])
    assert sum("Budapest: refused." in line for line in found) == 1


def test_a_failure_says_why(study: Study) -> None:
    failed = sample_run.finished(2).model_copy(
        update={"state": "FAILED", "reason": "NOT_ENOUGH_READY", "sentence": "Fewer sites were ready."}
    )
    assert lines_of(study, [failed])[-1] == "heart-disease: failed after 12.0 s: Fewer sites were ready."


def test_a_sparkline_does_not_make_much_of_noise() -> None:
    console = terminal()
    assert sparkline([], console) == ""
    assert sparkline([0.5, 0.75, 1.0], console) == "▁▅█"
    assert set(sparkline([0.900, 0.901, 0.902], console)) == {"▁"}
