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
from mosa.denoising.rows import BatchRow
from mosa.denoising.rules import Action
from mosa.denoising.schedule import blocks_of
from mosa.families import load_model
from mosa.families.attention import FULL, AttentionPattern

BLOCK, MASK = 4, 383
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


def test_the_blocks_of_a_row():
    """In blocks of three, from the row's first token; or behind a prompt of four, whose first token
    is by then the last of its block."""
    sequence, response = AttentionPattern(3), AttentionPattern(3, "response")
    assert sequence.shift(4) == 0 and response.shift(4) == 2 and response.shift(6) == 0
    spans = [(sequence.begin_of_block(p, 0), sequence.end_of_block(p, 0)) for p in range(4)]
    assert spans == [(0, 3), (0, 3), (0, 3), (3, 6)]
    spans = [(response.begin_of_block(p, 2), response.end_of_block(p, 2)) for p in range(5)]
    assert spans == [(0, 1), (1, 4), (1, 4), (1, 4), (4, 7)]
    assert sequence.shares_prompt and not response.shares_prompt and not FULL.shares_prompt


def test_the_mask_where_blocks_begin_at_the_response():
    """A prompt of three and of two, a response of two, in blocks of two."""
    real = torch.tensor([[True] * 5, [False] + [True] * 4])
    mask = AttentionPattern(2, "response").mask(real, 3)[:, 0].int()
    assert mask[0].tolist() == [[1, 0, 0, 0, 0], *[[1, 1, 1, 0, 0]] * 2, *[[1] * 5] * 2]
    assert mask[1, 1:].tolist() == [*[[0, 1, 1, 0, 0]] * 2, *[[0, 1, 1, 1, 1]] * 2]


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


@pytest.fixture(scope="module")
def from_response(model):
    """The same weights with blocks that begin at the response."""
    return new_other("qwen3", block_length=BLOCK, begins="response")


def test_blocks_by_hand(model, from_response):
    """Prompts of 6 and 4 tokens: the former leaves 2 response tokens to the first block of 4."""
    real = torch.tensor([[True] * 6, [False] * 2 + [True] * 4])
    canvas = Canvas.from_prompts(
        model, torch.ones(2, 6).long(), max_new_tokens=7, attention_mask=real
    )
    config = DecoderConfig(max_new_tokens=7, steps=7)
    found = blocks_of(canvas, config, model.attention)[:, 6:].tolist()
    assert found == [[0, 0, 1, 1, 1, 1, 2], [0, 0, 0, 0, 1, 1, 1]]
    assert blocks_of(canvas, config, from_response.attention)[:, 6:].tolist() == [found[1]] * 2
    assert not blocks_of(canvas, config, FULL).any()
    wider = DecoderConfig(max_new_tokens=7, steps=7, block_length=6)
    assert blocks_of(canvas, wider, model.attention)[:, 6:].tolist() == [
        [0, 0, 0, 0, 0, 0, 1],
        [0, 0, 1, 1, 1, 1, 1],
    ]


def filled_block_by_block(logits_of, prompt: Tensor, length: int, mask: int, begin: int):
    """One token a step, block after block from `begin` on, until no mask is left."""
    tokens = torch.cat([prompt, torch.full((length,), mask)])
    for first in range(begin, len(tokens), BLOCK):
        while (tokens[max(0, first) : first + BLOCK] == mask).any():
            masked = (tokens[: first + BLOCK] == mask).nonzero()[:, 0]
            masked = masked[masked >= max(0, first)]
            probabilities = logits_of(tokens)[masked].softmax(dim=-1)
            probabilities[:, mask] = 0
            confidence, best = probabilities.max(dim=-1)
            tokens[masked[confidence.argmax()]] = best[confidence.argmax()]
    return tokens[len(prompt) :].tolist()


def test_the_sampler_fills_the_sequences_blocks(model, oracle, rows):
    """Prompts of 5, 5, 8 and 11 tokens in one batch, each with its own border of blocks, and the
    last block whole although the response of 10 ends in it."""
    mask, (ids, real) = model.mask_token_id, padded(rows, "left")
    expected = [
        filled_block_by_block(oracle, row, -(-(len(row) + 10) // BLOCK) * BLOCK - len(row), mask, 0)
        for row in rows
    ]
    settings: dict[str, Any] = {"max_new_tokens": 10, "steps": 12}
    found = sample(model, ids, attention_mask=real, **settings)
    assert found.tokens.tolist() == [row[:10] for row in expected]
    # Below any confidence the threshold commits the best of a block alone, step by step.
    alone = sample(model, ids, attention_mask=real, **settings, threshold=1.1)
    assert alone.tokens.tolist() == found.tokens.tolist()
    # The controls: without the masks behind the response, and in other blocks, others come out.
    cut = [filled_block_by_block(oracle, row, 10, mask, 0) for row in rows]
    assert cut != found.tokens.tolist() and cut[0][:7] == expected[0][:7]
    five = new_other("qwen3", block_length=5)
    assert sample(five, ids, attention_mask=real, **settings).tokens.tolist() != cut


def test_the_sampler_fills_blocks_that_begin_at_the_response(from_response, rows):
    """Against the library's forward pass of each whole row by itself."""
    mask, (ids, real) = from_response.mask_token_id, padded(rows, "left")
    expected = []
    for row in rows:

        def logits_of(tokens):
            with torch.no_grad():
                return from_response.logits(tokens[None], response_start=len(tokens) - 10)[0]

        expected.append(filled_block_by_block(logits_of, row, 10, mask, len(row)))
    found = sample(from_response, ids, attention_mask=real, max_new_tokens=10, steps=12)
    assert found.tokens.tolist() == expected


def test_a_block_commits_as_many_as_a_whole_one_would(model):
    """A prompt of 10 leaves 2 tokens to the first of three blocks, each of two steps of 2; the last
    fills 2 behind the response too."""
    settings: dict[str, Any] = {"max_new_tokens": 8}
    result = sample(model, prompts_of(10), **settings, steps=4)
    steps = result.trace.commit_step[:, 10:]
    for columns, own in ((slice(0, 2), {0}), (slice(2, 6), {2, 3}), (slice(6, 8), {4, 5})):
        assert all(set(row) <= own for row in steps[:, columns].tolist())
    assert result.trace.row_forward_passes.tolist() == [5] * 3
    part = sample(model, prompts_of(10), **settings, steps=4, stop_after=3)
    assert torch.equal(part.tokens[:, :6], result.tokens[:, :6])
    assert (part.tokens[:, 6:] == model.mask_token_id).all()
    with refuses("steps", "2"):
        sample(model, prompts_of(10), **settings, steps=1)


def test_masks_of_a_prompt_are_filled_in_the_shared_block_alone(model, from_response):
    prompts = prompts_of(10)
    prompts[:, [3, 9]] = model.mask_token_id
    filled = sample(model, prompts, max_new_tokens=8, steps=8).canvas.tokens
    assert (filled == model.mask_token_id).nonzero().tolist() == [[0, 3], [1, 3], [2, 3]]
    filled = sample(from_response, prompts, max_new_tokens=8, steps=8).canvas.tokens
    assert (filled == model.mask_token_id)[:, :10].sum() == 6


def test_nothing_is_approximate(model):
    """Keys that stay right are kept, and a threshold is part of the published loop."""
    both = DecoderConfig(cache="dual", threshold=0.9)
    assert both.approximations(model.attention) == ()
    assert both.approximations(FULL) == ("threshold", "cache")
    assert DecoderConfig(factor=1.0).approximations(model.attention) == ("factor",)


@pytest.mark.parametrize("prompt_length", [8, 9, 10])
@pytest.mark.parametrize("block_length", [None, 4, 6, 2, 12])
@pytest.mark.parametrize("begins", ["sequence", "response"])
def test_kept_keys_are_those_of_whole_passes(
    model, from_response, monkeypatch, prompt_length, block_length, begins
):
    """Wherever the decoder's blocks begin among the network's."""
    chosen = model if begins == "sequence" else from_response
    settings = {"max_new_tokens": 12, "steps": 12, "block_length": block_length}
    kept = sample(chosen, prompts_of(prompt_length), **settings)
    monkeypatch.setattr(BatchRow, "num_settled", property(lambda row: 0, lambda row, value: None))
    whole = sample(chosen, prompts_of(prompt_length), **settings)
    assert torch.equal(kept.tokens, whole.tokens)
    torch.testing.assert_close(
        kept.trace.confidence, whole.trace.confidence, atol=1e-4, rtol=0, equal_nan=True
    )


def test_each_token_is_computed_for_its_block_and_once_after_it(model, monkeypatch):
    """A prompt of 8 and three blocks of 4, one token a step: the first pass has prompt and block,
    the first of each next block the block before it too, and no pass what is still to come."""
    counted = []
    whole = model.packed_hidden_states

    def counting(tokens, rotary, lengths, *, queries, visible, **settings):
        counted.append((sum(queries.counts), visible.counts[0]))
        return whole(tokens, rotary, lengths, queries=queries, visible=visible, **settings)

    monkeypatch.setattr(model, "packed_hidden_states", counting)
    sample(model, prompts_of(8)[:1], max_new_tokens=12, steps=12)
    assert counted == [
        *[(12, 12), *[(4, 12)] * 3],
        *[(8, 16), *[(4, 16)] * 3],
        *[(8, 20), *[(4, 20)] * 3],
    ]


def test_a_hook_may_change_what_was_read(model, from_response):
    """Keys of a block that a hook rewrites are made anew, as are those that see it."""

    def rewrite(row):
        if row.step == 6:
            row.tokens[(row.positions == 1) & row.is_free] = 7
            return Action(tokens=row.tokens)
        return None

    for chosen in (model, from_response):
        settings: dict[str, Any] = {"max_new_tokens": 12, "steps": 12}
        prompts = prompts_of(9)[:1]
        found = sample(chosen, prompts, **settings, hook=rewrite)
        plain = sample(chosen, prompts, **settings)
        tokens = torch.cat([prompts[0], found.tokens[0]])
        assert found.tokens[0, 1] == 7
        # What was written after it is what the network says to the canvas as it then was.
        steps = found.trace.commit_step[0]
        for column in (steps > 6).nonzero()[:, 0].tolist():
            before = torch.where(steps >= steps[column], chosen.mask_token_id, tokens)
            before[:9] = tokens[:9]
            more = -len(before) % BLOCK if chosen is model else 0
            before = torch.cat([before, torch.full((more,), chosen.mask_token_id)])
            with torch.no_grad():
                logits = chosen.logits(before[None], response_start=9)[0, column]
            logits[chosen.mask_token_id] = -torch.inf
            assert int(logits.argmax()) == tokens[column]
        assert found.tokens.tolist() != plain.tokens.tolist()


# ------------------------------------------------------------------------- all blocks in one pass


@pytest.mark.parametrize("begins", ["sequence", "response"])
@pytest.mark.parametrize("widths", [(9, 9, 6), (3, 8, 2)])
def test_blocks_in_one_pass_are_the_states_of_the_sampler(model, from_response, begins, widths):
    """Each block of a response of 10 as it opens: earlier blocks written, half of its own masked,
    all behind it masked. The oracle is one pass for each block of each row, by itself."""
    chosen = model if begins == "sequence" else from_response
    generator, width = torch.Generator().manual_seed(3), max(widths)
    written = torch.randint(0, 360, (3, width + 10), generator=generator)
    real = torch.arange(width + 10) >= width - torch.tensor(widths)[:, None]
    is_masked = torch.rand(3, width + 10, generator=generator) < 0.5
    is_masked[:, :width] = False
    masked = written.masked_fill(is_masked, chosen.mask_token_id)
    columns = torch.arange(width, width + 10)
    with torch.no_grad():
        found = chosen.logits(masked, real, columns, response_start=width, written=written)
    for row, num_prompt in enumerate(widths):
        more = -(num_prompt + 10) % BLOCK if begins == "sequence" else 0
        shift = chosen.attention.shift(num_prompt)
        own = written[row, real[row]], masked[row, real[row]]
        for position in range(10):
            place = num_prompt + position
            first = chosen.attention.begin_of_block(place, shift)
            end = chosen.attention.end_of_block(place, shift)
            state = torch.cat([own[0][:first], own[1][first:], torch.full((more,), MASK)])
            state[end:] = MASK
            with torch.no_grad():
                expected = chosen.logits(state[None], response_start=num_prompt)[0, place]
            torch.testing.assert_close(found[row, position], expected, atol=2e-4, rtol=1e-4)
