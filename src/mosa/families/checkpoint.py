"""Reading and writing checkpoint folders: config.json, safetensors, tokenizer, adapters.

Nothing here runs code that came with a checkpoint, and nothing unpickles.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from peft import PeftModel, get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from mosa.files import filling, write_bytes, write_text
from mosa.hub import adapter_settings, locate, read_json, with_adapter
from mosa.types import UserError

COMPANIONS = (
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
)
"""Files that travel with the weights from a loaded folder to a saved one, byte for byte."""

ALORA = (
    "The adapter has alora_invocation_tokens, so it acts on some positions only, which the sampler "
    "does not know; use a plain LoRA adapter."
)
"""The message that refuses an activated LoRA (arXiv:2504.12397)."""

_WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")

FLOATING = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}


# --------------------------------------------------------------------------------------- configs


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a checkpoint folder; UserError where it is missing or no JSON object."""
    return read_json(
        folder / "config.json",
        missing=f"{folder} has no config.json; give the folder of a released checkpoint.",
    )


def with_hub_code(config: Mapping[str, Any], repository: str) -> dict[str, Any]:
    """The config with its `auto_map` pointing at the hub repository it came from.

    mosa never runs the code that `auto_map` names and does not download it, but other tools look
    for it beside the config, where a saved copy of the checkpoint would not have it.
    """
    if not isinstance(config.get("auto_map"), dict):
        return dict(config)
    pointed = {
        auto: f"{repository}--{target}"
        if isinstance(target, str) and "--" not in target
        else target
        for auto, target in config["auto_map"].items()
    }
    return {**config, "auto_map": pointed}


# ---------------------------------------------------------------------------------------- tensors


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that make up a checkpoint, from its index or the single file.

    Raises UserError where there are none or some are missing.
    """
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if not index.is_file():
        if any(folder.glob("*.bin")) or any(folder.glob("*.pt*")):
            raise UserError(
                f"{folder} holds pickled weights only, which mosa does not open because a pickle "
                "can run code; convert them to safetensors."
            )
        raise UserError(
            f"{folder} has neither model.safetensors nor model.safetensors.index.json; download "
            "the checkpoint again."
        )
    weight_map = read_json(index, missing=f"{index} is missing.").get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{index} has no weight_map; download the checkpoint again.")
    files = [folder / name for name in sorted(set(weight_map.values()))]
    absent = [file.name for file in files if not file.is_file()]
    if absent:
        raise UserError(
            f"{folder} lacks {_listed(absent)}, named in its index; download the checkpoint again."
        )
    return files


def read_tensors(
    files: list[Path],
    expected: Mapping[str, torch.Size],
    *,
    dtype: torch.dtype | None,
    like: str,
    device: torch.device,
) -> dict[str, Tensor]:
    """The tensors of a checkpoint by released name, copied one by one to the device.

    `expected` are their names and shapes; `dtype` None means the one that the tensor `like` is
    stored in. All names and shapes are checked before the first tensor is read. Raises UserError
    for a tensor that is missing, superfluous, of another shape, or not of floating-point numbers.
    """
    where: dict[str, Path] = {}
    shapes: dict[str, torch.Size] = {}
    stored: dict[str, str] = {}
    for file in files:
        with _opened(file, "cpu") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (a file handle, no dict)
                piece = tensors.get_slice(name)
                where[name], shapes[name] = file, torch.Size(piece.get_shape())
                stored[name] = piece.get_dtype()
                if stored[name] not in FLOATING:
                    raise UserError(
                        f"The tensor {name} is stored as {stored[name]}; quantised "
                        "checkpoints are not supported, use the bfloat16 or float32 one."
                    )
    folder = files[0].parent
    missing = [name for name in expected if name not in where]
    if missing:
        raise UserError(
            f"{folder} lacks the tensor {_listed(missing)}; its weights and config.json do not "
            "belong together, or the download is incomplete."
        )
    extra = [name for name in where if name not in expected]
    if extra:
        raise UserError(
            f"{folder} holds the tensor {_listed(extra)}, for which its config.json has no place; "
            "use the config.json that belongs to these weights."
        )
    for name, shape in expected.items():
        if shapes[name] != shape:
            raise UserError(
                f"The tensor {name} has shape {list(shapes[name])} but config.json asks for "
                f"{list(shape)}; use the config.json that belongs to these weights."
            )
    read: dict[str, Tensor] = {}
    for file in files:
        with _opened(file, str(device)) as tensors:
            for name in tensors.keys():  # noqa: SIM118
                # A copy: on the CPU safetensors returns a view of the file, which would become
                # invalid when the folder is overwritten.
                read[name] = tensors.get_tensor(name).to(
                    dtype=dtype or FLOATING[stored[like]], copy=True
                )
    return read


def assign(
    network: PreTrainedModel, tensors: Mapping[str, Tensor], released_name: Callable[[str], str]
) -> None:
    """Make tensors by released name the network's own parameters, without copying them."""
    named = {name: released_name(name) for name in network.state_dict()}
    network.load_state_dict(
        {ours: tensors[released] for ours, released in named.items() if released in tensors},
        strict=False,
        assign=True,
    )
    if network.config.tie_word_embeddings:
        network.tie_weights()
    assert not any(p.is_meta for p in network.parameters())


def _opened(file: Path, device: str):
    try:
        return safe_open(file, framework="pt", device=device)
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{file} is not a readable safetensors file ({error}); download it again."
        ) from error


def _listed(names: list[str], shown: int = 3) -> str:
    rest = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + rest


def released_tensors(
    network: PreTrainedModel, released_name: Callable[[str], str]
) -> dict[str, Tensor]:
    """The network's tensors by released name; a tied LM head is left out, as in releases."""
    tied = network.config.tie_word_embeddings
    return {
        released_name(name): tensor
        for name, tensor in network.state_dict().items()
        if not (tied and name == "lm_head.weight")
    }


# -------------------------------------------------------------------------------------- tokenizer


def read_tokenizer(
    folder: Path, slow_class: type[PreTrainedTokenizerFast]
) -> PreTrainedTokenizerFast | None:
    """The tokenizer of a checkpoint folder, or None where the folder has none.

    `slow_class` reads folders that hold vocab.json and merges.txt in place of tokenizer.json.
    """
    if (folder / "tokenizer.json").is_file():
        reader = PreTrainedTokenizerFast
    elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        reader = slow_class
    elif (folder / "tokenizer_config.json").is_file():
        raise UserError(
            f"{folder} has a tokenizer_config.json but no tokenizer.json (or vocab.json with "
            "merges.txt); add it, or remove the tokenizer files to work with token ids."
        )
    else:
        return None
    for file in ("tokenizer.json", "tokenizer_config.json", "vocab.json"):
        if (folder / file).is_file():
            read_json(folder / file, missing="")
    return reader.from_pretrained(folder, local_files_only=True)


def companions(folder: Path) -> dict[str, bytes]:
    """The small files that travel with the weights, by name."""
    paths = [folder / name for name in COMPANIONS]
    return {path.name: path.read_bytes() for path in paths if path.is_file()}


# ---------------------------------------------------------------------------------------- writing


def write(
    folder: Path,
    *,
    config: Mapping[str, Any],
    tensors: dict[str, Tensor],
    companions: Mapping[str, bytes],
    tokenizer: PreTrainedTokenizerFast | None,
    max_shard_size: int | str,
) -> None:
    """Write a checkpoint folder, each file whole.

    Companions are written unchanged; a tokenizer is serialised only if it did not come as files.
    """
    with filling(folder) as part:
        save_torch_state_dict(
            tensors, part, max_shard_size=max_shard_size, metadata={"format": "pt"}
        )
        names = {path.name for path in part.iterdir()}
        write_text(part / "config.json", json.dumps(config, indent=2, sort_keys=True) + "\n")
        for name, content in companions.items():
            write_bytes(part / name, content)
        if tokenizer is not None and "tokenizer_config.json" not in companions:
            # The template inside tokenizer_config.json and the class under its old name, since
            # tools built on transformers 4 know neither the separate file nor the new name.
            tokenizer.save_pretrained(part, save_jinja_files=False)
            path = part / "tokenizer_config.json"
            text = path.read_text(encoding="utf-8")
            write_text(path, text.replace('"TokenizersBackend"', '"PreTrainedTokenizerFast"'))
    for path in folder.iterdir():
        # The rest of an earlier save here, which would be read in place of this one.
        if _WEIGHTS.fullmatch(path.name) and path.name not in names:
            path.unlink()


# --------------------------------------------------------------------------------------- adapters


def read_adapter(network: PreTrainedModel, name: str | Path, *, revision: str | None) -> PeftModel:
    """The network with a trained LoRA adapter on it, frozen.

    Raises UserError where the folder holds no LoRA adapter in safetensors or one for another model.
    """
    folder = locate(name, revision=revision)
    if adapter_settings(folder).get("alora_invocation_tokens") is not None:
        raise UserError(ALORA)
    adapted = with_adapter(network, folder, device=str(next(network.parameters()).device))
    with _opened(folder / "adapter_model.safetensors", "cpu") as tensors:
        stored = set(tensors.keys())
    wanted = set(get_peft_model_state_dict(adapted, save_embedding_layers=False))
    if stored != wanted:
        raise UserError(
            f"The adapter {folder} does not fit this model (its tensor "
            f"{_listed(sorted(stored ^ wanted))} is on one side only); give the adapter that was "
            "trained on it."
        )
    return adapted
