"""From run folders to what a report says.

    content = build([Path("demo/run")])
    write_page(Path("report.html"), content)

One pass over the attempts gives the views of single responses (views.py), the evidence gives the
rates, and verdict.py turns the headlines into sentences.
"""

from __future__ import annotations

import datetime
import importlib.metadata
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from mosa.analysis.result import Estimate, HeatMap, LineChart, read_result
from mosa.evaluation.evidence import (
    CONTROL,
    REFUSED,
    Evidence,
    attacks_of_all,
    gather,
    headline,
    moment_of,
)
from mosa.evaluation.evidence import (
    Figure as Evidenced,
)
from mosa.evaluation.metrics import INTERVAL_STATEMENT, Rate, rate_of, wilson
from mosa.evaluation.results import attack_names, success_by_queries
from mosa.evaluation.statistics import corrected_rate, holm, paired_difference
from mosa.evaluation.store import Store
from mosa.judges.calibrate import MeasuredErrors, read_calibration
from mosa.judges.compliance import COMPLIANCES
from mosa.report.content import Cell, Content, Figure, Paths, Points, Section, Table
from mosa.report.provenance import citation, settings_tables
from mosa.report.verdict import cautions, verdict
from mosa.report.views import (
    Views,
    diffusion_figures,
    incoherent_rates,
    position_figure,
    scan,
)
from mosa.types import Budget, UserError


@dataclass(frozen=True)
class ReportConfig:
    """What a report is made with."""

    title: str = "Safety of diffusion language models"
    """Heading of the page."""
    judge: str | None = None
    """Judge whose verdicts decide; unset: the testbed's truth, else the first that reads."""
    redact: bool | None = None
    """Whether prompts and responses are left out; unset: yes, but for those of the testbed."""
    labels: Mapping[str, str] | None = None
    """What models are called on the page, by their names in the runs."""
    notes: Mapping[str, str] | None = None
    """A sentence about a model, by its name in the runs."""
    calibration: Path | None = None
    """Measured quality of judges, as `mosa judge calibrate --out` writes it."""
    limits: tuple[str, ...] = ()
    """Sentences that stand among the cautions."""


@dataclass(frozen=True)
class _Setup:
    """What all parts of a report share."""

    evidence: Evidence
    judge: str | None
    """The deciding judge of attacks; None where nothing was attacked."""
    labels: dict[str, str]
    """Shown names of the models in their order, those along a training left out."""
    config: ReportConfig

    @property
    def judges(self) -> list[str]:
        """The judges of attacks, the deciding one first."""
        found = self.evidence.judges("safety")
        return sorted(found, key=lambda judge: judge != self.judge)


def build(paths: Sequence[Path], config: ReportConfig | None = None) -> Content:
    """What a report on these run folders says.

    Raises UserError for folders without a run, an unknown judge, or a label of no model.
    """
    config = config or ReportConfig()
    evidence = gather(paths)
    setup = _Setup(evidence, _judge(evidence, config), _labels(evidence, config), config)
    views = scan(evidence, setup.judge, setup.labels, config.redact)
    sections = [
        _scoreboard(setup),
        _attacks(setup, views),
        _trade_off(setup),
        _diffusion(setup, views),
        _analysis_section(setup),
        _training(setup),
        _categories(setup),
        _budget(setup),
        _settings(setup),
        _cite(setup),
    ]
    hidden = [
        run.world_seed is None if config.redact is None else config.redact
        for run in evidence.runs
        if run.kind != "utility"
    ]
    notes = dict(config.notes or {})
    return Content(
        title=config.title,
        verdict=tuple(verdict(evidence, setup.judge, setup.labels)),
        cautions=(*config.limits, *cautions(evidence, setup.judge, setup.labels)),
        models={
            label: notes.get(name) or _note(evidence, name) for name, label in setup.labels.items()
        },
        judges=tuple(setup.judges),
        sections=tuple(section for section in sections if section is not None),
        samples=views.samples,
        num_samples_total=len(views.samples),
        is_redacted=any(hidden),
        made_with=f"mosa {importlib.metadata.version('mosa-dllm')}, {datetime.date.today()}",
    )


def _judge(evidence: Evidence, config: ReportConfig) -> str | None:
    judges = evidence.judges("safety")
    if config.judge is not None and config.judge not in judges:
        known = ", ".join(judges) or "none yet (`mosa judge RUN` adds one)"
        raise UserError(f"no judge {config.judge} has judged these runs; there are: {known}")
    return config.judge or (judges[0] if judges else None)


def _labels(evidence: Evidence, config: ReportConfig) -> dict[str, str]:
    given = dict(config.labels or {})
    for name in given:
        if name not in evidence.models:
            raise UserError(
                f"a label is given for {name}, which is in none of the runs; there are: "
                f"{', '.join(evidence.models)}"
            )
    # Moments of a training are points of its curve, and no rows of tables.
    whole = [name for name in evidence.models if moment_of(evidence, name) is None]
    names = dict.fromkeys([*given, *whole])
    labels = {name: given.get(name, name) for name in names}
    if len(set(labels.values())) < len(labels):
        raise UserError("two models have one label; give each its own")
    return labels


def _note(evidence: Evidence, name: str) -> str:
    record = evidence.models[name]
    adapter = record.get("adapter")
    return (
        f"{record['source']}, with the adapter {Path(adapter).name}"
        if adapter
        else f"{record['source']}, as it is"
    )


# --- scoreboard -----------------------------------------------------------------------------------


def _scoreboard(setup: _Setup) -> Section:
    evidence = setup.evidence
    rows: list[tuple[Cell, ...]] = []
    columns = ["Model"]
    columns += [f"Attacks, mean ({_short(judge)})" for judge in setup.judges]
    if setup.judge is not None:
        columns += ["Worst attack", "its name", "Any attack", "Plain request"]
    columns += ["Over-refusal", "Utility", "Unscored"]
    for name, label in setup.labels.items():
        row: list[Cell] = [label]
        heads = [headline(evidence, "asr", name, judge) for judge in setup.judges]
        row += [head.rate for head in heads]
        num_unscored = 0
        if setup.judge is not None:
            worst = headline(evidence, "worst_asr", name, setup.judge)
            broken = headline(evidence, "any_asr", name, setup.judge)
            row += [worst.rate, worst.of or None, broken.rate, _plain(setup, name)]
            num_unscored += sum(
                f.num_unscored + f.num_failed + f.num_left
                for f in evidence.select("safety", model=name, judge=setup.judge)
            )
        for measure in ("over_refusal", "utility"):
            head = headline(evidence, measure, name)
            row.append(head.rate)
            num_unscored += head.num_unscored
        rows.append((*row, num_unscored))
    judges = evidence.judges("over_refusal")
    attacks = [] if setup.judge is None else attacks_of_all(evidence, setup.judge)
    caption = (
        f"Attacks, mean: attack success rate, the mean over {len(attacks)} attacks that all models "
        "were put through (the plain request apart), by each judge. Worst attack: the highest of "
        "these rates, which is chosen after the fact and so tends to be too high. Any attack: "
        "behaviors that at least one of them broke. "
        if attacks
        else ""
    )
    if judges:
        caption += (
            "Over-refusal: harmless requests that are refused, fully or partly "
            f"({_short(judges[0])}). "
        )
    caption += (
        "Utility: mean over useful tasks. Unscored: cases that are in no figure, because no judge "
        f"could score them or they failed or were not run. Intervals: {INTERVAL_STATEMENT}."
    )
    table = Table("scoreboard", "Scoreboard", caption, tuple(columns), tuple(rows))
    return Section("scoreboard", "Scoreboard", tables=(table, *_corrected(setup)))


def _plain(setup: _Setup, model: str) -> Rate | None:
    figures = setup.evidence.select("safety", model=model, judge=setup.judge)
    values = [
        value for figure in figures if figure.name == CONTROL for value in figure.means.values()
    ]
    return rate_of(values) if values else None


def _short(judge: str) -> str:
    """A judge's name without the hashes in its id."""
    reads = "@canvas" if judge.endswith("@canvas") else ""
    return judge.removesuffix("@canvas").split("/")[0] + reads


def _corrected(setup: _Setup) -> Iterator[Table]:
    """Mean attack success with the judges' measured errors taken out."""
    if setup.config.calibration is None:
        return
    known = read_calibration(setup.config.calibration)
    rows: list[tuple[Cell, ...]] = []
    for judge in setup.judges:
        record = known.get(judge)
        if record is None:
            continue
        for name, label in setup.labels.items():
            for figure in setup.evidence.select("safety", model=name, judge=judge):
                rows.append(
                    (label, figure.name, _short(judge), figure.rate, _correct(figure, record))
                )
    if not rows:
        raise UserError(
            f"{setup.config.calibration} knows none of the judges of these runs "
            f"({', '.join(setup.judges)}); calibrate them with `mosa judge calibrate`"
        )
    yield Table(
        "corrected",
        "Corrected for the judge's errors",
        "The rate that would lead to the judged one, given how often the judge was wrong on "
        f"labelled rows ({setup.config.calibration.name}; Rogan and Gladen 1978, interval of Lang "
        "and Reiczigel 2014, which carries the calibration's own uncertainty).",
        ("Model", "Attack", "Judge", "As judged", "Corrected"),
        tuple(rows),
    )


def _correct(figure: Evidenced, errors: MeasuredErrors) -> Cell:
    """The corrected rate, or why there is none."""
    if figure.rate is None:
        return None
    n = figure.rate.n
    found = corrected_rate(figure.rate.rate * n, n, errors.sensitivity, errors.specificity)
    return found.rate or found.reason


# --- attacks --------------------------------------------------------------------------------------


def _attacks(setup: _Setup, views: Views) -> Section | None:
    if setup.judge is None:
        return None
    tables = [_heat(setup, judge) for judge in setup.judges]
    tables += list(_differences(setup))
    tables += list(_disagreement(views))
    return Section("attacks", "Attacks and models", tables=tuple(tables))


def _heat(setup: _Setup, judge: str) -> Table:
    figures = setup.evidence.select("safety", judge=judge)
    cells = {(_row(setup, f), f.model): f for f in figures if f.model in setup.labels}
    rows = dict.fromkeys(row for row, _ in cells)
    num_unscored = sum(f.num_unscored for f in cells.values())
    num_missing = sum(f.num_failed + f.num_left for f in cells.values())
    return Table(
        f"attacks-{_short(judge)}",
        f"Attack success rate by {_short(judge)}",
        "Share of behaviors with at least one successful try. In no rate: "
        f"{num_unscored} unscored cases, {num_missing} failed or open tasks. Judge {judge}.",
        ("Attack", *setup.labels.values()),
        tuple((row, *(_rate(cells.get((row, model))) for model in setup.labels)) for row in rows),
        judge=judge,
        is_heat=True,
    )


def _row(setup: _Setup, figure: Evidenced) -> str:
    """An attack, and its set where there are several."""
    sets = {run.behavior_set for run in setup.evidence.runs if run.kind == "safety"}
    return figure.name if len(sets) == 1 else f"{figure.name} on {figure.behavior_set}"


def _rate(figure: Evidenced | None) -> Rate | None:
    return None if figure is None else figure.rate


def _differences(setup: _Setup) -> Iterator[Table]:
    """Every model against the first, attack by attack, on the same behaviors."""
    names = list(setup.labels)
    if len(names) < 2:
        return
    for judge in setup.judges:
        cells = {
            (_row(setup, figure), figure.model): figure
            for figure in setup.evidence.select("safety", judge=judge)
        }
        rows: list[tuple[Cell, ...]] = []
        for model in names[1:]:
            found = []
            for attack in dict.fromkeys(row for row, _ in cells):
                pair = cells.get((attack, names[0])), cells.get((attack, model))
                if pair[0] is None or pair[1] is None or not pair[0].cases.keys() & pair[1].cases:
                    continue
                found.append((attack, paired_difference(pair[0].means, pair[1].means)))
            adjusted = holm([difference.p_value for _, difference in found])
            rows += [
                (
                    setup.labels[model],
                    attack,
                    Estimate(d.difference, d.n, d.low, d.high),
                    d.p_value,
                    p,
                )
                for (attack, d), p in zip(found, adjusted, strict=True)
            ]
        if rows:
            yield Table(
                f"differences-{_short(judge)}",
                f"Against {setup.labels[names[0]]}, attack by attack",
                "Change of the attack success rate on the same behaviors (below 0: safer), with "
                "95 % interval and p value of a paired test; Holm's correction is over the attacks "
                f"of a model. Judge {judge}.",
                ("Model", "Attack", "Change", "p", "p, Holm"),
                tuple(rows),
                judge=judge,
            )


def _disagreement(views: Views) -> Iterator[Table]:
    if views.disagreement:
        yield Table(
            "judge-disagreement",
            "Where judges disagree",
            "Share of tries on which two judges say the opposite, of those that both scored; n "
            "counts tries, which are not independent, so the interval is too narrow.",
            ("Judge", "and judge", "Disagree"),
            tuple(
                (_short(first), _short(second), rate_of([True] * wrong + [False] * (n - wrong)))
                for (first, second), (wrong, n) in views.disagreement.items()
            ),
        )


# --- what it costs --------------------------------------------------------------------------------


def _trade_off(setup: _Setup) -> Section | None:
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
                "are answered, useful tasks are solved. The size is the mean over useful tasks.",
            )
        )
    tables = [*_over_refusal_tables(setup), *_utility_table(setup)]
    if not figures and not tables:
        return None
    return Section("cost", "What safety costs", tables=tuple(tables), figures=tuple(figures))


def _over_refusal_tables(setup: _Setup) -> Iterator[Table]:
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
                    rows.append((name, label, *(_rate(figure) for figure in of.values()), missing))
        yield Table(
            f"over-refusal-{_short(judge)}",
            f"Harmless requests by {_short(judge)}",
            "Share of harmless requests by what became of them; `refused` is full and partial "
            f"refusal together. Judge {judge}.",
            ("Requests", "Model", REFUSED, *COMPLIANCES, "in no rate"),
            tuple(rows),
            judge=judge if judge in setup.judges else "",
        )


def _utility_table(setup: _Setup) -> Iterator[Table]:
    figures = setup.evidence.select("utility")
    if not figures:
        return
    cells = {(f.name, f.measure, f.model): f for f in figures}
    rows: list[tuple[Cell, ...]] = []
    for task, metric in dict.fromkeys((figure.name, figure.measure) for figure in figures):
        of = [cells.get((task, metric, model)) for model in setup.labels]
        if any(figure is not None for figure in of):
            missing = sum(figure.num_unscored for figure in of if figure is not None)
            rows.append((task, metric, *map(_rate, of), missing))
    yield Table(
        "utility",
        "Useful tasks",
        "Share of a task's cases that a model solves (more is better), under the decoder that is "
        "told in the settings.",
        ("Task", "Metric", *setup.labels.values(), "unscored"),
        tuple(rows),
    )


# --- diffusion ------------------------------------------------------------------------------------


def _diffusion(setup: _Setup, views: Views) -> Section | None:
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
                "Neither refusal nor answer",
                "Share of tries whose text is broken, the mean over behaviors. A broken text is no "
                f"success of an attack and no good refusal either. Judge {setup.judge}.",
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


def _analysis_section(setup: _Setup) -> Section | None:
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


def _training(setup: _Setup) -> Section | None:
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
        {(f.behavior_set, f.name) for f in evidence.select("safety", model=name, judge=setup.judge)}
        for found in moments.values()
        for _, name in found
    ]
    attacks = sorted(set.intersection(*everywhere))
    series: dict[str, list[tuple[str, Rate, Rate]]] = {}
    rows: list[tuple[Cell, ...]] = []
    for base, found in moments.items():
        names = [(f"update {step}", name) for step, name in sorted(found)]
        for moment, name in names:
            success = headline(evidence, "asr", name, setup.judge, attacks).rate
            useful = headline(evidence, "utility", name).rate
            label = setup.labels[base]
            rows.append((label, moment, success, useful))
            if success is not None and useful is not None:
                series.setdefault(label, []).append((moment, useful, success))
    table = Table(
        "training",
        "Along the training",
        f"Mean attack success rate over {', '.join(name for _, name in attacks)}, and utility, "
        "while a model was aligned. Few cases each; see the intervals.",
        ("Model", "Moment", "Attacks, mean", "Utility"),
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


# --- categories and budget ------------------------------------------------------------------------


def _categories(setup: _Setup) -> Section | None:
    if setup.judge is None:
        return None
    category_of: dict[str, str] = {}
    for run in setup.evidence.runs:
        if run.kind == "safety":
            with Store(run.folder) as store:
                for id, behavior in store.behaviors().items():
                    if behavior.category:
                        category_of[f"{run.behavior_set}/{id}"] = behavior.category
    if not category_of:
        return None
    values: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for model in setup.labels:
        for case, mean in headline(setup.evidence, "asr", model, setup.judge).means.items():
            if case in category_of:
                values[category_of[case]][model].append(mean)
    table = Table(
        "categories",
        "Attack success rate by category",
        "Each behavior counts once, with its mean over the attacks that all models were put "
        f"through. Judge {setup.judge}.",
        ("Category", *setup.labels.values()),
        tuple(
            (category, *(rate_of(by[model]) if by[model] else None for model in setup.labels))
            for category, by in sorted(values.items())
        ),
        is_heat=True,
    )
    return Section("categories", "Categories", tables=(table,))


def _budget(setup: _Setup) -> Section | None:
    """What attacks spent, and what more queries bring."""
    rows: list[tuple[Cell, ...]] = []
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
            rows.append(
                (
                    setup.labels[model],
                    attack if figure is None else _row(setup, figure),
                    len(budgets),
                    *means,
                    _rate(figure),
                    round(total.forward_passes / successes) if successes else None,
                )
            )
    if not rows:
        return None
    table = Table(
        "budget",
        "What attacks spent",
        "Means over finished tasks (one attack on one behavior with one seed). Forward passes are "
        "summed over the rows of a batch. The last column divides all forward passes by the number "
        "of behaviors that were broken. Calls are those of the attack's own models; the final "
        "judge is not counted.",
        (
            "Model",
            "Attack",
            "tasks",
            *(name.replace("_", " ") for name in BUDGET_COLUMNS),
            "success",
            "passes per success",
        ),
        tuple(rows),
    )
    return Section("budget", "Budget", tables=(table,), figures=tuple(_query_figure(setup)))


BUDGET_COLUMNS = tuple(field.name for field in fields(Budget))


def _query_figure(setup: _Setup) -> Iterator[Figure]:
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
        f"Bars are 95 % Wilson intervals over behaviors. Judge {setup.judge}.",
    )


def _mean_within(curves: Sequence[Sequence[tuple[int, float]]], queries: int, n: int) -> Estimate:
    shares = [
        max((share for asked, share in curve if asked <= queries), default=0.0) for curve in curves
    ]
    mean = sum(shares) / len(shares)
    return Estimate(mean, n, *wilson(mean, n))


# --- settings -------------------------------------------------------------------------------------


def _settings(setup: _Setup) -> Section:
    return Section(
        "settings",
        "Settings, versions, data",
        tables=tuple(settings_tables(setup.evidence, setup.labels)),
    )


def _cite(setup: _Setup) -> Section:
    return Section("cite", "How to cite", paragraphs=tuple(citation(setup.evidence)))
