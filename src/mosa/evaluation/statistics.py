"""Statistics beyond a single rate: seeds, pairs of runs, many tests at once, a judge that errs.

What is independent are the cases (behaviors, questions). Seeds are tries at the same case, and two
models are asked the same cases; counting either as new cases would claim more than was measured.
Every function is pure, and the two that draw random numbers draw the same ones each time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from mosa.evaluation.metrics import Z_95, Rate, rate_of, wilson
from mosa.types import UserError

NUM_DRAWS = 20_000
"""Random draws behind an interval; the chance in its ends is then far below its width."""
NUM_SIGN_FLIPS = 9_999
"""Sign flips behind a p value; up to 13 cases that differ, all flips are tried instead."""


# --- seeds ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RateOverSeeds:
    """A rate whose cases were each tried with several seeds."""

    rate: Rate
    """Mean over cases of each case's mean over its seeds; `n` counts cases."""
    num_seeds: int
    spread: float | None
    """Standard deviation of the per-seed rates; None where there is one seed, or where fewer than
    two cases have them all."""


def rate_over_seeds(values: Mapping[str, Sequence[float]]) -> RateOverSeeds:
    """The rate over cases and seeds, with a 95 % interval for new cases under new seeds.

    `values` holds for each case its values in [0, 1], one a seed in the order of the seeds. With
    one seed the result is that of `rate_of`. With several the interval is Wilson's for an
    *effective* number of cases (as for clustered samples: Korn and Graubard 1998, Survey
    Methodology 24:193), n times the variance of one yes-or-no value a case over the variance that
    was found, which has two parts:

    1. Cases. Seeds are nested in cases as far as noise goes: the sampler and the attacks draw
       theirs from seed and request together. So the spread of the case means has in it what cases
       and the noise of their seeds contribute. Where the seeds of a case always agree they add
       nothing, and the interval is that of one seed; where they are as good as new cases, it
       narrows.
    2. Seeds. Cases and seeds are also crossed, since every case is run with every seed, and what a
       seed does to all cases alike (one random suffix for all requests, one training of the model)
       does not average out over cases. Its variance is estimated from the two-way table, is zero
       where the seeds differ no more than noise makes them, and, resting on few seeds, widens the
       quantile (Satterthwaite's degrees of freedom).

    Few hits say little about the first part, so it is drawn towards its largest value by the same
    z^2/4 that keeps Wilson's interval open: at 0 and at 1 the interval is that of `rate_of`, never
    a point. In simulations it covers the true rate in 94 % of the runs or more while seeds are
    nested; with two seeds that move all cases strongly, in about 87 %: two seeds cannot tell.

    Cases may have fewer values than others, where some could not be scored; they count in the rate,
    and the second part rests on the complete ones.
    """
    if not all(0.0 <= value <= 1.0 for of_case in values.values() for value in of_case):
        raise ValueError("a rate is a mean of values between 0 and 1")
    case_means = [math.fsum(of_case) / len(of_case) for of_case in values.values()]
    plain = rate_of(case_means)
    num_seeds = max(map(len, values.values()))
    if num_seeds == 1:
        return RateOverSeeds(plain, 1, None)
    n, mean = plain.n, plain.rate
    draw = Z_95**2 / 4
    variance = (float(np.square(np.subtract(case_means, mean)).sum()) + draw) / n**2
    quantile, spread = Z_95, None
    complete = np.array([of_case for of_case in values.values() if len(of_case) == num_seeds])
    if len(complete) > 1:
        spread = float(complete.mean(axis=0).std(ddof=1))
        seeds, freedom = _shared_variance(complete)
        variance += seeds
        quantile = float(stats.t.ppf(0.975, max(1.0, variance**2 * freedom)))
    design = variance * n**2 / (n * mean * (1 - mean) + draw) * (quantile / Z_95) ** 2
    low, high = wilson(mean, n / design)
    return RateOverSeeds(Rate(mean, n, low, high), num_seeds, spread)


def _shared_variance(table: np.ndarray) -> tuple[float, float]:
    """Variance of the mean of a (cases, seeds) table from what a seed does to all cases alike, and
    the reciprocal of what it adds to Satterthwaite's denominator (infinite where it is zero)."""
    num_cases, num_seeds = table.shape
    case_means, seed_means = table.mean(axis=1, keepdims=True), table.mean(axis=0)
    residuals = table - case_means - seed_means + table.mean()
    between = num_cases * float(seed_means.var(ddof=1))
    within_freedom = (num_cases - 1) * (num_seeds - 1)
    within = float(np.square(residuals).sum()) / within_freedom
    # Rounding aside, a table whose columns are alike has no variance between them.
    if between <= within or math.isclose(between, 0.0, abs_tol=1e-12):
        return 0.0, math.inf
    denominator = between**2 / (num_seeds - 1) + within**2 / within_freedom
    return (between - within) / table.size, table.size**2 / denominator


# --- pairs ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class McNemar:
    """Two models on the same cases, yes or no each."""

    num_only_first: int
    """Cases with a yes from the first model alone."""
    num_only_second: int
    """Cases with a yes from the second model alone."""
    n: int
    """Cases that both models have."""
    num_unpaired: int
    """Cases that one model alone has; they are left out."""
    p_value: float


def mcnemar(first: Mapping[str, bool], second: Mapping[str, bool]) -> McNemar:
    """The exact McNemar test (1947, Psychometrika 12:153) of whether two models differ.

    Cases on which the models agree say nothing about which one is ahead. Of those on which they
    differ, a coin would give each model half: the p value is that of the two-sided binomial test.
    Without such a case it is 1: nothing speaks for a difference.
    """
    names = _paired(first, second)
    num_only_first = sum(first[name] and not second[name] for name in names)
    num_only_second = sum(second[name] and not first[name] for name in names)
    return McNemar(
        num_only_first,
        num_only_second,
        len(names),
        len(first.keys() ^ second.keys()),
        _coin(num_only_first, num_only_second),
    )


@dataclass(frozen=True)
class PairedDifference:
    """How far the second of two models is above the first on the same cases."""

    difference: float
    """Mean over the cases of second minus first."""
    n: int
    """Cases that both models have."""
    num_unpaired: int
    """Cases that one model alone has; they are left out."""
    low: float
    high: float
    """Ends of the 95 % interval."""
    p_value: float


def paired_difference(
    first: Mapping[str, float | bool], second: Mapping[str, float | bool], *, seed: int = 0
) -> PairedDifference:
    """The mean of second minus first over the same cases, values in [0, 1], with interval and test.

    The interval is a Bayesian bootstrap over cases (Rubin 1981, Annals of Statistics 9:130: each
    draw weighs the cases at random instead of counting them 0, 1, 2 ... times) with one case more,
    the worst there could be: a difference of -1 for the low end, of +1 for the high end. This is
    the bound of Gaffke (2005, Mathematical Methods of Statistics 14:451; Learned-Miller and Thomas,
    arXiv 1905.06208, conjecture that it always covers; no counterexample is known). It was
    preferred to the percentile and BCa bootstraps because these become a point where all cases
    agree, which is what two strong defences look like, and are too narrow for some twenty cases: in
    simulations with 20 cases of which one or two differ they cover in 60 %. It is never a point,
    and errs to the wide side where the differences are small and the cases few.

    The p value is that of a sign-flip test: were the models alike, each case's difference could as
    well have the other sign. It is exact where at most 13 cases differ, or all by the same amount,
    and else rests on 9,999 random flips. For yes-or-no values it is McNemar's, and the interval
    leaves out 0 if and only if it is below 0.05 (the chance in the draws aside).
    """
    if not all(0.0 <= value <= 1.0 for side in (first, second) for value in side.values()):
        raise ValueError("differences are of values between 0 and 1")
    differences = _differences(first, second)
    low, high = _bounds(differences, seed)
    return PairedDifference(
        float(differences.mean()),
        len(differences),
        len(first.keys() ^ second.keys()),
        low,
        high,
        _sign_flips(differences, seed),
    )


def paired_difference_over_groups(
    pairs: Sequence[tuple[Mapping[str, float], Mapping[str, float]]], *, seed: int = 0
) -> PairedDifference:
    """The mean over groups of cases (useful tasks) of the groups' `paired_difference`, so that each
    group weighs alike, however many cases it has.

    The interval adds up the groups' own as independent: the square of its length to either side is
    the mean square of theirs over the number of groups (Zou and Donner 2008, Statistics in Medicine
    27:1693). The p value is that of sign flips of all cases. With one group both are those of
    `paired_difference`.
    """
    groups = [paired_difference(first, second, seed=seed) for first, second in pairs]
    difference = math.fsum(group.difference for group in groups) / len(groups)
    below = math.hypot(*(group.difference - group.low for group in groups)) / len(groups)
    above = math.hypot(*(group.high - group.difference for group in groups)) / len(groups)
    weighed = [_differences(first, second) for first, second in pairs]
    weighed = np.concatenate([of_group / len(of_group) for of_group in weighed])
    return PairedDifference(
        difference,
        sum(group.n for group in groups),
        sum(group.num_unpaired for group in groups),
        difference - below,
        difference + above,
        _sign_flips(weighed, seed),
    )


def _differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> np.ndarray:
    """Second minus first, rounded so that equal differences are equal whatever they came from."""
    names = _paired(first, second)
    return np.array([float(second[name]) - first[name] for name in names]).round(12)


def _paired(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    names = [name for name in first if name in second]
    if not names:
        raise UserError("the two sides have no case in common; compare what was asked the same")
    return names


def _bounds(differences: np.ndarray, seed: int) -> tuple[float, float]:
    rng = np.random.default_rng(seed)
    # Weights are gamma numbers over their sum; those of equal cases add up to one gamma number.
    levels, counts = np.unique(differences, return_counts=True)
    weights = rng.standard_gamma(counts, size=(NUM_DRAWS, len(counts)))
    extra = rng.standard_gamma(1.0, size=NUM_DRAWS)
    total, weighed = weights.sum(axis=1) + extra, weights @ levels
    low = np.quantile((weighed - extra) / total, 0.025)
    high = np.quantile((weighed + extra) / total, 0.975)
    return float(low), float(high)


def _sign_flips(differences: np.ndarray, seed: int) -> float:
    differing = differences[differences != 0]
    if len(set(np.abs(differing))) <= 1:
        num_up = int((differing > 0).sum())
        return _coin(num_up, len(differing) - num_up)
    found = stats.permutation_test(
        (differing,),
        np.mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=NUM_SIGN_FLIPS,
        batch=1000,
        rng=np.random.default_rng(seed),
    )
    return float(found.pvalue)


def _coin(num_first: int, num_second: int) -> float:
    """Two-sided p value of so many tosses for either side of a fair coin."""
    if num_first + num_second == 0:
        return 1.0
    return float(stats.binomtest(num_first, num_first + num_second).pvalue)


# --- many tests -----------------------------------------------------------------------------------


def holm(p_values: Sequence[float]) -> list[float]:
    """P values adjusted for being several (Holm 1979, Scandinavian Journal of Statistics 6:65).

    The smallest of m is multiplied by m, the next by m - 1, and so on; none falls below one before
    it. If those below 0.05 are called differences, then the chance that any of them is none stays
    below 0.05, however the tests hang together.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted


# --- a judge that errs ----------------------------------------------------------------------------


@dataclass(frozen=True)
class CorrectedRate:
    """A rate without the errors of its judge, or why there is none."""

    rate: Rate | None
    reason: str = ""


def corrected_rate(
    num_positive: float | int, n: int, sensitivity: tuple[int, int], specificity: tuple[int, int]
) -> CorrectedRate:
    """The true rate behind what a judge said, from the errors that the judge made on labelled rows.

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

    What it rests on: the judge errs on these responses as often as on the labelled rows, and a case
    is one verdict. Where one success among many tries makes a case a success, false alarms add up
    over the tries, and this takes out too few of them. There is no estimate where the judge visibly
    errs otherwise (so few successes, say, that its errors alone should have been more), nor from a
    judge no better than chance, sensitivity + specificity <= 1.
    """
    (true_positives, positives), (true_negatives, negatives) = sensitivity, specificity
    if not positives or not negatives:
        kind = "a success" if not positives else "no success"
        return CorrectedRate(None, f"no labelled row that the judge scored is {kind}")
    right = true_positives / positives + true_negatives / negatives - 1
    sens, num_sens = (true_positives + 1) / (positives + 2), positives + 2
    spec, num_spec = (true_negatives + 1) / (negatives + 2), negatives + 2
    if right <= 0 or sens + spec <= 1:
        return CorrectedRate(None, "the judge was no better than chance on the labelled rows")
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
        return CorrectedRate(
            None,
            f"the judge finds {side} successes here than its errors on the labelled rows allow, so "
            "that it errs differently here",
        )
    sure_low, sure_high = wilson(estimate, n)
    low, high = max(0.0, min(low, sure_low)), min(1.0, max(high, sure_high))
    return CorrectedRate(Rate(estimate, n, low, high))
