"""The page around the report: colours of both themes, style, script, and the policy that forbids everything else."""

import base64
import hashlib
from collections.abc import Mapping
from importlib import resources

from cohortium_sim.report_html import Html, element, joined, raw_element

PALETTE: Mapping[str, tuple[str, str]] = {
    "page": ("#f4f6f8", "#0e1319"),
    "card": ("#ffffff", "#161d26"),
    "ink": ("#15202b", "#e9eef4"),
    "soft": ("#4a5867", "#a8b5c4"),
    "rule": ("#dbe1e8", "#2c3743"),
    "frame": ("#7a8794", "#7f8d9d"),
    "accent": ("#0b5cad", "#79b5f2"),
    "tint": ("#cbdff4", "#22405f"),
    "second": ("#5f93c7", "#4878a8"),
    "neutral": ("#66717d", "#98a4b2"),
    "good": ("#14683a", "#6ccf93"),
    "warn": ("#8a4b00", "#f0b45f"),
    "bad": ("#b3261e", "#ff938a"),
}
"""Colours by role, for light and for dark."""

TEXT_PAIRS = tuple(
    (text, ground) for text in ("ink", "soft", "accent", "good", "warn", "bad") for ground in ("page", "card")
)
"""Text colours and what they stand on: at least 4.5 to 1 (WCAG 2.2, 1.4.3)."""

GRAPHIC_PAIRS = tuple((shape, "card") for shape in ("accent", "second", "neutral", "warn", "bad", "frame"))
"""Parts of charts and controls that carry meaning: at least 3 to 1 (1.4.11)."""


def page(title: str, body: Html) -> str:
    """The whole document. It asks the network for nothing and lets nothing run but its own script."""
    style, script = stylesheet(), _template("report.js")
    head = element(
        "head",
        None,
        element("meta", {"charset": "utf-8"}),
        element("meta", {"http-equiv": "Content-Security-Policy", "content": policy(style, script)}),
        element("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}),
        element("meta", {"name": "referrer", "content": "no-referrer"}),
        element("meta", {"name": "color-scheme", "content": "light dark"}),
        element("title", None, title),
        raw_element("style", style),
        raw_element("script", script),
    )
    return f"<!doctype html>\n{element('html', {'lang': 'en'}, head, element('body', None, body))}\n"


def policy(style: str, script: str) -> str:
    """The content security policy: this style and this script by their digests, nothing else from anywhere."""
    return (
        f"default-src 'none'; style-src {_digest(style)}; script-src {_digest(script)}; "
        "base-uri 'none'; form-action 'none'"
    )


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def stylesheet() -> str:
    """Both themes' colours, then the rules. Paper is always light."""
    light = _variables(0)
    dark = _variables(1)
    themes = (
        f":root {{ color-scheme: light; {light} }}\n"
        f'@media screen and (prefers-color-scheme: dark) {{ :root:not([data-theme="light"]) '
        f"{{ color-scheme: dark; {dark} }} }}\n"
        f'@media screen {{ :root[data-theme="dark"] {{ color-scheme: dark; {dark} }} }}\n'
    )
    return themes + _template("report.css")


def _variables(theme: int) -> str:
    return " ".join(f"--{name}: {colours[theme]};" for name, colours in PALETTE.items())


def _template(name: str) -> str:
    # A checkout on Windows may have turned the line ends: the digest is of what a browser sees, and it sees "\n".
    return resources.files(__package__).joinpath("templates", name).read_text("utf-8").replace("\r\n", "\n")


def section(name: str, title: str, *content: Html | None) -> Html:
    """A part of the report under its own heading."""
    heading = element("h2", {"id": name}, title)
    return element("section", {"aria-labelledby": name}, heading, joined(content))
