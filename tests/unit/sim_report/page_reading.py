"""Reads a report as a browser would take it apart: which elements, which attributes, which text."""

from dataclasses import dataclass, field
from html.parser import HTMLParser


@dataclass
class Page:
    """Elements in their order with their attributes, and the text outside style and script."""

    elements: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    text: str = ""
    raw: dict[str, str] = field(default_factory=dict)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def shape(self) -> list[tuple[str, tuple[str, ...]]]:
        """Names of elements and attributes alone: what no text from a file may change."""
        return [(name, tuple(attributes)) for name, attributes in self.elements]


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.page = Page()
        self._inside = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.page.elements.append((tag, dict(attrs)))
        self._inside = tag if tag in ("style", "script") else ""

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.page.raw[self._inside] = self.page.raw.get(self._inside, "") + data
        else:
            self.page.text += data


def read_page(html: str) -> Page:
    reader = _Reader()
    reader.feed(html)
    reader.close()
    return reader.page
