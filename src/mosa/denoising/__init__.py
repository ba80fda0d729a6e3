"""Denoising: the canvas, the one loop that fills it, and the trace of how it was filled."""

from mosa.denoising.batch import Denoiser
from mosa.denoising.canvas import Canvas
from mosa.denoising.config import TESTBED_DECODER, DecoderConfig, testbed_decoder
from mosa.denoising.likelihood import LikelihoodBound, log_likelihood_bound
from mosa.denoising.masks import Masked, mask_at_random_ratio, mask_exact_count
from mosa.denoising.published import PUBLISHED
from mosa.denoising.renoising import check_decoder, denoiser_of
from mosa.denoising.rows import Hook, OnStep, StepChanges
from mosa.denoising.rules import RULES, Action, RowView, rule_from_dict
from mosa.denoising.sampler import (
    SampleResult,
    UnknownWords,
    default_config,
    evaluation_mode,
    result_of,
    sample,
    warn_of_unknown_words,
)
from mosa.denoising.trace import DenoisingTrace, Filling, Note, Remasking

__all__ = [
    "RULES",
    "PUBLISHED",
    "TESTBED_DECODER",
    "Action",
    "Canvas",
    "DecoderConfig",
    "Denoiser",
    "DenoisingTrace",
    "Filling",
    "Hook",
    "LikelihoodBound",
    "Masked",
    "Note",
    "OnStep",
    "Remasking",
    "RowView",
    "SampleResult",
    "UnknownWords",
    "check_decoder",
    "default_config",
    "denoiser_of",
    "warn_of_unknown_words",
    "StepChanges",
    "evaluation_mode",
    "log_likelihood_bound",
    "mask_at_random_ratio",
    "mask_exact_count",
    "result_of",
    "rule_from_dict",
    "sample",
    "testbed_decoder",
]
