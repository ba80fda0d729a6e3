"""Decoders that edit: what the trace says of it, what stands where, and when a row ends."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import qwen3_layout, randomised

from mosa.denoising import Canvas, DecoderConfig, Denoiser, evaluation_mode, sample
from mosa.denoising.rules import Action
from mosa.families import DiffusionLM, new_model

LENGTH = 14
SETTINGS: dict[str, Any] = {"max_new_tokens": LENGTH, "steps": LENGTH, "threshold": 0.3}
EDITS: dict[str, Any] = {"edit_threshold": 0.0, "max_post_steps": 3}


@pytest.fixture(scope="module")
def model() -> DiffusionLM:
    """Blocks of 8; noise edits much."""
    return randomised(new_model(qwen3_layout(model_type="sdar", block_size=8), seed=3), 3)


@pytest.fixture(scope="module")
def prompts() -> torch.Tensor:
    return torch.randint(0, 300, (4, 11), generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module")
def edited(model, prompts):
    return sample(model, prompts, **SETTINGS, **EDITS)


def test_edits_are_in_the_trace_and_play_back(model, prompts, edited):
    """Step by step the replayed canvas is what listeners of the steps have heard."""
    plain = sample(model, prompts, **SETTINGS)
    assert not plain.trace.remasks and plain.replaced == [[]] * 4
    assert sum(map(len, edited.replaced)) > 8
    heard: list[Any] = []
    canvas = Canvas.from_prompts(model, prompts, max_new_tokens=LENGTH)
    denoiser = Denoiser(model, 4)
    config = DecoderConfig(**SETTINGS, **EDITS)
    filling = denoiser.add(canvas, config, on_step=heard.append)
    with evaluation_mode(model):
        while denoiser.has_work:
            denoiser.step()
    assert torch.equal(filling.trace.tokens, edited.canvas.tokens)
    start = filling.trace.response_start
    for row in range(4):
        state = [model.mask_token_id] * LENGTH
        for change in (c for c in heard if c.row == row):
            for position, token in zip(change.positions, change.tokens, strict=True):
                state[position] = token
            assert filling.trace.replay(change.step)[row, start:].tolist() == state
        assert state == edited.tokens[row].tolist()


def test_what_is_replaced_stood_from_its_step_to_the_edit(edited):
    for row, replaced in enumerate(edited.replaced):
        steps = edited.trace.commit_step[row, edited.trace.response_start :].tolist()
        for r in replaced:
            assert 0 <= r.written < r.until <= steps[r.position]
        for position in {r.position for r in replaced}:
            spans = sorted((r.written, r.until) for r in replaced if r.position == position)
            assert all(a[1] == b[0] for a, b in zip(spans, spans[1:], strict=False))
            assert spans[-1][1] == steps[position]


def test_pins_and_prompts_are_never_edited(model, prompts):
    canvas = Canvas.from_prompts(model, prompts, max_new_tokens=LENGTH)
    canvas = canvas.pin(2, [5, 6, 7])
    found = sample(model, canvas, **SETTINGS, edit_threshold=0.0, max_post_steps=4)
    assert found.tokens[:, 2:5].tolist() == [[5, 6, 7]] * 4
    assert torch.equal(found.canvas.tokens[:, :11], prompts)
    assert sum(map(len, found.replaced)) > 8


def test_a_block_is_looked_at_again_so_often_at_most(model, prompts):
    """Behind the passes that fill it, one where nothing changes or as many as are allowed."""
    passes = {
        most: sample(
            model, prompts[:1], **SETTINGS, edit_threshold=0.0, max_post_steps=most
        ).num_forward_passes
        for most in (1, 2, 30)
    }
    plain = sample(model, prompts[:1], **SETTINGS).num_forward_passes
    num_blocks = 3  # 11 and 14 tokens end in the fourth block of 8, the first is the prompt's
    assert plain <= passes[1] <= plain + num_blocks
    assert passes[1] <= passes[2] <= passes[30] <= plain + 30 * num_blocks


def test_a_row_ends_when_the_block_of_its_end_is_closed(model, prompts, edited):
    """An end token that is edited away ends nothing; one that stays does, with its block."""
    token = int(edited.tokens[0, 2])
    ends, model.end_token_ids = model.end_token_ids, (model.end_token_ids[0], token)
    try:
        found = sample(
            model,
            prompts[:1],
            **SETTINGS,
            **EDITS,
            stop_when_finished=True,
        )
    finally:
        model.end_token_ids = ends
    assert found.tokens[0, :5].tolist() == edited.tokens[0, :5].tolist()  # the first block
    assert (found.tokens[0, 5:] == model.eos_token_id).all()
    assert found.num_forward_passes < edited.num_forward_passes


def test_the_decoder_may_take_back_what_a_hook_wrote(model, prompts):
    """Written over the first step, not pinned: at threshold 0 another token stands there later."""

    def write(row):
        if row.step == 0:
            row.tokens[(row.positions >= 0) & (row.positions < 3)] = 9
            return Action(tokens=row.tokens)
        return None

    kept = sample(model, prompts, **SETTINGS, hook=write)
    assert (kept.tokens[:, :3] == 9).all()
    taken = sample(model, prompts, **SETTINGS, hook=write, edit_threshold=0.0)
    assert not (taken.tokens[:, :3] == 9).all()
    assert any(r.written == 0 and r.position < 3 for row in taken.replaced for r in row)


def test_where_blocks_begin(model, prompts, tiny_llada):
    """A prompt of 11 leaves 5 tokens to its block of 8; a full model has the decoder's blocks."""
    assert sample(model, prompts, **SETTINGS).block_starts == [[0, 5, 13]] * 4
    one = sample(tiny_llada, prompts[:1, :4], max_new_tokens=8, steps=8)
    four = sample(tiny_llada, prompts[:1, :4], max_new_tokens=8, steps=8, block_length=3)
    assert one.block_starts == [[0]] and four.block_starts == [[0, 3, 6]]
