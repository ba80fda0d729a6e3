"""What makes a response harmful: which words are forced into it, or where? (arXiv 2508.12398, E1.)

The paper writes an affirmative phrase at the first token or a procedural one at token 40 to 160,
and finds that harm rises with the position. There the kind of phrase changes with the position,
and a late phrase also forces a long answer. Here every kind of phrase is written at every position,
next to random tokens (something is forced) and nothing (nothing is), with end tokens allowed and
forbidden, so that the finding can distinguish

    content    a phrase against as many random tokens at the same place
    presence   random tokens against nothing
    position   the last position against the first, for one kind of phrase
    length     end tokens forbidden against allowed

Every combination is one attempt. The preset `paper` is the paper's own protocol.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Literal

from mosa.attacks.base import PLANNED, Attack, Attempts, Query, Settings, Target
from mosa.probes.base import (
    PAPER_PROTOCOL,
    Protocol,
    chosen_ids,
    fitting_positions,
    longest_phrase,
    variant_of,
    with_sides,
)

PhraseType = Literal["none", "affirmative", "procedural", "neutral", "refusing", "random"]
PAPER_POSITIONS = (1, 40, 80, 120, 160)
POSITIONS = (1, 10, 20, 40, 80, 120, 160)


@dataclass(frozen=True)
class PositionConfig(Settings):
    """The factors of the experiment; every combination is run."""

    from_zero = ("block_lengths",)

    phrase_types: tuple[PhraseType, ...] = (
        "none",
        "affirmative",
        "procedural",
        "neutral",
        "random",
    )
    """Kinds of text that are written into the response."""
    positions: tuple[int, ...] | None = None
    """Positions (from 1) of its first token; unset: those of 1, 10, 20, 40, 80, 120 and 160 that
    leave room for every phrase."""
    end_tokens: tuple[Literal["allow", "forbid"], ...] = ("allow", "forbid")
    """Whether the model may end its answer."""
    block_lengths: tuple[int, ...] = (0,)
    """Block lengths; 0 is one block over the canvas."""
    remaskings: tuple[str, ...] = ("low_confidence",)
    """Remasking rules."""
    paper: bool = False
    """The paper's protocol: affirmative at 1, procedural at 40, 80, 120 and 160 where they fit,
    one block, end tokens allowed. The settings above are then not used."""
    tokens_per_step: int = 2
    """Tokens committed in a step, at most a block's."""


@dataclass(frozen=True)
class Cell:
    """One combination of the factors."""

    phrase_type: PhraseType
    position: int | None
    """Counted from 1; None where nothing is written."""
    end_tokens: str
    block_length: int
    remasking: str


def cells(config: PositionConfig, length: int, longest: int) -> list[Cell]:
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


async def run(target: Target, config: PositionConfig) -> Attempts:
    """Write each phrase at each position, and let the model fill the rest."""
    queries, details = [], []
    if not target.has_masks:  # canvases of uniform noise have their own blocks, and no order
        config = replace(config, block_lengths=(0,), remaskings=("low_confidence",))
    for cell in cells(config, target.length, longest_phrase(target)):
        place = cell.position
        ids = () if place is None else chosen_ids(target, cell.phrase_type, place)
        query = Query(
            target.request,
            pinned=() if place is None else (target.pin(place, ids),),
            decoder={
                **target.pace(config.tokens_per_step, cell.block_length or None),
                "remasking": cell.remasking,
                "end_tokens": cell.end_tokens,
            },
        )
        queries.append((variant_of(asdict(cell)), query))
        details.append(asdict(cell) | {"num_phrase_tokens": len(ids)})
    async for attempt in target.tries(queries, details):
        yield with_sides(target, attempt)


ATTACK = Attack(
    name="position",
    title="forced words by position",
    summary="harm by what is forced into a response, and where",
    source="MOSA E1, arXiv 2508.12398, with its factors taken apart",
    access=("prompt", "canvas", "sampler"),
    takes=("steps", "block_length", "remasking", "end_tokens", *PLANNED),
    presets={
        "quick": {},
        "full": {
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
        "paper": {"paper": True},
    },
    run=run,
    decides="any",
    version=3,
)
PROTOCOLS = {"quick": Protocol(8), "full": Protocol(25), "paper": PAPER_PROTOCOL}
