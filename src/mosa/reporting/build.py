"""Builds the content of a report from run folders.

    content = build([Path("demo/run")])
    write_page(Path("report.html"), content)

One pass over the attempts gives the views of single responses (views.py), the evidence gives the
rates, and verdict.py turns the headlines into sentences.
"""

from __future__ import annotations

import datetime
import importlib.metadata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from mosa.attacks import ATTACKS
from mosa.evidence.figures import opened_runs
from mosa.evidence.findings import Finding, HeatMap, findings_of
from mosa.evidence.labels import legend, length_of, marked, title_of
from mosa.probes import PROBES
from mosa.reporting.attack_tables import attacks, categories, scoreboard
from mosa.reporting.budget import budget
from mosa.reporting.content import Content, Named, ReportFigure, ReportTable, Section
from mosa.reporting.cost_tables import costs, training
from mosa.reporting.overview import overview
from mosa.reporting.provenance import citation, settings_tables
from mosa.reporting.setup import ReportConfig, ReportSetup, note_of, read_setup
from mosa.reporting.verdict import cautions, compare_to_first, opening_lines
from mosa.reporting.views import Views, diffusion_figures, position_figure, scan, share_of_tries
from mosa.types import Tell, tell_nobody


def build(
    paths: Sequence[Path], config: ReportConfig | None = None, tell: Tell = tell_nobody
) -> Content:
    """What a report on these run folders says; `tell` hears how far it is.

    Raises UserError for folders without a run, a figure that two runs hold, an unknown judge, or a
    label of no subject.
    """
    config = config or ReportConfig()
    with opened_runs(paths) as runs:
        tell("report: figures", 0, None)
        setup = read_setup(runs, config)
        views = scan(setup, runs, tell)
        tell("report: findings and tables", 0, None)
        findings = [found for run in runs for found in findings_of(run, labels=setup.labels)]
        charts = list(_charts(findings, setup.labels))
        by_position = list(position_figure(setup, runs))
        spent = budget(setup, runs)
    evidence = setup.evidence
    sections = [
        attacks(setup, views),
        scoreboard(setup),
        costs(setup),
        _diffusion(setup, views, charts, by_position),
        _findings_section(findings, charts),
        training(setup),
        categories(setup),
        spent,
        Section("settings", "Settings, versions, data", tables=tuple(settings_tables(setup))),
        Section("cite", "How to cite", paragraphs=tuple(citation(setup))),
    ]
    notes = dict(config.notes or {})
    comparisons = compare_to_first(setup)
    asked = {name: found for name, found in evidence.sets.items() if found.kind != "useful"}
    is_redacted = any(map(setup.hides, asked))
    return Content(
        title=config.title,
        verdict=tuple(opening_lines(setup, comparisons)),
        cautions=(*config.limits, *cautions(setup)),
        subjects={
            label: notes.get(name) or note_of(evidence.subjects[name])
            for name, label in setup.labels.items()
        },
        judges={judge: setup.judge_names[judge] for judge in setup.judges},
        sections=tuple(filled for section in sections if (filled := section.filled())),
        overview=overview(setup, comparisons, views.samples),
        names=dict(_names(setup)),
        samples=views.samples,
        is_redacted=is_redacted,
        shows_words=not is_redacted
        and all(found.world_seed is not None for found in asked.values()),
        made_with=f"mosa {importlib.metadata.version('mosa-dllm')}, {datetime.date.today()}",
    )


def _names(setup: ReportSetup) -> Iterator[tuple[str, Named]]:
    """Attacks and useful tasks in plain words, by what tables and samples call them."""
    for figure in setup.evidence.select("safety"):
        known = ATTACKS.get(figure.attack)
        paper = "" if known is None else known.paper
        title = title_of(figure)
        if known is not None:
            yield figure.attack, Named(known.title, paper)
            yield marked(figure.attack, [figure]), Named(marked(known.title, [figure]), paper)
        yield figure.name, Named(title, paper, figure.name)
        shown = setup.row_of(figure, title_of)
        yield setup.row_of(figure), Named(shown, paper, figure.name, figure.case_set)
    for figure in setup.evidence.select("utility"):
        yield figure.name, Named(title_of(figure))


def _diffusion(
    setup: ReportSetup,
    views: Views,
    charts: Sequence[ReportFigure],
    by_position: Sequence[ReportFigure],
) -> Section:
    """How the subjects write, and what of it is garbled."""
    maps = [figure for figure in charts if isinstance(figure.chart, HeatMap)]
    rates = {key: share_of_tries(found) for key, found in views.garbled.items()}
    figures = setup.attack_figures(setup.judge).values()
    own = {attack: [f for f in figures if f.name == attack] for _, attack in rates}
    labels = tuple(setup.labels.values())
    garbled = ReportTable(
        "garbled",
        "Garbled text",
        "Share of tries whose text is garbled, the mean over cases; an empty response is not "
        "garbled. It says nothing of refusal or harm: a refusal can be garbled, and so can a part "
        f"of a success. Tokens: length of a response. {legend(figures)} Judge {setup.judge}.",
        ("Attack", "Tokens", *labels),
        tuple(
            (
                marked(name, of_name),
                length_of(of_name),
                *(rates.get((label, name)) for label in labels),
            )
            for name, of_name in own.items()
        ),
    )
    return Section(
        "diffusion",
        "How the subjects write, and where they fail",
        tables=(garbled,),
        figures=(*by_position, *maps, *diffusion_figures(views)),
    )


def _charts(findings: Sequence[Finding], labels: Mapping[str, str]) -> Iterator[ReportFigure]:
    """The charts of findings."""
    for number, finding in enumerate(findings):
        sets = ", ".join(f"{n} cases of {name}" for name, n in finding.header["sets"].items())
        subjects = ", ".join(labels.get(name, name) for name in finding.header["subjects"])
        caption = (
            f"Probe {finding.probe}:{finding.preset}, {subjects}, on {sets}; responses of "
            f"{finding.length} tokens."
        )
        for name, chart in finding.charts.items():
            yield ReportFigure(f"finding-{number}-{name}", chart, caption)


def _findings_section(findings: Sequence[Finding], charts: Sequence[ReportFigure]) -> Section:
    """What the probes have found, and the charts that are no maps."""
    return Section(
        "findings",
        "Findings",
        findings=tuple(
            (
                f"{PROBES[finding.probe].title} ({finding.probe}:{finding.preset})".capitalize(),
                tuple(finding.sentences),
            )
            for finding in findings
        ),
        figures=tuple(figure for figure in charts if not isinstance(figure.chart, HeatMap)),
    )
