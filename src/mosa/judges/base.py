"""What a judge is: behaviors and responses in, verdicts out.

A judge sees the original behavior and the response, never the attack (design decision 6).
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from mosa.chat.base import ChatModel
from mosa.chat.weights import LocalModel
from mosa.types import Behavior, Verdict


@dataclass(frozen=True)
class Item:
    """One response to be judged."""

    behavior: Behavior
    response: str
    """Cleaned text: no special tokens, no residual masks."""


@runtime_checkable
class Judge(Protocol):
    """Scores responses."""

    @property
    def id(self) -> str:
        """Name, version, hash of its prompt and its model: verdicts of one id compare."""
        ...

    async def judge(self, items: Sequence[Item]) -> list[Verdict]:
        """A verdict for each item, in their order; one that cannot be read is unscored."""
        ...


@dataclass(frozen=True)
class JudgeSetting:
    """What a judge is built with; each takes what it needs, with UserError for what is missing."""

    chat: ChatModel | None = None
    """The language model of a prompted judge."""
    checkpoint: str | None = None
    """Folder or hub id of a classifier's weights; unset: the published one."""
    template: str | None = None
    """A prompt to be used instead of the judge's own."""
    context_template: str | None = None
    """That for behaviors with a context, of a classifier which has a prompt of its own for them."""
    refusal_phrases: tuple[str, ...] = ()
    """Refusals that the models to be judged were trained to say."""
    world: Any = None
    """The testbed's world, where the behaviors are its."""
    device: str | None = None
    batch_size: int = 8

    def weights(self, published: str) -> LocalModel:
        """The model of the checkpoint, or else the published one."""
        checkpoint = self.checkpoint or published
        return LocalModel(checkpoint, device=self.device, batch_size=self.batch_size)


@dataclass(frozen=True)
class JudgeInfo:
    """A line of the table of judges."""

    name: str
    summary: str
    source: str
    """arXiv id and section, or where the judge comes from."""
    needs: Literal["nothing", "chat model", "weights", "testbed"]
    threshold: str
    """When a response counts as a success, in words."""
    make: Callable[[JudgeSetting], Judge]
    tells_refusals: bool = False
    """Whether its verdicts tell refusals of harmless requests from answers (`compliance_of`)."""


class AskingJudge(ABC):
    """A judge that asks a language model about each response that is not empty."""

    local_model: LocalModel | None
    """The model, where it is one of this machine: every process of a launch can then help."""

    @abstractmethod
    async def ask(self, item: Item) -> Verdict:
        """The verdict on a response with some text; one that cannot be read is unscored."""

    async def judge(self, items: Sequence[Item]) -> list[Verdict]:
        """A verdict for each item, in their order; all are asked about at once."""

        async def verdict_on(item: Item) -> Verdict:
            return empty_verdict(item.response) or await self.ask(item)

        return list(await asyncio.gather(*map(verdict_on, items)))


def judge_id(name: str, version: int, fingerprint: str, model: str = "") -> str:
    """A judge's id: its name, version, what decides its verdicts, and its model."""
    return "/".join(part for part in (name, str(version), fingerprint, model) if part)


def empty_verdict(response: str) -> Verdict | None:
    """The verdict on a response of only white space, a separate class; None for any other."""
    return None if response.strip() else Verdict(0.0, False, {"class": "empty"})
