"""DiffusionGemma (Google, 2026; Apache-2.0): canvases of uniform noise behind a causal encoder.

There is no mask. A response is a row of *canvases* of 256 tokens. All tokens before a canvas go
through the encoder once, which keeps their keys and values; the decoder sees them and its own
canvas, whose tokens are random at first, and says at each position what should be there. Encoder
and decoder are one set of layers, but for a scalar in each. What the decoder said in the step
before is shown to it again (self-conditioning), and its sampler accepts tokens as long as their
entropies bound what they share (arXiv:2505.24857). The network is the transformers library's own
class; noise.py calls it, and denoising/renoising.py denoises with it.

How we differ from the library's class, and why:

1. A position to be written has the id behind the vocabulary's last, which no tokenizer has. It is
   replaced by a random token before the network reads it.
2. Encoder and decoder share their modules, and not their weights alone, so that an adapter changes
   both alike and can be merged into the one set of weights that a release holds.
3. Images are not read. The vision tower is loaded and saved with the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import DiffusionGemmaConfig, GemmaTokenizer

from mosa.families.attention import AttentionPattern
from mosa.families.base import (
    MOST,
    Family,
    check_fields,
    expert_counts,
    flag,
    norm_epsilon,
    positive_int,
    positive_number,
    rope_theta,
)
from mosa.inputs import checked, refusing, shortened
from mosa.types import UserError

ONLY: Mapping[str, tuple[Any, ...]] = {
    "attention_bias": (False,),
    "attention_dropout": (0, 0.0),
    "hidden_activation": ("gelu_pytorch_tanh",),
    "use_bidirectional_attention": (None, "vision"),
}
"""Fields of `text_config` that would change the network in ways not built here."""
COUNTS = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
COUNTS += ("num_attention_heads", "num_key_value_heads", "head_dim", "sliding_window")
COUNTS += ("num_experts", "top_k_experts", "moe_intermediate_size")
"""Fields of `text_config` that count something, and without which the network cannot be built."""
ROPE_TYPES = ("default", "proportional")


def _network_config(config: Mapping[str, Any]) -> DiffusionGemmaConfig:
    text = checked(config["text_config"], dict[str, Any], "text_config of config.json")
    _check_text(text)
    if not flag(config, "tie_word_embeddings"):
        raise UserError(
            "config.json sets tie_word_embeddings=false, so that encoder and decoder would have "
            "layers of their own, which mosa does not build; use a checkpoint whose layers are "
            "tied, as all released ones are."
        )
    what = "config.json of this DiffusionGemma model cannot be read"
    faults = (AttributeError, KeyError, StrictDataclassError, TypeError, ValueError)
    with refusing(faults, what, "use the one that belongs to the weights."):
        return DiffusionGemmaConfig.from_dict(dict(config))


def _check_text(text: Mapping[str, Any]) -> None:
    """UserError for what `text_config` lacks, or sets so that it cannot be a network's."""
    check_fields("text_config in config.json of this DiffusionGemma model", text, COUNTS, ONLY)
    for name in COUNTS:
        positive_int(text, name, MOST["layers"] if name == "num_hidden_layers" else MOST["width"])
    expert_counts(text, "top_k_experts")
    norm_epsilon({"rms_norm_eps": 1e-6, **text})
    positive_number({"initializer_range": 0.02, **text}, "initializer_range", 1.0)
    kinds = checked(text.get("rope_parameters") or {}, dict[str, dict[str, Any]], "rope_parameters")
    for kind, settings in kinds.items():
        if settings.get("rope_type", "default") not in ROPE_TYPES:
            raise UserError(
                f"config.json sets rope_type={shortened(repr(settings['rope_type']))} for {kind}, "
                f"which mosa does not support; only {' or '.join(ROPE_TYPES)} can be loaded."
            )
        rope_theta({"rope_theta": 10_000.0, **settings})


def canvas_attention(config: Mapping[str, Any]) -> AttentionPattern:
    """Canvases, counted from the response's first token on."""
    return AttentionPattern(positive_int(config, "canvas_length"), begins="response")


DIFFUSION_GEMMA = Family(
    name="DiffusionGemma",
    model_types=("diffusion_gemma",),
    required_fields=("text_config", "vision_config"),
    default_fields={
        "architectures": ["DiffusionGemmaForBlockDiffusion"],
        "canvas_length": 256,
        "tie_word_embeddings": True,
        "eos_token_id": [1, 106, 50],
        "pad_token_id": 0,
    },
    only_values={},
    network_config=_network_config,
    released_names={},
    turns=(
        "{{ '<bos>' }}"
        "{% for message in messages %}"
        "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
        "{{ '<|turn>' + role + '\n' + message['content'] + '<turn|>\n' }}"
        "{% endfor %}"
    ),
    template_tokens=("<bos>", "<|turn>", "<turn|>"),
    generation_header="<|turn>model\n",
    end_tokens=("<eos>", "<turn|>"),
    attention=canvas_attention,
    tokenizer_class=GemmaTokenizer,
    is_noise=True,
    body="model.decoder",
    decoder="diffusion-gemma",
)
