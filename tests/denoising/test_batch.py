"""Rows that join and leave a batch at any step: each becomes what it becomes alone."""

from __future__ import annotations

import pytest
import torch

from mosa.denoising import Canvas, DecoderConfig, Denoiser, evaluation_mode, sample
from mosa.types import UserError

GENERATOR = torch.Generator().manual_seed(8)
DECODERS = [
    DecoderConfig(max_new_tokens=8, steps=8),
    DecoderConfig(max_new_tokens=12, steps=5, block_length=4, temperature=0.7, seed=3),
    DecoderConfig(max_new_tokens=10, steps=4, remasking="entropy", schedule="timesteps"),
    DecoderConfig(max_new_tokens=9, threshold=0.02, block_length=3),
    DecoderConfig(max_new_tokens=7, steps=7, remasking="origin", temperature=1.0, top_p=0.9),
    DecoderConfig(max_new_tokens=8, steps=8, stop_when_finished=True, end_tokens="suppress"),
    DecoderConfig(max_new_tokens=6, steps=3, cfg_scale=1.5),
    DecoderConfig(max_new_tokens=12, factor=1.0, block_length=6, cache="dual", cache_refresh=2),
    DecoderConfig(max_new_tokens=8, steps=8, block_length=4, cache="prefix"),
]


def canvases(model) -> list[tuple[Canvas, DecoderConfig]]:
    """Two canvases of one and two rows for each decoder, all of different lengths."""
    made = []
    for number, config in enumerate(DECODERS * 2):
        rows, width = 1 + number % 2, 3 + number % 5
        ids = torch.randint(0, 250, (rows, width), generator=GENERATOR)
        made.append((Canvas.from_prompts(model, ids, max_new_tokens=config.max_new_tokens), config))
    return made


def remask(state):
    """Masks the first response token again after the third step."""
    if state.step != 2:
        return None
    state.tokens[:, state.response_start] = state.mask_token_id
    return state.tokens


@pytest.mark.parametrize("name", ["tiny_llada", "tiny_dream"])
@pytest.mark.parametrize("num_slots", [1, 3, 30])
def test_rows_of_all_decoders_in_one_batch_are_the_rows_alone(request, name, num_slots):
    """Tokens, steps, confidences and counts, whatever stands beside them and whenever they came."""
    model = request.getfixturevalue(name)
    jobs = canvases(model)
    hooks = [
        remask if config.cache == "none" and number % 4 == 0 else None
        for number, (_, config) in enumerate(jobs)
    ]
    denoiser = Denoiser(model, num_slots=max(2, num_slots) if any(hooks) else num_slots)
    fillings, full = [], []
    with evaluation_mode(model):
        for (canvas, config), hook in zip(jobs, hooks, strict=True):
            fillings.append(denoiser.add(canvas, config, hook=hook))
            full += denoiser.step()
        while denoiser.has_work:
            full += denoiser.step()
    assert {id(filling) for filling in full} == {id(filling) for filling in fillings}
    assert len(full) == len(fillings)
    for (canvas, config), hook, filling in zip(jobs, hooks, fillings, strict=True):
        alone = sample(model, canvas, config, hook=hook).trace
        mine = filling.trace()
        assert torch.equal(mine.tokens, alone.tokens)
        assert torch.equal(mine.commit_step, alone.commit_step)
        assert torch.equal(mine.row_forward_passes, alone.row_forward_passes)
        torch.testing.assert_close(
            mine.confidence, alone.confidence, atol=1e-5, rtol=1e-4, equal_nan=True
        )
        assert torch.equal(mine.replay(), mine.tokens)


def test_a_row_that_is_done_makes_room_at_once(tiny_llada, counted):
    """Two slots, rows of 2, 6, 4 and 4 steps: the third joins when the first is done."""
    ids = torch.randint(0, 250, (1, 5), generator=GENERATOR)
    denoiser = Denoiser(tiny_llada, num_slots=2)
    for steps in (2, 6, 4, 4):
        canvas = Canvas.from_prompts(tiny_llada, ids, max_new_tokens=steps)
        denoiser.add(canvas, DecoderConfig(max_new_tokens=steps, steps=steps))
    order = []
    with evaluation_mode(tiny_llada):
        while denoiser.has_work:
            order += [filling.tokens.shape[1] - 5 for filling in denoiser.step()]
    assert counted == [2] * 6 + [1] * 4
    assert order == [2, 4, 6, 4]


def test_positions_are_counted_as_they_are_filled(tiny_llada):
    canvas = Canvas.from_prompts(tiny_llada, torch.arange(6).view(2, 3), max_new_tokens=8)
    for config in (
        DecoderConfig(max_new_tokens=8, steps=4),
        DecoderConfig(max_new_tokens=8, threshold=0.9),
    ):
        denoiser = Denoiser(tiny_llada, num_slots=2)
        filling = denoiser.add(canvas, config)
        left = [filling.num_masked]
        with evaluation_mode(tiny_llada):
            while denoiser.has_work:
                denoiser.step()
                left.append(filling.num_masked)
        assert left[0] == 16 and left[-1] == 0
        assert left == sorted(left, reverse=True) and len(set(left)) > 3


@pytest.mark.parametrize("stop_after", [1, 4, 5, 8, 12, 99])
def test_blocks_behind_the_last_that_is_needed_stay_masked(tiny_llada, stop_after):
    """What is filled is what a whole run fills, at the same steps."""
    ids = torch.randint(0, 250, (2, 5), generator=GENERATOR)
    run = DecoderConfig(max_new_tokens=10, steps=10, block_length=4, temperature=0.5)
    whole = sample(tiny_llada, ids, run)
    part = sample(tiny_llada, ids, run, stop_after=stop_after)
    num_filled = min(-(-stop_after // 4) * 4, 10)
    assert torch.equal(part.tokens[:, :num_filled], whole.tokens[:, :num_filled])
    assert (part.tokens[:, num_filled:] == tiny_llada.mask_token_id).all()
    # 10 steps for three blocks go 4, 3 and 3, the last of which has two positions.
    assert part.num_forward_passes == {4: 4, 8: 7, 10: 9}[num_filled]
    assert torch.equal(part.trace.replay(), part.canvas.tokens)


def test_mistakes(tiny_llada):
    canvas = Canvas.from_prompts(tiny_llada, torch.arange(6).view(2, 3), max_new_tokens=4)
    with pytest.raises(UserError, match="at least one row"):
        Denoiser(tiny_llada, num_slots=0)
    denoiser = Denoiser(tiny_llada, num_slots=2)
    with pytest.raises(UserError, match="3 row_seeds were given for 2 rows"):
        denoiser.add(canvas, DecoderConfig(max_new_tokens=4, steps=4), seeds=[1, 2, 3])
    with pytest.raises(UserError, match="set cache to none"):
        cached = DecoderConfig(max_new_tokens=4, steps=4, cache="dual")
        denoiser.add(canvas, cached, hook=lambda state: None)
