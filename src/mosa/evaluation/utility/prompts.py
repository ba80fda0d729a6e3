"""Prompts and answers of lm-evaluation-harness as token ids, and its stop strings.

The harness passes a prompt on as text. Turns are kept apart on the way (`Dialogue`), so that they
go through the model's own chat template, in which nothing that a user wrote becomes a special
token. Text that is no dialogue goes to the model as it is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from mosa.evaluation.utility.answers import Pair
from mosa.families import DiffusionLM
from mosa.types import Message, Prompt, UserError

NO_HARNESS = "tasks of lm-evaluation-harness need the package lm_eval; install mosa-dllm[eval]"


class Dialogue(str):
    """Turns on their way through the harness, which passes prompts on as text: a JSON list."""

    @classmethod
    def of(cls, turns: Sequence[dict[str, str]]) -> Dialogue:
        """The turns as they come, each with a role and a content."""
        return cls(json.dumps(turns, ensure_ascii=False))

    @property
    def turns(self) -> tuple[Message, ...]:
        """The turns again."""
        return tuple(Message(turn["role"], turn["content"]) for turn in json.loads(self))

    @property
    def asked(self) -> tuple[Message, ...]:
        """The turns before the answer."""
        return self.turns[:-1] if self.beginning else self.turns

    @property
    def beginning(self) -> str:
        """How the answer begins, where the last turn says so."""
        last = self.turns[-1]
        return last.content if last.role == "assistant" else ""


def prompt_ids(model: DiffusionLM, context: str) -> tuple[tuple[int, ...], Prompt]:
    """A prompt as ids, and in words for the records; the answer's beginning is part of both."""
    if not isinstance(context, Dialogue):
        return tuple(model.encode_text(context)) or (_first_token(model),), context
    return tuple(model.encode(context.asked) + model.encode_text(context.beginning)), context.turns


def pair_of(model: DiffusionLM, context: str, continuation: str) -> Pair:
    """Prompt and answer as ids, cut where the answer begins.

    As the harness does, blanks at the prompt's end go to the answer, and both are read as one text,
    so that the answer's first token is the one that it has there.
    """
    is_dialogue = isinstance(context, Dialogue)
    start = model.encode(context.asked) if is_dialogue else []
    text: str = context.beginning if is_dialogue else context
    stripped = text.rstrip()
    continuation = text[len(stripped) :] + continuation
    before = model.encode_text(stripped)
    whole = model.encode_text(stripped + continuation)
    answer = whole[len(before) :]
    if whole[: len(before)] != before or not answer:  # a token spans the cut
        answer = model.encode_text(continuation)
    if not answer:
        raise UserError("a task asks how likely an empty answer is; leave that task out")
    return Pair(tuple(start + before) or (_first_token(model),), tuple(answer))


def _first_token(model: DiffusionLM) -> int:
    """What stands in the place of an empty prompt."""
    start = None if model.tokenizer is None else model.tokenizer.bos_token_id
    return start if isinstance(start, int) else model.eos_token_id


def cut(text: str, stops: Sequence[str]) -> str:
    """The text before the first place where any of the stop strings begins."""
    ends = [text.find(stop) for stop in stops if stop]  # an empty one would cut everywhere
    return text[: min((end for end in ends if end >= 0), default=len(text))]


def stop_strings(settings: Mapping[str, Any]) -> list[str]:
    """The stop strings of a task's `generation_kwargs`, which may hold one or a list."""
    until = settings.get("until") or []
    return [until] if isinstance(until, str) else list(until)
