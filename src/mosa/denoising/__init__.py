"""Denoising: the canvas, the one loop that fills it, and the trace of how it was filled."""

from mosa.denoising.batch import Denoiser, Hook, OnStep, StepChanges, StepState
from mosa.denoising.canvas import Canvas
from mosa.denoising.config import DecoderConfig
from mosa.denoising.likelihood import LikelihoodBound, log_likelihood_bound, token_log_probs
from mosa.denoising.noise import Masked, mask_at_random_ratio, mask_exact_count
from mosa.denoising.remasking import REMASKING
from mosa.denoising.sampler import SampleResult, evaluation_mode, result_of, sample
from mosa.denoising.trace import DenoisingTrace, Filling, Remasking

__all__ = [
    "REMASKING",
    "Canvas",
    "DecoderConfig",
    "Denoiser",
    "DenoisingTrace",
    "Filling",
    "Hook",
    "LikelihoodBound",
    "Masked",
    "OnStep",
    "Remasking",
    "SampleResult",
    "StepChanges",
    "StepState",
    "evaluation_mode",
    "log_likelihood_bound",
    "mask_at_random_ratio",
    "mask_exact_count",
    "result_of",
    "sample",
    "token_log_probs",
]
