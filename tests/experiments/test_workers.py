"""Workers end with the process that has started them, however that ends."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest
from fuzz.writers import SECONDS_TO_END, processes_of

pytestmark = pytest.mark.integration

JOBS = """
import functools, time
from mosa.experiments.workers import run_jobs

def wait(emit):
    emit("stage", "waiting")
    time.sleep(600)

if __name__ == "__main__":
    run_jobs({"a": [wait], "b": [wait]}, 2)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_no_worker_outlives_its_parent(tmp_path, number):
    """It would wait for more work forever, and hold the folders that it has claimed."""
    (tmp_path / "jobs.py").write_text(JOBS)
    parent = subprocess.Popen(
        [sys.executable, "jobs.py"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert parent.stdout is not None
    while "b: waiting" not in (line := parent.stdout.readline()):
        assert line, "it has ended"
    assert len(processes_of(parent.pid)) > 3  # two workers and what brings their news
    parent.send_signal(number)
    parent.wait()
    deadline = time.monotonic() + SECONDS_TO_END
    while left := processes_of(parent.pid):
        assert time.monotonic() < deadline, left
        time.sleep(0.1)
