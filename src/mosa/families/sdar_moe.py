"""SDAR-30B-A3B (arXiv:2510.06303): SDAR with mixtures of experts.

A layer is a Qwen3-MoE layer whose experts the release holds apart. Attention is causal over blocks
of 4, which are counted from the first token of the prompt, and full inside a block.

Its config.json names neither the mask nor the length of a block: the tokenizer has the former, and
`block_size` may be added.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import Qwen2Tokenizer, Qwen3MoeConfig

from mosa.families.a2d import QWEN3_ONLY
from mosa.families.base import (
    EXPERTS_APART,
    Family,
    blocks_of_sequence,
    common_fields,
    expert_counts,
    flag,
    head_counts,
    positive_int,
    rope_theta,
)
from mosa.families.sdar import SDAR_TEMPLATE


def _network_config(config: Mapping[str, Any]) -> Qwen3MoeConfig:
    width, heads, kv_heads = head_counts(
        config, "hidden_size", "num_attention_heads", "num_key_value_heads"
    )
    experts, chosen = expert_counts(config)
    undeclared: dict[str, Any] = {
        "head_dim": positive_int(config, "head_dim")
    }  # the network reads it
    return Qwen3MoeConfig(
        **common_fields(config),
        **undeclared,
        hidden_size=width,
        moe_intermediate_size=positive_int(config, "moe_intermediate_size"),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        num_experts=experts,
        num_experts_per_tok=chosen,
        norm_topk_prob=flag(config, "norm_topk_prob"),
        rope_parameters={"rope_type": "default", "rope_theta": rope_theta(config)},
    )


SDAR_MOE = Family(
    name="SDAR-MoE",
    model_types=("sdar_moe",),
    required_fields=("hidden_size", "moe_intermediate_size", "num_hidden_layers")
    + ("num_attention_heads", "num_key_value_heads", "head_dim", "num_experts")
    + ("num_experts_per_tok", "norm_topk_prob", "vocab_size", "eos_token_id"),
    default_fields={
        "architectures": ["SDARMoeForCausalLM"],
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": False,
        "initializer_range": 0.02,
        "block_size": 4,
    },
    only_values={**QWEN3_ONLY, "decoder_sparse_step": (1,), "mlp_only_layers": ([], None)},
    network_config=_network_config,
    released_names={},
    stacked=EXPERTS_APART,
    chat_template=SDAR_TEMPLATE,
    template_tokens=("<|im_start|>", "<|im_end|>"),
    generation_header="<|im_start|>assistant\n",
    end_tokens=("<|endoftext|>", "<|im_end|>"),
    mask_token="<|MASK|>",
    attention=blocks_of_sequence,
    tokenizer_class=Qwen2Tokenizer,
)
