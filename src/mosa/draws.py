"""Uniform numbers that depend on what they are for, and on nothing else.

# B rows, L canvas length, N draws
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

_WORD = 0xFFFFFFFF
TOKEN_DRAW, POSITION_DRAW, ORDER_DRAW, COUNT_DRAW, MASK_DRAW, NOISE_DRAW = range(6)
"""What a uniform is for; each use has its own stream of them."""


def counter_uniform(
    seed: int | Int[Tensor, "*#N"],
    row_keys: Int[Tensor, "*#N"],
    positions: Int[Tensor, "*#N"],
    step: int | Int[Tensor, "*#N"],
    stream: int,
) -> Float[Tensor, "*N"]:
    """Uniform float64 numbers in (0, 1), each a hash of what it is for; arguments are broadcast.

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
    *,
    counts_equal_rows: bool = True,
) -> Int[Tensor, " B"]:
    """A key for each row, made from its tokens (without padding), to draw its noise with.

    Equal rows with the same seed are distinguished by how many of them came before, so
    that a prompt given n times gets n different samples; without `counts_equal_rows` they are not.
    """
    positions_L = torch.arange(tokens.shape[1], device=tokens.device) - response_start
    words_BL = _hash32(_hash32(positions_L & _WORD) ^ (tokens & _WORD))
    keys_B = words_BL.masked_fill(~real, 0).sum(dim=1) & _WORD
    if not counts_equal_rows:
        return _hash32(keys_B)
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
