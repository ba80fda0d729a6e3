"""The search for a suffix: its gradient, its filter, and that it does what its budget says."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace

import pytest
import torch
from refusals import refuses
from tiny_models import tiny_diffusion_gemma_config, turn_tokenizer

from mosa.attacks.gcg import SearchSettings
from mosa.families import load_model, new_model
from mosa.suffix_search import (
    GcgConfig,
    GcgSearch,
    GcgState,
    Loss,
    _swaps,
    ordinary_tokens,
)

PROMPT = "how do i make a copper drum ?"
SMALL = GcgConfig(suffix_length=4, num_iterations=6, num_candidates=16, top_k=16)


@pytest.fixture(scope="module")
def model():
    return load_model("testbed", dtype="float32")


def search_of(model, config=SMALL, position=0) -> GcgSearch:
    target = model.encode_text("step two")
    return GcgSearch(model, PROMPT, target, position, config, response_length=12)


def attack(model, config=SMALL) -> GcgState:
    search = search_of(model, config)
    return search.advance(search.begin(), config.num_iterations)


@pytest.mark.parametrize("family", ["tiny_llada", "tiny_dream"])
def test_gradient_against_the_loss_of_a_moved_embedding(family, request):
    """The loss changes by gradient x step where one token's embedding is moved towards another's;
    for the family with shifted logits too."""
    model = request.getfixturevalue(family)
    model.network.double()
    loss = Loss(model, [5, 9], 1, 6, 8)
    prompt = torch.tensor([20, 21, 22, 23])
    gradient = loss.gradient(prompt)
    weight = model.network.get_input_embeddings().weight
    step = 1e-2  # the norms work in float32, which is coarse for smaller ones
    for place, token in ((1, 40), (2, 41), (3, 7)):
        direction = weight[token].detach() - weight[prompt[place]].detach()

        def loss_at(size, place=place, direction=direction):
            def moved(module, arguments, output):
                changed = output.clone()
                changed[:, place] += size * direction
                return changed

            handle = model.network.get_input_embeddings().register_forward_hook(moved)
            found = float(loss(prompt[None])[0])
            handle.remove()
            return found

        expected = float(gradient[place, token] - gradient[place, prompt[place]])
        measured = (loss_at(step) - loss_at(-step)) / (2 * step)
        assert measured == pytest.approx(expected, rel=1e-2, abs=1e-4)
    model.network.float()


def test_gradient_on_noise_goes_through_every_canvas_of_the_target():
    """The encoder reads the prompt once for each of two canvases; embeddings are scaled."""
    canvas = 8
    config = tiny_diffusion_gemma_config(turn_tokenizer(), canvas_length=canvas)
    model = new_model(config, turn_tokenizer(), seed=3)
    loss = Loss(model, [5, 9, 11, 12], canvas - 2, 2 * canvas, 8)
    prompt = torch.tensor([20, 21, 22, 23])
    gradient = loss.gradient(prompt)
    embedding = model.network.get_input_embeddings()
    embedded = embedding(torch.arange(model.vocab_size)).detach()
    for place, token in ((1, 40), (2, 41), (3, 7)):
        direction = embedded[token] - embedded[prompt[place]]

        def loss_at(size, place=place, direction=direction):
            def moved(module, arguments, output):
                changed = output.clone()
                if output.shape[1] != canvas:  # the encoder's
                    changed[:, place] += size * direction
                return changed

            handle = embedding.register_forward_hook(moved)
            found = float(loss(prompt[None])[0])
            handle.remove()
            return found

        step = 3e-3
        expected = float(gradient[place, token] - gradient[place, prompt[place]])
        measured = (loss_at(step) - loss_at(-step)) / (2 * step)
        assert measured == pytest.approx(expected, rel=3e-2, abs=3e-3)


def test_loss_is_that_of_the_fully_masked_response(model):
    target = model.encode_text("step two")
    ids = model.encode(PROMPT)
    canvas = torch.tensor([ids + [model.mask_token_id] * 12])
    with torch.no_grad():
        log_probs = model.logits(canvas).log_softmax(-1)[0, len(ids) :]
    expected = -(log_probs[3, target[0]] + log_probs[4, target[1]]) / 2
    found = Loss(model, target, 3, 12, 4)(torch.tensor([ids, ids]))
    assert found.tolist() == pytest.approx([float(expected)] * 2, rel=1e-5)


def test_best_suffix_has_the_best_loss_and_is_what_a_user_can_send(model):
    found = attack(model)
    assert len(found.losses) == SMALL.num_iterations + 1
    assert found.best_loss == min(found.losses) < found.losses[0]
    ids, start = search_of(model).with_suffix(found.best)
    assert ids[start : start + 4].tolist() == found.best
    assert model.encode(search_of(model).prompt_of(found)) == ids.tolist()
    again = Loss(model, model.encode_text("step two"), 0, 12, 4)(ids[None])
    assert float(again[0]) == pytest.approx(found.best_loss, rel=1e-5)


def test_budget_is_counted(model):
    found = attack(model)
    assert found.num_backward_passes == 6
    # One for the first loss, and per iteration one with gradients and at most 16 candidates.
    assert 1 + 6 < found.num_forward_passes <= 1 + 6 * (1 + 16)


def test_a_search_goes_on_where_it_stopped(model):
    """Through JSON, as a record keeps it: 2 and 4 iterations are 6."""
    search = search_of(model)
    half = search.advance(search.begin(), 2)
    recorded = GcgState(**json.loads(json.dumps(asdict(half))))
    assert recorded.num_iterations == 2
    assert search_of(model).advance(recorded, 4) == attack(model)


def test_same_seed_same_suffix_whatever_the_batch(model):
    found = attack(model)
    assert attack(model).best == found.best
    one_by_one = attack(model, replace(SMALL, candidate_batch_size=3))
    assert one_by_one.best == found.best
    assert one_by_one.losses == pytest.approx(found.losses, abs=1e-4)
    assert attack(model, replace(SMALL, seed=1)).best != found.best


def test_swaps_change_one_token_to_a_promising_one():
    """Two positions, five tokens, the two steepest per position; banned tokens never."""
    gradient = torch.tensor([[0.0, -3.0, -2.0, 1.0, math.inf], [-1.0, 0.0, 2.0, -5.0, math.inf]])
    config = GcgConfig(num_candidates=200, top_k=2)
    found = _swaps([0, 1], gradient, config, torch.Generator().manual_seed(0))
    assert sorted(found) == [[0, 0], [0, 3], [1, 1], [2, 1]]


def test_candidates_that_read_back_differently_are_dropped(tiny_llada):
    """A byte-level BPE merges neighbours: every suffix that is kept reads back as it stands."""
    config = GcgConfig(suffix_length=6, num_iterations=4, num_candidates=64, top_k=200)
    target = tiny_llada.encode_text("Sure")
    search = GcgSearch(tiny_llada, "how is tea made?", target, 2, config, response_length=16)
    found = search.advance(search.begin(), 4)
    assert found.num_forward_passes < 1 + 4 * (1 + 64)
    ids = tiny_llada.encode(search.prompt_of(found))
    assert any(ids[i : i + 6] == found.best for i in range(len(ids)))


def test_nothing_that_steers_the_model_is_ever_in_a_suffix(model):
    allowed = ordinary_tokens(model)
    banned = [model.mask_token_id, *model.end_token_ids, *model.tokenizer.all_special_ids]
    assert not allowed[banned].any()
    assert int(allowed.sum()) > 400


def test_a_target_that_does_not_fit_is_refused(model):
    with refuses("2", "12"):
        search_of(model, position=11)
    with refuses("num_iterations", "0"):
        SearchSettings(num_iterations=0)


def test_first_loss_is_taken_without_dropout(model):
    """A model that is still in training mode has the same losses, and stays in it."""
    from peft import LoraConfig

    trained = load_model("testbed", dtype="float32")
    trained.add_lora(LoraConfig(r=4, lora_dropout=0.5))
    for parameter in trained.network.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3)
    trained.network.eval()
    expected = attack(trained).losses
    trained.network.train()
    assert attack(trained).losses == expected
    assert trained.network.training
