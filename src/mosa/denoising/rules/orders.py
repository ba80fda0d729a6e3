"""The orders of filling in which the published samplers, and those who attack them, fill masks.

`maskgit_plus`, `topk_margin`, `entropy` and `origin` are Dream's names (arXiv:2508.15487; `_sample`
of its released code), `low_confidence` and `random` LLaDA's (arXiv:2502.09992, Section 2.4;
`generate.py`). `left_to_right` and `right_to_left` are orders that an attacker who runs the sampler
may impose (A2D, arXiv:2509.23286).

# N masked positions
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from mosa.denoising.rules.base import Order, Proposals


@dataclass(frozen=True)
class LowConfidence(Order):
    """The probability that the model gives to the token, before temperature and cuts, in [0, 1]."""

    name: str = field(default="low_confidence", init=False)

    def rate(self, proposals: Proposals) -> Float[Tensor, " N"]:
        return proposals.token_probs


@dataclass(frozen=True)
class MaskGitPlus(Order):
    """The probability of the token in the distribution that it was drawn from, in [0, 1]."""

    name: str = field(default="maskgit_plus", init=False)

    def rate(self, proposals: Proposals) -> Float[Tensor, " N"]:
        return proposals.shaped_token_probs


@dataclass(frozen=True)
class TopkMargin(Order):
    """How far the likeliest token leads the second, for any drawn token, in [0, 1]."""

    name: str = field(default="topk_margin", init=False)

    def rate(self, proposals: Proposals) -> Float[Tensor, " N"]:
        best_N2 = proposals.shaped_probs.topk(2, dim=-1).values
        return best_N2[:, 0] - best_N2[:, 1]


@dataclass(frozen=True)
class Entropy(Order):
    """The negative entropy of the distribution in nats: at most 0, which means certain."""

    name: str = field(default="entropy", init=False)

    def rate(self, proposals: Proposals) -> Float[Tensor, " N"]:
        probs_NV = proposals.shaped_probs
        return (probs_NV * (probs_NV + 1e-10).log()).sum(dim=-1)


@dataclass(frozen=True)
class AtRandom(Order):
    """A uniform number: the order is left to chance."""

    name: str = field(default="random", init=False)
    rates_confidence: ClassVar[bool] = False
    by_chance: ClassVar[bool] = True

    def rate(self, proposals: Proposals) -> Float[Tensor, " N"]:
        return proposals.uniform.to(proposals.logits.dtype)


@dataclass(frozen=True)
class Origin(AtRandom):
    """A uniform number again, but every position is filled with the same chance, so that the number
    filled is random as well."""

    name: str = field(default="origin", init=False)
    commits_by_chance: ClassVar[bool] = True


@dataclass(frozen=True)
class LeftToRight(Order):
    """The first masked position first, independent of the model: minus its position."""

    name: str = field(default="left_to_right", init=False)
    rates_confidence: ClassVar[bool] = False

    def rate(self, proposals: Proposals) -> Float[Tensor, " N"]:
        return -proposals.positions.to(proposals.logits.dtype)


@dataclass(frozen=True)
class RightToLeft(Order):
    """The last masked position first: its position."""

    name: str = field(default="right_to_left", init=False)
    rates_confidence: ClassVar[bool] = False

    def rate(self, proposals: Proposals) -> Float[Tensor, " N"]:
        return proposals.positions.to(proposals.logits.dtype)
