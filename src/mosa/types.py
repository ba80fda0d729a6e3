"""The nouns that every part of mosa shares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Role = Literal["system", "user", "assistant"]


class UserError(ValueError):
    """A mistake that the user can mend; the message is one sentence that names it and the remedy.

    The command line prints the sentence and exits with status 2. Any other exception is a bug of
    ours and keeps its traceback.
    """


@dataclass(frozen=True)
class Message:
    """One turn of a dialogue."""

    role: Role
    content: str


Prompt = str | Sequence[Message]
"""What is sent to a model: a single user turn, or a dialogue that ends in the turn to answer."""


def dialogue(prompt: Prompt, system: str | None = None) -> list[Message]:
    """The turns of a prompt, a string being one user turn; `system` puts a system turn before."""
    turns = [Message("user", prompt)] if isinstance(prompt, str) else list(prompt)
    return turns if system is None else [Message("system", system), *turns]
