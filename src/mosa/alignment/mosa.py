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
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import transformers
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mosa.alignment import objective
from mosa.alignment.head_loss import Asked, HeadTerms, frozen_head
from mosa.alignment.mosa_config import MosaConfig
from mosa.alignment.phrases import Phrase, encode_phrases, read_phrases
from mosa.alignment.scoring import PhraseScorer, Scores
from mosa.alignment.states import (
    EncodedExample,
    ResponseState,
    encode_examples,
    harmful_state,
    masked_answer,
    rng,
    turn_end_ids,
)
from mosa.alignment.trainer import DiffusionTrainer, TrainingData
from mosa.data import TrainingExample
from mosa.families import DiffusionLM

# B rows, R response positions, K phrases of a row.

_STATE_STREAM, _PHRASE_STREAM, _BENIGN_STREAM = 0, 1, 2


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
        callbacks: list[transformers.TrainerCallback] | None = None,
    ) -> None:
        TrainingData(train_dataset, benign_dataset).check(args)
        self.config = args
        harmful = encode_examples(model, train_dataset, args.response_length)
        self.benign: list[EncodedExample] = []
        if "benign" in args.needs:
            assert benign_dataset is not None
            self.benign = encode_examples(model, benign_dataset, args.response_length)
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
        frozen_head(model)  # raise a UserError now, not at the first step
        super().__init__(model, args, harmful, callbacks)

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
        seed, epoch = config.seed, self.epoch_index
        examples = [self.examples[i] for i in indices]

        # 1. Draw a state for every prompt, and list what its positions need.
        states = [
            harmful_state(e, config, rng(seed, epoch, e.index, _STATE_STREAM)) for e in examples
        ]
        answer_BR = self._answer_positions(states)
        masked_BR = torch.stack([state.masked for state in states])
        asked = Asked(
            kl=masked_BR & (config.beta > 0),
            log_probs=self._phrase_positions(states) | answer_BR,
            token_ids=self.scorer.scored_ids,
            targets=torch.stack([s.tokens for s in states]),
            of_reference=config.uses_reference_scores,
        )

        # 2. One reference pass with the adapter off, one policy pass, and the head where needed.
        prompts = [e.prompt_ids for e in examples]
        terms = self.terms(model, prompts, states, asked, with_reference=config.uses_reference)

        # 3. The reward of phrases in the window, and the harmful answer's own tokens.
        losses_B = self._phrase_losses(terms, states, indices)
        if config.scores_answers:
            losses_B = losses_B + self._answer_losses(terms, answer_BR.to(device))

        # 4. Stay near the reference.
        if config.beta > 0:
            kl_B = _reduce_positions(terms.kl, masked_BR.to(device), config.kl_reduction)
            self.track("kl", kl_B)
            losses_B = losses_B + config.beta * kl_B
        return losses_B

    def _phrase_positions(self, states: Sequence[ResponseState]) -> Bool[Tensor, "B R"]:
        """The masked positions at which a phrase may be in each row."""
        window_R = self.scorer.window.positions(self.config.response_length)
        wide_B = torch.tensor([self._is_wide(state) for state in states])
        return (window_R | wide_B[:, None]) & torch.stack([state.masked for state in states])

    def _answer_positions(self, states: Sequence[ResponseState]) -> Bool[Tensor, "B R"]:
        """The masked positions of each harmful answer, where they should become unlikely."""
        position_R = torch.arange(self.config.response_length)
        length_B = torch.tensor([state.answer_length for state in states])
        inside_BR = (position_R < length_B[:, None]) & self.config.scores_answers
        return inside_BR & torch.stack([state.masked for state in states])

    def _phrase_losses(
        self,
        terms: HeadTerms,
        states: Sequence[ResponseState],
        indices: list[int],
    ) -> Float[Tensor, " B"]:
        """- score(s+) + harmful_weight * bound(score(s-)), and its metrics."""
        config = self.config
        safe_BK, harmful_BK = self.draw_phrases(indices)
        masked_BR = torch.stack([state.masked for state in states]).to(self.args.device)
        is_wide = [self._is_wide(state) for state in states]
        safe = self.scorer(terms.log_probs, masked_BR, safe_BK, is_wide)
        harmful = self.scorer(terms.log_probs, masked_BR, harmful_BK, is_wide)
        losses_B = -safe.value.mean(dim=-1)
        if config.harmful_target == "phrase" and config.harmful_weight > 0:
            reference_value = None
            if config.uses_reference_scores:
                reference_value = self.scorer(
                    terms.reference_log_probs, masked_BR, harmful_BK, is_wide
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

        found_B = safe.found.any(dim=-1) & harmful.found.any(dim=-1)
        safe_B, harmful_B = _mean_found(safe.value, safe), _mean_found(harmful.value, harmful)
        self.track("score_safe", safe_B, safe.found.any(dim=-1))
        self.track("score_harmful", harmful_B, harmful.found.any(dim=-1))
        self.track("reward", safe_B - harmful_B, found_B)
        # 1-based, as in the settings
        self.track("best_start", _mean_found(safe.best_start + 1, safe), safe.found.any(dim=-1))
        self.track("scored_share", safe.found.any(dim=-1))
        self._track_refusals(terms.likeliest, states)
        return losses_B

    def _is_wide(self, state: ResponseState) -> bool:
        """Whether a row's phrases are scored over the whole response instead of the window."""
        return self.config.contaminated_window == "response" and state.state != "fully_masked"

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

    def _track_refusals(
        self, likeliest_BR: Int[Tensor, "B R"], states: Sequence[ResponseState]
    ) -> None:
        """Share of fully masked rows whose greedy first step has a refusal in the window."""
        fully_masked = torch.tensor([state.state == "fully_masked" for state in states])
        greedy = likeliest_BR[:, self.scorer.window.first : self.scorer.window.end]
        holds = torch.zeros(len(states), dtype=torch.bool, device=greedy.device)
        for phrase in self.safe_phrases:
            for words in phrase.words:
                holds |= objective.contains_phrase(
                    greedy, torch.tensor(words, device=greedy.device)
                )
        self.track("refusal_share", holds, fully_masked.to(holds.device))

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


def _mean_found(values: Tensor, scores: Scores) -> Float[Tensor, " B"]:
    """Mean of each row over the phrases that had a place."""
    found = scores.found.to(scores.value)
    return (values * found).sum(dim=-1) / found.sum(dim=-1).clamp(min=1)


def _reduce_positions(
    values: Float[Tensor, "B R"], counted: Bool[Tensor, "B R"], how: Literal["sum", "mean"]
) -> Float[Tensor, " B"]:
    """Sum or mean of each row over its counted positions; 0 for a row without any."""
    total = values.masked_fill(~counted, 0.0).sum(dim=-1)
    return total / counted.sum(dim=-1).clamp(min=1) if how == "mean" else total
