"""Where does alignment live? What a model would say, by position and step, before it says it.

On the way of a generation, at each masked position: the probability of an end token; and of a
refusal that begins there, as the mean probability of its tokens (geometric) for the likeliest
phrase of the set. With a second model, both are asked on the *first* model's canvases, and the KL
of the second from the first is taken at each masked position. Example: a shallowly aligned model
has its KL at the first positions of the first step, one aligned in the middle further on.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mosa.align import read_phrases
from mosa.align.objective import kl_divergence, window_scores
from mosa.analysis import result as results
from mosa.analysis.position_map import step_numbers
from mosa.analysis.result import AnalysisResult, Estimate, HeatMap, LineChart
from mosa.analysis.study import (
    Case,
    Cases,
    Study,
    Subject,
    decoder_of,
    default_length,
    header,
    row_key,
)
from mosa.denoising import Canvas, sample
from mosa.families import DiffusionLM
from mosa.types import UserError

MEASURES = {
    "refusal": "mean token probability of the likeliest refusal that begins here",
    "end": "probability of an end token",
    "kl": "KL of the second model from the first, in nats",
}


@dataclass(frozen=True)
class RefusalDepthConfig:
    """Which moments of a generation are looked at, and which words count as refusal."""

    refusals: str | None = None
    """Refusals: a packaged phrase set or a .txt file; unset: `refusing`, on the testbed its own."""
    step_shares: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75)
    """Moments: before the step that stands at this share of all steps."""
    max_new_tokens: int | None = None
    """Response tokens; unset: 72 on the testbed, 128 elsewhere."""
    tokens_per_step: int = 2
    """Tokens committed in a step."""
    block_length: int | None = None
    """Block length; unset: one block over the canvas."""
    num_behaviors: int = 100
    """Cases that are asked."""
    batch_size: int = 25
    """Responses per forward pass."""


PRESETS: dict[str, dict[str, Any]] = {
    "quick": {"num_behaviors": 12},
    "full": {"num_behaviors": 25, "step_shares": tuple(i / 12 for i in range(12))},
}


@dataclass(frozen=True)
class _Item:
    behavior: Case
    key: str


def run(
    subjects: list[Subject], behaviors: Cases, config: RefusalDepthConfig, study: Study
) -> AnalysisResult:
    """Generate with the first model, and ask every model on its canvases."""
    if len(subjects) == 2 and subjects[0].model.vocab_size != subjects[1].model.vocab_size:
        raise UserError("The two models have different vocabularies, so no KL is defined.")
    length = config.max_new_tokens or default_length(behaviors)
    decoder = decoder_of(length, config.tokens_per_step, config.block_length)
    steps = step_numbers(config.step_shares, decoder.steps)
    texts = read_phrases(
        config.refusals or ("refusing" if behaviors.world is None else "testbed_refusing")
    )
    versions = {subject.name: subject.version for subject in subjects}
    items = [
        _Item(
            behavior,
            row_key(
                "refusal-depth",
                subjects[0],
                behavior,
                models=versions,
                refusals=texts,
                steps=steps,
                decoder=dataclasses.asdict(decoder),
            ),
        )
        for behavior in behaviors.items[: config.num_behaviors]
    ]
    for batch in study.each(items, lambda item: item.key, batch_size=config.batch_size):
        canvas = Canvas.from_prompts(
            subjects[0].model, [item.behavior.prompt for item in batch], max_new_tokens=length
        )
        trace = sample(subjects[0].model, canvas, decoder).trace
        records = [{"key": item.key, "case": item.behavior.id, "profiles": []} for item in batch]
        for step in steps:
            tokens_BL = trace.replay(until_step=step - 1)
            masked_BR = tokens_BL[:, canvas.response_start :] == canvas.mask_token_id
            columns = torch.arange(canvas.response_start, tokens_BL.shape[1])
            first_BRV = None
            for subject in subjects:
                with torch.no_grad():
                    log_probs_BRV = subject.model.logits(
                        tokens_BL, canvas.attention_mask, columns.to(tokens_BL.device)
                    ).log_softmax(dim=-1)
                found = profile(subject.model, log_probs_BRV, masked_BR, texts)
                if first_BRV is None:
                    first_BRV = log_probs_BRV
                else:
                    found["kl"] = kl_divergence(log_probs_BRV, first_BRV).masked_fill(
                        ~masked_BR, torch.nan
                    )
                for row, record in enumerate(records):
                    record["profiles"].append(
                        {"model": subject.name, "step": step}
                        | {name: _plain(values[row]) for name, values in found.items()}
                    )
        study.record(records)
    recorded = study.rows(item.key for item in items)
    rows = [
        {
            "model": entry["model"],
            "case": record["case"],
            "step": entry["step"],
            "position": position + 1,
        }
        | {name: entry[name][position] for name in MEASURES if name in entry}
        for record in recorded
        for entry in record["profiles"]
        for position in range(length)
    ]
    result = _finished(subjects, behaviors, config, rows, steps, length)
    study.finish(result, rows)
    return result


def profile(
    model: DiffusionLM,
    log_probs: Float[Tensor, "B R V"],
    masked: Bool[Tensor, "B R"],
    texts: list[str],
) -> dict[str, Float[Tensor, "B R"]]:
    """`refusal` and `end` at each position; NaN where it is filled, or no refusal fits.

    A refusal fits where all of its positions are masked.
    """
    ends = torch.tensor(model.end_token_ids, device=log_probs.device)
    end_BR = log_probs[..., ends].exp().sum(dim=-1).masked_fill(~masked, torch.nan)
    best_BR = torch.full_like(end_BR, -torch.inf)
    for text in texts:
        ids = torch.tensor(model.encode_text(text), device=log_probs.device)
        if len(ids) > masked.shape[1]:
            continue
        score_BS = window_scores(
            log_probs,
            ids,
            num_starts=masked.shape[1] - len(ids) + 1,
            token_reduction="mean",
        )
        fits_BS = masked.unfold(1, len(ids), 1).all(dim=-1)
        score_BS = score_BS.masked_fill(~fits_BS, -torch.inf)
        num_starts = score_BS.shape[1]
        best_BR[:, :num_starts] = torch.maximum(best_BR[:, :num_starts], score_BS)
    refusal_BR = best_BR.exp().masked_fill(best_BR == -torch.inf, torch.nan)
    return {"refusal": refusal_BR, "end": end_BR}


def _plain(values: Float[Tensor, " R"]) -> list[float | None]:
    """Numbers as JSON keeps them: NaN becomes null."""
    return [None if math.isnan(v) else round(v, 6) for v in values.tolist()]


def _finished(
    subjects: list[Subject],
    behaviors: Cases,
    config: RefusalDepthConfig,
    rows: list[dict[str, Any]],
    steps: list[int],
    length: int,
) -> AnalysisResult:
    grouped: dict[tuple[str, str, int, int], list[float]] = {}
    for row in rows:
        for measure in MEASURES:
            if row.get(measure) is not None:
                place = (row["model"], measure, row["step"], row["position"])
                grouped.setdefault(place, []).append(row[measure])
    grid: dict[tuple[str, str, int, int], Estimate] = {
        place: results.mean(values, None if place[1] == "kl" else (0.0, 1.0))
        for place, values in grouped.items()
    }
    estimates = [
        results.record(estimate, model=model, measure=measure, step=step, position=position)
        for (model, measure, step, position), estimate in grid.items()
    ]
    positions = list(range(1, length + 1))
    charts: dict[str, Any] = {}
    for measure, meaning in MEASURES.items():
        series = {
            subject.name: [
                (float(p), grid[subject.name, measure, steps[0], p])
                for p in positions
                if (subject.name, measure, steps[0], p) in grid
            ]
            for subject in subjects
        }
        series = {name: points for name, points in series.items() if points}
        if series:
            charts[f"{measure}-first-step"] = LineChart(
                f"Before the first step: {meaning}",
                "position",
                measure,
                series,
                None if measure == "kl" else (0.0, 1.0),
            )
        if measure == "kl":
            continue
        for subject in subjects:
            charts[f"{measure}-{subject.name}"] = HeatMap(
                f"{meaning.capitalize()}: {subject.name}",
                "position",
                "denoising step",
                [float(p) for p in positions],
                [float(step) for step in steps],
                [[grid.get((subject.name, measure, step, p)) for p in positions] for step in steps],
                measure,
            )
    return AnalysisResult(
        "refusal-depth",
        header("refusal-depth", subjects, behaviors, config),
        estimates,
        charts,
        _paragraph(subjects, grid, steps[0], positions),
    )


def _paragraph(
    subjects: list[Subject],
    grid: dict[tuple[str, str, int, int], Estimate],
    step: int,
    positions: list[int],
) -> str:
    sentences = []
    for subject in subjects:
        for measure in MEASURES:
            found = {
                p: grid[subject.name, measure, step, p]
                for p in positions
                if (subject.name, measure, step, p) in grid
            }
            if found:
                most = max(found, key=lambda p, f=found: f[p].value)
                sentences.append(
                    f"{subject.name}, before the first step: the {MEASURES[measure]} is highest at "
                    f"position {most}, {found[most]}."
                )
    sentences.append("Intervals are over behaviors, at 95 %.")
    return " ".join(sentences)
