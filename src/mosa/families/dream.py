"""Dream 7B (arXiv:2508.15487), Dream-Coder (arXiv:2509.01142), DiffuCoder (arXiv:2506.20639).

A Dream block is a Qwen2 block without the causal mask, and the tensors keep Qwen2's names. Dream
was trained from an autoregressive model and keeps its shift: position i is predicted by the
output at i - 1 (position 0 by its own).

How we differ from the released modeling_dream.py, and why:

1. The shift happens here, once; the released code leaves it to every caller.
2. In a row padded on the left, the first real token is read as without padding; the released
   sampler reads it from the padding.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import Qwen2Config, Qwen2Tokenizer

from mosa.families.base import Family, common_fields, head_counts, positive_int


def _network_config(config: Mapping[str, Any]) -> Qwen2Config:
    return Qwen2Config(
        **common_fields(config),
        **head_counts(config),
        intermediate_size=positive_int(config, "intermediate_size"),
    )


DREAM = Family(
    name="Dream",
    model_types=("Dream",),
    required_fields=("hidden_size", "intermediate_size", "num_attention_heads")
    + ("num_hidden_layers", "vocab_size", "mask_token_id", "eos_token_id"),
    default_fields={
        "num_key_value_heads": None,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": False,
        "initializer_range": 0.02,
    },
    only_values={
        # DreamReasoner shares the name and is another network (block-causal, logits in place).
        "architectures": (["DreamModel"],),
        "attention_dropout": (0.0,),
        "hidden_act": ("silu",),
        "rope_parameters": (None,),
        "rope_scaling": (None,),
        "use_mrope": (False,),
        "use_sliding_window": (False,),
    },
    network_config=_network_config,
    released_names={},
    turns=(
        "{% if messages[0]['role'] != 'system' %}"
        "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}"
        "{% endif %}"
        "{% for message in messages %}"
        "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
        "{% endfor %}"
    ),
    template_tokens=("<|im_start|>", "<|im_end|>"),
    generation_header="<|im_start|>assistant\n",
    end_tokens=("<|endoftext|>", "<|im_end|>"),
    logits_shifted=True,
    tokenizer_class=Qwen2Tokenizer,
)
