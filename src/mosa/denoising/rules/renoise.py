"""How canvases of uniform noise are denoised: what is accepted, what is drawn anew, when to stop.

Each step of a canvas asks the network for every position, at a temperature that falls from step to
step, and draws a token for each. The surest are accepted: as many as share hardly any information,
which their entropies bound (arXiv:2505.24857). All other positions become random tokens again,
earlier accepted ones included. The answer is the likeliest token everywhere; once it stays the same
and the entropies are small, the canvas is done. As in DiffusionGemma's sampler (transformers,
generation_diffusion_gemma.py, whose defaults these are).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from mosa.denoising.rules.base import Rule
from mosa.families.base import DiffusionLM
from mosa.types import UserError


@dataclass(frozen=True)
class Renoise(Rule):
    """Accepts surest tokens and draws the rest anew."""

    name: str = field(default="renoise", init=False)
    entropy_bound: float = field(default=0.1, kw_only=True)
    """Accepts positions, surest first, as long as the entropies of those before one add up to at
    most this, in nats."""
    hottest: float = field(default=0.8, kw_only=True)
    """The temperature that falls evenly with each step of a canvas; that of the first step."""
    coldest: float = field(default=0.4, kw_only=True)
    """Where it would arrive one step after the last."""
    stable_steps: int = field(default=1, kw_only=True)
    """Stops a canvas once its likeliest tokens were the same in so many steps before; 0 does not
    ask for it."""
    sure_below: float = field(default=0.005, kw_only=True)
    """Stops it only where the mean entropy lies below this, in nats."""

    def __post_init__(self) -> None:
        self.check_range("entropy_bound", 0.0)
        self.check_range("coldest", 0.01)
        self.check_range("hottest", self.coldest)
        self.check_range("stable_steps", 0.0)
        self.check_range("sure_below", 0.0)

    def check_model(self, model: DiffusionLM) -> None:
        """UserError for a model of masks."""
        if not model.is_noise:
            raise UserError(
                f"renoise denoises canvases of uniform noise, and {model.source} fills masks; "
                "leave the rule out."
            )

    def temperature(self, slot: int, num_slots: int) -> Float[Tensor, ""]:
        """The temperature of a step of a canvas, from 0; in float32, since rounding it decides."""
        share = torch.tensor(num_slots - slot) / num_slots
        return self.coldest + (self.hottest - self.coldest) * share
