"""Stochastic annealing remasking of DiffuGuard (arXiv:2509.24296): an order in which chance counts
at first and less with every step, so that no single denoising path is imposed.

A position is rated (1 - a) * confidence + a * U(0, 1), with a = alpha * (1 - n / (steps - 1)) in
step n (from 0) and 0 after the last of `steps`. How we differ: the paper's N counts the steps of
the generation; ours is an option, since an order sees the step and not the schedule.

# N masked positions
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from mosa.denoising.rules.base import Order, Proposals


@dataclass(frozen=True)
class StochasticAnnealing(Order):
    """Confidence mixed with chance, which fades out over some steps."""

    name: str = field(default="stochastic_annealing", init=False)
    steps: int = field(kw_only=True)
    """The steps over which chance fades out, the last of them without any."""
    alpha: float = 0.3
    """The share of chance in the first step."""

    chosen_by: ClassVar[str] = "rules"
    rates_confidence: ClassVar[bool] = False
    by_chance: ClassVar[bool] = True

    def __post_init__(self):
        self.check_range("steps", 2.0)
        self.check_range("alpha", 0.0, 1.0)

    def rate(self, proposals: Proposals) -> Float[Tensor, " N"]:
        left_N = (1 - proposals.steps / (self.steps - 1)).clamp(min=0)
        share_N = self.alpha * left_N
        return (1 - share_N) * proposals.token_probs + share_N * proposals.uniform
