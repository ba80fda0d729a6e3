"""What a report says of budgets: what attacks spent, and what more queries bring."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from fractions import Fraction

from mosa.evaluation.evidence import attacks_of_all
from mosa.evaluation.results import attack_names, success_by_queries
from mosa.evaluation.store import Store
from mosa.report.content import Cell, Figure, Section, Table
from mosa.report.setup import Setup, rate_in, row_name
from mosa.results.findings import LineChart
from mosa.stats.rates import Rate, Values, exactly, mean_of, rate_of
from mosa.types import Budget

Curve = Sequence[tuple[int, Values]]
"""(queries, whether each case succeeded within as many), as `success_by_queries` gives it."""
BUDGET_COLUMNS = tuple(field.name for field in fields(Budget))


def budget(setup: Setup) -> Section | None:
    """What attacks spent, and what more queries bring."""
    rows: dict[str, list[tuple[Cell, ...]]] = {model: [] for model in setup.labels}
    for run in setup.evidence.runs:
        if run.kind != "safety":
            continue
        with Store(run.folder) as store:
            names = attack_names((attack, preset) for _, attack, preset, _, _ in store.counts())
            spent: dict[tuple[str, str], list[Budget]] = defaultdict(list)
            for task in store.tasks(status="done"):
                if task.budget is not None:
                    spent[task.model, names[task.attack, task.preset]].append(task.budget)
        rates = {
            (figure.model, figure.name): figure
            for figure in setup.evidence.select("safety", judge=setup.judge)
            if figure.behavior_set == run.behavior_set
        }
        for (model, attack), budgets in spent.items():
            if model not in setup.labels:
                continue
            figure = rates.get((model, attack))
            total = sum(budgets, Budget())
            by_seed = {} if figure is None else figure.by_seed
            successes = sum(sum(values.values()) for values in by_seed.values())
            means = [round(getattr(total, name) / len(budgets), 1) for name in BUDGET_COLUMNS]
            rows[model].append(
                (
                    setup.labels[model],
                    attack if figure is None else row_name(setup, figure),
                    len(budgets),
                    *means,
                    rate_in(figure),
                    round(total.forward_passes / successes) if successes else None,
                )
            )
    if not any(rows.values()):
        return None
    table = Table(
        "budget",
        "What attacks spent",
        "Means over finished tasks (one attack on one behavior with one seed). Forward passes are "
        "summed over the rows of a batch. The last column divides all forward passes by the number "
        "of tasks that succeeded. Calls are those of the attack's own models; the final "
        "judge is not counted.",
        (
            "Model",
            "Attack",
            "tasks",
            *(name.replace("_", " ") for name in BUDGET_COLUMNS),
            "success",
            "passes per success",
        ),
        tuple(row for of_model in rows.values() for row in of_model),
    )
    return Section("budget", "Budget", tables=(table,), figures=tuple(_query_figure(setup)))


def _query_figure(setup: Setup) -> Iterator[Figure]:
    """How success grows with the queries that an attack may ask, the mean over attacks."""
    if setup.judge is None:
        return
    shared = set(attacks_of_all(setup.evidence, setup.judge))
    curves: dict[str, dict[str, list[Curve]]] = defaultdict(lambda: defaultdict(list))
    for run in setup.evidence.runs:
        if run.kind != "safety" or setup.judge not in run.judges:
            continue
        with Store(run.folder) as store:
            names = attack_names((attack, preset) for _, attack, preset, _, _ in store.counts())
            for (model, attack, preset), curve in success_by_queries(store, setup.judge).items():
                if model in setup.labels and (run.behavior_set, names[attack, preset]) in shared:
                    curves[model][run.behavior_set].append(curve)
    most = max(
        (curve[-1][0] for sets in curves.values() for found in sets.values() for curve in found),
        default=0,
    )
    if most < 2:
        return
    points = [1 << i for i in range(most.bit_length()) if 1 << i < most] + [most]
    series = {}
    for model, label in setup.labels.items():
        rates = [(float(queries), _rate_within(curves[model], queries)) for queries in points]
        found = [(queries, rate) for queries, rate in rates if rate is not None]
        if found:
            series[label] = found
    yield Figure(
        "success-by-queries",
        LineChart(
            "Success within so many queries",
            "queries of the target that an attack may ask",
            "attack success rate, mean over attacks",
            series,
            (0.0, 1.0),
            x_log=True,
        ),
        f"The mean over {len(shared)} attacks; one that asks fewer queries keeps its rate. "
        f"Bars are 95 % intervals over behaviors. Judge {setup.judge}; how many cases are "
        "unscored stands in the map of attacks and models.",
    )


def _rate_within(curves: Mapping[str, Sequence[Curve]], queries: int) -> Rate | None:
    """The rate over behaviors, each with its mean over the attacks on its set."""
    found: dict[str, dict[int, Fraction]] = defaultdict(dict)
    for behavior_set, of_set in curves.items():
        outcomes = []
        for curve in of_set:
            values = [values for asked, values in curve if asked <= queries][-1]
            outcomes.append({(c, seed): v for c, of in values.items() for seed, v in of.items()})
        for case, seed in set.intersection(*map(set, outcomes)):
            within = [exactly(outcome[case, seed]) for outcome in outcomes]
            found[f"{behavior_set}/{case}"][seed] = mean_of(within)
    return rate_of(found) if found else None
