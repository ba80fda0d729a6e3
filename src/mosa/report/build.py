"""From run folders to what a report says.

    content = build([Path("demo/run")])
    write_page(Path("report.html"), content)

One pass over the attempts gives the views of single responses (views.py), the evidence gives the
rates, and verdict.py turns the headlines into sentences.
"""

from __future__ import annotations

import datetime
import importlib.metadata
from collections.abc import Iterator, Sequence
from pathlib import Path

from mosa.report.attack_tables import attacks, categories, scoreboard
from mosa.report.budget import budget
from mosa.report.content import Content, ReportFigure, ReportTable, Section
from mosa.report.cost_tables import trade_off, training
from mosa.report.provenance import citation, settings_tables
from mosa.report.setup import ReportConfig, ReportSetup, note_of, read_setup
from mosa.report.verdict import cautions, verdict
from mosa.report.views import Views, diffusion_figures, garbled_rates, position_figure, scan
from mosa.results.figures import opened
from mosa.results.findings import Finding, HeatMap, findings_of


def build(paths: Sequence[Path], config: ReportConfig | None = None) -> Content:
    """What a report on these run folders says.

    Raises UserError for folders without a run, figures that are there twice, an unknown judge, or a
    label of no subject.
    """
    config = config or ReportConfig()
    with opened(paths) as runs:
        setup = read_setup(runs, config)
        views = scan(setup, runs)
        findings = [finding for run in runs for finding in findings_of(run)]
        by_position = position_figure(setup, runs)
        spent = budget(setup, runs)
    evidence = setup.evidence
    sections = [
        scoreboard(setup),
        attacks(setup, views),
        trade_off(setup),
        _diffusion(setup, views, findings, by_position),
        _findings_section(findings),
        training(setup),
        categories(setup),
        spent,
        Section("settings", "Settings, versions, data", tables=tuple(settings_tables(setup))),
        Section("cite", "How to cite", paragraphs=tuple(citation(setup))),
    ]
    notes = dict(config.notes or {})
    return Content(
        title=config.title,
        verdict=tuple(verdict(evidence, setup.judge, setup.labels)),
        cautions=(*config.limits, *cautions(evidence, setup.judge, setup.labels)),
        subjects={
            label: notes.get(name) or note_of(evidence.subjects[name])
            for name, label in setup.labels.items()
        },
        judges=tuple(setup.judges),
        sections=tuple(section for section in sections if section is not None),
        samples=views.samples,
        is_redacted=any(
            setup.hides(name) for name, found in evidence.sets.items() if found.kind != "useful"
        ),
        made_with=f"mosa {importlib.metadata.version('mosa-dllm')}, {datetime.date.today()}",
    )


def _diffusion(
    setup: ReportSetup,
    views: Views,
    findings: Sequence[Finding],
    by_position: ReportFigure | None,
) -> Section | None:
    figures = [] if by_position is None else [by_position]
    figures += [figure for figure in _charts(findings) if isinstance(figure.chart, HeatMap)]
    figures += list(diffusion_figures(views))
    tables = []
    rates = garbled_rates(views)
    if rates:
        names = dict.fromkeys(attack for _, attack in rates)
        labels = tuple(setup.labels.values())
        tables.append(
            ReportTable(
                "garbled",
                "Garbled text",
                "Share of tries whose text is garbled, the mean over cases; empty responses count "
                "as tries that are not. It says nothing of refusal or harm: a refusal can be "
                f"garbled, and so can a part of a success. Judge {setup.judge}.",
                ("Attack", *labels),
                tuple((name, *(rates.get((label, name)) for label in labels)) for name in names),
            )
        )
    if not figures and not tables:
        return None
    return Section(
        "diffusion",
        "How the subjects write, and where they fail",
        tables=tuple(tables),
        figures=tuple(figures),
    )


def _charts(findings: Sequence[Finding]) -> Iterator[ReportFigure]:
    """The charts of findings."""
    for number, finding in enumerate(findings):
        sets = ", ".join(f"{n} cases of {name}" for name, n in finding.header["sets"].items())
        subjects = ", ".join(finding.header["subjects"])
        caption = f"Probe {finding.probe}:{finding.preset}, {subjects}, on {sets}."
        for name, chart in finding.charts.items():
            yield ReportFigure(f"finding-{number}-{name}", chart, caption)


def _findings_section(findings: Sequence[Finding]) -> Section | None:
    """What the probes have found, and the charts that are no maps."""
    if not findings:
        return None
    return Section(
        "findings",
        "Findings",
        paragraphs=tuple(f"{finding.probe}: {finding.paragraph}" for finding in findings),
        figures=tuple(f for f in _charts(findings) if not isinstance(f.chart, HeatMap)),
    )
