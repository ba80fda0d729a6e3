"""The records of sessions: when, where, and with which settings and versions a run was made."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import torch

from mosa.provenance import versions
from mosa.runs.store import Run
from mosa.types import as_plain
from mosa.worker import Tally

SECONDS_BETWEEN_NOTES = 30.0
"""How often a session's record is updated."""


def session_record(settings: Mapping[str, Any], *, device: str | None) -> dict[str, Any]:
    """What this process is and does, given the settings of its command as JSON."""
    if device in (None, "cuda") and torch.cuda.is_available():
        device = torch.cuda.get_device_name()
    return {
        "started": _now(),
        "settings": dict(settings),
        "versions": versions(),
        "device": device or "cpu",
        "threads": torch.get_num_threads(),
    }


@contextmanager
def session(
    run: Run, record: Mapping[str, Any], tallies: Mapping[str, Tally]
) -> Iterator[Callable[[], None]]:
    """Keep the record of a session, with its end and what each subject was asked.

    Yields a function to call now and then, so that the record says how long the session has run
    in case it is killed.
    """
    number = run.begin_session(record)
    begin = last = time.perf_counter()

    def note() -> None:
        nonlocal last
        now = time.perf_counter()
        if now > last + SECONDS_BETWEEN_NOTES:
            last = now
            run.update_session(number, {**record, "seconds": round(now - begin, 2)})

    try:
        yield note
    finally:
        ended = {
            "ended": _now(),
            "seconds": round(time.perf_counter() - begin, 2),
            "subjects": {name: as_plain(tally) for name, tally in tallies.items()},
        }
        run.update_session(number, {**record, **ended})
        run.commit()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
