"""What a decoding rule is: a frozen config, chosen by name, hashed and recorded with its options.

There are four kinds. `Stages` say which masks open before which. An `Order` rates the tokens
proposed for open masks, of which the best are committed. A `Guidance` asks for a second pass over
other tokens and mixes the logits of both. A `Monitor` looks at a row after each step (logits,
hidden states) and may take tokens back, replace them, stop the row or note something in its trace;
it keeps a state for every row.

# N masked positions, V vocabulary, n tokens of one row, m of them, D width
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

from jaxtyping import Bool, Float, Int
from torch import Tensor

from mosa.families.base import DiffusionLM
from mosa.types import UserError


@dataclass(frozen=True)
class Rule(ABC):  # noqa: B024
    """One rule with its options, which are its fields."""

    name: str = field(default="", init=False)
    """The name by which it is chosen; a class sets it as the field's default."""

    chosen_by: ClassVar[str] = "rules"
    """The setting of `DecoderConfig` that chooses it."""
    works_beside_cache: ClassVar[bool] = True

    def to_dict(self) -> dict[str, Any]:
        """Name and options, as `rule_from_dict` reads them."""
        return dataclasses.asdict(self)

    def check_model(self, model: DiffusionLM) -> None:  # noqa: B027
        """UserError where the rule does not fit the model."""

    def check_range(self, option: str, low: float, high: float = float("inf")) -> None:
        """UserError where an option is not a number from `low` to `high`."""
        value = getattr(self, option)
        if not low <= value <= high:
            limits = f"at least {low:g}" if high == float("inf") else f"from {low:g} to {high:g}"
            raise UserError(f"{option} of {self.name} must be {limits}, not {value!r}.")


# --- stages ---------------------------------------------------------------------------------------


class Stages(Rule):
    """Which masks open before which: the masks of a stage open when the stage before it is full.

    Without such a rule the stages are the blocks, each of which has as many steps. Stages differ in
    size, so each has steps in proportion to its masks.
    """

    @abstractmethod
    def check_length(self, max_new_tokens: int) -> None:
        """UserError where the rule does not fit a response of this length."""

    @abstractmethod
    def stage_of(
        self, positions: Int[Tensor, "*n"], blocks: Int[Tensor, "*n"]
    ) -> Int[Tensor, "*n"]:
        """The stage of each token, from 0, given its response position (from 0; below 0 in the
        prompt) and its block, from 0."""


# --- orders ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Proposals:
    """The tokens proposed for N masked positions, and what an order may rate them by."""

    logits: Float[Tensor, "N V"]
    """The model's logits, banned tokens at -inf."""
    shaped: Float[Tensor, "N V"]
    """The logits of the distribution that is drawn from: tempered, cut by top-k and top-p."""
    tokens: Int[Tensor, " N"]
    positions: Int[Tensor, " N"]
    """Response positions, from 0; below 0 in the prompt."""
    steps: Int[Tensor, " N"]
    """The step of each position's row, from 0."""
    uniform: Float[Tensor, " N"]
    """A uniform number for each position; 0 for orders that are not `by_chance`."""
    drawn_probs: Float[Tensor, "N V"] | None = None
    """softmax(shaped), where drawing has made it already."""

    @cached_property
    def probs(self) -> Float[Tensor, "N V"]:
        """softmax(logits)."""
        if self.drawn_probs is not None and self.shaped is self.logits:
            return self.drawn_probs
        return self.logits.softmax(dim=-1)

    @cached_property
    def shaped_probs(self) -> Float[Tensor, "N V"]:
        """softmax(shaped)."""
        return self.shaped.softmax(dim=-1) if self.drawn_probs is None else self.drawn_probs

    @cached_property
    def token_probs(self) -> Float[Tensor, " N"]:
        """What `probs` gives to the tokens."""
        return _of_tokens(self.probs, self.tokens)

    @cached_property
    def shaped_token_probs(self) -> Float[Tensor, " N"]:
        """What `shaped_probs` gives to the tokens."""
        return _of_tokens(self.shaped_probs, self.tokens)


def _of_tokens(probs_NV: Tensor, tokens_N: Tensor) -> Tensor:
    return probs_NV.gather(-1, tokens_N.unsqueeze(-1)).squeeze(-1)


class Order(Rule):
    """Which masked positions are filled first."""

    chosen_by: ClassVar[str] = "remasking"
    """Orders with options are chosen by "rules" instead."""
    rates_confidence: ClassVar[bool] = True
    """Whether ratings are the model's confidence, which threshold, factor and alg_temp use."""
    by_chance: ClassVar[bool] = False
    """Whether `rate` reads `Proposals.uniform`."""
    commits_by_chance: ClassVar[bool] = False
    """Whether a position is committed where its rating exceeds 1 - the share that the schedule
    gives to the step, instead of the schedule's number."""

    @abstractmethod
    def rate(self, proposals: Proposals) -> Float[Tensor, " N"]:
        """The rating of each proposal; the best rated are committed, the others stay masked."""


# --- guidance -------------------------------------------------------------------------------------


class Guidance(Rule):
    """A second pass over other tokens, whose logits change those of the first."""

    works_beside_cache: ClassVar[bool] = False

    @abstractmethod
    def other_tokens(
        self, tokens: Int[Tensor, "*n"], given: Bool[Tensor, "*n"], mask_token_id: int
    ) -> Int[Tensor, "*n"]:
        """The tokens of the second pass; `given` are those that were on the canvas at first."""

    @abstractmethod
    def combine(
        self, logits: Float[Tensor, "*n V"], others: Float[Tensor, "*n V"]
    ) -> Float[Tensor, "*n V"]:
        """The guided logits, from those of the first pass and of the second."""


# --- monitors and repairs -------------------------------------------------------------------------


@dataclass(frozen=True)
class RowView:
    """One row after a step, as monitors and hooks see it: its n tokens from left to right, padding
    aside.

    Logits and hidden states are those of the step's pass, which saw the row before its commits.
    """

    number: int
    """Which row of its canvas it is."""
    step: int
    tokens: Int[Tensor, " n"]
    """A copy: change it and return it in an `Action` to edit the row."""
    positions: Int[Tensor, " n"]
    """Response positions, from 0; below 0 in the prompt."""
    is_free: Bool[Tensor, " n"]
    """What the sampler fills; the rest must stay as it is."""
    commit_step: Int[Tensor, " n"]
    """The step that wrote each token; -1 where none did."""
    mask_token_id: int
    computed: Int[Tensor, " m"]
    """Which of the tokens this pass computed: all of them, but for a cache; none where no mask was
    open, which only a hook is shown."""
    logits: Callable[[Int[Tensor, " k"]], Float[Tensor, "k V"]] = field(repr=False)
    """The logits, guided, at some of the n tokens; for hooks, and rules that `reads_logits`."""
    hidden: Callable[[int], Float[Tensor, "m D"]] = field(repr=False)
    """What layer (from 1) put out at the computed tokens; for one of the `layers`."""

    @property
    def is_masked(self) -> Bool[Tensor, " n"]:
        """The masks that are left to fill."""
        return self.is_free & (self.tokens == self.mask_token_id)


@dataclass(frozen=True)
class Action:
    """What a monitor or a hook does to a row."""

    tokens: Int[Tensor, " n"] | None = None
    """The row's tokens with free positions masked again or replaced; None leaves them."""
    stop: bool = False
    """Fills the masks that are left with the end-of-text token and ends the row."""
    note: str = ""
    """What the trace should say about it."""
    value: float | None = None
    """A number that goes with the note."""


class Monitor(Rule):
    """Looks at a row after each of its steps, and may act on it."""

    reads_logits: ClassVar[bool] = False
    """Whether it asks for logits; all positions of a batch then go through the last layer."""

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers (from 1) whose hidden states it reads."""
        return ()

    @abstractmethod
    def start(self, model: DiffusionLM) -> Any:
        """The state of a new row, which `look` may change."""

    @abstractmethod
    def look(self, row: RowView, state: Any) -> Action | None:
        """What to do after a step of the row, if anything."""
