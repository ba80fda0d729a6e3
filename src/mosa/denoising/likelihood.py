"""How likely a model finds a response, over all ways of masking it.

# B rows, L canvas length, R response length, S samples, M rows of one forward pass, V vocabulary
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mosa.denoising.canvas import Canvas, check_fits
from mosa.denoising.masks import mask_exact_count, stratified_counts
from mosa.denoising.rules.classifier_free import ClassifierFree
from mosa.denoising.sampler import evaluation_mode
from mosa.draws import COUNT_DRAW, MASK_DRAW, counter_uniform, row_keys
from mosa.families.base import DiffusionLM
from mosa.types import UserError


@dataclass(frozen=True)
class LikelihoodBound:
    """A Monte-Carlo estimate of the evidence lower bound on log p(response | prompt), in nats."""

    mean: Float[Tensor, " B"]
    standard_error: Float[Tensor, " B"]
    """Of samples taken as independent; those of `log_likelihood_bound` are spread evenly, so that
    the true error is smaller. NaN with a single sample."""
    num_samples: int


@torch.no_grad()
def log_likelihood_bound(
    model: DiffusionLM,
    canvas: Canvas,
    *,
    num_samples: int = 128,
    batch_size: int = 16,
    cfg_scale: float = 0.0,
    seed: int = 0,
) -> LikelihoodBound:
    """Estimates the likelihood bound of every row's response given its prompt.

    LLaDA (arXiv:2502.09992, Eq. 6 and Appendix B.5; `get_log_likelihood.py`): mask l of the n
    response tokens at random, l uniform on 1..n, and weigh their log-probabilities by n/l. The
    canvas holds prompt and response, with no mask; response positions outside its attention mask
    are not counted. Counts are spread evenly over all samples of a row, where the reference spreads
    them within each batch of 16. In block-causal attention a masked token is found given the blocks
    before its own as they are; the bound is the same, since of the masks each number is equally
    likely to fall on a block. `batch_size` bounds the canvases of one forward pass.
    """
    if model.is_noise:
        raise UserError(
            f"The bound is that of masked diffusion, and {model.source} has no mask; compare its "
            "answers instead."
        )
    for name, value in (("num_samples", num_samples), ("batch_size", batch_size)):
        if value < 1:
            raise UserError(f"{name} must be at least 1, not {value}.")
    if bool(canvas.free.any()):
        raise UserError("The canvas has masks left; give the whole text whose likelihood is meant.")
    width = canvas.response.shape[1]
    check_fits(model, int(canvas.attention_mask.sum(dim=1).max()) - width, width)
    canvas = canvas.to(model.device)
    positions_L = canvas.positions
    eligible_BL = canvas.attention_mask & (positions_L >= 0)
    length_B = eligible_BL.sum(dim=1)
    if not bool((length_B > 0).all()):
        raise UserError("A row has no response token; leave it out.")
    keys_B = row_keys(canvas.tokens, canvas.attention_mask, canvas.response_start)
    start_B = counter_uniform(seed, keys_B, torch.zeros_like(keys_B), 0, COUNT_DRAW)
    counts_BS = stratified_counts(length_B, start_B, num_samples)
    attention_BL = None if bool(canvas.attention_mask.all()) else canvas.attention_mask
    columns_R = (positions_L >= 0).nonzero().squeeze(1)

    samples = []
    with evaluation_mode(model):
        for sample_M in torch.arange(counts_BS.numel(), device=model.device).split(batch_size):
            row_M, number_M = sample_M // num_samples, sample_M % num_samples
            draws_ML = counter_uniform(
                seed, keys_B[row_M, None], positions_L, number_M[:, None], MASK_DRAW
            )
            masked = mask_exact_count(
                canvas.tokens[row_M],
                eligible_BL[row_M],
                model.mask_token_id,
                counts_BS.flatten()[sample_M],
                draws=draws_ML,
            )
            logits_MRV = guided_logits(
                model,
                masked.tokens,
                None if attention_BL is None else attention_BL[row_M],
                columns_R,
                response_start=canvas.response_start,
                written=canvas.tokens[row_M],
                given=(canvas.attention_mask & ~eligible_BL)[row_M],
                cfg_scale=cfg_scale,
            )
            target_MR1 = canvas.response[row_M].unsqueeze(-1)
            log_probs_MR = logits_MRV.gather(-1, target_MR1).squeeze(-1) - logits_MRV.logsumexp(-1)
            is_masked_MR = masked.is_masked[:, columns_R]
            samples.append(
                log_probs_MR.masked_fill(~is_masked_MR, 0).sum(dim=1) / masked.mask_probability
            )
    samples_BS = torch.cat(samples).view(counts_BS.shape)
    mean_B = samples_BS.mean(dim=1)
    error_B = torch.full_like(mean_B, torch.nan)
    if num_samples > 1:
        error_B = samples_BS.std(dim=1) / num_samples**0.5
    return LikelihoodBound(mean_B, error_B, num_samples)


def guided_logits(
    model: DiffusionLM,
    tokens: Int[Tensor, "M L"],
    attention_mask: Bool[Tensor, "M L"] | None,
    columns: Int[Tensor, " R"],
    *,
    response_start: int,
    written: Int[Tensor, "M L"] | None = None,
    given: Bool[Tensor, "M L"],
    cfg_scale: float,
) -> Float[Tensor, "M R V"]:
    """The logits of the columns, guided away from a canvas in which `given` is masked as well.

    `written`: as for `DiffusionLM.logits`.
    """
    if cfg_scale == 0:
        return model.logits(
            tokens, attention_mask, columns, response_start=response_start, written=written
        )
    guidance = ClassifierFree(scale=cfg_scale)
    blind_ML = guidance.other_tokens(tokens, given, model.mask_token_id)
    twice = None if attention_mask is None else torch.cat([attention_mask, attention_mask])
    if written is not None:
        blind = guidance.other_tokens(written, given, model.mask_token_id)
        written = torch.cat([written, blind])
    both_MRV = model.logits(
        torch.cat([tokens, blind_ML]),
        twice,
        columns,
        response_start=response_start,
        written=written,
    )
    logits_MRV, blind_MRV = both_MRV.chunk(2)
    return guidance.combine(logits_MRV, blind_MRV)
