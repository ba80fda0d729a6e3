"""The output of a run: settings, phrases, metrics, versions and a model card."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import transformers
import yaml
from transformers.trainer import DEFAULT_PROGRESS_CALLBACK

from mosa.alignment.checkpoints import read_log
from mosa.alignment.config import AlignConfig, config_dict
from mosa.alignment.method import Method
from mosa.alignment.phrases import read_phrases
from mosa.data import TrainingExample, identify
from mosa.files import append_text, write_json, write_text
from mosa.inputs import sha256
from mosa.terminal import LiveBar


class MetricsFile(transformers.TrainerCallback):
    """Appends every log of the trainer to metrics.jsonl, one object with its step per line."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        """On resuming, delete what was logged after the checkpoint."""
        if not state.is_world_process_zero:
            return
        kept = read_log(self.path, most=state.global_step)
        write_text(self.path, "".join(f"{line}\n" for line in kept))

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        """Append one line; that on the whole training only where it is at its end."""
        logs = logs or {}
        is_early = "train_runtime" in logs and state.global_step < state.max_steps
        if state.is_world_process_zero and not is_early:
            append_text(self.path, json.dumps({"step": state.global_step, **logs}) + "\n")


class TrainingProgress(transformers.TrainerCallback):
    """A bar over the steps with the time left, and a line for every log: figures by name."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.bar = LiveBar()

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        """The pace is that from here on; steps before it were those of another session."""
        self.bar.is_shown = state.is_world_process_zero
        self.bar.update(self.what, state.global_step, state.max_steps)

    def on_step_end(self, args, state, control, **kwargs) -> None:
        """Move the bar on."""
        self.bar.update(self.what, state.global_step, state.max_steps)

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        """One line with the figures of these steps, without those on the whole training."""
        figures = {} if not logs or "train_runtime" in logs else logs
        shown = [f"{name} {value:.3g}" for name, value in figures.items() if name != "epoch"]
        if shown:
            self.bar.say(f"step {state.global_step} of {state.max_steps}: {', '.join(shown)}")


@contextmanager
def shown_training(
    trainer: transformers.Trainer, what: str, *, is_shown: bool = True
) -> Iterator[None]:
    """Show the progress of a training in our way, or not at all, and never in the trainer's."""
    for theirs in (transformers.PrinterCallback, DEFAULT_PROGRESS_CALLBACK):  # a notebook's, too
        trainer.remove_callback(theirs)
    ours = TrainingProgress(what)
    if is_shown and not trainer.args.disable_tqdm:
        trainer.add_callback(ours)
    with ours.bar:
        yield


def describe_data(
    data: str | Path | Sequence[TrainingExample], num_examples: int
) -> dict[str, Any]:
    """File name, hash and, for a known file, origin and licence; only a hash for a list."""
    if isinstance(data, str | Path):
        known = identify(data)
        description = {
            "file": Path(data).name,
            "sha256": sha256(data),
            "known_as": known.name if known else None,
            "licence": known.licence if known else None,
        }
    else:
        text = json.dumps([asdict(e) for e in data], ensure_ascii=False)
        description = {"file": None, "sha256": hashlib.sha256(text.encode()).hexdigest()}
    return {**description, "num_examples": num_examples}


def write_settings(out: Path, method: Method, config: AlignConfig, record: dict[str, Any]) -> None:
    """config.yaml, versions.json and the phrase sets; written before training starts."""
    write_text(out / "config.yaml", config_text(config))
    write_json(out / "versions.json", record)
    for name, setting in method.phrase_sets.items():
        text = "".join(f"{phrase}\n" for phrase in read_phrases(getattr(config, setting)))
        write_text(out / "phrases" / f"{name}.txt", text)


def config_text(config: AlignConfig) -> str:
    """The resolved settings as YAML; `load_config` reads it back to the same settings."""
    return yaml.safe_dump(config_dict(config), sort_keys=False, allow_unicode=True)


def write_card(
    out: Path,
    method: Method,
    config: AlignConfig,
    record: dict[str, Any],
    last_logs: dict[str, float],
) -> None:
    """README.md: what was trained, on what, how, and what is not known yet."""
    is_adapter = config.trains_adapter
    kind = "LoRA adapter" if is_adapter else "checkpoint"
    front = {
        "base_model": record["model"]["source"],
        "library_name": "peft" if is_adapter else "mosa-dllm",
        "tags": ["mosa", "diffusion-language-model", "safety-alignment"],
    }
    rows = "\n".join(f"| {name} | {_shown(value)} |" for name, value in config_dict(config).items())
    figures = "\n".join(
        f"| {name} | {value:.4g} |" for name, value in last_logs.items() if isinstance(value, float)
    )
    data = "\n".join(
        f"- {role}: {d['num_examples']} examples"
        + (f" of {d['file']}" if d["file"] else "")
        + (f" ({d['known_as']}, {d['licence']})" if d.get("known_as") else "")
        + f", SHA-256 {d['sha256'][:16]}"
        for role, d in record["data"].items()
    )
    load = (
        f'model = mosa.load_model("{record["model"]["source"]}", adapter="PATH/TO/THIS/FOLDER")'
        if is_adapter
        else 'model = mosa.load_model("PATH/TO/THIS/FOLDER")'
    )
    measured = (
        f"--model {record['model']['source']} --adapter none,PATH/TO/THIS/FOLDER"
        if is_adapter
        else "--model PATH/TO/THIS/FOLDER"
    )
    text = f"""---
{yaml.safe_dump(front, sort_keys=False).strip()}
---
# {kind.capitalize()}: {method.title}

Base model: `{record["model"]["source"]}` (content hash {record["model"]["content_hash"]}).

```python
import mosa

{load}
print(mosa.sample(model, ["..."]).text[0])
```

## Training data
{data}

## Settings
Seed {config.seed}. Versions are in `versions.json`, settings also in `config.yaml`, phrases in
`phrases/`.

| setting | value |
|---|---|
{rows}

## Last logged training figures
They describe the objective on training prompts, not safety. The whole curve is in `metrics.jsonl`.

| figure | value |
|---|---|
{figures}

## Evaluation
The training run measured nothing. This measures attacks, harmless requests and useful tasks under
one decoder (`mosa sets` lists what SETS can be), and prints a table for this page:

```sh
mosa evaluate {measured} --attacks direct,prefill,dija --sets SETS --out runs/card
mosa results runs/card --format md
```

## Limits
- An owner of the weights can remove the adapter or control the sampler; alignment of this kind
  raises the cost of an attack and does not prevent it.
- A refusal in the middle of an answer does not undo what stands before it.
"""
    write_text(out / "README.md", text)


def _shown(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
