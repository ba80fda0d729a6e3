"""What a report says of budgets: what attacks spent, and how success grows with queries."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from fractions import Fraction

from mosa.evidence.figures import success_by_queries
from mosa.evidence.findings import LineChart
from mosa.evidence.labels import legend, length_of
from mosa.probes import PROBES
from mosa.reporting.content import CellValue, ReportFigure, ReportTable, Section
from mosa.reporting.setup import ReportSetup
from mosa.runs.store import Run
from mosa.stats.rates import Rate, Values, exactly, mean_of, rate_of
from mosa.types import Budget

Curve = Sequence[tuple[int, Values]]
"""(queries, whether each case succeeded within as many), as `success_by_queries` gives it."""


def budget(setup: ReportSetup, runs: Sequence[Run]) -> Section:
    """What attacks spent, and how success grows with queries."""
    rows: list[tuple[CellValue, ...]] = []
    spent: dict[tuple[str, str, str, str], list[Budget]] = defaultdict(list)
    for task, outcome in setup.tasks:
        is_attack = setup.evidence.sets[task.case_set].kind == "harmful"
        is_shown = task.subject in setup.labels and task.attack not in PROBES
        if is_attack and is_shown and outcome is not None and outcome.status == "done":
            key = (task.subject, task.case_set, task.attack, task.preset)
            spent[key].append(outcome.budget)
    figures = {
        (figure.subject, figure.case_set, figure.attack, figure.preset): figure
        for figure in setup.evidence.select("safety", judge=setup.judge)
    }
    everything = sum((budget for found in spent.values() for budget in found), Budget())
    kinds = [field.name for field in fields(Budget) if getattr(everything, field.name)]
    order = list(setup.labels)
    for key, budgets in sorted(spent.items(), key=lambda of: order.index(of[0][0])):
        subject = key[0]
        figure = figures.get(key)
        total = sum(budgets, Budget())
        by_seed = {} if figure is None else figure.by_seed
        successes = sum(sum(values.values()) for values in by_seed.values())
        # How many passes a server makes is not known.
        is_served = setup.evidence.subjects[subject].server is not None
        unknown = {"forward_passes", "backward_passes"} if is_served else set()
        means = [
            None if name in unknown else round(getattr(total, name) / len(budgets), 1)
            for name in kinds
        ]
        per_success = round(total.forward_passes / successes) if successes and not unknown else None
        rows.append(
            (
                setup.labels[subject],
                setup.names[key[1:]] if figure is None else setup.row_of(figure),
                length_of([] if figure is None else [figure]),
                len(budgets),
                *means,
                figure and figure.rate,
                *([per_success] if everything.forward_passes else []),
            )
        )
    passes_told = (
        "Forward passes add up over the rows of a batch. The last column divides all forward "
        "passes by the number of tasks that succeeded. "
    )
    table = ReportTable(
        "budget",
        "What attacks spent",
        "Only what some attack spent. Tokens: length of a response. Means over finished tasks (one "
        "attack on one case with one seed). Calls are those of the attack's own models, without "
        f"the final judge. {passes_told if everything.forward_passes else ''}"
        f"{legend(figures.values())}".rstrip(),
        (
            "Subject",
            "Attack",
            "Tokens",
            "tasks",
            *(name.replace("_", " ") for name in kinds),
            "success",
            *(["passes per success"] if everything.forward_passes else []),
        ),
        tuple(rows),
    )
    return Section("budget", "Budget", tables=(table,), figures=tuple(_query_figure(setup, runs)))


def _query_figure(setup: ReportSetup, runs: Sequence[Run]) -> Iterator[ReportFigure]:
    """How success grows with the queries that an attack may ask, the mean over attacks."""
    if setup.judge is None:
        return
    shared = set(setup.shared_attacks())
    curves: dict[str, dict[str, list[Curve]]] = defaultdict(lambda: defaultdict(list))
    for run, facts in zip(runs, setup.evidence.runs, strict=True):
        if setup.judge not in facts.judges:
            continue
        for cell, curve in success_by_queries(run, setup.judge).items():
            name = setup.names[cell.case_set, cell.attack, cell.preset]
            if cell.subject in setup.labels and (cell.case_set, name) in shared:
                curves[cell.subject][cell.case_set].append(curve)
    most = max(
        (curve[-1][0] for sets in curves.values() for found in sets.values() for curve in found),
        default=0,
    )
    if most < 2:
        return
    points = [1 << i for i in range(most.bit_length()) if 1 << i < most] + [most]
    series = {}
    for subject, label in setup.labels.items():
        rates = ((float(queries), _rate_within(curves[subject], queries)) for queries in points)
        if found := [(queries, rate) for queries, rate in rates if rate is not None]:
            series[label] = found
    yield ReportFigure(
        "success-by-queries",
        LineChart(
            "Success by number of queries",
            "queries that an attack may ask the target",
            "attack success rate, mean over attacks",
            series,
            (0.0, 1.0),
        ),
        f"The mean over attacks ({len(shared)}); an attack that asks fewer queries keeps its rate. "
        "Where an attack's loop selects a try, the one decides that it had selected by then. "
        f"Bars are 95 % intervals over cases. Judge {setup.judge}; the table of attacks and "
        "subjects says how many cases are unscored.",
    )


def _rate_within(curves: Mapping[str, Sequence[Curve]], queries: int) -> Rate | None:
    """The rate over cases, each with its mean over the attacks on its set."""
    found: dict[str, dict[int, Fraction]] = defaultdict(dict)
    for case_set, of_set in curves.items():
        outcomes = []
        for curve in of_set:
            values = [values for asked, values in curve if asked <= queries][-1]
            outcomes.append({(c, seed): v for c, of in values.items() for seed, v in of.items()})
        for case, seed in set.intersection(*map(set, outcomes)):
            within = [exactly(outcome[case, seed]) for outcome in outcomes]
            found[f"{case_set}/{case}"][seed] = mean_of(within)
    return rate_of(found) if found else None
