"""The page of a report: one self-contained HTML file."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1b1f24; margin: 2rem auto; max-width: 66rem;
       padding: 0 1rem; }
h1 { font-size: 1.7rem; margin-bottom: .3rem; } h2 { font-size: 1.25rem; margin-top: 2.5rem; }
figure { margin: 1.2rem 0; } figure img { max-width: 100%; height: auto; }
figcaption, .note { color: #57606a; font-size: .9rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; margin: .6rem 0; }
th, td { padding: .3rem .8rem; border-bottom: 1px solid #d8dee4; text-align: right; vertical-align: top; }
th:first-child, td:first-child { text-align: left; } td, th { white-space: nowrap; }
thead th { border-bottom: 2px solid #57606a; }
td.best { font-weight: 700; }
code { font-size: .85rem; overflow-wrap: anywhere; }
"""


@dataclass(frozen=True)
class Text:
    """A paragraph; ``note`` prints it small."""

    text: str
    note: bool = False


@dataclass(frozen=True)
class Picture:
    """A figure: the name of its file, the PNG and its caption."""

    name: str
    png: bytes
    caption: str


@dataclass(frozen=True)
class Cells:
    """A table; ``best`` holds the (row, column) of cells that are set in bold."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    best: frozenset[tuple[int, int]] = frozenset()


@dataclass(frozen=True)
class Section:
    """A heading and the parts below it."""

    title: str
    parts: Sequence[Text | Picture | Cells]


def render(title: str, sections: Sequence[Section]) -> str:
    """Return the whole page as HTML."""
    body = "\n".join(
        f"<h2>{html.escape(section.title)}</h2>\n" + "\n".join(_part(part) for part in section.parts)
        for section in sections
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style></head>\n"
        f"<body>\n<h1>{html.escape(title)}</h1>\n{body}\n</body></html>\n"
    )


def _part(part: Text | Picture | Cells) -> str:
    if isinstance(part, Text):
        return f"<p{_class('note', part.note)}>{html.escape(part.text)}</p>"
    if isinstance(part, Picture):
        source = base64.b64encode(part.png).decode()
        caption = html.escape(part.caption)
        image = f'<img id="{html.escape(part.name)}" alt="{caption}" src="data:image/png;base64,{source}">'
        return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in part.header)
    rows = "".join(
        "<tr>"
        + "".join(_cell(text, (row, column) in part.best) for column, text in enumerate(cells))
        + "</tr>"
        for row, cells in enumerate(part.rows)
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _cell(text: str, best: bool) -> str:
    return f"<td{_class('best', best)}>{html.escape(text)}</td>"


def _class(name: str, given: bool) -> str:
    return f' class="{name}"' if given else ""
