"""SDAR-30B-A3B (arXiv:2510.06303): SDAR with mixtures of experts.

A layer is a Qwen3-MoE layer whose experts the release holds apart. Attention is causal over blocks
of 4, which are counted from the first token of the prompt, and full inside a block.

Its config.json names neither the mask nor the length of a block: the tokenizer has the former, and
`block_size` may be added.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from transformers import Qwen3MoeConfig

from mosa.families import sdar
from mosa.families.base import (
    EXPERTS_APART,
    common_fields,
    expert_counts,
    flag,
    head_counts,
    positive_int,
)


def _network_config(config: Mapping[str, Any]) -> Qwen3MoeConfig:
    experts, chosen = expert_counts(config)
    counts = head_counts(config)
    counts["head_dim"] = positive_int(config, "head_dim")
    return Qwen3MoeConfig(
        **common_fields(config),
        **counts,
        moe_intermediate_size=positive_int(config, "moe_intermediate_size"),
        num_experts=experts,
        num_experts_per_tok=chosen,
        norm_topk_prob=flag(config, "norm_topk_prob"),
    )


SDAR_MOE = replace(
    sdar.SDAR,
    name="SDAR-MoE",
    model_types=("sdar_moe",),
    required_fields=("hidden_size", "moe_intermediate_size", "num_hidden_layers")
    + ("num_attention_heads", "num_key_value_heads", "head_dim", "num_experts")
    + ("num_experts_per_tok", "norm_topk_prob", "vocab_size", "eos_token_id"),
    default_fields={"architectures": ["SDARMoeForCausalLM"], **sdar.DEFAULTS},
    only_values={**sdar.ONLY, "decoder_sparse_step": (1,), "mlp_only_layers": ([], None)},
    network_config=_network_config,
    stacked=EXPERTS_APART,
)
