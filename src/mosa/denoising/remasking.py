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


def low_confidence(proposals: Proposals) -> Float[Tensor, " N"]:
    """The probability that the model gives to the token, before temperature and cuts, in [0, 1]."""
    return _probability(proposals.logits, proposals.tokens)


def maskgit_plus(proposals: Proposals) -> Float[Tensor, " N"]:
    """The probability of the token in the distribution that it was drawn from, in [0, 1]."""
    return _probability(proposals.shaped, proposals.tokens)


def topk_margin(proposals: Proposals) -> Float[Tensor, " N"]:
    """How far the likeliest token leads the second, whichever was drawn, in [0, 1]."""
    best_N2 = proposals.shaped.softmax(dim=-1).topk(2, dim=-1).values
    return best_N2[:, 0] - best_N2[:, 1]


def entropy(proposals: Proposals) -> Float[Tensor, " N"]:
    """The negative entropy of the distribution in nats: at most 0, which means certain."""
    probs_NV = proposals.shaped.softmax(dim=-1)
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


def _probability(logits_NV: Tensor, tokens_N: Tensor) -> Tensor:
    return logits_NV.softmax(dim=-1).gather(-1, tokens_N.unsqueeze(-1)).squeeze(-1)


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


def draw(shaped: Float[Tensor, "N V"], uniform: Float[Tensor, " N"]) -> Int[Tensor, " N"]:
    """One token for each row of logits, drawn from softmax(shaped) by inverting its distribution.

    Needs one uniform number for each position, where Gumbel noise needs V of them. It is looked up
    first among sums over groups of tokens, then within a group, both cumulated in float64, so that
    no rare token is lost to rounding (what arXiv:2409.02908 found of 32-bit Gumbel noise).
    """
    probs_NV = shaped.softmax(dim=-1)
    num_rows, num_tokens = probs_NV.shape
    num_groups, num_rest = divmod(num_tokens, _GROUP)
    grouped, rest = probs_NV.split([num_tokens - num_rest, num_rest], dim=1)
    sums_NG = torch.cat(
        [grouped.reshape(num_rows, num_groups, _GROUP).sum(dim=-1), rest.sum(dim=-1, keepdim=True)],
        dim=1,
    )
    group_N1, within_N1 = _invert(sums_NG, uniform.unsqueeze(1))
    tokens_NM = group_N1 * _GROUP + torch.arange(_GROUP, device=shaped.device)
    probs_NM = probs_NV.gather(1, tokens_NM.clamp(max=num_tokens - 1))
    member_N1, _ = _invert(probs_NM.masked_fill(tokens_NM >= num_tokens, 0), within_N1)
    return tokens_NM.gather(1, member_N1).squeeze(1)


_GROUP = 256


def _invert(weights: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Which weight of each row a uniform number falls on, and where in its extent, in [0, 1).

    Never one that is 0: the number is kept below 1, and a weight of 0 has no extent.
    """
    cumulative = weights.cumsum(dim=-1, dtype=torch.float64)
    aim = uniform.clamp(max=1 - 2**-48) * cumulative[:, -1:]
    index = torch.searchsorted(cumulative, aim, right=True)
    weight = weights.gather(1, index).double()
    return index, (1 - (cumulative.gather(1, index) - aim) / weight).clamp(min=0)
