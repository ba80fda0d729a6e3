"""What a report says of the cost of safety: over-refusal, useful tasks, moments of a training."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator

from mosa.evidence.figures import CONTROL, REFUSED, Figure, moment_of
from mosa.evidence.findings import LineChart
from mosa.evidence.labels import legend, length_of, names_in, title_of
from mosa.evidence.training import BAND, MOST, SHARE_AT_THE_END, settled
from mosa.judges.compliance import COMPLIANCES
from mosa.reporting.content import CellValue, Paths, ReportFigure, ReportTable, Section
from mosa.reporting.setup import ReportSetup
from mosa.stats.rates import Interval, Rate, format_value


def costs(setup: ReportSetup) -> Section:
    """What harmless requests and useful tasks say."""
    tables = (*_over_refusal_tables(setup), _utility_table(setup))
    return Section("cost", "What safety costs", tables=tables)


def _over_refusal_tables(setup: ReportSetup) -> Iterator[ReportTable]:
    for judge in setup.evidence.judges("over_refusal"):
        figures = setup.evidence.select("over_refusal", judge=judge)
        cells = {(f.name, f.subject, f.measure): f for f in figures}
        rows: list[tuple[CellValue, ...]] = []
        for name in dict.fromkeys(figure.name for figure in figures):
            for subject, label in setup.labels.items():
                of = [cells.get((name, subject, m)) for m in (REFUSED, *COMPLIANCES)]
                if (counted := of[0]) is not None:
                    missing = counted.num_unscored + counted.num_failed + counted.num_left
                    rates = (figure and figure.rate for figure in of)
                    rows.append((name, label, length_of([counted]), *rates, missing))
        is_switched = judge in setup.judges
        yield ReportTable(
            "over-refusal" if is_switched else f"over-refusal-{setup.judge_names[judge]}",
            f"Harmless requests by {setup.judge_names[judge]}",
            "Share of harmless requests by how the subject answers; `refused` is full and partial "
            f"refusal together. Tokens: length of a response. Judge {judge}.",
            ("Requests", "Subject", "Tokens", REFUSED, *COMPLIANCES, "in no rate"),
            tuple(rows),
            judge=judge if is_switched else "",
        )


def _utility_table(setup: ReportSetup) -> ReportTable:
    figures = setup.evidence.select("utility")
    cells = {(f.name, f.measure, f.subject): f for f in figures}
    rows: list[tuple[CellValue, ...]] = []
    for task, metric in dict.fromkeys((figure.name, figure.measure) for figure in figures):
        of = [cells.get((task, metric, subject)) for subject in setup.labels]
        if own := [figure for figure in of if figure is not None]:
            rates = (figure and figure.rate for figure in of)
            missing = sum(figure.num_unscored for figure in own)
            rows.append((task, metric, length_of(own), *rates, missing))
    return ReportTable(
        "utility",
        "Useful tasks",
        "Share of a task's cases that a subject solves (more is better) with its own decoder (see "
        "the settings). Tokens: length of a response.",
        ("Task", "Metric", "Tokens", *setup.labels.values(), "unscored"),
        tuple(rows),
    )


def training(setup: ReportSetup) -> Section:
    """Success of attacks against utility, along a training whose moments were kept."""
    evidence = setup.evidence
    moments: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for name in evidence.subjects:
        if moment := moment_of(evidence, name):
            moments[moment[0]].append((moment[1], name))
    attacked = [
        {(f.case_set, f.name) for f in evidence.select("safety", subject=name, judge=setup.judge)}
        for found in moments.values()
        for _, name in found
    ]
    everywhere = [attacks for attacks in attacked if attacks]
    shared = sorted(set.intersection(*everywhere)) if everywhere else []
    attacks = [attack for attack in shared if attack[1] != CONTROL] or shared
    series: dict[str, list[tuple[str, Rate, Rate]]] = {}
    rows: list[tuple[CellValue, ...]] = []
    counted: list[Figure] = []
    for base, found in moments.items() if attacks else ():
        names = [(f"update {step}", name) for step, name in sorted(found)]
        for moment, name in names:
            success = setup.headline("asr", name, attacks)
            useful = setup.headline("utility", name)
            label = setup.labels[base]
            num_unscored = success.num_unscored + useful.num_unscored
            length = length_of(success.figures)
            rows.append((label, moment, length, success.rate, useful.rate, num_unscored))
            counted += success.figures
            if success.rate is not None and useful.rate is not None:
                series.setdefault(label, []).append((moment, useful.rate, success.rate))
    table = ReportTable(
        "training",
        "Along the training",
        f"Mean attack success rate over {names_in(counted, title_of)}, and utility, while a model "
        f"was aligned. Few cases each; see the intervals. {legend(counted)} Judge {setup.judge}.",
        ("Subject", "Moment", "Tokens", "Attacks, mean", "Utility", "unscored"),
        tuple(rows),
    )
    figures = []
    if series:
        figures.append(
            ReportFigure(
                "training-paths",
                Paths(
                    "Attack success against utility along the training",
                    "utility (more is better)",
                    "attack success rate",
                    series,
                ),
                "Each line is one alignment, each mark one moment of it. Down is safer, left is "
                "less useful.",
            )
        )
    rewards, lines, left = _rewards(setup)
    if lines.series:
        figures.append(
            ReportFigure(
                "training-reward",
                lines,
                f"Each mark is a mean since the mark before; the grey band is where the reward of "
                f"MOSA settles in its paper ({BAND[0]:g} to {BAND[1]:g} nats).",
            )
        )
    return Section(
        "training",
        "Along the training",
        paragraphs=tuple(left),
        tables=(table, rewards),
        figures=tuple(figures),
    )


def _rewards(setup: ReportSetup) -> tuple[ReportTable, LineChart, list[str]]:
    """The reward of each training beside the paper's, and a sentence for each outside of it."""
    series: dict[str, list[tuple[float, Interval]]] = {}
    rows: list[tuple[CellValue, ...]] = []
    left: list[str] = []
    for name, label in setup.labels.items():
        points = setup.evidence.subjects[name].training
        end = settled(points)
        if end is None:
            continue
        rows.append(
            (
                label,
                points[-1].step,
                f"{end.reward:z.1f}",
                "inside" if end.is_in_band else "outside",
                None if end.refusal_share is None else format_value(end.refusal_share),
                None if end.kl is None else f"{end.kl:.1f}",
            )
        )
        series[label] = [
            (float(p.step), Interval(p.reward, 1, -math.inf, math.inf)) for p in points
        ]
        if not end.is_in_band:
            left.append(
                f"{label}: the reward ends at {end.reward:z.1f} nats, where the paper's settles at "
                f"{BAND[0]:g} to {BAND[1]:g} (up to {MOST:g} counts here); its figures are not "
                "about the paper's regime."
            )
    table = ReportTable(
        "reward",
        "Reward of the training",
        f"Means over the last {100 * SHARE_AT_THE_END:.0f} % of the log. The reward is the "
        "log-likelihood of a refusal minus that of a harmful phrase, in nats; refusals first is "
        "the share of fully masked prompts with a refusal in the window in the first step; the KL "
        "is from the original, on harmful prompts, in nats.",
        ("Subject", "Updates", "Reward", "Paper's band", "Refusals first", "KL"),
        tuple(rows),
    )
    top = max((point.value for line in series.values() for _, point in line), default=BAND[1])
    lines = LineChart(
        "Reward of the training",
        "update",
        "reward, nats",
        series,
        y_range=(0.0, max(30.0, top)),
        band=BAND,
    )
    return table, lines, left
