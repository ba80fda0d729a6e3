"""Masked-diffusion supervised training: its loss by hand, and that it learns."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from align_tiny import tiny_model
from refusals import refuses
from torch.nn.functional import cross_entropy

import mosa.alignment.sft
from mosa.alignment import SftConfig, SftTrainer, add_adapter, head_loss
from mosa.alignment.states import anchored_answer, masked_answer
from mosa.data import TrainingExample

BASE: dict[str, Any] = {
    "trainable": "full",
    "response_length": 24,
    "per_device_train_batch_size": 8,
    "learning_rate": 3e-3,
    "max_steps": 40,
    "save_strategy": "no",
    "disable_tqdm": True,
    "use_cpu": True,
}


def settings(**changes: Any) -> SftConfig:
    return SftConfig(**{**BASE, **changes})


def test_loss_by_hand(harmful, tmp_path):
    """All R positions masked (t = 1), and every token has 1/V: R ln V / 1 / R."""
    model = tiny_model()
    config = settings(output_dir=str(tmp_path), full_mask_share=1.0)
    trainer = SftTrainer(model, config, harmful)
    with torch.no_grad():
        model.network.get_parameter("lm_head.weight").zero_()
        losses = trainer.example_losses(model.network, [0, 3])
    assert losses.tolist() == pytest.approx([math.log(model.vocab_size)] * 2)


def test_masks_follow_the_ratio():
    """Over many draws the share of masked positions is the mean ratio, (0.001 + 1) / 2."""
    model = tiny_model()
    states = [masked_answer(model, [1, 2, 3], 10, np.random.default_rng(i)) for i in range(800)]
    share = torch.stack([s.masked for s in states]).float().mean().item()
    assert share == pytest.approx(0.5, abs=0.03)
    assert states[0].tokens.tolist() == [1, 2, 3] + [model.eos_token_id] * 7


def test_the_loss_is_unbiased_in_the_mask_ratio(harmful, tmp_path):
    """With a model that gives every token 1/V, the mean loss is ln V, whatever was masked."""
    model = tiny_model()
    trainer = SftTrainer(model, settings(output_dir=str(tmp_path)), harmful)
    with torch.no_grad():
        head = model.network.get_parameter("lm_head.weight")
        head.zero_()
        losses = torch.cat([trainer.example_losses(model.network, [i] * 32) for i in range(8)])
        # One epoch is one draw for an example; more epochs are more draws.
        for epoch in range(1, 40):
            trainer.state.epoch = float(epoch)
            losses = torch.cat([losses, trainer.example_losses(model.network, list(range(8)))])
    draws = losses[8 * 32 :]
    assert draws.mean().item() == pytest.approx(math.log(model.vocab_size), rel=0.15)


def test_it_learns(harmful, tmp_path):
    model = tiny_model()
    trainer = SftTrainer(model, settings(output_dir=str(tmp_path), logging_steps=10.0), harmful)
    trainer.train()
    first, last = trainer.state.log_history[0], trainer.state.log_history[3]
    assert last["loss_per_token"] < 0.7 * first["loss_per_token"]
    assert last["accuracy"] > first["accuracy"]


def test_an_example_does_not_depend_on_its_neighbours(harmful, tmp_path):
    """Prompts and, with length_multiple, canvases of other lengths beside it change nothing."""
    model = tiny_model()
    config = settings(output_dir=str(tmp_path), length_multiple=4)
    trainer = SftTrainer(model, config, harmful)
    lengths = {trainer.canvas_length(answer) for answer in trainer.answers}
    assert len(lengths) > 1 and all(length % 4 == 0 for length in lengths)
    with torch.no_grad():
        together = trainer.example_losses(model.network, list(range(8)))
        alone = torch.cat([trainer.example_losses(model.network, [i]) for i in range(8)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_answers_end_with_the_turn(harmful, tmp_path):
    model = tiny_model()
    trainer = SftTrainer(model, settings(output_dir=str(tmp_path)), harmful)
    turn_end = next(i for i in model.end_token_ids if i != model.eos_token_id)
    assert all(answer[-1] == turn_end for answer in trainer.answers)


def test_mistakes_are_named(harmful, tmp_path):
    config = settings(output_dir=str(tmp_path))
    with refuses("1", "answer"):
        SftTrainer(tiny_model(), config, [TrainingExample("how do i stir")])
    long = TrainingExample("how do i stir", "stir " * 30)
    with refuses("31", "24"):
        SftTrainer(tiny_model(), config, [long])


def test_full_mask_share_shows_the_model_empty_answers(harmful, tmp_path):
    """With share 1 every canvas is a prompt and masks, so the answer's tokens never go in."""
    model = tiny_model()
    changes: dict[str, Any] = {"output_dir": str(tmp_path), "full_mask_share": 1.0}
    trainer = SftTrainer(model, settings(**changes), harmful)
    seen = []

    def record(module, args, kwargs):
        seen.append(kwargs["input_ids"])

    handle = model.network.register_forward_pre_hook(record, with_kwargs=True)
    trainer.example_losses(model.network, [0, 1])
    handle.remove()
    assert (seen[0][:, -24:] == model.mask_token_id).all()
    with refuses("full_mask_share", "1.5"):
        settings(**(changes | {"full_mask_share": 1.5}))


def test_anchored_masks_are_those_of_the_order():
    """The window is filled while all else is masked, or stands while the rest is filled; what is
    scored is masked with the ratio of its draw, in one of two cases."""
    model, window = tiny_model(), torch.arange(10).ge(2) & torch.arange(10).lt(5)
    plain, anchored = [], []
    for i in range(400):
        plain.append(masked_answer(model, [1, 2, 3], 10, np.random.default_rng(i)))
        anchored.append(anchored_answer(plain[-1], (3, 5), np.random.default_rng(1000 + i)))
    num_filling = 0
    for before, state in zip(plain, anchored, strict=True):
        assert state.scored is not None
        assert state.mask_ratio == before.mask_ratio / 2
        is_filling = bool(state.masked[~window].all()) and not bool(state.scored[~window].any())
        num_filling += is_filling
        part = window if is_filling else ~window
        assert torch.equal(state.scored, before.masked & part)
        assert torch.equal(state.masked[part], before.masked[part])
        assert bool(state.masked[~part].all()) == is_filling
    assert num_filling / len(anchored) == pytest.approx(0.5, abs=0.1)


def test_the_anchored_loss_is_unbiased(harmful, tmp_path):
    """With a model that gives every token 1/V, the mean loss is ln V, as without an anchor: every
    position is scored with half its mask ratio, and divided by that."""
    model = tiny_model()
    config = settings(output_dir=str(tmp_path), anchor_start=5, anchor_end=10)
    trainer = SftTrainer(model, config, harmful)
    with torch.no_grad():
        model.network.get_parameter("lm_head.weight").zero_()
        losses = []
        for epoch in range(60):
            trainer.state.epoch = float(epoch)
            losses.append(trainer.example_losses(model.network, list(range(8))))
    assert torch.cat(losses).mean().item() == pytest.approx(math.log(model.vocab_size), rel=0.15)


def test_a_batch_without_scored_positions_trains(harmful, tmp_path, monkeypatch):
    """A draw may leave nothing to score in a short window; the gradient is then zero."""
    model = tiny_model()
    config = settings(output_dir=str(tmp_path), anchor_start=5, anchor_end=5)
    trainer = SftTrainer(model, config, harmful)

    def nothing(state, window, random):
        return replace(state, scored=torch.zeros_like(state.masked))

    monkeypatch.setattr(mosa.alignment.sft, "anchored_answer", nothing)
    losses = trainer.example_losses(model.network, [0, 1])
    assert losses.tolist() == [0.0, 0.0]
    losses.sum().backward()


def test_anchors_that_cannot_be(tmp_path):
    for changes, names in [
        ({"anchor_start": 3}, ("anchor_start", "anchor_end")),
        ({"anchor_end": 3}, ("anchor_start", "anchor_end", 3)),
        ({"anchor_start": 0, "anchor_end": 3}, ("anchor_start", 0)),
        ({"anchor_start": 4, "anchor_end": 3}, ("anchor_start", 4, 3)),
        ({"anchor_start": 4, "anchor_end": 25}, ("anchor_end", 25, 24)),
    ]:
        with refuses(*names):
            settings(output_dir=str(tmp_path), **changes)


@pytest.mark.parametrize("trainable", ["full", "lora"])
def test_gradients_are_those_of_a_loss_on_all_logits(harmful, tmp_path, trainable, monkeypatch):
    """One chunk for every three positions, against cross-entropy on the whole grid, in float64."""
    model = tiny_model()
    config = settings(output_dir=str(tmp_path), trainable=trainable, length_multiple=4)
    if trainable == "lora":
        add_adapter(model, config)
    trainer = SftTrainer(model, config, harmful)
    model.network.double()
    monkeypatch.setattr(head_loss, "MAX_LOGITS_AT_ONCE", 3 * model.vocab_size)
    parameters = [p for p in model.network.parameters() if p.requires_grad]
    losses = trainer.example_losses(model.network, list(range(8)))
    gradients = torch.autograd.grad(losses.sum(), parameters)

    def on_all_logits(diffusion, hidden_ND, tokens_N):
        logits_NV = diffusion.head(hidden_ND)
        return -cross_entropy(logits_NV, tokens_N, reduction="none"), logits_NV.argmax(dim=-1)

    monkeypatch.setattr(mosa.alignment.sft, "token_log_probs", on_all_logits)
    plain_losses = trainer.example_losses(model.network, list(range(8)))
    plain_gradients = torch.autograd.grad(plain_losses.sum(), parameters)
    torch.testing.assert_close(losses, plain_losses, rtol=1e-10, atol=1e-12)
    for gradient, plain in zip(gradients, plain_gradients, strict=True):
        torch.testing.assert_close(gradient, plain, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("trainable", ["full", "lora"])
def test_activation_checkpointing_changes_no_weight(harmful, tmp_path, trainable):
    trained = []
    for checkpointing in (False, True):
        model = tiny_model()
        config = settings(
            output_dir=str(tmp_path),
            trainable=trainable,
            max_steps=2,
            activation_checkpointing=checkpointing,
        )
        torch.manual_seed(0)
        if trainable == "lora":
            add_adapter(model, config)
        SftTrainer(model, config, harmful).train()
        trained.append(list(model.network.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(*trained, strict=True))
