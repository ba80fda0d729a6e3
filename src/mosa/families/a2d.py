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
from dataclasses import replace
from typing import Any

from mosa.families import sdar
from mosa.families.attention import FULL, AttentionPattern
from mosa.families.base import block_size


def _attention(config: Mapping[str, Any]) -> AttentionPattern:
    if config["block_size"] is None:
        return FULL
    return AttentionPattern(block_size(config), "response")


A2D = replace(
    sdar.SDAR,
    name="A2D",
    model_types=("a2d-qwen3",),
    default_fields={**sdar.SDAR.default_fields, "block_size": None},
    only_values={"architectures": (["A2DQwen3LMHeadModel"],), **sdar.ONLY},
    generation_header="<|im_start|>assistant\n<think>\n\n</think>\n\n",
    template_settings={"enable_thinking": False},
    mask_token="<|mask|>",
    fields_by_name={"bd3lm": {"block_size": 32}},
    attention=_attention,
)
