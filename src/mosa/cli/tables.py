"""Tables of commands: drawn in a terminal, in as much room as it has, or as Markdown.

In a terminal that has no room for a table its rates are shortened, then the columns of least
importance are left out, and a sentence says which. Where that does not do, a name has a line of its
own; where that does not do either, every figure has one. Names and intervals are never cut.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from jsonargparse import ArgumentParser
from rich.cells import cell_len, set_cell_size
from rich.text import Text

from mosa.cli.options import escaped
from mosa.stats.rates import Interval, format_rate, format_rate_shortly
from mosa.terminal import new_console, printable, show

Form = Literal["text", "md"]
LEAST_FOR_LONG_RATES = 100
"""Columns of a terminal; in fewer, rates are written in their short form."""
GAP = 2
"""Columns between two of a table."""


def format_argument(parser: ArgumentParser) -> None:
    """How tables are shown."""
    parser.add_argument(
        "--format",
        type=Form,
        default="text",
        help="text: tables for a terminal, as wide as it is; md: Markdown, with all columns",
    )


@dataclass(frozen=True)
class Column:
    """One column of a table."""

    heading: str
    rank: int = 0
    """Where there is no room, the column of the highest rank leaves first; 0 stays."""
    is_number: bool = True


@dataclass(frozen=True)
class TableCell:
    """A text, and the shorter one where there is less room."""

    long: str
    short: str


def rate_cell(found: Interval | None, *, with_n: bool = False, signed: bool = False) -> TableCell:
    """A rate with its interval; the short form is without n."""
    return TableCell(
        format_rate(found, with_n=with_n, signed=signed), format_rate_shortly(found, signed=signed)
    )


@dataclass(frozen=True)
class TextTable:
    """What a table shows; the first column is that of names."""

    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[TableCell | str]]
    grouped_by: str = ""
    """What the first cell of every row is, which stands above the rows that share it; it has no
    column. Empty: no groups."""
    left_out_if_short: Sequence[str] = ()
    """What the short forms of cells leave out."""


class Page:
    """What a command shows: tables and sentences, in the form that its `--format` names, or as
    text where it has no such option."""

    def __init__(self, form: Form | None = None) -> None:
        self.form = form
        self.console = new_console(is_wide=True)

    def say(self, text: str) -> None:
        """A paragraph."""
        if self.form == "md":
            show(f"{escaped(text)}\n")
        else:
            self.console.print(text)

    def say_each(self, lines: Iterable[str]) -> None:
        """Lines, each of which says something else."""
        found = list(lines)
        for line in found:
            if self.form == "md":
                show(f"- {escaped(line)}")
            else:
                self.console.print(line)
        if self.form == "md" and found:
            show("")

    def head(self, text: str) -> None:
        """A heading."""
        if self.form == "md":
            show(f"### {escaped(text)}\n")
        else:
            self.console.print()
            self.console.print(Text(printable(text), "bold"))

    def table(self, table: TextTable) -> None:
        """A table with its title."""
        if table.title:
            self.head(table.title)
        if self.form == "md":
            for line in _markdown(table):
                show(line)
            show("")
            return
        room = self.console.width if self.console.is_terminal else None
        for line in _drawn(table, room, has_format=self.form is not None):
            self.console.print(line)


# --- Markdown -------------------------------------------------------------------------------------


def _markdown(table: TextTable) -> Iterator[str]:
    headings = [column.heading for column in table.columns]
    if table.grouped_by:
        headings.insert(0, table.grouped_by)
    yield _markdown_row(headings)
    yield f"|{'---|' * len(headings)}"
    for row in table.rows:
        yield _markdown_row([_written(cell, is_short=False) for cell in row])


def _markdown_row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(escaped(cell).replace('|', chr(92) + '|') for cell in cells)} |"


# --- drawn ----------------------------------------------------------------------------------------


def _written(cell: TableCell | str, *, is_short: bool) -> str:
    if isinstance(cell, str):
        return printable(cell)
    return printable(cell.short if is_short else cell.long)


def _drawn(table: TextTable, room: int | None, *, has_format: bool) -> Iterator[Text | str]:
    """The lines of a table in that many columns; None: in as many as it takes."""
    long, short = (_Grid.of(table, is_short=is_short) for is_short in (False, True))
    if room is None or (room >= LEAST_FOR_LONG_RATES and long.width <= room):
        yield from long.lines()
        return
    grid, left_out = short, list(table.left_out_if_short)
    for column in sorted((c for c in table.columns if c.rank), key=lambda c: -c.rank):
        if grid.width <= room:
            break
        grid = grid.without(column)
        left_out.insert(0, column.heading)
    if grid.width <= room:
        yield from grid.lines()
    elif grid.width_below_names <= room:
        yield from grid.lines_below_names()
    else:  # every figure in a line of its own, so all have room
        grid, left_out = short, list(table.left_out_if_short)
        yield from grid.records()
    if left_out:
        needed = max(LEAST_FOR_LONG_RATES, long.width)
        remedy = f"a terminal of {needed} columns" + (" or `--format md`" if has_format else "")
        yield f"Not shown for want of room: {'; '.join(left_out)}. See them with {remedy}."


@dataclass(frozen=True)
class _Grid:
    """A table whose cells are written."""

    columns: Sequence[Column]
    groups: Sequence[tuple[str, Sequence[Sequence[str]]]]
    """The rows below each heading; of one without a heading where there are no groups."""

    @classmethod
    def of(cls, table: TextTable, *, is_short: bool) -> _Grid:
        rows = [[_written(cell, is_short=is_short) for cell in row] for row in table.rows]
        if not table.grouped_by:
            return cls(table.columns, [("", rows)])
        groups: dict[str, list[Sequence[str]]] = {}
        for row in rows:
            groups.setdefault(row[0], []).append(row[1:])
        return cls(table.columns, list(groups.items()))

    def without(self, column: Column) -> _Grid:
        at = list(self.columns).index(column)

        def kept(cells: Sequence[str]) -> list[str]:
            return [*cells[:at], *cells[at + 1 :]]

        columns = [each for each in self.columns if each is not column]
        return _Grid(columns, [(name, [*map(kept, rows)]) for name, rows in self.groups])

    @property
    def indent(self) -> str:
        return "  " if any(name for name, _ in self.groups) else ""

    @property
    def widths(self) -> list[int]:
        rows = [[column.heading for column in self.columns]]
        rows += [row for _, of_name in self.groups for row in of_name]
        return [max(map(cell_len, cells)) for cells in zip(*rows, strict=True)]

    @property
    def width(self) -> int:
        widths = self.widths
        return len(self.indent) + sum(widths) + GAP * (len(widths) - 1)

    @property
    def width_below_names(self) -> int:
        widths = self.widths[1:]
        return len(self.indent) + sum(widths) + GAP * len(widths)

    def line(self, cells: Sequence[str], start: int = 0) -> str:
        """Cells from a column on, each in its column's width."""
        parts = []
        for column, width, cell in zip(
            self.columns[start:], self.widths[start:], cells[start:], strict=True
        ):
            blank = " " * (width - cell_len(cell))
            parts.append(blank + cell if column.is_number else set_cell_size(cell, width))
        return self.indent + (" " * GAP).join(parts).rstrip()

    def lines(self) -> Iterator[Text | str]:
        yield Text(self.line([column.heading for column in self.columns]), "dim")
        yield Text("─" * self.width, "dim")
        for name, rows in self.groups:
            if name:
                yield Text(name, "bold")
            yield from map(self.line, rows)

    def lines_below_names(self) -> Iterator[Text | str]:
        """Each name in a line, and its figures in the next."""
        headings = [column.heading for column in self.columns]
        yield Text(f"{self.indent}{headings[0]}", "dim")
        yield Text(" " * GAP + self.line(headings, 1), "dim")
        yield Text("─" * self.width_below_names, "dim")
        for name, rows in self.groups:
            if name:
                yield Text(name, "bold")
            for row in rows:
                if row[0]:
                    yield f"{self.indent}{row[0]}"
                yield " " * GAP + self.line(row, 1)

    def records(self) -> Iterator[Text | str]:
        """Each figure in a line, with its column's heading."""
        for name, rows in self.groups:
            if name:
                yield Text(name, "bold")
            for row in rows:
                if row[0]:
                    yield f"{self.indent}{row[0]}"
                for column, cell in zip(self.columns[1:], row[1:], strict=True):
                    if cell:
                        yield f"{self.indent}  {column.heading}: {cell}"
