"""LLaDA2.0 (arXiv:2512.15745) and LLaDA2.1 (arXiv:2602.08676): blocks and mixtures of experts.

A LLaDA2 layer is a GLM-4-MoE layer under other names, with queries, keys and values in one matrix
and the experts apart. Attention is causal over blocks of 32, which are counted from the first
token of the prompt, and full inside a block; the released sampler fills the same blocks.

How we differ from the released modeling_llada2_moe.py, and why:

1. The mask and end tokens and the length of a block, which the released config.json lacks, are
   fields of it here.
2. What the router adds to its scores keeps the format in which it is stored, whatever the weights
   are loaded in.
3. LLaDA2.2 is an error: it inserts and deletes tokens, or chooses experts by block.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import Glm4MoeConfig

from mosa.families.base import (
    EXPERTS_APART,
    MOST,
    Family,
    blocks_of_sequence,
    common_fields,
    expert_counts,
    head_counts,
    positive_int,
    positive_number,
)
from mosa.inputs import shortened
from mosa.types import UserError


def _network_config(config: Mapping[str, Any]) -> Glm4MoeConfig:
    if config.get("expert_capacity") is not None:
        raise UserError(
            f"config.json sets expert_capacity={shortened(repr(config['expert_capacity']))}, so "
            "this model chooses its experts for a block together, which mosa does not build; use a "
            "checkpoint that chooses them token by token, such as LLaDA2.0 or LLaDA2.1."
        )
    common, counts = common_fields(config), head_counts(config)
    if config["head_dim"] is not None:
        counts["head_dim"] = positive_int(config, "head_dim")
    common["rope_parameters"]["partial_rotary_factor"] = _turned_share(config, counts["head_dim"])
    experts, chosen = expert_counts(config)
    _check_groups(config, experts, chosen)
    expert_width = positive_int(config, "moe_intermediate_size")
    layers = positive_int(config, "num_hidden_layers", MOST["layers"])
    dense = config["first_k_dense_replace"]
    dense = positive_int(config, "first_k_dense_replace", layers) if dense != 0 else 0
    return Glm4MoeConfig(
        **common,
        **counts,
        intermediate_size=positive_int(config, "intermediate_size") if dense else expert_width,
        moe_intermediate_size=expert_width,
        first_k_dense_replace=dense,
        use_qk_norm=True,
        n_routed_experts=experts,
        n_shared_experts=positive_int(config, "num_shared_experts", MOST["experts"]),
        num_experts_per_tok=chosen,
        n_group=config["n_group"],
        topk_group=config["topk_group"],
        # The released code gives a single expert its own score.
        norm_topk_prob=chosen > 1,
        routed_scaling_factor=positive_number(config, "routed_scaling_factor", 1000.0),
    )


def _turned_share(config: Mapping[str, Any], head_dim: int) -> float:
    """The part of each head that is turned; UserError where that is no even count of numbers."""
    share = positive_number(config, "partial_rotary_factor", 1.0)
    turned = int(head_dim * share)
    if turned == 0 or turned % 2:
        raise UserError(
            f"config.json sets partial_rotary_factor={share:g} and head_dim={head_dim}; their "
            "product must be an even number above 0."
        )
    return share


def _check_groups(config: Mapping[str, Any], experts: int, chosen: int) -> None:
    """UserError unless the groups of experts are equal and hold as many as a token goes through."""
    groups = positive_int(config, "n_group", experts)
    kept = positive_int(config, "topk_group", groups)
    size = experts // groups
    # A group ranks by its two best experts.
    if experts % groups or size < 2 or chosen > kept * size:
        raise UserError(
            f"config.json sets num_experts={experts}, n_group={groups}, topk_group={kept} and "
            f"num_experts_per_tok={chosen}; groups must be equal, of at least two experts, and "
            "those that are kept must hold as many as a token goes through."
        )


LLADA2 = Family(
    name="LLaDA2",
    model_types=("llada2_moe",),
    required_fields=("hidden_size", "moe_intermediate_size", "num_hidden_layers")
    + ("num_attention_heads", "num_key_value_heads", "num_experts", "num_experts_per_tok")
    + ("n_group", "topk_group", "num_shared_experts", "rope_theta", "vocab_size"),
    default_fields={
        "architectures": ["LLaDA2MoeModelLM"],
        "intermediate_size": None,
        "head_dim": None,
        "first_k_dense_replace": 0,
        "routed_scaling_factor": 2.5,
        "partial_rotary_factor": 0.5,
        "max_position_embeddings": 16384,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "initializer_range": 0.02,
        "block_size": 32,
        "mask_token_id": 156895,
        "eos_token_id": 156892,
    },
    only_values={
        "attention_dropout": (0.0,),
        "delete_token_id": (None,),
        "embedding_dropout": (0.0,),
        "hidden_act": ("silu",),
        "moe_router_enable_expert_bias": (None, True),
        "norm_head": (False,),
        "norm_topk_prob": (None, True),
        "output_dropout": (0.0,),
        "rope_parameters": (None,),
        "rope_scaling": (None,),
        "score_function": (None, "sigmoid"),
        "split_token_id": (None,),
        "use_bias": (False,),
        "use_qk_norm": (True,),
        "use_qkv_bias": (False,),
        "use_sliding_window": (False,),
    },
    network_config=_network_config,
    released_names={
        "model.embed_tokens.": "model.word_embeddings.",
        ".self_attn.o_proj.": ".attention.dense.",
        ".self_attn.q_norm.": ".attention.query_layernorm.",
        ".self_attn.k_norm.": ".attention.key_layernorm.",
        ".mlp.gate.e_score_correction_bias": ".mlp.gate.expert_bias",
    },
    stacked=EXPERTS_APART,
    fused={
        ".attention.query_key_value.": (
            ".self_attn.q_proj.",
            ".self_attn.k_proj.",
            ".self_attn.v_proj.",
        ),
    },
    turns=(
        "{{ '<role>SYSTEM</role>' }}"
        "{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] + '\n' }}{% endif %}"
        "{{ 'detailed thinking off<|role_end|>' }}"
        "{% for message in messages %}"
        "{% if not (loop.first and message['role'] == 'system') %}"
        "{% set role = 'HUMAN' if message['role'] == 'user' else message['role'] | upper %}"
        "{{ '<role>' + role + '</role>' + message['content'] + '<|role_end|>' }}"
        "{% endif %}"
        "{% endfor %}"
    ),
    template_tokens=("<role>", "</role>", "<|role_end|>"),
    generation_header="<role>ASSISTANT</role>",
    end_tokens=("<|endoftext|>", "<|role_end|>"),
    attention=blocks_of_sequence,
)
