"""The MOSA trainer on a tiny random model: what moves, which way, and that nothing else does."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from align_tiny import plain_head_terms, tiny_model
from refusals import refuses
from torch import nn

import mosa.alignment.trainer
from mosa.alignment import MosaConfig, MosaTrainer, add_adapter
from mosa.alignment.head_loss import head_terms
from mosa.alignment.states import build_canvas, harmful_state, rng
from mosa.bench.align import loss_and_gradient

BASE: dict[str, Any] = {
    "response_length": 24,
    "window_start": 5,
    "window_end": 20,
    "lora_r": 4,
    "lora_alpha": 8,
    "per_device_train_batch_size": 8,
    "max_steps": 1,
    "max_grad_norm": 1.0,
    "learning_rate": 3e-3,
    "save_strategy": "no",
    "disable_tqdm": True,
    "use_cpu": True,
}
CONTAMINATED = {"random_reveal_weight": 1.0, "prefix_weight": 1.0, "revealed": "around"}
ROBUST = {
    **CONTAMINATED,
    "contaminated_window": "response",
    "harmful_bound": "hinge",
    "harmful_target": "answer",
    "benign_beta": 0.1,
}


def build(
    tmp_path,
    phrase_files,
    harmful,
    benign=None,
    model=None,
    **changes,
) -> MosaTrainer:
    config = MosaConfig(**{**BASE, **phrase_files, "output_dir": str(tmp_path / "out"), **changes})
    model = tiny_model() if model is None else model
    torch.manual_seed(0)
    add_adapter(model, config)
    return MosaTrainer(model, config, harmful, benign)


def measure(trainer: MosaTrainer, benign: bool = False) -> dict[str, float]:
    """The tracked figures of the whole data set, without a step."""
    network = trainer.diffusion_model.network
    indices = list(range(len(trainer.examples)))
    with torch.no_grad():
        losses = trainer.harmful_losses(network, indices)
        if benign:
            losses = losses + trainer.benign_losses(network, indices)
    trainer.log({})
    return {**trainer.state.log_history[-1], "loss": losses.mean().item()}


def adapter(trainer: MosaTrainer) -> dict[str, torch.Tensor]:
    named = trainer.diffusion_model.network.named_parameters()
    return {name: p.detach().clone() for name, p in named if p.requires_grad}


def perturb(trainer: MosaTrainer) -> None:
    """Move the adapter away from zero, so that policy and reference differ."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in trainer.diffusion_model.network.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))


def test_kl_is_zero_at_the_start(tmp_path, phrase_files, harmful, benign):
    """A fresh adapter is the reference, on harmful prompts in every state and on benign ones."""
    trainer = build(tmp_path, phrase_files, harmful, benign, **ROBUST)
    figures = measure(trainer, benign=True)
    assert figures["kl"] == 0.0 and figures["kl_benign"] == 0.0
    perturb(trainer)
    figures = measure(trainer, benign=True)
    assert figures["kl"] > 0.01 and figures["kl_benign"] > 0.01


def test_adapter_disabled_is_the_base_model(tmp_path, phrase_files, harmful):
    trainer = build(tmp_path, phrase_files, harmful)
    trainer.train()
    model, base = trainer.diffusion_model, tiny_model()
    ids = torch.tensor([model.encode("how do i bake bread")])
    with torch.no_grad(), model.adapter_disabled():
        off = model.logits(ids)
    with torch.no_grad():
        assert torch.equal(off, base.logits(ids))
        assert not torch.equal(model.logits(ids), off)


def test_only_the_adapter_moves(tmp_path, phrase_files, harmful, benign):
    """All terms at once, three steps: every LoRA tensor changes and no other does."""
    trainer = build(tmp_path, phrase_files, harmful, benign, max_steps=3, **ROBUST)
    before = copy.deepcopy(trainer.diffusion_model.network.state_dict())
    trainer.train()
    for name, tensor in trainer.diffusion_model.network.state_dict().items():
        assert torch.equal(tensor, before[name]) == ("lora_" not in name), name


@pytest.mark.parametrize(
    ("changes", "figure", "sign"),
    [
        ({"harmful_weight": 0.0, "beta": 0.0}, "score_safe", 1),
        ({"harmful_weight": 1e4, "beta": 0.0}, "score_harmful", -1),
        ({"beta": 0.0}, "reward", 1),
        ({"harmful_weight": 1e4, "beta": 0.0, "harmful_bound": "hinge"}, "score_harmful", -1),
        ({"harmful_weight": 1e4, "beta": 0.0, "harmful_target": "answer"}, "score_answer", -1),
        (
            {"harmful_weight": 0.0, "beta": 0.0, "fully_masked_weight": 0.0, **CONTAMINATED},
            "score_safe",
            1,
        ),
    ],
)
def test_a_step_moves_each_score_the_right_way(
    tmp_path, phrase_files, harmful, changes, figure, sign
):
    trainer = build(tmp_path, phrase_files, harmful, phrase_sampling="full_set", **changes)
    before = measure(trainer)[figure]
    trainer.train()
    trainer.state.epoch = 0.0  # the same draws as before
    assert sign * (measure(trainer)[figure] - before) > 0.01


@pytest.mark.parametrize(
    ("changes", "figure"),
    [
        ({"beta": 1e4}, "kl"),
        ({"beta": 0.0, "benign_beta": 1e4}, "kl_benign"),
    ],
)
def test_a_step_keeps_near_the_reference(tmp_path, phrase_files, harmful, benign, changes, figure):
    """From a disturbed adapter, each regulariser brings its own figure down where it outweighs all
    else."""
    trainer = build(
        tmp_path,
        phrase_files,
        harmful,
        benign[:2],
        harmful_weight=0.0,
        **changes,
    )
    perturb(trainer)
    use_benign = trainer.config.benign_beta > 0
    before = measure(trainer, use_benign)[figure]
    trainer.train()
    trainer.state.epoch = 0.0
    assert measure(trainer, use_benign)[figure] < before


def train(tmp_path, name, phrase_files, harmful, benign, **changes) -> dict[str, torch.Tensor]:
    trainer = build(tmp_path / name, phrase_files, harmful, benign, **changes)
    trainer.train()
    return adapter(trainer)


@pytest.mark.parametrize("changes", [{}, ROBUST], ids=["paper", "robust"])
def test_accumulation_8x1_equals_1x8(tmp_path, phrase_files, harmful, benign, changes):
    """The same updates from eight micro-batches of one as from one batch of eight."""
    changes = {**changes, "max_steps": 2, "optim": "sgd", "learning_rate": 1.0}
    sizes = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8}
    one = train(tmp_path, "one", phrase_files, harmful, benign, **changes)
    many = train(tmp_path, "many", phrase_files, harmful, benign, **changes, **sizes)
    start = adapter(build(tmp_path, phrase_files, harmful, benign, **changes))
    for name in one:
        torch.testing.assert_close(many[name], one[name], rtol=1e-4, atol=1e-6)
    assert any((one[name] - start[name]).abs().max() > 1e-3 for name in one)


def test_uneven_micro_batches_weigh_examples_alike(tmp_path, phrase_files, harmful, benign):
    """Three examples as 2 + 1 give the update of one batch of three, not a mean of means."""
    changes = {"optim": "sgd", "learning_rate": 1.0, "train_sampling_strategy": "sequential"}
    whole = train(tmp_path, "whole", phrase_files, harmful[:3], benign, **changes)
    changes |= {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    split = train(tmp_path, "split", phrase_files, harmful[:3], benign, **changes)
    for name in whole:
        torch.testing.assert_close(split[name], whole[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "changes",
    [pytest.param(ROBUST, id="robust"), pytest.param({}, id="paper", marks=pytest.mark.slow)],
)
def test_resumed_equals_uninterrupted(tmp_path, phrase_files, harmful, benign, changes):
    """Ten steps over more than two epochs; stopped at four, seven. Equal to the last bit."""
    changes = {**changes, "per_device_train_batch_size": 2, "max_steps": 10, "save_steps": 1.0}
    changes |= {"save_total_limit": None, "logging_steps": 1.0}
    straight = train(tmp_path, "straight", phrase_files, harmful, benign, **changes)
    changes["save_strategy"] = "steps"
    first = build(tmp_path, phrase_files, harmful, benign, **changes)
    first.train()
    for step in (4, 7):
        resumed = build(tmp_path, phrase_files, harmful, benign, **changes)
        resumed.train(resume_from_checkpoint=str(tmp_path / "out" / f"checkpoint-{step}"))
        for name, tensor in adapter(resumed).items():
            assert torch.equal(tensor, straight[name]), name


VARIANTS = {
    "paper": {},
    "robust": ROBUST,
    "phrases": {**ROBUST, "harmful_target": "phrase", "kl_reduction": "mean"},
    "window": {**CONTAMINATED, "revealed": "free", "start_reduction": "logsumexp"},
    "no_kl": {"beta": 0.0, "breaker": "fill", "harmful_bound": "clamp"},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_losses_and_gradients_are_those_of_all_log_probabilities(
    tmp_path, phrase_files, harmful, benign, name, monkeypatch
):
    """The head taken at every position, and gradients through all of it, in float64."""
    found = []
    for terms in (plain_head_terms, head_terms):
        monkeypatch.setattr(mosa.alignment.trainer, "head_terms", terms)
        trainer = build(tmp_path, phrase_files, harmful, benign[:2], **VARIANTS[name])
        perturb(trainer)
        network = trainer.diffusion_model.network.double()
        loss, gradient = loss_and_gradient(trainer)
        trainer.log({})
        found.append((loss, gradient, trainer.state.log_history[-1]))
        assert all(p.grad is None for n, p in network.named_parameters() if "lora_" not in n)
    (plain, plain_gradient, plain_logs), (ours, gradient, logs) = found
    assert ours == pytest.approx(plain, rel=1e-12)
    torch.testing.assert_close(gradient, plain_gradient, rtol=1e-9, atol=1e-12)
    assert logs == pytest.approx(plain_logs, rel=1e-5, abs=1e-6)


def test_activation_checkpointing_changes_no_weight(tmp_path, phrase_files, harmful, benign):
    """Layers are computed again in the backward pass, to the same bits."""
    runs = []
    for checkpointing in (False, True):
        trainer = build(
            tmp_path,
            phrase_files,
            harmful,
            benign,
            max_steps=2,
            activation_checkpointing=checkpointing,
            **ROBUST,
        )
        network, count = trainer.diffusion_model.network, []
        path = "base_model.model.model.layers.0.self_attn.q_proj"
        network.get_submodule(path).register_forward_hook(lambda *_, count=count: count.append(1))
        trainer.train()
        runs.append((len(count), adapter(trainer)))
    (plain_calls, plain), (checkpointed_calls, checkpointed) = runs
    # Harmful and benign prompts, policy and reference: four passes, and two recomputations.
    assert plain_calls == 8 and checkpointed_calls == 12
    for name, tensor in plain.items():
        assert torch.equal(checkpointed[name], tensor), name


def test_prompts_of_like_length_go_together(tmp_path, phrase_files, harmful):
    """Sampling by length makes batches of nearly one length, and sees every prompt once."""
    trainer = build(
        tmp_path,
        phrase_files,
        harmful * 8,
        per_device_train_batch_size=8,
        train_sampling_strategy="group_by_length",
        max_steps=-1,
    )
    seen, padded = [], 0
    for batch in trainer.get_train_dataloader():
        lengths = [len(trainer.examples[i].prompt_ids) for i in batch["index"].tolist()]
        seen += batch["index"].tolist()
        padded += sum(max(lengths) - length for length in lengths)
    assert sorted(seen) == list(range(64))
    longest = max(len(example.prompt_ids) for example in trainer.examples)
    assert padded < 0.5 * sum(longest - len(e.prompt_ids) for e in trainer.examples)


def test_a_model_without_an_adapter_is_refused(phrase_files, harmful, tmp_path):
    config = MosaConfig(**{**BASE, **phrase_files, "output_dir": str(tmp_path)})
    with refuses("LLaDA", "add_adapter"):
        MosaTrainer(tiny_model(), config, harmful)


def test_draws_depend_on_example_and_epoch_alone(harmful, model):
    from mosa.alignment.states import encode_examples

    config = MosaConfig(**{**BASE, **CONTAMINATED})
    examples = encode_examples(model, harmful, config.response_length)
    once = [harmful_state(e, config, rng(1, 0, e.index, 0)) for e in examples]
    again = [harmful_state(e, config, rng(1, 0, e.index, 0)) for e in reversed(examples)]
    for a, b in zip(once, reversed(again), strict=True):
        assert a.state == b.state and torch.equal(a.masked, b.masked)
    later = [harmful_state(e, config, rng(1, 1, e.index, 0)) for e in examples]
    assert any(not torch.equal(a.masked, b.masked) for a, b in zip(once, later, strict=True))


def test_one_reference_and_one_policy_pass_and_the_head_where_needed(
    tmp_path, phrase_files, harmful, monkeypatch
):
    """Window 5..20 of a response of 24: phrases are sought at sixteen positions of each row, the KL
    is taken at all, and nothing is asked of the prompt."""
    trainer = build(tmp_path, phrase_files, harmful)
    model, calls, questions = trainer.diffusion_model, [], []
    hidden_states = model.hidden_states

    def spy(input_ids, attention_mask, positions, **settings):
        result = hidden_states(input_ids, attention_mask, positions, **settings)
        calls.append((input_ids.shape[1], positions, result.requires_grad))
        return result

    def spy_head(head, policy, reference, asked, **bound):
        questions.append(asked)
        return head_terms(head, policy, reference, asked, **bound)

    monkeypatch.setattr(model, "hidden_states", spy)
    monkeypatch.setattr(mosa.alignment.trainer, "head_terms", spy_head)
    trainer.harmful_losses(model.network, list(range(8)))
    assert [needs_grad for _, _, needs_grad in calls] == [False, True]
    for width, positions, _ in calls:
        assert positions.tolist() == list(range(width - 24, width))
    window = questions[0].log_probs
    assert all(row.nonzero().flatten().tolist() == list(range(4, 20)) for row in window)
    assert questions[0].kl.all()
    assert not questions[0].of_reference
    calls.clear()
    trainer.config.beta = 0.0
    trainer.harmful_losses(model.network, list(range(8)))
    assert len(calls) == 1 and not questions[1].kl.any()


def test_metrics_are_logged(tmp_path, phrase_files, harmful, benign):
    trainer = build(tmp_path, phrase_files, harmful, benign, logging_steps=1.0, **ROBUST)
    trainer.train()
    logs = trainer.state.log_history[0]
    for name in ("reward", "score_safe", "score_harmful", "score_answer", "kl", "kl_benign"):
        assert isinstance(logs[name], float), name
    assert logs["grad_norm"] > 0 and 1 <= logs["best_start"] <= 24
    assert logs["reward"] == pytest.approx(logs["score_safe"] - logs["score_harmful"], rel=1e-4)
    assert 0 <= logs["refusal_share"] <= 1 and logs["scored_share"] == 1.0


def test_refusal_share_and_best_start_on_a_model_that_refuses(
    tmp_path, phrase_files, harmful, monkeypatch
):
    """Logits made to spell a refusal at position 8 (1-based): share 1, best start 8, score ~ 0."""
    trainer = build(tmp_path, phrase_files, harmful, phrase_sampling="full_set")
    model = trainer.diffusion_model
    phrase = trainer.safe_phrases[1].variants[0]

    def refuse(input_ids, attention_mask, positions, **settings):
        """Logits as hidden states, for a head that leaves them as they are."""
        assert positions is not None
        logits = torch.zeros(len(input_ids), len(positions), model.vocab_size)
        start = input_ids.shape[1] - 24 + 7
        for column, position in enumerate(positions.tolist()):
            if start <= position < start + len(phrase):
                logits[:, column, phrase[position - start]] = 30.0
        return logits

    trainer.safe_phrases = trainer.safe_phrases[1:]
    unity = nn.Linear(model.vocab_size, model.vocab_size, bias=False).requires_grad_(False)
    nn.init.eye_(unity.weight)
    monkeypatch.setattr(model, "hidden_states", refuse)
    monkeypatch.setattr(mosa.alignment.trainer, "frozen_head", lambda model: unity)
    figures = measure(trainer)
    assert figures["refusal_share"] == 1.0 and figures["best_start"] == 8.0
    assert figures["score_safe"] == pytest.approx(0.0, abs=1e-6)


def test_states_reveal_what_they_say(model, harmful):
    """Random reveal and prefix show tokens of the answer, never beyond it; the rest is masked."""
    from mosa.alignment.states import encode_examples

    shares = {"fully_masked": 0, "random_reveal": 0, "prefix": 0}
    config = MosaConfig(**{**BASE, **CONTAMINATED})
    examples = encode_examples(model, harmful, config.response_length)
    for epoch in range(20):
        for e in examples:
            state = harmful_state(e, config, rng(0, epoch, e.index, 0))
            shares[state.state] += 1
            revealed = (~state.masked).nonzero().flatten()
            answer = e.answer_ids
            assert answer is not None and all(int(p) < len(answer) for p in revealed)
            if state.state == "prefix":
                assert revealed.tolist() == list(range(len(revealed)))
                assert 1 <= len(revealed) <= 40
            elif state.state == "fully_masked":
                assert len(revealed) == 0
            canvas = build_canvas(model, [e.prompt_ids], [state], noise_seed=0)
            tokens, attended = canvas.tokens, canvas.attended
            response = tokens[0, -24:]
            for position in range(24):
                expected = model.mask_token_id if state.masked[position] else answer[position]
                assert response[position] == expected
            assert attended.all()
    assert all(count > 30 for count in shares.values())


def test_canvas_is_left_padded(model, harmful):
    from mosa.alignment.states import ResponseState, encode_examples

    examples = encode_examples(model, [harmful[0], harmful[6]], 4)
    blank = ResponseState(torch.zeros(4, dtype=torch.long), torch.ones(4, dtype=torch.bool))
    prompts = [e.prompt_ids for e in examples]
    canvas = build_canvas(model, prompts, [blank, blank], noise_seed=0)
    tokens, attended = canvas.tokens, canvas.attended
    difference = len(prompts[1]) - len(prompts[0])
    assert difference > 0
    assert tokens[0, difference:-4].tolist() == prompts[0]
    assert attended[0].tolist() == [False] * difference + [True] * (tokens.shape[1] - difference)
    assert (tokens[:, -4:] == model.mask_token_id).all()


def test_diverged_training_says_so(tmp_path, phrase_files, harmful):
    trainer = build(tmp_path, phrase_files, harmful, logging_steps=1.0)
    with torch.no_grad():
        next(p for p in trainer.diffusion_model.network.parameters() if p.requires_grad).fill_(
            float("nan")
        )
    with refuses("score_safe", "nan", "learning_rate"):
        trainer.train()


def test_bad_data_is_named(tmp_path, phrase_files, harmful, benign):
    with refuses("harmful", "3", "answer"):
        answerless = [*harmful[:2], benign[2]]
        build(tmp_path, phrase_files, answerless, **CONTAMINATED)
    with refuses("benign", "benign_beta"):
        build(tmp_path, phrase_files, harmful, benign_beta=0.1)
    with refuses("prompt"):
        build(tmp_path, phrase_files, [])
    with refuses("1", "13", "120", "128"):
        build(tmp_path, phrase_files, harmful, response_length=120)
