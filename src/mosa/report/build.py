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

from mosa.evaluation.evidence import Evidence, gather
from mosa.report.attack_tables import attacks, categories, scoreboard
from mosa.report.budget import budget
from mosa.report.content import Content, Figure, Section, Table
from mosa.report.cost_tables import trade_off, training
from mosa.report.provenance import citation, settings_tables
from mosa.report.setup import ReportConfig, Setup, check_once, deciding_judge, labels_of, note_of
from mosa.report.verdict import cautions, verdict
from mosa.report.views import (
    Views,
    diffusion_figures,
    incoherent_rates,
    position_figure,
    scan,
)
from mosa.results.findings import Finding, HeatMap, findings_of
from mosa.runs.store import Run


def build(paths: Sequence[Path], config: ReportConfig | None = None) -> Content:
    """What a report on these run folders says.

    Raises UserError for folders without a run, figures that are there twice, an unknown judge, or a
    label of no model.
    """
    config = config or ReportConfig()
    evidence = gather(paths)
    check_once(evidence)
    setup = Setup(evidence, deciding_judge(evidence, config), labels_of(evidence, config), config)
    views = scan(setup)
    findings = _findings(evidence)
    sections = [
        scoreboard(setup),
        attacks(setup, views),
        trade_off(setup),
        _diffusion(setup, views, findings),
        _findings_section(findings),
        training(setup),
        categories(setup),
        budget(setup),
        _settings(setup),
        _cite(setup),
    ]
    notes = dict(config.notes or {})
    return Content(
        title=config.title,
        verdict=tuple(verdict(evidence, setup.judge, setup.labels)),
        cautions=(*config.limits, *cautions(evidence, setup.judge, setup.labels)),
        models={
            label: notes.get(name) or note_of(evidence.models[name])
            for name, label in setup.labels.items()
        },
        judges=tuple(setup.judges),
        sections=tuple(section for section in sections if section is not None),
        samples=views.samples,
        is_redacted=any(setup.hides(run) for run in evidence.runs if run.kind != "utility"),
        made_with=f"mosa {importlib.metadata.version('mosa-dllm')}, {datetime.date.today()}",
    )


def _diffusion(setup: Setup, views: Views, findings: Sequence[Finding]) -> Section | None:
    figures = []
    if setup.judge is not None:
        by_position = position_figure(setup.evidence, setup.judge, setup.labels)
        figures += [] if by_position is None else [by_position]
    figures += [figure for figure in _charts(findings) if isinstance(figure.chart, HeatMap)]
    figures += list(diffusion_figures(views))
    tables = []
    rates = incoherent_rates(views)
    if rates:
        attacks = dict.fromkeys(attack for _, attack in rates)
        labels = tuple(setup.labels.values())
        tables.append(
            Table(
                "incoherent",
                "Broken text",
                "Share of tries whose text is broken, the mean over behaviors; empty responses are "
                "tries without a broken text. It says nothing of refusal or harm: a refusal can be "
                f"garbled, and a success can hold a broken sentence. Judge {setup.judge}.",
                ("Attack", *labels),
                tuple(
                    (attack, *(rates.get((label, attack)) for label in labels))
                    for attack in attacks
                ),
            )
        )
    if not figures and not tables:
        return None
    return Section(
        "diffusion",
        "How the models write, and where they break",
        tables=tuple(tables),
        figures=tuple(figures),
    )


def _findings(evidence: Evidence) -> list[Finding]:
    """What the probes in the runs have found."""
    found = []
    for facts in evidence.runs:
        with Run(facts.folder) as run:
            found += findings_of(run)
    return found


def _charts(findings: Sequence[Finding]) -> Iterator[Figure]:
    """The charts of findings."""
    for number, finding in enumerate(findings):
        sets = ", ".join(f"{n} cases of {name}" for name, n in finding.header["sets"].items())
        subjects = ", ".join(finding.header["subjects"])
        caption = f"Probe {finding.probe}:{finding.preset}, {subjects}, on {sets}."
        for name, chart in finding.charts.items():
            yield Figure(f"finding-{number}-{name}", chart, caption)


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


def _settings(setup: Setup) -> Section:
    return Section(
        "settings",
        "Settings, versions, data",
        tables=tuple(settings_tables(setup.evidence, setup.labels)),
    )


def _cite(setup: Setup) -> Section:
    return Section("cite", "How to cite", paragraphs=tuple(citation(setup.evidence)))
