"""LLaDA-MoE (arXiv:2509.24389): LLaDA with mixtures of experts.

A LLaDA-MoE block is a Qwen3-MoE block without the causal mask, whose experts the release holds
apart. The `model_type` of the released config.json is LLaDA's, so `architectures` tells the two.

How we differ from the released modeling_lladamoe.py, and why:

1. Shared experts, biases of the router and clipped queries, which no release has, are an error.
2. `norm_topk_prob` and the router's score function, groups and scale are fields that the released
   code does not read, and they are not read here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import Qwen3MoeConfig

from mosa.families.base import (
    EXPERTS_APART,
    MOST,
    Family,
    common_fields,
    expert_counts,
    head_counts,
    positive_int,
    wrong,
)


def _network_config(config: Mapping[str, Any]) -> Qwen3MoeConfig:
    counts = head_counts(config)
    experts, chosen = expert_counts(config)
    dense = _dense_layers(config)
    expert_width = positive_int(config, "expert_intermediate_size")
    return Qwen3MoeConfig(
        **common_fields(config),
        **counts,
        intermediate_size=positive_int(config, "dense_intermediate_size")
        if dense
        else expert_width,
        moe_intermediate_size=expert_width,
        num_experts=experts,
        num_experts_per_tok=chosen,
        norm_topk_prob=False,
        mlp_only_layers=dense,
    )


def _dense_layers(config: Mapping[str, Any]) -> list[int]:
    """The layers without experts, by `moe_layer_freq`, which has 1 for a mixture and 0 for none."""
    marks = config["moe_layer_freq"]
    layers = positive_int(config, "num_hidden_layers", MOST["layers"])
    if not isinstance(marks, list) or len(marks) != layers or any(m not in (0, 1) for m in marks):
        meant = f"a list of num_hidden_layers={layers} numbers, 1 for a layer with experts, else 0"
        raise wrong(config, "moe_layer_freq", meant)
    return [layer for layer, mark in enumerate(marks) if mark == 0]


LLADA_MOE = Family(
    name="LLaDA-MoE",
    model_types=("llada", "lladamoe"),
    architecture="LLaDAMoEModelLM",
    required_fields=("hidden_size", "expert_intermediate_size", "num_hidden_layers")
    + ("num_attention_heads", "num_experts", "num_experts_per_tok", "moe_layer_freq")
    + ("rope_theta", "vocab_size"),
    default_fields={
        "architectures": ["LLaDAMoEModelLM"],
        "num_key_value_heads": None,
        "dense_intermediate_size": None,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "initializer_range": 0.02,
        "mask_token_id": 156895,
        "eos_token_id": 156892,
    },
    only_values={
        "attention_bias": (False,),
        "attention_dropout": (0.0,),
        "clip_qkv": (None,),
        "hidden_act": ("silu",),
        "moe_router_enable_expert_bias": (None, False),
        "partial_rotary_factor": (1,),
        "qk_layernorm": (True,),
        "rope_parameters": (None,),
        "rope_scaling": (None,),
        "shared_expert_intermediate_size": (None,),
    },
    network_config=_network_config,
    released_names={},
    stacked=EXPERTS_APART,
    turns=(
        "{% for message in messages %}"
        "{% set role = 'HUMAN' if message['role'] == 'user' else message['role'] | upper %}"
        "{{ '<role>' + role + '</role>' + message['content'] + '<|role_end|>' }}"
        "{% endfor %}"
    ),
    template_tokens=("<role>", "</role>", "<|role_end|>"),
    generation_header="<role>ASSISTANT</role>",
    end_tokens=("<|endoftext|>", "<|role_end|>"),
)
