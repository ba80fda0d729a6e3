"""Block-causal attention: in the library's forward pass, in packed rows and in the sampler.

The oracle is the library's own causal network under a mask written out entry by entry, so that a
mistake in how blocks are counted cannot hide in its own test.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from other_networks import OTHER, new_other, other_family
from refusals import refuses
from torch import Tensor
from transformers import Qwen3ForCausalLM

from mosa.denoising import Canvas, DecoderConfig, sample
from mosa.denoising.schedule import blocks_of
from mosa.families import load_model
from mosa.families.attention import FULL, AttentionPattern

BLOCK = 4
LENGTHS = (5, 5, 8, 11)
WIDTH = 11


@pytest.fixture(scope="module")
def model():
    return new_other("qwen3", block_length=BLOCK)


@pytest.fixture(scope="module")
def rows() -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randint(0, 360, (length,), generator=generator) for length in LENGTHS]


@pytest.fixture(scope="module")
def oracle(model):
    """Logits of one row by the library's causal network, whose mask is written out."""
    network = Qwen3ForCausalLM(type(model.network.config)(**model.network.config.to_dict()))
    network.config.is_causal = True
    network.load_state_dict(model.network.state_dict(), strict=True)
    network.eval()

    def logits(row: Tensor, block_length: int = BLOCK) -> Tensor:
        length = len(row)
        mask = torch.full((1, 1, length, length), torch.finfo(torch.float32).min)
        for query in range(length):
            end_of_block = (query // block_length + 1) * block_length
            for key in range(min(end_of_block, length)):
                mask[0, 0, query, key] = 0
        with torch.no_grad():
            return network(row[None], attention_mask=mask).logits[0]

    return logits


def padded(rows: list[Tensor], side: str) -> tuple[Tensor, Tensor]:
    """The rows as one grid, and which of its tokens are real."""
    ids = torch.full((len(rows), WIDTH), 380)
    real = torch.zeros(len(rows), WIDTH, dtype=torch.bool)
    for number, row in enumerate(rows):
        place = slice(WIDTH - len(row), WIDTH) if side == "left" else slice(0, len(row))
        ids[number, place], real[number, place] = row, True
    return ids, real


def packed_logits(model, rows: list[Tensor]) -> Tensor:
    tokens, lengths = torch.cat(rows), tuple(map(len, rows))
    places = torch.cat([torch.arange(length) for length in lengths])
    with torch.no_grad():
        return model.head(model.packed_hidden_states(tokens, model.rotary(places), lengths))


def test_the_mask_of_two_blocks_and_padding():
    """Three real tokens in blocks of two, one column of padding on the left."""
    mask = AttentionPattern(2).mask(torch.tensor([[False, True, True, True]]))
    assert mask[0, 0, 1:].int().tolist() == [[0, 1, 1, 0], [0, 1, 1, 0], [0, 1, 1, 1]]


def test_a_full_pattern_has_every_key_that_is_real():
    real = torch.tensor([[False, True, True], [True, True, True]])
    mask = FULL.mask(real)
    assert torch.equal(mask, real[:, None, None, :].expand(2, 1, 3, 3))


def test_what_a_change_reaches():
    """In blocks of three: all from the changed token's block on. In full attention everything."""
    changed = torch.tensor([0, 0, 0, 0, 1, 0, 0, 0], dtype=torch.bool)
    assert AttentionPattern(3).affected(changed).int().tolist() == [0, 0, 0, 1, 1, 1, 1, 1]
    assert FULL.affected(changed).all()
    assert not FULL.affected(torch.zeros_like(changed)).any()
    assert AttentionPattern(3).prefix_cache_is_exact and not FULL.prefix_cache_is_exact


def test_packed_and_library_logits_are_the_oracles(model, oracle, rows):
    expected = torch.cat([oracle(row) for row in rows])
    torch.testing.assert_close(packed_logits(model, rows), expected, atol=2e-4, rtol=1e-4)
    for side in ("left", "right"):
        ids, real = padded(rows, side)
        with torch.no_grad():
            ours = model.logits(ids, real)[real]
        torch.testing.assert_close(ours, expected, atol=2e-4, rtol=1e-4)
    # The controls: other blocks, or none, say something else.
    for block_length in (3, 5, WIDTH):
        other = torch.cat([oracle(row, block_length) for row in rows])
        assert (other - expected).abs().max() > 0.1


def test_rows_without_a_mask_are_whole(model, oracle, rows):
    with torch.no_grad():
        ours = model.logits(rows[3][None])[0]
    torch.testing.assert_close(ours, oracle(rows[3]), atol=2e-4, rtol=1e-4)


def test_a_later_block_is_invisible_and_an_earlier_one_is_not(model, rows):
    row = rows[3]
    changed = row.clone()
    changed[5] += 1
    before, after = packed_logits(model, [row]), packed_logits(model, [changed])
    torch.testing.assert_close(after[:4], before[:4], atol=1e-4, rtol=0)
    assert ((after[4:] - before[4:]).abs().amax(dim=1) > 1e-3).all()


def test_gradients_reach_what_is_visible_and_nothing_else(model, rows):
    embedding = model.network.get_input_embeddings()
    kept = []
    handle = embedding.register_forward_hook(
        lambda module, args, out: kept.append(out.detach().requires_grad_()) or kept[-1]
    )
    model.logits(rows[3][None], positions=torch.tensor([6])).logsumexp(-1).sum().backward()
    handle.remove()
    model.network.zero_grad()
    reach = kept[0].grad[0].abs().amax(dim=1) > 0
    assert reach.tolist() == [True] * 8 + [False] * 3


def test_every_implementation_of_attention_takes_the_mask_or_is_refused(
    model, oracle, rows, tmp_path
):
    model.save(tmp_path)
    ids, real = padded(rows, "left")
    with other_family():
        for name in ("sdpa", "eager"):
            loaded = load_model(tmp_path, attn_implementation=name, device="cpu")
            with torch.no_grad():
                ours = loaded.logits(ids, real)[real]
            expected = torch.cat([oracle(row) for row in rows])
            torch.testing.assert_close(ours, expected, atol=2e-4, rtol=1e-4)
        with refuses("flex_attention"):
            load_model(tmp_path, attn_implementation="flex_attention", device="cpu")


@pytest.mark.parametrize("attn_implementation", ["sdpa", "eager"])
def test_a_row_of_nothing_but_padding_is_finite(model, rows, tmp_path, attn_implementation):
    model.save(tmp_path)
    with other_family():
        loaded = load_model(tmp_path, attn_implementation=attn_implementation, device="cpu")
    ids, real = padded(rows, "left")
    real[1] = False
    with torch.no_grad():
        assert loaded.logits(ids, real).isfinite().all()


def test_a_shifted_family_reads_a_padded_first_token_as_alone(rows):
    """The first token of a row is read where it stands, also where padding is to its left."""
    shifted = dataclasses.replace(OTHER, logits_shifted=True)
    model = new_other("qwen3", block_length=BLOCK, family=shifted)
    ids, real = padded(rows, "left")
    with torch.no_grad():
        together = model.logits(ids, real)
        for number, row in enumerate(rows):
            alone = model.logits(row[None])[0]
            torch.testing.assert_close(together[number][real[number]], alone, atol=2e-4, rtol=1e-4)


# ------------------------------------------------------------------------------------ the sampler


def prompts_of(length: int) -> Tensor:
    return torch.randint(0, 360, (3, length), generator=torch.Generator().manual_seed(length))


@pytest.mark.parametrize("prompt_length", [8, 10])
def test_the_sampler_fills_with_the_oracles_logits(model, oracle, prompt_length):
    """One row at a time: in each step the masked position of the block that is surest of its token.
    The mask token is never generated."""
    prompts, mask = prompts_of(prompt_length), model.mask_token_id
    result = sample(model, prompts, max_new_tokens=8, steps=8, block_length=4)
    for row, prompt in enumerate(prompts):
        tokens = torch.cat([prompt, torch.full((8,), mask)])
        for step in range(8):
            end = prompt_length + 4 * (step // 4 + 1)
            masked = (tokens[:end] == mask).nonzero()[:, 0]
            probabilities = oracle(tokens)[masked].softmax(dim=-1)
            probabilities[:, mask] = 0
            confidence, best = probabilities.max(dim=-1)
            surest = confidence.argmax()
            tokens[masked[surest]] = best[surest]
        assert result.tokens[row].tolist() == tokens[prompt_length:].tolist()


@pytest.fixture(scope="module")
def from_sequence(model):
    """The same weights in a family whose decoder counts blocks from the sequence's first token."""
    return new_other("qwen3", block_length=BLOCK, decoding_begins="sequence")


def test_blocks_from_the_sequence_by_hand(model, from_sequence):
    """Prompts of 6 and 4 tokens: the former leaves 2 response tokens to the first block of 4."""
    real = torch.tensor([[True] * 6, [False] * 2 + [True] * 4])
    canvas = Canvas.from_prompts(
        model, torch.ones(2, 6).long(), max_new_tokens=7, attention_mask=real
    )
    config = DecoderConfig(max_new_tokens=7, steps=7, block_length=4)
    found = blocks_of(canvas, config, from_sequence.attention)[:, 6:].tolist()
    assert found == [[0, 0, 1, 1, 1, 1, 2], [0, 0, 0, 0, 1, 1, 1]]
    assert blocks_of(canvas, config, model.attention)[:, 6:].tolist() == [found[1]] * 2
    whole = DecoderConfig(max_new_tokens=7)
    assert not blocks_of(canvas, whole, from_sequence.attention).any()


def filled_by_the_sequences_blocks(oracle, prompt: Tensor, length: int, mask: int) -> list[int]:
    """One token a step, block after block of the whole sequence, until no mask is left."""
    tokens = torch.cat([prompt, torch.full((length,), mask)])
    for begin in range(0, len(tokens), BLOCK):
        while (tokens[begin : begin + BLOCK] == mask).any():
            masked = (tokens[: begin + BLOCK] == mask).nonzero()[:, 0]
            probabilities = oracle(tokens)[masked].softmax(dim=-1)
            probabilities[:, mask] = 0
            confidence, best = probabilities.max(dim=-1)
            tokens[masked[confidence.argmax()]] = best[confidence.argmax()]
    return tokens[len(prompt) :].tolist()


def test_the_sampler_fills_the_sequences_blocks(model, from_sequence, oracle, rows):
    """Prompts of 5, 5, 8 and 11 tokens in one batch, each with its own border of blocks. The
    control: blocks that begin at the response give other tokens."""
    mask, (ids, real) = model.mask_token_id, padded(rows, "left")
    expected = [filled_by_the_sequences_blocks(oracle, row, 10, mask) for row in rows]
    # Below any confidence the threshold commits the best of a block alone, step by step.
    settings: dict[str, Any] = {"max_new_tokens": 10, "block_length": BLOCK, "threshold": 1.1}
    found = sample(from_sequence, ids, attention_mask=real, **settings)
    assert found.tokens.tolist() == expected
    cached = sample(from_sequence, ids, attention_mask=real, **settings, cache="prefix")
    assert cached.tokens.tolist() == expected
    others = sample(model, ids, attention_mask=real, **settings).tokens.tolist()
    assert others[2] == expected[2]  # its prompt fills two whole blocks
    assert others != expected


def test_the_plan_covers_the_sequences_blocks(from_sequence):
    """A prompt of 10 leaves 2 tokens to the first of three blocks, which share 6 steps evenly."""
    settings: dict[str, Any] = {"max_new_tokens": 8, "block_length": BLOCK}
    result = sample(from_sequence, prompts_of(10), **settings, steps=6)
    steps = result.trace.commit_step[:, 10:]
    for columns, own in ((slice(0, 2), [0, 1]), (slice(2, 6), [2, 3]), (slice(6, 8), [4, 5])):
        assert all(set(row) == set(own) for row in steps[:, columns].tolist())
    part = sample(from_sequence, prompts_of(10), **settings, steps=6, stop_after=3)
    assert torch.equal(part.tokens[:, :6], result.tokens[:, :6])
    assert (part.tokens[:, 6:] == from_sequence.mask_token_id).all()
    with refuses("steps", "3"):
        sample(from_sequence, prompts_of(10), **settings, steps=2)


def test_which_cache_is_an_approximation(model):
    """Behind blocks nothing is seen, so a prefix cache is exact there, and a dual one is not."""
    prefix = DecoderConfig(cache="prefix", threshold=0.9)
    assert prefix.approximations(model.attention) == ("threshold",)
    assert prefix.approximations(FULL) == ("threshold", "cache")
    assert DecoderConfig(cache="dual").approximations(model.attention) == ("cache",)


@pytest.mark.parametrize("prompt_length", [8, 9, 10])
@pytest.mark.parametrize("block_length", [4, 6])
def test_a_prefix_cache_is_exact(model, prompt_length, block_length):
    """Wherever the decoder's blocks begin among the network's. The control: in full attention, with
    the same weights, it is not."""

    def with_and_without(model):
        settings = {"max_new_tokens": 12, "steps": 12, "block_length": block_length}
        prompts = prompts_of(prompt_length)
        return sample(model, prompts, **settings), sample(
            model, prompts, **settings, cache="prefix"
        )

    plain, cached = with_and_without(model)
    assert torch.equal(cached.tokens, plain.tokens)
    torch.testing.assert_close(
        cached.trace.confidence, plain.trace.confidence, atol=1e-4, rtol=0, equal_nan=True
    )
    plain, cached = with_and_without(new_other("qwen3"))
    assert (cached.trace.confidence - plain.trace.confidence).nan_to_num().abs().max() > 1e-2
