"""Whether the scores of a model choose a token at all.

# V vocabulary
"""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor


def chooses_nothing(scores: Float[Tensor, "*rows V"]) -> Bool[Tensor, "*rows"]:
    """Where the scores of all tokens are no numbers, infinite, or one and the same.

    Minus infinity marks tokens that never come, and is no fault beside finite ones.
    """
    lowest, highest = scores.aminmax(dim=-1)  # NaN where one of them is
    return ~(highest.isfinite() & (lowest < highest))
