"""A run is read on a full disk and in a folder that may not be written, whatever lies beside it."""

from __future__ import annotations

import ctypes
import os
import signal
import sqlite3
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from disks import apart, fill, forbid_writing, mount
from made_runs import attacked, subject
from refusals import refuses

from mosa.runs.store import FILE, DamagedRun, Run

PR_SET_PDEATHSIG = 1


def ended(folder: Path) -> None:
    """A run whose last process has ended: the file alone."""
    attacked(folder, {"first": {"direct": {"x": True}}})
    with Run(folder, create=True) as run:
        run.add_subject(subject("late"))


def killed(folder: Path) -> None:
    """One whose last process was killed: what it wrote last is in the log."""
    attacked(folder, {"first": {"direct": {"x": True}}})
    child = os.fork()
    if child == 0:
        run = Run(folder, create=True)
        run.add_subject(subject("late"))
        run.commit()
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert (folder / f"{FILE}-wal").stat().st_size


def copied(folder: Path) -> None:
    """The same without the index of its log, which nobody copies."""
    killed(folder)
    (folder / f"{FILE}-shm").unlink()


def written(folder: Path) -> None:
    """One that another process is writing."""
    attacked(folder, {"first": {"direct": {"x": True}}})
    ready, tell = os.pipe()
    if os.fork() == 0:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        run = Run(folder, create=True)
        run.add_subject(subject("late"))
        run.commit()
        os.write(tell, b"written")
        signal.pause()
    assert os.read(ready, 7) == b"written"


def left(folder: Path) -> dict[str, bytes]:
    names = (FILE, f"{FILE}-wal")
    return {name: (folder / name).read_bytes() for name in names if (folder / name).exists()}


def mounted(tmp_path: Path) -> None:
    if apart(lambda: str(mount(tmp_path))) != "True":
        pytest.skip("this system lets nobody mount a disk")


@pytest.mark.parametrize("may_write", [True, False])
@pytest.mark.parametrize("make", [ended, killed, copied, written])
def test_a_run_is_read_where_nothing_can_be_written(tmp_path, make, may_write):
    mounted(tmp_path)

    def read() -> str:
        assert mount(tmp_path)
        folder = tmp_path / "run"
        make(folder)
        before = left(folder)
        fill(tmp_path, left=0)
        if not may_write:
            forbid_writing(tmp_path)
        for _ in range(2):
            with Run(folder) as run, Run(folder) as beside:
                found = run.subjects()
                assert beside.subjects() == found and len(list(run.attempts())) == 1
        assert may_write or left(folder) == before
        return " ".join(found)

    assert apart(read) == "first late"


@pytest.mark.parametrize("may_write", [True, False])
@pytest.mark.parametrize("make", [ended, copied])
def test_who_adds_is_refused_at_once(tmp_path, make, may_write):
    mounted(tmp_path)

    def add() -> str:
        assert mount(tmp_path)
        make(tmp_path / "run")
        fill(tmp_path, left=0)
        if not may_write:
            forbid_writing(tmp_path)
        with refuses("full" if may_write else "read-only"):
            Run(tmp_path / "run", adds=True)
        return "refused"

    assert apart(add) == "refused"


@pytest.mark.parametrize("make", [ended, copied])
def test_who_writes_meanwhile_is_found(tmp_path, monkeypatch, make):
    """Nothing is locked, so the pages may be of two times: no figure, and no damage either."""
    folder = tmp_path / "run"
    make(folder)
    monkeypatch.setattr("mosa.runs.store.os.access", lambda path, mode: False)
    if make is copied:
        no_index(monkeypatch)
    reader = Run(folder)
    monkeypatch.undo()
    with Run(folder, create=True) as run:
        run.add_subject(subject("later"))
    for late in (partial(reader.damage, "subjects", "its checksum is wrong"), reader.close):
        with refuses(folder / FILE) as caught:
            late()
        assert not isinstance(caught.value, DamagedRun)


def no_index(monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite finds no place for the index of a log."""
    connect = sqlite3.connect

    def refusing(address: str, **settings: Any) -> sqlite3.Connection:
        found = connect(address, **settings)
        if address.endswith("mode=ro"):
            found.close()
            found = connect("file:/no/such/place?mode=ro", **settings)
        return found

    monkeypatch.setattr("mosa.runs.store.sqlite3.connect", refusing)
