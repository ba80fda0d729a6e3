"""What the layers of a network consist of, read once, so that `packed.py` can walk over them.

The walk would leave out a part that is not known here, so a network that has one is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper
from torch import nn
from transformers import PreTrainedModel

from mosa.families.attention import AttentionPattern
from mosa.types import UserError

NETWORKS: dict[str, str | None] = {
    "Llama": None,
    "Qwen2": None,
    "Qwen3": None,
    "Qwen3Moe": "Qwen3MoeSparseMoeBlock",
    "Glm4Moe": "Glm4MoeMoE",
}
"""The networks of the transformers library that are known here, by what the names of their classes
begin with -> the class of their mixtures of experts."""


@dataclass(frozen=True)
class Layer:
    """One decoder layer: the library's module, and which of its parts not every network has."""

    module: Any
    has_head_norms: bool
    """Whether queries and keys go through norms, head by head, before they are turned."""
    is_mixture: bool
    """Whether its MLP is a mixture of experts, which is called as it is."""


@dataclass(frozen=True)
class Walk:
    """How to walk over a network: its modules in order, and which positions see which."""

    body: Any
    layers: tuple[Layer, ...]
    attention: AttentionPattern

    @classmethod
    def over(cls, network: PreTrainedModel, attention: AttentionPattern) -> Walk:
        """Reads a network, without its adapter's wrapping.

        Raises UserError, with the class and the module, for a part or a setting of its attention
        that is not known here. Read again where an adapter is put on or merged.
        """
        stem = type(network).__name__.removesuffix("ForCausalLM")
        if stem not in NETWORKS:
            raise UserError(
                f"The sampler does not know the network {type(network).__name__}; build the family "
                f"on one of {', '.join(NETWORKS)}, or add it to mosa/families/walk.py."
            )
        parts = _parts(stem)
        _check_parts(network, "", network, parts)
        body: Any = network.model
        if body.rotary_emb.rope_type != "default":
            setting = f"rope_type={body.rotary_emb.rope_type!r}"
            raise _unknown(network, "model.rotary_emb", body.rotary_emb, setting)
        layers = []
        for number, layer in enumerate(body.layers):
            _check_parts(network, f"model.layers.{number}", layer, parts)
            library_attention = _inner(layer.self_attn)
            window = vars(library_attention).get("sliding_window")
            if window is not None:
                path = f"model.layers.{number}.self_attn"
                raise _unknown(network, path, library_attention, f"sliding_window={window}")
            layers.append(
                Layer(
                    layer,
                    has_head_norms="q_norm" in dict(library_attention.named_children()),
                    is_mixture=type(_inner(layer.mlp)).__name__ == NETWORKS[stem],
                )
            )
        return cls(body, tuple(layers), attention)


def _parts(stem: str) -> dict[str, dict[str, tuple[str, ...]]]:
    """What a known network is made of: class -> its parts, each with the classes it may have.

    What other classes (linear maps, norms, mixtures of experts) are made of needs no check: they
    are called, or computed from all that they hold.
    """
    mixture = NETWORKS[stem]
    norm, linear = (f"{stem}RMSNorm",), ("Linear",)
    projections = dict.fromkeys(("q_proj", "k_proj", "v_proj", "o_proj"), linear)
    attentions = (f"{stem}Attention", f"{stem}Float32RotaryAttention")
    return {
        f"{stem}ForCausalLM": {"model": (f"{stem}Model",), "lm_head": linear},
        f"{stem}Model": {
            "embed_tokens": ("Embedding",),
            "layers": ("ModuleList",),
            "norm": norm,
            "rotary_emb": (f"{stem}RotaryEmbedding", f"{stem}Float32RotaryEmbedding"),
        },
        f"{stem}DecoderLayer": {
            "input_layernorm": norm,
            "self_attn": attentions,
            "post_attention_layernorm": norm,
            "mlp": (f"{stem}MLP",) if mixture is None else (f"{stem}MLP", mixture),
        },
        **dict.fromkeys(attentions, {**projections, "q_norm": norm, "k_norm": norm}),
        f"{stem}MLP": {
            **dict.fromkeys(("gate_proj", "up_proj", "down_proj"), linear),
            "act_fn": ("SiLUActivation",),
        },
    }


def _inner(module: nn.Module) -> nn.Module:
    """The library's own module, inside an adapter's wrapper."""
    if isinstance(module, AuxiliaryTrainingWrapper):
        module = module.original_module
    return module.get_base_layer() if isinstance(module, BaseTunerLayer) else module


def _check_parts(
    network: nn.Module,
    path: str,
    module: nn.Module,
    parts: dict[str, dict[str, tuple[str, ...]]],
) -> None:
    """UserError for a part of the module, or a part of a part, that is not known."""
    module = _inner(module)
    allowed = parts.get(type(module).__name__)
    if allowed is None:
        return
    for name, _ in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
        raise _unknown(network, f"{path}.{name}".lstrip("."), module, f"the tensor {name}")
    for name, child in module.named_children():
        where = f"{path}.{name}".lstrip(".")
        if type(_inner(child)).__name__ not in allowed.get(name, ()):
            raise _unknown(network, where, _inner(child))
        _check_parts(network, where, child, parts)


def _unknown(network: nn.Module, path: str, module: nn.Module, setting: str = "") -> UserError:
    what = type(module).__name__ + (f" with {setting}" if setting else "")
    return UserError(
        f"{type(network).__name__} has {what} at {path}, which the sampler does not know and would "
        "leave out; build the network without it, or add it to mosa/families/walk.py and packed.py."
    )
