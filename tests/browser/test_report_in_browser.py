"""The report in a real browser: quiet, alone, in both themes, at any width, and unmoved by hostile names."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import sample_run
from hostile_words import HOSTILE, with_words

from cohortium_messages.result import Result
from cohortium_messages.status import RunStatus
from cohortium_sim.report import render_report

pytestmark = pytest.mark.timeout(120)


@dataclass
class Seen:
    """What the browser did beside showing the page."""

    messages: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    dialogs: list[str] = field(default_factory=list)


@dataclass
class Opened:
    page: Any
    seen: Seen

    def value(self, script: str) -> Any:
        return self.page.evaluate(script)

    def background(self) -> str:
        return str(self.value("getComputedStyle(document.documentElement).backgroundColor"))


Open = Callable[..., Opened]


@pytest.fixture
def open_report(browser: Any, tmp_path: Path) -> Iterator[Open]:
    contexts = []

    def opener(
        content: tuple[Result, RunStatus] | None = None,
        *,
        width: int = 1100,
        scheme: str = "light",
        scripts: bool = True,
    ) -> Opened:
        result, status = content or (sample_run.result(), sample_run.finished())
        file = tmp_path / "report.html"
        file.write_text(render_report(result, status), encoding="utf-8", newline="\n")
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, java_script_enabled=scripts
        )
        contexts.append(context)
        seen, page = Seen(), context.new_page()
        page.on("console", lambda message: seen.messages.append(message.text))
        page.on("pageerror", lambda error: seen.messages.append(str(error)))
        page.on("request", lambda request: seen.requests.append(request.url))
        page.on("dialog", lambda dialog: (seen.dialogs.append(dialog.message), dialog.dismiss()))
        page.goto(file.as_uri())
        page.wait_for_load_state("networkidle")
        return Opened(page, seen)

    yield opener
    for context in contexts:
        context.close()


def test_it_asks_for_nothing_and_complains_of_nothing(open_report: Open) -> None:
    opened = open_report()
    assert opened.seen.messages == []
    assert len(opened.seen.requests) == 1  # the file itself
    assert opened.page.title() == "heart-disease: Cohortium run report"


def test_the_style_was_allowed(open_report: Open) -> None:
    """A digest that does not fit would leave the page bare, and only the browser would know."""
    assert open_report().background() == "rgb(244, 246, 248)"


def test_it_follows_the_systems_theme(open_report: Open) -> None:
    assert open_report(scheme="dark").background() != open_report(scheme="light").background()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_button_turns_the_theme_and_the_choice_is_kept(open_report: Open, scheme: str) -> None:
    opened = open_report(scheme=scheme)
    before = opened.background()
    button = opened.page.locator("#theme")
    words = button.inner_text()
    button.click()
    turned = opened.background()
    assert turned != before
    assert button.inner_text() != words
    opened.page.reload()
    assert opened.background() == turned
    button.click()
    assert opened.background() == before


def test_the_keyboard_reaches_the_button_and_the_tables(open_report: Open) -> None:
    opened = open_report()
    opened.page.keyboard.press("Tab")
    assert opened.value("document.activeElement.id") == "theme"
    assert opened.value("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    opened.page.locator("summary").first.focus()
    opened.page.keyboard.press("Enter")
    assert opened.page.get_by_role("table", name="Metrics by round").is_visible()


def test_without_scripts_everything_but_the_button_is_there(open_report: Open) -> None:
    opened = open_report(scripts=False)
    assert not opened.page.locator("#theme").is_visible()
    assert opened.page.get_by_role("table", name="Models on the test rows").is_visible()
    opened.page.locator("summary").first.click()
    assert opened.page.get_by_role("table", name="Metrics by round").is_visible()


def test_charts_and_tables_are_there_for_assistive_technology(open_report: Open) -> None:
    opened = open_report()
    named = [chart.get_attribute("aria-label") for chart in opened.page.get_by_role("img").all()]
    for beginning in ("AUC by model", "AUC by round", "Accuracy by round", "Part of 4 sites", "Time by round"):
        assert any(name.startswith(beginning) for name in named)
    for name in ("Models on the test rows", "Sites at the end of the run", "What the check asked of the bundle"):
        assert opened.page.get_by_role("table", name=name).is_visible()


@pytest.mark.parametrize("width", [320, 400, 768, 801, 1100, 1920])
def test_the_page_never_scrolls_sideways(open_report: Open, width: int) -> None:
    for content in (None, with_words("W" * 80)):
        opened = open_report(content, width=width)
        opened.value("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
        assert opened.value("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("width", [400, 1100])
def test_the_text_of_charts_is_readable(open_report: Open, width: int) -> None:
    opened = open_report(width=width)
    smallest = opened.value(
        "Math.min(...[...document.querySelectorAll('svg text')].filter((text) => text.getClientRects().length)"
        ".map((text) => parseFloat(getComputedStyle(text).fontSize) * text.getScreenCTM().a))"
    )
    assert smallest >= 10


def test_no_label_leaves_its_chart(open_report: Open) -> None:
    for width in (400, 1100):
        outside = open_report(width=width).value(
            "[...document.querySelectorAll('svg text')].filter((text) => {"
            "  const chart = text.ownerSVGElement.getBoundingClientRect(), own = text.getBoundingClientRect();"
            "  return own.width && (own.left < chart.left - 1 || own.right > chart.right + 1);"
            "}).map((text) => text.textContent)"
        )
        assert outside == []


@pytest.mark.parametrize("words", HOSTILE)
def test_hostile_names_run_nothing_and_fetch_nothing(open_report: Open, words: str) -> None:
    opened = open_report(with_words(words))
    opened.page.mouse.move(300, 400)
    assert opened.seen.dialogs == []
    assert opened.seen.messages == []
    assert len(opened.seen.requests) == 1


def test_on_paper_the_tables_are_unfolded_and_the_colours_light(open_report: Open) -> None:
    opened = open_report(scheme="dark")
    opened.page.locator("#theme").click()
    opened.page.locator("#theme").click()
    opened.value("dispatchEvent(new Event('beforeprint'))")
    opened.page.emulate_media(media="print")
    assert opened.value("document.querySelectorAll('details:not([open])').length") == 0
    assert opened.value("getComputedStyle(document.documentElement).color") == "rgb(21, 32, 43)"
    assert not opened.page.locator("#theme").is_visible()
    opened.value("dispatchEvent(new Event('afterprint'))")
    assert opened.value("document.querySelectorAll('details[open]').length") == 0
