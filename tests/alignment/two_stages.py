"""A job of a test, in a file of its own, so that a worker reads no more than this."""

from __future__ import annotations

from mosa.experiments.workers import Emit


def two_stages(emit: Emit) -> None:
    """Tells two stages with one advance each."""
    for stage in ("aligning", "attacks"):
        emit("stage", stage)
        emit("advance", (1, 2))
