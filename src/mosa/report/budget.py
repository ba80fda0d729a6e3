"""What a report says of budgets: what attacks spent, and what more queries bring."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import fields

from mosa.analysis.result import Estimate, LineChart
from mosa.evaluation.evidence import attacks_of_all, headline
from mosa.evaluation.metrics import wilson
from mosa.evaluation.results import attack_names, success_by_queries
from mosa.evaluation.store import Store
from mosa.report.content import Cell, Figure, Section, Table
from mosa.report.setup import Setup, rate_in, row_name
from mosa.types import Budget

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
            successes = 0.0 if figure is None else sum(sum(v) for v in figure.cases.values())
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
    curves: dict[str, list[list[tuple[int, float]]]] = defaultdict(list)
    for run in setup.evidence.runs:
        if run.kind != "safety" or setup.judge not in run.judges:
            continue
        with Store(run.folder) as store:
            names = attack_names((attack, preset) for _, attack, preset, _, _ in store.counts())
            for (model, attack, preset), curve in success_by_queries(store, setup.judge).items():
                if model in setup.labels and (run.behavior_set, names[attack, preset]) in shared:
                    curves[model].append(curve)
    most = max((curve[-1][0] for found in curves.values() for curve in found), default=0)
    if most < 2:
        return
    points = [1 << i for i in range(most.bit_length()) if 1 << i < most] + [most]
    series = {}
    for model, label in setup.labels.items():
        head = headline(setup.evidence, "asr", model, setup.judge)
        if curves[model] and head.rate is not None:
            series[label] = [
                (float(queries), _mean_within(curves[model], queries, head.rate.n))
                for queries in points
            ]
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
        f"Bars are 95 % Wilson intervals over behaviors. Judge {setup.judge}; how many cases are "
        "unscored stands in the map of attacks and models.",
    )


def _mean_within(curves: Sequence[Sequence[tuple[int, float]]], queries: int, n: int) -> Estimate:
    shares = [
        max((share for asked, share in curve if asked <= queries), default=0.0) for curve in curves
    ]
    mean = sum(shares) / len(shares)
    return Estimate(mean, n, *wilson(mean, n))
