"""How far prompts steer: what the probe `suffix` reached, and its effect."""

from __future__ import annotations

from mosa.evidence.findings.base import (
    INTERVALS,
    Finding,
    Group,
    LineChart,
    Observation,
    Probed,
    chart_name,
    difference,
    mean,
    per_case,
    points,
    rate,
    without_room,
)
from mosa.probes.suffix import POSITIONS
from mosa.stats.rates import Interval, format_rate

REACHED = ("in_place", "in_whole_canvas", "anywhere")
Lines = dict[str, list[tuple[float, Interval]]]


def read(probed: Probed) -> None:
    """Shares of responses with the phrase, losses, and the judge's measures before and after."""
    finding = probed.finding
    finding.rows += [o.row({"losses"}) for group in probed.groups for o in group.observations]
    reached: Lines = {}
    best: Lines = {}
    for group in probed.groups:
        curves: Lines = {}
        for method in group.levels("method"):
            if method != "none":
                _add_method(finding, group, method, reached, best, curves)
        if curves:
            finding.charts[chart_name("loss", group.label)] = LineChart(
                f"Loss of the optimised suffix: {group.label}",
                "iteration",
                "nats per target token",
                curves,
            )
        settings = finding.header["settings"]
        if settings["positions"] is None and not settings["paper"]:
            finding.sentences += without_room(group, POSITIONS)
    finding.charts["in-place"] = LineChart(
        "Phrase in its place, by position",
        "position of the phrase's first token (prompt: word)",
        "share of responses",
        reached,
        (0.0, 1.0),
    )
    if best:
        finding.charts["best-loss"] = LineChart(
            "Best loss by position",
            "position of the phrase's first token",
            "nats per target token",
            best,
        )
    finding.sentences.append(INTERVALS)


def _add_method(
    finding: Finding, group: Group, method: str, reached: Lines, best: Lines, curves: Lines
) -> None:
    plain = group.where(method="none")
    series = f"{group.label}, {method}"
    for position in dict.fromkeys(o["position"] for o in group.where(method=method)):
        here = group.where(method=method, position=position)
        of = {**group.of, "method": method, "position": position}
        shares = {name: rate(here, lambda o, n=name: float(o[n])) for name in REACHED}
        for name, figure in shares.items():
            finding.add(figure, **of, measure=name)
        told = f"{series}, {'token' if method == 'gcg' else 'word'} {position}: the phrase is "
        told += f"there in {format_rate(shares['in_place'], with_n=True)} of responses"
        at = f"{method}, position {position}"
        finding.add_key(group.label, f"{at}: phrase is there", shares["in_place"])
        for measure in group.measures:
            before, after = rate(plain, measure), rate(here, measure)
            change = difference(plain, here, measure)
            finding.add(before, **of, measure=f"{measure}_before")
            finding.add(after, **of, measure=f"{measure}_after")
            finding.add(change, **of, measure=f"{measure}_change")
            told += f"; {measure} goes from {format_rate(before)} to {format_rate(after)}"
            finding.add_key(group.label, f"{at}: change of {measure}", change)
        reached.setdefault(series, []).extend(points([(float(position), shares["in_place"])]))
        if method == "gcg":
            loss = mean(per_case((o.case, o["best_loss"]) for o in here).values())
            finding.add(loss, **of, measure="best_loss")
            best.setdefault(series, []).extend(points([(float(position), loss)]))
            told += f"; best loss {format_rate(loss)} nats a token"
            curves[f"position {position}"] = _curve(here)
        finding.sentences.append(f"{told}.")


def _curve(observations: list[Observation]) -> list[tuple[float, Interval]]:
    """The mean loss after each iteration."""
    length = min(len(o["losses"]) for o in observations)
    return points(
        (float(i), mean(per_case((o.case, o["losses"][i]) for o in observations).values()))
        for i in range(length)
    )
