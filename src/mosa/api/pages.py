"""`mosa.report` and `mosa.compare`: a page of runs, and two subjects side by side."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mosa.api.runs import (
    AnyPath,
    data_frame,
    html_legend,
    with_legend,
)
from mosa.evidence.compare import Comparison, compare_sides, side
from mosa.evidence.conditions import (
    MAX_UNSCORED,
    Decision,
    check,
    check_share,
    parse_condition,
)
from mosa.evidence.figures import Figure
from mosa.evidence.labels import alignment_data_of, length_of, marked
from mosa.files import check_folder
from mosa.reporting.build import ReportConfig, build
from mosa.reporting.content import Content
from mosa.reporting.page import claim_page, write_page
from mosa.reporting.tables import TABLES_BY, write_tables
from mosa.stats.rates import format_rate
from mosa.tables import html_table, text_table
from mosa.terminal import LiveBar
from mosa.types import UserError

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class WrittenReport(PathLike[str]):
    """A page that is written; it is its path."""

    out: Path
    content: Content
    tables: tuple[Path, ...] = ()
    """The files of its tables, where these were asked for."""

    def __fspath__(self) -> str:
        return str(self.out)

    def __repr__(self) -> str:
        hidden = "without prompts and responses" if self.content.is_redacted else "with all words"
        return f"<WrittenReport {self.out}: {self.out.stat().st_size / 1e6:.1f} MB, {hidden}>"

    def _repr_html_(self) -> str:
        place = html.escape(self.out.absolute().as_uri(), quote=True)
        return f'<p><a href="{place}" target="_blank">{html.escape(str(self.out))}</a></p>'


def report(
    runs: AnyPath | Iterable[AnyPath],
    out: AnyPath,
    *,
    tables: AnyPath | None = None,
    redact: bool | None = None,
    judge: str | None = None,
    title: str | None = None,
    label: Mapping[str, str] | None = None,
    calibration: AnyPath | None = None,
    progress: bool = True,
) -> WrittenReport:
    """Write one self-contained HTML page about runs (`mosa report`).

    `runs` are folders, whose own folders are searched too. `tables` is a folder for the tables as
    CSV, JSON and LaTeX. `redact` unset leaves out prompts and responses of all but the testbed's
    sets. `judge` is the judge that counts, by its id or name, unset the most trusted. `label` gives
    subjects their names on the page, in its order. `calibration` is a file of judges' errors
    (`mosa judge check --out`), by which rates are corrected. `progress` shows how far it is.

        mosa.report([run], "report.html")

    Raises UserError for folders without a run, figures that two runs hold, an unknown judge, and a
    place where the page would replace what is none.
    """
    page = Path(out)
    bar = LiveBar(is_shown=progress, vanishes=True)
    with claim_page(page), bar:  # before the work
        folder = None if tables is None else Path(tables)
        if folder is not None:
            if folder.absolute() in Path(out).absolute().parents:
                raise UserError(
                    f"the page of --out is in the folder {folder} of --tables, which is for tables "
                    "alone; put the page beside it"
                )
            check_folder(folder, TABLES_BY)
        places = [runs] if isinstance(runs, str | PathLike) else runs
        content = build(
            [Path(place) for place in places],
            ReportConfig(
                title=ReportConfig.title if title is None else title,
                judge=judge,
                redact=redact,
                labels=dict(label or {}),
                calibration=None if calibration is None else Path(calibration),
            ),
            bar.update,
        )
        bar.update("report: page", 0, None)
        write_page(page, content)
        written = () if folder is None else tuple(write_tables(folder, content))
        return WrittenReport(page, content, written)


@dataclass(frozen=True, repr=False)
class ComparedRuns:
    """Subject B beside subject A, as a table; `fail_if` decides conditions on it."""

    comparison: Comparison

    def fail_if(self, condition: str, *, max_unscored: float = MAX_UNSCORED) -> Decision:
        """Whether a condition such as "asr>0.10" or "utility_drop>0.02" holds (docs/compare.md).

        It counts as holding where more than `max_unscored` (a share) of the cases are without a
        score. Raises UserError for what is no condition, and for a figure that was not measured.
        """
        check_share(max_unscored)
        return check(parse_condition(condition), self.comparison, max_unscored=max_unscored)

    def records(self) -> list[dict[str, Any]]:
        """A dictionary for each headline and each attack, set or task that both have: the rates of
        A and B, the difference B - A with its 95 % interval, and its p value."""
        found = []
        tables = {"headline": self.comparison.headlines, **self.comparison.tables}
        for table, rows in tables.items():
            for row in rows:
                a, b, change = row.first.rate, row.second.rate, row.difference
                found.append(
                    {
                        "table": table,
                        "name": row.name,
                        "a": None if a is None else a.value,
                        "b": None if b is None else b.value,
                        "difference": None if change is None else change.value,
                        "low": None if change is None else change.low,
                        "high": None if change is None else change.high,
                        "n": 0 if change is None else change.n,
                        "p_value": change.p_value if change is not None and row.has_test else None,
                        "p_adjusted": row.p_adjusted,
                        "share_left_out": float(row.share_left_out),
                        "tokens": length_of(row.figures),
                        "in_alignment_data": alignment_data_of(row.figures),
                    }
                )
        return found

    def to_pandas(self) -> pandas.DataFrame:
        """The records as a data frame; UserError where pandas is not installed."""
        return data_frame(self.records())

    def _table(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        of = self.comparison
        headings = ("", "tokens", of.first.subject, of.second.subject, "difference (95 % interval)")
        rows = [
            (
                marked(row.name, row.figures),
                length_of(row.figures),
                format_rate(row.first.rate),
                format_rate(row.second.rate),
                "-" if row.difference is None else str(row.difference),
            )
            for rows in (of.headlines, *of.tables.values())
            for row in rows
        ]
        return headings, rows

    def _figures(self) -> list[Figure]:
        rows = (self.comparison.headlines, *self.comparison.tables.values())
        return [figure for of in rows for row in of for figure in row.figures]

    def __repr__(self) -> str:
        table = with_legend(text_table(*self._table()), self._figures())
        return "\n".join([table, *self.comparison.notes])

    def _repr_html_(self) -> str:
        notes = "".join(f"<p>{html.escape(note)}</p>" for note in self.comparison.notes)
        return html_table(*self._table()) + html_legend(self._figures()) + notes


def compare(
    run_a: AnyPath,
    run_b: AnyPath,
    *,
    subject_a: str | None = None,
    subject_b: str | None = None,
    judge: str | None = None,
) -> ComparedRuns:
    """Two subjects on the same cases: A before, B in question (`mosa compare`).

    Rates are shares from 0 to 1, differences B - A with 95 % intervals. `subject_a` and `subject_b`
    are needed where a folder has several; `judge` unset is the most trusted that both have.

        mosa.compare("runs/old", "runs/new").fail_if("utility_drop>0.02")

    Raises UserError where the two were not asked the same, or not judged by the same.
    """
    first, second = side(Path(run_a), subject_a, "a"), side(Path(run_b), subject_b, "b")
    return ComparedRuns(compare_sides(first, second, judge=judge))
