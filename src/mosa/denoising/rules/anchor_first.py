"""Fills a window of the response before all else: anchor, then fill.

MOSA's authors propose it in their discussion, without an experiment (arXiv 2508.12398): as the
order of filling is free, write the part that decides an answer first, such as a result or a
refusal, and what stands before and after it given that. The window is a stage of its own. The
blocks follow, without what they share with it; within each stage the decoder's order decides.

    12 tokens in blocks of 6, window 5..8    stages 1 1 1 1 0 0 0 0 2 2 2 2
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Int
from torch import Tensor

from mosa.denoising.rules.base import Stages
from mosa.types import UserError


@dataclass(frozen=True)
class AnchorFirst(Stages):
    """A window of the response that is full before any other mask is filled."""

    name: str = field(default="anchor_first", init=False)
    start: int = field(kw_only=True)
    """The first response position of the window, from 1."""
    end: int = field(kw_only=True)
    """The last one, inclusive; a response that ends before it cuts the window."""

    def __post_init__(self):
        self.check_range("start", 1.0)
        self.check_range("end", float(self.start))

    def check_length(self, max_new_tokens: int) -> None:
        if self.start > max_new_tokens:
            raise UserError(
                f"The window of {self.name} starts at response position {self.start}, but the "
                f"response has {max_new_tokens} tokens; start it earlier, or raise max_new_tokens."
            )

    def stage_of(
        self, positions: Int[Tensor, "*n"], blocks: Int[Tensor, "*n"]
    ) -> Int[Tensor, "*n"]:
        is_window = (positions >= self.start - 1) & (positions < self.end)
        return torch.where(is_window, 0, blocks + 1)
