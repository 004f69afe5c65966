"""HTML and SVG that are escaped by construction: text becomes markup only through `element`.

Study names, site names and sentences come from files. A plain `str` among the children is escaped and cleaned, whatever
it is; only what `element` made (`Html`) is taken as markup.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

from cohortium_sim.report_words import clean

Child = str | int | float | None
Attributes = Mapping[str, str | int | float | None]

_NAME = re.compile(r"^[A-Za-z][A-Za-z0-9:-]*$")
_VOID = frozenset(("meta", "br", "link"))


class Html(str):
    """Markup, safe to put between two tags."""

    __slots__ = ()


def element(tag: str, attributes: Attributes | None = None, *children: Child) -> Html:
    """One element. An attribute that is None is left out, one that is "" is bare; a child that is None is nothing."""
    written = "".join(_attribute(name, value) for name, value in (attributes or {}).items() if value is not None)
    if not _NAME.match(tag):
        raise ValueError(f"{tag!r} is not the name of an element")
    if tag in _VOID:
        return Html(f"<{tag}{written}>")
    return Html(f"<{tag}{written}>{joined(children)}</{tag}>")


def joined(children: Iterable[Child]) -> Html:
    """Several children, one after the other."""
    return Html("".join(child if isinstance(child, Html) else _text(child) for child in children))


def raw_element(tag: str, text: str, attributes: Attributes | None = None) -> Html:
    """A style or script element: `text` is ours, never from a file, and is written as it is."""
    if "</" in text or "<!--" in text:
        raise ValueError(f"the text of a {tag} element would end it")
    opening = element(tag, attributes).removesuffix(f"</{tag}>")
    return Html(f"{opening}{text}</{tag}>")


def _text(child: Child) -> str:
    match child:
        case None:
            return ""
        case float():
            return figure(child)
    return escape(_cleaned(str(child)), quote=True)


def _cleaned(text: str) -> str:
    """`clean`, but with the spaces at both ends that separate words of neighbouring elements."""
    left = " " if text[:1].isspace() else ""
    right = " " if text[-1:].isspace() and len(text) > 1 else ""
    return f"{left}{clean(text)}{right}"


def _attribute(name: str, value: str | int | float | None) -> str:
    if not _NAME.match(name) or name.lower().startswith("on"):
        raise ValueError(f"{name!r} is not the name of an attribute")
    if value == "":
        return f" {name}"
    return f' {name}="{_text(value)}"'


def figure(value: float) -> str:
    """A coordinate: at most two decimals, no trailing zeros."""
    text = f"{value:.2f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


@dataclass(frozen=True, slots=True)
class Column:
    """A table's column. Numbers are set to the right, short words are not broken, long ones get room."""

    head: str
    kind: Literal["text", "number", "short", "long"] = "text"


def table(caption: str, columns: Sequence[Column], rows: Iterable[Sequence[Child]]) -> Html:
    """A data table whose first column heads its rows, in a box that scrolls by itself on a narrow screen."""
    head = element("tr", None, *(element("th", _cell(column) | {"scope": "col"}, column.head) for column in columns))
    body = [
        element(
            "tr",
            None,
            *(
                element("th" if place == 0 else "td", _cell(column) | ({"scope": "row"} if place == 0 else {}), child)
                for place, (column, child) in enumerate(zip(columns, row, strict=True))
            ),
        )
        for row in rows
    ]
    whole = element(
        "table",
        None,
        element("caption", None, caption),
        element("thead", None, head),
        element("tbody", None, *body),
    )
    return element("div", {"class": "scroll", "role": "region", "aria-label": caption, "tabindex": 0}, whole)


def _cell(column: Column) -> dict[str, str | int | float | None]:
    return {} if column.kind == "text" else {"class": column.kind}


def folded(summary: str, content: Html) -> Html:
    """What is shown on request, and always in print."""
    return element("details", None, element("summary", None, summary), content)


def paragraph(*children: Child) -> Html:
    """A paragraph of text."""
    return element("p", None, *children)


def items(*children: Child) -> Html:
    """A list with dots."""
    return element("ul", None, *(element("li", None, child) for child in children))


def facts(pairs: Iterable[tuple[str, Child]], kind: Literal["long"] | None = None) -> Html:
    """Terms and what is known of them; `long` ones get wider columns."""
    return element(
        "dl",
        {"class": kind},
        *(element("div", None, element("dt", None, term), element("dd", None, value)) for term, value in pairs),
    )
