"""MOSA on a block-causal model: each block as it opens, against states written down one by one."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import numpy as np
import pytest
import torch
from align_tiny import tiny_tokenizer
from refusals import refuses

from mosa.alignment import (
    MosaConfig,
    MosaTrainer,
    SftConfig,
    SftTrainer,
    add_adapter,
    reference,
)
from mosa.alignment.placing import blocks_of_window, open_block
from mosa.alignment.scoring import Window
from mosa.alignment.sft import _MASK_STREAM
from mosa.alignment.states import ResponseState, masked_answer, rng
from mosa.families import DiffusionLM, new_model
from mosa.families.attention import AttentionPattern

LENGTH = 24
BASE: dict[str, Any] = {
    "response_length": LENGTH,
    "window_start": 5,
    "window_end": 20,
    "lora_r": 4,
    "per_device_train_batch_size": 8,
    "max_steps": 1,
    "max_grad_norm": 1.0,
    "save_strategy": "no",
    "disable_tqdm": True,
    "use_cpu": True,
}


def block_model(block: int, *, begins: str = "sequence") -> DiffusionLM:
    tokenizer = tiny_tokenizer()
    config = {
        "model_type": "sdar" if begins == "sequence" else "a2d-qwen3",
        "hidden_size": 32,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "num_hidden_layers": 2,
        "intermediate_size": 64,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 128,
        "block_size": block,
        "mask_token_id": tokenizer.convert_tokens_to_ids("<|mdm_mask|>"),
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return new_model(config, tokenizer, seed=0)


def trainer_of(tmp_path, model, phrase_files, harmful, benign=None, **changes) -> MosaTrainer:
    config = MosaConfig(**{**BASE, **phrase_files, "output_dir": str(tmp_path / "out"), **changes})
    torch.manual_seed(0)
    add_adapter(model, config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.network.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return MosaTrainer(model, config, harmful, benign)


def test_the_window_by_blocks():
    """Window 6..13, blocks of 4 from token 1 and from the first token of a prompt of 7."""
    window = Window(5, 12, 13)
    parts = blocks_of_window(AttentionPattern(4, "response"), 7, window, 3)
    assert parts == [Window(5, 7, 8), Window(8, 11, 12)]
    parts = blocks_of_window(AttentionPattern(4), 7, window, 3)
    assert parts == [Window(5, 8, 9), Window(9, 12, 13)]
    # A phrase of one token has a place in the last block too; one of eight in the first alone.
    parts = blocks_of_window(AttentionPattern(4, "response"), 7, window, 1)
    assert parts[-1] == Window(12, 12, 13)
    assert blocks_of_window(AttentionPattern(4), 7, window, 8) == [Window(5, 8, 9)]


def test_which_block_is_open():
    blocks = [Window(4, 7, 8), Window(8, 11, 12), Window(12, 15, 16)]
    masked = torch.ones(16, dtype=torch.bool)
    state = ResponseState(torch.zeros(16, dtype=torch.long), masked)

    def opened(state, beginning):
        draws = [np.random.default_rng(seed) for seed in range(40)]
        return {open_block(blocks, state, beginning, random).first for random in draws}

    assert opened(state, 20) == {4, 8, 12} and opened(state, 8) == {4, 8}
    assert opened(state, 2) == {4}  # none is reached
    revealed = masked.clone()
    revealed[:9] = False
    assert opened(ResponseState(state.tokens, revealed, "prefix"), 20) == {8}


@dataclass
class OneByOne:
    """Passes over one prompt, one state each; equal states have one pass."""

    model: DiffusionLM
    prompt: list[int]
    answer: list[int]
    known: dict[tuple[bool, tuple[int, ...]], torch.Tensor] = field(default_factory=dict)

    def log_probs(
        self, position: int, written: list[int], *, is_frozen: bool = False
    ) -> torch.Tensor:
        """At a response position, with the blocks before its own as written and masks from there
        to the block's end."""
        attention, num_prompt = self.model.attention, len(self.prompt)
        place, shift = num_prompt + position, attention.shift(num_prompt)
        first, end = attention.begin_of_block(place, shift), attention.end_of_block(place, shift)
        if attention.begins == "response":
            end = min(end, num_prompt + LENGTH)
        tokens = (self.prompt + written)[:first]
        tokens += [self.model.mask_token_id] * (end - len(tokens))
        tokens[:num_prompt] = self.prompt
        state = is_frozen, tuple(tokens)
        if state not in self.known:
            with self.model.adapter_disabled() if is_frozen else nullcontext():
                logits = self.model.logits(torch.tensor([tokens]), response_start=num_prompt)
            self.known[state] = logits[0].log_softmax(-1)
        return self.known[state][place]

    def score(self, phrase: tuple[int, ...], window: Window) -> torch.Tensor:
        """The best start in a window, the phrase written as far as it goes."""
        values = []
        for start in range(window.first, window.last + 1):
            if start + len(phrase) <= window.end:
                written = (
                    self.answer[:start]
                    + [self.model.eos_token_id] * (start - len(self.answer))
                    + list(phrase)
                )
                each = [self.log_probs(start + j, written)[t] for j, t in enumerate(phrase)]
                values.append(torch.stack(each).sum())
        return torch.stack(values).max()

    def kl(self, positions: list[int]) -> torch.Tensor:
        """The sum over positions behind the answer's beginning."""
        written, values = self.answer + [self.model.eos_token_id] * LENGTH, []
        for position in positions:
            policy = self.log_probs(position, written)
            frozen = self.log_probs(position, written, is_frozen=True)
            values.append((policy.exp() * (policy - frozen)).sum())
        return torch.stack(values).sum()


@pytest.mark.parametrize("begins", ["sequence", "response"])
@pytest.mark.parametrize(
    ("phrase_sampling", "block"),
    [("one_pair", 4), ("one_pair", 16), ("full_set", 4), ("full_set", 8)],
)
def test_the_objective_is_that_of_the_states_one_by_one(
    tmp_path, phrase_files, harmful, block, begins, phrase_sampling
):
    """Blocks of 4, over which all refusals run, and of 8 and 16, into which they fit but where the
    window cuts a block: reward and KL of every prompt from plain passes over `prompt, beginning,
    phrase so far, masks`, a mean over its phrases."""
    model = block_model(block, begins=begins)
    changes = {"breaker": "eos", "beta": 0.3, "phrase_sampling": phrase_sampling}
    trainer = trainer_of(tmp_path, model, phrase_files, harmful, **changes)
    indices = list(range(len(harmful)))
    with torch.no_grad():
        found = trainer.harmful_losses(model.network, indices)
    examples = [trainer.examples[i] for i in indices]
    placed = trainer.place(examples, states_of(examples), *trainer.draw_phrases(indices))
    for row, example in enumerate(examples):
        assert example.answer_ids is not None
        oracle = OneByOne(model, example.prompt_ids, example.answer_ids)

        def score(places, oracle=oracle):
            each = [oracle.score(p.phrase.variants[0], p.window) for p in places]
            return torch.stack(each).mean()

        with torch.no_grad():
            safe, bad = score(placed.safe[row]), score(placed.harmful[row])
            kl = oracle.kl(placed.kept[row].nonzero()[:, 0].tolist())
        torch.testing.assert_close(found[row], bad - safe + 0.3 * kl, atol=2e-3, rtol=1e-3)
        # The KL counts up to the end of the open block, where the beginning is what is written.
        counted = placed.kept[row].nonzero()[:, 0].tolist()
        assert counted == list(range(len(counted)))
        assert placed.windows[row].first < len(counted)
    blocks = zip(placed.safe, placed.windows, strict=True)
    runs_over = [p.window.end > opened.end for places, opened in blocks for p in places]
    assert all(runs_over) == (block == 4)


@pytest.mark.parametrize("begins", ["sequence", "response"])
@pytest.mark.parametrize(
    ("block", "changes"),
    [
        (4, {}),
        (16, {"beta": 0.3}),
        (4, {"window_start": 1, "window_end": None}),
        (8, {"breaker": "none", "beta": 0.0}),
    ],
    ids=["runs over", "fits", "initial", "no KL"],
)
def test_the_trainer_optimises_the_plain_step(
    tmp_path, phrase_files, harmful, begins, block, changes
):
    """Losses of every prompt and gradients of the adapter against reference.py, in float64."""
    policy, other = block_model(block, begins=begins), block_model(block, begins=begins)
    trainer = trainer_of(tmp_path, policy, phrase_files, harmful, **changes)
    policy.network.double()
    other.network.double()
    indices = list(range(len(harmful)))
    placed = trainer.draw(indices)
    safe, bad = (
        [place.phrase.variants[0] for (place,) in places]
        for places in (placed.safe, placed.harmful)
    )
    losses = reference.block_losses(
        policy,
        other,
        [example.prompt_ids for example in trainer.examples],
        placed.targets[: len(indices)].tolist(),
        [(window.first + 1, window.last + 1, window.end) for window in placed.windows],
        safe,
        bad,
        beta=trainer.config.beta,
    )
    parameters = [p for p in policy.network.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(losses.mean(), parameters)
    ours = trainer.harmful_losses(policy.network, indices)
    # Qwen3's norms are taken in float32 whatever the weights are, and rows of other lengths round
    # them otherwise.
    torch.testing.assert_close(ours, losses, rtol=1e-6, atol=1e-6)
    our_gradients = torch.autograd.grad(ours.mean(), parameters)
    for gradient, our_gradient in zip(gradients, our_gradients, strict=True):
        assert (our_gradient - gradient).norm() < 1e-5 * gradient.norm()


@pytest.mark.parametrize(("block", "num_rows"), [(4, 3), (16, 1)])
def test_each_phrase_of_a_set_that_runs_over_has_a_row(
    tmp_path, phrase_files, harmful, block, num_rows
):
    """Two refusals and two continuations: three rows a prompt where all but the continuation of
    three tokens run over a block of 4, one where all fit into the first block of 16."""
    settings = {"phrase_sampling": "full_set", "window_start": 1, "window_end": 16}
    model = block_model(block, begins="response")
    trainer = trainer_of(tmp_path, model, phrase_files, harmful, **settings)
    placed = trainer.place(
        trainer.examples[:3], states_of(trainer.examples[:3]), *trainer.draw_phrases([0, 1, 2])
    )
    assert len(placed.states) == 3 * num_rows
    assert len(placed.safe[0]) == len(placed.harmful[0]) == 2
    rows = [place.row for own in (*placed.safe, *placed.harmful) for place in own]
    assert len(set(rows)) == 3 * num_rows


def test_a_refusal_over_the_answer_is_not_its_target(tmp_path, phrase_files, harmful):
    """The answer's own tokens become unlikely in the open block, not those of a refusal that runs
    over it: their mean log-probability from plain passes behind the beginning."""
    settings = {"harmful_target": "answer", "harmful_bound": "none", "beta": 0.0}
    model = block_model(4)
    trainer = trainer_of(tmp_path, model, phrase_files, harmful, **settings)
    indices = list(range(len(harmful)))
    with torch.no_grad():
        found = trainer.harmful_losses(model.network, indices)
    placed = trainer.place(
        trainer.examples, states_of(trainer.examples), *trainer.draw_phrases(indices)
    )
    for row, example in enumerate(trainer.examples):
        assert example.answer_ids is not None
        oracle = OneByOne(model, example.prompt_ids, example.answer_ids)
        (place,) = placed.safe[row]
        first, answer = placed.windows[row].first, example.answer_ids
        open_until = min(placed.windows[row].end, len(answer))
        with torch.no_grad():
            safe = oracle.score(place.phrase.variants[0], place.window)
            own = [oracle.log_probs(p, answer)[answer[p]] for p in range(first, open_until)]
        expected = -safe + (torch.stack(own).mean() if own else 0.0)
        torch.testing.assert_close(found[row], expected, atol=2e-3, rtol=1e-3)


def states_of(examples) -> list[ResponseState]:
    """Fully masked, behind the answers."""
    masked = torch.ones(LENGTH, dtype=torch.bool)
    return [
        ResponseState(_answer(e.answer_ids), masked, answer_length=len(e.answer_ids))
        for e in examples
    ]


def _answer(ids) -> torch.Tensor:
    tokens = torch.zeros(LENGTH, dtype=torch.long)
    tokens[: len(ids)] = torch.tensor(ids)
    return tokens


@pytest.mark.parametrize(
    ("harmful_weight", "figure", "least"),
    [
        (1.0, "score_safe", 1.0),
        pytest.param(1e3, "score_answer", -0.1, marks=pytest.mark.slow),
    ],
)
def test_the_robust_kind_moves_the_right_way(
    tmp_path, phrase_files, harmful, benign, harmful_weight, figure, least
):
    """All its terms at once: refusals become likelier, or the answers' own tokens less likely."""
    changes = {
        "random_reveal_weight": 1.0,
        "prefix_weight": 1.0,
        "revealed": "around",
        "contaminated_window": "response",
        "harmful_bound": "hinge",
        "harmful_target": "answer",
        "harmful_weight": harmful_weight,
        "benign_beta": 0.1,
        "max_steps": 40,
        "learning_rate": 1e-2,
        "logging_steps": 1.0,
    }
    trainer = trainer_of(tmp_path, block_model(4), phrase_files, harmful, benign, **changes)
    trainer.train()
    logs = [log for log in trainer.state.log_history if figure in log]
    first, last = (fmean(log[figure] for log in part) for part in (logs[:8], logs[-8:]))
    assert (last - first) / least > 1
    assert all(log["scored_share"] == 1.0 for log in logs)


def test_harmless_beginnings_stand_before_the_block_too(tmp_path, phrase_files, harmful, benign):
    """Half of the fully masked blocks stand behind the answer to a harmless request."""
    model = block_model(4)
    trainer = trainer_of(tmp_path, model, phrase_files, harmful, benign)
    assert trainer.benign
    harmless = [e.answer_ids for e in trainer.benign if e.answer_ids is not None]
    count = 0
    for epoch in range(6):
        trainer.state.epoch = float(epoch)
        phrases = trainer.draw_phrases(list(range(len(trainer.examples))))
        placed = trainer.place(trainer.examples, states_of(trainer.examples), *phrases)
        for state, window in zip(placed.states, placed.windows, strict=False):
            begin = state.tokens[: window.first].tolist()
            count += any(begin[: len(a)] == a[: len(begin)] and begin for a in harmless)
    assert 12 < count < 36


def test_a_window_behind_a_beginning_needs_one(tmp_path, phrase_files, harmful):
    prompts = [type(e)(e.prompt) for e in harmful]
    with refuses("window", "answers"):
        trainer_of(tmp_path, block_model(4), phrase_files, prompts)
    trainer = trainer_of(
        tmp_path, block_model(4), phrase_files, prompts, window_start=1, window_end=None
    )
    assert trainer.harmful_losses(trainer.diffusion_model.network, [0, 1]).isfinite().all()


def test_answers_are_learned_block_by_block(tmp_path, harmful):
    """The loss of supervised fine-tuning, from one plain pass for every masked position: earlier
    blocks written, its own as it is masked, later ones masked whole."""
    model = block_model(4)
    settings = SftConfig(
        output_dir=str(tmp_path), trainable="full", response_length=LENGTH, use_cpu=True
    )
    trainer = SftTrainer(model, settings, harmful[:3])
    with torch.no_grad():
        found = trainer.example_losses(model.network, [0, 1, 2])
    for row, example in enumerate(trainer.examples):
        random = rng(settings.seed, 0, example.index, _MASK_STREAM)
        state = masked_answer(model, trainer.answers[row], LENGTH, random)
        prompt, loss = example.prompt_ids, 0.0
        for position in state.masked.nonzero()[:, 0].tolist():
            place = len(prompt) + position
            first = model.attention.begin_of_block(place, 0)
            end = model.attention.end_of_block(place, 0)
            tokens = torch.full((max(end, len(prompt) + LENGTH),), model.mask_token_id)
            own = state.tokens.masked_fill(state.masked, model.mask_token_id)
            tokens[: len(prompt)] = torch.tensor(prompt)
            tokens[len(prompt) : len(prompt) + LENGTH] = own
            before = max(first - len(prompt), 0)
            tokens[len(prompt) : len(prompt) + before] = state.tokens[:before]
            with torch.no_grad():
                logits = model.logits(tokens[None, :end])[0, place]
            loss -= float(logits.log_softmax(-1)[state.tokens[position]]) / state.mask_ratio
        assert float(found[row]) == pytest.approx(loss / LENGTH, rel=1e-3)
    settings.anchor_start, settings.anchor_end = 4, 8
    with refuses("anchor_start"):
        SftTrainer(block_model(4), settings, harmful[:3])


def test_benign_prompts_without_answers_begin_nothing(tmp_path, phrase_files, harmful, benign):
    """The harmful answers stand before the blocks, and where some lack one, it is said."""
    asked = [type(e)(e.prompt) for e in benign]
    trainer = trainer_of(tmp_path, block_model(4), phrase_files, harmful, asked)
    assert trainer.harmful_losses(trainer.diffusion_model.network, [0, 1]).isfinite().all()
    some = [*harmful[1:], type(harmful[0])(harmful[0].prompt)]
    with refuses("window", "answers"):
        trainer_of(tmp_path, block_model(4), phrase_files, some, asked)
