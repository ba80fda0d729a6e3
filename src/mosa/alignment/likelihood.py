"""How likely an answer is under masked diffusion, for gradients: one masked canvas, or a bound.

LLaDA (arXiv 2502.09992, eq. 4 to 6): mask an answer of R positions at ratio t and sum its masked
tokens' log-probabilities, over t. The mean over t and masks is a lower bound of the answer's
log-likelihood. `denoising.likelihood` measures that bound; here it is trained, from the values
that head_loss.py computes for a policy and its reference on the *same* masks.

    R = 4, two positions masked (t = 0.5) with p = 1/2 and 1/4  ->  (ln 1/2 + ln 1/4) / 0.5
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mosa.alignment.states import ResponseState, padded_answer
from mosa.denoising.masks import mask_exact_count, stratified_counts
from mosa.families import DiffusionLM

# B rows, R response positions, S maskings of one answer.


def masked_log_likelihood(
    log_probs: Float[Tensor, "B R"], masked: Bool[Tensor, "B R"], mask_ratio: Float[Tensor, " B"]
) -> Float[Tensor, " B"]:
    """Sum of each row's log-probabilities at its masked positions, over its mask ratio; in nats."""
    return log_probs.masked_fill(~masked, 0.0).sum(dim=-1) / mask_ratio


def maskings(
    model: DiffusionLM,
    answer_ids: Sequence[int],
    length: int,
    num_samples: int,
    random: np.random.Generator,
) -> list[ResponseState]:
    """`num_samples` ways to mask an answer that end-of-text pads to `length`.

    The number of masked positions is uniform on 1 .. length and spread evenly over the samples, one
    masking for each: this gives the bound the least variance for a budget (LLaDA 1.5, arXiv
    2505.19223, "optimal allocation").
    """
    tokens_SR = padded_answer(model, answer_ids, length).expand(num_samples, length)
    start = torch.tensor([random.random()])
    counts_S = stratified_counts(torch.tensor([length]), start, num_samples)[0]
    noisy = mask_exact_count(
        tokens_SR,
        torch.ones_like(tokens_SR, dtype=torch.bool),
        model.mask_token_id,
        counts_S,
        draws=torch.from_numpy(random.random((num_samples, length))),
    )
    return [
        ResponseState(tokens, masked, "random_reveal", length, float(ratio))
        for tokens, masked, ratio in zip(
            tokens_SR, noisy.is_masked, noisy.mask_probability, strict=True
        )
    ]
