"""A report as one HTML file that needs nothing else: no network, no other file, no server.

Tables, charts and sentences are plain HTML and need no JavaScript; the script adds the switch
between judges, the saving of tables and the browser of samples. A content security policy forbids
the page to fetch anything. With `is_redacted`, the file has no word of prompts and responses,
whatever the samples hold.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache, partial
from importlib import resources
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from mosa import player
from mosa.files import claim_file, seal, write_sealed
from mosa.player import COLOURS as PLAYER_COLOURS
from mosa.reporting import charts
from mosa.reporting.content import Content, ReportFigure, ReportTable, Sample, Section
from mosa.reporting.sample_data import SampleData, gzipped, pack
from mosa.reporting.tables import (
    FORMATS,
    named_tables,
    numeric_columns,
    shown,
    slug,
    unique,
)
from mosa.stats.rates import INTERVAL_STATEMENT, Interval, format_interval
from mosa.types import UserError

MAX_BYTES = 5_000_000
"""The limit of a page that is written: small enough for a mail."""
FEWER, MORE = "\N{BLACK DOWN-POINTING TRIANGLE}", "\N{BLACK UP-POINTING TRIANGLE}"
"""Beside a rate of a map that differs from another subject's."""
LONG_TABLE = 16
"""A table of more rows shows its first 12 on the screen, until the reader asks for all."""

MADE_BY = "mosa report"

COLOURS = {
    # Light and dark scheme, as variables of the style sheet.
    "card": ("#ffffff", "#1b1d22"),
    "grid": ("#ebebe8", "#2a2d34"),
    "tint": ("#f0f4fd", "#232a3a"),
    # The scale of a tile, and ink on a card.
    "good": ("#0d9488", "#2dd4bf"),
    "middling": ("#eab308", "#facc15"),
    "bad": ("#dc2626", "#f87171"),
    "good-ink": ("#0f766e", "#5eead4"),
    # The deepest colour of a heat map, and how much of it the rate 1 gets: text stays legible.
    "heat": ("214 48 49", "248 113 113"),
    "heat-most": ("0.68", "0.55"),
    **PLAYER_COLOURS,
    **{f"series-{i}": pair for i, pair in enumerate(charts.SERIES_COLOURS)},
}  # fmt: skip


@dataclass(frozen=True)
class _Drawn:
    """A chart as the page shows it."""

    name: str
    """Unique on the page and in the names of its files."""
    figure: ReportFigure
    svg: Markup
    numbers: ReportTable


@dataclass(frozen=True)
class _Part:
    """A section with what the page adds to it."""

    section: Section
    anchor: str
    tables: list[tuple[str, ReportTable]]
    """Each with its name, unique on the page and in the names of its files."""
    figures: list[_Drawn]
    has_switch: bool
    """Whether some of it depends on the judge."""

    @property
    def bases(self) -> list[str]:
        """The subjects that others are compared with."""
        return list(dict.fromkeys(table.base for _, table in self.tables if table.base))


def claim_page(path: Path | None) -> AbstractContextManager[None]:
    """Hold the place of a page, as `claim_file` does; it may replace a page alone."""
    return claim_file(path, MADE_BY)


def write_page(path: Path, content: Content) -> None:
    """Write the report, whole or not at all.

    Raises UserError where the disk refuses, where something else than a page stands there, or where
    the page cannot be small enough.
    """
    with claim_page(path):
        write_sealed(path, render_page(content))


def render_page(content: Content, max_bytes: int = MAX_BYTES) -> str:
    """The page as text of at most `max_bytes` bytes.

    Where it would be larger, only some samples keep their responses, and the page says so; it has
    the outcomes of all.
    """
    drawn = _parts(content)
    exports = _exports(named_tables(content))
    # At its longest: it says that some samples have no text.
    most = _render(content, drawn, exports, SampleData("", len(content.samples) - 1))
    data = pack(content, max_bytes - len(most.encode("utf-8", "replace")))
    if data is None:
        raise UserError(
            f"the page would be larger than {max_bytes:,} bytes even without any response; make a "
            "report of fewer runs"
        )
    page = _render(content, drawn, exports, data)
    # A half character would stop the writing of the file; see sample_data.
    return page.encode("utf-8", "replace").decode("utf-8")


def _exports(tables: Sequence[tuple[str, ReportTable]]) -> str:
    """Every table in every format, for the buttons that save it."""
    texts = {
        name: {suffix: text_of(table) for suffix, text_of in FORMATS.items()}
        for name, table in tables
    }
    return gzipped(json.dumps(texts, ensure_ascii=False))


def _render(
    content: Content, drawn: tuple[_Drawn | None, list[_Part]], exports: str, data: SampleData
) -> str:
    picture, parts = drawn
    template = _environment().get_template("page.html")
    script = player.source("player.js") + _source("page.js")
    return template.render(
        seal=seal(MADE_BY),
        content=content,
        sections=parts,
        overview=content.overview,
        picture=picture,
        judge=next(iter(content.judges), ""),
        prompts=partial(_shared_prompt, content),
        fewer=FEWER,
        more=MORE,
        marks=defaultdict(
            Markup, {subject: charts.mark(i) for i, subject in enumerate(content.subjects)}
        ),
        style=Markup(_colour_rules() + _source("page.css") + player.source("player.css")),
        script=Markup(script),
        script_hash=player.script_hash(script),
        formats=list(FORMATS),
        exports=Markup(exports),
        data=Markup(data.text),
        num_with_text=data.num_with_text,
        player_key=Markup(player.KEY),
        player_ramp=Markup(player.RAMP),
        long_table=LONG_TABLE,
        interval_statement=INTERVAL_STATEMENT,
    )


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("mosa.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "prose": _prose,
        "shown": shown,
        "ends": format_interval,
        "heat": _heat,
        "percent": _percent,
        "words": _read_words,
    }
    environment.tests["interval"] = lambda cell: isinstance(cell, Interval)
    environment.globals |= {
        "axis_labels": charts.axis_labels,
        "legend": charts.legend,
        "numeric_columns": numeric_columns,
    }
    return environment


def _shared_prompt(content: Content, places: Sequence[int]) -> str:
    """What several samples were asked in their first response; empty where that differs, or where
    the page hides words."""
    asked = {content.samples[place].responses[0].prompt for place in places}
    prompt = asked.pop()
    if asked or prompt is None or not content.shows_words:
        return ""
    return " / ".join(text if role == "user" else f"({role}) {text}" for role, text in prompt)


def _read_words(sample: Sample) -> str:
    """The text of a sample's first response up to its first end token."""
    response = sample.responses[0]
    end = min(response.end_positions, default=None)
    return " ".join((response.tokens or ())[:end])


def _percent(share: float) -> str:
    return f"{100 * min(1.0, max(0.0, share)):.1f}%"


def _heat(cell: Interval) -> str:
    """The rate that decides the colour of a cell, from 0 to 1."""
    return f"{min(1.0, max(0.0, cell.value)):.3g}"


def _prose(text: str) -> Markup:
    """A sentence, its `commands` between backticks set as code."""
    return Markup(re.sub(r"`([^`\n]+)`", r"<code>\1</code>", str(escape(text))))


@cache
def _source(name: str) -> str:
    return (resources.files("mosa.reporting") / "templates" / name).read_text(encoding="utf-8")


def _colour_rules() -> str:
    """The colours by scheme: the reader's system decides, or the page's switch; paper is light."""
    light, dark = player.colour_rules(COLOURS)
    return (
        f":root {light}\n"
        f"@media (prefers-color-scheme: dark) {{ :root {dark} }}\n"
        f":root[data-theme=light] {light}\n"
        f":root[data-theme=dark] {dark}\n"
        f"@media print {{ :root, :root[data-theme] {light} }}\n"
    )


def _parts(content: Content) -> tuple[_Drawn | None, list[_Part]]:
    """The picture of the first screen, and all sections."""
    names = iter(named_tables(content))

    def drawn(figure: ReportFigure) -> _Drawn:
        name, numbers = next(names)
        svg = charts.draw(figure.chart, f"chart-{name}", list(content.subjects))
        return _Drawn(name, figure, svg, numbers)

    picture = None if content.overview.picture is None else drawn(content.overview.picture)
    # What the template itself uses.
    taken = {"top", "verdict", "samples", "contents", "showcase"}
    parts = []
    for section in content.sections:
        tables = [next(names) for _ in section.tables]
        figures = [drawn(figure) for figure in section.figures]
        has_switch = len(content.judges) > 1 and any(t.judge for t in section.tables)
        anchor = unique(slug(section.name), taken)
        parts.append(_Part(section, anchor, tables, figures, has_switch))
    return picture, parts
