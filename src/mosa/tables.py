"""Tables as Python's shell and a notebook show them: as text, and as HTML."""

from __future__ import annotations

import html
from collections.abc import Sequence

from mosa.terminal import printable


def text_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows below headings, each column as wide as its widest entry."""
    table = [headings, *([printable(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in table
    ]
    return "\n".join([*lines, *([] if rows else ["(nothing yet)"])])


def html_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The same as HTML."""

    def line(tag: str, cells: Sequence[str]) -> str:
        aligned = f'<{tag} style="text-align: left">'
        return f"<tr>{''.join(f'{aligned}{html.escape(cell)}</{tag}>' for cell in cells)}</tr>"

    body = "".join(line("td", [printable(cell) for cell in row]) for row in rows)
    return f"<table><thead>{line('th', headings)}</thead><tbody>{body}</tbody></table>"
