"""Tokens at temperature 0 against the published loops (see oracle.py), batched and padded."""

from typing import Any

import pytest
import torch
from oracle import dream, llada

from mosa.denoising import sample


def logits_of(model):
    def run(tokens, real):
        with torch.no_grad():
            return model.logits(tokens[None], real[None])[0]

    return run


def padded_prompts(seed=0, lengths=(9, 4, 7)):
    """Random prompts, padded on the left to one width."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 250, (len(lengths), max(lengths)), generator=generator)
    real = torch.arange(max(lengths)) >= max(lengths) - torch.tensor(lengths)[:, None]
    return ids, real


@pytest.mark.parametrize("cfg_scale", [0.0, 1.5])
@pytest.mark.parametrize(
    ("length", "block_length", "steps"), [(12, 12, 12), (12, 4, 6), (12, 4, 9), (10, 10, 4)]
)
def test_low_confidence_is_lladas(tiny_llada, length, block_length, steps, cfg_scale):
    ids, real = padded_prompts()
    result = sample(
        tiny_llada,
        ids,
        attention_mask=real,
        max_new_tokens=length,
        block_length=block_length,
        steps=steps,
        cfg_scale=cfg_scale,
    )
    for row in range(len(ids)):
        expected = llada(
            logits_of(tiny_llada),
            ids[row],
            real[row],
            mask=tiny_llada.mask_token_id,
            length=length,
            block_length=block_length,
            steps=steps,
            cfg_scale=cfg_scale,
        )
        assert result.tokens[row].tolist() == expected[ids.shape[1] :].tolist()
    assert result.num_forward_passes == steps


def test_masks_in_the_prompt_are_filled_with_the_first_block(tiny_llada):
    ids, real = padded_prompts(1)
    ids[0, 3] = ids[0, 8] = ids[2, 4] = tiny_llada.mask_token_id
    settings: dict[str, Any] = {"block_length": 4, "steps": 4}
    result = sample(tiny_llada, ids, attention_mask=real, max_new_tokens=8, **settings)
    for row in range(len(ids)):
        expected = llada(
            logits_of(tiny_llada),
            ids[row],
            real[row],
            mask=tiny_llada.mask_token_id,
            length=8,
            **settings,
        )
        ours = result.canvas.tokens[row][-len(expected) :]
        assert ours[real[row].logical_not().sum() :].tolist() == (
            expected[real[row].logical_not().sum() :].tolist()
        )


def test_banning_the_end_token_is_lladas_logits_eos_inf(tiny_llada):
    ids, real = padded_prompts(2)
    free = sample(tiny_llada, ids, attention_mask=real, max_new_tokens=8, steps=8)
    banned = (int(free.tokens[0, 0]), int(free.tokens[0, 5]))
    result = sample(
        tiny_llada, ids, attention_mask=real, max_new_tokens=8, steps=8, banned_token_ids=banned
    )
    expected = llada(
        logits_of(tiny_llada),
        ids[0],
        real[0],
        mask=tiny_llada.mask_token_id,
        length=8,
        block_length=8,
        steps=8,
        banned=banned,
    )
    assert result.tokens[0].tolist() == expected[ids.shape[1] :].tolist()
    assert not torch.isin(result.tokens, torch.tensor(banned)).any()


@pytest.mark.parametrize("rule", ["maskgit_plus", "topk_margin", "entropy"])
@pytest.mark.parametrize(
    ("steps", "top_p", "top_k"), [(10, None, None), (4, 0.9, None), (5, None, 4), (13, 0.8, 6)]
)
def test_dreams_rules_and_schedule(tiny_dream, rule, steps, top_p, top_k):
    ids, real = padded_prompts(3)
    result = sample(
        tiny_dream,
        ids,
        attention_mask=real,
        max_new_tokens=10,
        steps=steps,
        remasking=rule,
        schedule="timesteps",
        top_p=top_p,
        top_k=top_k,
    )
    for row in range(len(ids)):
        expected = dream(
            logits_of(tiny_dream),
            ids[row],
            real[row],
            mask=tiny_dream.mask_token_id,
            length=10,
            steps=steps,
            rule=rule,
            top_p=top_p,
            top_k=top_k,
        )
        assert result.tokens[row].tolist() == expected[ids.shape[1] :].tolist()
