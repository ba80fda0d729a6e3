"""Every command that writes, on a disk that fills: one sentence with the remedy, nothing half is
left, what was recorded stays, and with room again the same command ends as undisturbed."""

from __future__ import annotations

import functools
import random
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from disks import BALLAST, apart, fill, forbid_writing, mount
from fuzz.writers import MORE, WRITERS, Writer, content
from made_runs import attacked
from refusals import check_sentence

from mosa import cli

pytestmark = pytest.mark.slow

NUM_DISKS = 4


def run(command: Callable[[], int], told: Path) -> tuple[int, list[str]]:
    """The status of a command, and what it has said on its standard error."""
    with told.open("w") as file:
        before = sys.stderr, sys.stdout
        sys.stderr = sys.stdout = file
        try:
            status = command()
        finally:
            sys.stderr, sys.stdout = before
    return status, told.read_text().splitlines()


def begun(writer: Writer, out: Path) -> Path:
    out.mkdir(exist_ok=True)
    if writer.name == "judge":
        attacked(out, {"a": {"direct": dict.fromkeys("abcdefgh", True)}})
    return out


def size_of(folder: Path) -> int:
    """Bytes on the disk, in pages of tmpfs."""
    sizes = (path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return sum(-(-size // 4096) * 4096 for size in sizes)


def on_a_full_disk(writer: Writer, given: Path, whole: Path, disk: Path, share: float) -> str:
    """The status of a command on a disk with room for a share of what it writes; it is run again
    where that is not enough. AssertionError for anything but a sentence and the whole result."""
    assert mount(disk)
    out = begun(writer, disk / "out")
    (disk / "letter.txt").write_text("mine")
    fill(disk, left=int(share * (size_of(whole) - size_of(out))))
    command, told = functools.partial(writer.run, given, out), disk.with_suffix(".txt")
    status, said = run(command, told)
    assert status in (0, 2) and "Traceback" not in " ".join(said), said
    (disk / BALLAST).unlink()
    if status == 2:
        assert said[-1].startswith("mosa: ") and "full" in said[-1], said
        check_sentence(said[-1])
        again, said = run(command, told)
        if again == 2 and writer.again:
            again, said = run(functools.partial(command, *writer.again), told)
        assert again == 0, said
    assert writer.result(out) == writer.result(whole)
    left = [path.name for path in out.rglob("*") if ".part" in path.name]
    assert not left and (disk / "letter.txt").read_text() == "mine"
    return str(status)


@pytest.mark.parametrize("writer", [*WRITERS, *MORE], ids=lambda writer: writer.name)
def test_a_disk_that_fills(writer: Writer, given: Path, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if apart(lambda: str(mount(tmp_path))) != "True":
        pytest.skip("this system lets nobody mount a disk")
    whole = begun(writer, tmp_path / "whole")
    command, told = functools.partial(writer.run, given, whole), tmp_path / "told.txt"
    assert apart(lambda: str(run(command, told)[0])) == "0", told.read_text()
    numbers = random.Random(writer.name)
    for number in range(NUM_DISKS):
        share = numbers.uniform(0, 1.2) if number else 0.0
        disk = tmp_path / f"disk{number}"
        disk.mkdir()
        found = apart(functools.partial(on_a_full_disk, writer, given, whole, disk, share))
        assert found in (("2", "0") if number else ("2",)), (share, found)


READERS = {
    "status": [],
    "results": [],
    "results --export json": ["--out", "out"],
    "compare": ["--subject_a", "a", "--subject_b", "b"],
    "report": ["--out", "out"],
}


@pytest.mark.parametrize("may_write", [True, False])
@pytest.mark.parametrize("command", READERS)
def test_what_only_reads_needs_no_room(command, may_write, tmp_path, monkeypatch):
    """A run on a full disk, or on one that may not be written, is told like any other."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if apart(lambda: str(mount(disk))) != "True":
        pytest.skip("this system lets nobody mount a disk")
    name, *options = command.split()
    runs = [str(disk / "run")] * (2 if name == "compare" else 1)

    def told(folder: Path, is_full: bool) -> str:
        assert mount(disk)
        subjects = {name: {"direct": {"x": True, "y": name == "a"}} for name in "ab"}
        attacked(disk / "run", subjects)
        if is_full:
            fill(disk, left=0)
            if not may_write:
                forbid_writing(disk)
        folder.mkdir()
        monkeypatch.chdir(folder)
        argv = [name, *runs, *options, *READERS[command]]
        status, said = run(functools.partial(cli.main, argv), folder / "told.txt")
        assert status == 0, said
        return str(content(folder))

    full = apart(lambda: told(tmp_path / "full", True))
    assert "Traceback" not in full and full == apart(lambda: told(tmp_path / "roomy", False))
