"""The settings of a generation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mosa.denoising.remasking import REMASKING
from mosa.types import UserError

APPROXIMATE_SETTINGS = ("threshold", "factor", "cache", "cache_refresh")
"""The settings that trade agreement with the published loop for speed."""


@dataclass(frozen=True)
class DecoderConfig:
    """Every setting of a generation; belongs beside each number measured on its output."""

    max_new_tokens: int = 128
    """Length of the response in tokens; the end token may come earlier."""
    steps: int = 128
    """Denoising steps, spread evenly over the blocks (the first take the remainder); not used with
    a threshold."""
    block_length: int | None = None
    """Response tokens in a block; blocks are filled left to right; null makes it all one block."""
    temperature: float = 0.0
    """Temperature at which tokens are drawn; 0 takes the likeliest."""
    top_p: float | None = None
    """Draws from the smallest set of tokens that holds this much probability; null does not cut."""
    top_k: int | None = None
    """Draws from this many likeliest tokens; null does not cut."""
    remasking: str = "low_confidence"
    """Which masked positions are filled first: low_confidence, random, maskgit_plus, topk_margin,
    entropy, origin, left_to_right or right_to_left."""
    alg_temp: float | None = None
    """Above 0, draws positions from softmax(confidence / alg_temp) instead of taking the best."""
    schedule: Literal["even", "timesteps"] = "even"
    """Commits per step: even takes as many in each, timesteps a share 1 - s/t of what is masked,
    for times t > s on a line from 1 to 0.001."""
    threshold: float | None = None
    """Commits every position of at least this confidence, and always the best, until its block is
    full; approximate."""
    factor: float | None = None
    """Commits the n best of a block together if the n-th has a confidence of at least
    1 - factor / (n + 1), and always the best; approximate."""
    cache: Literal["none", "prefix", "dual"] = "none"
    """What is computed anew in a step: everything (none); the active block and all after it
    (prefix); or the active block alone (dual), the rest as it was when the block began;
    approximate."""
    cache_refresh: int | None = None
    """With a cache, everything is computed anew after this many steps of a block too; null does so
    at the beginning of each block only."""
    cfg_scale: float = 0.0
    """Classifier-free guidance against the canvas with all that was given masked; 0 is off."""
    banned_token_ids: tuple[int, ...] = ()
    """Tokens that are never generated."""
    end_tokens: Literal["allow", "forbid", "suppress"] = "allow"
    """Whether end tokens may be generated, or (suppress) only once nothing else in the block is
    left to fill."""
    stop_when_finished: bool = False
    """Once all before a generated end token is filled, fills the rest of the row with the
    end-of-text token, at no cost."""
    stop_after: int | None = None
    """Fills the blocks up to the one with this response position (from 1) and leaves the masks
    behind it, for callers who need no more; null fills all."""
    seed: int = 0
    """Seed of every random choice; a prompt gets the same text with it in any batch."""

    def __post_init__(self):
        object.__setattr__(self, "banned_token_ids", tuple(self.banned_token_ids))
        for name in (
            "max_new_tokens",
            "steps",
            "block_length",
            "top_k",
            "cache_refresh",
            "stop_after",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} must be at least 1, not {value}.")
        for name in ("temperature", "cfg_scale", "alg_temp", "factor"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < float("inf"):
                raise UserError(f"{name} must be a number from 0 up, not {value}.")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UserError(f"top_p must be above 0 and at most 1, not {self.top_p}.")
        self._check_choice("remasking", tuple(REMASKING))
        self._check_choice("schedule", ("even", "timesteps"))
        self._check_choice("end_tokens", ("allow", "forbid", "suppress"))
        self._check_choice("cache", ("none", "prefix", "dual"))
        if self.is_blind and (not self.has_plan or self.alg_temp):
            raise UserError(
                f"remasking={self.remasking!r} has no confidence for threshold, factor or alg_temp "
                "to work on; leave them out or choose another rule."
            )
        given = [n for n in ("threshold", "factor") if getattr(self, n) is not None]
        given += ["alg_temp"] if self.alg_temp else []
        if len(given) > 1:
            raise UserError(f"{' and '.join(given)} exclude each other; leave one of them out.")
        if self.cache == "none" and self.cache_refresh is not None:
            raise UserError("cache_refresh needs a cache; set cache to prefix or dual.")
        if self.cache != "none" and self.cfg_scale > 0:
            raise UserError("cache and cfg_scale exclude each other; leave one of them out.")
        if self.has_plan and self.steps < self.num_blocks:
            raise UserError(
                f"steps={self.steps} is too few for {self.num_blocks} blocks of "
                f"{self.block_length} tokens; give every block at least one step."
            )

    def _check_choice(self, name: str, choices: tuple[str, ...]) -> None:
        value = getattr(self, name)
        if value not in choices:
            raise UserError(f"{name}={value!r} is not known; choose from {', '.join(choices)}.")

    @property
    def last_block(self) -> int:
        """The last block that is filled."""
        if self.stop_after is None:
            return self.num_blocks - 1
        block_length = self.block_length or self.max_new_tokens
        return min((self.stop_after - 1) // block_length, self.num_blocks - 1)

    @property
    def is_by_chance(self) -> bool:
        """Whether chance decides which positions are filled, and not confidence."""
        return self.remasking in ("random", "origin")

    @property
    def is_blind(self) -> bool:
        """Whether the order of filling leaves the model's confidence out of account."""
        return self.is_by_chance or self.remasking in ("left_to_right", "right_to_left")

    @property
    def has_plan(self) -> bool:
        """Whether the schedule decides how many positions a step commits, and not confidence."""
        return self.threshold is None and self.factor is None

    @property
    def approximations(self) -> tuple[str, ...]:
        """The settings that trade agreement with the published loop for speed."""
        names = [name for name in ("threshold", "factor") if getattr(self, name) is not None]
        return (*names, *(() if self.cache == "none" else ("cache",)))

    @property
    def num_blocks(self) -> int:
        """How many blocks the response has; the last may be shorter than the others."""
        return -(-self.max_new_tokens // (self.block_length or self.max_new_tokens))
