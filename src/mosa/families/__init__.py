"""Model families: how each lays out its weights, tokens and logits; everything else is shared.

A new family is one new file that builds a `Family`, and one line in `FAMILIES`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMultimodalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from mosa.families import checkpoint
from mosa.families.a2d import A2D
from mosa.families.attention import AttentionPattern
from mosa.families.base import DiffusionLM, Family
from mosa.families.diffusion_gemma import DIFFUSION_GEMMA
from mosa.families.dream import DREAM
from mosa.families.llada import LLADA
from mosa.families.llada2 import LLADA2
from mosa.families.llada_moe import LLADA_MOE
from mosa.families.rotary import turn_in_float32
from mosa.families.sdar import SDAR
from mosa.families.sdar_moe import SDAR_MOE
from mosa.hub.folders import folder_of, locate
from mosa.hub.weights import FLOATING, Weights
from mosa.inputs import checked, is_file, is_folder, read_json, refusing, shortened
from mosa.types import UserError
from mosa.worker import device_of

__all__ = [
    "ALIASES",
    "FAMILIES",
    "DiffusionLM",
    "Family",
    "attention_of",
    "context_of",
    "decoder_of",
    "load_model",
    "new_model",
    "packaged_folder",
    "world_seed_of",
]

FAMILIES: dict[str, Family] = {
    "llada": LLADA,
    "dream": DREAM,
    "a2d": A2D,
    "sdar": SDAR,
    "llada_moe": LLADA_MOE,
    "llada2": LLADA2,
    "sdar_moe": SDAR_MOE,
    "diffusion_gemma": DIFFUSION_GEMMA,
}

ALIASES: dict[str, str] = {
    "testbed": "testbed/checkpoints/shallow",
    "testbed:helpful": "testbed/checkpoints/helpful",
    "testbed:block": "testbed/checkpoints/block",
}
"""Names of checkpoints that come with the package -> their folder in it."""

DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def packaged_folder(name: str | Path) -> Path | None:
    """The path of a checkpoint of `ALIASES`, whether it is there or not; None for other names."""
    relative = ALIASES.get(name) if isinstance(name, str) else None
    return None if relative is None else Path(__file__).parent.parent / relative


def world_seed_of(model: str | Path) -> int | None:
    """The seed of the invented world that a model of the testbed knows, from the recipe beside its
    weights; None for any other model."""
    recipe = (packaged_folder(model) or folder_of(model)) / "recipe.json"
    content = read_json(recipe) if is_file(recipe) else {}
    if "world_seed" not in content:  # others may have a recipe.json, too
        return None
    return checked(content["world_seed"], int, f"world_seed of {recipe}")


def attention_of(model: str | Path) -> AttentionPattern:
    """Which positions of a row see which in a checkpoint on this machine, from its config.json; the
    weights are not read."""
    family, config = _complete(
        checkpoint.read_config(packaged_folder(model) or folder_of(model)), model
    )
    return family.attention(config)


def context_of(model: str | Path) -> int:
    """How many tokens, prompt and response together, a checkpoint on this machine was made for; the
    weights are not read."""
    family, config = _complete(
        checkpoint.read_config(packaged_folder(model) or folder_of(model)), model
    )
    return family.network_config(config).get_text_config().max_position_embeddings


def decoder_of(model: str | Path) -> str | None:
    """The published decoder by which a checkpoint on this machine answers unless told otherwise, if
    its family has one; None for what is not on this machine."""
    folder = packaged_folder(model) or folder_of(model)
    if not is_file(folder / "config.json"):
        return None
    return _family_of(checkpoint.read_config(folder)).decoder


def load_model(
    model: str | Path,
    *,
    adapter: str | Path | None = None,
    dtype: torch.dtype | str = "auto",
    device: str | torch.device | None = None,
    attn_implementation: str = "sdpa",
    revision: str | None = None,
) -> DiffusionLM:
    """Load a diffusion language model with its tokenizer, ready to use and in evaluation mode.

    `model` is a checkpoint folder, a hub id, or one of `ALIASES`; only safetensors are read and no
    code that came with a checkpoint is run. `dtype` "auto" keeps the numbers as they are stored
    (as the embedding is, where that differs). `device` None is this process's GPU if there is one,
    else the CPU. `adapter` is the folder or hub id of a PEFT LoRA adapter to put on, `revision` a
    branch, tag or commit of a hub id. Raises UserError for anything that cannot be loaded as it is.
    """
    if "://" in str(model):
        raise UserError(
            f"{model} is an address, and weights are needed here; `mosa evaluate` asks a model "
            "that is served elsewhere (URL#NAME)"
        )
    packaged = packaged_folder(model)
    if packaged is not None:
        folder = packaged
        if not is_folder(folder):
            raise UserError(
                f"The checkpoint {model} is not in this installation; build it with "
                "`mosa testbed build`, or install mosa again."
            )
    else:
        folder = locate(model, revision=revision)
    released = checkpoint.read_config(folder)
    if packaged is None and not is_folder(folder_of(model)):
        released = checkpoint.with_hub_code(released, str(model))
    family, config = _complete(released, model)
    network_config = _network_config(family, config)
    weights = Weights.of_folder(folder)
    device = device_of(device)
    # Asked before the layers are built one by one, of which a damaged config may want millions.
    num_layers = network_config.get_text_config().num_hidden_layers
    last = f"{family.body}.layers.{num_layers - 1}.input_layernorm.weight"
    if family.released_name(last) not in weights.file:
        raise UserError(
            f"{folder} lacks the tensor {family.released_name(last)}; its weights and config.json "
            "do not belong together, or the download is incomplete."
        )
    # Built without memory, then given the checkpoint's tensors, so only one copy exists.
    with torch.device("meta"):
        network = _build(family, network_config, attn_implementation, torch.float32)
    pieces = family.pieces(network)
    own = checkpoint.stored_tensors(network)
    shapes = {name: checkpoint.released_tensor(parts, own).shape for name, parts in pieces.items()}
    unused = _unused(family, network_config, weights)
    checkpoint.check_tensors(weights, shapes, unused=unused)
    stored = weights.stored[family.released_name(f"{family.body}.embed_tokens.weight")]
    # What is no parameter, such as what a router adds to its scores, has a format of its own.
    buffers = dict(network.named_buffers())
    released_tensors = weights.each(
        device=device,
        dtype=_dtype(dtype) or FLOATING[stored],
        as_stored=[name for name, parts in pieces.items() if parts[0].name in buffers],
        leave_out=unused,
    )
    checkpoint.assign(network, released_tensors, pieces)
    # Rotary tables are computed and not stored, so only they are still without memory.
    checkpoint.compute_tables(network, device)
    tokenizer = checkpoint.read_family_tokenizer(folder, family.tokenizer_class)
    loaded = DiffusionLM(
        network.eval(),
        family,
        _with_mask(family, config, tokenizer),
        tokenizer,
        source=str(model),
        companions=checkpoint.companions(folder),
        world_seed=world_seed_of(model),
    )
    loaded.check_template()
    if adapter is not None:
        loaded.load_adapter(adapter)
    return loaded


def _unused(family: Family, config: PreTrainedConfig, weights: Weights) -> list[str]:
    """Tensors that some tools store beside those that count: tables that are computed, and a tied
    head, which has to equal the embedding."""
    unused = [name for name in weights.file if name.endswith("rotary_emb.inv_freq")]
    head = family.released_name("lm_head.weight")
    if config.tie_word_embeddings and head in weights.file:
        embedding = family.released_name("model.embed_tokens.weight")
        others = [name for name in weights.file if name not in (head, embedding)]
        pair = dict(weights.each(device="cpu", leave_out=others))
        if embedding in pair and torch.equal(pair[head], pair[embedding]):
            unused.append(head)
    return unused


def new_model(
    config: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerFast | None = None,
    *,
    seed: int,
    dtype: torch.dtype = torch.float32,
) -> DiffusionLM:
    """A model with fresh random weights, on the CPU.

    `config` is a config.json in the released layout of its family; fields that all released
    checkpoints agree on may be left out:

        new_model({"model_type": "llada", "d_model": 32, "n_heads": 4, "n_layers": 2, ...}, seed=0)
    """
    family = _family_of(config)
    complete = family.complete_config(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # Not `.to(dtype)`, which would round the rotary frequencies too.
        network = _build(family, _network_config(family, complete), "sdpa", dtype)
    return DiffusionLM(
        network.eval(),
        family,
        _with_mask(family, complete, tokenizer),
        tokenizer,
        source=f"new {family.name} model",
        companions={},
    )


def _complete(released: Mapping[str, Any], model: str | Path) -> tuple[Family, dict[str, Any]]:
    """The family of a checkpoint, and its config.json with what that leaves out."""
    family, config = _family_of(released), dict(released)
    for piece, fields in family.fields_by_name.items():
        if piece in Path(model).name.lower():
            config = {**fields, **config}
    return family, family.complete_config(config)


def _with_mask(
    family: Family, config: dict[str, Any], tokenizer: PreTrainedTokenizerFast | None
) -> dict[str, Any]:
    """The config with `mask_token_id`, which some releases leave to their tokenizer or loader."""
    if config.get("mask_token_id") is not None or family.mask_token is None:
        return config
    if tokenizer is None:
        raise UserError(
            f"config.json of this {family.name} model has no mask_token_id, and there is no "
            f"tokenizer to look {family.mask_token} up in; add either."
        )
    if tokenizer.mask_token is None:
        tokenizer.add_special_tokens({"mask_token": family.mask_token})
    return {**config, "mask_token_id": tokenizer.mask_token_id}


def _family_of(config: Mapping[str, Any]) -> Family:
    model_type = config.get("model_type")
    families = [f for f in FAMILIES.values() if model_type in f.model_types]
    if not families:
        types = dict.fromkeys(t for family in FAMILIES.values() for t in family.model_types)
        raise UserError(
            f"config.json has model_type {shortened(repr(model_type))}, which mosa does not know; "
            f"it can load {', '.join(types)}."
        )
    named = [f for f in families if config.get("architectures") == [f.architecture]]
    unnamed = [f for f in families if f.architecture is None]
    return (named or unnamed or families)[0]


def _network_config(family: Family, config: Mapping[str, Any]) -> PreTrainedConfig:
    network_config: Any = family.network_config(config)
    if family.is_noise:  # its masks are the library's own
        return network_config
    # Read by the transformers library at every call: attention looks both ways, padding aside.
    network_config.is_causal = False
    # No padding_idx: it would zero and freeze the embedding of a padding token, which in these
    # models is often the end-of-text token too.
    network_config.pad_token_id = None
    network_config.bos_token_id = network_config.eos_token_id = None
    # By the library's own, PEFT would take the names of dense layers and of shared experts for
    # those of routed experts, which older versions of the library held apart.
    network_config.model_type = "mosa"
    return network_config


def _build(
    family: Family, config: PreTrainedConfig, attn_implementation: str, dtype: torch.dtype
) -> PreTrainedModel:
    kind: Any = AutoModelForMultimodalLM if family.is_noise else AutoModelForCausalLM
    what = f"The attention implementation {attn_implementation!r} cannot be used here"
    with refusing((ImportError, ValueError), what, "use sdpa or eager."):
        network = kind.from_config(config, attn_implementation=attn_implementation, dtype=dtype)
    if family.turns_in_float32:
        turn_in_float32(network)
    return network


def _dtype(dtype: torch.dtype | str) -> torch.dtype | None:
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        return None
    if dtype not in DTYPES:
        raise UserError(f"dtype {dtype!r} is not one of auto, {', '.join(DTYPES)}.")
    return DTYPES[dtype]
