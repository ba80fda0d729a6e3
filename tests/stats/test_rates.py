"""Rates and intervals against values worked out by hand, and simulations whose truth is known."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats import proportion

from mosa.stats.rates import (
    Z_95,
    Interval,
    exactly,
    format_interval,
    format_rate,
    format_value,
    once,
    rate_of,
    rate_over_groups,
    seed_length,
    wilson,
)


def by_seed(rows):
    """Rows of one case each, with a value for each seed."""
    return {str(i): dict(enumerate(row)) for i, row in enumerate(rows)}


# --- one seed -------------------------------------------------------------------------------------


def test_half_of_four_by_hand():
    """p = 1/2, n = 4, z^2 = 3.8415: centre = 1/2; half = z / (1 + z^2/4) * sqrt(1/16 + z^2/64)
    = 1.95996 / 1.96036 * sqrt(0.0625 + 0.0600228) = 0.349965."""
    rate = rate_of(once([1.0, 0.0, 1.0, 0.0]))
    assert rate.value == 0.5
    assert (rate.n, rate.num_seeds, rate.num_unscored, rate.num_clusters) == (4, 1, 0, None)
    assert rate.low == pytest.approx(0.5 - 0.349965, abs=2e-5)
    assert rate.high == pytest.approx(0.5 + 0.349965, abs=2e-5)


def test_published_example():
    """Newcombe 1998, Statistics in Medicine 17:857, Table I, method 3: 81 of 263 gives 0.2553 to
    0.3662, and 0 of 20 gives 0 to 0.1611."""
    rate = rate_of(once([True] * 81 + [False] * 182))
    assert (round(rate.low, 4), round(rate.high, 4)) == (0.2553, 0.3662)
    nothing = rate_of(once([False] * 20))
    assert (nothing.low, round(nothing.high, 4)) == (0.0, 0.1611)


def test_all_or_nothing_is_never_certain():
    """0 of n: low 0, high z^2 / (n + z^2); n of n is its mirror image."""
    nothing, everything = rate_of(once([0.0] * 10)), rate_of(once([1.0] * 10))
    assert nothing.low == 0.0
    assert nothing.high == pytest.approx(Z_95**2 / (10 + Z_95**2))
    assert everything.high == 1.0
    assert everything.low == pytest.approx(1 - nothing.high)


def test_graded_interval_is_wider_than_the_normal_one():
    """0.4 and 0.6 in equal parts: the standard error is 0.1 / sqrt(n), far below Wilson's."""
    rate = rate_of(once([0.4, 0.6] * 50))
    assert rate.high - rate.low > 2 * Z_95 * 0.1 / math.sqrt(100)


def test_nothing_scored_is_an_error():
    for values in ({}, once([None]), {"a": {}}):
        with pytest.raises(ValueError, match="at least one value"):
            rate_of(values)
    with pytest.raises(ValueError, match="at least one value"):
        rate_over_groups([once([1.0]), {}])
    for value in (1.5, -0.1, math.nan):
        with pytest.raises(ValueError, match="between 0 and 1"):
            rate_of(once([0.5, value]))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=60))
def test_one_seed_is_wilson(values):
    rate = rate_of(once(values))
    assert (rate.low, rate.high) == wilson(rate.value, len(values))
    assert rate.value == pytest.approx(math.fsum(values) / len(values), abs=1e-12)
    assert 0 <= rate.low <= rate.value + 1e-12 and rate.value - 1e-12 <= rate.high <= 1


def test_unscored_cases_are_counted_and_in_no_rate():
    rate = rate_of({"a": {0: 1.0, 1: None}, "b": {0: 0.0, 1: 0.0}, "c": {0: None, 1: None}})
    assert (rate.value, rate.n, rate.num_seeds, rate.num_unscored) == (0.5, 2, 2, 3)


def test_means_are_exact():
    """Ten times 0.1 are 1, and three thirds are 1, whatever floats make of them."""
    assert rate_of(once([0.1, 0.2, 0.3, 0.4])).exact == Fraction(1, 4)
    assert exactly(True) == 1 and exactly(1e-7) == Fraction(1, 10**7)
    thirds = [Fraction(1, 3), Fraction(2, 3), Fraction(0)]
    assert rate_of(once(thirds)).exact == Fraction(1, 3)
    assert rate_of(by_seed([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0]])).exact == Fraction(1, 2)


# --- several seeds --------------------------------------------------------------------------------


@pytest.mark.parametrize("num_hits", [0, 6, 20])
def test_seeds_that_always_agree_add_nothing(num_hits):
    rows = [[float(i < num_hits)] * 4 for i in range(20)]
    several, one = rate_of(by_seed(rows)), rate_of(once([row[0] for row in rows]))
    assert (several.low, several.high) == pytest.approx((one.low, one.high))
    assert (several.n, several.num_seeds) == (20, 4)


def test_cases_and_seeds_by_hand():
    """Four cases, three seeds: 110, 100, 111, 000; per-seed rates 3/4, 1/2, 1/4.

    Mean 1/2; cases: Wilson's 0.349965 to either side (`test_half_of_four_by_hand`). Seeds: standard
    deviation 1/4 over sqrt(3), times 4.302653 for two degrees of freedom = 0.621035. Together
    sqrt(0.122476 + 0.385684) = 0.712853, which [0, 1] cuts; with half of it in 0.1 steps:
    """
    found = rate_of(by_seed([[1, 1, 0], [1, 0, 0], [1, 1, 1], [0, 0, 0]]))
    assert (found.value, found.low, found.high) == (0.5, 0.0, 1.0)
    length = seed_length([by_seed([[1, 1, 0], [1, 0, 0], [1, 1, 1], [0, 0, 0]])])
    assert length == pytest.approx(0.25 / math.sqrt(3) * stats.t.ppf(0.975, 2))
    assert length == pytest.approx(0.621035, abs=1e-5)
    milder = rate_of(by_seed([[0.55, 0.5, 0.45]] * 4))
    half = math.hypot(0.349965, 0.05 / math.sqrt(3) * 4.302653)
    assert (milder.low, milder.high) == pytest.approx((0.5 - half, 0.5 + half), abs=1e-5)


def test_two_seeds_that_move_all_cases_say_nothing():
    """Ten cases, seed 0 hits them all and seed 1 none. The cases alone would not show it."""
    found = rate_of(by_seed([[1.0, 0.0]] * 10))
    assert (found.value, found.low, found.high) == (0.5, 0.0, 1.0)
    assert rate_of(once([0.5] * 10)).low > 0.2


def test_a_case_with_fewer_seeds_counts_in_the_rate():
    """Means 1/2, 1/2 and 1 give 2/3. Deviations from the case means are +1/2 for seed 0 and -1/2
    for seed 1 in the cases that have both, a standard deviation of sqrt(1/2); seed 0 has the share
    1/2 * 2/3 + 1/3 = 2/3 of the mean, seed 1 1/3. One degree of freedom: 12.7062."""
    values = {"a": {0: 1.0, 1: 0.0}, "b": {0: 1.0, 1: 0.0}, "c": {0: 1.0}}
    assert rate_of(values).value == pytest.approx(2 / 3)
    expected = 12.7062 * math.sqrt(1 / 2) * math.hypot(2 / 3, 1 / 3)
    assert seed_length([values]) == pytest.approx(expected, rel=1e-5)
    assert seed_length([{"a": {0: 1.0}, "b": {1: 0.0}}]) == 0.0, "seeds and cases are one"


@given(st.permutations(range(6)), st.permutations(range(3)))
def test_order_of_cases_and_seeds_does_not_matter(cases, seeds):
    rows = np.random.default_rng(0).integers(0, 2, (6, 3)).tolist()
    expected = rate_of(by_seed(rows))
    found = rate_of({str(c): {s: rows[c][s] for s in seeds} for c in cases})
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.exact == expected.exact


# --- groups and clusters --------------------------------------------------------------------------


def test_groups_weigh_alike():
    """One task of 1 case solved, one of 3 with 2 solved: (1 + 2/3) / 2 = 5/6 on 4 / (1 + 1/3) = 3
    effective cases."""
    found = rate_over_groups([once([1.0]), once([1.0, 1.0, 0.0])])
    assert found.exact == Fraction(5, 6) and found.n == 4
    assert (found.low, found.high) == wilson(5 / 6, 3.0)
    one = once([1.0, 0.0, 1.0])
    assert rate_over_groups([one]) == rate_of(one)
    several = by_seed([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    assert rate_over_groups([several]) == rate_of(several)


def test_clusters_by_hand():
    """Clusters of 3, 2 and 1 cases: 36 / (9 + 4 + 1) = 18/7 effective cases. Equal clusters count
    as one case each, and clusters of one case are no clusters."""
    values = once(dict.fromkeys("abcdef", 1.0) | {"a": 0.0})
    found = rate_of(values, clusters=dict(zip("abcdef", "xxxyyz", strict=True)))
    assert (found.low, found.high) == pytest.approx(wilson(5 / 6, 18 / 7))
    assert (found.n, found.num_clusters) == (6, 3)
    single = rate_of(values, clusters={name: name for name in "abcdef"})
    assert (single.low, single.high) == wilson(5 / 6, 6)
    devices = rate_of(
        once([1.0] * 15 + [0.0] * 10), clusters={str(i): str(i // 5) for i in range(25)}
    )
    low, high = proportion.proportion_confint(3, 5, method="wilson")
    assert (devices.low, devices.high) == pytest.approx((low, high))


# --- coverage -------------------------------------------------------------------------------------


def simulated_coverage(num_cases, num_seeds, level, of_case, of_seed, *, graded=False, groups=None):
    """How often the interval holds the true rate in 400 runs, for hits whose log-odds are a level,
    plus something of the case (or of its cluster), plus something of the seed."""
    rng = np.random.default_rng(0)
    many = level + math.hypot(of_case, of_seed) * rng.standard_normal(200_000)
    truth = float((1 / (1 + np.exp(-many))).mean())
    clusters = None
    if groups is not None:
        clusters = {str(i): str(i % groups) for i in range(num_cases)}
    held = 0
    for _ in range(400):
        odds = level + of_case * rng.standard_normal((groups or num_cases, 1))
        odds = np.resize(odds, (num_cases, 1)) + of_seed * rng.standard_normal((1, num_seeds))
        shares = 1 / (1 + np.exp(-odds))
        hits = rng.binomial(4, shares) / 4 if graded else rng.random(shares.shape) < shares
        rate = rate_of(by_seed(hits.astype(float).tolist()), clusters=clusters)
        held += rate.low <= truth <= rate.high
    return held / 400


# With 400 runs the standard error of a coverage of 0.95 is 0.011.


@pytest.mark.parametrize(
    ("level", "of_case"), [(-4.0, 1.5), (-1.5, 0.0), (0.0, 1.5), (0.0, 6.0)], ids=str
)
@pytest.mark.parametrize(
    ("num_cases", "num_seeds", "graded"), [(5, 2, False), (20, 3, False), (20, 2, True)]
)
def test_coverage_while_seeds_are_noise(num_cases, num_seeds, level, of_case, graded):
    """From cases that decide everything (6) to none (0), from rare hits to every other one."""
    coverage = simulated_coverage(num_cases, num_seeds, level, of_case, 0.0, graded=graded)
    assert coverage >= 0.94


@pytest.mark.parametrize("of_seed", [0.5, 1.5])
@pytest.mark.parametrize(
    ("num_cases", "num_seeds", "graded"),
    [(100, 2, False), (100, 3, False), (100, 5, False), (20, 3, True)],
)
def test_coverage_where_a_seed_moves_all_cases(num_cases, num_seeds, of_seed, graded):
    """Wilson over the case means alone covers as little as 0.41 here."""
    coverage = simulated_coverage(num_cases, num_seeds, 0.0, 1.5, of_seed, graded=graded)
    assert coverage >= 0.92


@pytest.mark.parametrize("num_seeds", [1, 3])
@pytest.mark.parametrize("of_cluster", [1.5, 4.0])
def test_coverage_of_five_clusters(of_cluster, num_seeds):
    """25 objects of 5 devices; without the clusters 0.6 to 0.7."""
    assert simulated_coverage(25, num_seeds, 0.0, of_cluster, 0.0, groups=5) >= 0.94


# --- in words -------------------------------------------------------------------------------------


def test_one_format_of_a_rate():
    half = rate_of(once([1.0, 0.0, 1.0, 0.0]))
    assert format_rate(half) == "0.50 (0.15 to 0.85)"
    assert format_rate(half, with_n=True) == str(half) == "0.50 (0.15 to 0.85, n=4)"
    assert format_rate(None) == "-"
    twins = rate_of(once([1.0, 0.0]), clusters={"0": "x", "1": "x"})
    assert str(twins) == "0.50 (0.05 to 0.95, n=2 in 1 clusters)"
    assert format_rate(Interval(0.5, 1, math.nan, math.nan), with_n=True) == "0.50 (n=1)"
    assert format_rate(Interval(0.5, 1, math.nan, math.nan)) == "0.50"


def test_nothing_has_no_minus_sign():
    for value in (-0.0, -0.001, 0.0, 0.004):
        assert format_value(value) == "0.00"
        assert format_value(value, signed=True) == "+0.00"
    assert format_value(-0.006, signed=True) == "-0.01"
    assert format_interval(Interval(0.0, 5, -0.004, 0.5), signed=True) == "+0.00 to +0.50"
