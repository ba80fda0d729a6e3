"""A chat model on this machine: any causal language model of the transformers library.

Requests that come together are answered together. A draw at a temperature above 0 is the arg max of
the logits plus Gumbel noise from its own generator, which makes a sample reproducible from its
seed in any batch, and leaves torch's global generator untouched.
"""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jinja2.exceptions import TemplateError
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, TopPLogitsWarper

from mosa.chat.base import ChatError, ChatReply, ChatRequest
from mosa.chat.text import without_strings
from mosa.chat.weights import CausalLM, checkpoint_name, load_causal_lm
from mosa.types import Message, UserError


@dataclass
class _Batch:
    """Requests that are answered together, and the task that answers them."""

    requests: list[ChatRequest] = field(default_factory=list[ChatRequest])
    task: asyncio.Task[list[ChatReply | ChatError]] | None = None


class LocalChat:
    """The model of a folder or hub id, loaded when it is first asked.

    The messages are put into the tokenizer's own chat template. Strings in them that the tokenizer
    would read as control tokens are taken out, so that no text can end its turn.
    """

    def __init__(
        self, checkpoint: str | Path, *, device: str | None = None, batch_size: int = 8
    ) -> None:
        if batch_size < 1:
            raise UserError(f"batch_size of a chat model must be at least 1, not {batch_size}.")
        self._checkpoint = checkpoint
        self._named = checkpoint_name(checkpoint)
        self._device = device
        self._batch_size = batch_size
        self._model: CausalLM | None = None
        self._one_at_a_time = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._busy = asyncio.Lock()
        self._open: _Batch | None = None

    @property
    def name(self) -> str:
        """The checkpoint as it was named, with a hash of its files where it is a folder."""
        return f"{self._named} (local)"

    @property
    def place(self) -> str:
        """The device that was asked for."""
        return self._device or "local"

    async def complete(self, request: ChatRequest) -> ChatReply:
        """The model's answer; raises ChatError for a prompt that it cannot take."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._loop, self._busy, self._open = loop, asyncio.Lock(), None
        batch = self._open
        if batch is None:
            batch = self._open = _Batch()
            batch.task = loop.create_task(self._run(batch, self._busy))
        number = len(batch.requests)
        batch.requests.append(request)
        if len(batch.requests) == self._batch_size:
            self._open = None
        assert batch.task is not None
        # Shielded: a caller who gives up must not cancel the others' answers.
        reply = (await asyncio.shield(batch.task))[number]
        if isinstance(reply, ChatError):
            raise reply
        return reply

    async def _run(self, batch: _Batch, busy: asyncio.Lock) -> list[ChatReply | ChatError]:
        async with busy:
            # Others join while the model is busy, and then until a turn adds none.
            num_seen = 0
            while num_seen < len(batch.requests) < self._batch_size:
                num_seen = len(batch.requests)
                await asyncio.sleep(0)
            if self._open is batch:
                self._open = None
            return await asyncio.to_thread(self._answer, batch.requests)

    def _answer(self, requests: Sequence[ChatRequest]) -> list[ChatReply | ChatError]:
        with self._one_at_a_time:
            if self._model is None:
                self._model = load_causal_lm(self._checkpoint, device=self._device)
            model = self._model
            prompts = [self._prompt_ids(model, request) for request in requests]
            fitting = [i for i, prompt in enumerate(prompts) if isinstance(prompt, list)]
            rows = [prompt for prompt in prompts if isinstance(prompt, list)]
            answers = _generate(model, rows, [requests[i] for i in fitting]) if rows else []
        answer = dict(zip(fitting, answers, strict=True))
        return [p if isinstance(p, ChatError) else answer[i] for i, p in enumerate(prompts)]

    def _prompt_ids(self, model: CausalLM, request: ChatRequest) -> list[int] | ChatError:
        if not model.tokenizer.chat_template:
            raise UserError(
                f"{self._checkpoint} has no chat template; choose a model that was tuned to chat."
            )
        turns = [
            Message(m.role, without_strings(m.content, model.special_tokens))
            for m in request.messages
        ]
        try:
            text = _rendered(model, turns)
        except TemplateError as error:
            # Some templates know no system turn; its words then precede the user's.
            if turns[0].role != "system" or len(turns) == 1:
                return ChatError(f"The chat template of {self._checkpoint} fails: {error}.")
            merged = Message(turns[1].role, f"{turns[0].content}\n\n{turns[1].content}")
            try:
                text = _rendered(model, [merged, *turns[2:]])
            except TemplateError as again:
                return ChatError(f"The chat template of {self._checkpoint} fails: {again}.")
        ids = model.tokenizer(text, add_special_tokens=False).input_ids
        room = model.max_length
        if room is not None and len(ids) >= room:
            return ChatError(f"The prompt has {len(ids)} tokens, {self._checkpoint} takes {room}.")
        return ids


def _rendered(model: CausalLM, turns: Sequence[Message]) -> str:
    return model.tokenizer.apply_chat_template(
        [{"role": turn.role, "content": turn.content} for turn in turns],
        tokenize=False,
        add_generation_prompt=True,
    )


def _generate(
    model: CausalLM, prompts: Sequence[list[int]], requests: Sequence[ChatRequest]
) -> list[ChatReply]:
    """Answers to prompts of one batch, each cut at its own `max_tokens` or the model's room."""
    room = model.max_length
    limits = [
        request.max_tokens if room is None else min(request.max_tokens, room - len(prompt))
        for prompt, request in zip(prompts, requests, strict=True)
    ]
    ids_BL, mask_BL = model.left_padded(prompts)
    end_ids = _end_ids(model)
    with torch.inference_mode():
        out_BL = model.network.generate(
            ids_BL,
            attention_mask=mask_BL,
            logits_processor=LogitsProcessorList([_Draws(requests)]),
            # Written out, since a checkpoint's own settings may ask for sampling or penalties.
            generation_config=GenerationConfig(
                max_new_tokens=max(limits),
                do_sample=False,
                temperature=1.0,
                top_p=1.0,
                top_k=50,
                repetition_penalty=1.0,
                eos_token_id=end_ids or None,
                pad_token_id=model.pad_token_id,
            ),
        )
    replies: list[ChatReply] = []
    for prompt, limit, row in zip(prompts, limits, out_BL.tolist(), strict=True):
        written = row[ids_BL.shape[1] :][:limit]
        length = next((i for i, token in enumerate(written) if token in end_ids), len(written))
        text = model.tokenizer.decode(written[:length], skip_special_tokens=True)
        is_cut = length == len(written)
        replies.append(ChatReply(text, len(prompt) + length, is_cut))
    return replies


def _end_ids(model: CausalLM) -> list[int]:
    """The tokens that end an answer: the tokenizer's, and those that the checkpoint names."""
    stated: int | list[int] | None = model.network.generation_config.eos_token_id
    own: int | None = model.tokenizer.eos_token_id
    ids = dict.fromkeys([*(stated if isinstance(stated, list) else [stated]), own])
    return [token_id for token_id in ids if token_id is not None]


class _Draws(LogitsProcessor):
    """Turns the arg max of a row into a draw at its temperature (the Gumbel-max identity).

    Noise is drawn on the CPU, from the seed and the messages, so that a batch, its order and the
    device change only rounding.
    """

    def __init__(self, requests: Sequence[ChatRequest]) -> None:
        self._requests = requests
        self._generators = [torch.Generator().manual_seed(_seed(r)) for r in requests]

    def __call__(self, input_ids: Any, scores: Tensor) -> Tensor:
        scores_BV = scores.float().clone()
        for row, (request, generator) in enumerate(
            zip(self._requests, self._generators, strict=True)
        ):
            if request.temperature <= 0:
                continue
            logits_1V = scores_BV[row : row + 1] / request.temperature
            if request.top_p < 1:
                logits_1V = TopPLogitsWarper(request.top_p)(input_ids, logits_1V)
            waiting_V = torch.empty(logits_1V.shape[-1]).exponential_(generator=generator)
            scores_BV[row] = logits_1V[0] - waiting_V.log().to(logits_1V.device)
        return scores_BV


def _seed(request: ChatRequest) -> int:
    turns = [(turn.role, turn.content) for turn in request.messages]
    digest = hashlib.sha256(repr((request.seed, turns)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
