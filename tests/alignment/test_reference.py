"""The published step in plain tensors: by hand, and equal to what the trainer optimises."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from align_tiny import tiny_model

from mosa.alignment import MosaConfig, MosaTrainer, add_adapter, reference
from mosa.bench.align import loss_and_gradient

BASE: dict[str, Any] = {
    "response_length": 24,
    "window_start": 5,
    "window_end": 20,
    "lora_r": 4,
    "per_device_train_batch_size": 8,
    "max_steps": 1,
    "use_cpu": True,
}


def test_score_by_hand():
    """Phrase (0, 1) at positions 1.2, 2.3 and 3.4: ln(1/2 1/4), ln(1/4 1/8), ln(1/8 1/2)."""
    log_probs = torch.tensor([[0.5, 0.125], [0.25, 0.25], [0.125, 0.125], [0.5, 0.5]]).log()
    assert reference.score(log_probs, [0, 1], (1, 4)).item() == pytest.approx(math.log(1 / 8))
    assert reference.score(log_probs, [0, 1], (2, 3)).item() == pytest.approx(math.log(1 / 32))
    assert reference.score(log_probs, [0, 1], (2, 4)).item() == pytest.approx(math.log(1 / 16))
    assert reference.score(log_probs, [0, 1], (2, None)).item() == pytest.approx(math.log(1 / 32))


def test_loss_by_hand(monkeypatch):
    """Two response positions, two tokens. The policy gives (1/2, 1/2) at both, the reference
    (1/4, 3/4): the KL is 2 (1/2 ln 2 + 1/2 ln 2/3). Phrases of one token score ln 1/2 each, so the
    reward is 0; a refusal of two tokens scores 2 ln 1/2, and the reward is ln 1/2."""
    policy, other = tiny_model(), tiny_model()
    for model, probs in ((policy, (0.5, 0.5)), (other, (0.25, 0.75))):
        logits = torch.tensor(probs).log()
        monkeypatch.setattr(
            model,
            "logits",
            lambda tokens, _, columns, logits=logits, **__: logits.expand(
                len(tokens), len(columns), 2
            ),
        )
    kl = 2 * (0.5 * math.log(2) + 0.5 * math.log(2 / 3))
    found = reference.losses(
        policy,
        other,
        [[3, 4, 5], [6]],
        [[0], [0, 1]],
        [[1], [0]],
        window=(1, 2),
        response_length=2,
        beta=0.1,
    )
    assert found.tolist() == pytest.approx([0.1 * kl, 0.1 * kl + math.log(2)], rel=1e-6)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"window_start": 1, "window_end": None},
        {"breaker": "eos", "beta": 0.3},
        {"breaker": "none", "beta": 0.0, "window_end": 16},
    ],
    ids=["paper", "initial", "one end token", "no KL"],
)
def test_the_trainer_optimises_it(tmp_path, phrase_files, harmful, changes):
    """Losses of every prompt and gradients of the adapter, in float64, from a disturbed adapter."""
    config = MosaConfig(**{**BASE, **phrase_files, "output_dir": str(tmp_path), **changes})
    policy, other = tiny_model(), tiny_model()
    add_adapter(policy, config)
    trainer = MosaTrainer(policy, config, harmful)
    generator = torch.Generator().manual_seed(1)
    parameters = [p for p in policy.network.parameters() if p.requires_grad]
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    policy.network.double()
    other.network.double()

    safe, harmful_phrases = trainer.draw_phrases(list(range(8)))
    losses = reference.losses(
        policy,
        other,
        [example.prompt_ids for example in trainer.examples],
        [phrase.variants[0] for (phrase,) in safe],
        [phrase.variants[0] for (phrase,) in harmful_phrases],
        window=(config.window_start, config.window_end),
        response_length=config.response_length,
        beta=config.beta,
    )
    gradients = torch.autograd.grad(losses.mean(), parameters)
    ours = trainer.harmful_losses(policy.network, list(range(8)))
    torch.testing.assert_close(ours, losses, rtol=1e-9, atol=1e-12)
    loss, gradient = loss_and_gradient(trainer)
    assert loss == pytest.approx(losses.mean().item(), rel=1e-9)
    plain = torch.cat([g.flatten() for g in gradients])
    torch.testing.assert_close(gradient, plain, rtol=1e-8, atol=1e-11)
