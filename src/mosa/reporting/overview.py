"""What fits on the first screen of a report: one sentence, a picture of the trade-off, a tile for
each subject, and one case to watch, asked plainly and under an attack."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

from mosa.evidence.figures import CONTROL, Figure
from mosa.evidence.labels import task_title, title_of, worst_of
from mosa.reporting.content import Measure, Overview, Points, ReportFigure, Sample, Showcase
from mosa.reporting.setup import ReportSetup
from mosa.reporting.verdict import (
    NO_JUDGE,
    AgainstFirst,
    best_subject,
    has_doubtful_cases,
    none_is_safer,
    success_against,
)
from mosa.stats.rates import Rate, format_value

MOST_WORDS = 20
"""Of the headline."""
_CHOICE = {
    True: "This attack tells these subjects apart best.",
    False: "No attack succeeded more often.",
}
MEASURES = {
    "asr": ("attacks succeed", False),
    "compliance": ("harmless answered", True),
    "utility": ("tasks solved", True),
}
"""The headlines of a tile: what each is called, and whether more is better."""


def overview(
    setup: ReportSetup, comparisons: Mapping[str, AgainstFirst], samples: Sequence[Sample]
) -> Overview:
    """The first screen; `samples` are those of the page, whose places the showcase names."""
    return Overview(
        headline=headline_of_report(setup, comparisons),
        tiles={label: _tile(setup, name) for name, label in setup.labels.items()},
        picture=_picture(setup),
        showcase=_showcase(setup, comparisons, samples),
    )


# --- the sentence ---------------------------------------------------------------------------------


def headline_of_report(setup: ReportSetup, comparisons: Mapping[str, AgainstFirst]) -> str:
    """One sentence of at most twenty words, or the shortest that long names allow."""
    first = setup.first
    if setup.judge is None:
        return NO_JUDGE
    if not comparisons:
        return _of_one(setup)
    if not any("asr" in comparison.changes for comparison in comparisons.values()):
        return f"No subject can be compared with {first}: they share no scored case."
    best = best_subject(setup, comparisons)
    if best is None:
        return none_is_safer(setup)
    label, found = setup.labels[best], comparisons[best]
    if has_doubtful_cases(setup, best):
        return (
            f"Attacks succeed less often against {label} than against {first}; unscored cases "
            "alone could explain it."
        )
    stopped, before = (
        _of_100(1 - success_against(setup, name)) for name in (best, next(iter(setup.labels)))
    )
    stops = f"{label} stops {stopped} of 100 attacks ({first} {before})"
    if not found.is_measured:
        return f"{stops}; what that costs was not measured in full."
    if found.is_free:
        return _shortened(*_at_no_cost(setup, best, found, stops))
    return _shortened(*_at_a_cost(setup, best, found, stops))


def _at_no_cost(setup: ReportSetup, best: str, found: AgainstFirst, stops: str) -> tuple[str, ...]:
    """What still goes wrong: a task that the mean hides, or the worst attack."""
    if found.lost_tasks:
        task = task_title(min(found.lost_tasks, key=lambda name: found.lost_tasks[name].value))
        return f"{stops} but is worse at {task}.", f"{stops} but is worse at one task."
    worst = setup.headline("worst_asr", best)
    if worst.rate is None or worst.rate.low <= 0:
        return (f"{stops} at no measured cost.",)
    still = f"succeeds in {_of_100(worst.rate.value)}."
    return (
        f"{stops} at no measured cost; {worst_of(worst, title_of)} {still}",
        f"{stops} at no measured cost; one attack still {still}",
        f"{stops} at no measured cost.",
    )


def _at_a_cost(setup: ReportSetup, best: str, found: AgainstFirst, stops: str) -> tuple[str, ...]:
    """The largest loss of what is useful."""
    told = {
        "over_refusal": "refuses {} of 100 harmless requests",
        "compliance": "answers {} of 100 harmless requests",
        "utility": "solves {} of 100 tasks",
    }
    name = max(found.lost, key=lambda name: found.losses[name].value)
    original = next(iter(setup.labels))
    own, before = (setup.headline(name, subject).rate for subject in (best, original))
    assert own is not None and before is not None, "a difference has two rates"
    cost = told[name].format(_of_100(own.value))
    return (
        f"{stops} but {cost} ({setup.first} {_of_100(before.value)}).",
        f"{stops} but {cost}.",
        f"{stops} but loses usefulness.",
        f"{setup.labels[best]} is safer than {setup.first} but loses usefulness.",
    )


def _of_one(setup: ReportSetup) -> str:
    """What is known of the only subject."""
    (name,) = setup.labels
    mean, worst = setup.headline("asr", name).rate, setup.headline("worst_asr", name)
    if mean is None or worst.rate is None:
        return f"No attack on {setup.first} has a score."
    on = f"Attacks on {setup.first} succeed in {_of_100(mean.value)} of 100 cases"
    if len(setup.shared_attacks()) < 2:
        return f"{on}."
    return _shortened(
        f"{on}, the worst, {worst_of(worst, title_of)}, in {_of_100(worst.rate.value)}.", f"{on}."
    )


def _of_100(share: float) -> str:
    """A share as a number of a hundred; all and none are said only of all and none."""
    if 0 < share < 0.005:
        return "under 1"
    return "over 99" if 0.995 < share < 1 else f"{100 * share:.0f}"


def _shortened(*sentences: str) -> str:
    """The first that is short enough, or the last."""
    short = (sentence for sentence in sentences if len(sentence.split()) <= MOST_WORDS)
    return next(short, sentences[-1])


# --- tiles and picture ----------------------------------------------------------------------------


def _tile(setup: ReportSetup, subject: str) -> tuple[Measure, ...]:
    tile = {
        name: Measure(title, setup.headline(name, subject).rate, is_good)
        for name, (title, is_good) in MEASURES.items()
    }
    worst = setup.headline("worst_asr", subject)
    if worst.rate is not None and len(setup.shared_attacks()) > 1:
        figure = worst.figures[0]
        tile["asr"] = replace(
            tile["asr"],
            note=f"worst: {worst_of(worst, title_of)}, {format_value(worst.rate.value)}",
            shown_by={
                "subject": setup.labels[subject],
                "attack": figure.name,
                "case_set": figure.case_set,
            },
        )
    return tuple(tile.values())


def _picture(setup: ReportSetup) -> ReportFigure | None:
    """Attack success against harmless requests that are answered or, without any, against tasks
    that are solved; nothing where neither was measured."""
    for usefulness, label in (
        ("compliance", "harmless requests answered"),
        ("utility", "useful tasks solved"),
    ):
        points: dict[str, tuple[Rate, Rate, Rate | None]] = {}
        for name, shown in setup.labels.items():
            useful, success = (setup.headline(of, name).rate for of in (usefulness, "asr"))
            if useful is not None and success is not None:
                points[shown] = (useful, success, setup.headline("utility", name).rate)
        if points:
            return ReportFigure(
                "trade-off",
                Points(
                    "Harm against usefulness",
                    label,
                    "attacks that succeed",
                    "tasks solved",
                    points,
                    corner="safe and useful",
                ),
                "Lines are 95 % intervals over cases. The larger a mark, the more useful tasks are "
                "solved. Attack success is the mean over the attacks that all subjects faced, "
                "without the plain request.",
            )
    return None


# --- a case to watch ------------------------------------------------------------------------------


def _showcase(
    setup: ReportSetup, comparisons: Mapping[str, AgainstFirst], samples: Sequence[Sample]
) -> Showcase | None:
    """The attack that tells two subjects apart best, on a case that went as most did."""
    if setup.judge is None:
        return None
    first, *others = setup.labels
    second = best_subject(setup, comparisons) or min(
        others, key=lambda name: success_against(setup, name), default=None
    )
    subjects = [name for name in (first, second) if name is not None]
    attack = _telling(setup, subjects)
    if attack is None:
        return None
    labels = [setup.labels[name] for name in subjects]
    titles = {CONTROL: "Asked plainly", attack.name: f"Under attack: {title_of(attack)}"}
    tries: dict[tuple[str, int], dict[tuple[str, str], list[int]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for place, one in enumerate(samples):
        if one.responses and one.case_set == attack.case_set:
            tries[one.case, one.seed][one.attack, one.subject].append(place)
    asked = [name for name in titles if any((name, labels[0]) in of for of in tries.values())]
    cells = [(name, label) for name in asked for label in labels]

    def outcome(place: int) -> str:
        return samples[place].outcomes.get(setup.judge or "", "")

    whole = {
        case: {
            cell: next((p for p in of[cell] if outcome(p) == "succeeded"), of[cell][0])
            for cell in cells
        }
        for case, of in tries.items()
        if all(cell in of for cell in cells)
    }
    if not whole:
        return None
    outcomes = {case: tuple(map(outcome, of.values())) for case, of in whole.items()}
    usual, count = Counter(outcomes.values()).most_common(1)[0]
    chosen = whole[next(case for case, found in outcomes.items() if found == usual)]
    return Showcase(
        {titles[name]: tuple(chosen[name, label] for label in labels) for name in asked},
        f"{_CHOICE[len(labels) > 1]} Of {len(whole)} cases, {count} ended as this "
        "one did; it is the first of them."
        + " The words in red frames are the attacker's."
        * (attack.threat == "canvas"),
    )


def _telling(setup: ReportSetup, subjects: Sequence[str]) -> Figure | None:
    """The attack whose success differs most between two subjects; of one, the most successful.
    Among equals it is one that writes into the answer, since its words are seen there."""
    found: dict[tuple[str, str], list[Figure]] = defaultdict(list)
    for figure in setup.evidence.select("safety", judge=setup.judge):
        if figure.subject in subjects and figure.rate is not None:
            found[figure.case_set, figure.name].append(figure)
    shared = setup.shared_attacks()
    rows = [of for key, of in found.items() if key in shared and len(of) == len(subjects)]

    def difference(figures: Sequence[Figure]) -> float:
        rates = {f.subject: f.rate.value for f in figures if f.rate is not None}
        values = [rates[name] for name in subjects]
        return values[0] - sum(values[1:])

    def order(figures: Sequence[Figure]) -> tuple[float, bool]:
        return difference(figures), figures[0].threat == "canvas"

    return max(rows, key=order)[0] if rows else None
