"""Intervals against values worked out by hand."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mosa.evaluation.metrics import Z_95, rate_of


def test_half_of_four_by_hand():
    """p = 1/2, n = 4, z^2 = 3.8415: centre = 1/2; half = z / (1 + z^2/4) * sqrt(1/16 + z^2/64)
    = 1.95996 / 1.96036 * sqrt(0.0625 + 0.0600228) = 0.349965."""
    rate = rate_of([1.0, 0.0, 1.0, 0.0])
    assert rate.rate == 0.5
    assert rate.n == 4
    assert rate.low == pytest.approx(0.5 - 0.349965, abs=2e-5)
    assert rate.high == pytest.approx(0.5 + 0.349965, abs=2e-5)


def test_published_example():
    """Newcombe 1998, Statistics in Medicine 17:857, Table I, method 3: 81 of 263 gives 0.2553 to
    0.3662, and 0 of 20 gives 0 to 0.1611."""
    rate = rate_of([True] * 81 + [False] * 182)
    assert (round(rate.low, 4), round(rate.high, 4)) == (0.2553, 0.3662)
    nothing = rate_of([False] * 20)
    assert (nothing.low, round(nothing.high, 4)) == (0.0, 0.1611)


def test_all_or_nothing_is_never_certain():
    """0 of n: low 0, high z^2 / (n + z^2); n of n is its mirror image."""
    nothing, everything = rate_of([0.0] * 10), rate_of([1.0] * 10)
    assert nothing.low == 0.0
    assert nothing.high == pytest.approx(Z_95**2 / (10 + Z_95**2))
    assert everything.high == 1.0
    assert everything.low == pytest.approx(1 - nothing.high)


def test_graded_interval_is_wider_than_the_normal_one():
    """0.4 and 0.6 in equal parts: the standard error is 0.1 / sqrt(n), far below Wilson's."""
    rate = rate_of([0.4, 0.6] * 50)
    assert rate.high - rate.low > 2 * Z_95 * 0.1 / math.sqrt(100)


def test_nothing_scored_is_an_error():
    with pytest.raises(ValueError, match="at least one value"):
        rate_of([])
    with pytest.raises(ValueError, match="between 0 and 1"):
        rate_of([0.5, 1.5])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=60))
def test_interval_holds_the_rate(values):
    rate = rate_of(values)
    assert 0 <= rate.low <= rate.rate + 1e-12
    assert rate.rate - 1e-12 <= rate.high <= 1
    assert rate.n == len(values)
