"""Append-only records: one line of JSON per attempt, keyed by all that determines it.

Running the same command again reads the lines that are there and makes only those that are missing.
Verdicts are kept apart from attempts, so that a new judge needs no new generation.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mosa.denoising import DecoderConfig, SampleResult
from mosa.families import DiffusionLM
from mosa.types import Prompt, UserError, dialogue


@dataclass(frozen=True)
class Attempt:
    """One attack on one behavior with one model, and the response to it."""

    key: str
    """Hash of model, case, attack, prompt, pinned tokens and decoder: same key, same response."""
    model: str
    case: str
    """What was asked about, for example an object of the testbed or a row of a benchmark."""
    attack: str
    prompt: list[dict[str, str]]
    """The turns that were sent, as role and content."""
    response: str
    """Text before the first end token."""
    response_full: str
    """Text of the whole canvas, what stands behind the first end token included."""
    tokens: list[str] = field(default_factory=list)
    """Every response position's token in words."""
    commit_step: list[int] = field(default_factory=list)
    """The denoising step that wrote each position (from 0), -1 where it was pinned."""
    end_positions: list[int] = field(default_factory=list)
    """The positions (from 0) that hold an end token."""
    num_forward_passes: int = 0
    decoder: dict[str, Any] = field(default_factory=dict)

    @property
    def num_read(self) -> int:
        """How many positions stand before the first end token: what a reader gets to see."""
        return min(self.end_positions, default=len(self.tokens))


def attempt_key(**determinants: Any) -> str:
    """A hash of everything that decides a response, the same in every process."""
    text = json.dumps(determinants, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def plain_settings(config: DecoderConfig) -> dict[str, Any]:
    """The decoder's settings as JSON gives them back."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def prompt_turns(prompt: Prompt) -> list[dict[str, str]]:
    """A prompt as the list of role and content that records keep."""
    return [{"role": turn.role, "content": turn.content} for turn in dialogue(prompt)]


class JsonLines:
    """An append-only file of JSON objects; a last line that an interruption cut off is dropped.

    >>> log = JsonLines(Path("attempts.jsonl"))  # doctest: +SKIP
    >>> log.append({"key": "1f", "response": "..."})  # doctest: +SKIP
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __iter__(self) -> Iterator[dict[str, Any]]:
        if not self.path.exists():
            return
        lines = self.path.read_text(encoding="utf-8").split("\n")
        for number, line in enumerate(lines, start=1):
            if not line:
                continue
            try:
                yield json.loads(line)
            except json.JSONDecodeError as error:
                if number == len(lines):
                    return
                raise UserError(
                    f"{self.path} line {number} is not JSON; delete that line or the file"
                ) from error

    def append(self, record: dict[str, Any]) -> None:
        """Write one line and hand it to the operating system at once."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab+") as file:
            # A line cut off by an interruption has no newline: start behind the last whole one.
            end = file.seek(0, 2)
            if end:
                file.seek(end - 1)
                if file.read(1) != b"\n":
                    file.seek(0)
                    file.truncate(file.read().rfind(b"\n") + 1)
            file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")

    def append_attempt(self, attempt: Attempt) -> None:
        """Write one attempt as a line."""
        self.append(dataclasses.asdict(attempt))


def read_attempts(path: Path) -> dict[str, Attempt]:
    """The attempts of a file by key; an absent file holds none."""
    return {record["key"]: Attempt(**record) for record in JsonLines(path)}


def attempts_of(
    model: DiffusionLM,
    result: SampleResult,
    *,
    model_name: str,
    model_version: str,
    attack: str,
    cases: Sequence[str],
    prompts: Sequence[Prompt],
    config: DecoderConfig,
    keys: Sequence[str] | None = None,
) -> list[Attempt]:
    """One record per row of a generation.

    `model_version` tells apart two models of one name (an adapter's hash or path). `keys` are those
    that the caller has worked out already; unset, they are made of what is given here.
    """
    tokenizer = model.tokenizer
    if tokenizer is None or result.text is None or result.full_text is None:
        raise UserError("a record keeps words: load the model from a folder with a tokenizer.json")
    decoder = plain_settings(config)
    start = result.trace.response_start
    commit_step = result.trace.commit_step[:, start:].tolist()
    tokens = result.tokens.tolist()
    words = {id: str(tokenizer.decode([id])) for id in {id for row in tokens for id in row}}
    attempts = []
    for row, (case, prompt) in enumerate(zip(cases, prompts, strict=True)):
        turns = prompt_turns(prompt)
        key = (
            keys[row]
            if keys is not None
            else attempt_key(
                model=model_name,
                model_version=model_version,
                attack=attack,
                case=case,
                prompt=turns,
                decoder=decoder,
            )
        )
        attempts.append(
            Attempt(
                key=key,
                model=model_name,
                case=case,
                attack=attack,
                prompt=turns,
                response=result.text[row],
                response_full=result.full_text[row],
                tokens=[words[id] for id in tokens[row]],
                commit_step=commit_step[row],
                end_positions=[i for i, id in enumerate(tokens[row]) if id in model.end_token_ids],
                num_forward_passes=result.num_forward_passes,
                decoder=decoder,
            )
        )
    return attempts
