"""Append-only records: one line of JSON per attempt, keyed by all that determines it.

Running the same command again reads the lines that are there and makes only those that are missing.
Verdicts are kept apart from attempts, so that a new judge needs no new generation.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mosa.denoising import SampleResult
from mosa.families import DiffusionLM
from mosa.types import (
    Attempt,
    Budget,
    Prompt,
    Response,
    UserError,
    as_plain,
    content_key,
    prompt_turns,
)


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
        self.append(as_plain(attempt))


def attempt_of(record: Mapping[str, Any]) -> Attempt:
    """The attempt that `as_plain` made a record of."""
    return Attempt(
        **{
            **record,
            "responses": [Response(**response) for response in record["responses"]],
            "budget": Budget(**record["budget"]),
        }
    )


def responses_of(
    model: DiffusionLM,
    result: SampleResult,
    *,
    prompts: Sequence[Prompt],
    keys: Sequence[str],
) -> list[Response]:
    """One record per row of a generation."""
    tokenizer = model.tokenizer
    if tokenizer is None or result.text is None or result.full_text is None:
        raise UserError("a record keeps words: load the model from a folder with a tokenizer.json")
    decoder = as_plain(result.config)
    trace = result.trace
    start = trace.response_start
    commit_step = trace.commit_step[:, start:].tolist()
    filled_in_prompt = trace.free[:, :start].any(dim=1).tolist()
    tokens = result.tokens.tolist()
    words = {id: str(tokenizer.decode([id])) for id in {id for row in tokens for id in row}}
    responses = []
    for row, prompt in enumerate(prompts):
        filled = None
        if filled_in_prompt[row]:
            real = result.canvas.attention_mask[row, :start]
            filled = result.canvas.tokens[row, :start][real].tolist()
        responses.append(
            Response(
                key=keys[row],
                prompt=prompt_turns(prompt),
                text=result.text[row],
                full_text=result.full_text[row],
                token_ids=tokens[row],
                tokens=[words[id] for id in tokens[row]],
                commit_step=commit_step[row],
                end_positions=[i for i, id in enumerate(tokens[row]) if id in model.end_token_ids],
                num_forward_passes=int(trace.row_forward_passes[row]),
                decoder=decoder,
                filled_prompt_ids=filled,
            )
        )
    return responses


def attempts_of(
    model: DiffusionLM,
    result: SampleResult,
    *,
    model_name: str,
    model_version: str,
    attack: str,
    behaviors: Sequence[str],
    prompts: Sequence[Prompt],
) -> list[Attempt]:
    """One attempt per row of a generation, for attacks that are one request each.

    `model_version` tells apart two models of one name (`model.content_hash()`).
    """
    keys = [
        content_key(
            model=model_name,
            model_version=model_version,
            attack=attack,
            behavior=behavior,
            prompt=prompt_turns(prompt),
            decoder=as_plain(result.config),
        )
        for behavior, prompt in zip(behaviors, prompts, strict=True)
    ]
    responses = responses_of(model, result, prompts=prompts, keys=keys)
    return [
        Attempt(
            key=response.key,
            model=model_name,
            behavior=behavior,
            attack=attack,
            responses=[response],
            response=response.text,
            response_full=response.full_text,
            seed=result.config.seed,
            budget=Budget(
                target_queries=1,
                target_tokens=len(response.token_ids),
                forward_passes=response.num_forward_passes,
            ),
        )
        for behavior, response in zip(behaviors, responses, strict=True)
    ]
