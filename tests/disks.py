"""Disks of a test's own: full ones, and ones that may not be written."""

from __future__ import annotations

import ctypes
import os
import traceback
from collections.abc import Callable
from pathlib import Path

SIZE = 64 << 20
"""Bytes of the disk."""
NEW_USER, NEW_MOUNTS, PRIVATE = 0x10000000, 0x00020000, (1 << 18) | (1 << 14)
READ_ONLY, REMOUNT, BIND = 1, 32, 4096
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


def forbid_writing(disk: Path) -> None:
    """Let nobody write to a disk from now on but those who have files of it open."""
    libc, place = ctypes.CDLL(None), bytes(disk)
    assert libc.mount(place, place, None, BIND, None) == 0
    assert libc.mount(None, place, None, BIND | REMOUNT | READ_ONLY, None) == 0
