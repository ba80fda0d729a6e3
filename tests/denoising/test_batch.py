"""Rows that join and leave a batch at any step: each becomes what it becomes alone."""

from __future__ import annotations

import pytest
import torch
from refusals import refuses

from mosa.denoising import (
    Action,
    Canvas,
    DecoderConfig,
    Denoiser,
    StepChanges,
    evaluation_mode,
    sample,
)

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


def remask(row):
    """Masks the first response token again after the third step."""
    if row.step != 2:
        return None
    row.tokens[row.positions == 0] = row.mask_token_id
    return Action(tokens=row.tokens)


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
    denoiser = Denoiser(model, num_slots)
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
        mine = filling.trace
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
            order += [filling.canvas.tokens.shape[1] - 5 for filling in denoiser.step()]
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
    with refuses("num_slots"):
        Denoiser(tiny_llada, num_slots=0)
    denoiser = Denoiser(tiny_llada, num_slots=2)
    with refuses("row_seeds", "3", "2"):
        denoiser.add(canvas, DecoderConfig(max_new_tokens=4, steps=4), seeds=[1, 2, 3])
    with refuses("cache"):
        cached = DecoderConfig(max_new_tokens=4, steps=4, cache="dual")
        denoiser.add(canvas, cached, hook=lambda state: None)


@pytest.mark.parametrize("name", ["tiny_llada", "tiny_dream"])
def test_a_removed_row_leaves_at_once_and_changes_nothing_beside_it(request, name):
    """One of every three canvases, waiting, just joined or half-way; the others are as alone."""
    model = request.getfixturevalue(name)
    jobs = canvases(model)
    denoiser = Denoiser(model, num_slots=8)

    def num_busy() -> int:
        return len(denoiser._packed.rows) + len(denoiser._waiting)

    fillings = [denoiser.add(canvas, config) for canvas, config in jobs]
    full, when = [], {1: 2, 5: 0, 8: 3, 11: 12, 17: 1}  # canvas: after which step
    with evaluation_mode(model):
        for step in range(1000):
            for number in [number for number, after in when.items() if after == step]:
                was_full, num_before = fillings[number].is_full, num_busy()
                denoiser.remove(fillings[number])
                assert num_busy() == num_before - fillings[number].num_rows_left
                assert fillings[number].is_full == was_full
                denoiser.remove(fillings[number])
            if not denoiser.has_work:
                break
            full += denoiser.step()
    removed = {id(fillings[number]) for number in when if not fillings[number].is_full}
    assert len(removed) >= 4
    assert {id(filling) for filling in full} == {id(filling) for filling in fillings} - removed
    for (canvas, config), filling in zip(jobs, fillings, strict=True):
        alone = sample(model, canvas, config).trace
        mine = filling.trace
        if id(filling) in removed:  # what was filled so far
            at = mine.commit_step >= 0
            assert torch.equal(mine.tokens[at], alone.tokens[at])
            assert torch.equal(mine.commit_step[at], alone.commit_step[at])
            assert torch.equal(mine.tokens[~at], canvas.tokens[~at])
        else:
            assert torch.equal(mine.tokens, alone.tokens)
            assert torch.equal(mine.commit_step, alone.commit_step)
            assert torch.equal(mine.row_forward_passes, alone.row_forward_passes)


def test_a_removed_row_makes_room_for_the_next_step(tiny_llada, counted):
    ids = torch.randint(0, 250, (1, 5), generator=GENERATOR)
    canvas = Canvas.from_prompts(tiny_llada, ids, max_new_tokens=4)
    denoiser = Denoiser(tiny_llada, num_slots=2)
    config = DecoderConfig(max_new_tokens=4, steps=4)
    first, *_ = [denoiser.add(canvas, config) for _ in range(3)]
    with evaluation_mode(tiny_llada):
        denoiser.step()
        denoiser.remove(first)
        assert (first.trace.tokens == tiny_llada.mask_token_id).sum() == 3
        while denoiser.has_work:
            denoiser.step()
    assert counted == [2, 2, 2, 2, 1]


def test_steps_are_reported_as_they_happen(tiny_llada):
    """Every report of a row, one after the other, replays its trace, edits of a hook included."""

    def start_over(row):
        if row.step != 2:
            return None
        row.tokens[row.positions >= 0] = row.mask_token_id
        return Action(tokens=row.tokens)

    for canvas, config in canvases(tiny_llada):
        hook = start_over if config.cache == "none" else None
        denoiser = Denoiser(tiny_llada, num_slots=4)
        heard: list[StepChanges] = []
        beside = denoiser.add(canvas, config)
        filling = denoiser.add(canvas, config, hook=hook, on_step=heard.append)
        with evaluation_mode(tiny_llada):
            while denoiser.has_work:
                num_heard = len(heard)
                denoiser.step()
                assert len({change.row for change in heard[num_heard:]}) == len(heard) - num_heard
        trace = filling.trace
        board = canvas.tokens.clone()
        confidence = torch.full(board.shape, torch.nan)
        for change in heard:
            columns = torch.tensor(change.positions) + canvas.response_start
            board[change.row, columns] = torch.tensor(change.tokens)
            confidence[change.row, columns] = torch.tensor(change.confidences)
            assert torch.equal(board[change.row], trace.replay(change.step)[change.row])
        assert torch.equal(board, trace.tokens)
        torch.testing.assert_close(confidence, trace.confidence, atol=0, rtol=0, equal_nan=True)
        assert hook is None or any(tiny_llada.mask_token_id in change.tokens for change in heard)
        assert heard and beside.is_full


def test_a_listener_may_remove_its_canvas(tiny_llada):
    canvas = Canvas.from_prompts(tiny_llada, torch.arange(6).view(2, 3), max_new_tokens=8)
    denoiser = Denoiser(tiny_llada, num_slots=3)
    config = DecoderConfig(max_new_tokens=8, steps=8)
    steps = []

    def listen(change):
        steps.append((change.row, change.step))
        if change.step == 2:
            denoiser.remove(filling)

    filling = denoiser.add(canvas, config, on_step=listen)
    with evaluation_mode(tiny_llada):
        while denoiser.has_work:
            assert denoiser.step() == []
    assert steps == [(row, step) for step in range(3) for row in range(2)]
    assert not filling.is_full and int((filling.trace.commit_step >= 0).sum()) == 6
