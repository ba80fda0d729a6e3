"""Rotary position embedding in float32, whatever the number format of the weights.

The transformers library rounds angles to the format of the weights and turns queries and keys in
it. The released code of some families (a setting `rope_full_precision`) keeps both in float32 and
rounds only what was turned. Under bfloat16 the difference is as large as the format's own error of
the attention scores; under float32 there is none.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaForCausalLM,
    LlamaRotaryEmbedding,
    apply_rotary_pos_emb,
    eager_attention_forward,
)


class LlamaFloat32RotaryEmbedding(LlamaRotaryEmbedding):
    """Cosines and sines in float32 or wider."""

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """The library's own, which takes from `x` only its format and device."""
        like = x.new_empty((), dtype=torch.promote_types(x.dtype, torch.float32))
        return super().forward(like, position_ids)


class LlamaFloat32RotaryAttention(LlamaAttention):
    """The library's attention, with queries and keys turned in the format of the angles."""

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """As the library's, but for the format of what is turned."""
        shape = hidden_states.shape[:-1]
        queries, keys, values = (
            projection(hidden_states).view(*shape, -1, self.head_dim).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        turned = apply_rotary_pos_emb(queries, keys, *position_embeddings)
        queries, keys = (heads.to(values.dtype) for heads in turned)
        if past_key_values is not None:
            keys, values = past_key_values.update(keys, values, self.layer_idx)
        implementation = self.config._attn_implementation
        assert implementation is not None, "chosen when the network is built"
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)
        mixed, weights = attend(
            self,
            queries,
            keys,
            values,
            attention_mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        return self.o_proj(mixed.reshape(*shape, -1).contiguous()), weights


def turn_in_float32(network: PreTrainedModel) -> None:
    """Makes a Llama network turn its queries and keys in float32.

    The modules keep their parts and change their class: built anew, they would draw their weights
    a second time.
    """
    assert isinstance(network, LlamaForCausalLM)
    network.model.rotary_emb.__class__ = LlamaFloat32RotaryEmbedding
    for layer in network.model.layers:
        attention: Any = layer.self_attn
        attention.__class__ = LlamaFloat32RotaryAttention
