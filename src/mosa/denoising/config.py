"""The settings of a generation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mosa.denoising.remasking import REMASKING
from mosa.types import UserError


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
    full."""
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
    seed: int = 0
    """Seed of every random choice; a prompt gets the same text with it in any batch."""

    def __post_init__(self):
        object.__setattr__(self, "banned_token_ids", tuple(self.banned_token_ids))
        for name in ("max_new_tokens", "steps", "block_length", "top_k"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} must be at least 1, not {value}.")
        for name in ("temperature", "cfg_scale", "alg_temp"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < float("inf"):
                raise UserError(f"{name} must be a number from 0 up, not {value}.")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UserError(f"top_p must be above 0 and at most 1, not {self.top_p}.")
        self._check_choice("remasking", tuple(REMASKING))
        self._check_choice("schedule", ("even", "timesteps"))
        self._check_choice("end_tokens", ("allow", "forbid", "suppress"))
        if self.is_blind and (self.threshold is not None or self.alg_temp):
            raise UserError(
                f"remasking={self.remasking!r} has no confidence for threshold or alg_temp to work "
                "on; leave them out or choose another rule."
            )
        if self.threshold is not None and self.alg_temp:
            raise UserError("threshold and alg_temp exclude each other; leave one of them out.")
        if self.threshold is None and self.steps < self.num_blocks:
            raise UserError(
                f"steps={self.steps} is too few for {self.num_blocks} blocks of "
                f"{self.block_length} tokens; give every block at least one step."
            )

    def _check_choice(self, name: str, choices: tuple[str, ...]) -> None:
        value = getattr(self, name)
        if value not in choices:
            raise UserError(f"{name}={value!r} is not known; choose from {', '.join(choices)}.")

    @property
    def is_by_chance(self) -> bool:
        """Whether chance decides which positions are filled, and not confidence."""
        return self.remasking in ("random", "origin")

    @property
    def is_blind(self) -> bool:
        """Whether the order of filling leaves the model's confidence out of account."""
        return self.is_by_chance or self.remasking in ("left_to_right", "right_to_left")

    @property
    def num_blocks(self) -> int:
        """How many blocks the response has; the last may be shorter than the others."""
        return -(-self.max_new_tokens // (self.block_length or self.max_new_tokens))
