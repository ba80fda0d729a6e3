"""The masks of training and of likelihoods.

# B rows, L canvas length, S samples
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mosa.types import UserError


@dataclass(frozen=True)
class Masked:
    """Token rows with some positions replaced by the mask token."""

    tokens: Int[Tensor, "B L"]
    is_masked: Bool[Tensor, "B L"]
    mask_probability: Float[Tensor, " B"]
    """With which probability an eligible position of the row was masked: the 1/p weight of the
    loss."""


def mask_at_random_ratio(
    tokens: Int[Tensor, "B L"],
    eligible: Bool[Tensor, "B L"],
    mask_token_id: int,
    *,
    generator: torch.Generator,
    low: float = 1e-3,
    high: float = 1.0,
) -> Masked:
    """Masks each eligible position with a probability drawn for every row from U(low, high).

    The forward process of masked diffusion (arXiv:2502.09992, Eq. 7 and Appendix B.1; GUIDELINES.md
    of the released code, where low = eps = 1e-3). For supervised tuning `eligible` is the response,
    the end tokens that pad it included. `generator` lives on the device of `tokens`.
    """
    if not 0 <= low <= high <= 1:
        raise UserError(f"Mask ratios need 0 <= low <= high <= 1, not {low} and {high}.")
    device = tokens.device
    time_B = torch.rand(len(tokens), generator=generator, device=device)
    probability_B = low + (high - low) * time_B
    draw_BL = torch.rand(tokens.shape, generator=generator, device=device)
    is_masked_BL = eligible & (draw_BL < probability_B[:, None])
    return Masked(tokens.masked_fill(is_masked_BL, mask_token_id), is_masked_BL, probability_B)


def mask_exact_count(
    tokens: Int[Tensor, "B L"],
    eligible: Bool[Tensor, "B L"],
    mask_token_id: int,
    counts: Int[Tensor, " B"],
    draws: Float[Tensor, "B L"],
) -> Masked:
    """Masks exactly `counts[b]` eligible positions of row b, every choice equally likely.

    `draws` makes the choice, a uniform number for every position. Rows with fewer eligible
    positions than asked for are a UserError.
    """
    num_eligible_B = eligible.sum(dim=1)
    if bool(((counts < 0) | (counts > num_eligible_B)).any()):
        raise UserError(
            f"Cannot mask {counts.tolist()} positions where {num_eligible_B.tolist()} are eligible;"
            " ask for fewer."
        )
    rank_BL = draws.masked_fill(~eligible, torch.inf).argsort(dim=1).argsort(dim=1)
    is_masked_BL = rank_BL < counts[:, None]
    return Masked(
        tokens.masked_fill(is_masked_BL, mask_token_id),
        is_masked_BL,
        counts / num_eligible_B.clamp(min=1),
    )


def stratified_counts(
    lengths: Int[Tensor, " B"], start: Float[Tensor, " B"], num_samples: int
) -> Int[Tensor, "B S"]:
    """For each row, `num_samples` mask counts in 1..length: evenly spread, wrapping around.

    They begin at a random place, which `start` in [0, 1) says, so each single count is uniform and
    together they cover the range: fewer samples are needed for the same error than with counts
    drawn one by one (`forward_process` in `get_log_likelihood.py` of the LLaDA code). For example
    length 8, four samples, start 0.25: 3, 5, 7, 9 -> 3, 5, 7, 1.
    """
    first_B1 = (start * lengths).floor().unsqueeze(1) + 1
    spread_BS = torch.arange(num_samples, device=lengths.device) * (lengths[:, None] / num_samples)
    return (torch.round(first_B1 + spread_BS).long() - 1) % lengths[:, None] + 1
