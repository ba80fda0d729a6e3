"""Content, presence, position or length: what the probe `position` distinguishes.

On a model that fills block after block it says the same by block.
"""

from __future__ import annotations

from typing import Any, Literal

from mosa.evidence.findings.base import (
    INTERVALS,
    Finding,
    Group,
    LineChart,
    Observation,
    Probed,
    cells_of,
    chart_name,
    difference,
    extremes,
    format_ends,
    points,
    rate,
    without_room,
)
from mosa.evidence.findings.blocks import in_several_blocks, with_blocks
from mosa.evidence.findings.sides import add_sides, row_of
from mosa.probes.position import PAPER_POSITIONS, POSITIONS
from mosa.stats.pairs import PairedDifference, holm
from mosa.stats.rates import Interval, Rate, format_rate

END_TOKENS = {"allow": "allowed", "forbid": "forbidden"}
SIGNIFICANT = 0.05
"""The adjusted p value below which a contrast counts as different from 0."""
PhrasePlace = tuple[str, int | None]
"""Kind of phrase, and position or block; None where nothing is written."""
FACTORS = ("phrase_type", "position")
X_LABELS = {
    "position": "position of the phrase's first token",
    "block": "block that the phrase's first token is in",
}
"""Where a phrase is written."""


def read(probed: Probed) -> None:
    """Rates by kind of phrase and position, and the contrasts between them."""
    finding = probed.finding
    groups = [with_blocks(probed, group) for group in probed.groups]
    finding.rows += [row_of(o, group) for group in groups for o in group.observations]
    settings = finding.header["settings"]
    is_paper = settings["paper"]
    overlays: dict[tuple[str, str, str], dict[str, list[tuple[float, Interval]]]] = {}
    for group in groups:
        for measure in group.measures:
            for end_tokens in group.levels("end_tokens"):
                alike = group.where(end_tokens=end_tokens)
                series = _add_places(finding, group, measure, end_tokens, alike, "position")
                own = [o for o in alike if o["block_length"] == 0]
                if in_several_blocks(own):
                    _add_places(finding, group, measure, end_tokens, own, "block")
                    finding.sentences += _sentences_by_block(group, measure, end_tokens, own)
                overlay = overlays.setdefault((group.case_set, measure, end_tokens), {})
                for kind in ("none", "procedural"):
                    if kind in series:
                        overlay[f"{kind}: {group.subject}"] = series[kind]
            label = f"{group.label}, {measure}"
            contrasts = {} if is_paper else contrasts_of(group, measure)
            if not contrasts:
                places = _by_place(group.observations, measure)
                finding.sentences.append(_rates(label, places))
                for (kind, position), figure in places.items():
                    where = kind if position is None else f"{kind} at {position}"
                    finding.add_key(label, where, figure)
                continue
            adjusted = holm({name: figure.p_value for name, figure in contrasts.items()})
            for name, figure in contrasts.items():
                of = group.of | {"measure": measure, "contrast": name}
                finding.add(figure, **of, p_value=figure.p_value, p_holm=adjusted[name])
                finding.add_key(label, name, figure, p_adjusted=adjusted[name])
            finding.sentences.append(_sentence_on_contrasts(label, contrasts, adjusted))
            num_clear = sum(p < SIGNIFICANT for p in adjusted.values())
            finding.key_sentences.append(
                f"{label}: {num_clear} of {len(adjusted)} differences have an adjusted p below "
                f"{SIGNIFICANT:g}."
            )
        add_sides(finding, group, FACTORS, "phrase")
        if is_paper or settings["positions"] is None:
            wanted = PAPER_POSITIONS if is_paper else POSITIONS
            finding.sentences += without_room(group, wanted)
    if len(finding.header["subjects"]) == 2:
        for (case_set, measure, end_tokens), series in overlays.items():
            title = "without a phrase and with a procedural one, end tokens "
            title += f"{END_TOKENS[end_tokens]}, on {case_set}"
            name = chart_name(measure, "both", case_set, "end tokens", end_tokens)
            finding.charts[name] = _chart(title, measure, series)
    finding.sentences.append(
        "This is the paper's protocol: kind of phrase and position change together, so the figures "
        "do not say which of them matters."
        if is_paper
        else f"{INTERVALS} P values are those of sign flips over cases, adjusted by Holm's method."
    )


def _add_places(
    finding: Finding,
    group: Group,
    measure: str,
    end_tokens: str,
    alike: list[Observation],
    where: Literal["position", "block"],
) -> dict[str, list[tuple[float, Interval]]]:
    """Adds the rate of each kind of phrase in each place, and their chart; gives the chart's
    lines."""
    places = _by_place(alike, measure, where)
    for (kind, place), figure in places.items():
        if where == "position" or place is not None:  # nothing written is told once
            of = {"end_tokens": end_tokens, "phrase_type": kind, where: place}
            finding.add(figure, **group.of, measure=measure, contrast="", **of)
    title = f"by forced phrase and its {where}, end tokens {END_TOKENS[end_tokens]}: {group.label}"
    series = {kind: _series(kind, places) for kind in dict.fromkeys(kind for kind, _ in places)}
    by_block = ["by block"] if where == "block" else []
    name = chart_name(measure, *by_block, group.label, "end tokens", end_tokens)
    finding.charts[name] = _chart(title, measure, series, X_LABELS[where])
    return series


def _sentences_by_block(
    group: Group, measure: str, end_tokens: str, observations: list[Observation]
) -> list[str]:
    """Between which of a model's own blocks a measure moves with each kind of phrase, as a sentence
    or none."""
    told = []
    for kind in group.levels("phrase_type"):
        written = [o for o in observations if o["phrase_type"] == kind]
        ends = None if kind == "none" else extremes(written, "block", measure)
        if ends is not None:
            told.append(f"with a {kind} phrase {format_ends('block', *ends)}")
    label = f"{group.label}, end tokens {END_TOKENS[end_tokens]}"
    return [f"{label}: {measure} {'; '.join(told)}."] * bool(told)


def contrasts_of(group: Group, measure: str) -> dict[str, PairedDifference]:
    """Differences within cases that separate content, presence, position and length."""
    kinds, positions = group.levels("phrase_type"), sorted(group.levels("position"))
    found: dict[str, PairedDifference | None] = {}

    def less(factor: str, second: Any, first: Any, **of: Any) -> PairedDifference | None:
        """The measure at the second level of a factor less that at the first."""
        a, b = (group.where(**of, **{factor: level}) for level in (first, second))
        return difference(a, b, measure)

    if "random" in kinds and "none" in kinds:
        found["presence: random - none"] = less("phrase_type", "random", "none")
    for kind in kinds:
        if kind not in ("none", "random") and "random" in kinds:
            found[f"content: {kind} - random"] = less("phrase_type", kind, "random")
    for kind in kinds:
        if kind != "none" and len(positions) > 1:
            last, first = positions[-1], positions[0]
            name = f"position of {kind}: {last} - {first}"
            found[name] = less("position", last, first, phrase_type=kind)
    for factor, title in (
        ("end_tokens", "length: end tokens"),
        ("block_length", "block length"),
        ("remasking", "remasking"),
    ):
        first, *others = group.levels(factor)
        for level in others:
            found[f"{title} {level} - {first}"] = less(factor, level, first)
    return {name: figure for name, figure in found.items() if figure is not None}


def _by_place(
    observations: list[Observation], measure: str, where: str = "position"
) -> dict[PhrasePlace, Rate | None]:
    """The rate of each kind of phrase at each position or in each block; other factors averaged."""
    cells = cells_of(observations, ("phrase_type", where))
    return {(kind, place): rate(found, measure) for (kind, place), found in cells.items()}


def _series(kind: str, places: dict[PhrasePlace, Rate | None]) -> list[tuple[float, Interval]]:
    """A kind's figures by place; `none` has no place and is a level line to compare with."""
    positions = sorted({p for _, p in places if p is not None})
    return points((float(p), places.get((kind, None if kind == "none" else p))) for p in positions)


def _chart(
    title: str,
    measure: str,
    series: dict[str, list[tuple[float, Interval]]],
    x_label: str = X_LABELS["position"],
) -> LineChart:
    return LineChart(f"{measure.capitalize()} {title}", x_label, measure, series, (0.0, 1.0))


def _rates(label: str, places: dict[PhrasePlace, Rate | None]) -> str:
    listed = ", ".join(
        f"{format_rate(figure, with_n=True)} at {position} ({kind})"
        for (kind, position), figure in places.items()
    )
    return f"{label} is {listed}."


def _sentence_on_contrasts(
    label: str, contrasts: dict[str, PairedDifference], adjusted: dict[str, float]
) -> str:
    """Which differences are distinct from 0, by p values adjusted for their number."""
    clear, unclear = [], []
    for what, figure in contrasts.items():
        (clear if adjusted[what] < SIGNIFICANT else unclear).append(f"{what} {figure}")
    sentences = []
    if clear:
        sentences.append(f"differences with an adjusted p below 0.05: {'; '.join(clear)}.")
    if unclear:
        sentences.append(f"Not told apart from 0: {'; '.join(unclear)}.")
    return f"{label}: {' '.join(sentences)}"
