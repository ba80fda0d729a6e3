"""Whether the scores of a model choose a token at all.

# V vocabulary
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def chooses_nothing(scores: Float[Tensor, "*rows V"]) -> Bool[Tensor, "*rows"]:
    """Where the scores of all tokens are no numbers, infinite, or one and the same.

    Minus infinity marks tokens that never come, and is no fault beside finite ones.
    """
    # Both are NaN where one score is. `aminmax` takes ten times as long on a CPU.
    lowest, highest = scores.amin(dim=-1), scores.amax(dim=-1)
    return ~((lowest < highest) & (highest < torch.inf))
