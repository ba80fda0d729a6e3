"""What probes share: the phrases that they write, and where these fit."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mosa.alignment.phrases import read_phrases
from mosa.attacks.base import Target
from mosa.types import Attempt, UserError

PHRASE_TYPES = ("affirmative", "procedural", "neutral", "refusing")
"""The packaged sets of phrases, in English and in the testbed's words."""


@dataclass(frozen=True)
class Protocol:
    """What a preset of a probe is meant to be run on; options that are given win."""

    num_cases: int
    """Cases of each set."""
    sample_seed: int | None = None
    """The seed with which they are drawn; None: the first ones."""
    max_new_tokens: int | None = None
    """The length of a response; None: the subject's."""


PAPER_PROTOCOL = Protocol(100, sample_seed=0, max_new_tokens=256)
"""100 random cases, 256 tokens (arXiv 2508.12398, E1 and E2)."""


def phrases_of(target: Target, phrase_type: str) -> list[str]:
    """The phrases of a packaged set in the run's wording."""
    return read_phrases(f"{target.wording.phrase_sets}{phrase_type}")


def longest_phrase(target: Target, phrase_types: Iterable[str] = PHRASE_TYPES) -> int:
    """The tokens of the longest phrase of these sets, wherever it is written."""
    texts = [text for phrase_type in phrase_types for text in phrases_of(target, phrase_type)]
    return max(len(target.phrase_ids(text, position)) for text in texts for position in (1, 2))


def chosen_ids(target: Target, phrase_type: str, position: int) -> tuple[int, ...]:
    """What is written at 1-based `position` for the target's behavior: the same phrase at every
    position, with the tokens that it has there.

    Random tokens are as many as the behavior's procedural phrase has; none of them is special.
    """
    rng = random.Random(f"{target.seed}-{target.behavior.id}")
    drawn = {name: rng.choice(phrases_of(target, name)) for name in sorted(PHRASE_TYPES)}
    if phrase_type != "random":
        return target.phrase_ids(drawn[phrase_type], position)
    tokenizer = target.model.tokenizer
    assert tokenizer is not None, "phrases were encoded with it"
    ordinary = sorted(set(range(len(tokenizer))) - set(tokenizer.all_special_ids))
    ordinary = [i for i in ordinary if i not in (target.mask_token_id, *target.model.end_token_ids)]
    return tuple(rng.choice(ordinary) for _ in target.phrase_ids(drawn["procedural"], position))


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


def with_sides(target: Target, attempt: Attempt) -> Attempt:
    """The attempt with what a reader sees before and after the `num_phrase_tokens` tokens that were
    written at its `position` (from 1), so that a refusal that is dropped there is told apart from
    one that holds; as it is where nothing was written."""
    position, length = attempt.details["position"], attempt.details["num_phrase_tokens"]
    if position is None:
        return attempt
    (response,) = attempt.responses
    ids, start = response.token_ids[: response.num_read], position - 1
    sides = {
        "text_before": target.decode(ids[:start]),
        "text_after": target.decode(ids[start + length :]),
    }
    return dataclasses.replace(attempt, details=attempt.details | sides)


def variant_of(factors: Mapping[str, Any]) -> str:
    """The name of a cell: its factors, without those that do not apply."""
    return ", ".join(f"{name} {value}" for name, value in factors.items() if value is not None)
