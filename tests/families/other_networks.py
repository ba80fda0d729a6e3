"""A family that is in no table: networks of the transformers library that no released family has.

They are what the next families are made of: norms on queries and keys, mixtures of experts, and
rotary embeddings of a part of each head, in full or block-causal attention.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
from tiny_models import randomised
from transformers import Glm4MoeConfig, PreTrainedConfig, Qwen3Config, Qwen3MoeConfig

from mosa.families import FAMILIES, DiffusionLM, Family, new_model
from mosa.families.attention import AttentionPattern

SIZES: dict[str, Any] = {
    "vocab_size": 384,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "initializer_range": 0.2,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}
EXPERTS: dict[str, Any] = {"num_experts_per_tok": 2, "moe_intermediate_size": 24}
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
NETWORKS: dict[str, PreTrainedConfig] = {
    "qwen3": Qwen3Config(**SIZES, rope_parameters=ROPE),
    "qwen3, biases": Qwen3Config(**SIZES, rope_parameters=ROPE, attention_bias=True),
    "qwen3_moe": Qwen3MoeConfig(
        **SIZES, **EXPERTS, num_experts=6, mlp_only_layers=[1], rope_parameters=ROPE
    ),
    "glm4_moe": Glm4MoeConfig(
        **SIZES,
        **EXPERTS,
        n_routed_experts=6,
        n_shared_experts=1,
        first_k_dense_replace=1,
        use_qk_norm=True,
        rope_parameters={**ROPE, "partial_rotary_factor": 0.5},
    ),
}


def _network_config(config: Mapping[str, Any]) -> PreTrainedConfig:
    known = NETWORKS[config["network"]]
    return type(known)(**{**known.to_dict(), **config["settings"]})


def _attention(config: Mapping[str, Any]) -> AttentionPattern:
    return AttentionPattern(config["block_length"], config["begins"])


OTHER = Family(
    name="Other",
    model_types=("other",),
    required_fields=("network", "mask_token_id", "eos_token_id"),
    default_fields={"block_length": None, "begins": "sequence", "settings": {}},
    only_values={},
    network_config=_network_config,
    released_names={},
    turns="",
    template_tokens=(),
    generation_header="",
    end_tokens=(),
    attention=_attention,
)


@contextmanager
def other_family(family: Family = OTHER) -> Iterator[None]:
    """Inside, the family is in the table."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(FAMILIES, "other", family)
        yield


def new_other(
    network: str,
    *,
    block_length: int | None = None,
    begins: str = "sequence",
    family: Family = OTHER,
    **settings: Any,
) -> DiffusionLM:
    """A tiny model of one of `NETWORKS`, with noise on every weight; `settings` change its config.

    The last ids of the vocabulary are the mask's and the end's.
    """
    config = {"model_type": "other", "network": network, "settings": settings}
    config |= {"block_length": block_length, "begins": begins}
    config |= {"mask_token_id": 383, "eos_token_id": 382}
    with other_family(family):
        return randomised(new_model(config, seed=0), 0)
