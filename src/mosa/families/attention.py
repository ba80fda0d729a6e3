"""Which positions of a row see which, as data of a family.

# B rows, L columns, Q queries, K keys, n positions of one row
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, final

import torch
from jaxtyping import Bool, Int
from torch import Tensor


@final
@dataclass(frozen=True)
class AttentionPattern:
    """Which positions of a row see which: all see all, or block-causal where blocks have a length.

    In a block-causal pattern a position sees its own block and those before it (block diffusion,
    arXiv:2503.09573). Blocks are counted from the row's first token, which is the prompt's;
    padding is not counted.
    """

    block_length: int | None = None
    """Tokens in a block; None where every position sees every other."""
    decoding_begins: Literal["response", "sequence"] = "response"
    """Where the blocks that the sampler fills begin: at the response's first token, or at the
    row's, as in SDAR (arXiv:2510.06303) and Fast-dLLM v2 (arXiv:2509.26328), so that the end of
    the prompt shares a block with the first tokens of the response."""

    def __post_init__(self) -> None:
        assert self.block_length is None or self.block_length >= 1

    @property
    def is_full(self) -> bool:
        """Whether every position sees every other."""
        return self.block_length is None

    @property
    def prefix_cache_is_exact(self) -> bool:
        """Whether keys and values stay right while only tokens after their block change."""
        return not self.is_full

    def sees(
        self, queries: Int[Tensor, "*rows Q"], keys: Int[Tensor, "*rows K"]
    ) -> Bool[Tensor, "*rows Q K"]:
        """Whether the query at each place of a row sees the key at each; places count from 0."""
        if self.block_length is None:
            shape = (*queries.shape, keys.shape[-1])
            return torch.ones(shape, dtype=torch.bool, device=queries.device)
        return (keys // self.block_length)[..., None, :] <= (queries // self.block_length)[
            ..., None
        ]

    def affected(self, changed: Bool[Tensor, " n"]) -> Bool[Tensor, " n"]:
        """The positions of one row that see a changed one, directly or through others."""
        places_n = torch.arange(len(changed), device=changed.device)
        return self.sees(places_n, places_n[changed]).any(dim=1)

    def mask(self, real: Bool[Tensor, "B L"]) -> Bool[Tensor, "B 1 L L"]:
        """Which key (last) each query sees, for rows whose padding is not `real`.

        Padding sees what the token before it sees, and a row of only padding sees itself, so that
        nothing is undefined.
        """
        places_BL = (real.long().cumsum(dim=1) - 1).clamp(min=0)
        visible_BLL = self.sees(places_BL, places_BL) & real[:, None, :]
        return (visible_BLL | ~real.any(dim=1)[:, None, None])[:, None]


FULL = AttentionPattern()
"""Every position sees every other."""
