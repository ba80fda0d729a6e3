"""MOSA's objective: reward phrases that refuse in the middle of an answer, stay near the reference.

Implements arXiv 2508.12398 ("Where to Start Alignment? Diffusion Large Language Model May Demand a
Distinct Position"), Algorithm 1, as plain functions of log-probabilities, without a model.

    score(s, k) = sum_j log p(token s_j at position k + j - 1)      `window_scores`
    score(s)    = max over the starts k of a window                 `reduce_starts`
    R           = score(s+) - score(s-)                             s+ refuses, s- continues
    maximise      R - beta KL(policy || reference)                  `kl_divergence`

How we differ, and why:
1. The paper speaks of reinforcement learning but describes no rollout, advantage or ratio, and its
   running time leaves room for none: R is a differentiable function of one forward pass.
2. On a partly revealed answer the model does not choose a position that already holds a token.
   `gather_free` leaves such positions out; on the paper's fully masked answer it is the identity.
3. The harmful term has no lower bound in the paper; `bound_harmful` offers two.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

# B rows, P positions that are scored (in order), V vocabulary, N tokens of a phrase, S starts.

StartReduction = Literal["max", "logsumexp"]
TokenReduction = Literal["sum", "mean"]
HarmfulBound = Literal["none", "clamp", "hinge"]


def window_scores(
    log_probs: Float[Tensor, "B P V"],
    phrase: Int[Tensor, " N"],
    *,
    num_starts: int | None = None,
    token_reduction: TokenReduction = "sum",
    fill_token_id: int | None = None,
    fill_to: int | None = None,
) -> Float[Tensor, "B S"]:
    """Log-likelihood of `phrase` at every start: entry k is that of positions k .. k + N - 1.

    All starts at which the phrase lies within the P positions are scored, or the first
    `num_starts` of them. With `fill_token_id` the breaker is this token on every position from the
    end of the phrase to `fill_to` (exclusive, default P). `token_reduction="mean"` divides by the
    number of tokens scored. Unit: nats (nats per token for "mean"). arXiv 2508.12398, section on
    the token-level reward.

        log p = [[-1, -2], [-3, -4], [-5, -6]], phrase = [0, 1]  ->  [-1 - 4, -3 - 6] = [-5, -9]
    """
    num_positions, length = log_probs.shape[1], phrase.shape[0]
    all_starts = num_positions - length + 1
    num_starts = all_starts if num_starts is None else min(num_starts, all_starts)
    assert num_starts >= 1, "a phrase must fit into the positions that are scored"

    # token_log_probs[b, p, j]: log-probability of the phrase's j-th token at position p.
    token_log_probs_BPN = log_probs[..., phrase]
    # One diagonal per start: position k + j holds token j.
    starts = torch.arange(num_starts, device=log_probs.device)
    offsets = torch.arange(length, device=log_probs.device)
    scores_BS = token_log_probs_BPN[:, starts[:, None] + offsets, offsets].sum(dim=-1)
    num_tokens_S = torch.full_like(starts, length)

    if fill_token_id is not None:
        end = num_positions if fill_to is None else fill_to
        fill_BP = log_probs[:, :end, fill_token_id]
        # remaining[b, p] = sum of the fill token's log-probabilities on p .. end - 1
        remaining_BP = fill_BP.flip(-1).cumsum(-1).flip(-1)
        remaining_BP = torch.nn.functional.pad(remaining_BP, (0, num_positions + 1 - end))
        scores_BS = scores_BS + remaining_BP[:, starts + length]
        num_tokens_S = num_tokens_S + (end - starts - length).clamp(min=0)

    return scores_BS / num_tokens_S if token_reduction == "mean" else scores_BS


def reduce_starts(
    scores: Float[Tensor, "B S"],
    how: StartReduction,
    valid: Bool[Tensor, "B S"] | None = None,
) -> tuple[Float[Tensor, " B"], Int[Tensor, " B"], Bool[Tensor, " B"]]:
    """One score per row, the best start's index, and whether the row had any valid start.

    "max" is the paper's hard maximum; "logsumexp" is the log-likelihood of the phrase being at
    any of the starts (up to overlaps), so every start receives gradient. A row without a valid
    start scores 0 and gives no gradient.
    """
    if valid is None:
        valid = torch.ones_like(scores, dtype=torch.bool)
    has_start_B = valid.any(dim=-1)
    # -inf only where another start is finite, so that no gradient is ever 0 * inf.
    blocked_BS = scores.masked_fill(~valid, -torch.inf)
    blocked_BS = torch.where(has_start_B[:, None], blocked_BS, torch.zeros_like(scores))
    best_start_B = blocked_BS.argmax(dim=-1)
    if how == "max":
        reduced_B = blocked_BS.gather(-1, best_start_B[:, None]).squeeze(-1)
    else:
        reduced_B = torch.logsumexp(blocked_BS, dim=-1)
    reduced_B = torch.where(has_start_B, reduced_B, torch.zeros_like(reduced_B))
    return reduced_B, best_start_B, has_start_B


def gather_free(
    log_probs: Float[Tensor, "B P V"], free: Bool[Tensor, "B P"]
) -> tuple[Float[Tensor, "B P V"], Int[Tensor, " B"], Int[Tensor, "B P"]]:
    """Move each row's free positions to the front, in order: a phrase then reads *around* the rest.

    Returns the reordered log-probabilities, the number of free positions of each row, and the
    original index of every reordered position. What comes after the free positions has no
    meaning; the count must rule out starts that reach it.
    """
    order_BP = torch.argsort((~free).to(torch.uint8), dim=-1, stable=True)
    index_BPV = order_BP[..., None].expand_as(log_probs)
    return log_probs.gather(1, index_BPV), free.sum(dim=-1), order_BP


def kl_divergence(
    policy_log_probs: Float[Tensor, "B P V"], reference_log_probs: Float[Tensor, "B P V"]
) -> Float[Tensor, "B P"]:
    """KL(policy || reference) in nats at each position, over the full vocabulary.

    The policy fills positions independently given one canvas, so the KL of the distributions over
    whole answers is the sum of these over the masked positions (arXiv 2508.12398, objective).
    """
    return (policy_log_probs.exp() * (policy_log_probs - reference_log_probs)).sum(dim=-1)


def bound_harmful(
    score: Float[Tensor, "*shape"],
    reference_score: Float[Tensor, "*shape"] | None,
    how: HarmfulBound,
    *,
    margin: float,
) -> Float[Tensor, "*shape"]:
    """What is *minimised* for a harmful log-likelihood `score`, so that pushing it down can end.

    none   score                                       the paper: goes to minus infinity
    clamp  max(score, -margin)                         stops once p <= exp(-margin)
    hinge  max(score - reference + margin, 0)          stops `margin` nats below the reference

    `margin` is in nats; `reference_score` is needed by hinge.
    """
    if how == "none":
        return score
    if how == "clamp":
        return score.clamp(min=-margin)
    assert reference_score is not None, "hinge compares with the reference"
    return (score - reference_score + margin).clamp(min=0.0)


def contains_phrase(tokens: Int[Tensor, "B P"], phrase: Int[Tensor, " N"]) -> Bool[Tensor, " B"]:
    """Whether each row holds `phrase` as consecutive tokens."""
    length = phrase.shape[0]
    if length > tokens.shape[1]:
        return torch.zeros(tokens.shape[0], dtype=torch.bool, device=tokens.device)
    return (tokens.unfold(1, length, 1) == phrase).all(dim=-1).any(dim=-1)
