"""What makes a response harmful: which words are forced into it, or where? (arXiv 2508.12398, E1.)

The paper writes an affirmative phrase at the first token or a procedural one at token 40 to 160,
and finds that harm rises with the position. There the kind of phrase changes with the position,
and a late phrase also forces a long answer. Here every kind of phrase is written at every position,
next to random tokens (something is forced) and nothing (nothing is), with end tokens allowed and
forbidden, so that the three come apart:

    content    a phrase against as many random tokens at the same place
    presence   random tokens against nothing
    position   the last position against the first, for one kind of phrase
    length     end tokens forbidden against allowed

`paper=True` runs the paper's own protocol as it stands.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from mosa.align import read_phrases
from mosa.analysis import result as results
from mosa.analysis.result import AnalysisResult, Estimate, LineChart
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
from mosa.denoising import Canvas, DecoderConfig
from mosa.families import DiffusionLM

PhraseType = Literal["none", "affirmative", "procedural", "neutral", "refusing", "random"]
END_TOKENS = {"allow": "allowed", "forbid": "forbidden"}
PAPER_POSITIONS = (1, 40, 80, 120, 160)
POSITIONS = (1, 10, 20, 40, 80, 120, 160)


@dataclass(frozen=True)
class CriticalityConfig:
    """The factors of the experiment; every combination is run."""

    phrase_types: tuple[PhraseType, ...] = (
        "none",
        "affirmative",
        "procedural",
        "neutral",
        "random",
    )
    """Kinds of text that are written into the response."""
    positions: tuple[int, ...] | None = None
    """Where its first token stands, counted from 1; unset: those of 1, 10, 20, 40, 80, 120 and 160
    that leave room for every phrase."""
    end_tokens: tuple[Literal["allow", "forbid"], ...] = ("allow", "forbid")
    """Whether the model may end its answer."""
    block_lengths: tuple[int, ...] = (0,)
    """Block lengths; 0 is one block over the canvas."""
    remaskings: tuple[str, ...] = ("low_confidence",)
    """Remasking rules."""
    paper: bool = False
    """The paper's protocol: affirmative at 1, procedural at 40, 80, 120 and 160 where they fit,
    one block, end tokens allowed. The settings above are then not used."""
    max_new_tokens: int | None = None
    """Response tokens; unset: 72 on the testbed, 128 elsewhere."""
    tokens_per_step: int = 2
    """Tokens committed in a step."""
    num_behaviors: int = 100
    """Cases that are asked."""
    batch_size: int = 32
    """Responses per forward pass."""
    seed: int = 0
    """Seed of the choice of phrases and of random tokens."""


PRESETS: dict[str, dict[str, Any]] = {
    "quick": {"num_behaviors": 8},
    "full": {
        "num_behaviors": 25,
        "block_lengths": (0, 24),
        "phrase_types": (
            "none",
            "affirmative",
            "procedural",
            "neutral",
            "refusing",
            "random",
        ),
    },
}


@dataclass(frozen=True)
class Cell:
    """One combination of the factors."""

    phrase_type: PhraseType
    position: int | None
    """Counted from 1; None where nothing is written."""
    end_tokens: str
    block_length: int
    remasking: str


@dataclass(frozen=True)
class _Item:
    subject: Subject
    cell: Cell
    behavior: Case
    ids: list[int]
    key: str


def run(
    subjects: list[Subject], behaviors: Cases, config: CriticalityConfig, study: Study
) -> AnalysisResult:
    """Write each phrase at each position, let the model fill the rest, and judge what it says."""
    length = config.max_new_tokens or default_length(behaviors)
    items = []
    for subject in subjects:
        texts = phrase_ids(subject.model, behaviors)
        longest = max(len(ids) for sets in texts.values() for ids in sets)
        asked = behaviors.items[: config.num_behaviors]
        grid = cells(config, length, longest)
        chosen = {
            kind: [chosen_ids(subject.model, texts, kind, b, config.seed) for b in asked]
            for kind in dict.fromkeys(cell.phrase_type for cell in grid)
        }
        for cell in grid:
            for behavior, ids in zip(asked, chosen[cell.phrase_type], strict=True):
                key = row_key(
                    "criticality",
                    subject,
                    behavior,
                    cell=dataclasses.asdict(cell),
                    ids=ids,
                    decoder=dataclasses.asdict(_decoder(cell, config, length)),
                )
                items.append(_Item(subject, cell, behavior, ids, key))
    for batch in study.each(
        items,
        lambda item: item.key,
        group=lambda item: (item.subject.name, _decoder(item.cell, config, length)),
        batch_size=config.batch_size,
    ):
        first = batch[0]
        canvas = Canvas.from_prompts(
            first.subject.model,
            [item.behavior.prompt for item in batch],
            max_new_tokens=length,
        )
        for row, item in enumerate(batch):
            if item.cell.position is not None:
                canvas = canvas.pin(item.cell.position - 1, item.ids, rows=[row])
        sampled, judged = judged_sample(
            first.subject,
            behaviors,
            [item.behavior for item in batch],
            canvas,
            _decoder(first.cell, config, length),
        )
        ends = sampled.tokens.new_tensor(first.subject.model.end_token_ids)
        has_end_BR = sampled.tokens.unsqueeze(-1).eq(ends).any(-1)
        num_read = has_end_BR.logical_not().cumprod(dim=1).sum(dim=1).tolist()
        study.record(
            {"key": item.key, "model": item.subject.name, "case": item.behavior.id}
            | dataclasses.asdict(item.cell)
            | {"num_phrase_tokens": len(item.ids), "num_read": read}
            | found
            for item, read, found in zip(batch, num_read, judged, strict=True)
        )
    rows = study.rows(item.key for item in items)
    estimates, charts, paragraph = _findings(subjects, behaviors, config, rows)
    result = AnalysisResult(
        "criticality",
        header("criticality", subjects, behaviors, config),
        estimates,
        charts,
        paragraph,
    )
    study.finish(result, rows)
    return result


def cells(config: CriticalityConfig, length: int, longest: int) -> list[Cell]:
    """Every combination of the factors; a cell without a phrase has no position.

    Raises UserError for a position at which the longest phrase (in tokens) has no room.
    """
    if config.paper:
        return [
            Cell("affirmative" if p == 1 else "procedural", p, "allow", 0, "low_confidence")
            for p in fitting_positions(None, PAPER_POSITIONS, longest, length)
        ]
    positions = fitting_positions(config.positions, POSITIONS, longest, length)
    return [
        Cell(phrase_type, position, end_tokens, block_length, remasking)
        for end_tokens in config.end_tokens
        for block_length in config.block_lengths
        for remasking in config.remaskings
        for phrase_type in config.phrase_types
        for position in ((None,) if phrase_type == "none" else positions)
    ]


def phrase_ids(model: DiffusionLM, behaviors: Cases) -> dict[str, list[list[int]]]:
    """The token ids of each kind's phrases, in the words of the testbed or in plain English."""
    prefix = "" if behaviors.world is None else "testbed_"
    return {
        kind: [model.encode_text(text) for text in read_phrases(f"{prefix}{kind}")]
        for kind in ("affirmative", "procedural", "neutral", "refusing")
    }


def chosen_ids(
    model: DiffusionLM,
    texts: dict[str, list[list[int]]],
    phrase_type: str,
    behavior: Case,
    seed: int,
) -> list[int]:
    """What is written for one behavior: the same phrase at every position.

    Random tokens are as many as the behavior's procedural phrase has; none of them is special.
    """
    if phrase_type == "none":
        return []
    rng = random.Random(f"{seed}-{behavior.id}")
    drawn = {kind: rng.choice(texts[kind]) for kind in sorted(texts)}
    if phrase_type != "random":
        return drawn[phrase_type]
    assert model.tokenizer is not None, "phrases were encoded with it"
    ordinary = sorted(set(range(len(model.tokenizer))) - set(model.tokenizer.all_special_ids))
    ordinary = [i for i in ordinary if i not in (model.mask_token_id, *model.end_token_ids)]
    return [rng.choice(ordinary) for _ in drawn["procedural"]]


def _decoder(cell: Cell, config: CriticalityConfig, length: int) -> DecoderConfig:
    return decoder_of(
        length,
        config.tokens_per_step,
        cell.block_length or None,
        remasking=cell.remasking,
        end_tokens=cell.end_tokens,
        seed=config.seed,
    )


# --- what it came to ------------------------------------------------------------------------------


def _findings(
    subjects: list[Subject],
    behaviors: Cases,
    config: CriticalityConfig,
    rows: list[dict[str, Any]],
) -> tuple[list[dict[str, Any]], dict[str, Any], str]:
    estimates: list[dict[str, Any]] = []
    charts: dict[str, Any] = {}
    sentences: list[str] = []
    overlays: dict[tuple[str, str], dict[str, list[tuple[float, Estimate]]]] = {}
    for subject in subjects:
        mine = [row for row in rows if row["model"] == subject.name]
        for measure in behaviors.measures:
            by_place = _by_place(mine, measure)
            for end_tokens in dict.fromkeys(row["end_tokens"] for row in mine):
                alike = [row for row in mine if row["end_tokens"] == end_tokens]
                places = _by_place(alike, measure)
                estimates += [
                    results.record(
                        estimate,
                        model=subject.name,
                        measure=measure,
                        contrast="",
                        end_tokens=end_tokens,
                        phrase_type=kind,
                        position=position,
                    )
                    for (kind, position), estimate in places.items()
                ]
                name = f"{measure}-{subject.name}-end-tokens-{end_tokens}"
                charts[name] = _chart(subject.name, measure, end_tokens, places)
                overlays.setdefault((measure, end_tokens), {}).update(
                    {
                        f"{kind}: {subject.name}": _series(kind, places)
                        for kind in ("none", "procedural")
                        if any(kind == k for k, _ in places)
                    }
                )
            contrasts = {} if config.paper else contrasts_of(mine, measure)
            estimates += [
                results.record(estimate, model=subject.name, measure=measure, contrast=name)
                for name, estimate in contrasts.items()
            ]
            sentences += _sentences(subject.name, measure, by_place, contrasts)
    if len(subjects) == 2:
        for (measure, end_tokens), series in overlays.items():
            charts[f"{measure}-both-end-tokens-{end_tokens}"] = LineChart(
                f"{measure.capitalize()} without a phrase and with a procedural one, end tokens "
                f"{END_TOKENS[end_tokens]}",
                "position of the phrase's first token",
                measure,
                series,
                (0.0, 1.0),
            )
    sentences.append(
        "Differences are within behaviors, with 95 % intervals over them."
        if not config.paper
        else "This is the paper's protocol: kind of phrase and position change together, so the "
        "figures do not say which of them matters."
    )
    return estimates, charts, " ".join(sentences)


def _by_place(rows: list[dict[str, Any]], measure: str) -> dict[tuple[str, int | None], Estimate]:
    """The rate of each kind of phrase at each position, over behaviors; other factors averaged."""
    places = dict.fromkeys((row["phrase_type"], row["position"]) for row in rows)
    return {
        place: results.rate(
            _per_case(
                rows, measure, lambda row, p=place: (row["phrase_type"], row["position"]) == p
            )
        )
        for place in places
    }


def _per_case(
    rows: list[dict[str, Any]], measure: str, chosen: Callable[[dict[str, Any]], bool]
) -> list[float]:
    return results.per_case([row for row in rows if chosen(row)], measure)


def contrasts_of(rows: list[dict[str, Any]], measure: str) -> dict[str, Estimate]:
    """Differences within behaviors that tell content, presence, position and length apart."""
    kinds = list(dict.fromkeys(row["phrase_type"] for row in rows))
    positions = sorted({row["position"] for row in rows if row["position"] is not None})

    def difference(
        first: Callable[[dict[str, Any]], bool], second: Callable[[dict[str, Any]], bool]
    ) -> Estimate:
        a, b = _per_case(rows, measure, first), _per_case(rows, measure, second)
        return results.mean([x - y for x, y in zip(a, b, strict=True)], (-1.0, 1.0))

    found = {}
    if "random" in kinds and "none" in kinds:
        found["presence: random - none"] = difference(
            lambda row: row["phrase_type"] == "random", lambda row: row["phrase_type"] == "none"
        )
    for kind in kinds:
        if kind not in ("none", "random") and "random" in kinds:
            found[f"content: {kind} - random"] = difference(
                lambda row, k=kind: row["phrase_type"] == k,
                lambda row: row["phrase_type"] == "random",
            )
    for kind in kinds:
        if kind != "none" and len(positions) > 1:
            found[f"position of {kind}: {positions[-1]} - {positions[0]}"] = difference(
                lambda row, k=kind: (row["phrase_type"], row["position"]) == (k, positions[-1]),
                lambda row, k=kind: (row["phrase_type"], row["position"]) == (k, positions[0]),
            )
    for factor, title in (
        ("end_tokens", "length: end tokens"),
        ("block_length", "block length"),
        ("remasking", "remasking"),
    ):
        levels = list(dict.fromkeys(row[factor] for row in rows))
        for level in levels[1:]:
            found[f"{title} {level} - {levels[0]}"] = difference(
                lambda row, f=factor, v=level: row[f] == v,
                lambda row, f=factor, v=levels[0]: row[f] == v,
            )
    return found


def _series(
    kind: str, by_place: dict[tuple[str, int | None], Estimate]
) -> list[tuple[float, Estimate]]:
    """A kind's estimates by position; `none` stands nowhere and is a level line to compare with."""
    positions = sorted({p for _, p in by_place if p is not None})
    if kind == "none":
        return [(float(p), by_place[kind, None]) for p in positions]
    return [(float(p), by_place[kind, p]) for p in positions if (kind, p) in by_place]


def _chart(
    name: str,
    measure: str,
    end_tokens: str,
    by_place: dict[tuple[str, int | None], Estimate],
) -> LineChart:
    series = {kind: _series(kind, by_place) for kind in dict.fromkeys(kind for kind, _ in by_place)}
    return LineChart(
        f"{measure.capitalize()} by forced phrase and its position, end tokens "
        f"{END_TOKENS[end_tokens]}: {name}",
        "position of the phrase's first token",
        measure,
        series,
        (0.0, 1.0),
    )


def _sentences(
    name: str,
    measure: str,
    by_place: dict[tuple[str, int | None], Estimate],
    contrasts: dict[str, Estimate],
) -> list[str]:
    if not contrasts:
        listed = ", ".join(f"{e} at {p} ({kind})" for (kind, p), e in by_place.items())
        return [f"{name}: {measure} is {listed}."]
    clear = [f"{what} {e}" for what, e in contrasts.items() if e.low > 0 or e.high < 0]
    unclear = [what for what, e in contrasts.items() if not (e.low > 0 or e.high < 0)]
    text = f"{name}, {measure}: "
    text += f"differences whose interval excludes 0 are {'; '.join(clear)}." if clear else ""
    text += f" Not told apart from 0: {'; '.join(unclear)}." if unclear else ""
    return [text]
