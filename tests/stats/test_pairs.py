"""Statistics against sums done by hand, other packages, and simulated runs whose truth is known."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from refusals import refuses
from scipy import stats
from statsmodels.stats import contingency_tables, multitest, proportion

from mosa.stats.pairs import (
    corrected_rate,
    holm,
    mean_unbounded,
    mean_within,
    paired_difference,
    paired_difference_over_groups,
)
from mosa.stats.rates import Rate, once, rate_of


def by_name(values):
    return {str(i): value for i, value in enumerate(values)}


def difference(first, second):
    """Of models that tried each case once."""
    return paired_difference(once(first), once(second))


def difference_over_groups(pairs):
    return paired_difference_over_groups([(once(first), once(second)) for first, second in pairs])


# --- pairs ----------------------------------------------------------------------------------------


def test_mcnemar_by_hand():
    """Five cases differ, one for the first and four for the second: two-sided binomial
    2 * (1 + 5) / 32 = 0.375. The case that one side alone has is left out."""
    first = {"a": True, "b": False, "c": False, "d": False, "e": False, "f": True, "x": True}
    second = {"a": False, "b": True, "c": True, "d": True, "e": True, "f": True, "y": True}
    found = difference(first, second)
    assert found.exact == Fraction(4 - 1, 6)
    assert found.n == 6
    assert found.p_value == pytest.approx(0.375)
    back = difference(second, first)
    assert (back.exact, back.p_value) == (Fraction(1 - 4, 6), found.p_value)


def test_models_that_never_differ():
    same = by_name([True, False, True])
    assert difference(same, same).p_value == 1.0


def test_nothing_in_common():
    with refuses("case"):
        difference({"a": 1.0}, {"b": 1.0})
    with pytest.raises(ValueError, match="between 0 and 1"):
        difference({"a": 1.0}, {"a": 2.0})


def test_mcnemar_against_statsmodels():
    rng = np.random.default_rng(5)
    for n in (1, 5, 20, 60):
        pairs = [(bool(a), bool(b)) for a, b in rng.random((n, 2)) < rng.random(2)]
        table = [[pairs.count((a, b)) for b in (True, False)] for a in (True, False)]
        expected: Any = contingency_tables.mcnemar(table, exact=True)
        found = difference(by_name(a for a, _ in pairs), by_name(b for _, b in pairs))
        assert found.p_value == pytest.approx(expected.pvalue)


def yes_or_no(num_up, num_down, n):
    first = [False] * num_up + [True] * num_down + [False] * (n - num_up - num_down)
    second = [True] * num_up + [False] * num_down + [False] * (n - num_up - num_down)
    return by_name(first), by_name(second)


@pytest.mark.parametrize("n", [16, 60])
@pytest.mark.parametrize(
    ("num_up", "num_down"), [(0, 0), (5, 0), (6, 0), (8, 1), (9, 1), (9, 2), (10, 2), (12, 3)]
)
def test_interval_and_mcnemar_say_the_same(num_up, num_down, n):
    """Weights of the cases are gamma numbers, and 0 is the low end's 2.5 % if the num_up-th event
    of one of two equal streams comes before the (num_down + 1)-th of the other with 0.975: the
    binomial tail that McNemar's test doubles."""
    found = difference(*yes_or_no(num_up, num_down, n))
    tail = 2 * stats.binom.cdf(min(num_up, num_down), num_up + num_down, 0.5)
    assert found.p_value == pytest.approx(min(1.0, tail))
    assert (found.low > 0) == (tail < 0.05)
    assert found.value == pytest.approx((num_up - num_down) / n)
    back = difference(*reversed(yes_or_no(num_up, num_down, n)))
    assert (back.low, back.high) == pytest.approx((-found.high, -found.low), abs=0.01)


def test_models_that_never_differ_are_not_surely_alike():
    """0 of 20 differ: the extra case's weight is one of 21, beta(1, 20), below
    1 - 0.025^(1/20) = 0.1684 in 97.5 % of the draws."""
    found = difference(by_name([0.0] * 20), by_name([0.0] * 20))
    assert found.value == 0.0
    assert found.high == pytest.approx(1 - 0.025 ** (1 / 20), abs=0.005)
    assert found.low == pytest.approx(-found.high, abs=0.005)


def test_all_up_is_clopper_pearson():
    """All 10 from 0 to 1: the low end is the share p with p^10 = 0.025 of +1 against -1."""
    found = difference(by_name([0.0] * 10), by_name([1.0] * 10))
    ends: Any = proportion.proportion_confint(10, 10, method="beta")
    assert ends[0] == pytest.approx(0.025 ** (1 / 10))
    assert found.low == pytest.approx(2 * ends[0] - 1, abs=0.02)
    assert found.high == 1.0
    assert found.p_value == pytest.approx(2 / 2**10)


def test_sign_flips_by_hand():
    """Differences 0.1, 0.2, 0.3, -0.1 and 0: the sum is 0.5, and of the 16 ways to give four cases
    signs, those with a sum of 0.5 or more are ++++ (0.7), +++- and -+++ (0.5 each); doubled, 6/16.
    """
    first = by_name([0.5] * 5)
    second = by_name([0.6, 0.7, 0.8, 0.4, 0.5])
    found = difference(first, second)
    assert found.p_value == pytest.approx(6 / 16)
    assert found.value == pytest.approx(0.1)


def test_graded_values_against_scipy():
    """With many cases the test agrees with Student's, and the interval is a little wider."""
    rng = np.random.default_rng(1)
    first, second = rng.beta(2, 3, size=(2, 200))
    second = np.clip(second + 0.05, 0, 1)
    found = difference(by_name(first.tolist()), by_name(second.tolist()))
    student: Any = stats.ttest_1samp(second - first, 0.0)
    assert found.p_value == pytest.approx(student.pvalue, abs=0.02)
    low, high = student.confidence_interval()
    assert found.low < low and high < found.high
    assert found.high - found.low < 1.25 * (high - low)


def test_groups_weigh_alike():
    """One case that falls by 1 and three that stay: (-1 + 0) / 2. Lengths of the groups' intervals
    add up as squares: one case leaves (-1, up to 1 - 2 * 0.025), three leave 1 - 0.025^(1/3) to
    either side. Of the two signs of the one case that differs neither is surprising: p = 1."""
    one = {"a": 1.0}, {"a": 0.0}
    three = by_name([1.0, 0.0, 1.0]), by_name([1.0, 0.0, 1.0])
    found = difference_over_groups([one, three])
    assert found.value == -0.5 and found.n == 4 and found.p_value == 1.0
    rise, spread = 2 * 0.975, 1 - 0.025 ** (1 / 3)
    assert found.high == pytest.approx(-0.5 + math.hypot(rise, spread) / 2, abs=0.01)
    assert found.low == pytest.approx(-0.5 - spread / 2, abs=0.01)
    single = difference_over_groups([three])
    assert single == difference(*three)


def test_groups_of_very_different_size():
    """Two tasks of 20 and 200 cases that both rise by 0.25 are surer than the small one alone."""
    first = by_name([0.0, 0.5, 1.0, 0.5] * 5), by_name([0.0, 0.5, 1.0, 0.5] * 50)
    second = by_name([0.5, 1.0, 1.0, 0.5] * 5), by_name([0.5, 1.0, 1.0, 0.5] * 50)
    both = difference_over_groups(list(zip(first, second, strict=True)))
    small, large = (difference(a, b) for a, b in zip(first, second, strict=True))
    assert both.value == pytest.approx(0.25)
    assert large.high - large.low < both.high - both.low < small.high - small.low
    assert both.p_value < 0.01


def test_draws_are_the_same_each_time(monkeypatch):
    rng = np.random.default_rng(2)
    first, second = (by_name(side) for side in rng.random((2, 40)).tolist())
    found = difference(first, second)
    assert difference(first, second) == found
    monkeypatch.setattr("mosa.stats.pairs.SEED", 1)
    assert difference(first, second) != found


@pytest.mark.parametrize("n", [20, 60])
def test_coverage_of_the_paired_interval(n):
    """Few cases differ, where the percentile bootstrap covers in 60 % (n = 20)."""
    rng = np.random.default_rng(3)
    held = percentile_held = 0
    for _ in range(200):
        differences = rng.choice([1.0, -1.0, 0.0], p=[0.05, 0.02, 0.93], size=n)
        first = by_name((differences < 0).astype(float).tolist())
        second = by_name((differences > 0).astype(float).tolist())
        found = difference(first, second)
        held += found.low <= 0.03 <= found.high
        means = differences[rng.integers(n, size=(500, n))].mean(axis=1)
        low, high = np.quantile(means, (0.025, 0.975))
        percentile_held += low <= 0.03 <= high
    assert held / 200 >= 0.95
    if n == 20:
        assert percentile_held / 200 < 0.75


def test_exact_differences_of_thirds():
    """1/3 - 2/3 + 1/3 is 0, which floats rounded to twelve digits are not."""
    first, second = by_name([Fraction(1, 3)] * 3), by_name([Fraction(0), Fraction(1), Fraction(0)])
    assert difference(first, second).exact == 0
    assert (-difference(by_name([0.9]), by_name([0.4]))).exact == Fraction(1, 2)
    turned = -difference(by_name([0.0] * 4), by_name([1.0, 0.0, 0.0, 0.0]))
    assert turned.value == -0.25 and turned.low < -0.25 < turned.high


def test_a_seed_that_moves_all_cases_widens_the_interval():
    """Ten cases, three seeds; the second model gains 0.1, 0.3 and 0.5. Student's t over the seeds:
    0.2 / sqrt(3) * 4.302653 = 0.496829, added as squares to the interval over cases. Where both
    models share the seeds, what a seed does to both of them cancels."""
    levels = (0.1, 0.3, 0.5)
    nothing = {str(i): dict.fromkeys(range(3), 0.0) for i in range(10)}
    moved = {str(i): dict(enumerate(levels)) for i in range(10)}
    found = paired_difference(nothing, moved)
    cases = difference(by_name([0.0] * 10), by_name([0.3] * 10))
    assert found.value == pytest.approx(0.3)
    assert found.value - found.low == pytest.approx(
        math.hypot(cases.value - cases.low, 0.496829), abs=1e-5
    )
    same = paired_difference(moved, moved)
    none = difference(by_name([0.0] * 10), by_name([0.0] * 10))
    assert (same.low, same.high) == (none.low, none.high)
    later = {case: {seed + 3: v for seed, v in of.items()} for case, of in moved.items()}
    other = paired_difference(moved, later)
    assert other.high == pytest.approx(math.hypot(none.high, 0.496829, 0.496829), abs=1e-5)


def test_means_within_bounds():
    """Correlations may be a hair above 1; what is farther out is a mistake."""
    assert mean_within([1.0 + 1e-15, 1.0], -1.0, 1.0).high == 1.0
    with pytest.raises(ValueError, match="outside of -1.0 to 1.0"):
        mean_within([1.1], -1.0, 1.0)
    wide, narrow = mean_within([0.5] * 10, -2.0, 2.0), mean_within([0.5] * 10, 0.0, 1.0)
    assert wide.low < narrow.low < 0.5 < narrow.high < wide.high


def test_means_without_bounds_against_scipy():
    values = np.random.default_rng(2).normal(size=12).tolist()
    found = mean_unbounded(values)
    student: Any = stats.ttest_1samp(values, 0.0)
    assert (found.low, found.high) == pytest.approx(tuple(student.confidence_interval()))
    assert math.isnan(mean_unbounded([1.0]).low)


# --- many tests -----------------------------------------------------------------------------------


def test_holm_by_hand():
    """0.01 * 4 = 0.04; 0.015 * 3 = 0.045; 0.02 * 2 = 0.04, raised to 0.045; 0.9 * 1."""
    found = holm({"a": 0.02, "b": 0.01, "c": 0.9, "d": 0.015})
    assert found == pytest.approx({"a": 0.045, "b": 0.04, "c": 0.9, "d": 0.045})
    assert list(found) == ["a", "b", "c", "d"] and holm({}) == {}


def test_holm_against_statsmodels():
    rng = np.random.default_rng(6)
    for n in (1, 2, 5, 30):
        p_values = by_name((rng.random(n) ** 4).round(2).tolist())
        expected: Any = multitest.multipletests(list(p_values.values()), method="holm")
        assert list(holm(p_values).values()) == pytest.approx(expected[1].tolist())


# --- a judge that errs ----------------------------------------------------------------------------


def test_corrected_rate_by_hand():
    """30 of 100 called a success; sensitivity 18/20, specificity 36/40.

    Interval (0.3 + 0.9 - 1) / (0.9 + 0.9 - 1) = 0.25. Adjusted: n = 103.8415 with 31.9207, apparent
    0.307398; sensitivity 19/22 = 0.863636, specificity 37/42 = 0.880952, their sum less one
    0.744589; centre (0.307398 - 0.119048) / 0.744589 = 0.252959. Variances a row: 0.117769 / 22 =
    0.005353 and 0.104875 / 42 = 0.002497. Shift 7.682918 * (0.252959 * 0.005353 - 0.747041 *
    0.002497) = -0.003928. Variance 0.212905 / 103.8415 + 0.063988 * 0.005353 + 0.558070 * 0.002497
    = 0.002050 + 0.000343 + 0.001394 = 0.003786; half 1.959964 * 0.061533 / 0.744589 = 0.161973.
    """
    found = corrected_rate(30, 100, (18, 20), (36, 40))
    assert isinstance(found, Rate) and found.n == 100
    assert found.value == pytest.approx(0.25)
    assert found.low == pytest.approx(0.252959 - 0.003928 - 0.161973, abs=2e-5)
    assert found.high == pytest.approx(0.252959 - 0.003928 + 0.161973, abs=2e-5)


def test_a_judge_that_never_erred():
    """The estimate is the rate itself; the interval is wider than Wilson's, and nears it with the
    number of labelled rows."""
    plain = rate_of(once([1.0] * 8 + [0.0] * 32))
    few = corrected_rate(8, 40, (20, 20), (20, 20))
    many = corrected_rate(8, 40, (10**6, 10**6), (10**6, 10**6))
    assert isinstance(few, Rate) and isinstance(many, Rate)
    assert few.value == many.value == pytest.approx(0.2)
    assert few.high - few.low > 1.05 * (many.high - many.low)
    assert (many.low, many.high) == pytest.approx((plain.low, plain.high), abs=0.01)


def test_never_surer_than_a_judge_without_errors():
    """2 of 20 by a judge with 4 false alarms in 40: the errors alone explain them, the estimate is
    0, and its interval is not below that of 0 of 20."""
    found = corrected_rate(2, 20, (38, 40), (36, 40))
    assert isinstance(found, Rate) and found.value == found.low == 0.0
    assert found.high >= rate_of(once([0.0] * 20)).high


@pytest.mark.parametrize(
    ("num_positive", "sensitivity", "specificity", "reason"),
    [
        (10, (0, 0), (30, 30), "no labelled row that the judge scored is a success"),
        (10, (30, 30), (0, 0), "no labelled row that the judge scored is no success"),
        (10, (10, 20), (10, 20), "no better than chance"),
        (10, (5, 20), (10, 20), "no better than chance"),
        (0, (90, 100), (50, 100), "finds fewer successes here than its errors"),
        (50, (50, 100), (98, 100), "finds more successes here than its errors"),
    ],
)
def test_why_there_is_no_corrected_rate(num_positive, sensitivity, specificity, reason):
    found = corrected_rate(num_positive, 50, sensitivity, specificity)
    assert isinstance(found, str) and reason in found


@pytest.mark.parametrize("truth", [0.0, 0.05, 0.5, 1.0])
@pytest.mark.parametrize(
    ("n", "positives", "negatives", "sens", "spec"),
    [(50, 30, 30, 0.9, 0.8), (100, 30, 60, 0.7, 0.95), (20, 60, 60, 0.9, 0.9)],
)
def test_coverage_of_the_corrected_rate(n, positives, negatives, sens, spec, truth):
    """600 runs: the standard error of a coverage of 0.95 is 0.009."""
    rng = np.random.default_rng(4)
    held = 0
    for _ in range(600):
        found = corrected_rate(
            int(rng.binomial(n, truth * sens + (1 - truth) * (1 - spec))),
            n,
            (int(rng.binomial(positives, sens)), positives),
            (int(rng.binomial(negatives, spec)), negatives),
        )
        held += isinstance(found, Rate) and found.low <= truth <= found.high
    assert held / 600 >= 0.93
