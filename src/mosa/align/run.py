"""From a model and a prompt file to an adapter folder: what `mosa align` and the demo call."""

from __future__ import annotations

import json
import logging
import shutil
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
import yaml
from peft import LoraConfig
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from mosa.align.config import AlignConfig, config_dict, load_config
from mosa.align.method import METHODS
from mosa.align.output import (
    MetricsFile,
    describe_data,
    write_card,
    write_settings,
)
from mosa.align.trainer import TrainingData
from mosa.data import TrainingExample, draw_prompts, load_prompts
from mosa.families import DiffusionLM, load_model
from mosa.hub.folders import folder_of
from mosa.inputs import checked, is_file, read_json
from mosa.judges.base import Judge
from mosa.provenance import versions
from mosa.types import UserError

logger = logging.getLogger(__name__)


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


def align(
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
    weights of an uninterrupted one. SIGTERM and the first Ctrl-C end the run after the current step
    and leave a checkpoint. Raises UserError for settings, data or folders that do not fit.

        align("mosa", "testbed", "harmful.jsonl", "runs/mosa", overrides={"max_steps": 100})
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
    checkpoint = None
    if resume or settings.process_index == 0:  # the first process decides for all
        checkpoint = _checkpoint_to_resume(out, resume)

    if not isinstance(model, DiffusionLM):
        model = load_model(model, dtype=dtype, device=device)
    record: dict[str, Any] = {
        "method": method,
        "seed": settings.seed,
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

    transformers.set_seed(settings.seed)  # decides the adapter's first weights
    if settings.trains_adapter:
        add_adapter(model, settings)
    trainer = chosen.trainer_class.from_data(model, settings, given)
    if trainer.is_fsdp_enabled and (not settings.trains_adapter or "rollouts" in settings.needs):
        raise UserError(
            "Under FSDP mosa trains adapters alone, and it cannot sample rollouts from sharded "
            "weights; train an adapter without rollouts, or start with the config "
            "deepspeed_zero2.yaml or ddp.yaml."
        )
    trainer.add_callback(MetricsFile(out / "metrics.jsonl"))
    for callback in callbacks or ():
        trainer.add_callback(callback)
    if not progress:
        trainer.remove_callback(transformers.trainer_callback.PrinterCallback)
        trainer.remove_callback(transformers.trainer_callback.ProgressCallback)

    if trainer.is_world_process_zero():
        write_settings(out, chosen, settings, record)
    with _graceful_stop() as stop:
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

    tensors = whole_adapter(model) if trainer.is_fsdp_enabled else None  # by all processes
    if trainer.is_world_process_zero():
        trainer.check_result(tensors)
        if settings.trains_adapter:
            model.save_adapter(out, tensors=tensors)
        else:
            model.save(out)
        write_card(out, chosen, settings, record, last_logs)  # in place of PEFT's empty one
        if not settings.keep_checkpoints:
            for folder in out.glob("checkpoint-*"):
                shutil.rmtree(folder)
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
) -> Path:
    """Add an adapter into its model's weights and write a full checkpoint in the released layout.

    `on_merged` receives the number format of the weights, and how much rounding to it changes what
    the adapter changes (`DiffusionLM.merge_adapter`).
    Raises UserError for an adapter that does not fit or overflows the weights' number format, and
    for a folder that is not empty.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is not empty; choose a new folder for the merged checkpoint.")
    if not isinstance(model, DiffusionLM):
        model = load_model(model, dtype=dtype, device=device)
    versions_file = folder_of(adapter) / "versions.json"
    if is_file(versions_file):
        trained_on = checked(
            read_json(versions_file).get("model"), dict[str, str], f"model of {versions_file}"
        )
        if trained_on.get("content_hash") != model.content_hash():
            warnings.warn(
                f"The adapter {adapter} was trained on {trained_on.get('source')} in "
                f"{trained_on.get('dtype')} (content hash {trained_on.get('content_hash')}) and "
                f"{model.source} is another model; check that they belong together.",
                stacklevel=2,
            )
    model.load_adapter(adapter)
    rounding = model.merge_adapter()
    model.save(out)
    on_merged(str(model.dtype).removeprefix("torch."), rounding)
    return out


def add_adapter(model: DiffusionLM, config: AlignConfig) -> None:
    """Put the fresh LoRA adapter that the settings describe on the model."""
    model.add_lora(LoraConfig(r=config.lora_r, lora_alpha=config.lora_alpha))


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


def _checkpoint_to_resume(out: Path, resume: bool) -> Path | None:
    """The newest complete checkpoint in `out`; UserError where `out` does not fit `resume`."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; choose a folder for the result.")
    checkpoints = sorted(out.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    # The trainer writes its state last, so a checkpoint without one was cut off.
    complete = [path for path in checkpoints if (path / "trainer_state.json").is_file()]
    if resume:
        if not complete:
            raise UserError(f"{out} holds no checkpoint to resume from; start without --resume.")
        return complete[-1]
    if complete:
        raise UserError(
            f"{out} holds an unfinished run; add --resume to continue it, or choose another folder."
        )
    if out.is_dir() and any(out.iterdir()):
        raise UserError(f"{out} is not empty; choose a new folder for the result.")
    return None


def _check_same_run(out: Path, settings: AlignConfig, record: dict[str, Any]) -> None:
    """UserError naming the first thing that differs between the interrupted run and this one."""
    before = yaml.safe_load((out / "config.yaml").read_text(encoding="utf-8"))
    now = config_dict(settings)
    for name in sorted((before.keys() | now.keys()) - _FREE_ON_RESUME):
        if before.get(name) != now.get(name):
            raise UserError(
                f"The run in {out} had {name}={before.get(name)}, but the settings now have "
                f"{name}={now.get(name)}; set the old value, or start in another folder."
            )
    old = json.loads((out / "versions.json").read_text(encoding="utf-8"))
    for name in ("method", "model", "data", "judge"):
        if old.get(name) != record.get(name):
            raise UserError(
                f"The run in {out} had another {name} ({old.get(name)}, now {record.get(name)}); "
                "give the old one, or start in another folder."
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
