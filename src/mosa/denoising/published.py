"""The decoders that the authors of models publish, by name.

Servers and papers run the same weights under other settings, and figures differ with them
(LLaDA2.1: 0.95 and 0.9 in its code, 0.5 and 0 in SGLang), so that a name is part of a claim.
Sources: repositories JetAstra/SDAR (generate.py), ZHZisZZ/dllm (pipelines/llada2, llada21, a2d),
sgl-project/sglang (srt/dllm/algorithm), inclusionAI's model card of LLaDA2.1, huggingface's
transformers (models/diffusion_gemma).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mosa.types import UserError

STEPS_OF_CANVAS = "steps_of_canvas"
"""So many steps for each canvas of so many tokens."""

PUBLISHED: Mapping[str, Mapping[str, Any]] = {
    "qwen3-mdlm": {"block_length": 32, "schedule": "rounded"},
    "qwen3-bd3lm": {"schedule": "rounded", "stop_when_finished": True},
    "sdar": {
        "threshold": 0.85,
        "temperature": 1.0,
        "remasking": "maskgit_plus",
        "stop_when_finished": True,
    },
    "sdar-greedy": {"threshold": 0.9, "stop_when_finished": True},
    "llada2.0": {"threshold": 0.95, "stop_when_finished": True},
    "llada2.1": {"threshold": 0.95, "edit_threshold": 0.9, "stop_when_finished": True},
    "llada2.1-quality": {"threshold": 0.7, "edit_threshold": 0.5, "stop_when_finished": True},
    "llada2.1-speed": {"threshold": 0.5, "edit_threshold": 0.0, "stop_when_finished": True},
    "diffusion-gemma": {
        STEPS_OF_CANVAS: (48, 256),
        "rules": ({"name": "renoise"},),
        "stop_when_finished": True,
    },
}
"""Name -> what it sets over the defaults; besides, a step for every token, or `STEPS_OF_CANVAS`."""


def published_decoder(name: str, max_new_tokens: int) -> dict[str, Any]:
    """The settings of a published decoder for a response of this length; UserError for a name that
    is not there."""
    if name not in PUBLISHED:
        raise UserError(
            f"there is no published decoder {name!r}; choose from {', '.join(PUBLISHED)}"
        )
    settings = dict(PUBLISHED[name])
    steps, tokens = settings.pop(STEPS_OF_CANVAS, (1, 1))
    num_canvases = -(-max_new_tokens // tokens)
    return {"max_new_tokens": max_new_tokens, "steps": steps * num_canvases, **settings}


def over_published(
    name: str | None, settings: Mapping[str, Any], default_length: int
) -> dict[str, Any]:
    """Settings over those of a published decoder, if one is named."""
    if name is None:
        return dict(settings)
    return {**published_decoder(name, settings.get("max_new_tokens", default_length)), **settings}
