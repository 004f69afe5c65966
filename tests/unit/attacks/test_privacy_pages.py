"""The pages of a benchmark and a calibration: whole, self-contained, readable without seeing the charts."""

import base64
import hashlib
import sys
from pathlib import Path

import pytest
from sample_reports import benchmark, calibration

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "sim_report"))

from page_reading import read_page

from cohortium_cli.privacy_page import render_benchmark, render_calibration
from cohortium_connector.training.privacy_report import ABOUT_ROWS, benchmark_words, calibration_words

PAGES = {"benchmark": render_benchmark(benchmark()), "calibration": render_calibration(calibration())}


@pytest.mark.parametrize("name", PAGES)
def test_the_policy_allows_its_own_style_and_script_and_nothing_else(name: str) -> None:
    page = read_page(PAGES[name])
    policy = next(meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    for kind in ("style", "script"):
        digest = base64.b64encode(hashlib.sha256(page.raw[kind].encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert not [tag for tag, _ in page.elements if tag in ("link", "img", "iframe", "object", "embed", "base")]
    assert not {attribute for _, own in page.elements for attribute in own} & {"src", "href", "style", "srcset"}


@pytest.mark.parametrize("name", PAGES)
def test_every_chart_has_words_and_every_table_a_caption(name: str) -> None:
    page = read_page(PAGES[name])
    charts = [svg for svg in page.all("svg") if svg.get("role") == "img"]
    assert len(charts) == {"benchmark": 2 * (1 + 3 + 2 + 1), "calibration": 2}[name]
    assert all(chart["aria-label"] for chart in charts)
    assert len(page.all("table")) == len(page.all("caption")) == {"benchmark": 3, "calibration": 1}[name]
    ids = [own["id"] for _, own in page.elements if "id" in own]
    assert len(ids) == len(set(ids))
    assert all(section["aria-labelledby"] in ids for section in page.all("section"))
    assert len(page.all("h1")) == 1


def test_the_benchmark_says_what_was_found_with_its_figures() -> None:
    text = read_page(PAGES["benchmark"]).text
    assert all(sentence in text for sentence in benchmark_words(benchmark()))
    assert ABOUT_ROWS in text
    for figure in ("0.700 to 0.720", "0.731", "24 of 24", "11 of 24", "99.9%", "refuted", "not contradicted"):
        assert figure in text


def test_the_calibration_says_what_was_found_with_its_figures() -> None:
    page = read_page(PAGES["calibration"])
    assert all(sentence in page.text for sentence in calibration_words(calibration()))
    assert ABOUT_ROWS in page.text
    labels = [svg["aria-label"] for svg in page.all("svg")]
    assert "0.700 at ε = 0.5; 0.800 at ε = 1; 0.900 at ε = 8; 0.890 without privacy." in str(labels[0])


def test_a_benchmark_without_canaries_says_so() -> None:
    assert "No run with a canary was asked for." in render_benchmark(benchmark().model_copy(update={"canaries": ()}))


def test_a_curve_of_one_point_is_drawn() -> None:
    single = calibration().model_copy(update={"points": calibration().points[:1]})
    assert "0.700 at ε = 0.5" in render_calibration(single)


def test_the_same_report_gives_the_same_page() -> None:
    assert render_benchmark(benchmark()) == PAGES["benchmark"]
    assert render_calibration(calibration()) == PAGES["calibration"]


def test_charts_stay_inside_their_boxes() -> None:
    for name, html in PAGES.items():
        for tag, own in read_page(html).elements:
            if tag == "circle":
                assert 0 <= float(own["cx"] or -1) <= 860, name
                assert 0 <= float(own["cy"] or -1) <= 300, name
            if tag == "rect":
                assert float(own["width"] or -1) > 0
                assert float(own["x"] or -1) >= 0
