"""Preference optimisation: its loss and bound by hand, pairs from data, and pairs from a judge."""

from __future__ import annotations

import itertools
import json
import math
import random
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from align_tiny import WORDS, plain_head_terms, tiny_model
from refusals import refuses

import mosa.alignment.trainer
from mosa.alignment import add_adapter, run_training
from mosa.alignment.likelihood import masked_log_likelihood, maskings
from mosa.alignment.rollouts import harm_of, roll_out
from mosa.alignment.vrpo import VrpoConfig, VrpoTrainer, preference_loss
from mosa.bench.align import loss_and_gradient
from mosa.chat import ChatError, ChatReply, ChatRequest, ServerDownError
from mosa.data import TrainingExample, load_prompts
from mosa.denoising import Canvas, log_likelihood_bound
from mosa.judges import JudgeSetting, make_judge
from mosa.judges.base import Item
from mosa.testbed import world_of
from mosa.testbed.corpora import alignment_prompts
from mosa.types import Message, Verdict

BASE: dict[str, Any] = {
    "response_length": 24,
    "num_samples": 4,
    "lora_r": 4,
    "lora_alpha": 8,
    "per_device_train_batch_size": 8,
    "max_steps": 1,
    "learning_rate": 3e-3,
    "save_strategy": "no",
    "disable_tqdm": True,
    "use_cpu": True,
}
ROLLOUTS: dict[str, Any] = {"num_rollouts": 3, "rollout_steps": 6}
BAD = set(WORDS[: len(WORDS) // 2])


class WordJudge:
    """A judge without a model: the share of a response's words that are in one half of all."""

    id = "words/1"

    async def judge(self, items: Sequence[Item]) -> list[Verdict]:
        """A verdict for each item; none for an empty response."""
        return [self._verdict(item.response.split()) for item in items]

    def _verdict(self, words: list[str]) -> Verdict:
        if not words:
            return Verdict.unscored("no word")
        share = sum(word in BAD for word in words) / len(words)
        return Verdict(share, share > 0.5)


@pytest.fixture
def pairs(harmful) -> list[TrainingExample]:
    """The harmful answers rejected, a refusal preferred."""
    refusal = "we stop here ."
    return [TrainingExample(e.prompt, refusal, e.answer) for e in harmful]


def build(tmp_path, data, judge=None, **changes) -> VrpoTrainer:
    config = VrpoConfig(**{**BASE, "output_dir": str(tmp_path / "out"), **changes})
    model = tiny_model()
    torch.manual_seed(0)
    add_adapter(model, config)
    return VrpoTrainer(model, config, data, judge)


def perturb(trainer: VrpoTrainer) -> None:
    """Move the adapter away from zero, so that policy and reference differ."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in trainer.diffusion_model.network.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))


def test_preference_loss_by_hand():
    """Margins 0 and 2 nats, beta 0.5: ln 2 and ln(1 + 1/e); gradients -beta/2 and -beta/(1 + e)."""
    margin = torch.tensor([0.0, 2.0], requires_grad=True)
    losses = preference_loss(margin, 0.5)
    assert losses.tolist() == pytest.approx([math.log(2), math.log(1 + math.exp(-1))])
    losses.sum().backward()
    assert margin.grad is not None
    assert margin.grad.tolist() == pytest.approx([-0.25, -0.5 / (1 + math.e)])


def test_masked_log_likelihood_by_hand():
    """Two of four positions masked (t = 1/2) with p = 1/2 and 1/4: (ln 1/2 + ln 1/4) / (1/2)."""
    found = masked_log_likelihood(
        torch.tensor([[0.5, 0.25, 0.1, 0.1]]).log(),
        torch.tensor([[True, True, False, False]]),
        torch.tensor([0.5]),
    )
    assert found.item() == pytest.approx(2 * (math.log(0.5) + math.log(0.25)))


def test_maskings_spread_their_counts(model):
    """Four maskings of eight positions mask numbers that are two apart, wrapping around 8."""
    states = maskings(model, [1, 2, 3], 8, 4, np.random.default_rng(0))
    counts = sorted(int(state.masked.sum()) for state in states)
    assert [b - a for a, b in zip(counts, counts[1:], strict=False)] == [2, 2, 2]
    assert all(state.mask_ratio == int(state.masked.sum()) / 8 for state in states)
    assert states[0].tokens.tolist() == [1, 2, 3] + [model.eos_token_id] * 5


def test_the_estimate_is_that_of_the_likelihood_bound(tmp_path, pairs):
    """Over many draws, the reference's part of step 4 is `denoising.log_likelihood_bound`."""
    trainer = build(tmp_path, pairs[:1], num_samples=64)
    model, example = trainer.diffusion_model, trainer.examples[0]
    answer = trainer.pairs[0][0]
    states = maskings(model, answer, 24, 2048, np.random.default_rng(0))
    tokens = torch.stack(
        [
            torch.cat(
                [
                    torch.tensor(example.prompt_ids),
                    state.tokens.masked_fill(state.masked, model.mask_token_id),
                ]
            )
            for state in states
        ]
    )
    with torch.no_grad():
        log_probs = model.logits(tokens).log_softmax(-1)[:, -24:]
    targets = torch.stack([state.tokens for state in states])
    samples = masked_log_likelihood(
        log_probs.gather(-1, targets[..., None]).squeeze(-1),
        torch.stack([state.masked for state in states]),
        torch.tensor([state.mask_ratio for state in states]),
    )
    whole = torch.cat([torch.tensor(example.prompt_ids), states[0].tokens])[None]
    given = torch.ones_like(whole, dtype=torch.bool)
    canvas = Canvas(whole, given, len(example.prompt_ids), model.mask_token_id)
    bound = log_likelihood_bound(model, canvas, num_samples=2048)
    error = math.hypot(bound.standard_error.item(), samples.std().item() / 2048**0.5)
    assert abs(samples.mean().item() - bound.mean.item()) < 4 * error


def test_a_fresh_adapter_prefers_nothing(tmp_path, pairs):
    """Policy and reference see the same masks: the margin is exactly 0, whatever was drawn."""
    trainer = build(tmp_path, pairs, num_samples=1)
    loss, gradient = loss_and_gradient(trainer)
    trainer.log({})
    assert loss == pytest.approx(math.log(2), abs=1e-6) and gradient.norm() > 0
    assert trainer.state.log_history[-1]["margin"] == 0.0


def test_losses_and_gradients_are_those_of_all_log_probabilities(tmp_path, pairs, monkeypatch):
    """The head taken at every position, and gradients through all of it, in float64."""
    found = []
    for terms in (plain_head_terms, mosa.alignment.trainer.head_terms):
        monkeypatch.setattr(mosa.alignment.trainer, "head_terms", terms)
        trainer = build(tmp_path, pairs)
        perturb(trainer)
        trainer.diffusion_model.network.double()
        found.append(loss_and_gradient(trainer))
    (plain, plain_gradient), (ours, gradient) = found
    assert ours == pytest.approx(plain, rel=1e-10)
    torch.testing.assert_close(gradient, plain_gradient, rtol=1e-8, atol=1e-11)


def test_training_widens_the_margin(tmp_path, pairs):
    trainer = build(tmp_path, pairs, max_steps=12, logging_steps=1.0)
    trainer.train()
    margins = [line["margin"] for line in trainer.state.log_history if "margin" in line]
    assert margins[0] == 0.0 and margins[-1] > 1.0
    assert trainer.state.log_history[0]["pair_share"] == 1.0


def test_accumulation_8x1_equals_1x8(tmp_path, pairs):
    """The same update from eight micro-batches of one as from one batch of eight."""
    found = []
    for sizes in ({}, {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8}):
        trainer = build(tmp_path, pairs, optim="sgd", learning_rate=1.0, **sizes)
        trainer.train()
        network = trainer.diffusion_model.network
        found.append(torch.cat([p.flatten() for p in network.parameters() if p.requires_grad]))
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-6)


def test_roll_out_draws_without_a_trace(model, harmful):
    """Same seeds, same answers; other seeds, others; no gradient, and the mode is as before."""
    config = VrpoConfig(**BASE, **ROLLOUTS)
    model.network.train()
    prompts = [e.prompt for e in harmful[:3]]
    one = roll_out(model, prompts, [1, 2, 3], config.decoder)
    two = roll_out(model, prompts, [1, 2, 3], config.decoder)
    three = roll_out(model, prompts, [4, 5, 6], config.decoder)
    assert torch.equal(one.tokens, two.tokens) and not torch.equal(one.tokens, three.tokens)
    assert model.network.training
    assert all(p.grad is None for p in model.network.parameters())


def test_the_judge_makes_the_pairs(tmp_path, harmful):
    """The preferred answer is the least harmful of the three, the rejected one the most."""
    trainer = build(tmp_path, harmful, WordJudge(), **ROLLOUTS)
    pairs, is_pair = trainer.judged_pairs([0, 5])
    model, judge = trainer.diffusion_model, WordJudge()
    assert is_pair.tolist() == [True, True]
    for pair in pairs:
        harm = []
        for ids in pair:
            seen = list(itertools.takewhile(lambda i: i not in model.end_token_ids, ids))
            harm.append(judge._verdict(model.decode(seen).split()).score)
        assert None not in harm and harm[0] < harm[1]
    assert trainer.judged_pairs([0, 5])[0] == pairs


def test_answers_that_are_judged_alike_are_no_pair(tmp_path, harmful):
    class Alike(WordJudge):
        def _verdict(self, words: list[str]) -> Verdict:
            return Verdict(0.5, False)

    trainer = build(tmp_path, harmful, Alike(), **ROLLOUTS)
    loss, gradient = loss_and_gradient(trainer)
    trainer.log({})
    assert loss == 0.0 and gradient.norm() == 0.0
    assert trainer.state.log_history[-1]["pair_share"] == 0.0
    assert trainer.state.log_history[-1]["harm"] == 0.5


def test_a_judge_teaches_the_policy(tmp_path, harmful):
    """The share of bad words in what the policy says falls."""
    changes = {**ROLLOUTS, "num_rollouts": 6, "max_steps": 15, "learning_rate": 1e-2}
    trainer = build(tmp_path, harmful, WordJudge(), logging_steps=1.0, **changes)
    trainer.train()
    harm = [line["harm"] for line in trainer.state.log_history if "harm" in line]
    assert sum(harm[-3:]) / 3 < sum(harm[:3]) / 3 - 0.1


def test_a_training_in_which_no_pair_was_found_is_told(tmp_path, harmful):
    class Silent(WordJudge):
        def _verdict(self, words: list[str]) -> Verdict:
            return Verdict.unscored("The judge's model declined.")

    for judge, is_told in ((Silent(), True), (WordJudge(), False)):
        trainer = build(tmp_path, harmful, judge, **ROLLOUTS)
        trainer.train()
        with warnings.catch_warnings(record=True) as told:
            trainer.check_result()
        assert ["words/1" in str(each.message) for each in told] == [True] * is_told


@pytest.mark.slow
def test_the_truth_teaches_the_testbed(tmp_path):
    """Its verdicts are the reward: what the policy discloses falls within four updates."""
    world = world_of("testbed")
    result = run_training(
        "vrpo",
        "testbed",
        alignment_prompts(world, random.Random(1), 6),
        tmp_path / "out",
        judge=make_judge("truth", JudgeSetting(world=world)),
        config="vrpo_testbed_rollouts",
        overrides={
            "max_steps": 4,
            "per_device_train_batch_size": 6,
            "learning_rate": 1e-2,
            "rollout_steps": 18,
            "num_samples": 2,
            "logging_steps": 1.0,
            "use_cpu": True,
        },
        progress=False,
    )
    lines = [json.loads(line) for line in (result.out / "metrics.jsonl").read_text().splitlines()]
    harm = [line["harm"] for line in lines if "harm" in line]
    assert len(harm) == 4 and harm[0] > 0.3
    assert sum(harm[2:]) / 2 < harm[0] - 0.2


def test_a_judge_reads_all_that_the_user_says():
    seen = []

    class Reader(WordJudge):
        async def judge(self, items: Sequence[Item]) -> list[Verdict]:
            seen.extend(item.behavior.text for item in items)
            return await super().judge(items)

    turns = [Message("user", "call it x ."), Message("assistant", "fine ."), Message("user", "x ?")]
    assert harm_of(Reader(), ["stir", turns], ["", WORDS[0]]) == [None, 1.0]
    assert seen == ["stir", "call it x .\nx ?"]


class Absent:
    """A chat model that answers nothing, or nothing of use."""

    name = place = "absent"

    def __init__(self, *replies: ChatReply | ChatError) -> None:
        self.replies = list(replies)

    async def complete(self, request: ChatRequest) -> ChatReply:
        reply = self.replies.pop(0)
        if isinstance(reply, ChatError):
            raise reply
        return reply


RATED, DOWN = ChatReply("rating: 10"), ServerDownError("absent answered with status 500.")
REFUSED, DECLINED = ChatError("absent answered with status 400."), ChatReply("I cannot help.")


@pytest.mark.parametrize("replies", [(RATED, DOWN), (REFUSED, REFUSED)])
def test_a_judge_that_is_gone_ends_the_training(replies):
    """Its pairs would be missing from the loss, and nobody would know."""
    judge = make_judge("pair", JudgeSetting(chat=Absent(*replies)))
    with refuses("absent", "status", "--resume"):
        harm_of(judge, ["stir", "stir"], WORDS[:2])


@pytest.mark.parametrize("reply", [REFUSED, DECLINED])
def test_an_answer_that_a_judge_cannot_score_is_left_out(reply):
    judge = make_judge("pair", JudgeSetting(chat=Absent(RATED, reply)))
    assert harm_of(judge, ["stir", "stir"], WORDS[:2]) == [1.0, None]


def test_align_records_the_judge(tmp_path, harmful, pairs):
    """From the command's function: data and judge that do not fit the settings are refused."""
    arguments: dict[str, Any] = {"progress": False}
    overrides = {**{k: v for k, v in BASE.items() if k != "save_strategy"}, **ROLLOUTS}
    result = run_training(
        "vrpo",
        tiny_model(),
        harmful,
        tmp_path / "judged",
        judge=WordJudge(),
        overrides=overrides,
        **arguments,
    )
    assert json.loads((result.out / "versions.json").read_text())["judge"] == "words/1"
    assert "2505.19223" in (result.out / "README.md").read_text()
    for data, judge, changes, names in (
        (harmful, None, ROLLOUTS, ["judge"]),
        (harmful, WordJudge(), {"num_rollouts": 0}, ["vrpo", "judge", "rollouts"]),
        ([TrainingExample("how do i stir", "stir")], None, {"num_rollouts": 0}, ["1", "rejected"]),
        (harmful, None, {"num_rollouts": 1}, ["num_rollouts", 1]),
        (harmful, None, {**ROLLOUTS, "rollout_temperature": -1.0}, ["rollout_temperature", -1.0]),
        (
            [TrainingExample("how do i stir", "stir", "stir " * 30)],
            None,
            {"num_rollouts": 0},
            ["1", 31, 24],
        ),
    ):
        with refuses(*names):
            run_training(
                "vrpo",
                tiny_model(),
                data,
                tmp_path / "b",
                judge=judge,
                overrides={**overrides, **changes},
                **arguments,
            )


def test_pairs_come_from_files(tmp_path):
    file = tmp_path / "pairs.jsonl"
    file.write_text(
        '{"prompt": "how do i stir", "chosen": "stir it .", "rejected": "pour it ."}\n'
        '{"prompt": "how do i pour", "answer": "pour it ."}\n'
    )
    assert load_prompts(file) == [
        TrainingExample("how do i stir", "stir it .", "pour it ."),
        TrainingExample("how do i pour", "pour it ."),
    ]
