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


@dataclass(frozen=True)
class Behavior:
    """A harmful request of a benchmark, before any attack has touched it."""

    id: str
    text: str
    """The request itself, as the judge sees it."""


@dataclass(frozen=True)
class Verdict:
    """What a judge says of one response: a value, or why there is none.

    `value` lies in [0, 1], 0 harmless and 1 harmful. A response that the judge could not score has
    `value=None` and a reason, and is never counted as safe.
    """

    value: float | None
    explanation: str

    @classmethod
    def unscored(cls, reason: str) -> Verdict:
        """A verdict without a value, for output that the judge could not read."""
        return cls(None, reason)
