"""The sampler writes what the published decoders wrote, in at most as many calls.

The recordings are from the authors' code on tiny random networks (`recordings/README.md`).
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from recorded import MASK, Recording, fill, new_recorded, recordings
from torch import Tensor

from mosa.denoising import DecoderConfig, SampleResult, sample
from mosa.denoising.other_references import fill_network_blocks
from mosa.denoising.reference import fill_block_by_block
from mosa.families import DiffusionLM

CASES = [
    pytest.param(case, id=case.name)
    for case in recordings("llada", "mdlm", "bd3lm", "sdar", "llada2.0", "llada2.1")
]

BY_CONFIDENCE = [
    pytest.param(case, id=case.name)
    for case in recordings("sdar", "llada2.0", "llada2.1")
    if case.settings.get("remasking_strategy") not in ("sequential", "entropy_bounded")
]
"""What the plain loop over a network's blocks has orders for."""


def model_of(case: Recording, end_ids: list[int]) -> DiffusionLM:
    block_length = case.settings.get("block_length", case.settings.get("block_size"))
    is_block_causal = case.decoder not in ("llada", "mdlm")
    model = new_recorded(
        case.network,
        block_length=block_length if is_block_causal else None,
        begins="response" if case.decoder == "bd3lm" else "sequence",
    )
    model.end_token_ids = tuple(end_ids) or model.end_token_ids
    return fill(model, case.weight_seed, case.echo)


def decoder_of(case: Recording) -> DecoderConfig:
    given = case.settings
    settings: dict[str, Any] = {"stop_when_finished": bool(ends_of(case))}
    if case.decoder == "llada":
        length = given["gen_length"]
        settings |= {k: given[k] for k in ("steps", "block_length", "cfg_scale", "remasking")}
    elif case.decoder in ("mdlm", "bd3lm"):
        length, block = given["max_new_tokens"], given["block_size"]
        num_blocks = math.ceil(length / block)
        per_block = given.get("steps_per_block") or math.ceil(given["steps"] / num_blocks)
        settings |= {"schedule": "rounded", "steps": per_block * num_blocks, "block_length": block}
    else:
        length, block = given["gen_length"], given["block_length"]
        per_block = given.get("denoising_steps", block)
        if case.decoder == "llada2.0":
            per_block = min(given["steps"], length // given["minimal_topk"])
        if case.decoder == "llada2.1":
            settings["edit_threshold"] = given["editing_threshold"]
            settings["max_post_steps"] = given["max_post_steps"]
        settings["steps"] = min(per_block, block) * math.ceil(length / block)
        strategy = given.get("remasking_strategy", "low_confidence_dynamic")
        if strategy == "sequential":
            settings["remasking"] = "left_to_right"
        elif strategy == "entropy_bounded":
            settings |= {"remasking": "entropy", "entropy_bound": given["eb_threshold"]}
        elif strategy == "low_confidence_dynamic":
            settings["threshold"] = given.get("confidence_threshold", given.get("threshold"))
    return DecoderConfig(max_new_tokens=length, **settings)


def ends_of(case: Recording) -> list[int]:
    """The ids at which the published loop stops."""
    if case.decoder == "sdar":
        return case.settings["stopping_criteria_idx"] or []
    if case.decoder == "bd3lm":
        return [case.settings["eos_token_id"]]
    if case.decoder == "llada2.0":
        return [case.settings["eos_id"]]
    return [case.settings["eos_id"]] if case.settings.get("eos_early_stop") else []


def padded(prompts: list[list[int]]) -> tuple[Tensor, Tensor]:
    """The prompts with padding on their left, and which of the tokens are theirs."""
    width = max(map(len, prompts))
    ids = [[0] * (width - len(prompt)) + prompt for prompt in prompts]
    real = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids), torch.tensor(real)


def written(case: Recording) -> SampleResult:
    ids, real = padded(case.prompts)
    return sample(model_of(case, ends_of(case)), ids, decoder_of(case), attention_mask=real)


def up_to_end(tokens: list[int], ends: list[int]) -> list[int]:
    """The tokens with the first end; what was never written behind it is nothing."""
    found = [place for place, token in enumerate(tokens) if token in ends]
    return tokens[: found[0] + 1] if found else tokens


@pytest.mark.parametrize("case", CASES)
def test_the_tokens_are_theirs(case):
    result, ends = written(case), ends_of(case)
    length = result.tokens.shape[1]
    for row, response in enumerate(case.responses):
        theirs = up_to_end(response[:length], ends)
        assert up_to_end(result.tokens[row].tolist(), ends)[: len(theirs)] == theirs
        assert MASK not in theirs
    assert result.num_forward_passes <= case.forwards


@pytest.mark.parametrize("case", BY_CONFIDENCE)
def test_the_plain_loop_is_theirs(case):
    """Every token, the masks behind an end included, and every call of the network."""
    model, decoder, (prompt,) = model_of(case, ends_of(case)), decoder_of(case), case.prompts
    block_length = case.settings["block_length"]
    num_calls = 0

    def logits_of(tokens):
        nonlocal num_calls
        num_calls += 1
        return model.logits(tokens)

    tokens = fill_network_blocks(
        logits_of,
        torch.tensor([prompt]),
        mask_token_id=MASK,
        max_new_tokens=decoder.max_new_tokens,
        block_length=block_length,
        steps_per_block=decoder.steps // math.ceil(decoder.max_new_tokens / block_length),
        threshold=decoder.threshold,
        edit_threshold=decoder.edit_threshold,
        max_post_steps=decoder.max_post_steps,
        end_token_ids=ends_of(case),
    )
    assert tokens[0].tolist() == prompt + case.responses[0]
    assert num_calls == case.forwards


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in recordings("llada")])
def test_the_plain_loop_is_theirs_in_full_attention(case):
    """Those by `random` are so few steps or so short blocks that every order is the same."""
    decoder, (ids, real) = decoder_of(case), padded(case.prompts)
    response = torch.full((len(ids), decoder.max_new_tokens), MASK)
    start = ids.shape[1]
    filled = fill_block_by_block(
        model_of(case, []).logits,
        torch.cat([ids, response], dim=1),
        torch.cat([real, torch.ones_like(response)], dim=1).bool(),
        mask_token_id=MASK,
        response_start=start,
        block_length=case.settings["block_length"],
        steps=decoder.steps,
        cfg_scale=decoder.cfg_scale,
    )
    assert filled[:, start:].tolist() == case.responses
