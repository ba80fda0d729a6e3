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

from transformers import Qwen2Tokenizer

from mosa.families.a2d import QWEN3_DEFAULTS, QWEN3_FIELDS, QWEN3_ONLY, qwen3_config
from mosa.families.base import Family, blocks_of_sequence

SDAR = Family(
    name="SDAR",
    model_types=("sdar",),
    required_fields=QWEN3_FIELDS,
    default_fields={**QWEN3_DEFAULTS, "block_size": 4},
    only_values={"architectures": (["SDARForCausalLM"],), **QWEN3_ONLY},
    network_config=qwen3_config,
    released_names={},
    chat_template=(
        "{% for message in messages %}"
        "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    template_tokens=("<|im_start|>", "<|im_end|>"),
    generation_header="<|im_start|>assistant\n",
    end_tokens=("<|endoftext|>", "<|im_end|>"),
    mask_token="<|MASK|>",
    attention=blocks_of_sequence,
    tokenizer_class=Qwen2Tokenizer,
)
