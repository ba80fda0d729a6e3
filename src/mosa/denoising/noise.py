"""Randomness that depends on what it is for: masks for training, uniforms for sampling.

# B rows, L canvas length, S samples, N draws
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mosa.types import UserError

_WORD = 0xFFFFFFFF
TOKEN_DRAW, POSITION_DRAW, ORDER_DRAW, COUNT_DRAW, MASK_DRAW = range(5)
"""What a uniform is for; each use has its own stream of them."""


# --- masks for training and likelihoods --------------------------------------------------------


@dataclass(frozen=True)
class Masked:
    """Token rows with some positions replaced by the mask token."""

    tokens: Int[Tensor, "B L"]
    is_masked: Bool[Tensor, "B L"]
    mask_probability: Float[Tensor, " B"]
    """With which probability an eligible position of the row was masked: the 1/p weight of the
    loss."""


def mask_at_random_ratio(
    tokens: Int[Tensor, "B L"],
    eligible: Bool[Tensor, "B L"],
    mask_token_id: int,
    *,
    generator: torch.Generator,
    low: float = 1e-3,
    high: float = 1.0,
) -> Masked:
    """Masks each eligible position with a probability drawn for every row from U(low, high).

    The forward process of masked diffusion (arXiv:2502.09992, Eq. 7 and Appendix B.1; GUIDELINES.md
    of the released code, where low = eps = 1e-3). For supervised tuning `eligible` is the response,
    the end tokens that pad it included. `generator` lives on the device of `tokens`.
    """
    if not 0 <= low <= high <= 1:
        raise UserError(f"Mask ratios need 0 <= low <= high <= 1, not {low} and {high}.")
    device = tokens.device
    time_B = torch.rand(len(tokens), generator=generator, device=device)
    probability_B = low + (high - low) * time_B
    draw_BL = torch.rand(tokens.shape, generator=generator, device=device)
    is_masked_BL = eligible & (draw_BL < probability_B[:, None])
    return Masked(tokens.masked_fill(is_masked_BL, mask_token_id), is_masked_BL, probability_B)


def mask_exact_count(
    tokens: Int[Tensor, "B L"],
    eligible: Bool[Tensor, "B L"],
    mask_token_id: int,
    counts: Int[Tensor, " B"],
    draws: Float[Tensor, "B L"],
) -> Masked:
    """Masks exactly `counts[b]` eligible positions of row b, every choice equally likely.

    `draws` makes the choice, a uniform number for every position. Rows with fewer eligible
    positions than asked for are a UserError.
    """
    num_eligible_B = eligible.sum(dim=1)
    if bool(((counts < 0) | (counts > num_eligible_B)).any()):
        raise UserError(
            f"Cannot mask {counts.tolist()} positions where {num_eligible_B.tolist()} are eligible;"
            " ask for fewer."
        )
    rank_BL = draws.masked_fill(~eligible, torch.inf).argsort(dim=1).argsort(dim=1)
    is_masked_BL = rank_BL < counts[:, None]
    return Masked(
        tokens.masked_fill(is_masked_BL, mask_token_id),
        is_masked_BL,
        counts / num_eligible_B.clamp(min=1),
    )


def stratified_counts(
    lengths: Int[Tensor, " B"], start: Float[Tensor, " B"], num_samples: int
) -> Int[Tensor, "B S"]:
    """For each row, `num_samples` mask counts in 1..length: evenly spread, wrapping around.

    They begin at a random place, which `start` in [0, 1) says, so each single count is uniform and
    together they cover the range: fewer samples are needed for the same error than with counts
    drawn one by one (`forward_process` in `get_log_likelihood.py` of the LLaDA code). For example
    length 8, four samples, start 0.25: 3, 5, 7, 9 -> 3, 5, 7, 1.
    """
    first_B1 = (start * lengths).floor().unsqueeze(1) + 1
    spread_BS = torch.arange(num_samples, device=lengths.device) * (lengths[:, None] / num_samples)
    return (torch.round(first_B1 + spread_BS).long() - 1) % lengths[:, None] + 1


# --- uniforms for sampling ---------------------------------------------------------------------


def counter_uniform(
    seed: int | Int[Tensor, " N"],
    row_keys: Int[Tensor, " N"],
    positions: Int[Tensor, " N"],
    step: int | Int[Tensor, " N"],
    stream: int,
) -> Float[Tensor, " N"]:
    """Uniform float64 numbers in (0, 1), each a hash of what it is for.

    A draw depends on the seed, the row's key, the response position, the step and the stream, and
    on nothing else: not on the rows beside it, the padding, the device, or other draws. So a row
    gets the same text by itself and in any batch, and nothing is drawn in a loop over rows.
    """
    state = row_keys
    for part in (seed, seed >> 32, stream, step, positions):
        word = part if isinstance(part, Tensor) else torch.full_like(state, part & _WORD)
        state = _hash32(state ^ _hash32(word & _WORD))
    high, low = _hash32(state ^ 0x5BD1E995), _hash32(state ^ 0x1B873593)
    return ((high << 16 | low >> 16).double() + 0.5) / 2**48


@dataclass(frozen=True)
class Draws:
    """What the noise of N masked positions is made from (see `counter_uniform`)."""

    seeds: Int[Tensor, " N"]
    keys: Int[Tensor, " N"]
    positions: Int[Tensor, " N"]
    steps: Int[Tensor, " N"]

    def uniform(self, stream: int) -> Float[Tensor, " N"]:
        """One number in (0, 1) for each position."""
        return counter_uniform(self.seeds, self.keys, self.positions, self.steps, stream)

    def __getitem__(self, index: Tensor | slice) -> Draws:
        return Draws(self.seeds[index], self.keys[index], self.positions[index], self.steps[index])


def row_keys(
    tokens: Int[Tensor, "B L"],
    real: Bool[Tensor, "B L"],
    response_start: int,
    seeds: Int[Tensor, " B"] | None = None,
) -> Int[Tensor, " B"]:
    """A key for each row, made from its tokens (without padding), to draw its noise with.

    Equal rows with the same seed are distinguished by how many of them came before, so
    that a prompt given n times gets n different samples.
    """
    positions_L = torch.arange(tokens.shape[1], device=tokens.device) - response_start
    words_BL = _hash32(_hash32(positions_L & _WORD) ^ (tokens & _WORD))
    keys_B = words_BL.masked_fill(~real, 0).sum(dim=1) & _WORD
    is_alike_BB = keys_B[:, None] == keys_B
    if seeds is not None:
        is_alike_BB = is_alike_BB & (seeds[:, None] == seeds)
    num_alike_before_B = is_alike_BB.tril(-1).sum(dim=1)
    return _hash32(keys_B ^ _hash32(num_alike_before_B))


def _hash32(words: Tensor) -> Tensor:
    """A bijection of 32-bit words, held in int64, that changes every bit with every other.

    Two xor-shift-multiply rounds with the multipliers of github.com/skeeto/hash-prospector
    (public domain); both are below 2**31, so no product leaves int64.
    """
    words = words ^ (words >> 16)
    words = (words * 0x21F0AAAD) & _WORD
    words = words ^ (words >> 15)
    words = (words * 0x735A2D97) & _WORD
    return words ^ (words >> 15)
