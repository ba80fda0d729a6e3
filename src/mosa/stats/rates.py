"""Rates with their number of cases and a 95 % interval, and the one way to write them.

A value in [0, 1] belongs to a case (a behavior, a question) and a seed: `values[case][seed]`. One
function turns them into a rate, and its interval has two parts:

1. Cases. Wilson's score interval (Wilson 1927, JASA 22:209) of a mean over n cases, or, where cases
   come in clusters, over Kish's effective number of clusters (Kish 1965, Survey Sampling, 5.4),
   n^2 / sum of squared cluster sizes: that of cases which agree within their cluster. A case counts
   with its mean over seeds. The interval is conservative for graded values, since their variance is
   at most that of yes-or-no values with the same mean, and where the cases of a cluster differ.
2. Seeds, where there are several. A seed can move all cases alike (one random suffix for all
   requests, one training of the model), which does not average out over cases. The rates of the
   seeds are independent of each other, so that Student's t interval over them covers this.

The two parts add up as squares of their lengths to either side (Zou and Donner 2008, Statistics in
Medicine 27:1693). With one seed the interval is Wilson's, and says nothing about other seeds.

Coverage, simulated at 5, 20 and 100 cases with 2, 3, 5 and 10 seeds, yes-or-no and graded values,
rare and common hits (tests/stats/test_rates.py repeats a part): 0.96 or more while seeds only add
noise to single cases; 0.97 or more where they move all cases moderately (standard deviation 0.5 on
the logit); 0.92 to 0.99 where they move them strongly (1.5), and 0.90 at worst, with 3 seeds, 100
cases that differ in nothing else and a rate of 0.2. Five clusters: 0.97 or more. The price is
width: two seeds have one degree of freedom (a quantile of 12.7), so they say little; take three at
least, better five.

Wilson's interval was preferred to the bootstrap, whose interval is a point when all values agree: 0
of 40 would read as "certainly 0".
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction

Z_95 = 1.959963984540054
"""Two-sided 95 % quantile of the standard normal distribution."""

INTERVAL_STATEMENT = (
    "95 % interval: Wilson's score interval over n independent cases (conservative for graded "
    "values in [0, 1]), widened by Student's t over the seeds where there are several"
)

Value = float | int | Fraction
"""A value in [0, 1]; a fraction where it is itself a mean."""
Values = Mapping[str, Mapping[int, Value | None]]
"""By case, then by seed; None where no judge could score it."""

NOTHING = "-"
"""What a table shows where there is no figure."""


@dataclass(frozen=True)
class Interval:
    """A figure with its number of independent cases and its 95 % interval."""

    value: float
    n: int
    """Cases with a value."""
    low: float
    high: float

    def __str__(self) -> str:
        return format_rate(self, with_n=True)


@dataclass(frozen=True)
class Rate(Interval):
    """A mean of values in [0, 1] over cases."""

    num_seeds: int = 1
    num_unscored: int = 0
    """Cases without a value, counted once for each seed; they are not in the rate."""
    num_clusters: int | None = None
    """Groups of cases that are not independent; None where every case is."""
    exact: Fraction | None = field(default=None, compare=False)
    """The rate without rounding; None where it is not a mean of recorded values."""

    def record(self) -> dict[str, float | int | None]:
        """Only the figures, for JSON; the value is called `rate`."""
        figures = {
            name: value for name, value in vars(self).items() if name not in ("value", "exact")
        }
        return {"rate": self.value, **figures}


# --- one rate -------------------------------------------------------------------------------------


def once(values: Sequence[Value | None] | Mapping[str, Value | None]) -> Values:
    """Values of cases that were each tried once, named or not, as `rate_of` takes them."""
    named = values if isinstance(values, Mapping) else {str(i): v for i, v in enumerate(values)}
    return {case: {0: value} for case, value in named.items()}


def rate_of(values: Values, *, clusters: Mapping[str, str] | None = None) -> Rate:
    """The mean over cases of each case's mean over its seeds, with the interval described above.

    `clusters` names the cluster of each case, where cases are not independent. Raises ValueError
    where no case has a value, and for values outside of [0, 1].

    >>> rate_of(once([True] * 8 + [False] * 2))
    Rate(value=0.8, n=10, low=0.4901..., high=0.9433..., ..., exact=Fraction(4, 5))
    """
    means = case_means(values)
    if clusters is None:
        return _rate([values], [means], len(means))
    sizes = Counter(clusters[case] for case in means)
    effective = len(means) ** 2 / max(1, sum(size**2 for size in sizes.values()))
    return replace(_rate([values], [means], effective), num_clusters=len(sizes))


def rate_over_groups(groups: Sequence[Values]) -> Rate:
    """The mean of the rates of groups of cases (useful tasks), each of which weighs alike.

    `n` counts all cases; Wilson's interval is over Kish's effective number of them, the square of
    the number of groups over the sum of 1 / (cases of a group). With one group it is `rate_of`.
    Raises ValueError as `rate_of` does.
    """
    means = [case_means(values) for values in groups]
    effective = len(groups) ** 2 / sum(1 / max(1, len(of_group)) for of_group in means)
    return _rate(groups, means, effective)


def _rate(
    groups: Sequence[Values], means: Sequence[Mapping[str, Fraction]], effective: float | int
) -> Rate:
    if not all(means):
        raise ValueError("a rate needs at least one value; none of the cases was scored")
    exact = mean_of([mean_of(of_group.values()) for of_group in means])
    rate = float(exact)
    low, high = wilson(rate, effective)
    length = seed_length(groups)
    if length > 0:
        low = max(0.0, rate - math.hypot(rate - low, length))
        high = min(1.0, rate + math.hypot(high - rate, length))
    entries = [item for values in groups for by_seed in values.values() for item in by_seed.items()]
    return Rate(
        rate,
        sum(map(len, means)),
        low,
        high,
        num_seeds=len({seed for seed, value in entries if value is not None}),
        num_unscored=sum(value is None for _, value in entries),
        exact=exact,
    )


def wilson(mean: float, n: float | int) -> tuple[float, float]:
    """Wilson's 95 % interval of a mean of `n` independent values in [0, 1]; an effective number of
    them need not be whole."""
    centre = (mean + Z_95**2 / (2 * n)) / (1 + Z_95**2 / n)
    half = Z_95 / (1 + Z_95**2 / n) * math.sqrt(mean * (1 - mean) / n + Z_95**2 / (4 * n**2))
    # In exact arithmetic the ends touch 0 and 1 there; rounding would leave them a hair outside.
    low = 0.0 if mean == 0.0 else max(0.0, centre - half)
    high = 1.0 if mean == 1.0 else min(1.0, centre + half)
    return low, high


def seed_length(groups: Sequence[Values]) -> float:
    """Half of Student's 95 % interval of the mean over seeds; 0 with fewer than two
    comparable seeds.

    Where every case has every seed, it is that of the seeds' rates. A case that lacks some counts
    with its deviations from its own mean, so that which cases a seed has does not matter. Groups
    weigh alike, as in `rate_over_groups`.
    """
    shares: dict[int, float] = defaultdict(float)
    known: dict[int, float] = defaultdict(float)
    sums: dict[int, float] = defaultdict(float)
    for values in groups:
        rows = [row for row in map(scored, values.values()) if row]
        for row in rows:
            weight = 1 / (len(groups) * len(rows))
            mean = math.fsum(row.values()) / len(row)
            for seed, value in row.items():
                shares[seed] += weight / len(row)
                if len(row) > 1:
                    known[seed] += weight
                    sums[seed] += weight * (value - mean)
    if len(known) < 2:
        return 0.0
    effects = [sums[seed] / known[seed] for seed in known]
    centre = math.fsum(effects) / len(effects)
    variance = math.fsum((effect - centre) ** 2 for effect in effects) / (len(effects) - 1)
    from scipy.special import stdtrit  # a fifth of a second, which one seed does not need

    quantile = float(stdtrit(len(effects) - 1, 0.975))
    return quantile * math.sqrt(variance) * math.hypot(*shares.values())


def scored(by_seed: Mapping[int, Value | None]) -> dict[int, float]:
    """A case's values by seed, rounded, without those that no judge could score."""
    return {seed: float(value) for seed, value in by_seed.items() if value is not None}


# --- exact means ----------------------------------------------------------------------------------


def exactly(value: Value) -> Fraction | int:
    """A recorded value without rounding: the decimal that Python writes for it.

    >>> exactly(0.1) + exactly(0.2)
    Fraction(3, 10)
    """
    if isinstance(value, Fraction):
        return value
    whole = int(value)
    return whole if whole == value else Fraction(repr(float(value)))


def mean_of(values: Collection[Fraction | int]) -> Fraction:
    """The mean without rounding."""
    return Fraction(sum(values)) / len(values)


def case_means(values: Values) -> dict[str, Fraction]:
    """Each scored case's mean over its seeds, without rounding; ValueError outside of [0, 1]."""
    means = {}
    for case, by_seed in values.items():
        known = [value for value in by_seed.values() if value is not None]
        if not all(0 <= value <= 1 for value in known):
            raise ValueError("a rate is a mean of values between 0 and 1")
        if known:
            means[case] = mean_of([exactly(value) for value in known])
    return means


# --- in words -------------------------------------------------------------------------------------


def format_value(value: float | int, *, digits: int = 2, signed: bool = False) -> str:
    """A figure; a change, which is signed, of nothing is +0.00 and never -0.00."""
    return format(value, f"{'+' if signed else ''}z.{digits}f")


def format_interval(found: Interval, *, digits: int = 2, signed: bool = False) -> str:
    """Both ends; "" where a single case gives none.

    >>> format_interval(Interval(-0.1, 9, -0.2, -0.001))
    '-0.20 to 0.00'
    """
    if not (math.isfinite(found.low) and math.isfinite(found.high)):
        return ""
    low, high = (format_value(end, digits=digits, signed=signed) for end in (found.low, found.high))
    return f"{low} to {high}"


def format_rate(
    found: Interval | None,
    *,
    with_n: bool = False,
    digits: int = 2,
    signed: bool = False,
) -> str:
    """A figure with its interval, as every table writes it; `NOTHING` for None.

    >>> format_rate(rate_of(once([1.0, 0.0, 0.0, 1.0])), with_n=True)
    '0.50 (0.15 to 0.85, n=4)'
    """
    if found is None:
        return NOTHING
    parts = [format_interval(found, digits=digits, signed=signed)]
    if with_n:
        clusters = found.num_clusters if isinstance(found, Rate) else None
        parts.append(f"n={found.n}" + (f" in {clusters} clusters" if clusters else ""))
    inside = ", ".join(part for part in parts if part)
    value = format_value(found.value, digits=digits, signed=signed)
    return f"{value} ({inside})" if inside else value


def format_rate_shortly(found: Interval | None, *, signed: bool = False) -> str:
    """A figure with its interval where room is short.

    >>> format_rate_shortly(rate_of(once([1.0, 0.0, 0.0, 1.0])))
    '0.50 [.15-.85]'
    >>> format_rate_shortly(Interval(0.05, 9, -0.02, 0.121), signed=True)
    '+0.05 [-.02,+.12]'
    """
    if found is None:
        return NOTHING
    value = format_value(found.value, signed=signed)
    if not format_interval(found):
        return value
    is_signed = signed or found.low < 0  # so that a minus and a dash are not mixed up
    low, high = (
        re.sub(r"^([+-]?)0\.", r"\1.", format_value(end, signed=is_signed))
        for end in (found.low, found.high)
    )
    return f"{value} [{low}{',' if is_signed else '-'}{high}]"


def format_p(p_value: float | None) -> str:
    """A p value, as every table and sentence writes it; `NOTHING` for None.

    >>> format_p(6e-08), format_p(0.0421)
    ('<0.001', '0.042')
    """
    if p_value is None:
        return NOTHING
    return "<0.001" if p_value < 0.001 else f"{p_value:.3f}"
