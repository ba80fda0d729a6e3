"""Denoising: the canvas, the one loop that fills it, and the trace of how it was filled."""

from mosa.denoising.canvas import Canvas
from mosa.denoising.config import DecoderConfig
from mosa.denoising.likelihood import LikelihoodBound, log_likelihood_bound, token_log_probs
from mosa.denoising.noise import Masked, mask_at_random_ratio, mask_exact_count
from mosa.denoising.remasking import REMASKING
from mosa.denoising.sampler import Hook, SampleResult, StepState, sample
from mosa.denoising.trace import DenoisingTrace, Remasking

__all__ = [
    "REMASKING",
    "Canvas",
    "DecoderConfig",
    "DenoisingTrace",
    "Hook",
    "LikelihoodBound",
    "Masked",
    "Remasking",
    "SampleResult",
    "StepState",
    "log_likelihood_bound",
    "mask_at_random_ratio",
    "mask_exact_count",
    "sample",
    "token_log_probs",
]
