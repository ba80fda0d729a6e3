"""The published loop of each family as its authors run it: what `mosa bench sampler` compares with.

    full attention   LLaDA's `generate` (arXiv:2502.09992): all rows; in every step the network
                     answers for the whole canvas
    LLaDA2           its `generate` (arXiv:2512.15745): one row after the other; in every step the
                     network answers for all up to the open block
    SDAR             its `block_diffusion_generate` (arXiv:2510.06303): one row after the other;
                     the network answers for the open block, beside the keys and values of those
                     before it, which one more call for each block keeps
    A2D's bd3lm      the same with all rows together. Theirs (repository ZHZisZZ/dllm) reads the
                     whole prefix again before each block, copies what is kept in every step, and
                     rounds how many masks a step fills
    DiffusionGemma   `generate` of the transformers library itself: all rows together

The other loops are those of `denoising.reference` and `denoising.other_references`. The network is
called directly: the logits stay in the number format of the weights. The draws are the loops' own,
so that above temperature 0 only
the time compares.

# B rows, L canvas length (prompt + response), R response, K tokens of a block, n some tokens
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache
from transformers.models.diffusion_gemma.generation_diffusion_gemma import EntropyBoundSamplerConfig

from mosa.denoising import Canvas
from mosa.denoising.config import DecoderConfig
from mosa.denoising.other_references import LogitsOfRow, fill_network_blocks
from mosa.denoising.reference import fill_block_by_block
from mosa.families import DiffusionLM
from mosa.families.llada2 import LLADA2
from mosa.types import UserError


@dataclass(frozen=True)
class Filled:
    """The canvas that a contestant has filled."""

    tokens: Int[Tensor, "B R"]
    num_forward_passes: int
    num_row_passes: int
    """Passes times the rows that took part in each."""


def published_loop(model: DiffusionLM, canvas: Canvas, decoder: DecoderConfig) -> Filled:
    """What the published loop of the model's family makes of the canvas."""
    generator = torch.Generator(canvas.tokens.device).manual_seed(decoder.seed)
    if model.is_noise:
        return _canvases_of_noise(model, canvas, decoder)
    if model.attention.is_full:
        return _whole_canvas(model, canvas, decoder, generator)
    if decoder.block_length != model.attention.block_length:
        raise UserError(
            f"the published loop fills the network's own blocks; set --block_length to "
            f"{model.attention.block_length}, not {decoder.block_length}"
        )
    if not model.attention.shares_prompt:
        return _blocks_of_all_rows(model, canvas, decoder, generator)
    return _row_by_row(model, canvas, decoder, generator)


def _whole_canvas(
    model: DiffusionLM, canvas: Canvas, decoder: DecoderConfig, generator: torch.Generator
) -> Filled:
    is_padded = not bool(canvas.attention_mask.all())
    tokens_BL = fill_block_by_block(
        lambda tokens, real: (
            model.network(
                input_ids=tokens, attention_mask=real if is_padded else None, use_cache=False
            ).logits
        ),
        canvas.tokens,
        canvas.attention_mask,
        mask_token_id=canvas.mask_token_id,
        response_start=canvas.response_start,
        block_length=decoder.block_length or decoder.max_new_tokens,
        steps=decoder.steps,
        temperature=decoder.temperature,
        generator=generator,
    )
    response_BR = tokens_BL[:, canvas.response_start :]
    return Filled(response_BR, decoder.steps, decoder.steps * len(tokens_BL))


def _canvases_of_noise(model: DiffusionLM, canvas: Canvas, decoder: DecoderConfig) -> Filled:
    """The library's own `generate`, which takes all rows at once and ends at no token here."""
    rule, length = decoder.renoise, model.attention.block_length
    assert rule is not None and length is not None, "a shape of noise has the rule"
    assert bool(canvas.attention_mask.all()), "the prompts of a shape have one length"
    network: Any = model.base_network
    num_canvases = -(-decoder.max_new_tokens // length)
    torch.manual_seed(decoder.seed)
    found = network.generate(
        canvas.tokens[:, : canvas.response_start],
        max_new_tokens=decoder.max_new_tokens,
        max_denoising_steps=decoder.steps // num_canvases,
        sampler_config=EntropyBoundSamplerConfig(rule.entropy_bound),
        t_max=rule.hottest,
        t_min=rule.coldest,
        stability_threshold=rule.stable_steps,
        confidence_threshold=rule.sure_below,
        eos_token_id=None,
        pad_token_id=None,
    )
    first = canvas.response_start
    passes_B = found.sequences[:, first:].shape[1] / found.tokens_per_forward
    response_BR = found.sequences[:, first : first + decoder.max_new_tokens]
    return Filled(response_BR, int(passes_B.max()), int(passes_B.sum()))


def _blocks_of_all_rows(
    model: DiffusionLM, canvas: Canvas, decoder: DecoderConfig, generator: torch.Generator
) -> Filled:
    assert bool(canvas.attention_mask.all()), "the prompts of a shape have one length"
    kept = KeptKeys(model)
    kept.keep(canvas.tokens[:, : canvas.response_start])
    blocks = canvas.response.split(decoder.block_length, dim=1)
    filled = []
    for block_BK in blocks:
        # Behind what is kept a block is a canvas of its own.
        filled.append(
            fill_block_by_block(
                lambda tokens, real: kept.logits_of(tokens),
                block_BK,
                torch.ones_like(block_BK, dtype=torch.bool),
                mask_token_id=canvas.mask_token_id,
                response_start=0,
                block_length=block_BK.shape[1],
                steps=decoder.steps // len(blocks),
                temperature=decoder.temperature,
                generator=generator,
            )
        )
        kept.keep(filled[-1])
    return Filled(torch.cat(filled, dim=1), kept.num_calls, kept.num_calls * len(canvas.tokens))


def _row_by_row(
    model: DiffusionLM, canvas: Canvas, decoder: DecoderConfig, generator: torch.Generator
) -> Filled:
    responses, num_calls = [], 0
    for tokens_L, real_L in zip(canvas.tokens, canvas.attention_mask, strict=True):
        prompt_1P = tokens_L[: canvas.response_start][real_L[: canvas.response_start]][None]
        asks = WholePrefix(model) if model.family is LLADA2 else OpenBlock(model)
        filled_1L = fill_blocks(asks, prompt_1P, decoder, model, generator)
        num_prompt = prompt_1P.shape[1]
        responses.append(filled_1L[:, num_prompt : num_prompt + decoder.max_new_tokens])
        num_calls += asks.num_calls
    return Filled(torch.cat(responses), num_calls, num_calls)


def fill_blocks(
    logits_of: LogitsOfRow,
    prompt: Int[Tensor, "1 P"],
    decoder: DecoderConfig,
    model: DiffusionLM,
    generator: torch.Generator,
) -> Int[Tensor, "1 L"]:
    """One row by `denoising.other_references`, to its last block, whatever it writes."""
    assert decoder.block_length is not None
    return fill_network_blocks(
        logits_of,
        prompt,
        mask_token_id=model.mask_token_id,
        max_new_tokens=decoder.max_new_tokens,
        block_length=decoder.block_length,
        steps_per_block=decoder.steps // -(-decoder.max_new_tokens // decoder.block_length),
        threshold=decoder.threshold,
        edit_threshold=decoder.edit_threshold,
        max_post_steps=decoder.max_post_steps,
        temperature=decoder.temperature,
        generator=generator,
    )


class WholePrefix:
    """The network on one row up to its open block, all of it in every call."""

    def __init__(self, model: DiffusionLM) -> None:
        self._model = model
        self._mask = torch.empty(1, 1, 0, 0, dtype=torch.bool)
        self.num_calls = 0

    def __call__(self, tokens: Int[Tensor, "1 n"]) -> Float[Tensor, "1 n V"]:
        self.num_calls += 1
        if self._mask.shape[-1] != tokens.shape[1]:  # once for each block, as theirs
            self._mask = self._model.attention.mask(torch.ones_like(tokens, dtype=torch.bool))
        return self._model.network(
            input_ids=tokens, attention_mask=self._mask, use_cache=False
        ).logits


class KeptKeys:
    """Keys and values of what is written, in the cache of the transformers library."""

    def __init__(self, model: DiffusionLM) -> None:
        self._model = model
        self._cache = DynamicCache()
        self.num_tokens = 0
        self.num_calls = 0

    def keep(self, tokens: Int[Tensor, "B n"]) -> None:
        """Keeps a prompt, or the block behind what is kept."""
        real_Bn = torch.ones_like(tokens, dtype=torch.bool)
        within = self._model.attention.mask(real_Bn, tokens.shape[1])
        self._call(tokens, within)
        self.num_tokens += tokens.shape[1]

    def logits_of(self, block: Int[Tensor, "B K"]) -> Float[Tensor, "B K V"]:
        """The logits of a block behind what is kept, which stays as it is."""
        real_BK = torch.ones_like(block, dtype=torch.bool)
        logits_BKV = self._call(block, real_BK[:, None, None].expand(-1, 1, block.shape[1], -1))
        self._cache.crop(-block.shape[1])
        return logits_BKV

    def _call(self, tokens: Int[Tensor, "B n"], within: Tensor) -> Tensor:
        self.num_calls += 1
        num_old, num_new = self.num_tokens, tokens.shape[1]
        position_1n = torch.arange(num_old, num_old + num_new, device=tokens.device)[None]
        seen = within.new_ones(len(tokens), 1, num_new, num_old)
        return self._model.network(
            input_ids=tokens,
            attention_mask=torch.cat([seen, within], dim=-1),
            position_ids=position_1n,
            past_key_values=self._cache,
            use_cache=True,
        ).logits


class OpenBlock(KeptKeys):
    """The network on the open block of one row; the blocks before it are kept when it opens."""

    def __call__(self, tokens: Int[Tensor, "1 n"]) -> Float[Tensor, "1 K V"]:
        assert self._model.attention.block_length is not None
        begin = tokens.shape[1] - self._model.attention.block_length
        if self.num_tokens < begin:
            self.keep(tokens[:, self.num_tokens : begin])
        return self.logits_of(tokens[:, begin:])
