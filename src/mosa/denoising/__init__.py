"""Denoising: the canvas, the one loop that fills it, and the trace of how it was filled."""

from mosa.denoising.canvas import Canvas
from mosa.denoising.config import DecoderConfig
from mosa.denoising.remasking import REMASKING
from mosa.denoising.sampler import Hook, SampleResult, StepState, sample
from mosa.denoising.trace import DenoisingTrace, Remasking

__all__ = [
    "REMASKING",
    "Canvas",
    "DecoderConfig",
    "DenoisingTrace",
    "Hook",
    "Remasking",
    "SampleResult",
    "StepState",
    "sample",
]
