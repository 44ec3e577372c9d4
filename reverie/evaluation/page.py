"""Pages that open from disk and can be sent on: one HTML file with its pictures, style and charts inside.

A page has no script and makes no request, and its policy forbids both. It is built as a tree of elements and written by
the standard library, which escapes all text: names and config values come from files that anybody may have written.
"""

import base64
import io
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO
from xml.etree.ElementTree import Element

from matplotlib import rc_context
from matplotlib.figure import Figure
from PIL import Image

from reverie.errors import ReverieError, first_line
from reverie.evaluation.video import write_file

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
STYLE = Path(__file__).with_name("page.css")
INK = "#000000"  # matplotlib's colour of text and axes, which becomes the page's


def node(tag: str, *inside: str | Element, **attributes: str) -> Element:
    """Return an element of text and elements; an attribute ``class_`` is "class", ``http_equiv`` is "http-equiv"."""
    made = Element(tag, {name.rstrip("_").replace("_", "-"): value for name, value in attributes.items()})
    for part in inside:
        if isinstance(part, Element):
            made.append(part)
        elif len(made):
            made[-1].tail = (made[-1].tail or "") + part
        else:
            made.text = (made.text or "") + part
    return made


def write_page(path: Path, title: str, parts: Iterable[Element]) -> None:
    """Write a page of ``parts`` under its title, whole or not at all."""
    head = node(
        "head",
        node("meta", charset="utf-8"),
        node("meta", name="viewport", content="width=device-width, initial-scale=1"),
        node("meta", http_equiv="Content-Security-Policy", content=POLICY),
        node("title", title),
        node("style", STYLE.read_text(encoding="utf-8")),
    )
    page = node("html", head, node("body", node("main", node("h1", title), *parts)), lang="en")
    text = "<!doctype html>\n" + ElementTree.tostring(page, encoding="unicode", method="html") + "\n"

    def save(file: BinaryIO) -> None:
        file.write(text.encode("utf-8", "replace"))  # a path may hold bytes that are not text

    write_file(path, save)


def section(heading: str, *inside: Element) -> Element:
    """Return a part of a page under its own heading."""
    return node("section", node("h2", heading), *inside)


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> Element:
    """Return a table whose first column names a row; narrow screens stack its cells. A column "meaning" is prose."""

    def cell(index: int, text: str) -> Element:
        if index == 0:
            return node("th", text, scope="row")
        prose = heads[index] == "meaning"
        return node("td", text) if prose else node("td", text, class_="number", data_head=heads[index])

    head = node("thead", node("tr", *(node("th", text, scope="col") for text in heads)))
    return node("table", head, node("tbody", *(node("tr", *map(cell, range(len(row)), row)) for row in rows)))


def pairs(values: Mapping[str, object]) -> Element:
    """Return a table of names and values."""
    rows = [node("tr", node("th", name, scope="row"), node("td", str(value))) for name, value in values.items()]
    return node("table", node("tbody", *rows, class_="pairs"))


def folded(summary: str, *inside: Element) -> Element:
    """Return a part that is shown on demand."""
    return node("details", node("summary", summary), *inside)


def picture(data: bytes, alt: str, caption: str, *, wide: bool = False) -> Element:
    """Return a PNG or GIF with its caption; a ``wide`` one keeps a readable size and scrolls inside its own frame.

    Raises ReverieError for bytes that are no such picture.
    """
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "GIF")) as image:
            (width, height), kind = image.size, "gif" if image.format == "GIF" else "png"
            image.verify()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ReverieError(f"it is not a picture ({first_line(error)}).") from error
    source = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    shown = node("img", src=source, alt=alt, width=str(width), height=str(height))
    if wide:
        shown = node("div", shown, class_="wide", tabindex="0", role="region", aria_label=alt)
    return node("figure", shown, node("figcaption", caption))


def charts(figures: dict[str, Figure]) -> Element:
    """Return figures by caption side by side, as SVG whose ink is the page's."""
    return node("div", *(_chart(figure, caption) for caption, figure in figures.items()), class_="charts")


def _chart(figure: Figure, caption: str) -> Element:
    memory = io.StringIO()
    with rc_context(
        {"svg.fonttype": "none", "svg.hashsalt": caption}
    ):  # text stays text; the same figure, the same ids
        figure.savefig(memory, format="svg", transparent=True, metadata={"Date": None})
    svg = ElementTree.fromstring(memory.getvalue().replace(INK, "currentColor"))
    for element in svg.iter():
        element.tag = element.tag.rpartition("}")[2]
        element.attrib = {name.rpartition("}")[2]: value for name, value in element.attrib.items()}
        if element.tag == "g":
            element.attrib.pop("id", None)  # "axes_1" of every chart
    for name in ("metadata", "defs"):  # who made it; and a style for everything on the page
        for unwanted in svg.findall(name):
            if name == "metadata" or unwanted.find("style") is not None:
                svg.remove(unwanted)
    svg.attrib = {"viewBox": svg.attrib["viewBox"], "role": "img", "aria-label": caption}
    return node("figure", node("figcaption", caption), svg)
