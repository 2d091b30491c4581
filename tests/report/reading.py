"""A report as a reader of its HTML sees it."""

from __future__ import annotations

import base64
import io
from html.parser import HTMLParser
from pathlib import Path

from PIL import Image

_WITHOUT_END = {"meta", "link", "img", "br"}


class ReadPage(HTMLParser):
    """Parse a page strictly.

    Attributes
    ----------
    tags
        Names of all elements.
    attributes
        (element, attribute, value) of each attribute.
    text
        Text, with the entities resolved; style sheets left out.
    rows
        Cells of each table row.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self.style = ""
        self.rows: list[list[str]] = []
        self._open: list[str] = []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()
        assert self._open == [], f"not closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag == "tr":
            self.rows.append([])
        if tag in {"th", "td"}:
            self.rows[-1].append("")
        if tag == "br" and self._open[-1] == "td":
            self.rows[-1][-1] += "\n"
        if tag not in _WITHOUT_END:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" in self._open:
            self.style += data
            return
        self.text += data
        if {"th", "td"} & set(self._open):
            self.rows[-1][-1] += data

    def value(self, name: str) -> str:
        """Second cell of the row with this heading."""
        (value,) = (row[1] for row in self.rows if row[0] == name)
        return value

    def images(self) -> list[Image.Image]:
        """The pictures, decoded."""
        sources = [value for tag, name, value in self.attributes if (tag, name) == ("img", "src")]
        prefix = "data:image/png;base64,"
        assert all(source.startswith(prefix) for source in sources)
        images = [
            Image.open(io.BytesIO(base64.b64decode(source.removeprefix(prefix), validate=True)))
            for source in sources
        ]
        for image in images:
            image.load()
        return images


def assert_self_contained(page: ReadPage) -> None:
    """Nothing that the page shows or does comes from elsewhere, and nothing in it runs."""
    assert not {
        "script",
        "iframe",
        "object",
        "embed",
        "form",
        "base",
        "svg",
        "video",
        "audio",
    } & set(page.tags)
    links = [
        value
        for _, name, value in page.attributes
        if name in {"src", "href", "srcset", "action", "data", "poster"}
    ]
    assert all(value.startswith("data:") for value in links), links
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert "url(" not in page.style
    assert "@import" not in page.style
    policy = (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; "
        "form-action 'none'"
    )
    assert ("meta", "content", policy) in page.attributes
