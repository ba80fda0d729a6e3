"""In which order are the positions of a response committed? (arXiv 2508.12398, experiment E3.)

The paper plots the mean position of newly committed tokens by step and finds a line. Its block
length is not stated, and blocks that are filled left to right give a line by construction; so every
condition here is compared with one block over the whole canvas, and order is also taken within
blocks. Example, four positions, one a step:

    committed in the order 1, 2, 3, 4     Kendall's tau  1, leftmost share 1
    committed in the order 4, 3, 2, 1     Kendall's tau -1, leftmost share 0.25 (the last one)
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Int
from scipy import stats

from mosa.analysis import result as results
from mosa.analysis.result import AnalysisResult, LineChart
from mosa.analysis.study import (
    Case,
    Cases,
    Study,
    Subject,
    decoder_of,
    default_length,
    header,
    judged_sample,
    load_cases,
    row_key,
)
from mosa.denoising import Canvas, DecoderConfig

MEASURES = {
    "kendall_tau": "Kendall's tau-b of position and step",
    "kendall_tau_in_block": "the same within each block, mean over blocks",
    "kendall_tau_text": "the same before the first end token",
    "spearman_rho": "Spearman's rank correlation of position and step",
    "slope": "slope of the mean position of new tokens by step, in positions per step",
    "r_squared": "share of that curve's variance that the line explains",
    "leftmost_share": "share of commits among the leftmost masks, as many as were committed",
    "spread": "standard deviation of the positions committed in one step, mean over steps",
    "end_from_right": "share of end tokens that were committed at the rightmost masks",
}
"""What is taken of each response; NaN where it is not defined (no end token, one commit)."""
BOUNDS: dict[str, results.Bounds] = {
    **dict.fromkeys(MEASURES, (0.0, 1.0)),
    **dict.fromkeys((name for name in MEASURES if name.startswith("kendall")), (-1.0, 1.0)),
    "spearman_rho": (-1.0, 1.0),
    "slope": None,
    "spread": None,
}
"""Between which values each measure lies."""


@dataclass(frozen=True)
class OrderConfig:
    """Conditions are the base settings with one of them changed at a time."""

    benign: str | None = None
    """Benign prompts to compare with: a file, or testbed:benign; unset: none, on the testbed its
    own."""
    max_new_tokens: int | None = None
    """Response tokens; unset: 72 on the testbed, 128 elsewhere."""
    tokens_per_step: tuple[int, ...] = (4,)
    """Tokens committed in a step; the first is the base."""
    block_lengths: tuple[int, ...] = (32,)
    """Block lengths beside the whole canvas, which is the base."""
    temperatures: tuple[float, ...] = (0.0,)
    """Sampling temperatures; the first is the base."""
    remaskings: tuple[str, ...] = ("low_confidence",)
    """Remasking rules; the first is the base."""
    canvas_lengths: tuple[int, ...] = ()
    """Further response lengths."""
    num_behaviors: int = 50
    """Cases, and benign prompts, that are asked."""
    batch_size: int = 25
    """Responses per forward pass."""
    seed: int = 0
    """Seed of draws above temperature 0."""


PRESETS: dict[str, dict[str, Any]] = {
    "quick": {"num_behaviors": 12, "block_lengths": (24,), "remaskings": ("low_confidence",)},
    "full": {
        "num_behaviors": 50,
        "tokens_per_step": (4, 1, 2, 8),
        "block_lengths": (8, 16, 24, 32, 64),
        "temperatures": (0.0, 0.7),
        "remaskings": ("low_confidence", "random", "topk_margin", "entropy"),
        "canvas_lengths": (48, 96),
    },
}


@dataclass(frozen=True)
class _Item:
    subject: Subject
    prompts: str
    condition: str
    decoder: DecoderConfig
    behavior: Case
    key: str


def run(
    subjects: list[Subject], behaviors: Cases, config: OrderConfig, study: Study
) -> AnalysisResult:
    """Sample every condition and measure the order of commits."""
    length = config.max_new_tokens or default_length(behaviors)
    source = config.benign or ("testbed:benign" if behaviors.world is not None else None)
    sets = {"behaviors": behaviors}
    if source is not None:
        sets["benign"] = load_cases(source, behaviors.model)
    named = conditions(config, length)
    items = [
        _Item(
            subject,
            prompts,
            condition,
            decoder,
            behavior,
            row_key(
                "order",
                subject,
                behavior,
                prompts=prompts,
                decoder=dataclasses.asdict(decoder),
            ),
        )
        for subject in subjects
        for prompts, chosen in sets.items()
        for condition, decoder in named.items()
        for behavior in chosen.items[: config.num_behaviors]
    ]
    for batch in study.each(
        items,
        lambda item: item.key,
        group=lambda item: (item.subject.name, item.prompts, item.condition),
        batch_size=config.batch_size,
    ):
        first = batch[0]
        asked = [item.behavior for item in batch]
        canvas = Canvas.from_prompts(
            first.subject.model,
            [behavior.prompt for behavior in asked],
            max_new_tokens=first.decoder.max_new_tokens,
        )
        sampled, judged = judged_sample(
            first.subject, sets[first.prompts], asked, canvas, first.decoder
        )
        steps_BR = sampled.trace.commit_step[:, canvas.response_start :].cpu().numpy()
        ends = np.asarray(first.subject.model.end_token_ids)
        is_end_BR = np.isin(sampled.tokens.cpu().numpy(), ends)
        study.record(
            {
                "key": item.key,
                "model": first.subject.name,
                "prompts": first.prompts,
                "condition": first.condition,
                "case": item.behavior.id,
            }
            | measures_of(steps, is_end, first.decoder.block_length)
            | found
            | {"curve": mean_positions(steps)}
            for item, steps, is_end, found in zip(batch, steps_BR, is_end_BR, judged, strict=True)
        )
    rows = study.rows(item.key for item in items)
    return _finished(subjects, behaviors, config, study, rows, list(named))


def conditions(config: OrderConfig, length: int) -> dict[str, DecoderConfig]:
    """The base decoder (one block over the canvas) and every change of one setting, by name."""
    per_step = config.tokens_per_step[0]
    base = decoder_of(
        length,
        per_step,
        temperature=config.temperatures[0],
        remasking=config.remaskings[0],
        seed=config.seed,
    )
    named = {"base": base}
    for block in config.block_lengths:
        if block < length:
            # A block needs a step at least, so short blocks may take more steps than the base.
            steps = max(base.steps, -(-length // block))
            named[f"block {block}"] = dataclasses.replace(base, block_length=block, steps=steps)
    for count in config.tokens_per_step[1:]:
        named[f"{count} tokens a step"] = dataclasses.replace(base, steps=-(-length // count))
    for temperature in config.temperatures[1:]:
        named[f"temperature {temperature:g}"] = dataclasses.replace(base, temperature=temperature)
    for remasking in config.remaskings[1:]:
        named[f"remasking {remasking}"] = dataclasses.replace(base, remasking=remasking)
    for other in config.canvas_lengths:
        named[f"canvas {other}"] = dataclasses.replace(
            base, max_new_tokens=other, steps=-(-other // per_step)
        )
    return named


def measures_of(
    steps: Int[np.ndarray, " R"], is_end: Bool[np.ndarray, " R"], block_length: int | None
) -> dict[str, float]:
    """Every measure of `MEASURES` for one response, from the step that committed each position."""
    positions = np.arange(1, len(steps) + 1)
    block = block_length or len(steps)
    in_block = [
        _tau(positions[start : start + block], steps[start : start + block])
        for start in range(0, len(steps), block)
    ]
    first_end = int(is_end.argmax()) if is_end.any() else len(steps)
    curve = mean_positions(steps)
    slope, r_squared = float("nan"), float("nan")
    if len(curve) > 1:
        line = stats.linregress([step for step, _ in curve], [mean for _, mean in curve])
        slope, r_squared = float(line.slope), float(line.rvalue) ** 2  # pyright: ignore
    leftmost, from_right, num_ends, spreads = 0, 0, 0, []
    for step in np.unique(steps):
        new = positions[steps == step]
        masked = positions[steps >= step]
        leftmost += int(np.isin(new, masked[: len(new)]).sum())
        ends = new[is_end[new - 1]]
        num_ends += len(ends)
        from_right += int(np.isin(ends, masked[-len(new) :]).sum())
        spreads.append(float(new.std()))
    return {
        "kendall_tau": _tau(positions, steps),
        "kendall_tau_in_block": _nan_mean(in_block),
        "kendall_tau_text": _tau(positions[:first_end], steps[:first_end]),
        "spearman_rho": _correlation(stats.spearmanr, positions, steps),
        "slope": slope,
        "r_squared": r_squared,
        "leftmost_share": leftmost / len(steps),
        "spread": float(np.mean(spreads)),
        "end_from_right": from_right / num_ends if num_ends else float("nan"),
    }


def mean_positions(steps: Int[np.ndarray, " R"]) -> list[tuple[int, float]]:
    """(step, mean 1-based position of what it committed) for each step that committed something."""
    positions = np.arange(1, len(steps) + 1)
    return [(int(step), float(positions[steps == step].mean())) for step in np.unique(steps)]


def _tau(positions: np.ndarray, steps: np.ndarray) -> float:
    return _correlation(stats.kendalltau, positions, steps)


def _correlation(of: Any, positions: np.ndarray, steps: np.ndarray) -> float:
    """NaN where all steps are one, so that there is no order."""
    if len(positions) < 2 or len(np.unique(steps)) < 2:
        return float("nan")
    return float(of(positions, steps).statistic)


def _nan_mean(values: list[float]) -> float:
    defined = [value for value in values if not np.isnan(value)]
    return float(np.mean(defined)) if defined else float("nan")


def _finished(
    subjects: list[Subject],
    behaviors: Cases,
    config: OrderConfig,
    study: Study,
    rows: list[dict[str, Any]],
    named: list[str],
) -> AnalysisResult:
    estimates, by_name = [], {}
    sets = list(dict.fromkeys(row["prompts"] for row in rows))
    for subject in subjects:
        for prompts in sets:
            for condition in named:
                chosen = _rows(rows, subject.name, prompts, condition)
                for measure in MEASURES:
                    values = [row[measure] for row in chosen if not np.isnan(row[measure])]
                    if not values:
                        continue
                    estimate = results.mean(values, BOUNDS[measure])
                    of = {"model": subject.name, "prompts": prompts, "condition": condition}
                    by_name[subject.name, prompts, condition, measure] = estimate
                    estimates.append(results.record(estimate, **of, measure=measure))
    if len(subjects) == 2:
        estimates += _changes(subjects, rows, sets, named)
    charts = {}
    for condition in ("base", *(name for name in named if name.startswith("block"))):
        series = {}
        for subject in subjects:
            for prompts in sets:
                by_step: dict[int, list[float]] = {}
                for row in _rows(rows, subject.name, prompts, condition):
                    for step, position in row["curve"]:
                        by_step.setdefault(step, []).append(position)
                series[f"{subject.name}, {prompts}"] = [
                    (float(step + 1), results.mean(by_step[step], None)) for step in sorted(by_step)
                ]
        title = "one block" if condition == "base" else f"blocks of {condition.split()[1]}"
        charts[f"order-{condition.replace(' ', '-')}"] = LineChart(
            f"Mean position of newly committed tokens, {title}", "step", "position", series
        )
    result = AnalysisResult(
        "order",
        header("order", subjects, behaviors, config),
        estimates,
        charts,
        _paragraph(subjects, sets, named, by_name, estimates),
    )
    study.finish(result, [{k: v for k, v in row.items() if k != "curve"} for row in rows])
    return result


def _changes(
    subjects: list[Subject],
    rows: list[dict[str, Any]],
    sets: list[str],
    named: list[str],
) -> list[dict[str, Any]]:
    """Each measure of the second model less that of the first, within prompts."""
    first, second = (subject.name for subject in subjects)
    changes = []
    for prompts in sets:
        for condition in named:
            pairs = list(
                zip(
                    _rows(rows, first, prompts, condition),
                    _rows(rows, second, prompts, condition),
                    strict=True,
                )
            )
            for measure in MEASURES:
                values = [b[measure] - a[measure] for a, b in pairs]
                values = [value for value in values if not np.isnan(value)]
                bounds = BOUNDS[measure]
                if bounds is not None:
                    width = bounds[1] - bounds[0]
                    bounds = -width, width
                if values:
                    of = {"model": f"{second} - {first}", "prompts": prompts}
                    of |= {"condition": condition, "measure": measure}
                    changes.append(results.record(results.mean(values, bounds), **of))
    return changes


def _rows(
    rows: list[dict[str, Any]], model: str, prompts: str, condition: str
) -> list[dict[str, Any]]:
    return [
        row
        for row in rows
        if (row["model"], row["prompts"], row["condition"]) == (model, prompts, condition)
    ]


def _paragraph(
    subjects: list[Subject],
    sets: list[str],
    named: list[str],
    by_name: dict[Any, Any],
    estimates: list[dict[str, Any]],
) -> str:
    sentences = []
    for subject in subjects:
        for prompts in sets:
            tau = by_name.get((subject.name, prompts, "base", "kendall_tau"))
            text = by_name.get((subject.name, prompts, "base", "kendall_tau_text"))
            left = by_name.get((subject.name, prompts, "base", "leftmost_share"))
            if tau is None or left is None:
                continue
            before_end = f", {text} before the first end token" if text is not None else ""
            sentences.append(
                f"{subject.name} on {prompts}, one block over the canvas: Kendall's tau of "
                f"position and step is {tau}{before_end}; {left} of commits are at "
                "the leftmost masks."
            )
    for name in named:
        if not name.startswith("block"):
            continue
        tau = by_name.get((subjects[0].name, sets[0], name, "kendall_tau"))
        inside = by_name.get((subjects[0].name, sets[0], name, "kendall_tau_in_block"))
        if tau is not None and inside is not None:
            sentences.append(
                f"With {name} the same figure is {tau}, of which the blocks' own order is a part "
                f"by construction; within a block it is {inside}."
            )
    for row in estimates:
        is_change = row["model"] not in {subject.name for subject in subjects}
        if is_change and (row["condition"], row["measure"]) == ("base", "kendall_tau"):
            change = results.Estimate(row["value"], row["n"], row["low"], row["high"])
            sentences.append(
                f"From the first model to the second, on {row['prompts']}, tau changes by {change}."
            )
    sentences.append("Intervals are over prompts, at 95 %.")
    return " ".join(sentences)
