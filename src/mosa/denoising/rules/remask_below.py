"""Takes back committed tokens that the model now doubts, so that they are filled again.

After a step, every token of an earlier step has the probability that the step's pass gives it at
its position. Those below a threshold are masked again, the least likely first, in each row few
enough that its generation ends. As in ReMDM (arXiv:2503.00307), which samplers of masked diffusion
lack: there a token, once committed, stays. How we differ, and why:

1. ReMDM's confidence-based schedules take the probability at which a token was committed; ours is
   the current one, as in the editing of LLaDA2.1, since the tokens filled later cause the doubt.
2. ReMDM remasks by chance, with a schedule; ours only by the threshold, so that a row of
   temperature 0 stays a function of its prompt.

# n tokens of one row, m of them, V vocabulary
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from mosa.denoising.rules.base import Action, Monitor, RowView
from mosa.families.base import DiffusionLM


@dataclass
class TakenBack:
    """How many tokens of a row were taken back so far."""

    count: int = 0


@dataclass(frozen=True)
class RemaskBelow(Monitor):
    """A repair that masks doubtful tokens again."""

    name: str = field(default="remask_below", init=False)
    threshold: float = field(kw_only=True)
    """Takes tokens back whose current probability is lower than this."""
    max_taken_back: int = field(kw_only=True)
    """Takes back at most this many tokens of a row, over all its steps."""

    works_beside_cache: ClassVar[bool] = False  # what a cache holds depends on the tokens
    reads_logits: ClassVar[bool] = True

    def __post_init__(self):
        self.check_range("threshold", 0.0, 1.0)
        self.check_range("max_taken_back", 1.0)

    def start(self, model: DiffusionLM) -> TakenBack:
        return TakenBack()

    def look(self, row: RowView, state: TakenBack) -> Action | None:
        left = self.max_taken_back - state.count
        is_earlier_n = row.is_free & (row.commit_step >= 0) & (row.commit_step < row.step)
        earlier_m = row.computed[is_earlier_n[row.computed]]
        if left == 0 or not len(earlier_m):
            return None
        probs_mV = row.logits(earlier_m).softmax(dim=-1)
        prob_m = probs_mV.gather(1, row.tokens[earlier_m, None])[:, 0]
        worst_m = prob_m.argsort(stable=True)[:left]
        doubted = earlier_m[worst_m[prob_m[worst_m] < self.threshold]]
        if not len(doubted):
            return None
        state.count += len(doubted)
        row.tokens[doubted] = row.mask_token_id
        return Action(tokens=row.tokens)
