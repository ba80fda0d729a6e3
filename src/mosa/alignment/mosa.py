"""The MOSA trainer: one policy pass, one reference pass, and the objective of arXiv 2508.12398.

reference.py has the paper's step in plain tensors, to which tests hold this one equal. For every
harmful prompt

    loss = - score(s+) + harmful_weight * bound(score(s-))
           + beta * KL(policy || reference) + benign_beta * KL on benign prompts

and the loss of an update is the mean over its prompts, however they are split into micro-batches.

How we differ from the paper, and why:
1. A pair (s+, s-) is drawn for each prompt rather than each step; at the batch size of one that
   the paper's running time suggests, they are the same.
2. States other than the fully masked answer, the terms on benign prompts, and bounds of the harmful
   term are ours, each an option that is off in the paper's preset.
3. The KL covers masked positions only: the model's output at a revealed position is never used.
4. In a block-causal model the window is mapped to blocks (placing.py), each of which is scored as
   it opens; the best start is that within a block, and over the blocks a mean is taken.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mosa.alignment import objective
from mosa.alignment.head_loss import Asked, HeadTerms, frozen_head
from mosa.alignment.mosa_config import MosaConfig
from mosa.alignment.phrases import Phrase, encode_phrases, read_phrases
from mosa.alignment.placing import Placed, blocks_of_window, open_block, place_phrases
from mosa.alignment.scoring import PhraseScorer, Window
from mosa.alignment.states import (
    EncodedExample,
    ResponseState,
    encode_examples,
    harmful_state,
    masked_answer,
    padded_answer,
    rng,
    turn_end_ids,
)
from mosa.alignment.trainer import DiffusionTrainer, TrainingData
from mosa.data import TrainingExample
from mosa.families import DiffusionLM
from mosa.types import UserError

# B rows, R response positions, K phrases of a row.

_STATE_STREAM, _PHRASE_STREAM, _BENIGN_STREAM, _BLOCK_STREAM = 0, 1, 2, 3


class MosaTrainer(DiffusionTrainer):
    """Middle-token alignment (arXiv 2508.12398) of a model that carries a LoRA adapter.

    `train_dataset` holds harmful requests, with the harmful answers where a setting needs them;
    `benign_dataset` requests that must stay answered, with their answers if there are any. Raises
    UserError for data or phrases that do not fit the settings.
    """

    config_class = MosaConfig

    def __init__(
        self,
        model: DiffusionLM,
        args: MosaConfig,
        train_dataset: Sequence[TrainingExample],
        benign_dataset: Sequence[TrainingExample] | None = None,
    ) -> None:
        TrainingData(train_dataset, benign_dataset).check(args)
        self.config = args
        harmful = encode_examples(model, train_dataset, args.response_length)
        self.benign: list[EncodedExample] = []
        self.in_blocks = model.attention.has_blocks(args.response_length)
        """Whether a response has several blocks, of which a later one sees the earlier ones."""
        needs_benign = "benign" in args.needs or self.in_blocks
        if benign_dataset and needs_benign:
            self.benign = encode_examples(model, benign_dataset, args.response_length)
        self.harmless = [e.answer_ids for e in self.benign if e.answer_ids is not None]
        """Answers whose beginnings stand before the open block of a block-causal model."""
        self.safe_phrases = encode_phrases(
            model,
            read_phrases(args.safe_phrases),
            leading_space=args.leading_space,
            breaker=args.breaker,
        )
        self.harmful_phrases = encode_phrases(
            model, read_phrases(args.harmful_phrases), leading_space=args.leading_space
        )
        self.scorer = PhraseScorer(
            args, [*self.safe_phrases, *self.harmful_phrases], model.vocab_size
        )
        has_answers = bool(self.harmless) or all(e.answer_ids is not None for e in harmful)
        if self.in_blocks and args.window_start > 1 and not has_answers:
            raise UserError(
                f"{model.source} fills block after block, so that a window from token "
                f"{args.window_start} on stands behind the beginning of an answer; give harmful "
                "or benign data with answers."
            )
        frozen_head(model)  # raise a UserError now, not at the first step
        super().__init__(model, args, harmful)

    @classmethod
    def from_data(cls, model: DiffusionLM, config: MosaConfig, data: TrainingData) -> MosaTrainer:
        """The trainer for harmful prompts and, where a setting needs them, benign ones."""
        return cls(model, config, data.harmful, data.benign)

    def example_losses(self, model: nn.Module, indices: list[int]) -> Float[Tensor, " B"]:
        """The objective of each harmful prompt; also tracks the metrics."""
        losses = self.harmful_losses(model, indices)
        if self.config.benign_beta > 0:
            losses = losses + self.benign_losses(model, indices)
        return losses

    # -- harmful prompts ---------------------------------------------------------------------

    def harmful_losses(self, model: nn.Module, indices: list[int]) -> Float[Tensor, " B"]:
        """Reward and KL of each harmful prompt, as a loss."""
        config, device = self.config, self.args.device
        # 1. Draw a state and phrases for every prompt, and list what its positions need.
        placed = self.draw(indices)
        answer_NR = self._answer_positions(placed)
        asked = Asked(
            kl=placed.kept & (config.beta > 0),
            log_probs=self._phrase_positions(placed) | answer_NR,
            token_ids=self.scorer.scored_ids,
            targets=placed.targets,
            of_reference=config.uses_reference_scores,
        )

        # 2. One reference pass with the adapter off, one policy pass, and the head where needed.
        prompts = [self.examples[indices[i]].prompt_ids for i in placed.prompt_of_row]
        terms = self.terms(
            model, prompts, placed.states, asked, with_reference=config.uses_reference
        )

        # 3. The reward of phrases in the window, and the harmful answer's own tokens.
        losses_B = self._phrase_losses(terms, placed)
        if config.scores_answers:
            losses_B = losses_B + self._answer_losses(terms, answer_NR.to(device))[: len(indices)]

        # 4. Stay near the reference.
        if config.beta > 0:
            kl_N = _reduce_positions(terms.kl, placed.kept.to(device), config.kl_reduction)
            self.track("kl", kl_N[: len(indices)])
            losses_B = losses_B + config.beta * kl_N[: len(indices)]
        return losses_B

    def draw(self, indices: list[int]) -> Placed:
        """A state and phrases for each prompt, on rows and in windows."""
        config, epoch = self.config, self.epoch_index
        examples = [self.examples[i] for i in indices]
        states = [
            harmful_state(e, config, rng(config.seed, epoch, e.index, _STATE_STREAM))
            for e in examples
        ]
        return self.place(examples, states, *self.draw_phrases(indices))

    def place(
        self,
        examples: Sequence[EncodedExample],
        states: list[ResponseState],
        safe: list[list[Phrase]],
        harmful: list[list[Phrase]],
    ) -> Placed:
        """The rows on which the phrases drawn for some prompts are scored, and where."""
        attention = self.diffusion_model.attention
        if not self.in_blocks:
            windows = [self.scorer.window_of_state(state) for state in states]
            return place_phrases(states, windows, safe, harmful, in_blocks=False)
        longest = max(phrase.max_length for phrase in (*self.safe_phrases, *self.harmful_phrases))
        blocks = []
        for number, (example, state) in enumerate(zip(examples, states, strict=True)):
            random = rng(self.config.seed, self.epoch_index, example.index, _BLOCK_STREAM)
            beginning, is_masked = state.answer_length, state.state == "fully_masked"
            # A fully masked block stands behind a harmless answer as often as behind its own.
            if self.harmless and (not beginning or (is_masked and random.random() < 0.5)):
                answer_ids = self.harmless[int(random.integers(len(self.harmless)))]
                beginning = len(answer_ids)
                tokens = padded_answer(self.diffusion_model, answer_ids, len(state.tokens))
                states[number] = replace(state, tokens=tokens, answer_length=0)
            elif example.answer_ids is not None:  # what stands behind its end is read here
                tokens = padded_answer(self.diffusion_model, example.answer_ids, len(state.tokens))
                states[number] = replace(state, tokens=tokens)
            window = self.scorer.window_of_state(state)
            found = blocks_of_window(attention, len(example.prompt_ids), window, longest)
            blocks.append(open_block(found, state, beginning, random))
        return place_phrases(states, blocks, safe, harmful, in_blocks=True)

    def _phrase_positions(self, placed: Placed) -> Bool[Tensor, "N R"]:
        """The masked positions at which a phrase may be in each row."""
        length = self.config.response_length
        found_NR = torch.zeros(len(placed.states), length, dtype=torch.bool)
        for place in itertools.chain(*placed.safe, *placed.harmful):
            found_NR[place.row] |= place.window.positions(length)
        return found_NR & torch.stack([state.masked for state in placed.states])

    def _answer_positions(self, placed: Placed) -> Bool[Tensor, "N R"]:
        """The masked positions of each harmful answer, where they should become unlikely: all of
        them, or those of the open block."""
        position_R = torch.arange(self.config.response_length)
        length_N = torch.tensor([state.answer_length for state in placed.states])
        inside_NR = (position_R < length_N[:, None]) & self.config.scores_answers & placed.kept
        if self.in_blocks:
            first_N = torch.tensor([placed.windows[row].first for row in placed.prompt_of_row])
            inside_NR &= position_R >= first_N[:, None]
        return inside_NR

    def _phrase_losses(self, terms: HeadTerms, placed: Placed) -> Float[Tensor, " B"]:
        """- score(s+) + harmful_weight * bound(score(s-)), and its metrics."""
        config = self.config
        masked_NR = torch.stack([s.masked for s in placed.states]).to(self.args.device)
        safe = self.scorer(terms.log_probs, masked_NR, placed.safe)
        harmful = self.scorer(terms.log_probs, masked_NR, placed.harmful)
        losses_B = -safe.value.mean(dim=-1)
        if config.harmful_target == "phrase" and config.harmful_weight > 0:
            reference_value = None
            if config.uses_reference_scores:
                reference_value = self.scorer(
                    terms.reference_log_probs, masked_NR, placed.harmful
                ).value
            bounded_BK = objective.bound_harmful(
                harmful.value,
                reference_value,
                config.harmful_bound,
                margin=config.harmful_margin,
            )
            # A row without a place for the phrase has no term, even if a bound changes its 0.
            harmful_loss_B = (bounded_BK * harmful.found).mean(dim=-1)
            losses_B = losses_B + config.harmful_weight * harmful_loss_B

        has_safe_B, has_harmful_B = safe.found.any(dim=-1), harmful.found.any(dim=-1)
        safe_B = _reduce_positions(safe.value, safe.found, "mean")
        harmful_B = _reduce_positions(harmful.value, harmful.found, "mean")
        start_B = _reduce_positions(safe.best_start + 1.0, safe.found, "mean")  # from 1
        self.track("score_safe", safe_B, has_safe_B)
        self.track("score_harmful", harmful_B, has_harmful_B)
        self.track("reward", safe_B - harmful_B, has_safe_B & has_harmful_B)
        self.track("best_start", start_B, has_safe_B)
        self.track("scored_share", has_safe_B)
        self._track_refusals(terms.likeliest, placed)
        return losses_B

    def draw_phrases(self, indices: list[int]) -> tuple[list[list[Phrase]], list[list[Phrase]]]:
        """For each row the safe and the harmful phrases that it is scored on."""
        if self.config.phrase_sampling == "full_set":
            return [self.safe_phrases] * len(indices), [self.harmful_phrases] * len(indices)
        safe, harmful = [], []
        for index in indices:
            random = rng(self.config.seed, self.epoch_index, index, _PHRASE_STREAM)
            safe.append([self.safe_phrases[random.integers(len(self.safe_phrases))]])
            harmful.append([self.harmful_phrases[random.integers(len(self.harmful_phrases))]])
        return safe, harmful

    def _track_refusals(self, likeliest_NR: Int[Tensor, "N R"], placed: Placed) -> None:
        """Share of fully masked prompts whose greedy first step has a refusal in the window."""
        own = placed.states[: len(placed.safe)]
        fully_masked = torch.tensor([state.state == "fully_masked" for state in own])
        found: dict[Window, dict[tuple[int, int], None]] = {}
        for prompt, places in enumerate(placed.safe):
            for place in places:
                found.setdefault(place.window, {})[place.row, prompt] = None
        num_held = torch.zeros(len(own), dtype=torch.long, device=likeliest_NR.device)
        for window, members in found.items():
            rows, prompts = torch.tensor([*members], device=likeliest_NR.device).T
            greedy = likeliest_NR[rows, window.first : window.end]
            for phrase in self.safe_phrases:
                for words in phrase.words:
                    wanted = torch.tensor(words, device=greedy.device)
                    is_held = objective.contains_phrase(greedy, wanted)
                    num_held.index_add_(0, prompts, is_held.long())
        self.track("refusal_share", num_held > 0, fully_masked.to(num_held.device))

    def _answer_losses(
        self, terms: HeadTerms, answer_BR: Bool[Tensor, "B R"]
    ) -> Float[Tensor, " B"]:
        """Bounded log-likelihood of the harmful answer's masked tokens, a mean over each row's."""
        config = self.config
        score_BR = terms.target_log_probs
        bounded_BR = objective.bound_harmful(
            score_BR,
            terms.reference_target_log_probs if config.uses_reference_scores else None,
            config.harmful_bound,
            margin=config.answer_margin,
        )
        self.track(
            "score_answer", _reduce_positions(score_BR, answer_BR, "mean"), answer_BR.any(-1)
        )
        return config.harmful_weight * _reduce_positions(bounded_BR, answer_BR, "mean")

    # -- benign prompts ----------------------------------------------------------------------

    def benign_losses(self, model: nn.Module, indices: list[int]) -> Float[Tensor, " B"]:
        """KL on the benign prompt drawn for each harmful one, as its loss."""
        config, diffusion = self.config, self.diffusion_model
        prompts, states = [], []
        for index in indices:
            random = rng(config.seed, self.epoch_index, index, _BENIGN_STREAM)
            example = self.benign[random.integers(len(self.benign))]
            prompts.append(example.prompt_ids)
            if example.answer_ids is None:
                masked = torch.ones(config.response_length, dtype=torch.bool)
                states.append(ResponseState(torch.zeros_like(masked, dtype=torch.long), masked))
            else:
                answer_ids = example.answer_ids + turn_end_ids(diffusion)
                states.append(masked_answer(diffusion, answer_ids, config.response_length, random))
        masked_BR = torch.stack([s.masked for s in states])
        asked = Asked(
            kl=masked_BR,
            log_probs=torch.zeros_like(masked_BR),
            token_ids=self.scorer.scored_ids[:0],
            targets=torch.stack([s.tokens for s in states]),
            of_reference=False,
        )
        terms = self.terms(model, prompts, states, asked, with_reference=True)
        kl_B = _reduce_positions(terms.kl, masked_BR.to(self.args.device), config.kl_reduction)
        self.track("kl_benign", kl_B)
        return config.benign_beta * kl_B


def _reduce_positions(
    values: Float[Tensor, "B R"], counted: Bool[Tensor, "B R"], how: Literal["sum", "mean"]
) -> Float[Tensor, " B"]:
    """Sum or mean of each row over its counted positions, or phrases; 0 for a row without any."""
    total = values.masked_fill(~counted, 0.0).sum(dim=-1)
    return total / counted.sum(dim=-1).clamp(min=1) if how == "mean" else total
