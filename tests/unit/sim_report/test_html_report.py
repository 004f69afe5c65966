"""The HTML report: whole, self-contained, readable by everybody, and not to be taken over by a name."""

import base64
import hashlib
import re

import pytest
import sample_run
from hostile_words import HOSTILE, with_words
from hypothesis import given, settings
from hypothesis import strategies as st
from page_reading import Page, read_page

from cohortium_messages.result import MetricsTable
from cohortium_sim.report import render_report
from cohortium_sim.report_page import GRAPHIC_PAIRS, PALETTE, TEXT_PAIRS
from cohortium_sim.report_words import clean


def report() -> Page:
    return read_page(render_report(sample_run.result(), sample_run.finished()))


@pytest.mark.parametrize("words", HOSTILE)
def test_hostile_words_are_shown_and_change_no_element(words: str) -> None:
    page = read_page(render_report(*with_words(words)))
    assert page.shape == read_page(render_report(*with_words("Cleveland"))).shape
    assert page.text.count(clean(words)) >= 8


@given(st.text(min_size=1, max_size=40))
@settings(max_examples=30, deadline=None)
def test_no_words_change_an_element(words: str) -> None:
    page = read_page(render_report(*with_words(words)))
    assert page.shape == read_page(render_report(*with_words("Cleveland"))).shape


def test_characters_that_turn_or_hide_text_are_replaced() -> None:
    html = render_report(*with_words("\x00\x1b[2J\u202egnp.exe\u2028"))
    assert not set(html) & set("\x00\x1b\u202e\u2028\x7f")


def test_the_policy_allows_its_own_style_and_script_and_nothing_else() -> None:
    page = report()
    metas = page.all("meta")
    policy = next(meta["content"] for meta in metas if meta.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    for kind in ("style", "script"):
        digest = base64.b64encode(hashlib.sha256(page.raw[kind].encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
        assert len(page.all(kind)) == 1
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


def test_nothing_is_fetched_from_anywhere() -> None:
    page = report()
    assert not [
        name for name, _ in page.elements if name in ("link", "img", "iframe", "object", "embed", "base", "use")
    ]
    used = {attribute for _, attributes in page.elements for attribute in attributes}
    assert not used & {"src", "href", "srcset", "style", "action", "ping", "xlink:href"}
    assert "url(" not in page.raw["style"]
    assert "@import" not in page.raw["style"]


def test_every_chart_has_words_for_those_who_do_not_see_it_and_a_table() -> None:
    page = report()
    charts = [svg for svg in page.all("svg") if svg.get("role") == "img"]
    assert len(charts) >= 12  # each of six for wide and for narrow screens
    assert all(svg["aria-label"] for svg in charts)
    captions = ("Models on the test rows", "Metrics by round", "Part of each site in the rounds", "Cost by round")
    assert all(caption in page.text for caption in captions)
    assert len(page.all("table")) == len(page.all("caption"))
    assert all(head.get("scope") in ("col", "row") for head in page.all("th"))


def test_identifiers_are_unique_and_headings_are_named() -> None:
    page = report()
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert all(section["aria-labelledby"] in ids for section in page.all("section"))
    assert len(page.all("h1")) == 1


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_colours_have_the_contrast_of_wcag_aa(theme: int) -> None:
    low = [pair for pair in TEXT_PAIRS if contrast(*(PALETTE[name][theme] for name in pair)) < 4.5]
    low += [pair for pair in GRAPHIC_PAIRS if contrast(*(PALETTE[name][theme] for name in pair)) < 3.0]
    assert low == []


def contrast(first: str, second: str) -> float:
    light, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    channels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_the_style_uses_no_colour_outside_the_palette() -> None:
    style = report().raw["style"]
    assert set(re.findall(r"#[0-9a-f]{3,8}\b", style)) == {colour for pair in PALETTE.values() for colour in pair}
    assert set(re.findall(r"var\(--([a-z]+)\)", style)) <= set(PALETTE)


def test_the_figures_of_the_run_are_in_the_text() -> None:
    text = report().text
    assert "4 sites trained one model together in 30 rounds" in text
    assert "Any one site may vanish after upload" in text
    assert "The operator and one site that colludes with it can learn nothing" in text
    assert "no formal privacy guarantee" in text
    assert "487 entries, each signed by the key that it names" in text
    assert "taken from the bundle itself" in text


def test_who_was_dropped_and_who_refused_is_said_in_words() -> None:
    html = render_report(sample_run.result(), sample_run.finished())
    assert "Zurich, round 7: dropped: in the cohort, not in the sum" in html
    assert "Budapest, round 19: refused" in html
    assert "Long Beach VA, round 5: not in the cohort" in html


def test_a_run_that_failed_says_why() -> None:
    status = sample_run.finished(3).model_copy(
        update={"state": "FAILED", "reason": "NOT_ENOUGH_READY", "sentence": "Fewer sites than the minimum were ready."}
    )
    result = sample_run.result(status).model_copy(update={"sentence": status.sentence, "reason": status.reason})
    text = read_page(render_report(result, status)).text
    assert "The run failed after 3 rounds of 30: Fewer sites than the minimum were ready." in text
    assert "failed" in text


def test_a_run_that_never_began_still_has_a_report() -> None:
    status = sample_run.finished(0).model_copy(
        update={"state": "STOPPED", "sites": (), "model": None, "secure_sum": None}
    )
    result = sample_run.result(status).model_copy(
        update={"metrics": MetricsTable(), "audit": None, "processes": {}, "sites": ()}
    )
    text = read_page(render_report(result, status)).text
    assert "No model was evaluated." in text
    assert "No cohort was formed" in text
    assert "No audit bundle was fetched" in text


def test_a_thousand_rounds_stay_readable() -> None:
    result = sample_run.result()
    one = result.rounds[0]
    rounds = tuple(one.model_copy(update={"number": number}) for number in range(1, 1001))
    page = read_page(render_report(result.model_copy(update={"rounds": rounds}), sample_run.finished()))
    assert "500 of 1,000, evenly chosen" in page.text
    assert len(page.elements) < 20_000


def test_the_status_of_another_run_is_refused() -> None:
    other = sample_run.finished().model_copy(update={"run_id": "00000000-0000-4000-8000-000000000000"})
    with pytest.raises(ValueError, match="the status of run"):
        render_report(sample_run.result(), other)


def test_the_same_run_gives_the_same_report() -> None:
    first, second = (render_report(sample_run.result(), sample_run.finished()) for _ in range(2))
    assert first == second
