"""Rates with their number of cases and a 95 % interval.

One interval serves everything: Wilson's score interval (Wilson 1927, JASA 22:209), written for a
mean `p` of `n` independent values. For yes-or-no values it is the usual one. For graded values in
[0, 1] it is conservative, because their variance is never larger than `p (1 - p)`, that of a
yes-or-no value with the same mean. It was preferred to the bootstrap, whose interval shrinks to a
point when all values agree: 0 of 40 would read as "certainly 0".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

Z_95 = 1.959963984540054
"""Two-sided 95 % quantile of the standard normal distribution."""

INTERVAL_STATEMENT = (
    "95 % Wilson score interval over n independent cases; for graded values in [0, 1] it is "
    "conservative, because their variance is at most that of a yes-or-no value of the same mean"
)


@dataclass(frozen=True)
class Rate:
    """A mean of `n` values in [0, 1] with its 95 % Wilson interval from `low` to `high`."""

    rate: float
    n: int
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.rate:.2f} [{self.low:.2f}, {self.high:.2f}] (n={self.n})"


def rate_of(values: Sequence[float | bool]) -> Rate:
    """The mean of independent values in [0, 1] and how far it can be trusted.

    >>> rate_of([True] * 8 + [False] * 2)
    Rate(rate=0.8, n=10, low=0.4901..., high=0.9433...)
    """
    if not values:
        raise ValueError("a rate needs at least one value; none of the cases was scored")
    numbers = [float(value) for value in values]
    if not all(0.0 <= number <= 1.0 for number in numbers):
        raise ValueError("a rate is a mean of values between 0 and 1")
    mean = math.fsum(numbers) / len(numbers)
    low, high = wilson(mean, len(numbers))
    return Rate(mean, len(numbers), low, high)


def wilson(mean: float, n: float | int) -> tuple[float, float]:
    """The 95 % interval of a mean of `n` independent values in [0, 1]; an effective number of them
    need not be whole."""
    centre = (mean + Z_95**2 / (2 * n)) / (1 + Z_95**2 / n)
    half = Z_95 / (1 + Z_95**2 / n) * math.sqrt(mean * (1 - mean) / n + Z_95**2 / (4 * n**2))
    # In exact arithmetic the ends touch 0 and 1 there; rounding would leave them a hair outside.
    low = 0.0 if mean == 0.0 else max(0.0, centre - half)
    high = 1.0 if mean == 1.0 else min(1.0, centre + half)
    return low, high
