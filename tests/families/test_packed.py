"""Rows laid end to end: the same hidden states as one row after the other, padded or not."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig

from mosa.families.packed import KeyValueCache, Selection

LENGTHS = (5, 5, 8, 11)
BEGINS = (0, 5, 10, 18, 29)


@pytest.fixture(scope="module", params=["llada", "illada", "dream", "lora"])
def model(request, new_tiny_llada, new_tiny_dream):
    if request.param == "dream":
        return new_tiny_dream(seed=1)
    grouped = {"n_kv_heads": 2, "weight_tying": True, "rope_theta": 10000.0}
    model = new_tiny_llada(seed=1, **(grouped if request.param == "illada" else {}))
    if request.param == "lora":
        model.add_lora(LoraConfig(r=4, init_lora_weights=False))
    return model


@pytest.fixture(scope="module")
def tokens():
    return torch.randint(0, 360, (sum(LENGTHS),), generator=torch.Generator().manual_seed(2))


def packed(model, tokens, lengths=LENGTHS, **kwargs):
    positions = torch.cat([torch.arange(length) for length in lengths])
    with torch.no_grad():
        return model.packed_hidden_states(tokens, model.rotary(positions), lengths, **kwargs)


def own_states(model, tokens, row):
    """The row by itself through the library's own forward, not shifted."""
    part = tokens[BEGINS[row] : BEGINS[row + 1]]
    base = model.network.get_base_model() if model.has_adapter else model.network
    with torch.no_grad():
        return base.model(input_ids=part[None], use_cache=False).last_hidden_state[0]


def test_packed_rows_are_the_rows_by_themselves(model, tokens):
    states = packed(model, tokens)
    for row in range(4):
        mine = states[BEGINS[row] : BEGINS[row + 1]]
        torch.testing.assert_close(mine, own_states(model, tokens, row), atol=2e-5, rtol=0)


def test_their_head_gives_the_models_logits(model, tokens):
    """With the shift of a family that reads one position to the left."""
    row, length = 3, LENGTHS[3]
    part = tokens[BEGINS[row] :]
    columns = torch.tensor([0, 4, 9])
    with torch.no_grad():
        expected = model.logits(part[None], positions=columns)[0]
        read = (columns - 1).clamp(min=0) if model.family.logits_shifted else columns
        found = model.head(packed(model, part, (length,))[read])
        again = model.head(model.hidden_states(part[None], positions=columns)[0])
    torch.testing.assert_close(found, expected, atol=5e-5, rtol=0)
    torch.testing.assert_close(again, expected, atol=0, rtol=0)


def test_what_is_asked_for_is_all_that_the_last_layer_computes(model, tokens):
    """Unequal numbers of positions in rows of equal length, and a row with none."""
    asked = Selection(torch.tensor([1, 2, 4, 7, 18, 20, 28]), (3, 1, 0, 3))
    whole = packed(model, tokens)
    sizes = []
    base = model.network.get_base_model() if model.has_adapter else model.network
    handle = base.model.layers[-1].mlp.down_proj.register_forward_pre_hook(
        lambda module, args: sizes.append(len(args[0]))
    )
    some = packed(model, tokens, asked=asked)
    handle.remove()
    torch.testing.assert_close(some, whole[asked.index], atol=2e-5, rtol=0)
    assert sizes == [7]


def test_rows_of_one_length_that_stand_apart(model, tokens):
    lengths = (5, 8, 5, 11)
    index = torch.cat([torch.arange(0, 5), torch.arange(10, 18), torch.arange(5, 10)])
    apart = torch.cat([tokens[index], tokens[18:]])
    states = packed(model, apart, lengths)
    whole = packed(model, tokens)
    torch.testing.assert_close(states[:18], whole[index], atol=2e-5, rtol=0)
    torch.testing.assert_close(states[18:], whole[18:], atol=2e-5, rtol=0)


def test_a_cache_gives_the_keys_and_values_of_earlier_passes(model, tokens):
    """Where no token has changed since, queries of some positions get what all would."""
    cache = KeyValueCache()
    whole = packed(model, tokens, cache=cache)
    queries = Selection(torch.tensor([0, 1, 2, 3, 4, 6, 7, 16, 25, 27]), (5, 2, 1, 2))
    some = packed(model, tokens, queries=queries, cache=cache)
    torch.testing.assert_close(some, whole[queries.index], atol=2e-5, rtol=0)
    asked = Selection(torch.tensor([3, 7, 25]), (1, 1, 0, 1))
    few = packed(model, tokens, queries=queries, asked=asked, cache=cache)
    torch.testing.assert_close(few, whole[asked.index], atol=2e-5, rtol=0)


def test_a_cache_is_laid_out_anew_with_the_rows(model, tokens):
    """The first row leaves; the others keep their keys and values."""
    cache = KeyValueCache()
    whole = packed(model, tokens, cache=cache)
    cache.repack(torch.arange(5, 29))
    queries = Selection(torch.tensor([2, 20]), (1, 0, 1))
    some = packed(model, tokens[5:], (5, 8, 11), queries=queries, cache=cache)
    torch.testing.assert_close(some, whole[[7, 25]], atol=2e-5, rtol=0)
