"""Settings of every alignment method: one schema for Python, YAML and the command line.

A method's own settings are a subclass of `AlignConfig`, in the method's file. Everything else is
`transformers.TrainingArguments`, whose fields may be given under their own names.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import math
import typing
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import jsonargparse
import transformers
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from transformers.integrations.integration_utils import get_available_reporting_integrations
from transformers.utils.generic import ExplicitEnum

from mosa.inputs import is_file, one_line, read_yaml, truth_value_hint
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
"""The fields of TrainingArguments that our help and config.yaml show; the others also work."""

_RUN_FIELDS = ("output_dir", "resume_from_checkpoint", "local_rank", "run_name")
"""Fields that say where and how a run is executed and do not describe the method."""


Need = Literal["answers", "pairs", "benign", "judge", "rollouts"]
"""What a training needs in addition to harmful prompts: answers to them, pairs of a preferred and
a rejected answer, benign prompts, a judge, or answers that the policy gives during training."""


@dataclass
class AlignConfig(transformers.TrainingArguments):
    """What all methods share: the canvas, the adapter, and defaults of the trainer."""

    response_length: int = 128
    """Number of masked response tokens of a training canvas."""
    lora_r: int = 32
    """Rank of the LoRA adapter."""
    lora_alpha: int = 64
    """LoRA scale numerator; the update is scaled by lora_alpha / lora_r."""
    lora_experts: bool = False
    """Adapt the routed experts of a mixture too, each with a pair of matrices of its own."""

    num_prompts: int | None = None
    """Number of training prompts that are drawn at random, by `seed`; none: all in their file."""
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
    """Keep only the input of each layer and compute the rest again in the backward pass."""
    train_sampling_strategy: str = "random"
    """Order of the prompts: random, sequential, or group_by_length, which saves padding."""
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
        # transformers replaces given values by derived ones; config.yaml needs the given ones.
        self._changed = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.init and getattr(self, field.name) != _default(field)
        }
        # Its older releases know only the setting's old name; newer ones warn about that name.
        self.activation_checkpointing |= bool(self.gradient_checkpointing)
        self.gradient_checkpointing = self.activation_checkpointing
        try:
            with settings_tried():
                super().__post_init__()
        except UserError:
            unset_hf_deepspeed_config()  # or every model would be loaded for half a DeepSpeed
            raise
        self.check()

    @property
    def output_dir_given(self) -> bool:
        """Whether output_dir was set, and not left to a default."""
        return "output_dir" in self._changed

    @property
    def needs(self) -> frozenset[Need]:
        """What a training with these settings needs in addition to harmful prompts."""
        return frozenset()

    @property
    def uses(self) -> frozenset[Need]:
        """What it uses where it is given; more than it needs for some methods."""
        return self.needs

    @property
    def trains_adapter(self) -> bool:
        """Whether an adapter is trained, and not the model's own weights."""
        return True

    def check(self) -> None:
        """Raise UserError for a setting outside its range."""
        counts = ("response_length", "lora_r", "lora_alpha", "num_prompts", "save_total_limit")
        for name in (*counts, "per_device_train_batch_size", "gradient_accumulation_steps"):
            value = getattr(self, name)
            require(value is None or value >= 1, name, value, "at least 1")
        for name in ("learning_rate", "num_train_epochs", "logging_steps", "save_steps"):
            value = getattr(self, name)
            require(0 < value < math.inf, name, value, "above 0 and finite")
        for name in ("weight_decay", "max_grad_norm", "warmup_steps"):
            value = getattr(self, name)
            require(0 <= value < math.inf, name, value, "at least 0 and finite")
        for name in ("adam_beta1", "adam_beta2"):
            require(0 <= getattr(self, name) < 1, name, getattr(self, name), "from 0 to below 1")
        has_steps = self.max_steps == -1 or self.max_steps >= 1
        require(has_steps, "max_steps", self.max_steps, "at least 1, or -1 for none")
        require(0 <= self.seed < 2**32, "seed", self.seed, "from 0 to 2**32 - 1")
        unsupported = ("remove_unused_columns", "load_best_model_at_end", "push_to_hub")
        unsupported += ("save_only_model", "auto_find_batch_size", "use_liger_kernel")
        for name in unsupported:
            require(not getattr(self, name), name, True, "false")
        # Settings are written beside the adapter, which is shared.
        require(self.hub_token is None, "hub_token", "given", "left out: nothing asks the hub")
        workers = self.dataloader_num_workers
        require(workers >= 0, "dataloader_num_workers", workers, "at least 0")
        without_tests = "no: a training has no test set"
        require(self.eval_strategy == "no", "eval_strategy", self.eval_strategy, without_tests)
        require(self.save_strategy != "best", "save_strategy", "best", "no, steps or epoch")
        installed = get_available_reporting_integrations()
        for name in self.report_to or ():
            require(name in installed, "report_to", name, f"installed ({', '.join(installed)})")


Config = TypeVar("Config", bound=AlignConfig)
MOST_SAID = 1000
"""Letters of a message of a library."""


@contextmanager
def settings_tried(*kinds: type[Exception]) -> Iterator[None]:
    """Inside, transformers, or what it loads, makes something of the settings: what it cannot make
    is a UserError, errors of `kinds` as well."""
    try:
        yield
    except UserError:
        raise
    except (ValueError, ImportError, OSError, *kinds) as error:  # OSError: a missing file
        said = one_line(error, most=MOST_SAID)
        raise UserError(f"A training setting is not possible: {said}") from error


def _default(field: dataclasses.Field) -> Any:
    return (
        field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    )


def require(condition: bool, name: str, value: Any, needed: str) -> None:
    """UserError saying that setting `name` must be what is `needed`, unless `condition` holds."""
    if not condition:
        raise UserError(f"{name} is {value} and must be {needed}.")


def presets() -> list[str]:
    """Names of the packaged settings."""
    return sorted(path.stem for path in PRESET_FOLDER.glob("*.yaml"))


def load_config(
    config_class: type[Config],
    source: str | Path | None = None,
    overrides: dict[str, Any] | None = None,
) -> Config:
    """Defaults, then the YAML file or preset `source`, then `overrides`; later wins.

    A file may name another file or preset as its `base`, and holds only what differs from it.
    Raises UserError for a missing file, an unknown key, or a value of the wrong type or range.
    """
    parser = _parser(config_class)
    values = _parse(parser.parse_object, overrides or {}, "the given settings")
    if "base" in values:
        raise UserError("base is a key of files alone; give it as the config instead.")
    read: list[Path] = []
    while source is not None:
        path = config_path(source)
        if path in read:
            raise UserError(f"{path} is its own base; name another file or preset there.")
        read.append(path)
        found = _parse(parser.parse_object, read_yaml(path), str(path))
        source = found.pop("base", None)
        values = found | values
    return config_class(**values)


@functools.cache
def _parser(config_class: type[AlignConfig]) -> jsonargparse.ArgumentParser:
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    types = typing.get_type_hints(config_class)
    for name in ("output_dir", *(field.name for field, _ in settings_of(config_class))):
        parser.add_argument(f"--{name}", type=types[name], default=argparse.SUPPRESS)
    parser.add_argument("--base", type=str, default=argparse.SUPPRESS)
    return parser


def config_path(source: str | Path) -> Path:
    """The YAML file of a preset name or path; raises UserError where there is none."""
    path = Path(source)
    if path.suffix not in (".yaml", ".yml"):
        path = PRESET_FOLDER / f"{source}.yaml"
    if not is_file(path):
        known = [name for name in presets() if "_ablate_" not in name]
        raise UserError(
            f"There is no config {source}; give a .yaml file or one of {', '.join(known)}, or an "
            f"ablation from {PRESET_FOLDER}."
        )
    return path


def _parse(parse: Any, content: Any, where: str) -> dict[str, Any]:
    try:
        return parse(content).as_dict()
    except argparse.ArgumentError as error:
        hint = truth_value_hint(str(error))
        raise UserError(
            f"In {where}: {one_line(error, most=MOST_SAID).rstrip('.')}{hint}."
        ) from error


def settings_of(config_class: type[AlignConfig]) -> list[tuple[dataclasses.Field, bool]]:
    """The fields that describe a method, ours first, each with whether we document it."""
    inherited = {field.name for field in dataclasses.fields(transformers.TrainingArguments)}
    fields = [f for f in dataclasses.fields(config_class) if f.init and f.name not in _RUN_FIELDS]
    ours = [(field, True) for field in fields if field.name not in inherited]
    theirs = [(f, f.name in TRAINER_FIELDS) for f in fields if f.name in inherited]
    return ours + theirs


def config_dict(config: AlignConfig) -> dict[str, Any]:
    """The resolved settings as plain values: all documented ones, and any other that was changed.

    `load_config` on a YAML file of this dict gives the same settings.
    """
    values = {}
    for field, documented in settings_of(type(config)):
        if documented:
            value = getattr(config, field.name)
            values[field.name] = value.value if isinstance(value, ExplicitEnum) else value
        elif field.name in config._changed:
            values[field.name] = config._changed[field.name]
    return values
