"""A window that is filled before all else: which token in which step, and with how many steps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from refusals import refuses

from mosa.denoising import Canvas, DecoderConfig, sample
from mosa.denoising.likelihood import guided_logits
from mosa.denoising.rules.anchor_first import AnchorFirst
from mosa.denoising.rules.remask_below import RemaskBelow

PROMPTS = torch.randint(0, 250, (3, 6), generator=torch.Generator().manual_seed(21))
RUN: dict[str, Any] = {"max_new_tokens": 12, "steps": 6, "block_length": 6}
WINDOW = AnchorFirst(start=5, end=8)


@torch.no_grad()
def staged_loop(model, prompt, stages: list[list[int]], counts: list[int], order: str):
    """One row over the library's forward pass: each stage (response positions from 0) is filled,
    so many in each of its steps, before the next begins. Tokens and commit steps."""
    mask, width = model.mask_token_id, len(prompt)
    tokens = torch.cat([prompt, torch.full((sum(map(len, stages)),), mask)])
    commit_step = torch.full_like(tokens, -1)
    left = list(counts)
    for stage in stages:
        while any(tokens[width + position] == mask for position in stage):
            is_open = [width + p for p in stage if tokens[width + p] == mask]
            logits = guided_logits(
                model,
                tokens[None],
                None,
                torch.arange(len(tokens)),
                response_start=width,
                given=torch.arange(len(tokens))[None] < width,
                cfg_scale=0.0,
            )[0]
            probs = logits.softmax(-1)
            logits[:, mask] = -torch.inf
            best = logits.argmax(-1)
            rating = {
                c: float(probs[c, best[c]]) if order == "low_confidence" else -c for c in is_open
            }
            is_open.sort(key=lambda c: -rating[c])
            for column in is_open[: left[0]]:
                tokens[column], commit_step[column] = best[column], len(counts) - len(left)
            left.pop(0)
    assert not left
    return tokens, commit_step


@pytest.mark.parametrize("name", ["tiny_llada", "tiny_dream"])
@pytest.mark.parametrize("order", ["low_confidence", "left_to_right"])
@pytest.mark.parametrize(
    ("block_length", "stages", "counts"),
    [
        # 4 and 8 masks in 6 steps: 2 and 4 steps, two tokens in each.
        (None, [[4, 5, 6, 7], [0, 1, 2, 3, 8, 9, 10, 11]], [2, 2, 2, 2, 2, 2]),
        # What is left of both blocks has 4 masks each: 2, 2 and 2 steps.
        (6, [[4, 5, 6, 7], [0, 1, 2, 3], [8, 9, 10, 11]], [2, 2, 2, 2, 2, 2]),
        # 4, 3, 1 and 4 masks: the two further steps go to the two of four.
        (3, [[4, 5, 6, 7], [0, 1, 2], [3], [8], [9, 10, 11]], [2, 2, 3, 1, 1, 3]),
    ],
)
def test_the_window_is_filled_first(request, name, order, block_length, stages, counts):
    model = request.getfixturevalue(name)
    settings = RUN | {"block_length": block_length, "remasking": order}
    result = sample(model, PROMPTS, **settings, rules=(WINDOW,))
    for row, prompt in enumerate(PROMPTS):
        tokens, commit_step = staged_loop(model, prompt, stages, counts, order)
        assert torch.equal(result.canvas.tokens[row], tokens)
        assert torch.equal(result.trace.commit_step[row], commit_step)
    assert result.num_forward_passes == 6
    plain = sample(model, PROMPTS, **settings)
    assert not torch.equal(plain.trace.commit_step, result.trace.commit_step)


@pytest.mark.parametrize("settings", [{}, {"threshold": 0.01}, {"temperature": 0.7}])
def test_a_window_that_is_the_first_block_changes_nothing(tiny_llada, settings):
    """Nor does one that is all of the response; with as many steps, or by confidence."""
    for window, block_length in (
        (AnchorFirst(start=1, end=6), 6),
        (AnchorFirst(start=1, end=12), None),
    ):
        run = RUN | {"block_length": block_length} | settings
        anchored, plain = (
            sample(tiny_llada, PROMPTS, **run, rules=(window,)),
            sample(tiny_llada, PROMPTS, **run),
        )
        assert torch.equal(anchored.tokens, plain.tokens)
        assert torch.equal(anchored.trace.commit_step, plain.trace.commit_step)
        assert torch.equal(
            anchored.trace.confidence.nan_to_num(-1), plain.trace.confidence.nan_to_num(-1)
        )


def test_a_window_by_confidence(tiny_llada):
    """With a threshold below every confidence each stage takes one step."""
    result = sample(tiny_llada, PROMPTS, max_new_tokens=12, threshold=1e-9, rules=(WINDOW,))
    steps = result.trace.commit_step[:, 6:]
    assert (steps[:, 4:8] == 0).all()
    assert (steps[:, :4] == 1).all() and (steps[:, 8:] == 1).all()
    assert result.num_forward_passes == 2


@pytest.mark.parametrize("cache", ["prefix", "dual"])
def test_a_window_beside_a_cache(tiny_llada, cache):
    """A cache that is renewed in every step changes nothing. One that is not computes everything in
    a stage's first step, and then the stage (dual), or it and what is masked (prefix)."""
    run = RUN | {"steps": 12, "rules": (WINDOW,)}
    exact = sample(tiny_llada, PROMPTS, **run)
    renewed = sample(tiny_llada, PROMPTS, **run, cache=cache, cache_refresh=1)
    assert torch.equal(renewed.tokens, exact.tokens)
    sizes: list[int] = []
    handle = tiny_llada.network.model.layers[0].mlp.up_proj.register_forward_pre_hook(
        lambda module, args: sizes.append(len(args[0]))
    )
    cached = sample(tiny_llada, PROMPTS[:1], **run, cache=cache)
    handle.remove()
    first, second, third = {"dual": (4, 4, 4), "prefix": (12, 8, 4)}[cache]
    assert sizes == [18, *[first] * 3, 18, *[second] * 3, 18, *[third] * 3]
    assert (cached.trace.commit_step[0, 10:14] < 4).all()


def test_pinned_tokens_need_no_steps(tiny_llada):
    """A pinned window is no stage; a response's end cuts it; stop_after fills what it needs."""
    canvas = Canvas.from_prompts(tiny_llada, PROMPTS, max_new_tokens=12).pin(4, [7, 8, 9, 10])
    result = sample(tiny_llada, canvas, steps=4, rules=(WINDOW,))
    plain = sample(tiny_llada, canvas, steps=4)
    assert torch.equal(result.trace.commit_step, plain.trace.commit_step)
    cut = sample(tiny_llada, PROMPTS, max_new_tokens=6, steps=6, rules=(WINDOW,))
    assert (cut.trace.commit_step[:, 10:] < 2).all()
    partly = sample(tiny_llada, PROMPTS, **RUN, stop_after=5, rules=(WINDOW,))
    is_left = partly.tokens == tiny_llada.mask_token_id
    assert is_left.tolist() == [[False] * 8 + [True] * 4] * 3


def test_masks_that_are_taken_back_open_at_once(tiny_llada):
    """A repair may mask the window again later; every mask is filled in the end."""
    repair = RemaskBelow(threshold=0.9, max_taken_back=5)
    result = sample(tiny_llada, PROMPTS, **RUN, rules=(WINDOW, repair))
    assert len(result.trace.remasks) > 0
    assert not (result.tokens == tiny_llada.mask_token_id).any()


def test_windows_that_cannot_be(tiny_llada):
    config = DecoderConfig(**RUN, rules=(WINDOW,))
    for settings, names in [
        ({"rules": (WINDOW, replace(WINDOW, end=9))}, ("anchor_first",)),
        (
            {"rules": ({"name": "anchor_first", "start": 0, "end": 3},)},
            ("anchor_first", "start", 0),
        ),
        ({"rules": ({"name": "anchor_first", "start": 4, "end": 3},)}, ("anchor_first", "end", 3)),
        ({"max_new_tokens": 4}, ("anchor_first", 5, 4, "max_new_tokens")),
    ]:
        with refuses(*names):
            replace(config, **settings)
    with refuses("steps", 2, "anchor_first"):  # three stages have masks
        sample(tiny_llada, PROMPTS, replace(config, steps=2))
