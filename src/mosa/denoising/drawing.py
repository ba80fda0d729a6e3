"""How a token is drawn: the distribution that is drawn from, the likeliest token, a random one.

# N masked positions, V vocabulary
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


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
    # Never an id that is none, even where the probabilities are no numbers.
    return tokens_NM.gather(1, member_N1).squeeze(1).clamp(max=probs.shape[1] - 1)


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
    index = torch.searchsorted(cumulative, aim, right=True).clamp(max=weights.shape[1] - 1)
    weight = weights.gather(1, index).double()
    return index, (1 - (cumulative.gather(1, index) - aim) / weight).clamp(min=0)
