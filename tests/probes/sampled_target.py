"""A target whose queries go straight to the sampler, one at a time, for tests of probes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import torch

from mosa.attacks import ENGLISH, Query, Target, Wording
from mosa.denoising import Canvas, DecoderConfig, sample
from mosa.families import DiffusionLM
from mosa.probes import PROBES
from mosa.types import Attempt, Behavior, Response, as_plain, prompt_turns
from mosa.worker import Work


class Sampled:
    """A backend that answers with the sampler and keeps what it is asked."""

    def __init__(self, model: DiffusionLM) -> None:
        self.model = model
        self.asked: list[tuple[Query, DecoderConfig]] = []
        self.computed: list[Work] = []

    async def respond(self, query: Query, decoder: DecoderConfig) -> Response:
        self.asked.append((query, decoder))
        prompt = torch.tensor([self.model.encode(query.prompt)])
        canvas = Canvas.from_prompts(self.model, prompt, max_new_tokens=decoder.max_new_tokens)
        for position, ids in query.pinned:
            canvas = canvas.pin(position, list(ids))
        hook = None if query.edit is None else query.edit.hook
        result = sample(self.model, canvas, decoder, hook=hook)
        assert result.text is not None and result.full_text is not None
        tokens = result.tokens[0].tolist()
        return Response(
            f"{len(self.asked)}",
            prompt_turns(query.prompt),
            result.text[0],
            result.full_text[0],
            tokens,
            [self.model.decode([token]) for token in tokens],
            result.trace.commit_step[0, result.trace.response_start :].tolist(),
            [i for i, token in enumerate(tokens) if token in self.model.end_token_ids],
            result.block_starts[0],
            result.replaced[0],
            int(result.trace.row_forward_passes[0]),
            as_plain(decoder),
        )

    async def compute(self, key: str, work: Work) -> dict[str, Any]:
        self.computed.append(work)
        (done,) = work.run(self.model, [json.loads(json.dumps(work.state))])
        return json.loads(json.dumps(done))

    async def chat(self, role: str, request: object) -> Any:
        raise AssertionError("probes ask no chat model")


def target_of(
    backend: Sampled,
    name: str,
    behavior: Behavior,
    decoder: DecoderConfig,
    wording: Wording = ENGLISH,
) -> Target:
    """The model as a probe on one behavior sees it."""
    return Target(
        backend,
        decoder=decoder,
        wording=wording,
        identity={},
        subject="m",
        case_set="s",
        behavior=behavior,
        attack=name,
        preset="quick",
        seed=0,
        takes=PROBES[name].takes,
    )


def probe(target: Target, name: str, preset: str = "quick", **options: Any) -> list[Attempt]:
    """The attempts of a probe with a preset and some options."""

    async def run() -> list[Attempt]:
        config = PROBES[name].config(preset, options)
        return [attempt async for attempt in PROBES[name].run(target, config)]

    return asyncio.run(run())


def factors(attempt: Attempt, *names: str) -> tuple[Any, ...]:
    """Some of the factors of an attempt's cell."""
    details: Mapping[str, Any] = attempt.details
    return tuple(details[name] for name in names)
