"""Settings of MOSA and of its baseline, initial alignment.

The defaults are the paper's (arXiv 2508.12398); where the paper is silent, docs/paper_index.md says
what we chose.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mosa.alignment.config import AlignConfig, Need, require
from mosa.alignment.objective import HarmfulBound, StartReduction, TokenReduction
from mosa.alignment.phrases import Breaker, LeadingSpace
from mosa.types import UserError


@dataclass
class MosaConfig(AlignConfig):
    """Middle-token alignment; with a window at position 1 it is initial alignment."""

    # The window
    window_start: int = 20
    """First position of the window; positions count from 1 at the first response token."""
    window_end: int | None = 60
    """Last position of the window (inclusive); none: phrases start exactly at window_start."""
    segment: Literal["contain", "start_in_window"] = "contain"
    """Whether a phrase must lie within the window, or only start in it."""

    # The phrases
    safe_phrases: str = "refusals"
    """Phrases to make likely: a packaged set or a .txt file, one per line."""
    harmful_phrases: str = "continuations"
    """Phrases to make unlikely: a packaged set or a .txt file, one per line."""
    phrase_sampling: Literal["one_pair", "full_set"] = "one_pair"
    """Draw one safe and one harmful phrase for each prompt, or average over all of them."""
    breaker: Breaker = "eos"
    """End tokens scored after a safe phrase, so that the answer is cut there."""

    # The score
    start_reduction: StartReduction = "max"
    """How the scores of all starts become one: hard maximum, or logsumexp."""
    token_reduction: TokenReduction = "sum"
    """Sum of the token log-probabilities of a phrase, or their mean."""
    harmful_weight: float = 1.0
    """Weight of the harmful term."""
    harmful_target: Literal["phrase", "answer"] = "phrase"
    """What is made unlikely: harmful phrases, or the harmful answer's own masked tokens."""
    harmful_bound: HarmfulBound = "none"
    """How the harmful term ends: none, clamp or hinge (docs/alignment.md has the formulas)."""
    harmful_margin: float = 20.0
    """Margin of clamp and hinge for a phrase, in nats."""
    answer_margin: float = 5.0
    """Margin of clamp and hinge for one token of the answer, in nats."""

    # The states in which the score is taken
    fully_masked_weight: float = 1.0
    """Relative share of prompts scored on a fully masked answer."""
    random_reveal_weight: float = 0.0
    """Relative share scored with tokens of the harmful answer revealed at random places."""
    prefix_weight: float = 0.0
    """Relative share scored with the beginning of the harmful answer revealed."""
    revealed: Literal["free", "around"] = "free"
    """Phrases at revealed positions: none there, or written around them."""
    contaminated_window: Literal["same", "response"] = "same"
    """Where phrases are scored on partly revealed answers: the window, or the whole response."""

    # The KL to the reference
    beta: float = 0.05
    """Weight of the KL on harmful prompts."""
    kl_reduction: Literal["sum", "mean"] = "sum"
    """Sum of the KL over positions (the KL of whole answers), or its mean."""
    benign_beta: float = 0.0
    """Weight of the KL on benign prompts at random mask ratios."""

    max_grad_norm: float = 0.01
    """Norm to which gradients are clipped."""

    @property
    def needs(self) -> frozenset[Need]:
        """Harmful answers for the states and targets made of them, benign prompts for their KL."""
        needs: set[Need] = set()
        if self.uses_contamination or self.harmful_target == "answer":
            needs.add("answers")
        if self.benign_beta > 0:
            needs.add("benign")
        return frozenset(needs)

    @property
    def leading_space(self) -> LeadingSpace:
        """How phrases are tokenised: with the space before them, unless they begin the answer."""
        if self.window_start > 1:
            return "with"
        return "without" if self.window_end is None else "both"

    @property
    def uses_contamination(self) -> bool:
        """Whether some prompts are scored on partly revealed answers."""
        return self.random_reveal_weight > 0 or self.prefix_weight > 0

    @property
    def scores_answers(self) -> bool:
        """Whether the harmful answers' own tokens are made unlikely."""
        return self.harmful_target == "answer" and self.harmful_weight > 0

    @property
    def uses_reference_scores(self) -> bool:
        """Whether the harmful term compares with the reference's log-probabilities."""
        return self.harmful_weight > 0 and self.harmful_bound == "hinge"

    @property
    def uses_reference(self) -> bool:
        """Whether the harmful side needs the reference model's forward pass."""
        return self.beta > 0 or self.uses_reference_scores

    def check(self) -> None:
        """Raise UserError for a setting outside its range."""
        super().check()
        start, end, length = self.window_start, self.window_end, self.response_length
        require(1 <= start <= length, "window_start", start, f"from 1 to response_length={length}")
        if end is not None:
            bounds = f"between window_start={start} and response_length={length}"
            require(start <= end <= length, "window_end", end, bounds)
        elif self.breaker == "fill":
            raise UserError("The breaker fill needs a window to fill; set window_end.")
        shares = ("fully_masked_weight", "random_reveal_weight", "prefix_weight")
        terms = ("harmful_weight", "beta", "benign_beta", "harmful_margin", "answer_margin")
        for name in (*shares, *terms):
            require(getattr(self, name) >= 0, name, getattr(self, name), "at least 0")
        has_share = any(getattr(self, name) > 0 for name in shares)
        require(has_share, "fully_masked_weight", 0, "above 0 if no other state has a weight")
        if self.breaker == "fill" and self.revealed != "free" and self.uses_contamination:
            raise UserError(
                "The breaker fill needs starts that are free; set revealed=free or another breaker."
            )
