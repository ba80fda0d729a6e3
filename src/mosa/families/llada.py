"""LLaDA (arXiv:2502.09992), LLaDA 1.5 (arXiv:2505.19223), iLLaDA, and MMaDA's text half.

A LLaDA block is a Llama block without the causal mask, under other names. MMaDA
(arXiv:2505.15809) is LLaDA with image codes appended to its vocabulary.

How we differ from the released modeling_llada.py, and why:

1. Only the released settings of its OLMo-style config exist (no ALiBi, no biases, no query/key
   norms, ...); any other value is an error, so nothing is computed that cannot be checked.
2. `attention_mask` hides padding. Copies of the released file before October 2025 ignored the mask
   or turned to causal attention when given one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import LlamaConfig

from mosa.families.base import (
    MOST,
    Family,
    flag,
    head_counts,
    norm_epsilon,
    positive_int,
    positive_number,
    rope_parameters,
)


def _network_config(config: Mapping[str, Any]) -> LlamaConfig:
    counts = head_counts(config, "d_model", "n_heads", "n_kv_heads")
    if config["mlp_hidden_size"] is None:
        hidden = positive_int(config, "mlp_ratio", 1000) * counts["hidden_size"]
    else:
        hidden = positive_int(config, "mlp_hidden_size")
    # Rows of the embedding: MMaDA names its enlarged vocabulary separately, LLaDA may pad its own.
    rows = next(
        (n for n in ("new_vocab_size", "embedding_size") if config.get(n) is not None),
        "vocab_size",
    )
    return LlamaConfig(
        **counts,
        vocab_size=positive_int(config, rows, MOST["vocabulary"]),
        intermediate_size=hidden,
        num_hidden_layers=positive_int(config, "n_layers", MOST["layers"]),
        max_position_embeddings=positive_int(config, "max_sequence_length", MOST["positions"]),
        initializer_range=positive_number(config, "init_std", 1.0),
        rms_norm_eps=norm_epsilon(config),
        rope_parameters=rope_parameters(config),
        tie_word_embeddings=flag(config, "weight_tying"),
    )


LLADA = Family(
    name="LLaDA",
    model_types=("llada", "mmada"),
    required_fields=("d_model", "n_heads", "n_layers", "vocab_size", "mask_token_id")
    + ("eos_token_id",),
    default_fields={
        "architectures": ["LLaDAModelLM"],
        "n_kv_heads": None,
        "mlp_hidden_size": None,
        "mlp_ratio": 4,
        "embedding_size": None,
        "max_sequence_length": 4096,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "weight_tying": False,
        "init_std": 0.02,
        "use_cache": False,
    },
    only_values={
        "activation_type": ("silu",),
        "alibi": (False,),
        "attention_dropout": (0.0,),
        "attention_layer_norm": (False,),
        "bias_for_layer_norm": (False, None),
        "block_group_size": (1,),
        "block_type": ("llama",),
        "clip_qkv": (None,),
        "embedding_dropout": (0.0,),
        "include_bias": (False,),
        "include_qkv_bias": (False, None),
        "input_emb_norm": (False,),
        "layer_norm_type": ("rms",),
        "layer_norm_with_affine": (True,),
        "multi_query_attention": (None, False),
        "residual_dropout": (0.0,),
        "rope": (True,),
        "rope_full_precision": (True,),
        "rope_scaling": (None,),
        "scale_logits": (False,),
    },
    network_config=_network_config,
    turns_in_float32=True,  # rope_full_precision
    # `ff_out` is both each block's down projection and the LM head.
    released_names={
        "model.embed_tokens.": "model.transformer.wte.",
        "model.layers.": "model.transformer.blocks.",
        ".input_layernorm.": ".attn_norm.",
        ".self_attn.q_proj.": ".q_proj.",
        ".self_attn.k_proj.": ".k_proj.",
        ".self_attn.v_proj.": ".v_proj.",
        ".self_attn.o_proj.": ".attn_out.",
        ".post_attention_layernorm.": ".ff_norm.",
        ".mlp.gate_proj.": ".ff_proj.",
        ".mlp.up_proj.": ".up_proj.",
        ".mlp.down_proj.": ".ff_out.",
        "model.norm.": "model.transformer.ln_f.",
        "lm_head.": "model.transformer.ff_out.",
    },
    turns=(
        "{% for message in messages %}"
        "{% if loop.first %}{{ bos_token or '' }}{% endif %}"
        "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
        " + message['content'] | trim + '<|eot_id|>' }}"
        "{% endfor %}"
    ),
    template_tokens=("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    generation_header="<|start_header_id|>assistant<|end_header_id|>\n\n",
    end_tokens=("<|endoftext|>", "<|eot_id|>"),
)
