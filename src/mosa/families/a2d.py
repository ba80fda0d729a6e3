"""Tiny-A2D: Qwen3-0.6B-diffusion-mdlm and -bd3lm (repository ZHZisZZ/dllm, Apache-2.0).

The network of Qwen3 (arXiv:2505.09388) under another mask. The `mdlm` checkpoint is a masked
diffusion model (arXiv:2406.07524) and sees all. The `bd3lm` one is a block diffusion model
(arXiv:2503.09573) with blocks of 32 that begin at the response. Their config.json files are equal:
`block_size` says which it is, and where it is missing the checkpoint's name does. Neither names the
mask, which their own loader adds to the tokenizer.

How we differ from dllm's samplers, and why:

1. A generated padding token is a token. Their BD3LM takes it for padding from the next block on.
2. With `stop_when_finished` a row ends by itself; their BD3LM goes on until every row of the batch
   has ended, and their MDLM never ends.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import Qwen2Tokenizer, Qwen3Config

from mosa.families.attention import FULL, AttentionPattern
from mosa.families.base import Family, block_size, common_fields, positive_int
from mosa.inputs import shortened
from mosa.types import UserError

QWEN3_FIELDS = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
QWEN3_FIELDS += ("num_key_value_heads", "vocab_size", "eos_token_id")
"""Fields without which the network of Qwen3 cannot be built."""
QWEN3_DEFAULTS = {
    "head_dim": 128,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": False,
    "initializer_range": 0.02,
}
QWEN3_ONLY: dict[str, tuple[Any, ...]] = {
    "attention_bias": (False,),
    "attention_dropout": (0.0,),
    "hidden_act": ("silu",),
    "rope_parameters": (None,),
    "rope_scaling": (None,),
    "use_sliding_window": (False,),
}


def qwen3_config(config: Mapping[str, Any]) -> Qwen3Config:
    """The network of Qwen3 that a config.json of its layout describes."""
    kinds = set(config.get("layer_types") or ())
    if kinds - {"full_attention"}:
        raise UserError(
            f"config.json sets layer_types with {shortened(repr(sorted(kinds)))}; only layers of "
            "full_attention can be built."
        )
    return Qwen3Config(
        **common_fields(config),
        hidden_size=positive_int(config, "hidden_size"),
        intermediate_size=positive_int(config, "intermediate_size"),
        num_attention_heads=positive_int(config, "num_attention_heads"),
        num_key_value_heads=qwen3_kv_heads(config),
        head_dim=positive_int(config, "head_dim"),
    )


def qwen3_kv_heads(config: Mapping[str, Any]) -> int:
    """Heads of keys and values; UserError where they do not divide those of queries, or a head is
    odd."""
    heads = positive_int(config, "num_attention_heads")
    kv_heads = positive_int(config, "num_key_value_heads")
    if heads % kv_heads:
        raise UserError(
            f"config.json sets num_attention_heads={heads}, num_key_value_heads={kv_heads}; the "
            "second must divide the first."
        )
    if positive_int(config, "head_dim") % 2:
        raise UserError(
            f"config.json sets head_dim={config['head_dim']}; it must be even, as its halves are "
            "turned together."
        )
    return kv_heads


def _attention(config: Mapping[str, Any]) -> AttentionPattern:
    if config["block_size"] is None:
        return FULL
    return AttentionPattern(block_size(config), "response")


A2D = Family(
    name="A2D",
    model_types=("a2d-qwen3",),
    required_fields=QWEN3_FIELDS,
    default_fields={**QWEN3_DEFAULTS, "block_size": None},
    only_values={"architectures": (["A2DQwen3LMHeadModel"],), **QWEN3_ONLY},
    network_config=qwen3_config,
    released_names={},
    chat_template=(
        "{% for message in messages %}"
        "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}"
        "{{ '<|im_start|>assistant\n<think>\n\n</think>\n\n' }}"
        "{% endif %}"
    ),
    template_tokens=("<|im_start|>", "<|im_end|>"),
    generation_header="<|im_start|>assistant\n<think>\n\n</think>\n\n",
    template_settings={"enable_thinking": False},
    end_tokens=("<|endoftext|>", "<|im_end|>"),
    mask_token="<|mask|>",
    fields_by_name={"bd3lm": {"block_size": 32}},
    attention=_attention,
    tokenizer_class=Qwen2Tokenizer,
)
