"""What a run leaves behind: settings, phrases, metrics, versions and a model card draft."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers
import yaml

from mosa.align.config import AlignConfig, config_dict
from mosa.align.method import Method
from mosa.align.phrases import read_phrases
from mosa.data import TrainingExample, identify
from mosa.families import DiffusionLM

PACKAGES = ("mosa-dllm", "torch", "transformers", "peft", "accelerate", "tokenizers", "safetensors")
"""Distributions whose versions are recorded."""


class MetricsFile(transformers.TrainerCallback):
    """Appends every log of the trainer to metrics.jsonl, one object with its step a line."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        """On resuming, forget what was logged after the checkpoint."""
        if not state.is_world_process_zero:
            return
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.is_file() else []
        kept = [line for line in lines if json.loads(line)["step"] <= state.global_step]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        """Append one line."""
        if state.is_world_process_zero:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": state.global_step, **(logs or {})}) + "\n")


def fingerprint(model: DiffusionLM) -> str:
    """A hash of the weights: names, shapes and the first 4,096 numbers of every tensor, 16 digits.

    Cheap at any size; enough to notice that an adapter meets another checkpoint.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.network.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        head = tensor.detach().flatten()[:4096].cpu().contiguous()
        digest.update(head.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def describe_data(
    data: str | Path | Sequence[TrainingExample], num_examples: int
) -> dict[str, Any]:
    """File name, hash and, for a known file, origin and licence; a hash alone for a list."""
    if isinstance(data, str | Path):
        known = identify(data)
        description = {
            "file": Path(data).name,
            "sha256": hashlib.sha256(Path(data).read_bytes()).hexdigest(),
            "known_as": known.name if known else None,
            "licence": known.licence if known else None,
        }
    else:
        text = json.dumps([asdict(e) for e in data], ensure_ascii=False)
        description = {"file": None, "sha256": hashlib.sha256(text.encode()).hexdigest()}
    return {**description, "num_examples": num_examples}


def versions() -> dict[str, str | None]:
    """Versions of Python and of the packages that decide the numbers, and the commit if known."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        found[package] = importlib.metadata.version(package)
    return {**found, "git_commit": _git_commit()}


def _git_commit() -> str | None:
    """The commit of the checkout that this code runs from, "+dirty" if changed; None elsewhere."""
    git = shutil.which("git")
    folder = Path(__file__).parent
    if git is None:
        return None
    commit = subprocess.run(
        [git, "-C", str(folder), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    tracked = subprocess.run(
        [git, "-C", str(folder), "ls-files", "--error-unmatch", __file__],
        capture_output=True,
        text=True,
        check=False,
    )
    # An installation inside some other project's repository is not that project's commit.
    if commit.returncode or tracked.returncode:
        return None
    changes = subprocess.run(
        [git, "-C", str(folder), "status", "--porcelain", "--untracked-files=no"],
        capture_output=True,
        text=True,
        check=False,
    )
    return commit.stdout.strip() + ("+dirty" if changes.stdout.strip() else "")


def write_settings(out: Path, method: Method, config: AlignConfig, record: dict[str, Any]) -> None:
    """config.yaml, versions.json and the phrase sets; written before training starts."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.yaml").write_text(config_text(config), encoding="utf-8")
    (out / "versions.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    for name, setting in method.phrase_sets.items():
        folder = out / "phrases"
        folder.mkdir(exist_ok=True)
        text = "".join(f"{phrase}\n" for phrase in read_phrases(getattr(config, setting)))
        (folder / f"{name}.txt").write_text(text, encoding="utf-8")


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
    text = f"""---
{yaml.safe_dump(front, sort_keys=False).strip()}
---
# {kind.capitalize()}: {method.title}

*A draft written by the training run. Fill in what is marked, and delete this line.*

Base model: `{record["model"]["source"]}` (weights fingerprint {record["model"]["fingerprint"]}).

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
*To be filled in:* attack success rates with their attacks, judges, decoder settings and intervals;
usefulness and over-refusal under the same decoder. Nothing has been measured by this run.

## Limits
- Whoever holds the weights can remove the adapter or control the sampler; alignment of this kind
  raises the cost of an attack and does not prevent it.
- A refusal in the middle of an answer does not undo what stands before it.
"""
    (out / "README.md").write_text(text, encoding="utf-8")


def _shown(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
