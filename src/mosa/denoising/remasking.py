"""Which masked position is filled next: one function for each rule, all in one table.

A rule rates the token proposed for each masked position; the best rated are committed and the
others stay masked ("remasked"). `maskgit_plus`, `topk_margin`, `entropy` and `origin` are Dream's
names (arXiv:2508.15487; `_sample` of its released code), `low_confidence` and `random` LLaDA's
(arXiv:2502.09992, Section 2.4; `generate.py`).

# N masked positions, V vocabulary
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Proposals:
    """The tokens proposed for N masked positions, and what a rule may rate them by."""

    logits: Float[Tensor, "N V"]
    """The model's logits, banned tokens at -inf."""
    shaped: Float[Tensor, "N V"]
    """The logits of the distribution that is drawn from: tempered, cut by top-k and top-p."""
    tokens: Int[Tensor, " N"]
    uniform: Float[Tensor, " N"]
    """A uniform number for each position, for rules that choose by chance."""
    positions: Int[Tensor, " N"]
    """Where in the response each stands, for rules that fix the order."""
    shaped_probs: Float[Tensor, "N V"] | None = None
    """softmax(shaped), where drawing has made it already."""

    @cached_property
    def probs(self) -> Float[Tensor, "N V"]:
        """softmax(logits)."""
        if self.shaped_probs is not None and self.shaped is self.logits:
            return self.shaped_probs
        return self.logits.softmax(dim=-1)


def low_confidence(proposals: Proposals) -> Float[Tensor, " N"]:
    """The probability that the model gives to the token, before temperature and cuts, in [0, 1]."""
    return _picked(proposals.probs, proposals.tokens)


def maskgit_plus(proposals: Proposals) -> Float[Tensor, " N"]:
    """The probability of the token in the distribution that it was drawn from, in [0, 1]."""
    return _picked(_shaped_probs(proposals), proposals.tokens)


def topk_margin(proposals: Proposals) -> Float[Tensor, " N"]:
    """How far the likeliest token leads the second, whichever was drawn, in [0, 1]."""
    best_N2 = _shaped_probs(proposals).topk(2, dim=-1).values
    return best_N2[:, 0] - best_N2[:, 1]


def entropy(proposals: Proposals) -> Float[Tensor, " N"]:
    """The negative entropy of the distribution in nats: at most 0, which means certain."""
    probs_NV = _shaped_probs(proposals)
    return (probs_NV * (probs_NV + 1e-10).log()).sum(dim=-1)


def at_random(proposals: Proposals) -> Float[Tensor, " N"]:
    """A uniform number: the order is left to chance."""
    return proposals.uniform.to(proposals.logits.dtype)


def left_to_right(proposals: Proposals) -> Float[Tensor, " N"]:
    """The first masked position first, whatever the model thinks of it: minus its position."""
    return -proposals.positions.to(proposals.logits.dtype)


def right_to_left(proposals: Proposals) -> Float[Tensor, " N"]:
    """The last masked position first: its position."""
    return proposals.positions.to(proposals.logits.dtype)


REMASKING: dict[str, Callable[[Proposals], Tensor]] = {
    "low_confidence": low_confidence,
    "random": at_random,
    "maskgit_plus": maskgit_plus,
    "topk_margin": topk_margin,
    "entropy": entropy,
    # Every position is filled with the same chance, so the number filled is random as well; the
    # sampler commits what exceeds a bound set by the schedule.
    "origin": at_random,
    # Orders that an attacker who runs the sampler may impose (A2D, arXiv:2509.23286).
    "left_to_right": left_to_right,
    "right_to_left": right_to_left,
}


def _shaped_probs(proposals: Proposals) -> Tensor:
    known = proposals.shaped_probs
    return proposals.shaped.softmax(dim=-1) if known is None else known


def _picked(probs_NV: Tensor, tokens_N: Tensor) -> Tensor:
    return probs_NV.gather(-1, tokens_N.unsqueeze(-1)).squeeze(-1)


def likeliest(logits: Float[Tensor, "N V"]) -> Int[Tensor, " N"]:
    """The first of each row's largest logits.

    As `argmax`, which takes four times as long on a CPU: looked up first among the largest of
    groups, then within a group.
    """
    grouped_NGM, rest = _in_groups(logits)
    best_NG = grouped_NGM.amax(dim=-1)
    if rest.shape[1]:
        best_NG = torch.cat([best_NG, rest.amax(dim=-1, keepdim=True)], dim=1)
    tokens_NM, members_NM = _group(logits, best_NG.argmax(dim=1, keepdim=True), -torch.inf)
    return tokens_NM.gather(1, members_NM.argmax(dim=1, keepdim=True)).squeeze(1)


def shape_logits(
    logits: Float[Tensor, "N V"], temperature: float, top_p: float | None, top_k: int | None
) -> Float[Tensor, "N V"]:
    """Divides by the temperature (0: leaves as is), then keeps the top-p nucleus, then the top k.

    Cut tokens go to -inf. Always leaves the likeliest token. Ties at the k-th place all stay.
    """
    if temperature not in (0, 1):
        logits = logits / temperature
    if top_p is not None and top_p < 1:
        sorted_NV, order_NV = logits.sort(dim=-1, descending=True)
        # A token is cut when the likelier ones already hold more than top_p.
        exceeds_NV = sorted_NV.softmax(dim=-1).cumsum(dim=-1) > top_p
        cut_NV = torch.zeros_like(exceeds_NV)
        cut_NV[:, 1:] = exceeds_NV[:, :-1]
        logits = logits.masked_fill(cut_NV.scatter(-1, order_NV, cut_NV), -torch.inf)
    if top_k is not None:
        kth_N1 = logits.topk(min(top_k, logits.shape[-1]), dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < kth_N1, -torch.inf)
    return logits


def draw(probs: Float[Tensor, "N V"], uniform: Float[Tensor, " N"]) -> Int[Tensor, " N"]:
    """One token for each row, drawn from its probabilities by inverting their distribution.

    Needs one uniform number for each position, where Gumbel noise needs V of them. It is looked up
    first among sums over groups of tokens, then within a group, both cumulated in float64, so that
    no rare token is lost to rounding (what arXiv:2409.02908 found of 32-bit Gumbel noise).
    """
    grouped_NGM, rest = _in_groups(probs)
    sums_NG = torch.cat([grouped_NGM.sum(dim=-1), rest.sum(dim=-1, keepdim=True)], dim=1)
    group_N1, within_N1 = _invert(sums_NG, uniform.unsqueeze(1))
    tokens_NM, members_NM = _group(probs, group_N1, 0.0)
    member_N1, _ = _invert(members_NM, within_N1)
    return tokens_NM.gather(1, member_N1).squeeze(1)


_GROUP = 256


def _in_groups(values: Float[Tensor, "N V"]) -> tuple[Tensor, Tensor]:
    """Consecutive tokens in groups of one size, and those that are left over."""
    num_groups, num_rest = divmod(values.shape[1], _GROUP)
    grouped, rest = values.split([num_groups * _GROUP, num_rest], dim=1)
    return grouped.reshape(len(values), num_groups, _GROUP), rest


def _group(
    values: Float[Tensor, "N V"], group: Int[Tensor, "N 1"], missing: float
) -> tuple[Tensor, Tensor]:
    """The tokens of one group of each row, and their values; the last group may lack some."""
    tokens_NM = group * _GROUP + torch.arange(_GROUP, device=values.device)
    is_missing_NM = tokens_NM >= values.shape[1]
    members_NM = values.gather(1, tokens_NM.clamp(max=values.shape[1] - 1))
    return tokens_NM, members_NM.masked_fill(is_missing_NM, missing)


def _invert(weights: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Which weight of each row a uniform number falls on, and where in its extent, in [0, 1).

    Never one that is 0: the number is kept below 1, and a weight of 0 has no extent.
    """
    cumulative = weights.cumsum(dim=-1, dtype=torch.float64)
    aim = uniform.clamp(max=1 - 2**-48) * cumulative[:, -1:]
    index = torch.searchsorted(cumulative, aim, right=True)
    weight = weights.gather(1, index).double()
    return index, (1 - (cumulative.gather(1, index) - aim) / weight).clamp(min=0)
