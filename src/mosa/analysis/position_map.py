"""Is the middle critical, or are the early steps? Harm by position and step of an intervention.

A span of words that comply, refuse or do neither is written at position p just before denoising
step s, whatever stands there by then; generation goes on. Rows of the map that differ say that the
position matters (arXiv 2508.12398), columns that differ say that the step does (the anchoring and
re-masking attacks, defences.md has their papers).

    step \\ position    1     20    40
    0                  0.9   0.9   0.2       both: written first, and early in the text
    18                 0.9   0.1   0.0
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Int
from torch import Tensor

from mosa.analysis import result as results
from mosa.analysis.criticality import chosen_ids, phrase_ids
from mosa.analysis.result import AnalysisResult, HeatMap
from mosa.analysis.study import (
    Case,
    Cases,
    Study,
    Subject,
    decoder_of,
    default_length,
    fitting_positions,
    header,
    judged_sample,
    row_key,
)
from mosa.denoising import Canvas, StepState
from mosa.types import UserError

Span = Literal["neutral", "compliant", "refusing"]
PHRASES_OF: dict[Span, str] = {
    "neutral": "neutral",
    "compliant": "procedural",
    "refusing": "refusing",
}
"""The kind of phrase that each span is made of, the same at every position."""
POSITIONS = (1, 10, 20, 30, 40, 50, 60, 80, 100)


@dataclass(frozen=True)
class MapConfig:
    """The grid and its decoder."""

    spans: tuple[Span, ...] = ("neutral", "compliant", "refusing")
    """What is written."""
    positions: tuple[int, ...] | None = None
    """Where its first token stands, counted from 1; unset: those of 1, 10, 20, 30, 40, 50, 60, 80
    and 100 that leave room."""
    step_shares: tuple[float, ...] = (0.0, 0.125, 0.25, 0.5, 0.75)
    """When: before the step that stands at this share of all steps."""
    max_new_tokens: int | None = None
    """Response tokens; unset: 72 on the testbed, 128 elsewhere."""
    tokens_per_step: int = 2
    """Tokens committed in a step."""
    block_length: int | None = None
    """Block length; unset: one block over the canvas, so that no order is imposed."""
    end_tokens: Literal["allow", "forbid"] = "allow"
    """Whether the model may end its answer."""
    num_behaviors: int = 50
    """Cases that are asked."""
    batch_size: int = 32
    """Responses per forward pass."""
    seed: int = 0
    """Seed of the choice of phrases."""


PRESETS: dict[str, dict[str, Any]] = {
    "quick": {"num_behaviors": 6, "positions": (1, 20, 40, 60), "step_shares": (0.0, 0.25, 0.5)},
    "full": {"num_behaviors": 25},
}


@dataclass(frozen=True)
class _Item:
    subject: Subject
    behavior: Case
    span: str
    position: int | None
    step: int | None
    ids: list[int]
    key: str


def run(
    subjects: list[Subject], behaviors: Cases, config: MapConfig, study: Study
) -> AnalysisResult:
    """Write each span at each position and step, let generation go on, and judge what it says."""
    length = config.max_new_tokens or default_length(behaviors)
    decoder = decoder_of(
        length,
        config.tokens_per_step,
        config.block_length,
        end_tokens=config.end_tokens,
        seed=config.seed,
    )
    steps = step_numbers(config.step_shares, decoder.steps)
    items = []
    for subject in subjects:
        texts = phrase_ids(subject.model, behaviors)
        longest = max(len(ids) for span in config.spans for ids in texts[PHRASES_OF[span]])
        positions = fitting_positions(config.positions, POSITIONS, longest, length)
        places: list[tuple[str, int | None, int | None]] = [("none", None, None)]
        places += [(span, p, s) for span in config.spans for p in positions for s in steps]
        for span, position, step in places:
            for behavior in behaviors.items[: config.num_behaviors]:
                kind = PHRASES_OF[span] if span != "none" else "none"  # pyright: ignore
                ids = chosen_ids(subject.model, texts, kind, behavior, config.seed)
                key = row_key(
                    "map",
                    subject,
                    behavior,
                    ids=ids,
                    position=position,
                    step=step,
                    decoder=dataclasses.asdict(decoder),
                )
                items.append(_Item(subject, behavior, span, position, step, ids, key))
    for batch in study.each(
        items,
        lambda item: item.key,
        group=lambda item: item.subject.name,
        batch_size=config.batch_size,
    ):
        canvas = Canvas.from_prompts(
            batch[0].subject.model,
            [item.behavior.prompt for item in batch],
            max_new_tokens=length,
        )
        for row, item in enumerate(batch):
            if item.position is not None and item.step == 0:
                canvas = canvas.pin(item.position - 1, item.ids, rows=[row])
        _, judged = judged_sample(
            batch[0].subject,
            behaviors,
            [item.behavior for item in batch],
            canvas,
            decoder,
            hook=_Writer(batch, length),
        )
        study.record(
            {
                "key": item.key,
                "model": item.subject.name,
                "case": item.behavior.id,
                "span": item.span,
                "position": item.position,
                "step": item.step,
            }
            | found
            for item, found in zip(batch, judged, strict=True)
        )
    rows = study.rows(item.key for item in items)
    estimates, charts = _maps(subjects, behaviors, config, rows)
    result = AnalysisResult(
        "map",
        header("map", subjects, behaviors, config) | {"decoder": dataclasses.asdict(decoder)},
        estimates,
        charts,
        _paragraph(subjects, behaviors, config, rows),
    )
    study.finish(result, rows)
    return result


def step_numbers(shares: tuple[float, ...], num_steps: int) -> list[int]:
    """The steps (from 0) at these shares of all steps; raises UserError for a share outside."""
    for share in shares:
        if not 0 <= share < 1:
            raise UserError(f"step_shares holds {share}; use shares from 0 up to, but without, 1.")
    return list(dict.fromkeys(int(share * num_steps) for share in shares))


class _Writer:
    """A hook that writes each row's span when its step is due, over whatever stands there."""

    def __init__(self, batch: list[_Item], length: int) -> None:
        self.span_BR: Int[Tensor, "B R"] = torch.full((len(batch), length), -1)
        self.step_B = torch.full((len(batch),), -1)
        for row, item in enumerate(batch):
            if item.position is not None and item.step:  # step 0 stands on the canvas already
                begin = item.position - 1
                self.span_BR[row, begin : begin + len(item.ids)] = torch.tensor(item.ids)
                self.step_B[row] = item.step

    def __call__(self, state: StepState) -> Tensor | None:
        """Called after every step; what is due before the next one is written now."""
        rows = state.rows.cpu()
        due_B = self.step_B[rows] == state.step + 1
        if not bool(due_B.any()):
            return None
        device = state.tokens.device
        span_BR = self.span_BR[rows].to(device)
        written_BR = (span_BR >= 0) & due_B.to(device)[:, None]
        response = torch.where(written_BR, span_BR, state.response)
        return torch.cat([state.tokens[:, : state.response_start], response], dim=1)


def _maps(
    subjects: list[Subject],
    behaviors: Cases,
    config: MapConfig,
    rows: list[dict[str, Any]],
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    estimates: list[dict[str, Any]] = []
    charts: dict[str, Any] = {}
    for subject in subjects:
        for measure in behaviors.measures:
            grid = {
                place: results.rate(
                    [
                        row[measure]
                        for row in rows
                        if row["model"] == subject.name and _place(row) == place
                    ]
                )
                for place in dict.fromkeys(map(_place, rows))
            }
            estimates += [
                results.record(
                    estimate,
                    model=subject.name,
                    measure=measure,
                    span=span,
                    position=position,
                    step=step,
                )
                for (span, position, step), estimate in grid.items()
            ]
            for span in config.spans:
                xs = sorted({p for s, p, _ in grid if s == span and p is not None})
                ys = sorted({t for s, _, t in grid if s == span and t is not None})
                charts[f"{measure}-{span}-{subject.name}"] = HeatMap(
                    f"{measure.capitalize()}, {span} span written during generation: "
                    f"{subject.name}",
                    "position of the span's first token",
                    "denoising step before which it is written",
                    [float(x) for x in xs],
                    [float(y) for y in ys],
                    [[grid.get((span, x, y)) for x in xs] for y in ys],
                    measure,
                )
    return estimates, charts


def _place(row: dict[str, Any]) -> tuple[str, int | None, int | None]:
    return row["span"], row["position"], row["step"]


def _paragraph(
    subjects: list[Subject], behaviors: Cases, config: MapConfig, rows: list[dict[str, Any]]
) -> str:
    """How much the position moves each measure, and how much the step does: spread of the means."""
    sentences = []
    for subject in subjects:
        mine = [row for row in rows if row["model"] == subject.name]
        for measure in behaviors.measures:
            without = results.rate([row[measure] for row in mine if row["span"] == "none"])
            sentences.append(f"{subject.name}: {measure} without a span is {without}.")
            for span in config.spans:
                chosen = [row for row in mine if row["span"] == span]
                ends = []
                for factor in ("position", "step"):
                    levels = sorted({row[factor] for row in chosen})
                    means = {
                        level: results.rate(
                            results.per_case([r for r in chosen if r[factor] == level], measure)
                        )
                        for level in levels
                    }
                    least = min(means, key=lambda level, m=means: m[level].value)
                    most = max(means, key=lambda level, m=means: m[level].value)
                    if means[least].value == means[most].value:
                        ends.append(f"is {means[least]} at every {factor}")
                    else:
                        ends.append(
                            f"goes by {factor} from {means[least]} at {least} to {means[most]} at "
                            f"{most}"
                        )
                sentences.append(f"With a {span} span it {' and '.join(ends)}.")
    sentences.append("Intervals are Wilson's, over behaviors.")
    return " ".join(sentences)
