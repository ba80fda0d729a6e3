"""Settings of every alignment method: one schema for Python, YAML and the command line.

The defaults of `MosaConfig` are the paper's (arXiv 2508.12398); where the paper is silent,
docs/paper_index.md says what we chose. Everything else is `transformers.TrainingArguments`, whose
fields may be given under their own names.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import docstring_parser
import jsonargparse
import transformers
import yaml
from transformers.utils.generic import ExplicitEnum

from mosa.align.objective import HarmfulBound, StartReduction, TokenReduction
from mosa.align.phrases import Breaker, LeadingSpace
from mosa.types import UserError

PRESET_FOLDER = Path(__file__).parent.parent / "configs"

TRAINER_FIELDS = (
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "optim",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "max_grad_norm",
    "bf16",
    "activation_checkpointing",
    "logging_steps",
    "save_strategy",
    "save_steps",
    "save_total_limit",
    "report_to",
    "train_sampling_strategy",
    "disable_tqdm",
    "seed",
)
"""The fields of TrainingArguments that our help and config.yaml show; the others work as well."""

_RUN_FIELDS = ("output_dir", "resume_from_checkpoint", "local_rank", "run_name")
"""Fields that say where and how a run is executed and do not describe the method."""


@dataclass
class AlignConfig(transformers.TrainingArguments):
    """What all methods share: the canvas, the adapter, and defaults of the trainer."""

    response_length: int = 128
    """Number of masked response tokens of a training canvas."""
    lora_r: int = 32
    """Rank of the LoRA adapter."""
    lora_alpha: int = 64
    """LoRA scale numerator; the update is scaled by lora_alpha / lora_r."""
    lora_dropout: float = 0.0
    """Dropout on the adapter's input."""
    lora_target_modules: list[str] | None = None
    """Names of the adapted projections; none: all seven of the family."""

    keep_checkpoints: bool = False
    """Keep the checkpoints of a finished run, with their optimiser state."""

    num_train_epochs: float = 1.0
    """Passes over the training prompts."""
    per_device_train_batch_size: int = 1
    """Prompts per forward pass and device."""
    learning_rate: float = 5e-5
    """Peak learning rate."""
    lr_scheduler_type: transformers.SchedulerType | str = "constant"
    """Learning rate schedule."""
    optim: str = "adamw_torch"
    """Optimiser, by its name in transformers."""
    activation_checkpointing: bool = False
    """Keep the input of each layer alone and compute the rest again in the backward pass."""
    train_sampling_strategy: str = "random"
    """Order of the prompts: random, sequential, or group_by_length, which spares padding."""
    logging_steps: float = 10.0
    """Updates between two lines of metrics."""
    save_total_limit: int | None = 1
    """Number of checkpoints to keep for resuming; none: all."""
    dataloader_pin_memory: bool = False
    """Batches are a few integers."""
    remove_unused_columns: bool = False
    """Our batches name examples; the network's arguments are made when the loss is taken."""
    ddp_find_unused_parameters: bool | None = False
    """Every trained weight takes part in every loss."""

    def __post_init__(self) -> None:
        """Check our own settings after those of transformers; raises UserError."""
        # transformers replaces what was given by what it makes of it; config.yaml wants the former.
        self._changed = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.init and getattr(self, field.name) != _default(field)
        }
        # Its older releases know the setting by its old name alone, newer ones warn of that name.
        self.activation_checkpointing |= bool(self.gradient_checkpointing)
        self.gradient_checkpointing = self.activation_checkpointing
        try:
            super().__post_init__()
        except ValueError as error:
            raise UserError(f"A training setting is not possible: {error}") from error
        self.check()

    @property
    def output_dir_given(self) -> bool:
        """Whether output_dir was set, and not left to a default."""
        return "output_dir" in self._changed

    def check(self) -> None:
        """Raise UserError for a setting outside its range."""
        _require(self.response_length >= 1, "response_length", self.response_length, "at least 1")
        _require(self.lora_r >= 1, "lora_r", self.lora_r, "at least 1")
        _require(not self.remove_unused_columns, "remove_unused_columns", True, "false")


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
    """Phrases to make likely: a packaged set or a .txt file, one a line."""
    harmful_phrases: str = "continuations"
    """Phrases to make unlikely: a packaged set or a .txt file, one a line."""
    leading_space: LeadingSpace = "auto"
    """Tokenise phrases with a space before them; auto: with, unless window_start is 1."""
    phrase_sampling: Literal["one_pair", "full_set"] = "one_pair"
    """Draw one safe and one harmful phrase for each prompt, or average over all of them."""
    breaker: Breaker = "eot_then_eos_run"
    """End tokens scored after a safe phrase, so that the answer is cut there."""
    breaker_run: int = 3
    """Number of end-of-text tokens in the breaker eot_then_eos_run."""

    # The score
    start_reduction: StartReduction = "max"
    """How the scores of all starts become one: hard maximum, logsumexp, or sum."""
    token_reduction: TokenReduction = "sum"
    """Sum of the token log-probabilities of a phrase, or their mean."""
    safe_weight: float = 1.0
    """Weight of the safe phrase's score."""
    harmful_weight: float = 1.0
    """Weight of the harmful term."""
    harmful_target: Literal["phrase", "answer", "both"] = "phrase"
    """What is made unlikely: harmful phrases, the harmful answer's own masked tokens, or both."""
    answer_weight: float = 1.0
    """Weight of the answer's tokens (a mean over them) within the harmful term."""
    harmful_bound: HarmfulBound = "none"
    """How the harmful term ends: none, clamp, hinge or npo (docs/alignment.md has the formulas)."""
    harmful_margin: float = 20.0
    """Margin of clamp and hinge for a phrase, in nats."""
    answer_margin: float = 5.0
    """Margin of clamp and hinge for one token of the answer, in nats."""
    npo_beta: float = 0.1
    """Sharpness of the npo bound, per nat."""

    # The states in which the score is taken
    fully_masked_weight: float = 1.0
    """Relative share of prompts scored on a fully masked answer."""
    random_reveal_weight: float = 0.0
    """Relative share scored with tokens of the harmful answer revealed at random places."""
    prefix_weight: float = 0.0
    """Relative share scored with the beginning of the harmful answer revealed."""
    reveal_ratio_min: float = 0.1
    """Least share of the answer's tokens that random reveal shows."""
    reveal_ratio_max: float = 0.9
    """Largest share of the answer's tokens that random reveal shows."""
    prefix_length_min: int = 1
    """Least number of answer tokens that prefix shows."""
    prefix_length_max: int = 40
    """Largest number of answer tokens that prefix shows; never more than the answer has."""
    revealed: Literal["free", "masked_only", "around"] = "free"
    """Phrases at revealed positions: none there, not counted there, or written around them."""
    contaminated_window: Literal["same", "response"] = "same"
    """Where phrases are scored on partly revealed answers: the window, or the whole response."""

    # The KL to the reference
    beta: float = 0.05
    """Weight of the KL on harmful prompts."""
    kl_positions: Literal["all", "window", "outside_window"] = "all"
    """Response positions that the KL on harmful prompts covers (masked ones only)."""
    kl_reduction: Literal["sum", "mean"] = "sum"
    """Sum of the KL over positions (the KL of whole answers), or its mean."""
    kl_states: Literal["all", "fully_masked"] = "all"
    """States in which the KL on harmful prompts is taken."""
    benign_beta: float = 0.0
    """Weight of the KL on benign prompts at random mask ratios."""
    benign_retain_weight: float = 0.0
    """Weight of the masked-diffusion cross-entropy of benign answers (nats per answer token)."""
    benign_per_prompt: int = 1
    """Benign prompts drawn for each harmful one."""
    benign_mask_ratio_min: float = 0.001
    """Least share of a benign answer that is masked."""
    benign_mask_ratio_max: float = 1.0
    """Largest share of a benign answer that is masked."""

    max_grad_norm: float = 0.01
    """Norm to which gradients are clipped."""

    @property
    def uses_answers(self) -> bool:
        """Whether a harmful example needs its answer."""
        return self.uses_contamination or self.harmful_target != "phrase"

    @property
    def uses_contamination(self) -> bool:
        """Whether some prompts are scored on partly revealed answers."""
        return self.random_reveal_weight > 0 or self.prefix_weight > 0

    @property
    def uses_benign(self) -> bool:
        """Whether the objective has a term on benign prompts."""
        return self.benign_beta > 0 or self.benign_retain_weight > 0

    @property
    def scores_answers(self) -> bool:
        """Whether the harmful answers' own tokens are made unlikely."""
        return self.harmful_target != "phrase" and self.harmful_weight > 0

    @property
    def uses_reference_scores(self) -> bool:
        """Whether the harmful term compares with the reference's log-probabilities."""
        return self.harmful_weight > 0 and self.harmful_bound in ("hinge", "npo")

    @property
    def uses_reference(self) -> bool:
        """Whether the harmful side needs the reference model's forward pass."""
        return self.beta > 0 or self.uses_reference_scores

    def check(self) -> None:
        """Raise UserError for a setting outside its range."""
        super().check()
        _require(self.window_start >= 1, "window_start", self.window_start, "at least 1")
        _require(
            self.window_start <= self.response_length,
            "window_start",
            self.window_start,
            f"at most response_length ({self.response_length})",
        )
        if self.window_end is not None:
            _require(
                self.window_start <= self.window_end <= self.response_length,
                "window_end",
                self.window_end,
                f"between window_start ({self.window_start}) and response_length "
                f"({self.response_length})",
            )
        elif self.breaker == "fill":
            raise UserError("The breaker fill needs a window to fill; set window_end.")
        for name in (
            "safe_weight",
            "harmful_weight",
            "answer_weight",
            "beta",
            "benign_beta",
            "benign_retain_weight",
            "fully_masked_weight",
            "random_reveal_weight",
            "prefix_weight",
            "harmful_margin",
            "answer_margin",
            "breaker_run",
        ):
            _require(getattr(self, name) >= 0, name, getattr(self, name), "at least 0")
        shares = self.fully_masked_weight + self.random_reveal_weight + self.prefix_weight
        _require(shares > 0, "fully_masked_weight", 0, "above 0 if no other state has a weight")
        _require(self.npo_beta > 0, "npo_beta", self.npo_beta, "above 0")
        _require(
            self.benign_per_prompt >= 1, "benign_per_prompt", self.benign_per_prompt, "at least 1"
        )
        _require_range(self, "reveal_ratio_min", "reveal_ratio_max", 0, 1)
        _require_range(self, "prefix_length_min", "prefix_length_max", 1, None)
        _require_range(self, "benign_mask_ratio_min", "benign_mask_ratio_max", 0, 1)
        if self.breaker == "fill" and self.revealed != "free" and self.uses_contamination:
            raise UserError(
                "The breaker fill needs starts that are free; set revealed=free or another breaker."
            )


@dataclass
class SftConfig(AlignConfig):
    """Masked-diffusion supervised training (LLaDA, arXiv 2502.09992, and its GUIDELINES.md)."""

    trainable: Literal["lora", "full"] = "lora"
    """Train a LoRA adapter, or all weights."""
    mask_ratio_min: float = 0.001
    """Least mask ratio; the ratio of each answer is uniform between this and 1."""
    full_mask_share: float = 0.0
    """Share of draws whose answer is fully masked, as it is when generation begins; LLaDA: 0."""
    length_multiple: int | None = None
    """Pad answers with end-of-text to a multiple of this instead of to response_length."""
    refusals: str = "refusals"
    """Answers given to harmful prompts: a packaged phrase set or a .txt file, one a line."""
    benign_per_prompt: int = 1
    """Benign examples mixed in for each harmful prompt, where benign data is given."""

    max_grad_norm: float = 1.0
    """Norm to which gradients are clipped."""

    def check(self) -> None:
        """Raise UserError for a setting outside its range."""
        super().check()
        _require(0 < self.mask_ratio_min <= 1, "mask_ratio_min", self.mask_ratio_min, "in (0, 1]")
        _require(
            0 <= self.full_mask_share <= 1, "full_mask_share", self.full_mask_share, "in [0, 1]"
        )
        if self.length_multiple is not None:
            _require(
                self.length_multiple >= 1, "length_multiple", self.length_multiple, "at least 1"
            )


Config = TypeVar("Config", bound=AlignConfig)


def _default(field: dataclasses.Field) -> Any:
    return (
        field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    )


def _require(condition: bool, name: str, value: Any, needed: str) -> None:
    if not condition:
        raise UserError(f"{name} is {value} and must be {needed}.")


def _require_range(config: AlignConfig, low: str, high: str, least: int, most: int | None) -> None:
    a, b = getattr(config, low), getattr(config, high)
    if not least <= a <= b or (most is not None and b > most):
        limit = "" if most is None else f" <= {most}"
        raise UserError(
            f"{low} and {high} are {a} and {b} and must satisfy {least} <= {low} <= {high}{limit}."
        )


def presets() -> list[str]:
    """Names of the packaged settings."""
    return sorted(path.stem for path in PRESET_FOLDER.glob("*.yaml"))


def load_config(
    config_class: type[Config],
    source: str | Path | None = None,
    overrides: dict[str, Any] | None = None,
) -> Config:
    """Defaults, then the YAML file or preset `source`, then `overrides`; later wins.

    Raises UserError for a missing file, an unknown key, or a value of the wrong type or range.
    """
    parser = _parser(config_class)
    values: dict[str, Any] = {}
    if source is not None:
        path = config_path(source)
        values |= _parse(parser.parse_string, path.read_text(encoding="utf-8") or "{}", str(path))
    if overrides:
        values |= _parse(parser.parse_object, overrides, "the given settings")
    return config_class(**values)


@functools.cache
def _parser(config_class: type[AlignConfig]) -> jsonargparse.ArgumentParser:
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    add_align_arguments(parser, config_class)
    parser.add_argument("--output_dir", type=str, default=argparse.SUPPRESS)
    return parser


def config_path(source: str | Path) -> Path:
    """The YAML file of a preset name or path; raises UserError where there is none."""
    path = Path(source)
    if path.suffix not in (".yaml", ".yml"):
        path = PRESET_FOLDER / f"{source}.yaml"
    if not path.is_file():
        raise UserError(
            f"There is no config {source}; give a .yaml file or one of {', '.join(presets())}."
        )
    return path


def _parse(parse: Any, content: Any, where: str) -> dict[str, Any]:
    try:
        return parse(content).as_dict()
    except (argparse.ArgumentError, yaml.YAMLError) as error:
        raise UserError(f"In {where}: {' '.join(str(error).split())}.") from error


def add_align_arguments(
    parser: jsonargparse.ArgumentParser, config_class: type[AlignConfig]
) -> list[str]:
    """Add an option for every field of `config_class`; returns their names.

    An option that is not given is absent from the result, so that what the parser returns are the
    overrides for `load_config`. Only our own fields and `TRAINER_FIELDS` appear in the help.
    """
    types = typing.get_type_hints(config_class)
    described = {
        param.arg_name.split(":")[0]: param.description
        for base in reversed(config_class.__mro__[: config_class.__mro__.index(AlignConfig) + 1])
        for param in docstring_parser.parse_from_object(base).params
    }
    names = []
    for field, documented in _settings_of(config_class):
        text = described.get(field.name) or field.metadata.get("help") or ""
        summary = text.replace("%", "%%").replace("%%%%", "%%")
        default = "(default: none)" if field.default is None else f"(default: {field.default})"
        parser.add_argument(
            f"--{field.name}",
            type=types[field.name],
            default=argparse.SUPPRESS,
            help=f"{summary} {default}" if documented else argparse.SUPPRESS,
        )
        names.append(field.name)
    return names


def _settings_of(config_class: type[AlignConfig]) -> list[tuple[dataclasses.Field, bool]]:
    """The fields that describe a method, ours first, each with whether we document it."""
    inherited = {field.name for field in dataclasses.fields(transformers.TrainingArguments)}
    fields = [f for f in dataclasses.fields(config_class) if f.init and f.name not in _RUN_FIELDS]
    ours = [(field, True) for field in fields if field.name not in inherited]
    theirs = [(f, f.name in TRAINER_FIELDS) for f in fields if f.name in inherited]
    return ours + theirs


def config_dict(config: AlignConfig) -> dict[str, Any]:
    """The resolved settings as plain values: all that we document, and whatever else was changed.

    `load_config` on a YAML file of this dict gives the same settings.
    """
    values = {}
    for field, documented in _settings_of(type(config)):
        if documented:
            value = getattr(config, field.name)
            values[field.name] = value.value if isinstance(value, ExplicitEnum) else value
        elif field.name in config._changed:
            values[field.name] = config._changed[field.name]
    return values
