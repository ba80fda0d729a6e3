"""What approximate decoding changes, and what it leaves alone."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import pytest
import torch
from open_masks import open_masks
from refusals import refuses

from mosa.denoising import DecoderConfig, sample
from mosa.families.attention import FULL

PROMPTS = torch.randint(0, 250, (3, 6), generator=torch.Generator().manual_seed(6))
RUN: dict[str, Any] = {"max_new_tokens": 12, "steps": 12, "block_length": 4}


@pytest.mark.parametrize("name", ["tiny_llada", "tiny_dream"])
@pytest.mark.parametrize("cache", ["prefix", "dual"])
def test_a_cache_that_is_renewed_in_every_step_changes_nothing(request, name, cache):
    model = request.getfixturevalue(name)
    exact = sample(model, PROMPTS, **RUN, temperature=0.5)
    cached = sample(model, PROMPTS, **RUN, temperature=0.5, cache=cache, cache_refresh=1)
    assert torch.equal(cached.tokens, exact.tokens)
    assert torch.equal(cached.trace.commit_step, exact.trace.commit_step)


def with_frozen_keys(model, tokens, frozen, kept):
    """Hidden states of one row by the library's own forward, in which the keys and values at the
    `frozen` columns are those that `kept` holds; without frozen columns they are put there."""
    with ExitStack() as stack:
        for number, layer in enumerate(model.network.model.layers):
            for name in ("k_proj", "v_proj"):

                def replace(module, args, output, place=(number, name)):
                    if frozen is None:
                        kept[place] = output.clone()
                        return output
                    return torch.where(frozen[None, :, None], kept[place], output)

                handle = getattr(layer.self_attn, name).register_forward_hook(replace)
                stack.callback(handle.remove)
        return model.network.model(input_ids=tokens[None], use_cache=False).last_hidden_state[0]


@pytest.mark.parametrize("cache", ["prefix", "dual"])
@pytest.mark.parametrize("refresh", [None, 3])
@torch.no_grad()
def test_a_cached_row_is_decoded_with_the_keys_of_its_last_full_pass(tiny_llada, cache, refresh):
    """Against a loop of its own, one row at a time, over the library's forward."""
    model, mask = tiny_llada, tiny_llada.mask_token_id
    result = sample(model, PROMPTS, **RUN, cache=cache, cache_refresh=refresh)
    for row, prompt in enumerate(PROMPTS):
        tokens = torch.cat([prompt, torch.full((12,), mask)])
        columns, kept = torch.arange(18), {}
        for step in range(12):
            block, since = divmod(step, 4)
            begin, end = 6 + 4 * block, 10 + 4 * block
            is_active = (columns >= begin) & ((columns < end) | (cache == "prefix"))
            frozen = ~is_active if since % (refresh or 4) else None
            states = with_frozen_keys(model, tokens, frozen, kept)
            logits = model.head(states[begin:end])
            probs = logits.softmax(-1)
            logits[:, mask] = -torch.inf
            confidence, token = probs.gather(1, logits.argmax(-1)[:, None])[:, 0], logits.argmax(-1)
            confidence[tokens[begin:end] != mask] = -1
            best = int(confidence.argmax())
            tokens[begin + best] = token[best]
        assert torch.equal(result.tokens[row], tokens[6:])


def test_fewer_tokens_are_computed_with_a_cache(tiny_llada):
    sizes: dict[str, list[int]] = {}
    for cache in ("none", "prefix", "dual"):
        sizes[cache] = []
        handle = tiny_llada.network.model.layers[0].mlp.up_proj.register_forward_pre_hook(
            lambda module, args, cache=cache: sizes[cache].append(len(args[0]))
        )
        sample(tiny_llada, PROMPTS[:1], **RUN, cache=cache)
        handle.remove()
    assert sizes["none"] == [18] * 12
    assert sizes["prefix"] == [18, 12, 12, 12, 18, 8, 8, 8, 18, 4, 4, 4]
    assert sizes["dual"] == [18, 4, 4, 4] * 3


def test_a_factor_commits_the_best_together_while_they_are_sure_enough(tiny_llada):
    """The n-th best needs a confidence of 1 - factor / (n + 1); as the hook sees the steps."""
    factor = 2.9
    counts, num_steps = set(), [0] * len(PROMPTS)

    def look(row):
        num_steps[row.number] += 1
        is_open, confidence = open_masks(row, 6)
        ranked = confidence.sort(descending=True)
        n = 0
        while n < len(ranked.values) and ranked.values[n] >= 1 - factor / (n + 2):
            n += 1
        n = max(n, 1)
        expected = torch.zeros_like(ranked.indices, dtype=torch.bool)
        expected[ranked.indices[:n]] = True
        assert torch.equal((row.commit_step == row.step)[is_open], expected)
        counts.add(n)

    result = sample(
        tiny_llada, PROMPTS, max_new_tokens=12, block_length=6, factor=factor, hook=look
    )
    assert len(counts) > 1
    assert result.trace.row_forward_passes.tolist() == num_steps
    assert max(num_steps) < 12


def test_settings_that_do_not_go_together(tiny_llada):
    mistakes: list[tuple[dict[str, Any], tuple[object, ...]]] = [
        ({"threshold": 0.9, "factor": 1.0}, ("threshold", "factor")),
        ({"factor": 1.0, "alg_temp": 0.1}, ("factor", "alg_temp")),
        ({"factor": -1.0}, ("factor", -1.0)),
        ({"factor": 1.0, "remasking": "random"}, ("random", "factor")),
        ({"cache_refresh": 2}, ("cache_refresh", "cache")),
        ({"cache": "dual", "cache_refresh": 0}, ("cache_refresh", 0)),
        ({"cache": "dual", "cfg_scale": 1.0}, ("cfg_scale", "cache")),
    ]
    for settings, names in mistakes:
        with refuses(*names):
            sample(tiny_llada, PROMPTS, DecoderConfig(**settings))


def test_a_decoder_names_its_approximations():
    assert DecoderConfig().approximations(FULL) == ()
    assert DecoderConfig(threshold=0.9, cache="dual").approximations(FULL) == ("threshold", "cache")
    assert DecoderConfig(factor=1.0).approximations(FULL) == ("factor",)
