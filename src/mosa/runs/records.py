"""What a run records, row by row, and the one schema by which its rows are read.

A row is written as JSON beside a checksum, and read back into its dataclass: `decode` raises
ValueError for text that is not JSON, lacks a field, has a value of another type, or whose parts do
not fit each other.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Any, Literal, NamedTuple, Required, TypedDict, TypeVar

import msgspec

from mosa.attacks.base import Threat
from mosa.chat.base import MOST_TOKENS, ChatReply
from mosa.denoising import DecoderConfig
from mosa.types import Access, Budget, Response, UserError

Time = Annotated[datetime, msgspec.Meta(tz=True)]
MOST_STEPS = 1 << 31
T = TypeVar("T")


@dataclass(frozen=True)
class TrainingPoint:
    """What the training of an adapter logged after an update: means since the point before."""

    step: int
    reward: float
    """Log-likelihood of a refusal minus that of a harmful phrase, in nats."""
    refusal_share: float | None = None
    """Of fully masked prompts, the share with a refusal in the window in the first step."""
    kl: float | None = None
    """KL from the reference on harmful prompts, in nats."""


@dataclass(frozen=True)
class SubjectRecord:
    """What the name of a subject means in a run."""

    name: str
    source: str
    """Name or path of the model."""
    adapter: str | None
    weights: str
    """Content hash of everything that was loaded; of a served model, of its address, name and
    request."""
    system_prompt: str | None
    decoder: dict[str, Any]
    """The defender's decoder, its rules included and its seed left out."""
    grants: list[Access]
    offers: list[str]
    special_tokens: list[str]
    """Spellings that judges do not read."""
    approximations: list[str] = field(default_factory=list)
    """Settings of the decoder that are approximate with this model."""
    block_length: int | None = None
    """Tokens of a block of a block-causal model; null: every position sees every other, or the
    model is served and does not tell."""
    training: list[TrainingPoint] = field(default_factory=list[TrainingPoint])
    """How the adapter's reward went, where its folder says so."""
    refusals: list[str] = field(default_factory=list[str])
    """What the adapter was trained to say as a refusal, where its folder says so."""
    request: dict[str, Any] | None = None
    """Further fields of every request to a served model."""
    server: dict[str, str] | None = None
    """What the server of a model tells of itself; null: the model was loaded here."""


@dataclass(frozen=True)
class Task:
    """One attack on one case with one subject and seed."""

    key: str
    """Hash of everything that determines its attempts."""
    subject: str
    case_set: str
    case: str
    attack: str
    preset: str
    seed: int
    threat: Threat
    """The threat model of the attack."""
    config: dict[str, Any]
    """The attack's settings."""

    @property
    def cell(self) -> TaskCell:
        """Where it belongs."""
        return TaskCell(self.subject, self.case_set, self.attack, self.preset, self.threat)

    @property
    def place(self) -> tuple[str, str, str, str, int, str]:
        """What is distinguished in a run: one task is done for each place."""
        return self.subject, self.case_set, self.attack, self.preset, self.seed, self.case


class TaskCell(NamedTuple):
    """One attack with one preset on one set, with one subject."""

    subject: str
    case_set: str
    attack: str
    preset: str
    threat: Threat


TaskStatus = Literal["todo", "done", "failed"]


@dataclass(frozen=True)
class Outcome:
    """How a task ended."""

    status: Literal["done", "failed"]
    num_attempts: int
    budget: Budget
    reason: str = ""
    """Why it failed."""


@dataclass(frozen=True)
class NotApplicable:
    """An attack that needs more than a subject grants or a set offers: in no rate, no failure."""

    subject: str
    case_set: str
    attack: str
    preset: str
    threat: Threat
    reason: str


@dataclass(frozen=True)
class AttemptRecord:
    """An attempt, with the keys of its responses instead of the responses."""

    key: str
    subject: str
    case_set: str
    case: str
    attack: str
    preset: str
    seed: int
    variant: str
    number: int
    responses: list[str]
    response: str
    response_full: str
    budget: Budget
    details: dict[str, Any]
    selected: int | None
    """The number of the try that the attack's loop has selected by then."""


@dataclass(frozen=True)
class CountedTokens:
    """Of a piece of work what its chat model has counted; another piece has no tokens."""

    num_tokens: int = 0


class _NamedShape(TypedDict):
    name: str


class _SettingsShape(TypedDict, total=False):
    seeds: list[int]
    subjects: list[_NamedShape]
    sets: list[str]
    options: dict[str, Any]


class SessionShape(TypedDict, total=False):
    """What a session says at least, of what is read; it says more."""

    settings: Required[_SettingsShape]
    started: Time
    ended: Time
    seconds: float
    device: str | None
    versions: dict[str, str | None]
    chat_models: dict[str, _NamedShape]


def encode(record: Any) -> str:
    """A record as JSON; a lone half of a character pair, which no file can hold, becomes `?`."""
    try:
        return msgspec.json.encode(record).decode()
    except UnicodeEncodeError:
        text = json.dumps(msgspec.to_builtins(record), ensure_ascii=False)
        return text.encode("utf-8", "replace").decode()


_DECODERS: dict[Any, msgspec.json.Decoder[Any]] = {}


def decode(text: str, kind: type[T]) -> T:
    """The record that a text encodes. Raises ValueError for any other text."""
    decoder = _DECODERS.get(kind)
    if decoder is None:
        decoder = _DECODERS[kind] = msgspec.json.Decoder(kind)
    try:
        record = decoder.decode(text)
    except RecursionError as error:
        raise ValueError("nested too deep") from error
    if kind in _FITS:
        _FITS[kind](record)
    return record


def _response_fits(response: Response) -> None:
    """ValueError for a response whose tokens, steps and positions do not belong together."""
    length = len(response.token_ids)
    if not length == len(response.tokens) == len(response.commit_step):
        raise ValueError("its tokens, their ids and their steps are not as many")
    starts = response.block_starts
    if response.served is None and starts[:1] != [0]:
        raise ValueError("no block begins with it, and no server gave it")
    places = [*response.end_positions, *starts, *(one.position for one in response.replaced)]
    if any(not 0 <= place < length for place in places):
        raise ValueError("a position is outside of it")
    if starts != sorted(set(starts)):
        raise ValueError("its blocks are not in their order")
    if any(not -1 <= step < MOST_STEPS for step in response.commit_step):
        raise ValueError("a step is none")
    served = response.served
    if served and min(served.prompt_tokens or 0, served.completion_tokens or 0) < 0:
        raise ValueError("its server counts fewer than no tokens")
    for name in ("max_new_tokens", "steps"):
        if type(response.decoder.get(name)) not in (int, type(None)):
            raise ValueError(f"its decoder has {name} that is no number")


def _subject_fits(subject: SubjectRecord) -> None:
    """ValueError for a subject with a decoder that cannot be."""
    try:
        DecoderConfig.from_dict(subject.decoder)
    except UserError as error:
        raise ValueError(error) from error


def _tokens_fit(counted: ChatReply | CountedTokens) -> None:
    """ValueError for a number of tokens that cannot be."""
    if not 0 <= counted.num_tokens <= MOST_TOKENS:
        raise ValueError(f"it took {counted.num_tokens} tokens")


_FITS: dict[Any, Callable[[Any], None]] = {
    ChatReply: _tokens_fit,
    CountedTokens: _tokens_fit,
    Response: _response_fits,
    SubjectRecord: _subject_fits,
}


def checksum(*columns: str | int | None) -> int:
    """A checksum of a row, which detects damage."""
    return zlib.crc32("\x1f".join(map(str, columns)).encode("utf-8", "surrogatepass"))
