"""The settings of a generation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, Literal

from mosa.denoising.rules import (
    ORDERS,
    Guidance,
    Monitor,
    Order,
    Renoise,
    Rule,
    Stages,
    rule_from_dict,
)
from mosa.denoising.rules.classifier_free import ClassifierFree
from mosa.families.attention import AttentionPattern
from mosa.inputs import checked
from mosa.types import UserError

OF_NOISE = ("max_new_tokens", "steps", "temperature", "banned_token_ids", "end_tokens")
OF_NOISE += ("stop_when_finished", "stop_after", "rules", "seed")
"""The settings that mean something for canvases of uniform noise."""
APPROXIMATE_SETTINGS = ("threshold", "factor", "cache", "cache_refresh")
"""The settings that trade agreement with the published loop for speed."""


MOST = 1_000_000
"""Tokens of a response, and steps of it or of a block."""


@dataclass(frozen=True)
class DecoderConfig:
    """Every setting of a generation; belongs beside each number measured on its output."""

    max_new_tokens: int = 128
    """Length of the response in tokens; the end token may come earlier."""
    steps: int = 128
    """Denoising steps; spread evenly over the blocks (the first take the remainder), or by masks
    over the stages of a rule, and not used with a threshold."""
    block_length: int | None = None
    """Tokens in a block; blocks are filled left to right; null makes the response one block, in a
    block-causal model the blocks of its attention."""
    temperature: float = 0.0
    """Temperature at which tokens are drawn; 0 takes the likeliest. For canvases of uniform noise
    0 means the temperatures of the rule renoise, and another number that one at every step."""
    top_p: float | None = None
    """Draws from the smallest set of tokens that holds this much probability; null does not cut."""
    top_k: int | None = None
    """Draws from this many likeliest tokens; null does not cut."""
    remasking: str = "low_confidence"
    """Which masked positions are filled first; low_confidence, random, maskgit_plus, topk_margin,
    entropy, origin, left_to_right or right_to_left."""
    alg_temp: float | None = None
    """Above 0, draws positions from softmax(confidence / alg_temp) instead of taking the best."""
    schedule: Literal["even", "timesteps", "rounded"] = "even"
    """Commits per step; even takes as many in each, timesteps a share 1 - s/t of what is masked,
    for times t > s on a line from 1 to 0.001, rounded the nearest number to such a share, on a line
    from 1 to 0."""
    threshold: float | None = None
    """Commits every position of at least this confidence, and always the best, until its block is
    full; approximate, but for models whose blocks are counted from the prompt, where it commits
    what lies above it beside what steps ask for, as published."""
    entropy_bound: float | None = None
    """Commits the surest positions as long as their entropies add up to less than this, in nats,
    and always the best; with remasking: entropy."""
    edit_threshold: float | None = None
    """Replaces what is written in the open block by another token of which the model is surer than
    this."""
    max_post_steps: int = 16
    """With edit_threshold: how often a block without masks is looked at again, at most."""
    factor: float | None = None
    """Commits the n best of a block together if the n-th has a confidence of at least
    1 - factor / (n + 1), and always the best; approximate."""
    cache: Literal["none", "prefix", "dual"] = "none"
    """What is recomputed in a step; everything (none), the active block and all after it
    (prefix), or only the active block (dual), the rest as it was when the block began;
    approximate. In block-causal attention keys are kept where they stay right, whatever this
    says."""
    cache_refresh: int | None = None
    """With a cache, everything is also recomputed after this many steps of a block; null does so
    only at the beginning of each block."""
    cfg_scale: float = 0.0
    """Classifier-free guidance against the canvas with all that was given masked; 0 is off."""
    banned_token_ids: tuple[int, ...] = ()
    """Tokens that are never generated."""
    end_tokens: Literal["allow", "forbid", "forbid_eos", "suppress"] = "allow"
    """Whether end tokens may be generated: all (allow), none (forbid), all but end-of-text
    (forbid_eos), or (suppress) only once nothing else in the block is left to fill."""
    stop_when_finished: bool = False
    """Once all before a generated end token is filled, fills the rest of the row with the
    end-of-text token, at no cost."""
    stop_after: int | None = None
    """Fills the blocks up to the one with this response position (from 1) and leaves the masks
    after it, for callers who need only these; null fills all."""
    rules: tuple[Any, ...] = ()
    """Monitors, repairs, stages, or an order with options, each a `Rule` or a mapping of its name
    and options, such as {name: remask_below, threshold: 0.2, max_taken_back: 16}."""
    seed: int = 0
    """Seed of every random choice; a prompt gets the same text with it in any batch."""

    def __post_init__(self):
        object.__setattr__(self, "banned_token_ids", tuple(self.banned_token_ids))
        given = [r if isinstance(r, Rule) else rule_from_dict(r) for r in self.rules]
        object.__setattr__(self, "rules", tuple(given))
        counts = ("max_new_tokens", "steps", "max_post_steps")
        for name in (*counts, "block_length", "top_k", "cache_refresh", "stop_after"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} must be at least 1, not {value}.")
        for name in counts:
            if getattr(self, name) > MOST:
                raise UserError(f"{name} must be at most {MOST}, not {getattr(self, name)}.")
        numbers = ("temperature", "cfg_scale", "alg_temp", "threshold", "factor")
        for name in (*numbers, "entropy_bound", "edit_threshold"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < float("inf"):
                raise UserError(f"{name} must be a number from 0 up, not {value}.")
        if abs(self.seed) >= 1 << 63:
            raise UserError(f"seed must be below 2**63, not {self.seed}.")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UserError(f"top_p must be above 0 and at most 1, not {self.top_p}.")
        for name, choices in (
            ("remasking", tuple(ORDERS)),
            ("schedule", ("even", "timesteps", "rounded")),
            ("end_tokens", ("allow", "forbid", "forbid_eos", "suppress")),
            ("cache", ("none", "prefix", "dual")),
        ):
            if (value := getattr(self, name)) not in choices:
                raise UserError(f"{name}={value!r} is not known; choose from {', '.join(choices)}.")
        self._check_rules()
        if not self.order.rates_confidence and (not self.has_plan or self.alg_temp):
            raise UserError(
                f"The order {self.order.name} has no confidence for threshold, factor or alg_temp "
                "to work on; leave them out or choose another order."
            )
        rates_probability = self.order.rates_confidence and self.order.name != "entropy"
        if self.edit_threshold is not None and not rates_probability:
            raise UserError(
                f"edit_threshold asks how probable another token is, which the order "
                f"{self.order.name} does not rate; set remasking to low_confidence for it."
            )
        given = [
            n for n in ("threshold", "factor", "entropy_bound") if getattr(self, n) is not None
        ]
        given += ["alg_temp"] if self.alg_temp else []
        if len(given) > 1:
            raise UserError(f"{' and '.join(given)} exclude each other; leave one of them out.")
        if self.entropy_bound is not None and self.order.name != "entropy":
            raise UserError("entropy_bound adds up entropies; set remasking to entropy for it.")
        if self.cache == "none" and self.cache_refresh is not None:
            raise UserError("cache_refresh needs a cache; set cache to prefix or dual.")
        num_blocks = -(-self.max_new_tokens // (self.block_length or self.max_new_tokens))
        if self.stages is not None:
            self.stages.check_length(self.max_new_tokens)
            return  # how many stages have masks is known with the canvas
        if self.has_plan and self.steps < num_blocks:
            raise UserError(
                f"steps={self.steps} is too few for {num_blocks} blocks of "
                f"{self.block_length} tokens; give every block at least one step."
            )

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> DecoderConfig:
        """The decoder that a record describes; UserError for a setting that it does not have."""
        check_settings(record)
        settings: dict[str, Any] = dict(record)
        for name in ("banned_token_ids", "rules"):  # JSON has only lists
            given = settings.get(name, ())
            settings[name] = tuple(given) if isinstance(given, list) else given
        checked(settings, cls, "a decoder")
        return cls(**settings)

    def _check_rules(self) -> None:
        for rule in self.rules:
            if rule.chosen_by != "rules":
                raise UserError(f"{rule.name} is no entry of rules; set {rule.chosen_by} for it.")
        for kind in (Order, Stages, Renoise):
            names = [rule.name for rule in self.rules if isinstance(rule, kind)]
            if kind is Order and names and self.remasking != "low_confidence":
                names.append(self.remasking)
            if len(names) > 1:
                raise UserError(f"{' and '.join(names)} exclude each other; choose one of them.")
        if self.cache == "none":
            return
        for rule in (self.order, *self.monitors, *([self.guidance] if self.guidance else [])):
            if not rule.works_beside_cache:
                name = rule.name if rule.chosen_by == "rules" else rule.chosen_by
                raise UserError(f"{name} does not work beside a cache; set cache to none.")

    @cached_property
    def order(self) -> Order:
        """The rule that says which masked positions are filled first."""
        chosen = next((rule for rule in self.rules if isinstance(rule, Order)), None)
        return chosen or ORDERS[self.remasking]()

    @cached_property
    def stages(self) -> Stages | None:
        """The rule that says which masks open before which; without it blocks do."""
        return next((rule for rule in self.rules if isinstance(rule, Stages)), None)

    @cached_property
    def guidance(self) -> Guidance | None:
        """The rule that changes logits by those of a second pass, if any."""
        return ClassifierFree(scale=self.cfg_scale) if self.cfg_scale else None

    @cached_property
    def monitors(self) -> tuple[Monitor, ...]:
        """The rules that look at a row after each of its steps."""
        return tuple(rule for rule in self.rules if isinstance(rule, Monitor))

    @cached_property
    def renoise(self) -> Renoise | None:
        """The rule by which canvases of uniform noise are denoised, if there is one."""
        return next((rule for rule in self.rules if isinstance(rule, Renoise)), None)

    @property
    def has_plan(self) -> bool:
        """Whether the schedule decides how many positions a step commits, and not confidence."""
        return self.threshold is None and self.factor is None and self.entropy_bound is None

    def approximations(self, attention: AttentionPattern) -> tuple[str, ...]:
        """The settings that trade agreement with the published loop for speed, in a model of this
        attention.

        In block-causal attention a cache is exact and always there, and a threshold is part of the
        published loops.
        """
        names = ("factor",) if attention.shares_prompt else ("threshold", "factor")
        found = [name for name in names if getattr(self, name) is not None]
        has_cache = self.cache != "none" and attention.is_full
        return tuple([*found, "cache"] if has_cache else found)


TESTBED_DECODER = DecoderConfig(max_new_tokens=72, steps=36, block_length=24)
"""How models of the invented world decode unless told otherwise, in every figure of theirs; those
that are block-causal as `testbed_decoder` says."""


def testbed_decoder(attention: AttentionPattern) -> DecoderConfig:
    """How a model of the invented world decodes unless told otherwise: a block-causal one fills the
    blocks of its network."""
    return TESTBED_DECODER if attention.is_full else replace(TESTBED_DECODER, block_length=None)


def check_settings(settings: Iterable[str]) -> None:
    """UserError where one is not a setting of a decoder."""
    names = [field.name for field in fields(DecoderConfig)]
    for name in settings:
        if name not in names:
            raise UserError(f"There is no setting {name!r}; the settings are {', '.join(names)}.")
