"""In which order are the positions of a response committed? (arXiv 2508.12398, experiment E3.)

The paper plots the mean position of newly committed tokens by step and finds a line. Its block
length is not stated, and blocks that are filled left to right give a line by construction; so every
condition here is compared with one block over the whole canvas. Every condition is one attempt at
the plain request, and the finding reads the order from the recorded steps of its response.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mosa.attacks.base import PLANNED, Attack, Attempts, Query, Settings, Target
from mosa.probes.base import Protocol
from mosa.types import UserError

BASE = "base"


@dataclass(frozen=True)
class OrderConfig(Settings):
    """Conditions are the base settings with one of them changed at a time."""

    may_be_empty = ("block_lengths", "canvas_lengths")

    tokens_per_step: tuple[int, ...] = (4,)
    """Tokens committed in a step, at most a block's; the first is the base."""
    block_lengths: tuple[int, ...] = (32,)
    """Block lengths in addition to the base: the whole canvas, or the blocks of the network."""
    temperatures: tuple[float, ...] = (0.0,)
    """Sampling temperatures; the first is the base."""
    remaskings: tuple[str, ...] = ("low_confidence",)
    """Remasking rules; the first is the base."""
    canvas_lengths: tuple[int, ...] = ()
    """Further response lengths."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("temperatures", "remaskings"):
            if not getattr(self, name):
                raise UserError(f"{name} is empty; name the base's at least")


def conditions(config: OrderConfig, target: Target) -> dict[str, dict[str, Any]]:
    """The base settings (one block over the canvas, or the network's own) and every change of one
    of them, by name; a change that the network's blocks do not let happen is left out."""
    per_step = config.tokens_per_step[0]
    base = {
        **target.pace(per_step),
        "temperature": config.temperatures[0],
        "remasking": config.remaskings[0],
    }
    named = {BASE: base}
    for block in config.block_lengths:
        if block < target.length and block != target.model.block_length:
            named[f"block {block}"] = base | target.pace(per_step, block)
    for count in config.tokens_per_step[1:]:
        settings = base | target.pace(count)
        if settings not in named.values():
            named[f"{count} tokens a step"] = settings
    for temperature in config.temperatures[1:]:
        named[f"temperature {temperature:g}"] = base | {"temperature": temperature}
    for remasking in config.remaskings[1:]:
        named[f"remasking {remasking}"] = base | {"remasking": remasking}
    for other in config.canvas_lengths:
        settings = target.pace(per_step, length=other) | {"max_new_tokens": other}
        named[f"canvas {other}"] = base | settings
    return named


def run(target: Target, config: OrderConfig) -> Attempts:
    """Ask once under each condition."""
    named = conditions(config, target)
    queries = [(name, Query(target.request, decoder=named[name])) for name in named]
    return target.tries(queries, [{"condition": name} for name in named])


ATTACK = Attack(
    name="order",
    needs_masks="asks in which order masks are filled, and {subject} has none",
    title="order of writing",
    summary="in which order positions are committed",
    source="MOSA E3, arXiv 2508.12398, with and without blocks",
    access=("prompt", "sampler"),
    takes=("max_new_tokens", "steps", "block_length", "temperature", "remasking", *PLANNED),
    presets={
        "quick": {"block_lengths": (24,)},
        "full": {
            "tokens_per_step": (4, 1, 2, 8),
            "block_lengths": (8, 16, 24, 32, 64),
            "temperatures": (0.0, 0.7),
            "remaskings": ("low_confidence", "random", "topk_margin", "entropy"),
            "canvas_lengths": (48, 96),
        },
    },
    run=run,
    decides="any",
    version=2,
)
PROTOCOLS = {"quick": Protocol(12), "full": Protocol(50)}
