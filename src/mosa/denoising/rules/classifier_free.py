"""Classifier-free guidance as in LLaDA's `generate.py` (arXiv:2502.09992).

The second pass sees the canvas with all that was given masked; the logits are moved away from it by
`scale` times the difference.

# V vocabulary
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from jaxtyping import Bool, Float, Int
from torch import Tensor

from mosa.denoising.rules.base import Guidance


@dataclass(frozen=True)
class ClassifierFree(Guidance):
    """Guidance away from what the model says without the prompt."""

    name: str = field(default="classifier_free", init=False)
    scale: float = field(kw_only=True)
    """How far; 0 leaves the logits as they are."""

    chosen_by: ClassVar[str] = "cfg_scale"

    def other_tokens(
        self, tokens: Int[Tensor, "*n"], given: Bool[Tensor, "*n"], mask_token_id: int
    ) -> Int[Tensor, "*n"]:
        return tokens.masked_fill(given, mask_token_id)

    def combine(
        self, logits: Float[Tensor, "*n V"], others: Float[Tensor, "*n V"]
    ) -> Float[Tensor, "*n V"]:
        return others + (self.scale + 1) * (logits - others)
