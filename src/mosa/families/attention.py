"""Which positions of a row see which, as data of a family.

# B rows, L columns, Q queries, K keys, n positions of one row
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeVar, final

import torch
from jaxtyping import Bool, Int
from torch import Tensor

N = TypeVar("N", int, Tensor)


@final
@dataclass(frozen=True)
class AttentionPattern:
    """Which positions of a row see which: all see all, or block-causal where blocks have a length.

    In a block-causal pattern a position sees its own block and those before it (block diffusion,
    arXiv:2503.09573). Padding is not counted. The sampler fills the same blocks, one after the
    other.
    """

    block_length: int | None = None
    """Tokens in a block; None where every position sees every other."""
    begins: Literal["sequence", "response"] = "sequence"
    """Where blocks are counted from: the row's first token, so that the end of the prompt shares a
    block with the first tokens of the response and the canvas ends with a whole block; or the
    response's first token, so that the prompt begins with what is left for a block."""

    def __post_init__(self) -> None:
        assert self.block_length is None or self.block_length >= 1

    @property
    def is_full(self) -> bool:
        """Whether every position sees every other."""
        return self.block_length is None

    def has_blocks(self, response_length: int) -> bool:
        """Whether a response of so many tokens may lie in more than one block."""
        if self.block_length is None:
            return False
        return self.shares_prompt or response_length > self.block_length

    @property
    def shares_prompt(self) -> bool:
        """Whether the end of the prompt shares a block with the first tokens of the response."""
        return not self.is_full and self.begins == "sequence"

    @property
    def most_shared(self) -> int:
        """How many tokens of a prompt share a block with the response at most, and how many masks
        fill up its last block."""
        return self.block_length - 1 if self.shares_prompt and self.block_length else 0

    def shift(self, num_prompt: N) -> N:
        """How many places of its block come before a row's first token, by its prompt's length."""
        if self.block_length is None or self.begins == "sequence":
            return num_prompt * 0
        return -num_prompt % self.block_length

    def begin_of_block(self, place: int, shift: int) -> int:
        """The first place of the row in the block of `place`."""
        assert self.block_length is not None
        return max(0, (place + shift) // self.block_length * self.block_length - shift)

    def end_of_block(self, place: int, shift: int) -> int:
        """One past the last place of the block of `place`."""
        assert self.block_length is not None
        return ((place + shift) // self.block_length + 1) * self.block_length - shift

    def sees(
        self, queries: Int[Tensor, "*rows Q"], keys: Int[Tensor, "*rows K"]
    ) -> Bool[Tensor, "*rows Q K"]:
        """Whether the query at each place sees the key at each; places count from 0 at the begin
        of the row's first block."""
        if self.block_length is None:
            shape = (*queries.shape, keys.shape[-1])
            return torch.ones(shape, dtype=torch.bool, device=queries.device)
        return (keys // self.block_length)[..., None, :] <= (queries // self.block_length)[
            ..., None
        ]

    def mask(
        self, real: Bool[Tensor, "B L"], response_start: int | None = None
    ) -> Bool[Tensor, "B 1 L L"]:
        """Which key (last) each query sees, for rows whose padding is not `real`.

        `response_start` is the column of the response's first token, for blocks that begin there.
        Padding sees what the token before it sees, and a row of only padding sees itself, so that
        nothing is undefined.
        """
        places_BL = (real.long().cumsum(dim=1) - 1).clamp(min=0)
        if self.block_length is not None and self.begins == "response":
            assert response_start is not None, "blocks begin at the response: say where it begins"
            num_prompt_B1 = real[:, :response_start].sum(dim=1, keepdim=True)
            places_BL = places_BL + self.shift(num_prompt_B1)
        visible_BLL = self.sees(places_BL, places_BL) & real[:, None, :]
        return (visible_BLL | ~real.any(dim=1)[:, None, None])[:, None]


FULL = AttentionPattern()
"""Every position sees every other."""
