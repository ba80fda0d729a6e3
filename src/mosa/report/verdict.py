"""What the figures of a report say, in sentences, with their uncertainty.

The first model is the one that others are compared with. Two models differ where the 95 % interval
of their paired difference, on the same cases, leaves out zero; no sentence claims more.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from mosa.evaluation.evidence import Evidence, attacks_of_all, headline
from mosa.evaluation.metrics import Rate
from mosa.evaluation.statistics import (
    PairedDifference,
    paired_difference,
    paired_difference_over_groups,
)

FEW_CASES = 50
"""A rate over fewer cases than these gets a caution."""
MANY_UNSCORED = 0.05
"""A larger share of unscored cases gets a caution."""


@dataclass(frozen=True)
class Comparison:
    """One model against the first."""

    name: str
    success: PairedDifference | None
    over_refusal: PairedDifference | None
    compliance: PairedDifference | None
    utility: PairedDifference | None

    @property
    def is_safer(self) -> bool:
        """Whether fewer attacks succeed."""
        return self.success is not None and self.success.high < 0

    @property
    def costs(self) -> list[str]:
        """What it does worse, in words."""
        found = []
        if self.over_refusal is not None and self.over_refusal.low > 0:
            found.append("it refuses more harmless requests")
        if self.compliance is not None and self.compliance.high < 0:
            found.append("it answers fewer harmless requests")
        if self.utility is not None and self.utility.high < 0:
            found.append("it solves fewer useful tasks")
        return found

    @property
    def is_measured(self) -> bool:
        """Whether it was measured what safety costs."""
        return self.over_refusal is not None and self.utility is not None


def compare_to_first(
    evidence: Evidence, judge: str | None, labels: Mapping[str, str]
) -> list[Comparison]:
    """Every further model against the first, by headline."""
    first, *others = labels
    return [
        Comparison(
            name,
            _difference(evidence, "asr", first, name, judge),
            _difference(evidence, "over_refusal", first, name, None),
            _difference(evidence, "compliance", first, name, None),
            _difference(evidence, "utility", first, name, None),
        )
        for name in others
    ]


def _difference(
    evidence: Evidence, measure: str, first: str, second: str, judge: str | None
) -> PairedDifference | None:
    if measure == "utility":  # in which tasks weigh alike, and not cases
        tasks = [
            {f.name: f.means for f in evidence.select("utility", model=name) if f.is_headline}
            for name in (first, second)
        ]
        shared = [t for t in tasks[0] if t in tasks[1] and tasks[0][t].keys() & tasks[1][t].keys()]
        if not shared:
            return None
        return paired_difference_over_groups([(tasks[0][task], tasks[1][task]) for task in shared])
    pair = [headline(evidence, measure, name, judge) for name in (first, second)]
    if not pair[0].by_seed.keys() & pair[1].by_seed.keys():
        return None
    return paired_difference(pair[0].means, pair[1].means)


def verdict(evidence: Evidence, judge: str | None, labels: Mapping[str, str]) -> Iterator[str]:
    """The headline, then a sentence or two about each model, then what the brackets are."""
    if judge is None:
        yield "No attack has been judged yet, so nothing can be said about safety."
    comparisons = compare_to_first(evidence, judge, labels)
    if judge is not None and comparisons:
        yield _headline(evidence, judge, labels, comparisons)
    by_name = {comparison.name: comparison for comparison in comparisons}
    for name in labels:
        yield " ".join(_about(evidence, judge, labels, name, by_name.get(name)))
    yield _key(evidence, judge, labels)


def _headline(
    evidence: Evidence, judge: str, labels: Mapping[str, str], comparisons: list[Comparison]
) -> str:
    first = labels[next(iter(labels))]
    safer = [comparison for comparison in comparisons if comparison.is_safer]
    if not safer:
        return f"Attacks succeed measurably less often against no model than against {first}."

    def success(comparison: Comparison) -> float:
        rate = headline(evidence, "asr", comparison.name, judge).rate
        return 1.0 if rate is None else rate.rate

    free = [c for c in safer if c.is_measured and not c.costs]
    if free:
        best = min(free, key=success).name
        worst = headline(evidence, "worst_asr", best, judge)
        hole = ""
        if worst.rate is not None and worst.rate.low > 0:
            hole = f" {worst.of} still succeeds in {worst.rate.rate:.0%} of cases."
        return (
            f"Attacks succeed less often against {labels[best]} than against {first}, and no loss "
            f"of usefulness could be shown.{hole}"
        )
    names = ", ".join(labels[comparison.name] for comparison in safer)
    less = f"Attacks succeed less often against {names} than against {first}"
    if any(not comparison.is_measured for comparison in safer):
        return f"{less}; what that costs has not been measured in full."
    return f"{less}, and {'it pays' if len(safer) == 1 else 'all pay'} for it with usefulness."


def _about(
    evidence: Evidence,
    judge: str | None,
    labels: Mapping[str, str],
    name: str,
    comparison: Comparison | None,
) -> Iterator[str]:
    """What is known of one model."""
    first = labels[next(iter(labels))]

    def change(difference: PairedDifference | None) -> str:
        return "" if difference is None else _change(difference, first)

    success = headline(evidence, "asr", name, judge)
    if judge is not None and success.rate is None:
        yield f"{labels[name]}: no attack could be scored."
    elif success.rate is not None:
        yield (
            f"{labels[name]}: attacks succeed in {_percent(success.rate)} of cases"
            f"{change(comparison and comparison.success)}."
        )
        worst = headline(evidence, "worst_asr", name, judge)
        if worst.rate is not None and worst.rate.rate > 0:
            yield f"The worst, {worst.of}, succeeds in {_percent(worst.rate)}."
    else:
        yield f"{labels[name]}:"
    refusal = headline(evidence, "over_refusal", name).rate
    answered = headline(evidence, "compliance", name).rate
    if refusal is not None and answered is not None:
        yield (
            f"It refuses {_percent(refusal)} of harmless requests"
            f"{change(comparison and comparison.over_refusal)}, and answers {_percent(answered)}."
        )
    useful = headline(evidence, "utility", name).rate
    if useful is not None:
        yield (
            f"It solves {_percent(useful)} of useful tasks"
            f"{change(comparison and comparison.utility)}."
        )


def _percent(rate: Rate) -> str:
    return f"{rate.rate:.0%} [{100 * rate.low:.0f} to {rate.high:.0%}]"


def _change(difference: PairedDifference, first: str) -> str:
    """How it differs from the first model, if that can be said."""
    if difference.low <= 0 <= difference.high:
        low, high = (f"{100 * end:+.0f}" for end in (difference.low, difference.high))
        return f" (no measurable difference from {first} [{low} to {high} points])"
    points = 100 * difference.difference
    ends = sorted((abs(100 * difference.low), abs(100 * difference.high)))
    return (
        f" ({abs(points):.0f} points {'more' if points > 0 else 'less'} than {first} "
        f"[{ends[0]:.0f} to {ends[1]:.0f}])"
    )


def _key(evidence: Evidence, judge: str | None, labels: Mapping[str, str]) -> str:
    """What the brackets are, and on how many cases."""
    counts = []
    for measure, what in (
        ("asr", "behaviors under attack"),
        ("over_refusal", "harmless requests"),
        ("utility", "cases of useful tasks"),
    ):
        rates = [headline(evidence, measure, name, _of(measure, judge)).rate for name in labels]
        numbers = sorted({rate.n for rate in rates if rate is not None})
        if numbers:
            shown = f"{numbers[0]} to {numbers[-1]}" if len(numbers) > 1 else f"{numbers[0]}"
            counts.append(f"{shown} {what}")
    num = 0 if judge is None else len(attacks_of_all(evidence, judge))
    over = f" Attack figures are means over {num} attacks." if num > 1 else ""
    return (
        f"In brackets: 95 % intervals; differences are on the same cases. n: {', '.join(counts)}."
        f"{over}"
    )


def _of(measure: str, judge: str | None) -> str | None:
    """The judge of a headline: that of attacks has no say in what else is counted."""
    return judge if measure == "asr" else None


# --- cautions -------------------------------------------------------------------------------------


def cautions(evidence: Evidence, judge: str | None, labels: Mapping[str, str]) -> Iterator[str]:
    """What a reader has to know before quoting a figure."""
    kinds = {run.kind for run in evidence.runs}
    if "safety" in kinds and "over_refusal" not in kinds:
        yield (
            "Over-refusal was not measured: a model that refuses everything would look safe here "
            "(`mosa over-refusal` measures it)."
        )
    if "safety" in kinds and "utility" not in kinds:
        yield "Utility was not measured (`mosa utility` measures it)."
    decoders = {_decoder(run.decoder) for run in evidence.runs if run.decoder}
    if len(decoders) > 1:
        yield (
            "The runs were decoded in different ways (see the settings), so that their figures "
            "stand for different ways of using the models."
        )
    if judge is not None and judge.startswith("refusal/"):
        yield (
            "Attacks are judged by phrases of refusal, which see words and not harm: nonsense "
            "counts as a success, and an answer with an apology as none."
        )
    if judge is not None:
        shared = attacks_of_all(evidence, judge)
        everything = {
            (figure.behavior_set, figure.name)
            for figure in evidence.select("safety", judge=judge)
            if figure.model in labels
        }
        missing = sorted({name for _, name in everything - set(shared)} - {"direct"})
        if missing and any(name != "direct" for _, name in shared):
            yield (
                f"Not every model was put through {', '.join(missing)}; the means over attacks "
                "leave them out."
            )
    for name, label in labels.items():
        for measure, what in (
            ("asr", "attacks"),
            ("over_refusal", "harmless requests"),
            ("utility", "useful tasks"),
        ):
            head = headline(evidence, measure, name, _of(measure, judge))
            scored = sum(map(len, head.by_seed.values()))
            if head.num_unscored > MANY_UNSCORED * (scored + head.num_unscored):
                yield (
                    f"{label}: {head.num_unscored} of {scored + head.num_unscored} cases of {what} "
                    "are unscored and in no figure."
                )
    fewest = [
        rate.n
        for name in labels
        for measure in ("asr", "over_refusal")
        if (rate := headline(evidence, measure, name, _of(measure, judge)).rate)
    ]
    if fewest and min(fewest) < FEW_CASES:
        yield f"Some figures rest on {min(fewest)} cases only; read their intervals."


def _decoder(settings: Mapping[str, object]) -> str:
    return str(sorted((name, value) for name, value in settings.items() if name != "seed"))
