"""What one step proposes for its masked positions: a token for each, and its rating.

# N masked positions, V vocabulary
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mosa.denoising.config import DecoderConfig
from mosa.denoising.drawing import draw, likeliest, shape_logits
from mosa.denoising.rules import Proposals
from mosa.draws import ORDER_DRAW, POSITION_DRAW, TOKEN_DRAW, Draws
from mosa.families.base import DiffusionLM, chooses_nothing

MAX_LOGITS_AT_ONCE = 2**26
"""How many logits are held at once (256 MB in float32); more positions are taken in parts."""
MAX_LOGITS_IN_CACHE = 2**20
"""How many logits a processor rates at once: what its caches hold, so that no pass over them
waits for memory."""


@dataclass(frozen=True)
class SpecialTokens:
    """Ids with their own rules, on the device."""

    mask: int
    ends: Int[Tensor, " n"]
    banned: Int[Tensor, " m"]

    @classmethod
    def of(cls, config: DecoderConfig, model: DiffusionLM) -> SpecialTokens:
        """The ids of a model, with what the config bans."""
        banned = banned_ids(config, model)
        if config.temperature > 0:
            banned.append(model.mask_token_id)
        return cls(
            mask=model.mask_token_id,
            ends=torch.tensor(model.end_token_ids, device=model.device),
            banned=torch.tensor(banned, dtype=torch.long, device=model.device),
        )


def banned_ids(config: DecoderConfig, model: DiffusionLM) -> list[int]:
    """The ids that a model never generates under this config, its mask token aside.

    Of the end tokens `forbid` bans all, as an attacker's decoder does, and `forbid_eos` end-of-text
    alone, as `logits_eos_inf` of LLaDA's evaluation (repository ML-GSAI/LLaDA, EVAL.md): an answer
    ends with its turn, and is not padded.
    """
    banned_ends = {"forbid": model.end_token_ids, "forbid_eos": (model.eos_token_id,)}
    return [*config.banned_token_ids, *banned_ends.get(config.end_tokens, ())]


def propose(
    config: DecoderConfig,
    special: SpecialTokens,
    logits_of: Callable[[slice], Float[Tensor, "n V"]],
    draws: Draws,
    vocab_size: int,
) -> tuple[Int[Tensor, " N"], Float[Tensor, " N"], Float[Tensor, " N"], Bool[Tensor, " N"]]:
    """For each masked position a token, its confidence, and the rating by which it is chosen; and
    whether its logits choose nothing, so that the other three mean nothing.

    The rating is the confidence, but for suppressed end tokens and for `alg_temp`. `logits_of`
    makes the logits of some of the positions, which are written to here; a bounded number of them
    exists at a time.
    """
    order, num_positions = config.order, len(draws.positions)
    unused_N = torch.zeros(num_positions, dtype=torch.float64, device=draws.keys.device)
    token_draw_N = draws.uniform(TOKEN_DRAW) if config.temperature > 0 else unused_N
    position_draw_N = draws.uniform(POSITION_DRAW) if order.by_chance else unused_N
    tokens, confidences, unusable = [], [], []
    for part in _parts(0, num_positions, MAX_LOGITS_AT_ONCE // vocab_size):
        logits_MV = logits_of(part)
        at_once = MAX_LOGITS_AT_ONCE if logits_MV.is_cuda else MAX_LOGITS_IN_CACHE
        for few in _parts(part.start, part.stop, at_once // vocab_size):
            logits_NV = logits_MV[few.start - part.start : few.stop - part.start]
            unusable.append(chooses_nothing(logits_NV))
            if len(special.banned):
                logits_NV[:, special.banned] = -torch.inf
            shaped_NV = shape_logits(logits_NV, config.temperature, config.top_p, config.top_k)
            shaped_probs_NV = None
            if config.temperature > 0:
                shaped_probs_NV = shaped_NV.softmax(dim=-1)
                token_N = draw(shaped_probs_NV, token_draw_N[few])
            else:
                # The mask token is not chosen, but counts in the confidences as in the references.
                mask_logit_N = logits_NV[:, special.mask].clone()
                logits_NV[:, special.mask] = -torch.inf
                token_N = likeliest(logits_NV)
                logits_NV[:, special.mask] = mask_logit_N
            if config.end_tokens == "suppress":  # confidence is about the other tokens
                logits_NV[:, special.ends] = -torch.inf
                shaped_NV[:, special.ends] = -torch.inf
                shaped_probs_NV = None
            proposals = Proposals(
                logits=logits_NV,
                shaped=shaped_NV,
                tokens=token_N,
                positions=draws.positions[few],
                steps=draws.steps[few],
                uniform=position_draw_N[few],
                drawn_probs=shaped_probs_NV,
            )
            tokens.append(token_N)
            confidences.append(order.rate(proposals).float())
    tokens_N, confidence_N = torch.cat(tokens), torch.cat(confidences)

    rating_N = confidence_N
    if config.alg_temp:  # Gumbel top-k: draws without replacement from softmax(c / alg_temp)
        gumbel_N = -(-draws.uniform(ORDER_DRAW).log()).log()
        rating_N = (confidence_N / config.alg_temp + gumbel_N).float()
    if config.end_tokens == "suppress":
        is_end_N = torch.isin(tokens_N, special.ends)
        confidence_N = confidence_N.masked_fill(is_end_N, 0.0)
        rating_N = rating_N.masked_fill(is_end_N, torch.finfo(rating_N.dtype).min)
    return tokens_N, confidence_N, rating_N, torch.cat(unusable)


def _parts(start: int, stop: int, size: int) -> Iterator[slice]:
    for begin in range(start, stop, max(1, size)):
        yield slice(begin, min(begin + max(1, size), stop))
