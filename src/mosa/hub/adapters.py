"""LoRA adapters in PEFT's folders: they do what their file says, or they are refused."""

from __future__ import annotations

import dataclasses
import math
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.utils.warning import PeftWarning

from mosa.hub.bounded import ask, faults_of
from mosa.hub.weights import Weights, listed
from mosa.inputs import is_file, read_json, shortened
from mosa.types import UserError

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"

NOTES = frozenset(
    ("auto_mapping", "base_model_name_or_path", "inference_mode", "lora_dropout")
    + ("peft_type", "peft_version", "revision", "task_type")
)
"""Fields without effect on a trained adapter that only answers."""
MADE = frozenset(
    ("r", "lora_alpha", "target_modules", "target_parameters", "exclude_modules")
    + ("use_rslora", "use_dora")
    + ("rank_pattern", "alpha_pattern", "modules_to_save", "layers_to_transform", "layers_pattern")
    + ("bias", "fan_in_fan_out", "lora_bias", "ensure_weight_tying")
)
"""Fields whose effect is made here, by PEFT's own layers."""
FLAGS = ("use_rslora", "use_dora", "fan_in_fan_out", "lora_bias", "ensure_weight_tying")
BIASES = ("none", "all", "lora_only")
"""What `bias` may name: which of the network's own biases the adapter has trained."""
PLAIN_STARTS = ("gaussian", "orthogonal", "eva")
"""What `init_lora_weights` may name: first weights that leave the base as it is."""
MOST_ALPHA = 1_000_000
MOST_SCALE = 1e4
"""Of alpha over rank; what is trained has about 0.1 to 100."""
LEAST_CHANGE = 1e-20
"""A change of a weight that float32 cannot tell from none, whatever the weight of a network is."""
MOST_UNUSED_RANK = 1024
PREFIX = "base_model.model."
"""What PEFT puts before the names of the network's modules."""
LOW_RANK = re.compile(r"\.lora_([AB]\.weight|embedding_[AB])$")


def adapter_settings(folder: Path) -> dict[str, Any]:
    """adapter_config.json of a folder; UserError unless it is a LoRA adapter in safetensors.

    A field whose effect is not made here has to be as PEFT has it without one.
    """
    settings = read_json(
        folder / CONFIG, missing=f"{folder} has no {CONFIG}; give the folder of a PEFT adapter."
    )
    if not is_file(folder / TENSORS):
        raise UserError(
            f"{folder} has no {TENSORS}; adapters are read from safetensors only, so save it again "
            "in that form."
        )
    if settings.get("peft_type") != "LORA":
        raise UserError(
            f"{folder} holds an adapter of type {shortened(settings.get('peft_type'))}; only LORA "
            "adapters can be loaded."
        )
    usual = {field.name: field.default for field in dataclasses.fields(LoraConfig)}
    for name, value in settings.items():
        if name in NOTES or name in MADE or value is None or value is False:
            continue
        if name == "init_lora_weights" and value in PLAIN_STARTS:
            continue
        if value not in ("", [], {}, usual.get(name)):
            raise UserError(
                f"{folder / CONFIG} sets {shortened(name)}={shortened(repr(value))}, whose effect "
                "mosa does not make; use a plain LoRA adapter."
            )
    for name in FLAGS:
        if not isinstance(settings.get(name) or False, bool):
            raise _wrong(folder, name, settings[name], "true or false")
    if (settings.get("bias") or "none") not in BIASES:
        raise _wrong(folder, "bias", settings["bias"], " or ".join(BIASES))
    _check_number(folder, "r", settings.get("r", usual["r"]), whole=True)
    _check_number(folder, "lora_alpha", settings.get("lora_alpha", usual["lora_alpha"]))
    for name, whole in (("rank_pattern", True), ("alpha_pattern", False)):
        pattern = settings.get(name) or {}
        if not isinstance(pattern, dict):
            raise _wrong(folder, name, pattern, "a table")
        for value in pattern.values():
            _check_number(folder, name, value, whole=whole)
    modules = ("target_modules", "exclude_modules", "modules_to_save", "layers_pattern")
    for name in (*modules, "target_parameters"):
        value = settings.get(name)
        are_texts = isinstance(value, list) and all(isinstance(part, str) for part in value)
        if not (value is None or are_texts or (isinstance(value, str) and name in modules)):
            raise _wrong(folder, name, value, "a list of names")
    return settings


def read_adapter(
    network: Any,
    folder: Path,
    *,
    other_names: Mapping[str, str] | None = None,
    changes_base: bool = True,
) -> PeftModel:
    """The network with the adapter of a folder on it, frozen, in evaluation mode.

    `other_names` are other names for the network's modules, by which an adapter may know them.
    Where it `changes_base`, it may hold tensors of the network itself, such as new embeddings or
    biases, which stay where the adapter is switched off. Raises UserError where the adapter does
    not fit, is not read as its settings say, or changes nothing.
    """
    settings = adapter_settings(folder)
    if not changes_base and (settings.get("bias") or "none") != "none":
        raise UserError(
            f"{folder / CONFIG} sets bias={settings['bias']}, which changes biases of the model "
            "itself, so that it cannot be compared with itself; merge the adapter elsewhere, or "
            "use one with bias none."
        )
    weights = Weights.of_files(folder / TENSORS, [folder / TENSORS])
    weights.check_floats()
    renamed = _renamed(network, list(weights.file), other_names or {})
    if renamed:
        settings |= {"target_modules": _modules(list(renamed.values())), "exclude_modules": None}
        if settings.get("rank_pattern") or settings.get("alpha_pattern"):
            raise UserError(
                f"{folder / CONFIG} has a pattern of ranks or scales under the names of the "
                "released code, which is not read; train it under the names of the transformers "
                "library."
            )
    _check_ranks(folder, settings, weights)
    _check_patterns(folder, settings, network)
    _check_parameters(folder, settings, network)
    # Checked in the format in which PEFT keeps them.
    wide = torch.promote_types(network.dtype, torch.float32)
    read = weights.each(device="cpu", dtype=wide)
    tensors = {renamed.get(name, name): tensor for name, tensor in read}
    known = {field.name for field in dataclasses.fields(LoraConfig)}
    left_out = {"auto_mapping", "init_lora_weights", "runtime_config"}
    fields = {n: v for n, v in settings.items() if n in known - left_out}
    unfit = f"The adapter {folder} does not fit this model"
    remedy = "give the adapter that was trained on it"
    with faults_of(f"{unfit}, or", remedy), peft_asking_quietly():
        config = LoraConfig(**fields)
        config.inference_mode = True
        adapted = PeftModel(network, config)
        result = set_peft_model_state_dict(adapted, tensors)
        adapted.eval()
        wanted = set(get_peft_model_state_dict(adapted, save_embedding_layers=False))
    surplus = result.unexpected_keys if changes_base else tensors.keys() - wanted
    odd = sorted(wanted - tensors.keys()) or sorted(surplus)
    if odd:
        raise UserError(f"{unfit} (its tensor {listed(odd)} is on one side only); {remedy}.")
    _check_effect(folder, adapted, list(tensors))
    return adapted


@contextmanager
def peft_asking_quietly() -> Iterator[None]:
    """Inside, PEFT does not warn of what no user can fix, such as attributes under old names."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PeftWarning)
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`")
        yield


def _renamed(network: Any, names: list[str], other_names: Mapping[str, str]) -> dict[str, str]:
    """The tensors that know their modules by other names -> their names in this network."""
    own = {name for name, _ in network.named_modules()}
    found = {}
    for name in names:
        (module,) = _modules([name]) or [""]
        if module not in own and module in other_names:
            found[name] = name.replace(module, other_names[module], 1)
    return found if len(found) == len(names) else {}


def _modules(names: list[str]) -> list[str]:
    """The modules of which some tensors of an adapter are."""
    parts = [name.removeprefix(PREFIX).partition(".lora_") for name in names]
    return sorted({module for module, mark, _ in parts if mark})


def _check_ranks(folder: Path, settings: Mapping[str, Any], weights: Weights) -> None:
    """UserError where no tensor has the ranks that the settings name; before any is made."""
    firsts = (".lora_A.weight", ".lora_embedding_A")
    ranks = {s[0] for n, s in weights.shape.items() if n.endswith(firsts) and s}
    pattern: dict[str, int] = settings.get("rank_pattern") or {}
    stacked = bool(settings.get("target_parameters"))
    named = [(f"rank_pattern {shortened(name)}", rank) for name, rank in pattern.items()]
    for name, rank in [*named, ("r", settings.get("r", 8))]:
        # Beside a pattern that names all modules, no tensor has the rank `r`.
        is_unused = name == "r" and bool(named) and rank <= MOST_UNUSED_RANK
        # The pairs of a layer's experts are one tensor, whose rank is a multiple.
        is_there = rank in ranks or stacked and any(found % rank == 0 for found in ranks)
        if not is_there and not is_unused:
            has = ", ".join(map(str, sorted(ranks))) or "none"
            raise UserError(
                f"{folder / CONFIG} sets {name}={rank}, but its tensors have the rank {has}; use "
                "the settings that belong to them."
            )


def _check_effect(folder: Path, adapted: PeftModel, names: list[str]) -> None:
    """UserError for a scale beyond all measure, and where no weight can change by it."""
    largest = 0.0
    for name, module in adapted.named_modules():
        if not isinstance(module, LoraLayer):
            continue
        layer: Any = module
        pairs = ((layer.lora_A, layer.lora_B), (layer.lora_embedding_A, layer.lora_embedding_B))
        for first, second in pairs:
            for key in first:
                scale = layer.scaling[key]
                if abs(scale) > MOST_SCALE:
                    raise UserError(
                        f"{folder / CONFIG} scales {shortened(name.removeprefix(PREFIX))} by "
                        f"{scale:g}, by r, lora_alpha and alpha_pattern; the most is "
                        f"{MOST_SCALE:g}."
                    )
                parts: list[Any] = [
                    getattr(part[key], "weight", part[key]) for part in (first, second)
                ]
                sizes = [float(part.detach().abs().max()) for part in parts]
                largest = max(largest, abs(scale) * math.prod(sizes) * layer.r[key])
    # Whole layers, biases and magnitudes change something beside the pairs.
    is_plain = all(LOW_RANK.search(name) for name in names)
    if is_plain and largest < LEAST_CHANGE:
        raise UserError(
            f"The adapter {folder} changes nothing (its lora_B is 0, or lora_alpha is too small to "
            "count); use one that was trained, or leave it out."
        )


def _check_patterns(folder: Path, settings: Mapping[str, Any], network: Any) -> None:
    """UserError for a regular expression that cannot be matched, or not in some seconds."""
    patterns: list[tuple[str, str]] = []
    for name in ("target_modules", "exclude_modules", "layers_pattern", "modules_to_save"):
        value = settings.get(name) or []
        values = [value] if isinstance(value, str) else value
        is_pattern = isinstance(value, str) or name in ("layers_pattern", "modules_to_save")
        patterns += [(name, part) for part in values if is_pattern]
    for name in ("rank_pattern", "alpha_pattern"):
        patterns += [(name, key) for key in settings.get(name) or {}]
    names = [name for name, _ in network.named_modules()]
    for field, pattern in patterns:
        outcome = ask("match", pattern=pattern, names=names)
        if "error" in outcome:
            raise UserError(
                f"{folder / CONFIG} has {field} {shortened(repr(pattern))}, which cannot be "
                f"matched with the names of modules ({outcome['error']}); list the names."
            )


def _check_parameters(folder: Path, settings: Mapping[str, Any], network: Any) -> None:
    """UserError for a parameter to adapt that the network does not have."""
    names = [f".{name}" for name, _ in network.named_parameters()]
    for target in settings.get("target_parameters") or []:
        if not any(name.endswith(f".{target}") for name in names):
            raise UserError(
                f"{folder / CONFIG} names {shortened(repr(target))} in target_parameters, which "
                "this model does not have; give the adapter that was trained on it."
            )


def _check_number(folder: Path, name: str, value: Any, *, whole: bool = False) -> None:
    is_number = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or not 0 < value <= MOST_ALPHA:
        kind = "whole number" if whole else "number"
        raise _wrong(folder, name, value, f"a {kind} above 0, at most {MOST_ALPHA:,}")


def _wrong(folder: Path, name: str, value: Any, meant: str) -> UserError:
    return UserError(f"{folder / CONFIG} sets {name}={shortened(repr(value))}; it must be {meant}.")
