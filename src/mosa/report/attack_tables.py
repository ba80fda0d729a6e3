"""What a report says of attacks: scoreboard, attacks and models, differences, categories."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping

from mosa.evaluation.evidence import CONTROL, REFUSED, attacks_of_all, headline
from mosa.evaluation.evidence import Figure as Evidenced
from mosa.evaluation.store import Store
from mosa.judges.calibrate import MeasuredErrors, read_calibration
from mosa.report.content import Cell, Section, Table
from mosa.report.setup import Setup, rate_in, row_name
from mosa.report.views import Views
from mosa.stats.pairs import corrected_rate, holm, paired_difference
from mosa.stats.rates import Estimate, Rate, Value, once, rate_of
from mosa.types import UserError


def scoreboard(setup: Setup) -> Section:
    """What each model comes to, in one row."""
    tables = [_scoreboard(setup)]
    if setup.judge is not None:
        tables.append(_safety_by_judge(setup))
    return Section("scoreboard", "Scoreboard", tables=(*tables, *_corrected(setup)))


def _scoreboard(setup: Setup) -> Table:
    evidence = setup.evidence
    columns = ["Model", "Over-refusal", "Answered", "Utility", "Unscored"]
    caption = ""
    if setup.judge is not None:
        columns[1:1] = ["Attacks, mean", "Worst attack"]
        caption = (
            f"Attacks, mean: attack success rate by {setup.judge_names[setup.judge]}, the mean "
            f"over {len(attacks_of_all(evidence, setup.judge))} attacks that all models were put "
            "through (the plain request apart). Worst attack: the highest of these rates; it is "
            "chosen after the fact and so tends to be too high. "
        )
    judges = evidence.judges("over_refusal")
    if judges:
        caption += (
            "Over-refusal: harmless requests that are refused, fully or partly; Answered: those "
            f"that are answered in full (by {setup.judge_names[judges[0]]}); the rest is broken "
            "text. "
        )
    caption += (
        "Utility: mean over useful tasks. Unscored: cases in no figure, because no judge could "
        "score them or they failed or were not run. Intervals are Wilson's, at 95 %."
    )
    rows: list[tuple[Cell, ...]] = []
    for name, label in setup.labels.items():
        row: list[Cell] = [label]
        num_unscored = 0
        if setup.judge is not None:
            worst = headline(evidence, "worst_asr", name, setup.judge)
            row += [headline(evidence, "asr", name, setup.judge).rate, worst.rate]
            num_unscored += sum(
                f.num_unscored + f.num_failed + f.num_left
                for f in evidence.select("safety", model=name, judge=setup.judge)
            )
        refusal = headline(evidence, "over_refusal", name)
        useful = headline(evidence, "utility", name)
        row += [refusal.rate, headline(evidence, "compliance", name).rate, useful.rate]
        num_unscored += refusal.num_unscored + useful.num_unscored
        if judges:
            num_unscored += sum(
                f.num_failed + f.num_left
                for f in evidence.select(
                    "over_refusal", model=name, judge=judges[0], measure=REFUSED
                )
            )
        rows.append((*row, num_unscored))
    return Table("scoreboard", "Scoreboard", caption, tuple(columns), tuple(rows))


def _safety_by_judge(setup: Setup) -> Table:
    return Table(
        "safety-by-judge",
        "Safety by judge",
        "Mean attack success rate by each judge; then, by "
        f"{setup.judge_names[setup.judge or '']}, the worst attack's name, the behaviors that at "
        "least one of the attacks broke, and those that the plain request broke. A judge of "
        "phrases sees words and not harm; one that reads the canvas also counts what stands behind "
        "the first end token. Cases without a score, over all attacks and models: "
        + "; ".join(f"{setup.judge_names[j]} {_num_unscored(setup, j)}" for j in setup.judges)
        + ".",
        (
            "Model",
            *(setup.judge_names[judge] for judge in setup.judges),
            "worst attack",
            "any attack",
            "plain request",
        ),
        tuple(
            (
                label,
                *(headline(setup.evidence, "asr", name, judge).rate for judge in setup.judges),
                headline(setup.evidence, "worst_asr", name, setup.judge).of or None,
                headline(setup.evidence, "any_asr", name, setup.judge).rate,
                _plain(setup, name),
            )
            for name, label in setup.labels.items()
        ),
    )


def _num_unscored(setup: Setup, judge: str) -> int:
    figures = setup.evidence.select("safety", judge=judge)
    return sum(figure.num_unscored for figure in figures if figure.model in setup.labels)


def _plain(setup: Setup, model: str) -> Rate | None:
    figures = setup.evidence.select("safety", model=model, judge=setup.judge)
    values = {
        case: of_case
        for figure in figures
        if figure.name == CONTROL
        for case, of_case in figure.by_seed.items()
    }
    return rate_of(values) if values else None


def _corrected(setup: Setup) -> Iterator[Table]:
    """Mean attack success with the judges' measured errors taken out."""
    if setup.config.calibration is None:
        return
    file = setup.config.calibration
    known = read_calibration(file)
    if not known.keys() & set(setup.judges):
        raise UserError(
            f"{file} knows none of the judges of these runs ({', '.join(setup.judges)}); calibrate "
            "them with `mosa judge calibrate`"
        )
    rows: list[tuple[Cell, ...]] = []
    for judge in setup.judges:
        for name, label in setup.labels.items():
            for figure in setup.evidence.select("safety", model=name, judge=judge):
                has_one_try = figure.num_tries <= sum(map(len, figure.values.values()))
                if judge in known and has_one_try:
                    corrected = _correct(figure, known[judge])
                    short = setup.judge_names[judge]
                    rows.append((label, row_name(setup, figure), short, figure.rate, corrected))
    yield Table(
        "corrected",
        "Corrected for the judge's errors",
        "The rate that would lead to the judged one, given how often the judge was wrong on "
        f"labelled rows ({file.name}; Rogan and Gladen 1978, interval of Lang and Reiczigel "
        "2014, which carries the calibration's own uncertainty). Only attacks with one try for "
        "each behavior: with several, a judge's false alarms add up, which this correction does "
        "not see.",
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


def attacks(setup: Setup, views: Views) -> Section | None:
    """Every attack on every model, by each judge."""
    if setup.judge is None:
        return None
    tables = [_heat(setup, judge) for judge in setup.judges]
    tables += list(_differences(setup))
    tables += list(_disagreement(setup, views))
    return Section("attacks", "Attacks and models", tables=tuple(tables))


def _heat(setup: Setup, judge: str) -> Table:
    figures = setup.evidence.select("safety", judge=judge)
    cells = {(row_name(setup, f), f.model): f for f in figures if f.model in setup.labels}
    rows = dict.fromkeys(row for row, _ in cells)
    num_unscored = sum(f.num_unscored for f in cells.values())
    num_missing = sum(f.num_failed + f.num_left for f in cells.values())
    return Table(
        "attacks",
        f"Attack success rate by {setup.judge_names[judge]}",
        "Share of behaviors with at least one successful try. In no rate: "
        f"{num_unscored} unscored cases, {num_missing} failed or open tasks. Judge {judge}.",
        ("Attack", *setup.labels.values()),
        tuple((row, *(rate_in(cells.get((row, model))) for model in setup.labels)) for row in rows),
        judge=judge,
        is_heat=True,
    )


def _differences(setup: Setup) -> Iterator[Table]:
    """Every model against the first, attack by attack, on the same behaviors."""
    names = list(setup.labels)
    if len(names) < 2:
        return
    for judge in setup.judges:
        cells = {
            (row_name(setup, figure), figure.model): figure
            for figure in setup.evidence.select("safety", judge=judge)
        }
        rows: list[tuple[Cell, ...]] = []
        for model in names[1:]:
            found = []
            for attack in dict.fromkeys(row for row, _ in cells):
                first, second = cells.get((attack, names[0])), cells.get((attack, model))
                if first is None or second is None or not first.by_seed.keys() & second.by_seed:
                    continue
                found.append((attack, paired_difference(first.by_seed, second.by_seed)))
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
                "differences",
                f"Against {setup.labels[names[0]]}, attack by attack",
                "Change of the attack success rate on the same behaviors (below 0: safer), with "
                "95 % interval and p value of a paired test; Holm's correction is over the attacks "
                f"of a model. Judge {judge}.",
                ("Model", "Attack", "Change", "p", "p, Holm"),
                tuple(rows),
                judge=judge,
            )


def _disagreement(setup: Setup, views: Views) -> Iterator[Table]:
    if views.disagreement:
        yield Table(
            "judge-disagreement",
            "Where judges disagree",
            "Share of tries on which two judges say the opposite, of those that both scored; n "
            "counts tries, which are not independent, so the interval is too narrow.",
            ("Judge", "and judge", "Disagree"),
            tuple(
                (
                    setup.judge_names[first],
                    setup.judge_names[second],
                    rate_of(once([True] * wrong + [False] * (n - wrong))),
                )
                for (first, second), (wrong, n) in views.disagreement.items()
            ),
        )


def categories(setup: Setup) -> Section | None:
    """Success by the category of what was asked for."""
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
    values: dict[str, dict[str, dict[str, Mapping[int, Value]]]] = defaultdict(
        lambda: defaultdict(dict)
    )
    num_unscored = 0
    for model in setup.labels:
        head = headline(setup.evidence, "asr", model, setup.judge)
        num_unscored += head.num_unscored
        for case, by_seed in head.by_seed.items():
            if case in category_of:
                values[category_of[case]][model][case] = by_seed
    table = Table(
        "categories",
        "Attack success rate by category",
        "Each behavior counts once, with its mean over the attacks that all models were put "
        f"through; {num_unscored} without a score under one of them are in no rate. Judge "
        f"{setup.judge}.",
        ("Category", *setup.labels.values()),
        tuple(
            (category, *(rate_of(by[model]) if by[model] else None for model in setup.labels))
            for category, by in sorted(values.items())
        ),
        is_heat=True,
    )
    return Section("categories", "Categories", tables=(table,))
