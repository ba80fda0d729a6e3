"""The sampler's tokens at temperature 0 are those of the published loops, batched and padded."""

from typing import Any

import pytest
import torch
from tiny_models import LLADA2_LAYOUT, SDAR_MOE_LAYOUT, randomised

from mosa.denoising import sample
from mosa.denoising.other_references import fill_by_timesteps, fill_network_blocks
from mosa.denoising.reference import fill_block_by_block
from mosa.families import new_model


def padded_canvas(model, length, seed=0, widths=(9, 4, 7)):
    """Random prompts, padded on the left to one width, and masks behind them: tokens, real."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 250, (len(widths), max(widths)), generator=generator)
    tokens = torch.nn.functional.pad(ids, (0, length), value=model.mask_token_id)
    real = torch.arange(tokens.shape[1]) >= max(widths) - torch.tensor(widths)[:, None]
    return tokens, real


def filled(model, tokens, real, *, length, **settings):
    """The canvas as the sampler fills it; padding as it was."""
    width = tokens.shape[1] - length
    result = sample(
        model, tokens[:, :width], attention_mask=real[:, :width], max_new_tokens=length, **settings
    )
    return result.canvas.tokens, result.num_forward_passes


def llada(model, tokens, real, *, length, **settings):
    return fill_block_by_block(
        model.logits,
        tokens,
        real,
        mask_token_id=model.mask_token_id,
        response_start=tokens.shape[1] - length,
        **settings,
    )


@pytest.mark.parametrize("cfg_scale", [0.0, 1.5])
@pytest.mark.parametrize(
    ("length", "block_length", "steps"), [(12, 12, 12), (12, 4, 6), (12, 4, 9), (10, 10, 4)]
)
def test_low_confidence_is_lladas(tiny_llada, length, block_length, steps, cfg_scale):
    tokens, real = padded_canvas(tiny_llada, length)
    settings = {"block_length": block_length, "steps": steps, "cfg_scale": cfg_scale}
    ours, num_passes = filled(tiny_llada, tokens, real, length=length, **settings)
    expected = llada(tiny_llada, tokens, real, length=length, **settings)
    assert torch.equal(ours[real], expected[real])
    assert (expected != tiny_llada.mask_token_id).all()
    assert num_passes == steps


def test_masks_in_the_prompt_are_filled_with_the_first_block(tiny_llada):
    tokens, real = padded_canvas(tiny_llada, 8, seed=1)
    tokens[0, 3] = tokens[0, 8] = tokens[2, 4] = tiny_llada.mask_token_id
    settings: dict[str, Any] = {"length": 8, "block_length": 4, "steps": 4}
    ours, _ = filled(tiny_llada, tokens, real, **settings)
    expected = llada(tiny_llada, tokens, real, **settings)
    assert torch.equal(ours[real], expected[real])
    assert (ours[real] != tiny_llada.mask_token_id).all()


def test_banning_the_end_token_is_lladas_logits_eos_inf(tiny_llada):
    tokens, real = padded_canvas(tiny_llada, 8, seed=2)
    settings: dict[str, Any] = {"length": 8, "steps": 8}
    free, _ = filled(tiny_llada, tokens, real, **settings)
    banned = (int(free[0, 9]), int(free[0, 14]))
    ours, _ = filled(tiny_llada, tokens, real, banned_token_ids=banned, **settings)
    expected = llada(tiny_llada, tokens, real, block_length=8, banned_token_ids=banned, **settings)
    assert torch.equal(ours[real], expected[real])
    assert not torch.isin(ours[:, 9:], torch.tensor(banned)).any()


@pytest.mark.parametrize("order", ["maskgit_plus", "topk_margin", "entropy"])
@pytest.mark.parametrize(
    ("steps", "top_p", "top_k"), [(10, None, None), (4, 0.9, None), (5, None, 4), (13, 0.8, 6)]
)
def test_dreams_orders_and_schedule(tiny_dream, order, steps, top_p, top_k):
    tokens, real = padded_canvas(tiny_dream, 10, seed=3)
    cuts = {"top_p": top_p, "top_k": top_k, "steps": steps}
    ours, _ = filled(
        tiny_dream, tokens, real, length=10, remasking=order, schedule="timesteps", **cuts
    )
    expected = fill_by_timesteps(
        tiny_dream.logits,
        tokens,
        real,
        mask_token_id=tiny_dream.mask_token_id,
        order=order,
        **cuts,
    )
    assert torch.equal(ours[real], expected[real])


def test_draws_of_the_reference_fit_the_distribution():
    """A network that knows nothing but 0.5, 0.25, 0.125, 0.125 (the mask), at temperature 1.

    Without the mask, which is never drawn, 4/7, 2/7 and 1/7; 13.8 is p=0.001 of chi-squared for 2
    degrees of freedom.
    """
    probs = torch.tensor([0.5, 0.25, 0.125, 0.125])
    rows = torch.full((3000, 2), 3)
    tokens = fill_block_by_block(
        lambda tokens, real: probs.log().repeat(*tokens.shape, 1),
        rows,
        torch.ones_like(rows).bool(),
        mask_token_id=3,
        response_start=0,
        block_length=2,
        steps=1,
        temperature=1.0,
        generator=torch.Generator().manual_seed(0),
    )
    counts = torch.bincount(tokens.flatten(), minlength=4)
    expected = 6000 * probs[:3] / probs[:3].sum()
    assert counts[3] == 0
    assert float(((counts[:3] - expected) ** 2 / expected).sum()) < 13.8


@pytest.mark.parametrize("layout", [SDAR_MOE_LAYOUT, LLADA2_LAYOUT], ids=["SDAR", "LLaDA2"])
@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"threshold": 0.05},
        {"threshold": 0.05, "edit_threshold": 0.02, "max_post_steps": 3},
    ],
    ids=["schedule", "threshold", "edits"],
)
def test_blocks_of_the_network_row_by_row(layout, settings, ends):
    """Rows in one batch become what the loop makes of each by itself, in blocks of 4.

    Their first block holds 1, 0, 3 and 3 tokens of the prompt. For `ends` every second id ends a
    response, and what is behind it is not compared.
    """
    model = randomised(new_model({**layout, "block_size": 4}, seed=3), 3)
    model.end_token_ids = tuple(range(0, 360, 2))
    tokens, real = padded_canvas(model, 10, seed=4, widths=(9, 4, 7, 3))
    ours, _ = filled(model, tokens, real, length=10, steps=9, stop_when_finished=ends, **settings)
    num_masks = 0
    for row, is_real in enumerate(real):
        expected = fill_network_blocks(
            model.logits,
            tokens[row, is_real][None, :-10],
            mask_token_id=model.mask_token_id,
            max_new_tokens=10,
            block_length=4,
            steps_per_block=3,
            end_token_ids=model.end_token_ids if ends else (),
            **settings,
        )[0, : is_real.sum()]
        is_written = expected != model.mask_token_id
        num_masks += int((~is_written).sum())
        if ends and "edit_threshold" not in settings:  # ours ends at the token, not at its block
            is_end = torch.isin(expected, torch.tensor(model.end_token_ids))
            is_end &= torch.arange(len(expected)) >= len(expected) - 10
            is_written &= is_end.cumsum(0) - is_end.long() == 0
        assert torch.equal(ours[row, is_real][is_written], expected[is_written])
    assert (num_masks > 0) == ends
