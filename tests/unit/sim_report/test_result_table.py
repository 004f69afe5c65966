"""The printed result."""

import io
from pathlib import Path

import sample_run
from rich.console import Console

from cohortium_messages.result import MetricsTable, Result
from cohortium_sim.table import print_result


def text_of(
    result: Result, out: Path, surprises: tuple[str, ...] = (), *, width: int = 80, encoding: str = "utf-8"
) -> str:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, newline="")
    print_result(result, out, surprises, Console(file=stream, width=width))
    stream.flush()
    return stream.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]


def test_models_secure_sum_audit_and_files_are_there(tmp_path: Path) -> None:
    (tmp_path / "report.html").touch()
    (tmp_path / "audit").mkdir()
    text = text_of(sample_run.result(), tmp_path)
    assert "heart-disease  ✓ finished" in text
    rows = {line.split("  ")[0]: line for line in text.splitlines()}
    assert "0.904 ± 0.003" in rows["federated"]
    assert "0.899" in rows["pooled"]
    assert "0.437" in rows["only Zurich"]
    assert "4 sites, 3 must answer, 1 may collude" in text
    assert "✓ verified, 487 entries, root 3f2a91c03f2a91c0…" in text
    assert "Zurich in 29 of 30 sums" in text
    assert "model " not in [line[:6] for line in text.splitlines()]


def test_paths_are_never_broken_and_nothing_is_coloured_when_piped(tmp_path: Path) -> None:
    deep = tmp_path / "a-folder-with-a-long-name" / "and-another-one-inside-of-it" / "result"
    deep.mkdir(parents=True)
    (deep / "report.html").touch()
    text = text_of(sample_run.result(), deep, width=40)
    assert str(deep / "report.html") in text
    assert "\x1b" not in text


def test_what_was_not_planned_is_said(tmp_path: Path) -> None:
    assert "not planned Zurich vanished" in text_of(sample_run.result(), tmp_path, ("Zurich vanished",))


def test_a_bundle_that_does_not_verify_stands_out(tmp_path: Path) -> None:
    result = sample_run.result()
    assert result.audit is not None
    check = result.audit.checks[0].model_copy(update={"state": "failed", "fact": "entry 3: wrong signature"})
    audit = result.audit.model_copy(update={"verified": False, "checks": (check,)})
    text = " ".join(text_of(result.model_copy(update={"audit": audit}), tmp_path).split())
    assert "× NOT VERIFIED" in text
    assert "trust document: entry 3: wrong signature" in text


def test_a_run_without_anything_is_printed_all_the_same(tmp_path: Path) -> None:
    status = sample_run.finished(0).model_copy(update={"state": "FAILED", "secure_sum": None, "sites": ()})
    result = sample_run.result(status).model_copy(update={"metrics": MetricsTable(), "audit": None})
    text = text_of(result, tmp_path)
    assert "× failed" in text
    assert "no bundle was fetched" in text


def test_a_terminal_without_unicode_gets_ascii(tmp_path: Path) -> None:
    assert "0.904 +/- 0.003" in text_of(sample_run.result(), tmp_path, encoding="ascii")


def test_names_cannot_steer_the_terminal(tmp_path: Path) -> None:
    evil = "\x1b[2J[red]x[/red]\x07"
    result = sample_run.result().model_copy(update={"metrics": MetricsTable(local={evil: sample_run.LOCAL["Zurich"]})})
    text = text_of(result, tmp_path, (evil,))
    assert not set(text) & set("\x1b\x07")
    assert "[red]x[/red]" in text
