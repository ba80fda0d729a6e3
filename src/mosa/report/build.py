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

from mosa.analysis.result import HeatMap, read_result
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
    sections = [
        scoreboard(setup),
        attacks(setup, views),
        trade_off(setup),
        _diffusion(setup, views),
        _analysis_section(setup),
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


def _diffusion(setup: Setup, views: Views) -> Section | None:
    figures = []
    if setup.judge is not None:
        by_position = position_figure(setup.evidence, setup.judge, setup.labels)
        figures += [] if by_position is None else [by_position]
    figures += [figure for figure in _analyses(setup.evidence) if isinstance(figure.chart, HeatMap)]
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


def _analyses(evidence: Evidence) -> Iterator[Figure]:
    """The charts of the analyses that stand among the runs."""
    for number, folder in enumerate(evidence.analyses):
        result = read_result(folder / "result.json")
        caption = (
            f"`mosa analyze {result.analysis}`, {', '.join(result.header['models'])}, on "
            f"{result.header['behaviors']['n']} requests of {result.header['behaviors']['source']}."
        )
        for name, chart in result.charts.items():
            yield Figure(f"analysis-{number}-{name}", chart, caption)


def _analysis_section(setup: Setup) -> Section | None:
    """What the analyses found, and their charts that are no maps."""
    folders = setup.evidence.analyses
    if not folders:
        return None
    found = [read_result(folder / "result.json") for folder in folders]
    return Section(
        "analyses",
        "Analyses",
        paragraphs=tuple(f"{result.analysis}: {result.paragraph}" for result in found),
        figures=tuple(
            figure for figure in _analyses(setup.evidence) if not isinstance(figure.chart, HeatMap)
        ),
    )


def _settings(setup: Setup) -> Section:
    return Section(
        "settings",
        "Settings, versions, data",
        tables=tuple(settings_tables(setup.evidence, setup.labels)),
    )


def _cite(setup: Setup) -> Section:
    return Section("cite", "How to cite", paragraphs=tuple(citation(setup.evidence)))
