"""What a caller's hook sees of each step, and may edit.

A hook belongs to the caller who samples, such as an attacker who owns the sampler; what belongs to
the decoder, is hashed and recorded, is a rule (`mosa.denoising.rules`). One row may have both: the
rules act first.

# A rows of one hook, L canvas length, R response length, K columns of the block, V vocabulary
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class StepState:
    """What a hook sees of a step, after its commits; one entry for each of its rows."""

    step: int
    rows: Int[Tensor, " A"]
    """Which rows of the canvas these are; with a `batch_size` they come in parts."""
    tokens: Int[Tensor, "A L"]
    """A copy of the canvas; change it and return it to edit the canvas itself."""
    committed: Bool[Tensor, "A L"]
    """The positions committed in this step."""
    columns: Int[Tensor, " K"]
    """The canvas columns of the three tensors below: the active block, or what is left of it."""
    proposals: Int[Tensor, "A K"]
    """The token proposed for each position that was masked; elsewhere the token on the canvas."""
    confidence: Float[Tensor, "A K"]
    """How the order of filling rated the proposals; -inf where nothing was masked."""
    response_start: int
    mask_token_id: int
    make_logits: Callable[[], Tensor] = field(repr=False)

    @property
    def response(self) -> Int[Tensor, "A R"]:
        """The response columns of the canvas."""
        return self.tokens[:, self.response_start :]

    @cached_property
    def logits(self) -> Float[Tensor, "A K V"]:
        """The model's logits, guided, before bans, temperature and cuts; computed when asked for.
        NaN where a column is padding."""
        return self.make_logits()


Hook = Callable[[StepState], Tensor | None]
"""Called after every planned step, with all rows, and after any step that follows the plan; without
rows that a rule has stopped.

Returns None, or the canvas [A, L] with free positions overwritten or masked again. What is masked
again is filled with the masks of the active block, or after the plan's last step in steps of their
own, so nothing stays masked. Prompts and pinned positions cannot be changed.
"""
