"""The MOSA trainer: one policy pass, one reference pass, and the objective of arXiv 2508.12398.

Read `MosaTrainer.compute_loss` first, then objective.py. For every harmful prompt

    loss = - safe_weight * score(s+) + harmful_weight * bound(score(s-)) + beta * KL(policy || reference)
           + benign_beta * KL on benign prompts + benign_retain_weight * cross-entropy of benign answers

and the loss of an update is the mean over its prompts, however they are split into micro-batches.

How we differ from the paper, and why:
1. A pair (s+, s-) is drawn for each prompt rather than each step; at the batch size of one that
   the paper's running time suggests, they are the same.
2. States other than the fully masked answer, the terms on benign prompts, and bounds of the harmful
   term are ours, each an option that is off in the paper's preset.
3. The KL covers masked positions only: the model's output at a revealed position is never used.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
import transformers
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mosa.align import objective
from mosa.align.config import AlignConfig, MosaConfig
from mosa.align.phrases import Phrase, check_fits, encode_phrases, read_phrases
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

# B rows, R response positions, P positions that are scored, V vocabulary, U tokens that occur in phrases, S starts.

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
    """Indices of the examples, and their prompts (right-padded, only for the trainer's token counts)."""
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
    ) -> None:
        if args.n_gpu > 1:
            raise UserError(
                "Several GPUs are visible to one process; start training with `accelerate launch`, "
                "or show one with CUDA_VISIBLE_DEVICES."
            )
        self.diffusion_model = model
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, Tensor] = {}
        super().__init__(
            model=model.network,
            args=args,
            train_dataset=PromptDataset(examples),
            data_collator=collate_prompts,
            callbacks=callbacks,
        )
        self.model_accepts_loss_kwargs = True

    @property
    def epoch_index(self) -> int:
        """Number of complete passes over the data so far."""
        return int(self.state.epoch or 0)

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, Tensor | int | None]:
        """The micro-batches of one update, and the number of examples in them on all processes."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        count = torch.tensor(sum(len(batch["index"]) for batch in batches), device=device)
        return batches, self.accelerator.reduce(count, reduction="sum")

    def mean_over_update(self, losses: Float[Tensor, " B"], num_examples: Tensor | int | None) -> Tensor:
        """This micro-batch's part of the mean loss over all examples of the update."""
        if num_examples is None:  # outside of training, for example in evaluate()
            return losses.mean()
        # Data-parallel training averages the gradients of its processes; we want their sum.
        return losses.sum() * self.accelerator.num_processes / num_examples

    def track(self, name: str, values: Tensor, counted: Bool[Tensor, " B"] | None = None) -> None:
        """Add rows to the mean that is logged under `name`; rows that are not `counted` are left out."""
        values = values.detach().double()
        weights = torch.ones_like(values) if counted is None else counted.to(values)
        self._sums[name] = self._sums.get(name, torch.zeros_like(weights[0])) + (values * weights).sum()
        self._counts[name] = self._counts.get(name, torch.zeros_like(weights[0])) + weights.sum()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log the trainer's own figures with the means of all rows since the last log."""
        if self._sums:
            sums = self.accelerator.reduce(torch.stack(list(self._sums.values())), reduction="sum")
            counts = self.accelerator.reduce(torch.stack(list(self._counts.values())), reduction="sum")
            for name, total, count in zip(self._sums, sums.tolist(), counts.tolist(), strict=True):
                if count:
                    logs[name] = total / count
            self._sums, self._counts = {}, {}
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

        # The window, from 1-based inclusive positions to 0-based [first, last + 1): the one place.
        self.first = args.window_start - 1
        longest = max(p.max_length for p in (*self.safe_phrases, *self.harmful_phrases))
        if args.window_end is None:
            self.last = self.first  # phrases start at window_start exactly
        else:
            self.last = args.window_end - 1
        if args.segment == "start_in_window" or args.window_end is None:
            self.end = min(self.last + longest, args.response_length)
        else:
            self.end = self.last + 1
        check_fits((*self.safe_phrases, *self.harmful_phrases), self.end - self.first, "the window")

        # The few tokens that phrases consist of; log-probabilities of all others are not scored.
        self.scored_ids, self.column_of_id = _scored_vocabulary(
            (*self.safe_phrases, *self.harmful_phrases), model.vocab_size
        )
        super().__init__(model, args, self.harmful, callbacks)

    def _require_answers(self) -> None:
        if self.config.uses_answers:
            for example in self.harmful:
                if example.answer_ids is None:
                    raise UserError(
                        "The settings use harmful answers (random_reveal_weight, prefix_weight or "
                        f"harmful_target) and harmful prompt {example.index + 1} has none; give "
                        "data with an `answer`, or use the fully masked state and harmful_target=phrase."
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

        # 1. Draw a state for every prompt, and lay the canvases side by side.
        states = [harmful_state(e, config, rng(seed, epoch, e.index, _STATE_STREAM)) for e in examples]
        tokens_BL, attended_BL = build_canvas(self.diffusion_model, [e.prompt_ids for e in examples], states)
        columns = self._response_positions(states)
        masked_BP = torch.stack([s.masked for s in states])[:, columns].to(device)

        # 2. One policy pass, one reference pass with the adapter off, logits where they are needed.
        policy_BPV, reference_BPV = self._log_probs(
            model, tokens_BL, attended_BL, columns, with_reference=config.uses_reference
        )

        # 3. The reward of phrases in the window.
        losses_B = self._phrase_losses(policy_BPV, reference_BPV, masked_BP, columns, states, indices)

        # 4. The harmful answer's own tokens.
        if config.harmful_target != "phrase" and config.harmful_weight > 0:
            losses_B = losses_B + self._answer_losses(policy_BPV, reference_BPV, columns, states)

        # 5. Stay near the reference.
        if config.beta > 0:
            assert reference_BPV is not None
            kl_BP = objective.kl_divergence(policy_BPV, reference_BPV)
            response_P = torch.tensor(columns, device=device)
            inside_P = (response_P >= self.first) & (response_P <= max(self.last, self.end - 1))
            if config.kl_positions == "window":
                counted_BP = masked_BP & inside_P
            elif config.kl_positions == "outside_window":
                counted_BP = masked_BP & ~inside_P
            else:
                counted_BP = masked_BP
            kl_B = _reduce_positions(kl_BP, counted_BP, config.kl_reduction)
            in_state_B = torch.tensor(
                [config.kl_states == "all" or s.state == "fully_masked" for s in states], device=device
            )
            self.track("kl", kl_B, in_state_B)
            losses_B = losses_B + config.beta * kl_B * in_state_B
        return losses_B

    def _response_positions(self, states: Sequence[ResponseState]) -> list[int]:
        """0-based response positions whose logits the score and the KL read; the same for all rows."""
        config = self.config
        needed = set(range(self.first, self.end))
        if config.contaminated_window == "response" and any(s.state != "fully_masked" for s in states):
            needed |= set(range(config.response_length))
        if config.harmful_target != "phrase" and config.harmful_weight > 0:
            needed |= set(range(max(s.answer_length for s in states)))
        if config.beta > 0 and config.kl_positions != "window":
            needed |= set(range(config.response_length))
        return sorted(needed)

    def _log_probs(
        self,
        model: nn.Module,
        tokens_BL: Int[Tensor, "B L"],
        attended_BL: Bool[Tensor, "B L"],
        columns: list[int],
        *,
        with_reference: bool,
    ) -> tuple[Float[Tensor, "B P V"], Float[Tensor, "B P V"] | None]:
        """Policy's and, if asked, reference's log-probabilities at the given response positions."""
        device = self.args.device
        response_length = self.config.response_length
        response_start = tokens_BL.shape[1] - response_length
        positions = torch.tensor(columns, device=device) + response_start
        tokens_BL, attended_BL = tokens_BL.to(device), attended_BL.to(device)
        call = self.diffusion_model.logits
        policy_BPV = call(tokens_BL, attended_BL, positions, network=model).log_softmax(dim=-1)
        if not with_reference:
            return policy_BPV, None
        with torch.no_grad(), self.diffusion_model.adapter_disabled():
            reference_BPV = call(tokens_BL, attended_BL, positions, network=model).log_softmax(dim=-1)
        return policy_BPV, reference_BPV

    def _phrase_losses(
        self,
        policy_BPV: Float[Tensor, "B P V"],
        reference_BPV: Float[Tensor, "B P V"] | None,
        masked_BP: Bool[Tensor, "B P"],
        columns: list[int],
        states: Sequence[ResponseState],
        indices: list[int],
    ) -> Float[Tensor, " B"]:
        """- safe_weight * score(s+) + harmful_weight * bound(score(s-)), and its metrics."""
        config = self.config
        safe_BK, harmful_BK = self._draw_phrases(indices)
        with_reference = reference_BPV if config.harmful_bound in ("hinge", "npo") else None

        # Rows are scored in groups that share a place to look: the window, or the whole response.
        scored_ids = self.scored_ids.to(policy_BPV.device)
        policy_BPU = policy_BPV[..., scored_ids]
        reference_BPU = None if with_reference is None else with_reference[..., scored_ids]
        losses = policy_BPV.new_zeros(len(indices))
        safe_scores, harmful_scores = torch.zeros_like(losses), torch.zeros_like(losses)
        best_starts, scored = torch.zeros_like(losses), torch.zeros_like(losses, dtype=torch.bool)
        wide_rows = [
            config.contaminated_window == "response" and s.state != "fully_masked" for s in states
        ]
        for wide in (False, True):
            rows = [row for row, is_wide in enumerate(wide_rows) if is_wide == wide]
            if not rows:
                continue
            first, last = (0, config.response_length - 1) if wide else (self.first, self.last)
            end = config.response_length if wide else self.end
            at = slice(columns.index(first), columns.index(first) + end - first)
            free = masked_BP[rows][:, at]
            num_starts = last - first + 1
            for phrases_BK, is_safe in ((safe_BK, True), (harmful_BK, False)):
                for phrase, local_rows in _group_by_phrase([phrases_BK[row] for row in rows]):
                    share = 1.0 / len(phrases_BK[rows[0]])
                    row_ids = torch.tensor([rows[r] for r in local_rows], device=losses.device)
                    free_b = free[local_rows]
                    score_b, start_b, found_b = self._score(
                        policy_BPU[row_ids][:, at], phrase, free_b, num_starts
                    )
                    if is_safe:
                        term_b = -config.safe_weight * score_b
                        safe_scores = safe_scores.index_add(0, row_ids, share * score_b.detach())
                        best_starts = best_starts.index_add(0, row_ids, share * (start_b + first + 1.0))
                        scored = scored.index_fill(0, row_ids[found_b], True)
                    else:
                        reference_b = None
                        if reference_BPU is not None:
                            reference_b, _, _ = self._score(
                                reference_BPU[row_ids][:, at], phrase, free_b, num_starts
                            )
                        bounded_b = objective.bound_harmful(
                            score_b,
                            reference_b,
                            config.harmful_bound,
                            margin=config.harmful_margin,
                            npo_beta=config.npo_beta,
                        )
                        term_b = config.harmful_weight * bounded_b
                        harmful_scores = harmful_scores.index_add(0, row_ids, share * score_b.detach())
                        if config.harmful_target == "answer":
                            term_b = torch.zeros_like(term_b)
                    losses = losses.index_add(0, row_ids, share * term_b * found_b)

        self.track("score_safe", safe_scores, scored)
        self.track("score_harmful", harmful_scores, scored)
        self.track("reward", safe_scores - harmful_scores, scored)
        self.track("best_start", best_starts, scored)
        self.track("scored_share", scored)
        self._track_refusals(policy_BPV, columns, states)
        return losses

    def _score(
        self,
        log_probs: Float[Tensor, "B P U"],
        phrase: Phrase,
        free: Bool[Tensor, "B P"],
        num_starts: int,
    ) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"], Bool[Tensor, " B"]]:
        """Score of one phrase over its starts and variants: value, best start, whether there was one.

        A start is a position of `log_probs`; only the first `num_starts` may begin a phrase.
        """
        config = self.config
        num_positions = log_probs.shape[1]
        if config.revealed == "around":
            log_probs, num_free_B, order_BP = objective.gather_free(log_probs, free)
        else:
            num_free_B, order_BP = None, None
        if config.revealed == "masked_only":
            log_probs = log_probs * free[..., None]
        fill_id = phrase.fill_token_id
        fill_column = None if fill_id is None else int(self.column_of_id[fill_id])
        scores, valid, starts = [], [], []
        for variant in phrase.variants:
            length = len(variant)
            if length > num_positions:
                continue
            score_BS = objective.window_scores(
                log_probs,
                self.column_of_id[list(variant)].to(log_probs.device),
                num_starts=num_starts,
                token_reduction=config.token_reduction,
                fill_token_id=fill_column,
                fill_to=None if fill_column is None else num_starts,
            )
            start_S = torch.arange(score_BS.shape[1], device=log_probs.device)
            start_BS = start_S.expand_as(score_BS)
            if order_BP is not None and num_free_B is not None:
                # Starts are counted among the free positions; the place is where they came from.
                start_BS = order_BP[:, : score_BS.shape[1]]
                fits_BS = start_S[None] + length <= num_free_B[:, None]
                valid_BS = fits_BS & (start_BS < num_starts)
            else:
                free_BS = free.unfold(1, length, 1)[:, : score_BS.shape[1]]
                if config.revealed == "masked_only":
                    # A start with few masked positions must not win by having little to say.
                    num_free_BS = free_BS.sum(dim=-1)
                    valid_BS = num_free_BS > 0
                    score_BS = score_BS * length / num_free_BS.clamp(min=1)
                else:
                    valid_BS = free_BS.all(dim=-1)
                    if phrase.fill_token_id is not None:
                        # The filled rest of the window must be free as well.
                        rest_free_BS = free[:, :num_starts].flip(-1).cummin(-1).values.flip(-1)
                        valid_BS = valid_BS & rest_free_BS[:, : score_BS.shape[1]]
            scores.append(score_BS)
            valid.append(valid_BS)
            starts.append(start_BS)
        all_starts = torch.cat(starts, dim=1)
        score_B, best_B, found_B = objective.reduce_starts(
            torch.cat(scores, dim=1), config.start_reduction, torch.cat(valid, dim=1)
        )
        return score_B, all_starts.gather(1, best_B[:, None]).squeeze(1).to(score_B), found_B

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
        self, policy_BPV: Float[Tensor, "B P V"], columns: list[int], states: Sequence[ResponseState]
    ) -> None:
        """Share of fully masked rows whose greedy first step already holds a refusal in the window."""
        rows = [row for row, state in enumerate(states) if state.state == "fully_masked"]
        if not rows:
            return
        at = slice(columns.index(self.first), columns.index(self.first) + self.end - self.first)
        greedy = policy_BPV.detach()[rows][:, at].argmax(dim=-1)
        holds = torch.zeros(len(rows), dtype=torch.bool, device=greedy.device)
        for phrase in self.safe_phrases:
            for words in phrase.words:
                holds |= objective.contains_phrase(greedy, torch.tensor(words, device=greedy.device))
        self.track("refusal_share", holds)

    def _answer_losses(
        self,
        policy_BPV: Float[Tensor, "B P V"],
        reference_BPV: Float[Tensor, "B P V"] | None,
        columns: list[int],
        states: Sequence[ResponseState],
    ) -> Float[Tensor, " B"]:
        """Bounded log-likelihood of the harmful answer's masked tokens, a mean over each row's."""
        config, device = self.config, policy_BPV.device
        target_BP = torch.stack([_target(s) for s in states])[:, columns].to(device)
        response_P = torch.tensor(columns)
        counted_BP = torch.stack([s.masked[columns] & (response_P < s.answer_length) for s in states])
        counted_BP = counted_BP.to(device)
        score_BP = policy_BPV.gather(-1, target_BP[..., None]).squeeze(-1)
        reference_BP = None
        if reference_BPV is not None:
            reference_BP = reference_BPV.gather(-1, target_BP[..., None]).squeeze(-1)
        bounded_BP = objective.bound_harmful(
            score_BP,
            reference_BP,
            config.harmful_bound,
            margin=config.answer_margin,
            npo_beta=config.npo_beta,
        )
        self.track("score_answer", _reduce_positions(score_BP, counted_BP, "mean"), counted_BP.any(-1))
        weight = config.harmful_weight * config.answer_weight
        return weight * _reduce_positions(bounded_BP, counted_BP, "mean")

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
        tokens_BL, attended_BL = build_canvas(self.diffusion_model, prompts, states)
        columns = list(range(config.response_length))
        masked_BP = torch.stack([s.masked for s in states]).to(device)
        policy_BPV, reference_BPV = self._log_probs(
            model, tokens_BL, attended_BL, columns, with_reference=config.benign_beta > 0
        )
        losses = policy_BPV.new_zeros(len(states))
        if reference_BPV is not None:
            kl_BP = objective.kl_divergence(policy_BPV, reference_BPV)
            kl_B = _reduce_positions(kl_BP, masked_BP, config.kl_reduction)
            self.track("kl_benign", kl_B)
            losses = losses + config.benign_beta * kl_B
        if config.benign_retain_weight > 0:
            target_BP = torch.stack([_target(s) for s in states]).to(device)
            ratio_B = torch.tensor([s.mask_ratio for s in states], device=device)
            retain_B = masked_cross_entropy(policy_BPV, target_BP, masked_BP, ratio_B)
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
    return [i for i in model.end_token_ids if i != model.eos_token_id][:1]


def masked_cross_entropy(
    log_probs: Float[Tensor, "B P V"],
    target: Int[Tensor, "B P"],
    masked: Bool[Tensor, "B P"],
    mask_ratio: Float[Tensor, " B"],
    lengths: Float[Tensor, " B"] | None = None,
) -> Float[Tensor, " B"]:
    """Masked-diffusion loss of each row: sum over masked positions of -log p / t, per position.

    LLaDA (arXiv 2502.09992, eq. 5; GUIDELINES.md: cross-entropy over the mask ratio t, averaged
    over the answer's length, end-of-text padding included). `lengths` is that length, default P.
    """
    token_losses = -log_probs.gather(-1, target[..., None]).squeeze(-1).masked_fill(~masked, 0.0)
    length = lengths if lengths is not None else target.shape[1]
    return token_losses.sum(dim=-1) / mask_ratio / length


def _scored_vocabulary(
    phrases: Sequence[Phrase], vocab_size: int
) -> tuple[Int[Tensor, " U"], Int[Tensor, " V"]]:
    """The token ids that occur in phrases, and for every id of the vocabulary its place among them."""
    ids = {i for phrase in phrases for variant in phrase.variants for i in variant}
    ids |= {phrase.fill_token_id for phrase in phrases if phrase.fill_token_id is not None}
    scored_ids = torch.tensor(sorted(ids))
    column_of_id = torch.full((vocab_size,), -1)
    column_of_id[scored_ids] = torch.arange(len(scored_ids))
    return scored_ids, column_of_id


def _target(state: ResponseState) -> Int[Tensor, " R"]:
    assert state.target is not None, "answers are checked when the trainer is made"
    return state.target


def _reduce_positions(
    values: Float[Tensor, "B P"], counted: Bool[Tensor, "B P"], how: Literal["sum", "mean"]
) -> Float[Tensor, " B"]:
    """Sum or mean of each row over its counted positions; 0 for a row without any."""
    total = values.masked_fill(~counted, 0.0).sum(dim=-1)
    return total / counted.sum(dim=-1).clamp(min=1) if how == "mean" else total


def _group_by_phrase(phrases_of_rows: list[list[Phrase]]) -> list[tuple[Phrase, list[int]]]:
    """Every phrase with the rows that use it, so that rows with one phrase are scored together."""
    groups: dict[Phrase, list[int]] = {}
    for row, phrases in enumerate(phrases_of_rows):
        for phrase in phrases:
            groups.setdefault(phrase, []).append(row)
    return list(groups.items())
