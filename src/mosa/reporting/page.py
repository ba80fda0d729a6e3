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
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from functools import cache, partial
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from mosa import player
from mosa.files import claim_file, seal, write_sealed
from mosa.reporting import charts
from mosa.reporting.content import Content, ReportFigure, ReportTable
from mosa.reporting.sample_data import gzipped, pack
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

_ENDS_OF_LINES = re.compile(r"(?<=[_/:@+=])(?=\w)|(?<=[^\W_]{16})(?=[^\W_])")

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
    **player.COLOURS,
    **{f"series-{i}": pair for i, pair in enumerate(charts.SERIES_COLOURS)},
}  # fmt: skip


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
    template = _environment().get_template("page.html")
    tables = named_tables(content)
    facts = _facts(content, tables)
    # Every table in every format, for the buttons that save it.
    texts = {name: {end: text_of(of) for end, text_of in FORMATS.items()} for name, of in tables}
    facts["exports"] = Markup(gzipped(json.dumps(texts, ensure_ascii=False)))

    def page(data: str, num_with_text: int) -> bytes:
        text = template.render(facts, data=Markup(data), num_with_text=num_with_text)
        # A half character would stop the writing of the file; see sample_data.
        return text.encode("utf-8", "replace")

    # At its longest: it says that some samples have no text.
    most = page("", len(content.samples) - 1)
    packed = pack(content, max_bytes - len(most))
    if packed is None:
        raise UserError(
            f"the page would be larger than {max_bytes:,} bytes even without any response; make a "
            "report of fewer runs"
        )
    return page(*packed).decode("utf-8")


def _facts(content: Content, tables: Sequence[tuple[str, ReportTable]]) -> dict[str, Any]:
    """What the template shows, but for the samples' responses and the tables' texts."""
    picture, sections = _parts(content, iter(tables))
    script = player.source("player.js") + _source("page.js")
    return {
        "seal": seal(MADE_BY),
        "content": content,
        "sections": sections,
        "overview": content.overview,
        "picture": picture,
        "judge": next(iter(content.judges), ""),
        "prompts": partial(_shared_prompt, content),
        "fewer": FEWER,
        "more": MORE,
        "marks": defaultdict(
            Markup, {subject: charts.mark(i) for i, subject in enumerate(content.subjects)}
        ),
        "style": Markup(_colour_rules() + _source("page.css") + player.source("player.css")),
        "script": Markup(script),
        "script_hash": player.script_hash(script),
        "formats": list(FORMATS),
        "player_key": Markup(player.KEY),
        "player_ramp": Markup(player.RAMP),
        "long_table": LONG_TABLE,
        "interval_statement": INTERVAL_STATEMENT,
    }


def _parts(
    content: Content, names: Iterator[tuple[str, ReportTable]]
) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
    """The picture of the first screen, and all sections; each table and chart with a name that is
    unique on the page and in the names of its files."""

    def drawn(figure: ReportFigure) -> dict[str, Any]:
        name, numbers = next(names)
        svg = charts.draw_chart(figure.chart, f"chart-{name}", list(content.subjects))
        return {"name": name, "figure": figure, "svg": svg, "numbers": numbers}

    picture = None if content.overview.picture is None else drawn(content.overview.picture)
    # What the template itself uses.
    taken = {"top", "verdict", "samples", "contents", "showcase"}
    parts = [
        {
            "section": section,
            "anchor": unique(slug(section.name), taken),
            "tables": [next(names) for _ in section.tables],
            "figures": [drawn(figure) for figure in section.figures],
            "has_switch": len(content.judges) > 1 and any(t.judge for t in section.tables),
            "bases": list(dict.fromkeys(t.base for t in section.tables if t.base)),
        }
        for section in content.sections
    ]
    return picture, parts


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
        "breakable": _breakable,
        "first_sentence": _first_sentence,
        "shown": shown,
        "ends": format_interval,
        "heat": _heat,
        "percent": _percent,
    }
    environment.tests["interval"] = lambda cell: isinstance(cell, Interval)
    environment.globals |= {
        "axis_labels": charts.axis_labels,
        "legend": charts.chart_legend,
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


def _percent(share: float) -> str:
    return f"{100 * min(1.0, max(0.0, share)):.1f}%"


def _heat(cell: Interval) -> str:
    """The rate that decides the colour of a cell, from 0 to 1."""
    return f"{min(1.0, max(0.0, cell.value)):.3g}"


def _prose(text: str) -> Markup:
    """A sentence, its `commands` between backticks set as code."""
    return Markup(re.sub(r"`([^`\n]+)`", r"<code>\1</code>", str(escape(text))))


def _first_sentence(text: str) -> str:
    """The first sentence of a note.

    >>> _first_sentence("As in arXiv 2508.12398. Its rate is ten times that.")
    'As in arXiv 2508.12398.'
    """
    return re.split(r"(?<=[.!?]) (?=[A-Z])", text)[0]


def _breakable(text: str) -> Markup:
    """Text of a table's cell; a line may end behind a separator of a name and behind its sixteenth
    character without one. Other words stay whole."""
    return Markup("<wbr>").join(_ENDS_OF_LINES.split(text))


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
