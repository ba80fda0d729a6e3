"""Prompts and answers of lm-evaluation-harness as token ids, and its stop strings.

The harness passes a prompt on as text. Turns stay separate on the way (`Dialogue`), so that they
go through the model's own chat template, in which nothing that a user wrote becomes a special
token. Text that is not a dialogue goes to the model unchanged.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from mosa.attacks.base import Tokens
from mosa.types import Ids, Message, Prompt, UserError, dialogue

SAME_TOKENS = "two of the answers are the same tokens to this model"


class Dialogue(str):
    """Turns on their way through the harness, which passes prompts on as text: a JSON list."""

    @classmethod
    def of(cls, turns: Sequence[dict[str, str]], add_generation_prompt: bool = True) -> Dialogue:
        """The turns as they come, each with a role and a content, instead of a template.

        The harness says by `add_generation_prompt` whether the last turn begins the answer, which
        the turn itself shows.
        """
        del add_generation_prompt
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


def prompt_ids(model: Tokens, context: str, system_prompt: str | None = None) -> tuple[Ids, Prompt]:
    """A prompt as ids, and in words for the records; the answer's beginning is part of both.

    A dialogue begins with the system prompt, where there is one.
    """
    if not isinstance(context, Dialogue):
        return tuple(model.encode_text(context)) or (_first_token(model),), context
    asked = model.encode(dialogue(context.asked, system_prompt))
    words = dialogue(context.turns, system_prompt)
    return tuple(asked + model.encode_text(context.beginning)), words


def pair_of(
    model: Tokens, context: str, continuation: str, system_prompt: str | None = None
) -> tuple[Ids, Ids]:
    """Prompt and answer as ids, cut where the answer begins.

    As the harness does, blanks at the prompt's end go to the answer, and both are read as one text,
    so that the answer's first token is the same as there.
    """
    is_dialogue = isinstance(context, Dialogue)
    start = model.encode(dialogue(context.asked, system_prompt)) if is_dialogue else []
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
    return tuple(start + before) or (_first_token(model),), tuple(answer)


def too_long(model: Tokens, num_prompt: int, num_answer: int) -> str:
    """Why a prompt and an answer of these lengths cannot be asked; empty where they can."""
    if num_prompt + num_answer <= model.max_length:
        return ""
    return (
        f"the prompt and an answer (of {num_answer}) are more tokens than the model's context, "
        f"{model.max_length}"
    )


def check_draws(task: str, settings: Mapping[str, Any], temperature: float) -> None:
    """UserError where a task's `generation_kwargs` ask for draws and the decoder makes none."""
    if temperature == 0 and (settings.get("do_sample") or (settings.get("temperature") or 0) > 0):
        raise UserError(
            f"the task {task} asks for draws, and the decoder has temperature 0; set a "
            "temperature, or leave the task out"
        )


def cut(text: str, stops: Sequence[str]) -> str:
    """The text before the first place where any of the stop strings begins."""
    ends = [text.find(stop) for stop in stops if stop]  # an empty one would cut everywhere
    return text[: min((end for end in ends if end >= 0), default=len(text))]


def stop_strings(settings: Mapping[str, Any]) -> list[str]:
    """The stop strings of a task's `generation_kwargs`, which may hold one or a list."""
    until = settings.get("until") or []
    return [until] if isinstance(until, str) else list(until)


def _first_token(model: Tokens) -> int:
    """The token that replaces an empty prompt."""
    start = None if model.tokenizer is None else model.tokenizer.bos_token_id
    return start if isinstance(start, int) else model.eos_token_id
