"""From a model and a prompt file to an adapter folder: what `mosa align` and the demo call."""

from __future__ import annotations

import logging
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from peft import LoraConfig
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from mosa.alignment.checkpoints import HASHES, fault_of, files_of_training, numbered_checkpoints
from mosa.alignment.config import AlignConfig, config_dict, load_config, settings_tried
from mosa.alignment.method import METHODS, Method
from mosa.alignment.output import (
    MetricsFile,
    describe_data,
    shown_training,
    write_card,
    write_settings,
)
from mosa.alignment.trainer import DiffusionTrainer, TrainingData
from mosa.data import TrainingExample, draw_prompts, load_prompts
from mosa.families import DiffusionLM, load_model
from mosa.files import OwnFolder, claim_folder
from mosa.hub.folders import folder_of
from mosa.inputs import is_file, read_json, read_yaml, shortened
from mosa.judges.base import Judge
from mosa.provenance import versions
from mosa.types import Tell, UserError, tell_nobody

logger = logging.getLogger(__name__)


MADE_BY = "mosa align"
"""The mark of a training's folder."""

RESULTS = ("README.md", "adapter_config.json", "adapter_model.safetensors")
RESULTS += ("config.json", "model.safetensors")
"""What a training writes at its end, among others."""

_FREE_ON_RESUME = {
    "logging_steps",
    "save_strategy",
    "save_steps",
    "save_total_limit",
    "report_to",
    "disable_tqdm",
    "keep_checkpoints",
}
"""Settings that may change when an interrupted run resumes: they do not affect the weights."""


@dataclass(frozen=True)
class AlignResult:
    """What `align` did."""

    out: Path
    finished: bool
    """False if the run was interrupted; the folder then holds a checkpoint and no adapter."""
    num_steps: int
    metrics: dict[str, float]
    """The last logged training figures."""
    message: str
    """One sentence for the user: where the result is, or how to resume."""


def run_training(
    method: str,
    model: DiffusionLM | str | Path,
    data: str | Path | Sequence[TrainingExample],
    out: str | Path,
    *,
    benign: str | Path | Sequence[TrainingExample] | None = None,
    judge: Judge | None = None,
    config: AlignConfig | str | Path | None = None,
    overrides: dict[str, Any] | None = None,
    resume: bool = False,
    dtype: str = "auto",
    device: str | None = None,
    callbacks: list[transformers.TrainerCallback] | None = None,
    progress: bool = True,
) -> AlignResult:
    """Train an adapter on harmful prompts and write it, with its documentation, to `out`.

    `method` is a name in `METHODS`. `config` is a settings object, a YAML file or a preset's name
    (None: the method's own preset); `overrides` win over a file or preset. `benign` prompts and a
    `judge` are for settings that use them. A loaded `model` keeps the adapter on; a name is loaded
    with `dtype` and `device`. `resume` continues an interrupted run in `out`; it ends in the
    weights of an uninterrupted one, or is refused. SIGTERM and the first Ctrl-C end the run after
    the current step and leave a checkpoint. Raises UserError for settings, data or folders that do
    not fit.

        run_training("mosa", "testbed", "harmful.jsonl", "runs/mosa", overrides={"max_steps": 100})
    """
    if method not in METHODS:
        raise UserError(f"There is no method {method}; choose one of {', '.join(METHODS)}.")
    out = Path(out)
    chosen = METHODS[method]
    settings = _settings(method, config, overrides)
    if settings.output_dir_given and Path(str(settings.output_dir)) != out:
        raise UserError(
            f"The settings set output_dir={settings.output_dir}, but the result goes to {out}; "
            "leave output_dir out."
        )
    settings.output_dir = str(out)
    examples = load_prompts(data) if isinstance(data, str | Path) else list(data)
    if settings.num_prompts is not None:
        examples = draw_prompts(examples, settings.num_prompts, seed=settings.seed)
    benign_examples = load_prompts(benign) if isinstance(benign, str | Path) else benign
    given = TrainingData(examples, benign_examples, judge)
    _refuse_unused(method, settings, given)
    is_main = settings.process_index == 0
    known = files_of_training(out) if resume else frozenset[str]()
    with claim_folder(out, MADE_BY, known) if is_main else nullcontext() as own:
        checkpoint = _checkpoint_to_resume(out, own) if resume else None
        if own is not None and not resume:
            _begin(own)
        if own is not None:
            own.expect(*RESULTS)
        if not isinstance(model, DiffusionLM):
            model = load_model(model, dtype=dtype, device=device)
        record: dict[str, Any] = {
            "method": method,
            "seed": settings.seed,
            "num_processes": settings.world_size,
            "model": {
                "source": model.source,
                "content_hash": model.content_hash(),
                "dtype": str(model.dtype).removeprefix("torch."),
            },
            "data": {"harmful": describe_data(data, len(examples))},
            "versions": versions(),
        }
        if benign is not None and benign_examples is not None:
            record["data"]["benign"] = describe_data(benign, len(benign_examples))
        if judge is not None:
            record["judge"] = judge.id
        if checkpoint is not None:
            _check_same_run(out, settings, record)

        trainer = _trainer(chosen, model, settings, given)
        trainer.own_folder = own
        trainer.add_callback(MetricsFile(out / "metrics.jsonl"))
        for callback in callbacks or ():
            trainer.add_callback(callback)

        if own is not None:
            write_settings(out, chosen, settings, record)
        shown = shown_training(trainer, f"align {method}", is_shown=progress)
        with _graceful_stop() as stop, shown:
            trainer.add_callback(stop)
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))

        state = trainer.state
        last_logs: dict[str, float] = {}
        for logs in state.log_history:
            last_logs |= logs
        if stop.requested and state.global_step < state.max_steps:
            message = (
                f"Interrupted after step {state.global_step} of {state.max_steps}; run the same "
                f"command with --resume to continue from the checkpoint in {out}."
            )
            return AlignResult(out, False, state.global_step, last_logs, message)

        if not state.global_step:
            raise UserError(
                f"No step was taken: the {len(examples)} prompts make no batch; leave "
                "dataloader_drop_last out, or lower per_device_train_batch_size."
            )
        tensors = whole_adapter(model) if trainer.is_fsdp_enabled else None  # by all processes
        if own is not None:
            trainer.check_result(tensors)
            if settings.trains_adapter:
                model.save_adapter(out, tensors=tensors)
            else:
                model.save(out)
            write_card(out, chosen, settings, record, last_logs)  # in place of PEFT's empty one
            own.finish()
            if not settings.keep_checkpoints:
                own.discard(*(folder.name for folder in numbered_checkpoints(out).values()))
    message = f"Trained for {state.global_step} steps; the result is in {out}."
    return AlignResult(out, True, state.global_step, last_logs, message)


def merge(
    model: DiffusionLM | str | Path,
    adapter: str | Path,
    out: str | Path,
    *,
    dtype: str = "auto",
    device: str | None = None,
    on_merged: Callable[[str, float], object] = lambda dtype, rounding: None,
    tell: Tell = tell_nobody,
) -> Path:
    """Add an adapter into its model's weights and write a full checkpoint in the released layout.

    `on_merged` receives the number format of the weights, and how much rounding to it changes what
    the adapter changes (`DiffusionLM.merge_adapter`). `tell` hears how far it is.
    Raises UserError for an adapter that does not fit or overflows the weights' number format, and
    for a folder that is not empty.
    """
    out = Path(out)
    with claim_folder(out, "mosa merge") as own:
        if own.is_finished:
            raise UserError(f"{out} holds a merged checkpoint; choose a new folder for this one.")
        own.discard_all()  # what one that was killed has left
        if not isinstance(model, DiffusionLM):
            tell("merge: loading the model", 0, None)
            model = load_model(model, dtype=dtype, device=device)
        tell("merge: loading the adapter", 0, None)
        versions_file = folder_of(adapter) / "versions.json"
        if is_file(versions_file):
            trained_on = read_json(versions_file, _Versions).model
            if trained_on.content_hash != model.content_hash():
                warnings.warn(
                    f"The adapter {adapter} was trained on {trained_on.source} in "
                    f"{trained_on.dtype} (content hash {trained_on.content_hash}) and "
                    f"{model.source} is another model; check that they belong together.",
                    stacklevel=2,
                )
        model.load_adapter(adapter)
        rounding = model.merge_adapter(tell)
        tell("merge: writing the checkpoint", 0, None)
        model.save(out)
        own.finish()
    on_merged(str(model.dtype).removeprefix("torch."), rounding)
    return out


def add_adapter(model: DiffusionLM, config: AlignConfig) -> None:
    """Put the fresh LoRA adapter that the settings describe on the model."""
    lora = LoraConfig(r=config.lora_r, lora_alpha=config.lora_alpha)
    model.add_lora(lora, experts=config.lora_experts)


def whole_adapter(model: DiffusionLM) -> dict[str, Tensor]:
    """The trained weights, gathered from the parts that each process holds (FSDP2).

    Every process must call it; the first has the result, on the CPU, and the others nothing.
    """
    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
    tensors = get_model_state_dict(model.network, options=options)
    return {name: tensor for name, tensor in tensors.items() if isinstance(tensor, Tensor)}


def _settings(
    method: str, config: AlignConfig | str | Path | None, overrides: dict[str, Any] | None
) -> AlignConfig:
    chosen = METHODS[method]
    config_class = chosen.trainer_class.config_class
    if isinstance(config, AlignConfig):
        if overrides:
            raise UserError(
                f"Overrides ({', '.join(overrides)}) change a file or preset; set the config "
                "object's fields instead."
            )
        settings = config
    else:
        source = chosen.preset if config is None else config
        settings = load_config(config_class, source, overrides)
    if not isinstance(settings, config_class):
        raise UserError(
            f"{method} takes a {config_class.__name__}, not a {type(settings).__name__}."
        )
    for name, value in chosen.fixed.items():
        if getattr(settings, name) != value:
            raise UserError(
                f"{method} requires {name}={value}, but the settings have "
                f"{getattr(settings, name)}; set {name}={value}, or choose another method."
            )
    return settings


def _refuse_unused(method: str, settings: AlignConfig, data: TrainingData) -> None:
    """UserError for given data that the training would not use."""
    if data.benign and "benign" not in settings.uses:
        raise UserError(
            f"Benign prompts are given, but the settings of {method} have no term on them; choose "
            "settings with one (benign_beta), or leave the benign data out."
        )
    if data.judge is not None and "judge" not in settings.uses:
        raise UserError(
            f"The settings of {method} ask no judge, but one is given; choose settings with "
            "rollouts, or leave the judge out."
        )


def _trainer(
    method: Method, model: DiffusionLM, settings: AlignConfig, given: TrainingData
) -> DiffusionTrainer:
    """The trainer of a method, on the model with its fresh adapter."""
    transformers.set_seed(settings.seed)  # decides the adapter's first weights
    if settings.trains_adapter:
        add_adapter(model, settings)
    with settings_tried():
        trainer = method.trainer_class.from_data(model, settings, given)
        trainer.get_optimizer_cls_and_kwargs(settings)
    if trainer.is_fsdp_enabled and (not settings.trains_adapter or "rollouts" in settings.needs):
        raise UserError(
            "Under FSDP mosa trains adapters alone, and it cannot sample rollouts from sharded "
            "weights; train an adapter without rollouts, or start with the config "
            "deepspeed_zero2.yaml or ddp.yaml."
        )
    return trainer


def _begin(own: OwnFolder) -> None:
    """Clear what a training left that was killed before its first checkpoint; UserError where more
    of one is there."""
    if own.is_finished:
        raise UserError(f"{own.path} holds a finished training; choose a new folder for this one.")
    if any(name.endswith(f"/{HASHES}") and is_file(own.path / name) for name in own.files):
        raise UserError(
            f"{own.path} holds an unfinished run; add --resume to continue it, or choose another "
            "folder."
        )
    own.discard_all()


def _checkpoint_to_resume(out: Path, own: OwnFolder | None) -> Path:
    """The newest whole checkpoint in `out`, newer damaged ones set aside; UserError for none."""
    if own is not None and own.is_finished:
        raise UserError(f"{out} holds a finished training; there is nothing to resume.")
    damaged: dict[Path, str] = {}
    for checkpoint in numbered_checkpoints(out).values():
        fault = fault_of(checkpoint)
        if not fault:
            if own is not None:
                for folder in damaged:
                    own.set_aside(folder.name)
            if damaged:
                logger.warning("%s; resuming from %s", "; ".join(damaged.values()), checkpoint)
            return checkpoint
        damaged[checkpoint] = f"{checkpoint} is not whole ({fault})"
    if damaged:
        raise UserError(
            f"{next(iter(damaged.values()))}, and no other checkpoint is; put the file back, or "
            "start without --resume in another folder."
        )
    raise UserError(f"{out} holds no checkpoint to resume from; start without --resume.")


@dataclass(frozen=True)
class _TrainedOn:
    source: str
    content_hash: str
    dtype: str


@dataclass(frozen=True)
class _Versions:
    """What is read of versions.json."""

    model: _TrainedOn


def _check_same_run(out: Path, settings: AlignConfig, record: dict[str, Any]) -> None:
    """UserError naming the first thing that differs between the interrupted run and this one."""
    before = read_yaml(out / "config.yaml")
    now = config_dict(settings)
    for name in sorted((before.keys() | now.keys()) - _FREE_ON_RESUME):
        if before.get(name) != now.get(name):
            raise UserError(
                f"The run in {out} had {shortened(name)}={shortened(before.get(name))}, but the "
                f"settings now have {shortened(now.get(name))}; set the old value, or start in "
                "another folder."
            )
    old = read_json(out / "versions.json")
    for name in ("method", "model", "data", "judge", "num_processes"):
        if old.get(name) != record.get(name):
            raise UserError(
                f"The run in {out} had another {name} ({shortened(old.get(name))}, now "
                f"{shortened(record.get(name))}); give the old one, or start in another folder."
            )


class _StopOnSignal(transformers.TrainerCallback):
    """Ends training after the current step, with a checkpoint, once a signal arrives."""

    def __init__(self) -> None:
        self.requested = False

    def on_step_end(self, args, state, control, **kwargs):
        """Ask the trainer to save and stop."""
        if self.requested:
            control.should_save = True
            control.should_training_stop = True
        return control


@contextmanager
def _graceful_stop() -> Iterator[_StopOnSignal]:
    """SIGTERM and the first Ctrl-C ask for a stop; the second Ctrl-C interrupts at once."""
    stop = _StopOnSignal()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # only the main thread receives signals
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def request(number: int, frame: Any) -> None:
        stop.requested = True
        signal.signal(signal.SIGINT, before[signal.SIGINT])
        logger.warning("Stopping after this step; a checkpoint will be left.")

    try:
        for number in before:
            signal.signal(number, request)
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
