"""A chat model on this machine: any causal language model of the transformers library.

Requests that come together are answered together. A draw at a temperature above 0 is the arg max of
the logits plus Gumbel noise from its own generator, which makes a sample reproducible from its
seed in any batch, and leaves torch's global generator untouched.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, TopPLogitsWarper

from mosa.chat.base import ChatError, ChatReply, ChatRequest
from mosa.chat.questions import without_thoughts
from mosa.chat.text import without_strings
from mosa.chat.weights import CausalLM, LocalModel, chooses_nothing
from mosa.hub.bounded import faults_of
from mosa.types import Message, UserError


class LocalChat:
    """The model of a folder or hub id, loaded when it is first asked.

    The messages are put into the tokenizer's own chat template. Strings in them that the tokenizer
    would read as control tokens are taken out, so that no text can end its turn.
    """

    def __init__(
        self, checkpoint: str | Path, *, device: str | None = None, batch_size: int = 8
    ) -> None:
        self.model = LocalModel(checkpoint, device=device, batch_size=batch_size)

    @property
    def name(self) -> str:
        """The checkpoint as it was named, with a hash of its files where it is a folder."""
        return f"{self.model.name} (local)"

    @property
    def place(self) -> str:
        """The device that was asked for."""
        return self.model.device or "local"

    async def complete(self, request: ChatRequest) -> ChatReply:
        """The model's answer; raises ChatError for a prompt that it cannot take."""
        answer = (await self.model.compute(answers, request))["answer"]
        if isinstance(answer, ChatError):
            raise answer
        return answer


def answers(model: CausalLM, requests: Sequence[ChatRequest]) -> list[dict[str, Any]]:
    """For each request `answer`, a ChatReply or the ChatError of a prompt that cannot be taken."""
    prompts = [_prompt_ids(model, request) for request in requests]
    fitting = [i for i, prompt in enumerate(prompts) if isinstance(prompt, list)]
    rows = [prompt for prompt in prompts if isinstance(prompt, list)]
    replies = _generate(model, rows, [requests[i] for i in fitting]) if rows else []
    reply = dict(zip(fitting, replies, strict=True))
    return [{"answer": reply.get(i, prompt)} for i, prompt in enumerate(prompts)]


def _prompt_ids(model: CausalLM, request: ChatRequest) -> list[int] | ChatError:
    if not model.chat_template:
        raise UserError(
            f"{model.checkpoint} has no chat template; choose a model that was tuned to chat"
        )
    turns = [
        Message(m.role, without_strings(m.content, model.special_tokens)) for m in request.messages
    ]
    try:
        ids = model.prompt_ids(_rendered(model, turns))
    except UserError as error:
        return ChatError(str(error))
    room = model.max_length
    if room is not None and len(ids) >= room:
        return ChatError(f"the prompt has {len(ids)} tokens, {model.checkpoint} takes {room}")
    return ids


def _rendered(model: CausalLM, turns: Sequence[Message]) -> str:
    """The prompt in the chat template; UserError where that fails or loses what we ask."""
    try:
        return model.rendered([{"role": turn.role, "content": turn.content} for turn in turns])
    except UserError:
        if turns[0].role != "system" or len(turns) == 1:
            raise
    # Some templates know no system turn; its words then precede the user's.
    merged = Message(turns[1].role, f"{turns[0].content}\n\n{turns[1].content}")
    return _rendered(model, [merged, *turns[2:]])


def _generate(
    model: CausalLM, prompts: Sequence[list[int]], requests: Sequence[ChatRequest]
) -> list[ChatReply | ChatError]:
    """Answers to prompts of one batch, each cut at its own `max_tokens` or the model's room; an
    error where the model's scores are no numbers, or the same for every token."""
    room = model.max_length
    limits = [
        request.max_tokens if room is None else min(request.max_tokens, room - len(prompt))
        for prompt, request in zip(prompts, requests, strict=True)
    ]
    ids_BL, mask_BL = model.left_padded(prompts)
    end_ids = model.end_token_ids
    draws = _Draws(requests)
    with running(model):
        out_BL = model.network.generate(
            ids_BL,
            attention_mask=mask_BL,
            logits_processor=LogitsProcessorList([draws]),
            generation_config=GenerationConfig(
                max_new_tokens=max(limits),
                do_sample=False,
                eos_token_id=list(end_ids) or None,
                pad_token_id=model.pad_token_id,
            ),
        )
    replies: list[ChatReply | ChatError] = []
    unusable = [bool(row) for row in draws.is_unusable_B]
    for prompt, limit, row, is_unusable in zip(
        prompts, limits, out_BL.tolist(), unusable, strict=True
    ):
        if is_unusable:
            replies.append(
                ChatError(
                    f"the scores of {model.checkpoint} are NaN, infinite or all equal; its weights "
                    "or settings are damaged"
                )
            )
            continue
        written = row[ids_BL.shape[1] :][:limit]
        length = next((i for i, token in enumerate(written) if token in end_ids), len(written))
        text = _text(model, written[:length])
        is_cut = length == len(written)
        replies.append(ChatReply(text, len(prompt) + length, is_cut))
    return replies


def _text(model: CausalLM, written: list[int]) -> str:
    """The text of an answer's tokens, without the control tokens.

    Where these mark thoughts, nothing in the text would, so that the thoughts go with them.
    """
    text = model.decode(written, skip_special_tokens=True)
    answer = without_strings(without_thoughts(model.decode(written)), model.special_tokens)
    return text if answer.strip() == without_thoughts(text) else answer.strip()


@contextmanager
def running(model: CausalLM) -> Generator[None]:
    """Inside, a model computes; some settings of its config are read only here.

    Raises UserError where the library fails on them.
    """
    remedy = "get the whole checkpoint, with the config that belongs to it"
    with torch.inference_mode(), faults_of(f"The config of {model.checkpoint}", remedy):
        yield


class _Draws(LogitsProcessor):
    """Turns the arg max of a row into a draw at its temperature (the Gumbel-max identity).

    Noise is drawn on the CPU, from the seed and the messages, so that a batch, its order and the
    device change only rounding. Rows whose scores choose no token are noted in `is_unusable_B`.
    """

    def __init__(self, requests: Sequence[ChatRequest]) -> None:
        self._requests = requests
        self._generators = [torch.Generator().manual_seed(_seed(r)) for r in requests]
        self.is_unusable_B: Tensor = torch.zeros(len(requests), dtype=torch.bool)

    def __call__(self, input_ids: Any, scores: Tensor) -> Tensor:
        scores_BV = scores.float().clone()
        is_unusable_B = chooses_nothing(scores_BV)
        self.is_unusable_B |= is_unusable_B.cpu()
        scores_BV[is_unusable_B] = 0.0
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
