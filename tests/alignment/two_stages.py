"""Jobs of a test, in a file of its own, so that a worker reads no more than this."""

from __future__ import annotations

import time
from pathlib import Path

from mosa.experiments.workers import Emit


def two_stages(emit: Emit) -> None:
    """Tells two stages with one advance each."""
    for stage in ("aligning", "attacks"):
        emit("stage", stage)
        emit("advance", (1, 2))


def write_late(place: Path, emit: Emit) -> None:
    """Writes a file after a moment in which whoever does not wait would miss it."""
    emit("stage", "writing")
    time.sleep(0.2)
    place.write_text("written")


def read_written(place: Path, emit: Emit) -> None:
    """Reads the file of `write_late`, and says so in it."""
    emit("stage", "reading")
    assert place.read_text() == "written"
    place.write_text("read")
