"""The parts of a report page: sections, tables and figures in HTML."""

import base64
import io
import re
from collections.abc import Iterable, Sequence
from html import escape

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from training.figures import saved

SMALL = 100  # pixels; narrower images are shown with visible pixels


def section(title: str, text: str, body: str) -> str:
    """A part of the page: a heading, words about it, and HTML."""
    words = f"<p>{text}</p>\n" if text else ""
    return f"<section>\n<h2>{title}</h2>\n{words}{body}\n</section>"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """An HTML table. Columns that begin with a number are right-aligned."""
    rows = list(rows)
    kinds = [
        "number"
        if column and all(re.match(r"\d", cells[column]) for cells in rows)
        else "text"
        for column in range(len(head))
    ]

    def row(name: str, cells: Sequence[str]) -> str:
        return "".join(
            f'<{name} class="{kind}">{escape(cell)}</{name}>'
            for kind, cell in zip(kinds, cells, strict=True)
        )

    body = "".join(f"<tr>{row('td', cells)}</tr>\n" for cells in rows)
    top = f"<tr>{row('th', head)}</tr>\n" if any(head) else ""
    return f'<div class="scroll"><table>\n{top}{body}</table></div>'


def figure(images: Sequence[np.ndarray], caption: str) -> str:
    """Images beside each other, with a caption in HTML."""
    row = "".join(
        f'<img class="{"small" if image.shape[1] < SMALL else "photo"}" '
        f'src="{data_uri(image)}" alt="">'
        for image in images
    )
    return (
        f"<figure><div>{row}</div><figcaption>{caption}</figcaption></figure>"
    )


def data_uri(image: np.ndarray) -> str:
    """A uint8 image `(height, width, 3)` as an address that holds it."""
    kind = "png" if image.shape[1] < SMALL else "jpeg"
    content = io.BytesIO()
    Image.fromarray(image).save(content, kind, quality=85)
    text = base64.b64encode(content.getvalue()).decode()
    return f"data:image/{kind};base64,{text}"


def svg(drawing: Figure) -> str:
    """A figure in the page's own font, and in its color where it is black."""
    with matplotlib.rc_context(
        {"svg.fonttype": "none", "svg.hashsalt": "cait"}
    ):
        content = saved(
            drawing,
            format="svg",
            transparent=True,
            metadata=dict.fromkeys(["Creator", "Date", "Format", "Type"]),
        )
    text = content.decode()
    return text[text.index("<svg") :].replace("#000000", "currentColor")
