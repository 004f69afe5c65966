"""A real browser for the report, where there is one: Chromium at COHORTIUM_CHROMIUM, or on the path."""

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "sim_report"))

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

QUIET = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def chromium() -> str | None:
    """The browser's program."""
    named = os.environ.get("COHORTIUM_CHROMIUM")
    return named or shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="session")
def browser() -> "Iterator[sync_api.Browser]":
    program = chromium()
    if program is None:
        pytest.skip("no Chromium: install it, or name the program in COHORTIUM_CHROMIUM")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, args=list(QUIET))
        yield started
        started.close()
