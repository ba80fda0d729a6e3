"""Every command that writes, killed at random moments: what it writes in the end is what it writes
undisturbed, and nothing of others is touched."""

from __future__ import annotations

import random
import signal
import time
from functools import partial
from pathlib import Path

import pytest
from fuzz.writers import MORE, WRITERS, Writer, in_child
from made_runs import attacked

pytestmark = pytest.mark.slow

NUM_KILLS = 4


@pytest.mark.parametrize("writer", [*WRITERS, *MORE], ids=lambda writer: writer.name)
def test_what_is_killed_goes_on_to_the_same_end(writer: Writer, given: Path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
        (folder.parent / f"{folder.name}-letter.txt").write_text("mine")
        if writer.name == "judge":
            attacked(folder, {"a": {"direct": dict.fromkeys("abcdefgh", True)}})
    start = time.monotonic()
    assert in_child(partial(writer.run, given, whole)) == 0, Path("errors.txt").read_text()
    seconds = time.monotonic() - start

    numbers = random.Random(writer.name)
    run = partial(writer.run, given, killed)
    for _ in range(NUM_KILLS):
        number = numbers.choice((signal.SIGKILL, signal.SIGTERM, signal.SIGINT))
        status = in_child(run, seconds=numbers.uniform(0, seconds), number=number)
        if status is not None:  # it had ended, or refuses to begin anew
            break
    status = in_child(run)
    if status == 2 and writer.again:
        status = in_child(partial(run, *writer.again))
    assert status == 0 or writer.result(killed) == writer.result(whole), Path(
        "errors.txt"
    ).read_text()
    assert writer.result(killed) == writer.result(whole)
    left = [p.name for p in killed.rglob("*") if p.name.endswith(".part") or ".tmp" in p.name]
    assert not left
    assert (tmp_path / "killed-letter.txt").read_text() == "mine"
