"""SDAR (arXiv:2510.06303), and what was trained from it: TraDo (arXiv:2509.06949), DiRL
(arXiv:2512.22234). The dense ones.

The network of Qwen3 (arXiv:2505.09388) under a block-causal mask, whose blocks are counted from the
first token of the prompt. Tensors carry Qwen3's names. The released code does not run as it is
shipped; this reads the weights without it.

How we differ from SDAR's `generate.py`, and why:

1. The mask token is never generated; theirs may draw it, which leaves a mask standing.
2. A block commits at most the masks that it has; theirs writes over the prompt or over committed
   tokens where a block has fewer masks than a step is to fill.
3. At temperature 0 the likeliest token is taken; theirs fails there.
4. `entropy_bound` adds up the entropies of whole distributions; theirs fails there, and would take
   those of one probability.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import Qwen2Tokenizer, Qwen3Config

from mosa.families.base import Family, blocks_of_sequence, common_fields, positive_int, wrong
from mosa.inputs import shortened
from mosa.types import UserError

DEFAULTS = {
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": False,
    "initializer_range": 0.02,
    "block_size": 4,
}
ONLY: dict[str, tuple[Any, ...]] = {
    "attention_bias": (False,),
    "attention_dropout": (0.0,),
    "hidden_act": ("silu",),
    "rope_parameters": (None,),
    "rope_scaling": (None,),
    "use_sliding_window": (False,),
}
"""Of all families whose network is one of Qwen3's."""


def _network_config(config: Mapping[str, Any]) -> Qwen3Config:
    kinds = set(config.get("layer_types") or ())
    if kinds - {"full_attention"}:
        raise UserError(
            f"config.json sets layer_types with {shortened(repr(sorted(kinds)))}; only layers of "
            "full_attention can be built."
        )
    heads = positive_int(config, "num_attention_heads")
    kv_heads = positive_int(config, "num_key_value_heads")
    if heads % kv_heads:
        raise UserError(
            f"config.json sets num_attention_heads={heads}, num_key_value_heads={kv_heads}; the "
            "second must divide the first."
        )
    head_dim = positive_int(config, "head_dim")
    if head_dim % 2:
        raise wrong(config, "head_dim", "even, as its halves are turned together")
    return Qwen3Config(
        **common_fields(config),
        hidden_size=positive_int(config, "hidden_size"),
        intermediate_size=positive_int(config, "intermediate_size"),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
    )


SDAR = Family(
    name="SDAR",
    model_types=("sdar",),
    required_fields=("hidden_size", "intermediate_size", "num_hidden_layers")
    + ("num_attention_heads", "num_key_value_heads", "vocab_size", "eos_token_id"),
    default_fields={"head_dim": 128, **DEFAULTS},
    only_values={"architectures": (["SDARForCausalLM"],), **ONLY},
    network_config=_network_config,
    released_names={},
    turns=(
        "{% for message in messages %}"
        "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
        "{% endfor %}"
    ),
    template_tokens=("<|im_start|>", "<|im_end|>"),
    generation_header="<|im_start|>assistant\n",
    end_tokens=("<|endoftext|>", "<|im_end|>"),
    mask_token="<|MASK|>",
    attention=blocks_of_sequence,
    tokenizer_class=Qwen2Tokenizer,
)
