"""A stand-in for a run: asks every case of a set, and scores what its records would keep."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any

import torch

from mosa.attacks import ENGLISH, Query, Target
from mosa.chat.base import ChatReply, ChatRequest
from mosa.denoising import DecoderConfig, sample
from mosa.families import DiffusionLM
from mosa.types import Attempt, CaseSet, Response, Verdict, prompt_turns
from mosa.utility import DECODER
from mosa.worker import Work


class Alone:
    """Answers each query and does each work by itself, and keeps what it is asked."""

    def __init__(self, model: DiffusionLM, answer: Callable[[str], str] | None = None) -> None:
        """`answer` makes the response out of the words of the prompt, in the model's place."""
        self.model, self.answer = model, answer
        self.queries: list[tuple[Query, DecoderConfig]] = []
        self.works: list[Work] = []

    @property
    def prompts(self) -> list[str]:
        """The words of each query's prompt."""
        return [
            " ".join(turn["content"] for turn in prompt_turns(query.prompt))
            for query, _ in self.queries
        ]

    async def respond(self, query: Query, decoder: DecoderConfig) -> Response:
        self.queries.append((query, decoder))
        turns = prompt_turns(query.prompt)
        if self.answer is not None:
            text = self.answer(self.prompts[-1])
            return Response("k", turns, text, text)
        ids = query.prompt_ids or self.model.encode(query.prompt)
        result = sample(self.model, torch.tensor([ids]), decoder)
        assert result.text is not None and result.full_text is not None
        return Response("k", turns, result.text[0], result.full_text[0])

    async def compute(self, key: str, work: Work) -> dict[str, Any]:
        self.works.append(work)
        (done,) = work.run(self.model, [work.state])
        return json.loads(json.dumps(done))

    async def chat(self, role: str, request: ChatRequest) -> ChatReply:
        raise AssertionError("useful sets ask no chat model")


Solved = dict[str, tuple[Attempt, Mapping[str, Verdict]]]
"""By case: the attempt as a run keeps it, and its verdicts."""


def solve(
    backend: Alone,
    case_set: CaseSet,
    decoder: DecoderConfig,
    *,
    system_prompt: str | None = None,
) -> Solved:
    """Every case, asked and then scored from JSON alone."""
    assert case_set.ask is not None and case_set.score is not None
    ask, score = case_set.ask, case_set.score

    async def attempts() -> list[Attempt]:
        found = []
        for case in case_set.cases:
            target = Target(
                backend,
                decoder=decoder,
                wording=ENGLISH,
                identity={"case": case.id},
                subject="m",
                case_set=case_set.name,
                behavior=case,
                attack="direct",
                preset="paper",
                seed=0,
                takes=("seed", *case_set.settings.get(DECODER, ())),
                system_prompt=system_prompt,
            )
            (attempt,) = [attempt async for attempt in ask(case, target)]
            kept = json.loads(json.dumps(attempt.details))
            found.append(dataclasses.replace(attempt, responses=[], details=kept))
        return found

    asked = asyncio.run(attempts())
    return {
        case.id: (attempt, score(case, attempt))
        for case, attempt in zip(case_set.cases, asked, strict=True)
    }


def scores(solved: Solved, metric: str) -> dict[str, float | None]:
    """The score of each case."""
    return {case: verdicts[metric].score for case, (_, verdicts) in solved.items()}
