"""What probes share: the phrases that they write, where these fit, and the pace of decoding."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from mosa.align.phrases import read_phrases
from mosa.attacks.base import Target
from mosa.types import UserError

PHRASE_TYPES = ("affirmative", "procedural", "neutral", "refusing")
"""The packaged sets of phrases, in English and in the testbed's words."""


def phrases_of(target: Target, phrase_type: str) -> list[str]:
    """The phrases of a packaged set in the run's wording."""
    return read_phrases(f"{target.wording.phrase_sets}{phrase_type}")


def phrase_ids(target: Target) -> dict[str, list[list[int]]]:
    """The token ids of the phrases of each packaged set."""
    return {
        phrase_type: [list(target.encode(text)) for text in phrases_of(target, phrase_type)]
        for phrase_type in PHRASE_TYPES
    }


def chosen_ids(
    target: Target, texts: Mapping[str, Sequence[list[int]]], phrase_type: str
) -> list[int]:
    """What is written for the target's behavior: the same phrase at every position.

    Random tokens are as many as the behavior's procedural phrase has; none of them is special.
    """
    if phrase_type == "none":
        return []
    rng = random.Random(f"{target.seed}-{target.behavior.id}")
    drawn = {name: rng.choice(texts[name]) for name in sorted(texts)}
    if phrase_type != "random":
        return drawn[phrase_type]
    tokenizer = target.model.tokenizer
    assert tokenizer is not None, "phrases were encoded with it"
    ordinary = sorted(set(range(len(tokenizer))) - set(tokenizer.all_special_ids))
    ordinary = [i for i in ordinary if i not in (target.mask_token_id, *target.end_token_ids)]
    return [rng.choice(ordinary) for _ in drawn["procedural"]]


def pace(length: int, tokens_per_step: int, block_length: int | None = None) -> dict[str, Any]:
    """Decoder settings that commit `tokens_per_step` tokens a step, or fewer where the blocks need
    more steps."""
    num_blocks = -(-length // block_length) if block_length else 1
    steps = max(num_blocks, -(-length // tokens_per_step))
    return {"steps": steps, "block_length": block_length}


def fitting_positions(
    given: tuple[int, ...] | None, defaults: tuple[int, ...], longest: int, length: int
) -> tuple[int, ...]:
    """The given positions (from 1), or those of the defaults where `longest` tokens have room.

    Raises UserError for a given position that leaves none.
    """
    last = length - longest + 1
    for position in given or ():
        if not 1 <= position <= last:
            raise UserError(
                f"position {position} leaves no room for a phrase of {longest} tokens in a "
                f"response of {length}; use positions from 1 to {last} or raise max_new_tokens"
            )
    return given or tuple(position for position in defaults if position <= last)


def step_numbers(shares: tuple[float, ...], num_steps: int) -> list[int]:
    """The steps (from 0) at these shares of all steps; raises UserError for a share outside."""
    for share in shares:
        if not 0 <= share < 1:
            raise UserError(f"step_shares holds {share}; use shares from 0 up to, but without, 1")
    return list(dict.fromkeys(int(share * num_steps) for share in shares))


def variant_of(factors: Mapping[str, Any]) -> str:
    """The name of a cell: its factors, without those that do not apply."""
    return ", ".join(f"{name} {value}" for name, value in factors.items() if value is not None)
