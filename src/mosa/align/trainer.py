"""The MOSA trainer: one policy pass, one reference pass, and the objective of arXiv 2508.12398.

Read `MosaTrainer.compute_loss` first, then objective.py. For every harmful prompt

    loss = - safe_weight * score(s+) + harmful_weight * bound(score(s-))
           + beta * KL(policy || reference) + benign_beta * KL on benign prompts
           + benign_retain_weight * cross-entropy of benign answers

and the loss of an update is the mean over its prompts, however they are split into micro-batches.

How we differ from the paper, and why:
1. A pair (s+, s-) is drawn for each prompt rather than each step; at the batch size of one that
   the paper's running time suggests, they are the same.
2. States other than the fully masked answer, the terms on benign prompts, and bounds of the harmful
   term are ours, each an option that is off in the paper's preset.
3. The KL covers masked positions only: the model's output at a revealed position is never used.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
import transformers
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mosa.align import objective
from mosa.align.config import AlignConfig, MosaConfig
from mosa.align.head_loss import Asked, HeadTerms, frozen_head, head_terms
from mosa.align.phrases import Phrase, encode_phrases, read_phrases
from mosa.align.scoring import PhraseScorer, Scores
from mosa.align.states import (
    EncodedExample,
    ResponseState,
    build_canvas,
    encode_examples,
    harmful_state,
    masked_answer,
    rng,
)
from mosa.data import TrainingExample
from mosa.families import DiffusionLM
from mosa.types import UserError

# B rows, L canvas length, R response positions, K phrases of a row.

_STATE_STREAM, _PHRASE_STREAM, _BENIGN_STREAM = 0, 1, 2


class PromptDataset(torch.utils.data.Dataset):
    """Encoded prompts by index; all else about an example is drawn when its loss is taken."""

    def __init__(self, examples: Sequence[EncodedExample]) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"index": index, "input_ids": self.examples[index].prompt_ids}


def collate_prompts(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Indices of the examples; and their prompts, padded, for the trainer's token counts."""
    prompts = [torch.tensor(row["input_ids"], dtype=torch.long) for row in rows]
    return {
        "index": torch.tensor([row["index"] for row in rows]),
        "input_ids": nn.utils.rnn.pad_sequence(prompts, batch_first=True),
    }


class DiffusionTrainer(transformers.Trainer):
    """What our trainers share: a `DiffusionLM`, means over examples, metrics of single rows.

    The loss of an update is the sum of its examples' losses over their number, so that eight
    micro-batches of one equal one batch of eight.
    """

    # Newer transformers ask; older ones look at model_accepts_loss_kwargs, set in __init__.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: DiffusionLM,
        args: AlignConfig,
        examples: Sequence[EncodedExample],
        callbacks: list[transformers.TrainerCallback] | None = None,
        *,
        optimizer: torch.optim.Optimizer | None = None,
    ) -> None:
        if args.n_gpu > 1:
            raise UserError(
                "Several GPUs are visible to one process; start with `torchrun --nproc_per_node`, "
                "or show one with CUDA_VISIBLE_DEVICES."
            )
        self.diffusion_model = model
        self._tracked: dict[str, Tensor] = {}
        super().__init__(
            model=model.network,
            args=args,
            train_dataset=PromptDataset(examples),
            data_collator=collate_prompts,
            callbacks=callbacks,
            optimizers=(optimizer, None),
        )
        self.model_accepts_loss_kwargs = True

    @property
    def epoch_index(self) -> int:
        """Number of complete passes over the data so far."""
        return int(self.state.epoch or 0)

    def compute_loss_context_manager(self) -> contextlib.ExitStack:
        """As the trainer's own, with its mixed precision: the head is taken outside the network."""
        contexts = super().compute_loss_context_manager()
        contexts.enter_context(self.accelerator.autocast())
        return contexts

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, Tensor | int | None]:
        """The micro-batches of one update, and the number of examples in them on all processes."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        count = torch.tensor(sum(len(batch["index"]) for batch in batches), device=device)
        return batches, self._over_processes(count)

    def _over_processes(self, values: Tensor) -> Tensor:
        """The sum of a tensor over all processes of the training."""
        total = self.accelerator.reduce(values, reduction="sum")
        assert isinstance(total, Tensor)
        return total

    def mean_over_update(
        self, losses: Float[Tensor, " B"], num_examples: Tensor | int | None
    ) -> Tensor:
        """This micro-batch's part of the mean loss over all examples of the update."""
        if num_examples is None:  # outside of training, for example in evaluate()
            return losses.mean()
        # Data-parallel training averages the gradients of its processes; we want their sum.
        return losses.sum() * self.accelerator.num_processes / num_examples

    def track(self, name: str, values: Tensor, counted: Bool[Tensor, " B"] | None = None) -> None:
        """Add rows to the mean that is logged as `name`; rows not `counted` are left out.

        Every process must track the same names in the same order.
        """
        weights = torch.ones_like(values) if counted is None else counted
        row = torch.stack([(values * weights).sum(), weights.sum()]).detach().float()
        self._tracked[name] = self._tracked.get(name, torch.zeros_like(row)) + row

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log the trainer's own figures with the means of all rows since the last log."""
        if self._tracked:
            rows = self._over_processes(torch.stack(list(self._tracked.values())))
            for name, (total, count) in zip(self._tracked, rows.tolist(), strict=True):
                if count:
                    logs[name] = total / count
                if not math.isfinite(total):
                    raise UserError(
                        f"Training diverged: {name} is {total} at step {self.state.global_step}; "
                        "lower learning_rate, or load the model in float32."
                    )
            self._tracked = {}
        super().log(logs, start_time)


class MosaTrainer(DiffusionTrainer):
    """Middle-token alignment (arXiv 2508.12398) of a model that carries a LoRA adapter.

    `train_dataset` holds harmful requests, with the harmful answers where a setting needs them;
    `benign_dataset` requests that must stay answered, with their answers if there are any. Raises
    UserError for data or phrases that do not fit the settings.
    """

    def __init__(
        self,
        model: DiffusionLM,
        args: MosaConfig,
        train_dataset: Sequence[TrainingExample],
        benign_dataset: Sequence[TrainingExample] | None = None,
        callbacks: list[transformers.TrainerCallback] | None = None,
    ) -> None:
        self.config = args
        self.harmful = encode_examples(model, train_dataset, args.response_length)
        self.benign: list[EncodedExample] = []
        if args.uses_benign:
            if not benign_dataset:
                raise UserError(
                    "The settings have a term on benign prompts and no benign prompts are given; "
                    "give some, or set benign_beta=0 and benign_retain_weight=0."
                )
            self.benign = encode_examples(model, benign_dataset, args.response_length)
        self._require_answers()
        self.safe_phrases, self.harmful_phrases = load_phrases(model, args)
        self.scorer = PhraseScorer(
            args, [*self.safe_phrases, *self.harmful_phrases], model.vocab_size
        )
        frozen_head(model)  # a UserError rather now than at the first step
        super().__init__(model, args, self.harmful, callbacks)

    def _require_answers(self) -> None:
        if self.config.uses_answers:
            for example in self.harmful:
                if example.answer_ids is None:
                    raise UserError(
                        "The settings use harmful answers (random_reveal_weight, prefix_weight or "
                        f"harmful_target) and harmful prompt {example.index + 1} has none; give "
                        "data with an `answer`, or use the fully masked state and "
                        "harmful_target=phrase."
                    )
        if self.config.benign_retain_weight > 0:
            for example in self.benign:
                if example.answer_ids is None:
                    raise UserError(
                        f"benign_retain_weight needs answers and benign prompt {example.index + 1} "
                        "has none; give benign data with an `answer`, or set the weight to 0."
                    )

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The objective of one micro-batch; also tracks the metrics."""
        indices = inputs["index"].tolist()
        losses = self.harmful_losses(model, indices)
        if self.config.uses_benign:
            losses = losses + self.benign_losses(model, indices)
        loss = self.mean_over_update(losses, num_items_in_batch)
        return (loss, {"losses": losses}) if return_outputs else loss

    # -- harmful prompts ---------------------------------------------------------------------

    def harmful_losses(self, model: nn.Module, indices: list[int]) -> Float[Tensor, " B"]:
        """Reward and KL of each harmful prompt, as a loss."""
        config, device = self.config, self.args.device
        seed, epoch = config.seed, self.epoch_index
        examples = [self.harmful[i] for i in indices]

        # 1. Draw a state for every prompt, and say what its positions are asked.
        states = [
            harmful_state(e, config, rng(seed, epoch, e.index, _STATE_STREAM)) for e in examples
        ]
        answer_BR = self._answer_positions(states)
        kl_BR = self._kl_positions(states)
        asked = Asked(
            kl=kl_BR,
            log_probs=self._phrase_positions(states) | answer_BR,
            token_ids=self.scorer.scored_ids,
            targets=torch.stack([s.tokens for s in states]),
            of_reference=config.uses_reference_scores,
        )

        # 2. One reference pass with the adapter off, one policy pass, and the head where asked.
        prompts = [e.prompt_ids for e in examples]
        terms = self.terms(model, prompts, states, asked, with_reference=config.uses_reference)

        # 3. The reward of phrases in the window, and the harmful answer's own tokens.
        losses_B = self._phrase_losses(terms, states, indices)
        if config.scores_answers:
            losses_B = losses_B + self._answer_losses(terms, answer_BR.to(device))

        # 4. Stay near the reference.
        if config.beta > 0:
            kl_B = _reduce_positions(terms.kl, kl_BR.to(device), config.kl_reduction)
            counts_B = torch.tensor([self._kl_counts(s) for s in states], device=device)
            self.track("kl", kl_B, counts_B)
            losses_B = losses_B + config.beta * kl_B
        return losses_B

    def _phrase_positions(self, states: Sequence[ResponseState]) -> Bool[Tensor, "B R"]:
        """The masked positions at which a phrase may stand in each row."""
        window_R = self.scorer.window.positions(self.config.response_length)
        wide_B = torch.tensor([self._is_wide(state) for state in states])
        return (window_R | wide_B[:, None]) & torch.stack([state.masked for state in states])

    def _answer_positions(self, states: Sequence[ResponseState]) -> Bool[Tensor, "B R"]:
        """The masked positions of each harmful answer, where those are to be unlikely."""
        position_R = torch.arange(self.config.response_length)
        length_B = torch.tensor([state.answer_length for state in states])
        inside_BR = (position_R < length_B[:, None]) & self.config.scores_answers
        return inside_BR & torch.stack([state.masked for state in states])

    def _kl_positions(self, states: Sequence[ResponseState]) -> Bool[Tensor, "B R"]:
        """The masked positions that the KL on harmful prompts covers, in the states that count."""
        covered_R = self.scorer.window.positions(self.config.response_length)
        if self.config.kl_positions == "all":
            covered_R = torch.ones_like(covered_R)
        elif self.config.kl_positions == "outside_window":
            covered_R = ~covered_R
        counts_B = torch.tensor([self._kl_counts(state) for state in states])
        covered_BR = covered_R & counts_B[:, None] & (self.config.beta > 0)
        return covered_BR & torch.stack([state.masked for state in states])

    def _kl_counts(self, state: ResponseState) -> bool:
        """Whether the KL is taken in this state."""
        return self.config.kl_states == "all" or state.state == "fully_masked"

    def terms(
        self,
        model: nn.Module,
        prompts: Sequence[Sequence[int]],
        states: Sequence[ResponseState],
        asked: Asked,
        *,
        with_reference: bool,
    ) -> HeadTerms:
        """One pass of the policy, one of the reference if asked, and what the head makes of them.

        Both passes run on the same weights, the reference's first and with nothing kept of it but
        the hidden states of the response.
        """
        diffusion, device = self.diffusion_model, self.args.device
        tokens_BL, attended_BL = build_canvas(diffusion, prompts, states)
        length = tokens_BL.shape[1]
        response_R = torch.arange(length - self.config.response_length, length, device=device)
        canvas = tokens_BL.to(device), attended_BL.to(device), response_R
        reference_BRD = None
        if with_reference:
            with torch.no_grad(), diffusion.adapter_disabled():
                reference_BRD = diffusion.hidden_states(*canvas, network=model)
        policy_BRD = diffusion.hidden_states(*canvas, network=model)
        return head_terms(frozen_head(diffusion), policy_BRD, reference_BRD, asked)

    def _phrase_losses(
        self,
        terms: HeadTerms,
        states: Sequence[ResponseState],
        indices: list[int],
    ) -> Float[Tensor, " B"]:
        """- safe_weight * score(s+) + harmful_weight * bound(score(s-)), and its metrics."""
        config = self.config
        safe_BK, harmful_BK = self._draw_phrases(indices)
        masked_BR = torch.stack([state.masked for state in states]).to(self.args.device)
        is_wide = [self._is_wide(state) for state in states]
        safe = self.scorer(terms.log_probs, masked_BR, safe_BK, is_wide)
        harmful = self.scorer(terms.log_probs, masked_BR, harmful_BK, is_wide)
        losses_BK = -config.safe_weight * safe.value
        if config.harmful_target != "answer" and config.harmful_weight > 0:
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
                npo_beta=config.npo_beta,
            )
            # A row without a place for the phrase has no term, whatever a bound makes of its 0.
            harmful_loss_B = (bounded_BK * harmful.found).mean(dim=-1)
            losses_B = losses_BK.mean(dim=-1) + config.harmful_weight * harmful_loss_B
        else:
            losses_B = losses_BK.mean(dim=-1)

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

    def _draw_phrases(self, indices: list[int]) -> tuple[list[list[Phrase]], list[list[Phrase]]]:
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
            npo_beta=config.npo_beta,
        )
        self.track(
            "score_answer", _reduce_positions(score_BR, answer_BR, "mean"), answer_BR.any(-1)
        )
        weight = config.harmful_weight * config.answer_weight
        return weight * _reduce_positions(bounded_BR, answer_BR, "mean")

    # -- benign prompts ----------------------------------------------------------------------

    def benign_losses(self, model: nn.Module, indices: list[int]) -> Float[Tensor, " B"]:
        """KL and cross-entropy on the benign prompts drawn for each harmful one, as its loss."""
        config, device = self.config, self.args.device
        prompts, states = [], []
        for index in indices:
            random = rng(config.seed, self.epoch_index, index, _BENIGN_STREAM)
            for choice in random.integers(len(self.benign), size=config.benign_per_prompt):
                example = self.benign[choice]
                prompts.append(example.prompt_ids)
                if example.answer_ids is None:
                    masked = torch.ones(config.response_length, dtype=torch.bool)
                    states.append(ResponseState(torch.zeros_like(masked, dtype=torch.long), masked))
                else:
                    states.append(
                        masked_answer(
                            example.answer_ids + turn_end_ids(self.diffusion_model),
                            config.response_length,
                            random,
                            ratio_min=config.benign_mask_ratio_min,
                            ratio_max=config.benign_mask_ratio_max,
                            pad_token_id=self.diffusion_model.eos_token_id,
                            mask_token_id=self.diffusion_model.mask_token_id,
                        )
                    )
        masked_BR = torch.stack([s.masked for s in states])
        asked = Asked(
            kl=masked_BR & (config.benign_beta > 0),
            log_probs=masked_BR & (config.benign_retain_weight > 0),
            token_ids=self.scorer.scored_ids[:0],
            targets=torch.stack([s.tokens for s in states]),
            of_reference=False,
        )
        terms = self.terms(model, prompts, states, asked, with_reference=config.benign_beta > 0)
        masked_BR = masked_BR.to(device)
        losses = terms.kl.new_zeros(len(states))
        if config.benign_beta > 0:
            kl_B = _reduce_positions(terms.kl, masked_BR, config.kl_reduction)
            self.track("kl_benign", kl_B)
            losses = losses + config.benign_beta * kl_B
        if config.benign_retain_weight > 0:
            ratio_B = torch.tensor([s.mask_ratio for s in states], device=device)
            retain_B = masked_cross_entropy(terms.target_log_probs, masked_BR, ratio_B)
            self.track("retain", retain_B)
            losses = losses + config.benign_retain_weight * retain_B
        return losses.view(len(indices), config.benign_per_prompt).mean(dim=-1)


def load_phrases(model: DiffusionLM, config: MosaConfig) -> tuple[list[Phrase], list[Phrase]]:
    """The safe phrases with their breaker, and the harmful ones, as the settings ask for them."""
    space: Literal["with", "without", "both"]
    if config.leading_space == "auto":
        space = "without" if config.window_start == 1 else "with"
    else:
        space = config.leading_space
    safe = encode_phrases(
        model,
        read_phrases(config.safe_phrases),
        leading_space=space,
        breaker=config.breaker,
        breaker_run=config.breaker_run,
    )
    harmful = encode_phrases(model, read_phrases(config.harmful_phrases), leading_space=space)
    return safe, harmful


def turn_end_ids(model: DiffusionLM) -> list[int]:
    """The end-of-turn token, where the model has one apart from end-of-text."""
    return [] if model.turn_end_token_id is None else [model.turn_end_token_id]


def masked_cross_entropy(
    log_probs: Float[Tensor, "B R"],
    masked: Bool[Tensor, "B R"],
    mask_ratio: Float[Tensor, " B"],
    lengths: Float[Tensor, " B"] | None = None,
) -> Float[Tensor, " B"]:
    """Masked-diffusion loss of each row: sum over masked positions of -log p / t, per position.

    LLaDA (arXiv 2502.09992, eq. 5; GUIDELINES.md: cross-entropy over the mask ratio t, averaged
    over the answer's length, end-of-text padding included). `log_probs` are those of the answer's
    tokens; `lengths` is the answer's length, default R.
    """
    length = lengths if lengths is not None else log_probs.shape[1]
    return -log_probs.masked_fill(~masked, 0.0).sum(dim=-1) / mask_ratio / length


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
