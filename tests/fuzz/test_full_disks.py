"""Every command that writes, on a disk that fills: one sentence with the remedy, nothing half is
left, what was recorded stays, and with room again the same command ends as undisturbed."""

from __future__ import annotations

import ctypes
import functools
import os
import random
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
from fuzz.writers import MORE, WRITERS, Writer
from made_runs import attacked
from refusals import check_sentence

from mosa import cli

pytestmark = pytest.mark.slow

NUM_DISKS = 4
SIZE = 64 << 20
"""Bytes of the disk."""
NEW_USER, NEW_MOUNTS, PRIVATE = 0x10000000, 0x00020000, (1 << 18) | (1 << 14)
BALLAST = "ballast"


def mount(place: Path) -> bool:
    """Give this process a disk of its own at a folder; False where the system does not allow it."""
    libc = ctypes.CDLL(None, use_errno=True)
    user, group = os.getuid(), os.getgid()
    if libc.unshare(NEW_MOUNTS) != 0:
        if libc.unshare(NEW_USER | NEW_MOUNTS) != 0:
            return False
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    libc.mount(None, b"/", None, PRIVATE, None)
    return libc.mount(b"disk", bytes(place), b"tmpfs", 0, b"size=%d" % SIZE) == 0


def apart(work: Callable[[], str]) -> str:
    """What `work` returns in a child of this process, where disks can be mounted."""
    ready, tell = os.pipe()
    child = os.fork()
    if child == 0:
        said = ""
        try:
            os.setpgid(0, 0)
            said = work()
        except BaseException:
            said = traceback.format_exc()
        finally:
            os.write(tell, said.encode())
            os._exit(0)
    os.close(tell)
    said = b"".join(iter(lambda: os.read(ready, 1 << 16), b"")).decode()
    os.close(ready)
    os.waitpid(child, 0)
    return said


def fill(disk: Path, *, left: int) -> None:
    """Leave so many bytes of a disk, in whole pages."""
    found = os.statvfs(disk)
    with (disk / BALLAST).open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(found.f_bavail * found.f_frsize - left, 1))


def run(argv: list[str], told: Path) -> tuple[int, list[str]]:
    """The status of a command, and what it has said on its standard error."""
    with told.open("w") as file:
        before = sys.stderr, sys.stdout
        sys.stderr = sys.stdout = file
        try:
            status = cli.main(argv)
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
    argv, told = writer.argv(given, out), disk.with_suffix(".txt")
    status, said = run(argv, told)
    assert status in (0, 2) and "Traceback" not in " ".join(said), said
    (disk / BALLAST).unlink()
    if status == 2:
        assert said[-1].startswith("mosa: ") and "full" in said[-1], said
        check_sentence(said[-1])
        again, said = run(argv, told)
        if again == 2 and writer.again:
            again, said = run([*argv, *writer.again], told)
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
    argv, told = writer.argv(given, whole), tmp_path / "told.txt"
    assert apart(lambda: str(run(argv, told)[0])) == "0", told.read_text()
    numbers = random.Random(writer.name)
    for number in range(NUM_DISKS):
        share = numbers.uniform(0, 1.2) if number else 0.0
        disk = tmp_path / f"disk{number}"
        disk.mkdir()
        found = apart(functools.partial(on_a_full_disk, writer, given, whole, disk, share))
        assert found in (("2", "0") if number else ("2",)), (share, found)
