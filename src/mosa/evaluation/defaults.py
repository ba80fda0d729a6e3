"""What an evaluation does where nothing is said: the decoder of a model, the judges of a set."""

from __future__ import annotations

from mosa.denoising import DecoderConfig
from mosa.testbed.measure import DECODER as TESTBED_DECODER
from mosa.world import World


def default_decoder(world: World | None) -> DecoderConfig:
    """The testbed's own decoder in its world; elsewhere 128 tokens in 128 steps."""
    return DecoderConfig() if world is None else TESTBED_DECODER


def default_judges(world: World | None) -> tuple[str, ...]:
    """The world's truth on the testbed; elsewhere phrases of refusal, which need no model."""
    return ("refusal",) if world is None else ("truth",)
