"""What a model answers to the prompts of useful tasks, and how likely it finds given answers.

Everything is asked in batches of one decoder, and where there are records, what stands in them is
not asked again: a response under a hash of weights, canvas and decoder, a likelihood under a hash
of weights, tokens and draws. So a run that was killed goes on with the batch it lost.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch.nn.utils.rnn import pad_sequence

from mosa.denoising import Canvas, DecoderConfig, sample
from mosa.denoising.likelihood import guided_logits, log_likelihood_bound
from mosa.denoising.sampler import evaluation_mode
from mosa.evaluation.engine import LocalResponder, Row
from mosa.evaluation.store import Store
from mosa.families import DiffusionLM
from mosa.types import Prompt, Response, UserError, as_plain, content_key

Item = TypeVar("Item", bound=Hashable)
Value = TypeVar("Value")

NUM_DRAWS = 128
"""Maskings of an answer of several tokens, where nothing else is asked for."""


@dataclass(frozen=True)
class Question:
    """A prompt as the model gets it."""

    ids: tuple[int, ...]
    seed: int
    prompt: Prompt = field(compare=False)
    """The prompt in words, for the records."""


@dataclass(frozen=True)
class Pair:
    """A prompt, and an answer whose likelihood is asked for."""

    ids: tuple[int, ...]
    answer_ids: tuple[int, ...]


@dataclass
class Tally:
    """What has been answered, for progress and for the records."""

    num_asked: int = 0
    """Different questions."""
    num_recorded: int = 0
    """Of these, found in the records."""
    num_answered: int = 0
    """Of these, answered now."""
    model_seconds: float = 0.0
    """Time in which the model worked."""


class Answerer:
    """A model that answers in batches, and remembers its answers where it has a store."""

    def __init__(
        self,
        model: DiffusionLM,
        decoder: DecoderConfig,
        *,
        batch_size: int,
        num_draws: int,
        store: Store | None = None,
        weights: str | None = None,
        on_answers: Callable[[Tally], object] = lambda tally: None,
    ) -> None:
        """`num_draws` is the number of maskings of an answer of several tokens; `weights` the
        model's `content_hash`, if the caller knows it."""
        if batch_size < 1 or num_draws < 1:
            raise UserError("batch_size and num_draws must be at least 1")
        self.model, self.decoder, self.store = model, decoder, store
        self.batch_size, self.num_draws = batch_size, num_draws
        self.on_answers = on_answers
        self.weights = weights or ("" if store is None else model.content_hash())
        self.tally = Tally()

    def too_long(self, num_prompt: int, num_answer: int) -> str:
        """Why a prompt and an answer of so many tokens cannot be asked; empty where they can."""
        if num_prompt + num_answer <= self.model.max_length:
            return ""
        return (
            f"the prompt and an answer (of {num_answer}) are more tokens than the model's context, "
            f"{self.model.max_length}"
        )

    def _answers(
        self,
        items: Sequence[Item],
        *,
        find: Callable[[Store, Item], Value | None],
        ask: Callable[[list[Item]], Sequence[Value]],
        keep: Callable[[Store, Item, Value], object],
        length: Callable[[Item], int],
        num_rows: int,
    ) -> list[Value]:
        """A value for every item, in their order: recorded ones first, then batch by batch."""
        found: dict[Item, Value] = {}
        left: list[Item] = []
        for item in dict.fromkeys(items):
            recorded = None if self.store is None else find(self.store, item)
            if recorded is None:
                left.append(item)
            else:
                found[item] = recorded
        self.tally.num_asked += len(found) + len(left)
        self.tally.num_recorded += len(found)
        self.on_answers(self.tally)
        # Of similar length together, the longest first: what does not fit shows at once.
        left.sort(key=length, reverse=True)
        for start in range(0, len(left), num_rows):
            batch = left[start : start + num_rows]
            begin = time.perf_counter()
            try:
                values = ask(batch)
            except torch.OutOfMemoryError as error:
                raise UserError(
                    f"a batch of {self.batch_size} does not fit into memory; lower --batch_size "
                    "and run the same command again, which goes on where it stopped"
                ) from error
            self.tally.model_seconds += time.perf_counter() - begin
            for item, value in zip(batch, values, strict=True):
                found[item] = value
                if self.store is not None:
                    keep(self.store, item, value)
            if self.store is not None:
                self.store.commit()
            self.tally.num_answered += len(batch)
            self.on_answers(self.tally)
        return [found[item] for item in items]

    # ------------------------------------------------------------------------------- responses

    def respond(self, questions: Sequence[Question]) -> list[Response]:
        """The response to every question, in their order."""
        responder = LocalResponder(self.model, self.weights)
        return self._answers(
            questions,
            find=lambda store, question: store.response(self._row(question).key),
            ask=lambda batch: responder.respond([self._row(question) for question in batch]),
            keep=lambda store, _, response: store.add_response(response),
            length=lambda question: len(question.ids),
            num_rows=self.batch_size,
        )

    def _row(self, question: Question) -> Row:
        response_ids = [self.model.mask_token_id] * self.decoder.max_new_tokens
        decoder = replace(self.decoder, seed=question.seed)
        key = content_key(
            weights=self.weights,
            prompt=question.ids,
            response=response_ids,
            edit=None,
            decoder=as_plain(decoder),
        )
        return Row(key, question.prompt, list(question.ids), response_ids, decoder)

    # ------------------------------------------------------------------------------- likelihoods

    def log_likelihoods(self, pairs: Sequence[Pair]) -> list[float]:
        """The bound on log p(answer | prompt) of every pair, in nats, in their order.

        An answer of a single token has one masking, which gives its log-probability exactly.
        """
        single = [pair for pair in pairs if len(pair.answer_ids) == 1]
        longer = [pair for pair in pairs if len(pair.answer_ids) > 1]
        found = self._of_single_tokens(single)
        found |= zip(longer, self._bounds(longer), strict=True)
        return [found[pair] for pair in pairs]

    def _bounds(self, pairs: Sequence[Pair]) -> list[float]:
        return self._answers(
            pairs,
            find=lambda store, pair: _field(store, self.likelihood_key(pair), "log_likelihood"),
            ask=lambda batch: log_likelihood_bound(
                self.model,
                _pair_canvas(self.model, batch),
                num_samples=self.num_draws,
                batch_size=self.batch_size,
                cfg_scale=self.decoder.cfg_scale,
                seed=self.decoder.seed,
            ).mean.tolist(),
            keep=self._keep_likelihood,
            length=lambda pair: len(pair.ids) + len(pair.answer_ids),
            num_rows=max(1, self.batch_size // self.num_draws),
        )

    def _of_single_tokens(self, pairs: Sequence[Pair]) -> dict[Pair, float]:
        """Log-probabilities of single tokens; a prompt with several takes one row for all."""
        answers: dict[tuple[int, ...], dict[int, None]] = {}
        for pair in pairs:
            answers.setdefault(pair.ids, {})[pair.answer_ids[0]] = None
        items = [tuple(Pair(ids, (token,)) for token in tokens) for ids, tokens in answers.items()]

        def find(store: Store, item: tuple[Pair, ...]) -> list[float] | None:
            keys = [self.likelihood_key(pair) for pair in item]
            values = [_field(store, key, "log_likelihood") for key in keys]
            return None if None in values else values

        def ask(batch: list[tuple[Pair, ...]]) -> list[list[float]]:
            ids, real = _left_padded([item[0].ids for item in batch], self.model.pad_token_id)
            canvas = Canvas.from_prompts(self.model, ids, max_new_tokens=1, attention_mask=real)
            with evaluation_mode(self.model), torch.no_grad():
                log_probs_B1V = guided_logits(
                    self.model,
                    canvas.tokens,
                    canvas.attention_mask,
                    torch.tensor([canvas.response_start], device=canvas.tokens.device),
                    given=canvas.attention_mask & ~canvas.free,
                    cfg_scale=self.decoder.cfg_scale,
                ).log_softmax(dim=-1)
            return [
                log_probs_B1V[row, 0, [pair.answer_ids[0] for pair in item]].tolist()
                for row, item in enumerate(batch)
            ]

        def keep(store: Store, item: tuple[Pair, ...], values: list[float]) -> None:
            for pair, value in zip(item, values, strict=True):
                self._keep_likelihood(store, pair, value)

        found = self._answers(
            items,
            find=find,
            ask=ask,
            keep=keep,
            length=lambda item: len(item[0].ids),
            num_rows=self.batch_size,
        )
        return {
            pair: value
            for item, values in zip(items, found, strict=True)
            for pair, value in zip(item, values, strict=True)
        }

    def _num_draws(self, pair: Pair) -> int:
        return 1 if len(pair.answer_ids) == 1 else self.num_draws

    def _keep_likelihood(self, store: Store, pair: Pair, value: float) -> None:
        record = {"log_likelihood": value, "num_draws": self._num_draws(pair)}
        store.add_step(self.likelihood_key(pair), record)

    def likelihood_key(self, pair: Pair) -> str:
        """A hash of all that decides the estimate of a likelihood."""
        return content_key(
            likelihood_of=pair.answer_ids,
            prompt=pair.ids,
            weights=self.weights,
            num_draws=self._num_draws(pair),
            cfg_scale=self.decoder.cfg_scale,
            seed=self.decoder.seed,
        )

    def greedy_answers(self, pairs: Sequence[Pair]) -> list[tuple[int, ...]]:
        """What the model itself puts in the place of every pair's answer, given its length: the
        likeliest token of the surest position, one after the other."""

        def ask(batch: list[tuple[tuple[int, ...], int]]) -> list[tuple[int, ...]]:
            length = batch[0][1]
            ids, real = _left_padded([ids for ids, _ in batch], self.model.pad_token_id)
            scale = self.decoder.cfg_scale
            config = DecoderConfig(max_new_tokens=length, steps=length, cfg_scale=scale)
            result = sample(self.model, ids, config, attention_mask=real)
            return [tuple(row) for row in result.tokens.tolist()]

        def key(item: tuple[tuple[int, ...], int]) -> str:
            ids, length = item
            scale = self.decoder.cfg_scale
            return content_key(greedy=length, prompt=ids, weights=self.weights, cfg_scale=scale)

        wanted = [(pair.ids, len(pair.answer_ids)) for pair in pairs]
        found: dict[tuple[tuple[int, ...], int], tuple[int, ...]] = {}
        for length in sorted({length for _, length in wanted}):
            alike = [item for item in wanted if item[1] == length]
            values = self._answers(
                alike,
                find=lambda store, item: _field(store, key(item), "greedy"),
                ask=ask,
                keep=lambda store, item, value: store.add_step(key(item), {"greedy": value}),
                length=lambda item: len(item[0]),
                num_rows=self.batch_size,
            )
            found |= ((item, tuple(value)) for item, value in zip(alike, values, strict=True))
        return [found[item] for item in wanted]


def _field(store: Store, key: str, name: str) -> Any:
    step = store.step(key)
    return None if step is None else step[name]


def _left_padded(rows: Sequence[Sequence[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of ids side by side, and where they are."""
    tensors = [torch.tensor(row, dtype=torch.long) for row in rows]
    ids = pad_sequence(tensors, batch_first=True, padding_value=pad, padding_side="left")
    real = [torch.ones_like(row, dtype=torch.bool) for row in tensors]
    return ids, pad_sequence(real, batch_first=True, padding_side="left")


def _pair_canvas(model: DiffusionLM, pairs: Sequence[Pair]) -> Canvas:
    """Prompts with their answers, padded on both sides."""
    ids, real = _left_padded([pair.ids for pair in pairs], model.pad_token_id)
    answers = [torch.tensor(pair.answer_ids) for pair in pairs]
    answer_ids = pad_sequence(answers, batch_first=True, padding_value=model.pad_token_id)
    is_answer = [torch.ones_like(row, dtype=torch.bool) for row in answers]
    return Canvas(
        tokens=torch.cat([ids, answer_ids], dim=1).to(model.device),
        attention_mask=torch.cat([real, pad_sequence(is_answer, batch_first=True)], dim=1).to(
            model.device
        ),
        response_start=ids.shape[1],
        mask_token_id=model.mask_token_id,
    )
