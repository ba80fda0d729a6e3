"""Checkpoints and adapters by folder or hub id: found, and read without running anything of theirs.

Only safetensors are read, since unpickling can run code.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download  # pyright: ignore[reportUnknownVariableType]
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
)
from peft import PeftModel
from safetensors import SafetensorError

from mosa.types import UserError, is_json_object

DOWNLOADED = ("*.safetensors", "*.json", "*.jinja", "*.model", "merges.txt")
"""What is fetched from the hub: weights, configs and tokenizers, and no code."""


def locate(name: str | Path, *, revision: str | None = None) -> Path:
    """The folder of a checkpoint or adapter: the named folder, or a copy of the hub's.

    Raises UserError where there is neither.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_file():
        raise UserError(f"{name} is a file; give the checkpoint folder that holds it.")
    if isinstance(name, Path) or not re.fullmatch(r"[\w][\w.-]*/[\w][\w.-]*", name):
        raise UserError(
            f"There is no folder {name}; give an existing folder, or a hub id such as "
            "organisation/model."
        )
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(DOWNLOADED)))
    except GatedRepoError as error:
        raise UserError(
            f"The hub gives out {name} only to those who accepted its licence; accept it at "
            f"https://huggingface.co/{name} and log in with `hf auth login`, or give a folder."
        ) from error
    except LocalEntryNotFoundError as error:
        raise UserError(
            f"There is no folder {name} and the hub cannot be reached to download it; check the "
            "path or the connection, or give the folder of a copy."
        ) from error
    except (HfHubHTTPError, HFValidationError) as error:
        raise UserError(
            f"There is no folder {name} and the hub does not give out a model of that name"
            f"{f' at revision {revision}' if revision else ''}; check the spelling, and log in "
            "with `hf auth login` if it is private."
        ) from error


def read_json(path: Path, *, missing: str) -> dict[str, Any]:
    """The JSON object of a file; UserError, with the sentence `missing` where it is not there."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(missing) from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is not readable JSON ({error}); download it again.") from error
    if not is_json_object(content):
        raise UserError(f"{path} does not hold a JSON object; download it again.")
    return content


def adapter_settings(folder: Path) -> dict[str, Any]:
    """adapter_config.json of a folder; UserError unless it holds a LoRA adapter in safetensors."""
    settings = read_json(
        folder / "adapter_config.json",
        missing=f"{folder} has no adapter_config.json; give the folder of a PEFT adapter.",
    )
    if not (folder / "adapter_model.safetensors").is_file():
        raise UserError(
            f"{folder} has no adapter_model.safetensors; adapters are read from safetensors only, "
            "so save it again in that form."
        )
    if settings.get("peft_type") != "LORA":
        raise UserError(
            f"{folder} holds an adapter of type {settings.get('peft_type')}; only LORA adapters "
            "can be loaded."
        )
    if settings.get("megatron_config") is not None:
        raise UserError(
            f"{folder} asks to import {settings.get('megatron_core')}, and an adapter may not "
            "choose code to run; remove megatron_config from its adapter_config.json."
        )
    return settings


def with_adapter(network: Any, folder: Path, *, device: str) -> PeftModel:
    """The network with the adapter of a folder on it, frozen; UserError where it does not fit."""
    try:
        with peft_asking_quietly():
            return PeftModel.from_pretrained(  # pyright: ignore[reportUnknownMemberType]
                network, str(folder), torch_device=device
            )
    # What PEFT raises for targets that the network lacks, for other shapes, and for a faulty file.
    except (ValueError, RuntimeError, SafetensorError) as error:
        first_line = str(error).splitlines()[0]
        raise UserError(
            f"The adapter {folder} does not fit this model ({first_line}); give the adapter that "
            "was trained on it."
        ) from error


@contextmanager
def peft_asking_quietly() -> Iterator[None]:
    """Inside, PEFT may ask the network for an attribute by its old name; no user can fix it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`")
        yield
