"""The passes of a network that denoises canvases of uniform noise: an encoder, then a decoder.

The encoder reads the tokens before a canvas, from left to right, and keeps their keys and values.
The decoder reads the canvas, all of whose positions see each other and what the encoder has kept.
In training both run in one call of the library's class, so that wrappers (DDP, the Trainer's) see
one forward pass; the sampler calls the encoder once for each canvas and the decoder at each step.

# B rows, L columns, P prompt columns, C columns of a canvas, N asked positions, D width
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel

from mosa.draws import NOISE_DRAW, counter_uniform

SHARED = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
SHARED += ("self_attn.q_norm", "self_attn.k_norm", "mlp", "router", "experts")
SHARED += ("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm")
SHARED += ("pre_feedforward_layernorm_2", "post_feedforward_layernorm")
SHARED += ("post_feedforward_layernorm_1", "post_feedforward_layernorm_2")
"""The parts of a layer that encoder and decoder have in common: all with weights."""
NO_CAP = 2.0**60
"""A bound of logits so wide that dividing by it, tanh and multiplying change no number: all are
exact for a power of two."""


def share_modules(network: PreTrainedModel) -> None:
    """Makes the modules of the decoder those of the encoder, whose weights are tied to them.

    An adapter then stands in one place and acts in both. To be called again whenever modules were
    replaced: PEFT finds a module under the first of its names, which is that in the decoder once
    the two are one (`_modules` lists the decoder first).
    """
    body: Any = network.model
    encoder, decoder = body.encoder.language_model, body.decoder
    if next(iter(body._modules)) != "decoder":
        body._modules = {"decoder": body._modules.pop("decoder"), **body._modules}
    encoder.embed_tokens, encoder.norm = decoder.embed_tokens, decoder.norm
    for of_encoder, of_decoder in zip(encoder.layers, decoder.layers, strict=True):
        for path in SHARED:
            parent, _, name = path.rpartition(".")
            whole = of_decoder.get_submodule(parent)
            if getattr(whole, name) is not None:  # some layers take their keys as values
                setattr(of_encoder.get_submodule(parent), name, getattr(whole, name))


def noise(
    seed: int | Int[Tensor, "*#N"],
    row_keys: Int[Tensor, "*#N"],
    positions: Int[Tensor, "*#N"],
    step: int | Int[Tensor, "*#N"],
    vocab_size: int,
) -> Int[Tensor, "*N"]:
    """A random token for each position, each as likely as any other, as `counter_uniform` draws."""
    draws = counter_uniform(seed, row_keys, positions, step, NOISE_DRAW)
    return (draws * vocab_size).long().clamp(max=vocab_size - 1)


def noised(
    tokens: Int[Tensor, "B L"],
    real: Bool[Tensor, "B L"],
    response_start: int,
    mask_token_id: int,
    seeds: Int[Tensor, " B"],
) -> Int[Tensor, "B L"]:
    """The tokens with noise in place of each that is to be written, and of padding.

    The noise follows from a row's seed and the position alone, so that prompts that are compared
    stand before the same canvas.
    """
    positions_L = torch.arange(tokens.shape[1], device=tokens.device) - response_start
    key_1 = torch.zeros_like(positions_L[:1])
    # The mask is the first id behind the vocabulary.
    noise_BL = noise(seeds[:, None], key_1, positions_L, 0, mask_token_id)
    return torch.where((tokens == mask_token_id) | ~real, noise_BL, tokens)


def hidden_states(
    network: nn.Module,
    canvas: Int[Tensor, "B L"],
    written: Int[Tensor, "B L"],
    real: Bool[Tensor, "B L"],
    positions: Int[Tensor, " N"],
    response_start: int,
    canvas_length: int,
    mask_token_id: int,
    seeds: Int[Tensor, " B"],
) -> Float[Tensor, "B N D"]:
    """What goes into the head at the columns `positions` of the response, with gradients.

    Each canvas stands behind what is `written` before it, and is filled up with noise to its whole
    length. One call of the network for each canvas that is asked for. The caller takes the head and
    its cap off (`NO_CAP`).
    """
    number_N = (positions - response_start) // canvas_length
    assert bool((number_N >= 0).all()), "the decoder reads the response alone"
    found = None
    for number in number_N.unique().tolist():
        begin = response_start + number * canvas_length
        before, is_before = written[:, :begin], real[:, :begin]
        rest = canvas_length - canvas[:, begin : begin + canvas_length].shape[1]
        more = (0, max(0, rest))
        whole = nn.functional.pad(canvas[:, : begin + canvas_length], more, value=-1)
        is_there = nn.functional.pad(real[:, : begin + canvas_length], more, value=False)
        noisy = noised(whole, is_there, response_start, mask_token_id, seeds)
        length_B1 = is_before.sum(dim=1, keepdim=True)
        output = network(
            input_ids=noised(before, is_before, response_start, mask_token_id, seeds),
            attention_mask=is_before,
            position_ids=(is_before.long().cumsum(dim=1) - 1).clamp(min=0),
            decoder_input_ids=noisy[:, begin:],
            decoder_attention_mask=nn.functional.pad(is_before, (0, canvas_length), value=True),
            decoder_position_ids=length_B1 + torch.arange(canvas_length, device=canvas.device),
        )
        states_BCD = output.logits
        if found is None:
            found = states_BCD.new_zeros(len(canvas), len(positions), states_BCD.shape[-1])
        is_here_N = number_N == number
        place_N = (positions - begin).clamp(0, canvas_length - 1)
        found = torch.where(is_here_N[:, None], states_BCD[:, place_N], found)
    assert found is not None, "some positions are asked for"
    return found


@contextmanager
def no_cap(network: Any) -> Iterator[None]:
    """Inside, the network's own forward pass bounds no logits."""
    before = network.final_logit_softcapping
    network.final_logit_softcapping = NO_CAP
    try:
        yield
    finally:
        network.final_logit_softcapping = before


# ------------------------------------------------------------------------------------- the sampler


@torch.no_grad()
def encode_context(network: Any, tokens: Int[Tensor, "B P"], context: Cache | None) -> Cache:
    """What the encoder keeps of the tokens, behind what it has kept of those before."""
    begin = 0 if context is None else context.get_seq_length()
    position_ids = torch.arange(begin, begin + tokens.shape[1], device=tokens.device)[None]
    output = network.model.encoder(
        input_ids=tokens, past_key_values=context, position_ids=position_ids
    )
    return output.past_key_values


@torch.no_grad()
def denoise(
    network: Any,
    canvas: Int[Tensor, "B C"],
    contexts: Sequence[Cache],
    conditioning: Float[Tensor, "B C D"] | None,
) -> Float[Tensor, "B C D"]:
    """What goes into the head at each position of some canvases whose contexts are equally long.

    `conditioning` holds the embeddings that were expected at the step before, zeros at a first one.
    """
    context = _together(contexts)
    begin = context.get_seq_length()
    position_ids = torch.arange(begin, begin + canvas.shape[1], device=canvas.device)[None]
    decoder = network.model.decoder
    conditioned = decoder.self_conditioning.forward

    def with_expected(embeddings: Tensor, nothing: Tensor) -> Tensor:
        expected = nothing if conditioning is None else conditioning.to(nothing.dtype)
        return conditioned(embeddings, expected)

    # The library's decoder takes the logits of the step before and makes embeddings of them, which
    # are thousands of times smaller to keep.
    decoder.self_conditioning.forward = with_expected
    try:
        output = decoder(
            decoder_input_ids=canvas, past_key_values=context, decoder_position_ids=position_ids
        )
    finally:
        del decoder.self_conditioning.forward
    return output.last_hidden_state


def expected_embedding(network: Any, logits: Float[Tensor, "n V"]) -> Float[Tensor, "n D"]:
    """The mean embedding under the tokens' probabilities, in the format of the weights."""
    embedding = network.model.decoder.embed_tokens
    weight_VD = embedding.weight
    probs_nV = logits.to(weight_VD.dtype).softmax(dim=-1, dtype=torch.float32)
    scale = embedding.embed_scale.to(weight_VD.dtype)
    return torch.matmul(probs_nV.to(weight_VD.dtype), weight_VD) * scale


def _together(contexts: Sequence[Cache]) -> Any:
    """Contexts of one length as one, row after row; the decoder does not write to it."""
    if len(contexts) == 1:
        return contexts[0]
    joined: Any = copy.copy(contexts[0])
    joined.layers = [copy.copy(layer) for layer in joined.layers]
    for number, layer in enumerate(joined.layers):
        alike: list[Any] = [context.layers[number] for context in contexts]
        layer.keys = torch.cat([one.keys for one in alike])
        layer.values = torch.cat([one.values for one in alike])
    return joined
