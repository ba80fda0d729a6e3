"""Statistics beyond a single rate: pairs of models, many tests at once, a judge with errors.

What is independent are the cases (behaviors, questions). Two models answer the same cases, so that
their difference is a mean of differences; counting both as new cases would claim more than was
measured. Every function is pure, and those that draw random numbers draw the same ones each time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
from scipy import stats

from mosa.stats.rates import (
    Z_95,
    Interval,
    Rate,
    Values,
    case_means,
    format_rate,
    mean_of,
    scored,
    seed_length,
    wilson,
)
from mosa.types import UserError

NUM_DRAWS = 20_000
"""Random draws for an interval; the chance in its ends is then far below its width."""
SEED = 0
"""Of all random draws."""
ROUNDING = 1e-9
"""How far a value may be outside its bounds: a correlation of 1 can be a hair above it."""
NUM_SIGN_FLIPS = 9_999
"""Sign flips for a p value; up to 13 cases that differ, all flips are tried instead."""


# --- pairs ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PairedDifference(Interval):
    """How far the second of two models is above the first: the mean over the `n` cases that both
    have of second minus first, with its 95 % interval. Cases that one model lacks are left out."""

    p_value: float
    exact: Fraction
    """The difference without rounding."""

    def __neg__(self) -> PairedDifference:
        """How far the first is above the second."""
        return replace(self, value=-self.value, low=-self.high, high=-self.low, exact=-self.exact)

    def __str__(self) -> str:
        return format_rate(self, with_n=True, signed=True)


def paired_difference(first: Values, second: Values) -> PairedDifference:
    """The mean of second minus first over the same cases, values in [0, 1], with interval and test.

    The interval is `mean_within`'s for differences between -1 and 1. For yes-or-no values of one
    seed it leaves out 0 if and only if the p value is below 0.05 (the chance in the draws aside).
    Where there are several seeds it is widened by what a seed does to all cases alike, as a rate's
    is: by Student's t over the seeds' differences, where both models have the same seeds, else over
    the seeds of either.

    The p value is that of a sign-flip test: were the models alike, each case's difference could as
    well have the other sign. It is exact where at most 13 cases differ, or all by the same amount,
    and otherwise uses 9,999 random flips. For yes-or-no values it is that of McNemar's exact test
    (1947, Psychometrika 12:153): cases on which the models agree say nothing about which one is
    ahead, and of the others a coin would give each model half. It treats cases as independent,
    which they are not where a seed moves them all: only the interval sees that.
    """
    return paired_difference_over_groups([(first, second)])


def paired_difference_over_groups(pairs: Sequence[tuple[Values, Values]]) -> PairedDifference:
    """The mean over groups of cases (useful tasks) of the groups' `paired_difference`, so that each
    group has the same weight, for any number of cases.

    The interval adds up the groups' own as independent: the square of its length to either side is
    the mean square of theirs over the number of groups (Zou and Donner 2008, Statistics in Medicine
    27:1693). The p value is that of sign flips of all cases.
    """
    fractions = [_differences(first, second) for first, second in pairs]
    exact = mean_of([mean_of(group) for group in fractions])
    # Rounded, so that a third less two thirds is the same for any recorded decimals.
    groups = [np.array([float(value) for value in group]).round(12) for group in fractions]
    found = [mean_within(group.tolist(), -1.0, 1.0) for group in groups]
    below = math.hypot(*(each.value - each.low for each in found)) / len(groups)
    above = math.hypot(*(each.high - each.value for each in found)) / len(groups)
    over_seeds = _seed_length(pairs)
    largest = max(map(len, groups))
    weighed = np.concatenate([group * (largest / len(group)) for group in groups])
    return PairedDifference(
        float(exact),
        sum(map(len, groups)),
        max(-1.0, float(exact) - math.hypot(below, over_seeds)),
        min(1.0, float(exact) + math.hypot(above, over_seeds)),
        _sign_flips(weighed),
        exact,
    )


def _differences(first: Values, second: Values) -> list[Fraction]:
    before, after = case_means(first), case_means(second)
    differences = [after[case] - mean for case, mean in before.items() if case in after]
    if not differences:
        raise UserError("the two sides have no case in common; compare what was asked the same")
    return differences


def _seed_length(pairs: Sequence[tuple[Values, Values]]) -> float:
    """What seeds add to either side of the interval of a difference."""
    sides = [
        [{case: scored(pair[place][case]) for case in pair[0] if case in pair[1]} for pair in pairs]
        for place in (0, 1)
    ]
    seeds = [{s for group in side for of_case in group.values() for s in of_case} for side in sides]
    if seeds[0] != seeds[1]:
        return math.hypot(*map(seed_length, sides))
    return seed_length(
        [
            {
                case: {s: second[case][s] - v for s, v in of_case.items() if s in second[case]}
                for case, of_case in first.items()
            }
            for first, second in zip(*sides, strict=True)
        ]
    )


# --- means other than rates -----------------------------------------------------------------------


def mean_within(values: Sequence[float | int], least: float, most: float) -> Interval:
    """The mean of values of independent cases that cannot leave [`least`, `most`].

    The interval is a Bayesian bootstrap over cases (Rubin 1981, Annals of Statistics 9:130: each
    draw weighs the cases at random instead of counting them 0, 1, 2 ... times) with one case more,
    the worst there could be: `least` for the low end, `most` for the high end. This is the bound of
    Gaffke (2005, Mathematical Methods of Statistics 14:451; Learned-Miller and Thomas, arXiv
    1905.06208, conjecture that it always covers; no counterexample is known). It was preferred to
    the percentile and BCa bootstraps because these become a point where all cases agree, which is
    what two strong defences look like, and are too narrow for some twenty cases: in simulations
    with 20 cases of which one or two differ they cover in 60 %. It is never a point, and errs to
    the wide side where the values vary little and the cases are few.
    """
    numbers = _numbers(values)
    if numbers.min() < least - ROUNDING or numbers.max() > most + ROUNDING:
        raise ValueError(f"a value is outside of {least} to {most}")
    numbers = numbers.clip(least, most)
    rng = np.random.default_rng(SEED)
    # Weights are gamma numbers over their sum; those of equal cases add up to one gamma number.
    levels, counts = np.unique(numbers, return_counts=True)
    weights = rng.standard_gamma(counts, size=(NUM_DRAWS, len(counts)))
    extra = rng.standard_gamma(1.0, size=NUM_DRAWS)
    total, weighed = weights.sum(axis=1) + extra, weights @ levels
    low = np.quantile((weighed + least * extra) / total, 0.025)
    high = np.quantile((weighed + most * extra) / total, 0.975)
    return Interval(float(numbers.mean()), len(numbers), float(low), float(high))


def mean_unbounded(values: Sequence[float | int]) -> Interval:
    """The mean of values of independent cases without known bounds (nats), with Student's t
    interval (1908, Biometrika 6:1). One case gives an interval without ends (NaN), and cases that
    all agree a point: without bounds they say nothing about another case."""
    numbers = _numbers(values)
    mean = float(numbers.mean())
    if len(numbers) == 1:
        return Interval(mean, 1, math.nan, math.nan)
    error = float(numbers.std(ddof=1)) / math.sqrt(len(numbers))
    half = float(stats.t.ppf(0.975, len(numbers) - 1)) * error
    return Interval(mean, len(numbers), mean - half, mean + half)


def _numbers(values: Sequence[float | int]) -> np.ndarray:
    if len(values) == 0:
        raise ValueError("a mean needs at least one value")
    return np.asarray(values, dtype=float)


# --- tests ----------------------------------------------------------------------------------------


def _sign_flips(differences: np.ndarray) -> float:
    differing = differences[differences != 0]
    if len(set(np.abs(differing))) <= 1:
        if len(differing) == 0:
            return 1.0
        num_up = int((differing > 0).sum())
        return float(stats.binomtest(num_up, len(differing)).pvalue)  # against a fair coin
    found = stats.permutation_test(
        (differing,),
        np.mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=NUM_SIGN_FLIPS,
        batch=1000,
        rng=np.random.default_rng(SEED),
    )
    return float(found.pvalue)


# --- many tests -----------------------------------------------------------------------------------


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """P values adjusted for being several (Holm 1979, Scandinavian Journal of Statistics 6:65).

    The smallest of m is multiplied by m, the next by m - 1, and so on; none falls below one before
    it. If those below 0.05 are called differences, then the chance that any of them is none stays
    below 0.05, for any dependence between the tests.

    >>> holm({"a": 0.01, "b": 0.04, "c": 0.03})
    {'a': 0.03, 'b': 0.06, 'c': 0.06}
    """
    adjusted, largest = dict(p_values), 0.0
    for rank, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[name]))
        adjusted[name] = largest
    return adjusted


# --- a judge that errs ----------------------------------------------------------------------------


def corrected_rate(
    num_positive: float | int, n: int, sensitivity: tuple[int, int], specificity: tuple[int, int]
) -> Rate | str:
    """The true rate, estimated from a judge's verdicts and from its errors on labelled rows, or why
    there is none.

    The judge called `num_positive` of `n` cases a success. `sensitivity` is (rows rightly called a
    success, rows labelled a success), `specificity` (rows rightly called none, rows labelled none).
    The estimate is that of Rogan and Gladen (1978, American Journal of Epidemiology 107:71),

        (apparent rate + specificity - 1) / (sensitivity + specificity - 1),

    cut to [0, 1]. The interval is that of Lang and Reiczigel (2014, Preventive Veterinary Medicine
    113:13): the delta method over all three rates, after z^2 cases (half of them successes) are
    added to the n and two rows (one right) to either kind of labelled rows, with a shift for the
    curvature. So few labelled rows widen it, and a judge without an error on them is not taken to
    be without errors. It is widened to hold Wilson's interval of the estimate, because no judge
    makes a rate surer than one that never errs, which the cut to [0, 1] would otherwise do.

    Its assumptions: the judge errs on these responses as often as on the labelled rows, and a case
    is one verdict. Where one success among many tries makes a case a success, false alarms add up
    over the tries, and this takes out too few of them. There is no estimate where the judge visibly
    errs otherwise (so few successes, say, that its errors should have made more), nor from a
    judge no better than chance, sensitivity + specificity <= 1.
    """
    (true_positives, positives), (true_negatives, negatives) = sensitivity, specificity
    if not positives or not negatives:
        kind = "a success" if not positives else "no success"
        return f"no labelled row that the judge scored is {kind}"
    right = true_positives / positives + true_negatives / negatives - 1
    sens, num_sens = (true_positives + 1) / (positives + 2), positives + 2
    spec, num_spec = (true_negatives + 1) / (negatives + 2), negatives + 2
    if right <= 0 or sens + spec <= 1:
        return "the judge was no better than chance on the labelled rows"
    estimate = (num_positive / n + true_negatives / negatives - 1) / right
    estimate = min(1.0, max(0.0, estimate))

    num_all = n + Z_95**2
    apparent = (num_positive + Z_95**2 / 2) / num_all
    centre = (apparent + spec - 1) / (sens + spec - 1)
    of_sens = sens * (1 - sens) / num_sens
    of_spec = spec * (1 - spec) / num_spec
    shift = 2 * Z_95**2 * (centre * of_sens - (1 - centre) * of_spec)
    variance = apparent * (1 - apparent) / num_all
    variance += centre**2 * of_sens + (1 - centre) ** 2 * of_spec
    half = Z_95 * math.sqrt(variance) / (sens + spec - 1)
    low, high = centre + shift - half, centre + shift + half
    if high <= 0 or low >= 1:
        side = "fewer" if high <= 0 else "more"
        return (
            f"the judge finds {side} successes here than its errors on the labelled rows allow, so "
            "that it errs differently here"
        )
    sure_low, sure_high = wilson(estimate, n)
    low, high = max(0.0, min(low, sure_low)), min(1.0, max(high, sure_high))
    return Rate(estimate, n, low, high)
