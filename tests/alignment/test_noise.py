"""MOSA and supervised training on canvases of uniform noise, against plain tensors."""

from __future__ import annotations

from statistics import fmean
from typing import Any

import pytest
import torch
from align_tiny import tiny_tokenizer
from refusals import refuses
from tiny_models import tiny_diffusion_gemma_config, turn_tokenizer

from mosa.alignment import (
    MosaConfig,
    MosaTrainer,
    SftConfig,
    SftTrainer,
    VrpoConfig,
    VrpoTrainer,
    add_adapter,
    reference,
)
from mosa.alignment.states import ResponseState, build_canvas
from mosa.denoising import Canvas, log_likelihood_bound
from mosa.families import DiffusionLM, new_model
from mosa.families import noise as of_noise

LENGTH, CANVAS = 24, 32
BASE: dict[str, Any] = {
    "response_length": LENGTH,
    "window_start": 5,
    "window_end": 20,
    "lora_r": 4,
    "seed": 0,
    "per_device_train_batch_size": 8,
    "max_steps": 1,
    "save_strategy": "no",
    "disable_tqdm": True,
    "use_cpu": True,
}


def noise_model(canvas_length: int = CANVAS) -> DiffusionLM:
    """A tiny model of uniform noise that knows the words of these tests."""
    tokenizer = tiny_tokenizer()
    config = tiny_diffusion_gemma_config(
        turn_tokenizer(), vocab_size=len(tokenizer), canvas_length=canvas_length
    )
    ends = tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|eot_id|>"])
    return new_model(
        {**config, "eos_token_id": ends, "pad_token_id": tokenizer.pad_token_id}, tokenizer, seed=0
    )


def disturb(model: DiffusionLM) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(1)
    parameters = [p for p in model.network.parameters() if p.requires_grad]
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return parameters


def mosa_trainer(tmp_path, phrase_files, harmful, benign=None, **changes) -> MosaTrainer:
    config = MosaConfig(**{**BASE, **phrase_files, "output_dir": str(tmp_path), **changes})
    model = noise_model()
    add_adapter(model, config)
    disturb(model)
    return MosaTrainer(model, config, harmful, benign)


@pytest.mark.parametrize(
    "changes",
    [{}, {"window_start": 1, "window_end": None}, {"breaker": "eos", "beta": 0.3}],
    ids=["paper", "initial", "one end token"],
)
def test_the_trainer_optimises_the_published_step_on_noise(
    tmp_path, phrase_files, harmful, changes
):
    """Losses of every prompt, and gradients of the adapter, through encoder and decoder, whose
    logits are bounded; the state is the sampler's own before its first step."""
    trainer = mosa_trainer(tmp_path, phrase_files, harmful, **changes)
    policy, config = trainer.diffusion_model, trainer.config
    parameters = [p for p in policy.network.parameters() if p.requires_grad]
    safe, bad = trainer.draw_phrases(list(range(8)))
    masked = ResponseState(torch.zeros(LENGTH).long(), torch.ones(LENGTH).bool())
    prompts = [example.prompt_ids for example in trainer.examples]
    canvas = build_canvas(policy, prompts, [masked] * 8, noise_seed=trainer.noise_seed)
    losses = reference.losses(
        policy,
        noise_model(),
        prompts,
        [phrase.variants[0] for (phrase,) in safe],
        [phrase.variants[0] for (phrase,) in bad],
        window=(config.window_start, config.window_end),
        response_length=LENGTH,
        beta=config.beta,
        noise_seed=canvas.noise_seeds,
    )
    plain = torch.autograd.grad(losses.mean(), parameters)
    ours = trainer.harmful_losses(policy.network, list(range(8)))
    torch.testing.assert_close(ours, losses, rtol=1e-4, atol=1e-4)
    found = torch.autograd.grad(ours.mean(), parameters)
    for one, other in zip(found, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-3, atol=2e-4)
    assert sum(g.abs().sum() for g in plain) > 0


def test_each_pass_over_the_data_has_other_noise(tmp_path, phrase_files, harmful):
    trainer = mosa_trainer(tmp_path, phrase_files, harmful)
    seen, noised = [], of_noise.noised

    def note(tokens, real, response_start, mask_token_id, seeds):
        seen.append(seeds.tolist())
        return noised(tokens, real, response_start, mask_token_id, seeds)

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(of_noise, "noised", note)
        for epoch in (0, 1):
            trainer.state.epoch = float(epoch)
            trainer.harmful_losses(trainer.diffusion_model.network, [0, 1])
    first, *others = seen
    assert first[0] != first[1]  # two prompts
    # Encoder and decoder, reference and policy have one noise, which the next pass has not.
    assert others == [first] * 3 + [others[-1]] * 4 and not set(first) & set(others[-1])


def test_refusals_become_likelier(tmp_path, phrase_files, harmful, benign):
    """The robust kind with all its terms, which moves on noise as it does on masks."""
    changes = {
        "random_reveal_weight": 1.0,
        "prefix_weight": 1.0,
        "revealed": "around",
        "contaminated_window": "response",
        "harmful_bound": "hinge",
        "harmful_target": "answer",
        "benign_beta": 0.1,
        "max_steps": 30,
        "learning_rate": 1e-2,
        "max_grad_norm": 1.0,
        "logging_steps": 1.0,
    }
    trainer = mosa_trainer(tmp_path, phrase_files, harmful, benign, **changes)
    trainer.train()
    logs = [log["score_safe"] for log in trainer.state.log_history if "score_safe" in log]
    assert fmean(logs[-5:]) > fmean(logs[:5]) + 1


def test_a_response_of_several_canvases_is_trained_by_canvas(tmp_path, phrase_files, harmful):
    """As blocks are; one canvas alone has the whole window."""
    config = MosaConfig(**{**BASE, **phrase_files, "output_dir": str(tmp_path)})
    model = noise_model(8)
    add_adapter(model, config)
    trainer = MosaTrainer(model, config, harmful)
    assert trainer.in_blocks
    with torch.no_grad():
        losses = trainer.harmful_losses(model.network, list(range(8)))
    assert bool(losses.isfinite().all())
    assert not mosa_trainer(tmp_path / "one", phrase_files, harmful).in_blocks


def test_supervised_training_says_what_stands_at_every_position(tmp_path, harmful):
    """The mean cross-entropy of the answer, noised at places or not."""
    config = SftConfig(
        **{
            key: value
            for key, value in BASE.items()
            if key not in ("window_start", "window_end", "lora_r")
        },
        output_dir=str(tmp_path),
        lora_r=4,
    )
    model = noise_model()
    add_adapter(model, config)
    disturb(model)
    trainer = SftTrainer(model, config, harmful[:2])
    seen = []
    hidden_states = model.hidden_states

    def note(tokens, attended, columns, **arguments):
        seen.append((tokens, attended, columns, arguments))
        return hidden_states(tokens, attended, columns, **arguments)

    model.hidden_states = note  # type: ignore[method-assign]
    with torch.no_grad():
        losses = trainer.example_losses(model.network, [0, 1])
    ((tokens, attended, columns, arguments),) = seen
    arguments.pop("network")
    with torch.no_grad():
        logits = model.logits(tokens, attended, columns, **arguments)
    answers = arguments["written"][:, columns]
    log_probs = logits.log_softmax(-1).gather(-1, answers[..., None])[..., 0]
    torch.testing.assert_close(losses, -log_probs.mean(dim=1), rtol=1e-5, atol=1e-5)
    assert 0 < int((tokens == model.mask_token_id).sum()) < tokens[:, columns].numel()


def test_what_rests_on_masks_is_refused(tmp_path, harmful):
    model = noise_model()
    config = VrpoConfig(output_dir=str(tmp_path), use_cpu=True, response_length=LENGTH)
    add_adapter(model, config)
    with refuses("vrpo"):
        VrpoTrainer(model, config, harmful)
    canvas = Canvas.from_prompts(model, "how do i bake bread", max_new_tokens=2)
    with refuses("mask"):
        log_likelihood_bound(model, canvas.pin(0, [1, 2]))
