"""What a report says of the price of safety: over-refusal, useful tasks, the way of a training."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from mosa.evaluation.evidence import CONTROL, REFUSED, headline, moment_of
from mosa.judges.compliance import COMPLIANCES
from mosa.report.content import Cell, Figure, Paths, Points, Section, Table
from mosa.report.setup import Setup, rate_in
from mosa.stats.rates import Rate


def trade_off(setup: Setup) -> Section | None:
    """Safety against over-refusal, and what useful tasks say."""
    evidence = setup.evidence
    points = {}
    for name, label in setup.labels.items():
        refusal = headline(evidence, "over_refusal", name).rate
        success = None
        if setup.judge is not None:
            success = headline(evidence, "asr", name, setup.judge).rate
        if refusal is not None and success is not None:
            points[label] = (refusal, success, headline(evidence, "utility", name).rate)
    figures = []
    if points:
        figures.append(
            Figure(
                "trade-off",
                Points(
                    "Safety against over-refusal",
                    "over-refusal (harmless requests refused)",
                    "attack success rate, mean over attacks",
                    "utility",
                    points,
                ),
                "Best is the lower left corner, with a large mark: attacks fail, harmless requests "
                "are answered, useful tasks are solved. The size is the mean over useful tasks. "
                "How many cases are unscored stands in the scoreboard.",
            )
        )
    tables = [*_over_refusal_tables(setup), *_utility_table(setup)]
    if not figures and not tables:
        return None
    return Section("cost", "What safety costs", tables=tuple(tables), figures=tuple(figures))


def _over_refusal_tables(setup: Setup) -> Iterator[Table]:
    for judge in setup.evidence.judges("over_refusal"):
        figures = setup.evidence.select("over_refusal", judge=judge)
        cells = {(f.name, f.model, f.measure): f for f in figures}
        rows: list[tuple[Cell, ...]] = []
        for name in dict.fromkeys(figure.name for figure in figures):
            for model, label in setup.labels.items():
                of = {
                    measure: cells.get((name, model, measure))
                    for measure in (REFUSED, *COMPLIANCES)
                }
                counted = of[REFUSED]
                if counted is not None:
                    missing = counted.num_unscored + counted.num_failed + counted.num_left
                    rows.append(
                        (name, label, *(rate_in(figure) for figure in of.values()), missing)
                    )
        is_switched = judge in setup.judges
        yield Table(
            "over-refusal" if is_switched else f"over-refusal-{setup.judge_names[judge]}",
            f"Harmless requests by {setup.judge_names[judge]}",
            "Share of harmless requests by what became of them; `refused` is full and partial "
            f"refusal together. Judge {judge}.",
            ("Requests", "Model", REFUSED, *COMPLIANCES, "in no rate"),
            tuple(rows),
            judge=judge if is_switched else "",
        )


def _utility_table(setup: Setup) -> Iterator[Table]:
    figures = setup.evidence.select("utility")
    if not figures:
        return
    cells = {(f.name, f.measure, f.model): f for f in figures}
    rows: list[tuple[Cell, ...]] = []
    for task, metric in dict.fromkeys((figure.name, figure.measure) for figure in figures):
        of = [cells.get((task, metric, model)) for model in setup.labels]
        if any(figure is not None for figure in of):
            missing = sum(figure.num_unscored for figure in of if figure is not None)
            rows.append((task, metric, *map(rate_in, of), missing))
    yield Table(
        "utility",
        "Useful tasks",
        "Share of a task's cases that a model solves (more is better), under the decoder that is "
        "told in the settings.",
        ("Task", "Metric", *setup.labels.values(), "unscored"),
        tuple(rows),
    )


def training(setup: Setup) -> Section | None:
    """Success of attacks against utility, along a training whose moments were kept."""
    evidence = setup.evidence
    moments: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for name in evidence.models:
        moment = moment_of(evidence, name)
        if moment is not None:
            moments[moment[0]].append((moment[1], name))
    if not moments or setup.judge is None:
        return None
    everywhere = [
        attacked
        for found in moments.values()
        for _, name in found
        if (
            attacked := {
                (figure.behavior_set, figure.name)
                for figure in evidence.select("safety", model=name, judge=setup.judge)
            }
        )
    ]
    shared = sorted(set.intersection(*everywhere)) if everywhere else []
    attacks = [attack for attack in shared if attack[1] != CONTROL] or shared
    if not attacks:
        return None
    series: dict[str, list[tuple[str, Rate, Rate]]] = {}
    rows: list[tuple[Cell, ...]] = []
    for base, found in moments.items():
        names = [(f"update {step}", name) for step, name in sorted(found)]
        for moment, name in names:
            success = headline(evidence, "asr", name, setup.judge, attacks)
            useful = headline(evidence, "utility", name)
            label = setup.labels[base]
            num_unscored = success.num_unscored + useful.num_unscored
            rows.append((label, moment, success.rate, useful.rate, num_unscored))
            if success.rate is not None and useful.rate is not None:
                series.setdefault(label, []).append((moment, useful.rate, success.rate))
    table = Table(
        "training",
        "Along the training",
        f"Mean attack success rate over {', '.join(name for _, name in attacks)}, and utility, "
        f"while a model was aligned. Few cases each; see the intervals. Judge {setup.judge}.",
        ("Model", "Moment", "Attacks, mean", "Utility", "unscored"),
        tuple(rows),
    )
    figures = []
    if series:
        figures.append(
            Figure(
                "training-paths",
                Paths(
                    "Attack success against utility along the training",
                    "utility (more is better)",
                    "attack success rate",
                    series,
                ),
                "Each line is one alignment, a mark is one moment of it. Down is safer, left is "
                "less useful.",
            )
        )
    return Section("training", "Along the training", tables=(table,), figures=tuple(figures))
