"""Where numbers come from: versions, the commit, and one hash of everything that is loaded.

Two models with one content hash give the same answers. The hash covers every byte of every weight
(an adapter's too), the configs that scale and shape what the weights do, the tokenizer and the chat
template. Notes without effect (which library wrote a file, where it was) are left out.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from mosa.inputs import is_file, read_json, sha256

PACKAGES = ("mosa-dllm", "torch", "transformers", "peft", "accelerate", "tokenizers", "safetensors")
"""Distributions whose versions are recorded."""

NOTES = frozenset(
    (
        "_name_or_path",
        "auto_map",
        "auto_mapping",
        "base_model_name_or_path",
        "inference_mode",
        "peft_version",
        "revision",
        "transformers_version",
    )
)
"""Entries of configs without effect on what is loaded. An adapter's base model is hashed itself,
at any path; code that `auto_map` names is never run."""
DTYPE_NOTES = frozenset(("dtype", "torch_dtype"))
"""The weights' type in configs; for a model in memory it is read from the weights."""

READ_SUFFIXES = (".safetensors", ".json", ".jinja", ".model", ".spm", ".tiktoken", ".txt")
"""What the transformers library may read from a checkpoint's folder."""
SECONDS_TO_SETTLE = 2.0
"""A file changed this recently may change again without a new modification time."""


# ---------------------------------------------------------------------------------------- versions


def versions() -> dict[str, str | None]:
    """Versions of Python and of the packages that decide the numbers, and the commit if known."""
    packages = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"python": platform.python_version(), **packages, "git_commit": _git_commit()}


def _git_commit() -> str | None:
    """The commit of the checkout that this code runs from, "+dirty" if changed; None elsewhere."""
    git = shutil.which("git")
    if git is None:
        return None

    def ask(*words: str) -> str | None:
        command = [git, "-C", str(Path(__file__).parent), *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return None if done.returncode else done.stdout.strip()

    commit = ask("rev-parse", "HEAD")
    # An installation inside some other project's repository is not that project's commit.
    if commit is None or ask("ls-files", "--error-unmatch", __file__) is None:
        return None
    return commit + ("+dirty" if ask("status", "--porcelain", "--untracked-files=no") else "")


# ----------------------------------------------------------------------------------- content hashes


def content_hash(
    network: nn.Module, tokenizer: PreTrainedTokenizerFast | None, **about: Any
) -> str:
    """A hash of a model in memory, 20 hex digits; a second or less a gigabyte.

    `about` is what else decides its answers, for example its config.
    """
    adapters: dict[str, Any] = {}
    if isinstance(network, PeftModel):
        adapters = {name: config.to_dict() for name, config in network.peft_config.items()}
    about = about | {
        "adapters": {name: _without(config, NOTES) for name, config in adapters.items()},
        "tokenizer": None if tokenizer is None else _tokenizer_facts(tokenizer),
    }
    if isinstance(about.get("config"), Mapping):
        about["config"] = _without(about["config"], NOTES | DTYPE_NOTES)
    digest = hashlib.sha256(json.dumps(about, sort_keys=True, default=_plain_value).encode())
    # A thread each, since hashing leaves the interpreter to others.
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        for line in threads.map(_tensor_line, sorted(network.state_dict().items())):
            digest.update(line.encode())
    return digest.hexdigest()[:20]


def folder_hash(folder: Path) -> str:
    """A hash of a checkpoint's folder as the transformers library reads it, 64 hex digits.

    Every byte of every file counts that the library may read, but for the notes in configs.
    """
    digest = hashlib.sha256()
    templates = folder / "additional_chat_templates"
    for path in sorted([*folder.iterdir(), *templates.glob("*.jinja")]):
        is_read = path.suffix in READ_SUFFIXES or path.name.startswith("tokenizer.model")
        if is_read and is_file(path):
            digest.update(f"{path.relative_to(folder)} {file_hash(path)}\n".encode())
    return digest.hexdigest()


def _tensor_line(named: tuple[str, Tensor]) -> str:
    name, tensor = named
    flat = tensor.detach().contiguous().cpu().flatten().view(torch.uint8)
    digest = hashlib.sha256(flat.numpy().data).hexdigest()
    return f"{name} {tuple(tensor.shape)} {tensor.dtype} {digest}\n"


def _tokenizer_facts(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    # The tokenizer keeps how the last call padded and cut; this is not part of its content.
    backend = _without(
        json.loads(tokenizer.backend_tokenizer.to_str()), frozenset(("padding", "truncation"))
    )
    return {
        "backend": backend,
        "specials": tokenizer.special_tokens_map,
        "template": tokenizer.chat_template,
    }


def file_hash(path: Path) -> str:
    now = path.stat()
    identity = (path, now.st_size, now.st_mtime_ns, now.st_ctime_ns, now.st_ino)
    if time.time() - now.st_mtime < SECONDS_TO_SETTLE:
        return _digest_of.__wrapped__(*identity)
    return _digest_of(*identity)


@functools.lru_cache(maxsize=1024)
def _digest_of(path: Path, *identity: int) -> str:
    """A file's SHA-256, kept for this process while size, times and inode are the same."""
    if path.name in ("config.json", "generation_config.json", "adapter_config.json"):
        content = json.dumps(_without(read_json(path), NOTES), sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()
    return sha256(path)


def _without(config: Mapping[str, Any], notes: frozenset[str]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name not in notes}


def _plain_value(value: Any) -> Any:
    """What json cannot write: sets (in an order that no hash seed decides) and names of types."""
    return sorted(map(str, value)) if isinstance(value, set | frozenset) else str(value)
