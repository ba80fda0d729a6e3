"""What stands before and after words that a probe writes into a response: a refusal that is dropped
at them is told apart from one that holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from mosa.evidence.findings.base import Finding, Group, Observation, cells_of, rate
from mosa.judges.refusal import is_refusal
from mosa.stats.rates import format_rate

SIDES = ("refused_before", "refused_after", "refused_then_went_on")
TEXTS = {"text_before", "text_after"}


def row_of(observation: Observation, group: Group) -> dict[str, Any]:
    """An observation as a row, with what is said of its sides instead of their texts."""
    return observation.row(TEXTS) | sides_of(observation, group.refusals)


def sides_of(observation: Observation, refusals: Sequence[str]) -> dict[str, bool]:
    """Whether phrases of refusal, `refusals` among them, stand before the written words, after
    them, and before them in a response that then goes on without one; nothing where nothing was
    written."""
    if "text_before" not in observation.details:
        return {}
    before = is_refusal(observation["text_before"], refusals)
    after = is_refusal(observation["text_after"], refusals)
    went_on = before and not after and bool(observation["text_after"].strip())
    return dict(zip(SIDES, (before, after, went_on), strict=True))


def add_sides(finding: Finding, group: Group, factors: Sequence[str], written: str) -> None:
    """How often a refusal stands before what is `written` and is dropped at it (the paper's
    qualitative finding), which a judge of phrases counts as refused."""

    def side(measure: str) -> Callable[[Observation], float | None]:
        return lambda o: float(sides[o.key][measure]) if sides[o.key] else None

    sides = {o.key: sides_of(o, group.refusals) for o in group.observations}
    for measure in SIDES:
        for place, found in cells_of(group.observations, factors).items():
            of = dict(zip(factors, place, strict=True))
            finding.add(rate(found, side(measure)), **group.of, measure=measure, **of)
    later = [o for o in group.observations if sides[o.key] and o["position"] > 1]
    if not later:
        return
    shares = [format_rate(rate(later, side(measure)), with_n=True) for measure in SIDES]
    finding.sentences.append(
        f"{group.label}, where something precedes the {written}: responses with a refusal before "
        f"it are {shares[0]}, with one after it {shares[1]}, with one before it that go on without "
        f"any {shares[2]}."
    )
    went_on = [o for o in later if sides[o.key]["refused_then_went_on"]]
    if went_on and "score" in group.measures:
        told = format_rate(rate(went_on, "score"), with_n=True)
        finding.sentences.append(f"The score of those that go on is {told}.")
