"""The one place that writes files: whole or not at all, and never over anything but a file.

A file is written under a private name beside its own, flushed to the disk, and renamed. A process
that is killed leaves the old file or the new one, and a reader never sees half a file.

    with writing(Path("report.html")) as file:
        file.write(page)
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from mosa.types import UserError

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


@contextmanager
def user_errors(place: Path) -> Iterator[None]:
    """Turns an error of the disk inside the block into a UserError that names the place."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"the disk of {place} is full; free some space and run the same command again"
            ) from error
        raise UserError(
            f"{place} cannot be written ({error.strerror or error}); name another"
        ) from error


def make_folder(path: Path) -> Path:
    """The folder, made with those above it where it is missing; UserError where that fails."""
    with user_errors(path):
        path.mkdir(parents=True, exist_ok=True)
    return path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """An empty file beside `path` to write to; it replaces `path` when the block ends well.

    A symbolic link is followed to its file, and an old file's mode is kept. Missing
    folders are made. Raises UserError where `path` is a folder, device, pipe or socket, where the
    old file is read-only, and for disk errors; `path` is then unchanged.
    """
    with user_errors(path):
        mode = _mode_of_old(path)
        target = Path(os.path.realpath(path))
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".mosa.{secrets.token_hex(8)}.part")
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY
        os.close(os.open(temporary, flags, 0o666))  # the umask decides, as for any new file
        try:
            yield temporary
            if mode is not None:
                temporary.chmod(mode)
            _flush(temporary)
            temporary.replace(target)
            _flush(target.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def writing(path: Path) -> Iterator[TextIO]:
    """A UTF-8 text file to write to, as in `replacing`; line ends stay as they are written."""
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        yield file


def write_text(path: Path, text: str) -> None:
    """Write a text as UTF-8, whole or not at all."""
    with writing(path) as file:
        file.write(text)


def write_bytes(path: Path, content: bytes) -> None:
    """Write bytes, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON with a line end, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def _mode_of_old(path: Path) -> int | None:
    """The permissions of the file that is to be replaced, None where there is none."""
    try:
        old = path.stat().st_mode
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(old):
        raise UserError(f"{path} is {_KINDS[stat.S_IFMT(old)]}; name a file")
    # The bits too: the superuser may write to everything.
    if not old & 0o222 or not os.access(path, os.W_OK):
        raise UserError(f"{path} is read-only; name another file, or let it be written")
    return stat.S_IMODE(old)


def _flush(path: Path) -> None:
    """Flush a file's content, or a folder's names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
