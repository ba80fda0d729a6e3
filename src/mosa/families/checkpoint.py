"""Reading and writing checkpoint folders: config.json, safetensors, tokenizer.

Nothing here runs code that came with a checkpoint, and nothing unpickles.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from mosa.files import filling, write_bytes, write_text
from mosa.hub import text as hub_text
from mosa.hub.weights import INDEX, Weights, listed
from mosa.inputs import is_file, read_bytes, read_json
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
"""Files that travel with the weights from a loaded folder to a saved one, byte for byte; the chat
templates of `TEMPLATES` as well."""
TEMPLATES = "additional_chat_templates"

_WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")


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


class Piece(NamedTuple):
    """What a released tensor takes from one of the library's."""

    name: str
    """The library's tensor."""
    index: tuple[int | slice, ...] = ()
    """Which part of it; all of it if empty."""


Pieces = Mapping[str, tuple[Piece, ...]]
"""Released tensors by name -> the pieces whose rows they hold, one below the other."""


def pieces_of(
    name: str,
    shape: torch.Size,
    stacked: Mapping[str, tuple[str, ...]],
    fused: Mapping[str, tuple[str, ...]],
) -> Iterator[tuple[str, tuple[Piece, ...]]]:
    """The released tensors that begin with rows of one of the library's, before `released_names`.

    `stacked` and `fused` are those of a `Family`.
    """
    for ending, parts in stacked.items():
        if name.endswith(ending):
            rows = shape[1] // len(parts)
            for expert in range(shape[0]):
                for number, part in enumerate(parts):
                    index = (expert, slice(number * rows, (number + 1) * rows))
                    released = name.removesuffix(ending) + part.format(expert)
                    yield released, (Piece(name, index),)
            return
    for whole, parts in fused.items():
        if parts[0] in name:
            yield (
                name.replace(parts[0], whole),
                tuple(Piece(name.replace(parts[0], part)) for part in parts),
            )
        if any(part in name for part in parts):
            return
    yield name, (Piece(name),)


def released_tensor(pieces: tuple[Piece, ...], own: Mapping[str, Tensor]) -> Tensor:
    """A released tensor, made of the library's by name; it may share their memory."""
    parts = [own[piece.name][piece.index] for piece in pieces]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def check_tensors(
    weights: Weights, expected: Mapping[str, torch.Size], *, unused: Collection[str] = ()
) -> None:
    """UserError unless the tensors are those expected by released name, of their shapes, in floats.

    Those in `unused` may be there as well.
    """
    missing = [name for name in expected if name not in weights.file]
    if missing:
        raise UserError(
            f"{weights.place} lacks the tensor {listed(missing)}; its weights and config.json do "
            "not belong together, or the download is incomplete."
        )
    extra = [name for name in weights.file if name not in expected and name not in unused]
    if extra:
        raise UserError(
            f"{weights.place} holds the tensor {listed(extra)}, for which its config.json has no "
            "place; use the config.json that belongs to these weights."
        )
    for name, shape in expected.items():
        if weights.shape[name] != shape:
            raise UserError(
                f"The tensor {name} has shape {list(weights.shape[name])} but config.json asks for "
                f"{list(shape)}; use the config.json that belongs to these weights."
            )
    weights.check_floats()


def assign(
    network: PreTrainedModel, released: Iterable[tuple[str, Tensor]], pieces: Pieces
) -> None:
    """Make released tensors, which come one by one, the network's own.

    Those that are whole tensors of the library are not copied. Of the others the rows are copied
    to their place and the tensor is let go as the next is read, so that a network that is all
    experts needs hardly more memory than its weights.
    """
    shapes = {name: tensor.shape for name, tensor in stored_tensors(network).items()}
    own: dict[str, Tensor] = {}
    for name, tensor in released:
        first, *others = pieces[name]
        if not first.index and not others:
            own[first.name] = tensor
            continue
        begin = 0
        for piece in (first, *others):
            if piece.name not in own:
                own[piece.name] = tensor.new_empty(shapes[piece.name])
            place = own[piece.name][piece.index]
            place.copy_(tensor[begin : begin + len(place)])
            begin += len(place)
    network.load_state_dict(own, strict=False, assign=True)
    if network.config.tie_word_embeddings:
        network.tie_weights()
    assert not any(tensor.is_meta for tensor in network.state_dict().values())


def stored_tensors(network: PreTrainedModel) -> dict[str, Tensor]:
    """The network's tensors by the library's names, those that are tied to others left out, as in
    releases."""
    tied = network.all_tied_weights_keys
    return {name: tensor for name, tensor in network.state_dict().items() if name not in tied}


def compute_tables(network: PreTrainedModel, device: torch.device) -> None:
    """Give a network that was built without memory what is computed and not stored."""
    for path, module in list(network.named_modules()):
        parent, _, name = path.rpartition(".")
        if name == "rotary_emb":
            computed: Any = type(module)
            setattr(network.get_submodule(parent), name, computed(module.config).to(device))
        elif "embed_scale" in module._buffers:
            scale: Any = module.scalar_embed_scale
            module._buffers["embed_scale"] = torch.tensor(scale, device=device)


# -------------------------------------------------------------------------------------- tokenizer


def read_family_tokenizer(
    folder: Path, slow_class: type[PreTrainedTokenizerFast]
) -> PreTrainedTokenizerFast | None:
    """The tokenizer of a checkpoint folder, or None where the folder has none.

    `slow_class` reads folders that hold vocab.json and merges.txt in place of tokenizer.json.
    """
    if is_file(folder / "tokenizer.json"):
        return hub_text.read_tokenizer(folder, PreTrainedTokenizerFast)
    if is_file(folder / "vocab.json") and is_file(folder / "merges.txt"):
        return hub_text.read_tokenizer(folder, slow_class)
    if is_file(folder / "tokenizer_config.json"):
        raise UserError(
            f"{folder} has a tokenizer_config.json but no tokenizer.json (or vocab.json with "
            "merges.txt); add it, or remove the tokenizer files to work with token ids."
        )
    return None


def companions(folder: Path) -> dict[str, bytes]:
    """The small files that travel with the weights, by their paths in the folder."""
    paths = [*(folder / name for name in COMPANIONS), *(folder / TEMPLATES).glob("*.jinja")]
    found = sorted(path for path in paths if is_file(path))
    return {path.relative_to(folder).as_posix(): read_bytes(path) for path in found}


# ---------------------------------------------------------------------------------------- writing


def write(
    folder: Path,
    *,
    config: Mapping[str, Any],
    own: Mapping[str, Tensor],
    pieces: Pieces,
    companions: Mapping[str, bytes],
    tokenizer: PreTrainedTokenizerFast | None,
    max_shard_size: int | str,
) -> None:
    """Write a checkpoint folder, each file whole.

    `own` are the library's tensors, `pieces` how releases hold them. Companions are written
    unchanged; a tokenizer is serialised only if it did not come as files.
    """
    with filling(folder) as part:
        _write_tensors(part, own, pieces, max_shard_size)
        names = {path.name for path in part.iterdir()}
        write_text(part / "config.json", json.dumps(config, indent=2, sort_keys=True) + "\n")
        for name, content in companions.items():
            (part / name).parent.mkdir(exist_ok=True)
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


def _write_tensors(
    folder: Path, own: Mapping[str, Tensor], pieces: Pieces, max_shard_size: int | str
) -> None:
    """Write the released tensors, one file after another: only one file's are in memory twice."""
    without_memory = {name: tensor.to("meta") for name, tensor in own.items()}
    sizes = {
        released: torch.empty_like(released_tensor(parts, without_memory))
        for released, parts in pieces.items()
    }
    shards = split_torch_state_dict_into_shards(sizes, max_shard_size=max_shard_size)
    for file, names in shards.filename_to_tensors.items():
        tensors = {name: _separate(released_tensor(pieces[name], own)) for name in names}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        del tensors  # before the next file's are made
    if shards.is_sharded:
        index = {"metadata": shards.metadata, "weight_map": shards.tensor_to_filename}
        write_text(folder / INDEX, json.dumps(index, indent=2, sort_keys=True) + "\n")


def _separate(tensor: Tensor) -> Tensor:
    """The tensor with memory of its own, as the parts of a stack have not: files share none."""
    if tensor.untyped_storage().nbytes() == tensor.nbytes:
        return tensor.contiguous()
    return tensor.clone(memory_format=torch.contiguous_format)
