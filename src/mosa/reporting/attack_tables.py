"""What a report says of attacks: scoreboard, attacks and subjects, differences, categories."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from mosa.chat.base import without_quotations
from mosa.evidence.figures import (
    CONTROL,
    REFUSED,
    Figure,
    Headline,
    case_name,
    headline,
    trained_against,
)
from mosa.evidence.labels import (
    legend,
    legend_of,
    length_of,
    marked_attack,
    names_in,
    title_of,
    tries_of,
    worst_of,
)
from mosa.judges.calibrate import read_calibration
from mosa.reporting.content import CellValue, Change, ReportTable, Section
from mosa.reporting.setup import SIGNIFICANT, THREATS, ReportSetup, monitors_of
from mosa.reporting.tables import shown
from mosa.reporting.views import Views, share_of_tries
from mosa.stats.pairs import PairedDifference, corrected_rate, holm, paired_difference
from mosa.stats.rates import Rate, format_rate, rate_of
from mosa.testbed.behaviors import InAlignmentData
from mosa.types import UserError


def scoreboard(setup: ReportSetup) -> Section:
    """The headlines of each subject in one row, and what they are made of."""
    tables = [_scoreboard(setup)]
    if setup.judge is not None:
        tables += [_safety_by_threat(setup), _safety_by_judge(setup)]
    return Section("scoreboard", "Scoreboard", tables=(*tables, *_corrected(setup)))


def _scoreboard(setup: ReportSetup) -> ReportTable:
    evidence = setup.evidence
    columns = ["Subject", "Over-refusal", "Answered", "Utility", "Unscored"]
    caption = ""
    if setup.judge is not None:
        columns[1:1] = ["Tokens", "Attacks, mean", "Worst attack"]
        num = len(setup.shared_attacks())
        heads = [setup.headline("asr", name) for name in setup.labels]
        trained = names_in(
            (f for h in heads for f in h.figures if f.in_alignment_data != "none"), title_of
        )
        told = f"Marked among them: {trained}. {_legend(setup, setup.judge)}" if trained else ""
        caption = (
            f"Attacks, mean: attack success rate by {setup.judge_names[setup.judge]}, the mean "
            f"over the {num} attack{'s' * (num != 1)} that all subjects faced (without the plain "
            "request); where an attack's loop selects one of its tries, that one decides. "
            "Worst attack: the highest of these rates; it is chosen after the fact and "
            f"so tends to be too high. Tokens: length of a response to an attack. {told}"
        )
    judges = evidence.judges("over_refusal")
    if judges:
        caption += (
            "Over-refusal: harmless requests that the subject refuses, fully or partly. Answered: "
            f"those that it answers in full (by {setup.judge_names[judges[0]]}). The rest is "
            "garbled or empty. "
        )
    caption += (
        "Utility: mean over useful tasks. Unscored: cases in no figure, because no judge could "
        "score them or they failed or were not run."
    )
    rows: list[tuple[CellValue, ...]] = []
    for name, label in setup.labels.items():
        refusal = setup.headline("over_refusal", name)
        useful = setup.headline("utility", name)
        answered = setup.headline("compliance", name).rate
        costs = (refusal.rate, answered, useful.rate)
        num_unscored = refusal.num_unscored + useful.num_unscored
        attacked: tuple[CellValue, ...] = ()
        if setup.judge is not None:
            mean, worst = (setup.headline(m, name) for m in ("asr", "worst_asr"))
            attacked = (length_of(mean.figures), mean.rate, worst.rate)
            figures = evidence.select("safety", subject=name, judge=setup.judge)
            num_unscored += sum(f.num_unscored + f.num_failed + f.num_left for f in figures)
        if judges:
            figures = evidence.select(
                "over_refusal", subject=name, judge=judges[0], measure=REFUSED
            )
            num_unscored += sum(figure.num_failed + figure.num_left for figure in figures)
        rows.append((label, *attacked, *costs, num_unscored))
    return ReportTable("scoreboard", "Scoreboard", caption, tuple(columns), tuple(rows))


def _safety_by_threat(setup: ReportSetup) -> ReportTable:
    """Success by what an attacker has access to."""
    rows: list[tuple[CellValue, ...]] = []
    told = []
    for threat, who in THREATS.items():
        if not (attacks := setup.shared_attacks(threat)):
            continue
        found = setup.evidence.select("safety", judge=setup.judge, threat=threat)
        names = names_in((f for f in found if (f.case_set, f.name) in attacks), title_of)
        told.append(f"{threat}, {who}: {names}")
        kinds = {"asr": "mean of attacks", "worst_asr": "worst attack", "any_asr": "any attack"}
        for kind, title in kinds.items() if len(attacks) > 1 else [("asr", names)]:
            heads = [setup.headline(kind, name, attacks) for name in setup.labels]
            length = length_of(figure for head in heads for figure in head.figures)
            rows.append((threat, title, length, *(head.rate for head in heads)))
    return ReportTable(
        "safety-by-threat",
        "Safety by threat model",
        "Attack success rate over the attacks of a threat model that all subjects faced to which "
        "they are applicable (without the plain request, unless it is the only one). "
        f"{'; '.join(told)}.{_without_monitors(setup)} {_legend(setup, setup.judge)}"
        f"Judge {setup.judge}.",
        ("Threat", "attacks", "Tokens", *setup.labels.values()),
        tuple(rows),
        is_heat=True,
    )


def _without_monitors(setup: ReportSetup) -> str:
    """Whose decoders the threat model `open` changes; a sentence, or nothing."""
    off = [
        f"{label} without {', '.join(monitors)}"
        for name, label in setup.labels.items()
        if (monitors := monitors_of(setup.evidence.subjects[name]))
    ]
    if not off or not setup.evidence.select("safety", judge=setup.judge, threat="open"):
        return ""
    return f" In open, whose attacker runs the sampler, the monitors are off: {'; '.join(off)}."


def _safety_by_judge(setup: ReportSetup) -> ReportTable:
    return ReportTable(
        "safety-by-judge",
        "Safety by judge",
        "Mean attack success rate by each judge; then, by "
        f"{setup.judge_names[setup.judge or '']}, the worst attack's name, the cases on which at "
        "least one of the attacks succeeded (each by the try that decides), and those on which the "
        "plain request did. A judge of "
        "phrases sees words and not harm; a judge of the canvas also reads the text behind the "
        "first end token. Cases without a score, over all attacks and subjects: "
        + "; ".join(f"{setup.judge_names[j]} {_num_unscored(setup, j)}" for j in setup.judges)
        + f". {_legend(setup, setup.judge)}".rstrip(),
        (
            "Subject",
            "Tokens",
            *(setup.judge_names[judge] for judge in setup.judges),
            "worst attack",
            "any attack",
            "plain request",
        ),
        tuple(
            (
                label,
                length_of(setup.headline("asr", name).figures),
                *(headline(setup.evidence, "asr", name, judge).rate for judge in setup.judges),
                worst_of(setup.headline("worst_asr", name), title_of) or None,
                setup.headline("any_asr", name).rate,
                _plain(setup, name),
            )
            for name, label in setup.labels.items()
        ),
    )


def _num_unscored(setup: ReportSetup, judge: str) -> int:
    figures = setup.evidence.select("safety", judge=judge)
    return sum(figure.num_unscored for figure in figures if figure.subject in setup.labels)


def _plain(setup: ReportSetup, subject: str) -> Rate | None:
    figures = setup.evidence.select("safety", subject=subject, judge=setup.judge)
    values = {c: v for f in figures if f.name == CONTROL for c, v in f.by_seed.items()}
    return rate_of(values) if values else None


def _corrected(setup: ReportSetup) -> Iterator[ReportTable]:
    """Mean attack success with the judges' measured errors taken out."""
    if setup.config.calibration is None:
        return
    file = setup.config.calibration
    known = read_calibration(file)
    if not known.keys() & set(setup.judges):
        raise UserError(
            f"{file} has none of the judges of these runs ({', '.join(setup.judges)}); measure "
            "them with `mosa judge check --out`"
        )
    rows: list[tuple[CellValue, ...]] = []
    for judge in setup.judges:
        for name, label in setup.labels.items():
            for figure in setup.evidence.select("safety", subject=name, judge=judge):
                if judge in known and figure.decides != "any":
                    rate, errors = figure.rate, (known[judge].sensitivity, known[judge].specificity)
                    corrected = rate and corrected_rate(rate.value * rate.n, rate.n, *errors)
                    about = (setup.row_of(figure), length_of([figure]), setup.judge_names[judge])
                    rows.append((label, *about, rate, corrected))
    yield ReportTable(
        "corrected",
        "Corrected for the judge's errors",
        "The rate that explains the judged one, given how often the judge was wrong on labelled "
        f"rows ({file.name}; Rogan and Gladen 1978, interval of Lang and Reiczigel 2014, which "
        "includes the uncertainty of the calibration). Only attacks of which one try decides on "
        "each case: where any of several does, a judge's false alarms add up, and this correction "
        f"ignores that. {_legend(setup, judge=None)}".rstrip(),
        ("Subject", "Attack", "Tokens", "Judge", "As judged", "Corrected"),
        tuple(rows),
    )


def attacks(setup: ReportSetup, views: Views) -> Section:
    """Every attack on every subject, by each judge."""
    against = {judge: _against(setup, judge) for judge in setup.judges}
    tables = [_heat(setup, judge, against[judge]) for judge in setup.judges]
    details = [_any_try(setup, judge) for judge in setup.judges]
    details += [_not_applicable(setup), _left_out(setup)]
    details += [*_differences(setup, against), _disagreement(setup, views)]
    tables += [replace(table, is_detail=True) for table in details]
    return Section(
        "attacks",
        "Attacks and subjects",
        tables=tuple(tables),
        is_open=True,
        more="The numbers behind the arrows, what is left out, and where judges disagree",
    )


def _by_row(setup: ReportSetup, judge: str) -> dict[str, dict[str, Figure]]:
    """The figures of attacks by row of a table and subject, the rows by threat model."""
    order = list(THREATS)
    cells = sorted(setup.attack_figures(judge).items(), key=lambda of: order.index(of[1].threat))
    found: dict[str, dict[str, Figure]] = defaultdict(dict)
    for (row, subject), figure in cells:
        found[row][subject] = figure
    return found


def _legend(setup: ReportSetup, judge: str | None) -> str:
    """What the marks of attacks mean, with a blank behind; nothing where there are none."""
    told = legend(setup.attack_figures(judge).values())
    return f"{told} " if told else ""


def _any_try(setup: ReportSetup, judge: str) -> ReportTable:
    """What the attacks whose loop selects a try would have if any try counted."""
    return ReportTable(
        "any-of-n",
        f"Any-of-N success rate by {setup.judge_names[judge]}",
        "Only attacks whose loop selects one of its tries, and not their success rate: the share "
        "of cases with a success in any of up to N tries. It grows with N and with the judge's "
        "false alarms, so it compares with no published rate of these attacks. "
        f"{_legend(setup, judge)}Judge {judge}.",
        ("Attack", "N", "Tokens", *setup.labels.values()),
        tuple(
            (
                row,
                max(figure.most_tries for figure in own.values()),
                length_of(own.values()),
                *(own[name].any_rate if name in own else None for name in setup.labels),
            )
            for row, own in _by_row(setup, judge).items()
            if any(figure.decides == "best rated" for figure in own.values())
        ),
        judge=judge,
        is_heat=True,
    )


def _heat(setup: ReportSetup, judge: str, against: _Against) -> ReportTable:
    cells = setup.attack_figures(judge)
    num_unscored = sum(f.num_unscored for f in cells.values())
    num_missing = sum(f.num_failed + f.num_left for f in cells.values())
    return ReportTable(
        "attacks",
        f"Attack success rate by {setup.judge_names[judge]}",
        "Share of cases on which the try that decides succeeded: the one that the attack's loop "
        "selected, else any of its tries (column By, with the most tries of a case). Tokens: "
        f"length of a response. {_legend(setup, judge)}By threat model: "
        f"{'; '.join(f'{threat}, {who}' for threat, who in THREATS.items())}. In no rate: "
        f"{num_unscored} cases without a verdict, {num_missing} failed or open tasks."
        f"{_without_monitors(setup)}{_about_changes(setup)} Judge {judge}.",
        ("Attack", "Threat", "By", "Tokens", *setup.labels.values()),
        tuple(
            (
                row,
                next(iter(own.values())).threat,
                tries_of(own.values()),
                length_of(own.values()),
                *(own[name].rate if name in own else None for name in setup.labels),
            )
            for row, own in _by_row(setup, judge).items()
        ),
        judge=judge,
        is_heat=True,
        changes=_changes(setup, against),
    )


def _about_changes(setup: ReportSetup) -> str:
    """What the arrows of a map mean; nothing where there is one subject."""
    if len(setup.labels) < 2:
        return ""
    return (
        f" Arrows: fewer (\u25bc) or more (\u25b2) successes than against the subject compared "
        f"with, beyond chance on the same cases (p below {SIGNIFICANT} after Holm's correction)."
    )


def _not_applicable(setup: ReportSetup) -> ReportTable:
    sets = setup.evidence.sets
    rows = dict.fromkeys(
        (marked_attack(sets[pair.case_set], pair.attack), pair.preset, pair.threat)
        + (setup.labels[pair.subject], pair.reason)
        for pair in setup.not_applicable
    )
    told: set[InAlignmentData] = {
        trained_against(sets[pair.case_set], pair.attack) for pair in setup.not_applicable
    }
    return ReportTable(
        "not-applicable",
        "Attacks that are not applicable",
        "Pairs of attack and subject that were left out, and why the attack cannot run. They are "
        f"in no rate and count as no failures. {legend_of(told)}".rstrip(),
        ("Attack", "preset", "Threat", "Subject", "Reason"),
        tuple(rows),
    )


def _left_out(setup: ReportSetup) -> ReportTable:
    found: Counter[tuple[str, str, str]] = Counter()

    def count(what: str, who: str, case_set: str, reason: str, number: int = 1) -> None:
        shown = without_quotations(reason, "[redacted]") if setup.hides(case_set) else reason
        found[what, who, shown] += number

    for figure in setup.evidence.figures:
        if figure.measure == REFUSED or (figure.kind != "over_refusal" and figure.is_headline):
            who = setup.judge_names.get(figure.judge, figure.name)
            for reason, number in figure.reasons.items():
                count("tries unscored", who, figure.case_set, reason, number)
    for task, outcome in setup.tasks:
        if outcome is not None and outcome.status == "failed":
            attack = marked_attack(setup.evidence.sets[task.case_set], task.attack)
            count("cases failed", attack, task.case_set, outcome.reason)
    return ReportTable(
        "left-out",
        "Unscored and failed, and why",
        "What is in no rate: tries that a judge could not score, and attacks that could not be "
        f"carried out on a case. {_legend(setup, judge=None)}".rstrip(),
        ("What", "Judge or attack", "Reason", "Number"),
        tuple((*key, str(number)) for key, number in found.most_common()),
    )


_Against = Mapping[str, Mapping[str, Sequence[tuple[str, str, PairedDifference, float]]]]
"""By the subject that others are compared with, then by the other's name: of each attack the row of
a table, the length of a response, the difference, and its p value after Holm's correction over the
attacks of the pair."""


def _against(setup: ReportSetup, judge: str) -> _Against:
    """Every subject against every other, attack by attack, on the same cases: by the one that it is
    compared with, then by its own name."""
    names, cells = list(setup.labels), setup.attack_figures(judge)
    rows = list(dict.fromkeys(row for row, _ in cells))
    found: dict[str, dict[str, list[tuple[str, str, PairedDifference, float]]]]
    found = {base: {} for base in names}
    for base, subject in itertools.combinations(names, 2):
        told: list[tuple[str, str, PairedDifference]] = []
        for row in rows:
            first, second = cells.get((row, base)), cells.get((row, subject))
            if first is None or second is None or not first.by_seed.keys() & second.by_seed:
                continue
            difference = paired_difference(first.by_seed, second.by_seed)
            told.append((row, length_of([first, second]), difference))
        p = holm({row: difference.p_value for row, _, difference in told})
        found[base][subject] = [(row, length, change, p[row]) for row, length, change in told]
        found[subject][base] = [(row, length, -change, p[row]) for row, length, change in told]
    # Of each subject, the others in the order of the page.
    return {base: {n: of[n] for n in names if n in of} for base, of in found.items()}


def _changes(setup: ReportSetup, against: _Against) -> dict[str, dict[tuple[str, str], Change]]:
    """What differs beyond chance, for the map of attacks and subjects."""
    labels = setup.labels
    return {
        labels[base]: {
            (attack, labels[subject]): Change(
                found.value < 0,
                f"{format_rate(found, signed=True)} against {labels[base]}, p {shown(adjusted)}",
            )
            for subject, of_subject in by_subject.items()
            for attack, _, found, adjusted in of_subject
            if adjusted < SIGNIFICANT
        }
        for base, by_subject in against.items()
    }


def _differences(setup: ReportSetup, against: Mapping[str, _Against]) -> Iterator[ReportTable]:
    """The numbers behind the arrows of the map, a table for each subject that others are compared
    with."""
    for judge in setup.judges:
        for base, by_subject in against[judge].items():
            label = setup.labels[base]
            rows = (
                (setup.labels[subject], attack, length, found, found.p_value, adjusted)
                for subject, of_subject in by_subject.items()
                for attack, length, found, adjusted in of_subject
            )
            yield ReportTable(
                "differences",
                f"Against {label}, attack by attack",
                "Change of the attack success rate on the same cases (below 0: safer), with 95 % "
                "interval and p value of a paired test; Holm's correction is over the attacks of a "
                f"subject. {_legend(setup, judge)}Judge {judge}.",
                ("Subject", "Attack", "Tokens", "Change", "p", "p, Holm"),
                tuple(rows),
                judge=judge,
                base=label,
            )


def _disagreement(setup: ReportSetup, views: Views) -> ReportTable:
    return ReportTable(
        "judge-disagreement",
        "Where judges disagree",
        "Share of tries on which two judges disagree, of those that both scored; the mean over "
        "cases.",
        ("Judge", "and judge", "Disagree"),
        tuple(
            (setup.judge_names[first], setup.judge_names[second], share_of_tries(found))
            for (first, second), found in views.disagreement.items()
        ),
    )


def categories(setup: ReportSetup) -> Section:
    """Success by the category of what was asked for."""
    category_of = {
        case_name(record, id): case.category
        for name, record in setup.evidence.sets.items()
        if record.kind == "harmful"
        for id, case in setup.cases[name].items()
        if case.category
    }
    heads = [setup.headline("asr", subject) for subject in setup.labels]
    found = {category_of[case] for head in heads for case in head.by_seed if case in category_of}

    def rate_in(category: str, head: Headline) -> Rate | None:
        own = {case: of for case, of in head.by_seed.items() if category_of.get(case) == category}
        return rate_of(own) if own else None

    table = ReportTable(
        "categories",
        "Attack success rate by category",
        "Each case counts once, with its mean over the attacks that all subjects faced; "
        f"{sum(head.num_unscored for head in heads)} without a score under one of them are in no "
        f"rate. Tokens of a response: {length_of(f for head in heads for f in head.figures)}. "
        f"{_legend(setup, setup.judge)}Judge {setup.judge}.",
        ("Category", *setup.labels.values()),
        tuple((name, *(rate_in(name, head) for head in heads)) for name in sorted(found)),
        is_heat=True,
    )
    return Section("categories", "Categories", tables=(table,))
