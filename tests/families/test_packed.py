"""Rows laid end to end: the same hidden states as the library's own forward pass, padded or not.

Held for every family of the table, and for the networks that the next families are made of.
"""

from __future__ import annotations

import pytest
import torch
from other_networks import NETWORKS, new_other
from peft import LoraConfig
from tiny_models import randomised, variants

from mosa.families import DiffusionLM, new_model
from mosa.families.packed import KeyValueCache, Selection, Visible

LENGTHS = (5, 5, 8, 11)
BEGINS = (0, 5, 10, 18, 29)
RESPONSE = 2
"""The tokens of each row's response, for families whose blocks begin there."""
OTHERS = [
    pytest.param({"other": name, "block_length": block_length}, id=f"{name}-{block_length}")
    for name in NETWORKS
    for block_length in (None, 4)
]
MODELS = [
    pytest.param((model.values[0], has_adapter), id=f"{model.id}{'-adapter' * has_adapter}")
    for model in (*variants(), *OTHERS)
    for has_adapter in (False, True)
]


@pytest.fixture(scope="module", params=MODELS)
def model(request) -> DiffusionLM:
    """With noise on every weight, those of its norms too, and an adapter that says something, on
    routed experts too."""
    config, has_adapter = request.param
    if "other" in config:
        model = new_other(config["other"], block_length=config["block_length"])
    else:
        model = randomised(new_model(config, seed=1), 1)
    if has_adapter:
        has_experts = "experts.down_proj" in " ".join(model.network.state_dict())
        model.add_lora(LoraConfig(r=4, init_lora_weights=False), experts=has_experts)
    return model


@pytest.fixture(scope="module")
def tokens():
    return torch.randint(0, 360, (sum(LENGTHS),), generator=torch.Generator().manual_seed(2))


def packed(model, tokens, lengths=LENGTHS, **kwargs):
    positions = torch.cat([torch.arange(length) for length in lengths])
    if not model.attention.is_full:
        shifts = tuple(model.attention.shift(length - RESPONSE) for length in lengths)
        kwargs.setdefault("visible", Visible(lengths, shifts, to_all=False))
    with torch.no_grad():
        return model.packed_hidden_states(tokens, model.rotary(positions), lengths, **kwargs)


def own_states(model, tokens, row):
    """The row by itself through the library's own forward, not shifted."""
    part = tokens[BEGINS[row] : BEGINS[row + 1]][None]
    base = model.network.get_base_model() if model.has_adapter else model.network
    mask = None
    if not model.attention.is_full:
        start = part.shape[1] - RESPONSE
        mask = model.attention.mask(torch.ones_like(part).bool(), start)
    with torch.no_grad():
        states = base.model(input_ids=part, attention_mask=mask, use_cache=False)
    return states.last_hidden_state[0]


def close(found, expected):
    """Equal but for rounding, which in a network of noise grows with the size of its states."""
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_packed_rows_are_the_rows_by_themselves(model, tokens):
    states = packed(model, tokens)
    for row in range(4):
        close(states[BEGINS[row] : BEGINS[row + 1]], own_states(model, tokens, row))


def test_their_head_gives_the_models_logits_for_padded_rows(model, tokens):
    """With the shift of a family that reads one position to the left."""
    states = packed(model, tokens)
    width = max(LENGTHS)
    sides = ("left",) if model.attention.begins == "response" else ("left", "right")
    for side in sides:
        ids = torch.full((4, width), model.pad_token_id)
        real = torch.zeros(4, width, dtype=torch.bool)
        for row, length in enumerate(LENGTHS):
            place = slice(width - length, width) if side == "left" else slice(0, length)
            ids[row, place], real[row, place] = tokens[BEGINS[row] : BEGINS[row + 1]], True
        with torch.no_grad():
            logits = model.logits(ids, real, response_start=width - RESPONSE)
            hidden = model.hidden_states(ids, real, response_start=width - RESPONSE)
            again = model.head(hidden)
        torch.testing.assert_close(again, logits, atol=0, rtol=0)
        for row, length in enumerate(LENGTHS):
            read = torch.arange(length)
            if model.family.logits_shifted:
                read = (read - 1).clamp(min=0)
            mine = states[BEGINS[row] + read]
            close(mine, hidden[row][real[row]])
            close(model.head(mine), logits[row][real[row]])


def test_what_is_asked_for_is_all_that_the_last_layer_computes(model, tokens):
    """Unequal numbers of positions in rows of equal length, and a row with none."""
    asked = Selection(torch.tensor([1, 2, 4, 7, 18, 20, 28]), (3, 1, 0, 3))
    whole = packed(model, tokens)
    sizes = []
    base = model.network.get_base_model() if model.has_adapter else model.network
    mlp = base.model.layers[-1].mlp
    called = dict(mlp.named_children()).get("down_proj", mlp)  # a mixture is called as it is
    handle = called.register_forward_pre_hook(
        lambda module, args: sizes.append(args[0].shape[:-1].numel())
    )
    some = packed(model, tokens, asked=asked)
    handle.remove()
    close(some, whole[asked.index])
    assert sizes == [7]


def test_rows_of_one_length_that_stand_apart(model, tokens):
    lengths = (5, 8, 5, 11)
    index = torch.cat([torch.arange(0, 5), torch.arange(10, 18), torch.arange(5, 10)])
    apart = torch.cat([tokens[index], tokens[18:]])
    states = packed(model, apart, lengths)
    whole = packed(model, tokens)
    close(states[:18], whole[index])
    close(states[18:], whole[18:])


def test_a_cache_gives_the_keys_and_values_of_earlier_passes(model, tokens):
    """Where no token has changed since, queries of some positions get what all would."""
    cache = KeyValueCache()
    whole = packed(model, tokens, cache=cache)
    queries = Selection(torch.tensor([0, 1, 2, 3, 4, 6, 7, 16, 25, 27]), (5, 2, 1, 2))
    some = packed(model, tokens, queries=queries, cache=cache)
    close(some, whole[queries.index])
    asked = Selection(torch.tensor([3, 7, 25]), (1, 1, 0, 1))
    few = packed(model, tokens, queries=queries, asked=asked, cache=cache)
    close(few, whole[asked.index])


def test_a_cache_is_laid_out_anew_with_the_rows(model, tokens):
    """The first row leaves; the others keep their keys and values."""
    cache = KeyValueCache()
    whole = packed(model, tokens, cache=cache)
    cache.repack(torch.arange(5, 29))
    queries = Selection(torch.tensor([2, 20]), (1, 0, 1))
    some = packed(model, tokens[5:], (5, 8, 11), queries=queries, cache=cache)
    close(some, whole[[7, 25]])
