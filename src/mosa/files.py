"""The one place that writes files: whole or not at all, and never over what others have made.

A file is written under a private name beside its own, flushed to the disk, and renamed. A process
that is killed leaves the old file or the new one, and a reader never sees half a file; the private
name that it leaves is cleared by the next that writes into the folder.

A command claims its place before it begins. A folder of ours has a mark, `.mosa.jsonl`, which says
who made it, which files are ours, and what they were when we wrote them; nothing else in it is ever
replaced or removed, a file of ours that somebody has changed neither, and one process at a time may
hold it. A file that stands alone has a seal in its beginning: who made it, and its text's hash.

    with claim_folder(out, "mosa merge") as own:
        write_text(out / "README.md", card)
        own.finish()

    with claim_file(Path("numbers.json"), "mosa bench"):
        write_sealed(Path("numbers.json"), json.dumps({"made_by": seal("mosa bench"), ...}))
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import itertools
import json
import os
import re
import resource
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from mosa.types import UserError

MARK = ".mosa.jsonl"
"""In a folder that a command has made: who made it, then a line for each of its files."""
MOST_BEGINNING = 4096
"""Bytes from the beginning of a file, in which its seal stands."""
SECONDS_TO_WAIT = 0.5
"""How long a place may be held by one who only looks whether its holder lives."""
_CHUNK = 1 << 20
"""Bytes that are read at once."""
_NO_HASH = "0" * 64
"""In place of the hash while it is computed."""
_PART = re.compile(r"\.mosa\.[0-9a-f]{16}\.part")
"""The private names of what is not whole yet."""
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF)
"""What file systems without locks answer."""
_FORMULA = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""How a cell begins that a spreadsheet runs; the last four are the wide forms."""
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFREG: "a file",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


@contextmanager
def user_errors(place: Path) -> Iterator[None]:
    """Turns an error of the disk inside the block into a UserError that names the place.

    Those of safetensors, tokenizers and torch too, which have their own classes for it. A place
    that no system can name is refused before the block.
    """
    try:
        is_name = b"\0" not in os.fsencode(place)
    except UnicodeEncodeError:  # half a character
        is_name = False
    if not is_name:
        raise UserError(f"no file can be called {str(place)!r}; name another")
    try:
        yield
    except (UserError, BrokenPipeError):  # the latter is of our output, not of a file
        raise
    except Exception as error:
        number = _disk_error(error)
        if number is None:
            raise
        place = Path(*(part for part in place.parts if not _PART.fullmatch(part)))
        if number in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"the disk of {place} is full; free some space and run the same command again"
            ) from error
        if number == errno.EFBIG:
            raise UserError(
                f"{place} needs a larger file than this system allows (ulimit -f); raise the limit "
                "and run the same command again"
            ) from error
        raise UserError(
            f"{place} cannot be written ({os.strerror(number)}); name another"
        ) from error


def _disk_error(error: Exception) -> int | None:
    """The number of the system's error behind an exception, None where there is none."""
    if isinstance(error, OSError):
        return error.errno or errno.EIO
    if found := re.search(r"\(os error (\d+)\)", str(error)):  # of a library written in Rust
        return int(found[1])
    is_torch = isinstance(error, RuntimeError) and "inline_container.cc" in str(error)
    if not is_torch or "PytorchStreamReader" in str(error):
        return None
    # torch tells that a write failed, or that less is there than it wrote, but not why.
    is_limited = resource.getrlimit(resource.RLIMIT_FSIZE)[0] != resource.RLIM_INFINITY
    return errno.EFBIG if is_limited else errno.ENOSPC


# ------------------------------------------------------------------------------------- one file


def make_private_file(path: Path) -> None:
    """Make an empty file that its owner alone may read, in a folder of that kind, unless it is
    there; for records of what models were asked and said. UserError for anything but a file."""
    with user_errors(path):
        path.parent.mkdir(0o700, parents=True, exist_ok=True)
        with suppress(FileExistsError):
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        _old_mode(path)


@contextmanager
def claim_file(path: Path | None, made_by: str | None = None) -> Iterator[None]:
    """Hold the place of a command's result for the block; None: it writes none.

    Raises UserError where something stands there but a file that `made_by` has sealed and nobody
    has changed since, where the folder cannot be written, and where another process holds the
    place: it would replace the result of the other. Only a private file is made, which goes with
    the block: folders that are missing are made with the result.
    """
    if path is None:
        yield
        return
    with user_errors(path):
        name = os.path.realpath(path)
        _check_file(path, made_by)
    if name in _claimed:  # by this process
        yield
        return
    with user_errors(path):
        place, descriptor = _locked_place(path)
        _claimed[name] = made_by
    try:
        with user_errors(path):
            _check_file(path, made_by)  # another process may have come first
        yield
    finally:
        del _claimed[name]
        with suppress(OSError):
            place.unlink()
        os.close(descriptor)


_claimed: dict[str, str | None] = {}
"""The places of files that this process holds, links followed, and who may have made what stands
there."""


def _check_file(path: Path, made_by: str | None) -> None:
    _check_folder(path.parent, path)
    if _old_mode(path) is not None:
        is_as_written = None if made_by is None else _is_as_sealed(path, made_by)
        if is_as_written is None:
            raise UserError(
                f"{path} exists and is no earlier result of this command; name a new file with "
                "--out, or remove it"
            )
        if not is_as_written:
            raise UserError(
                f"{path} was changed since this command wrote it; move it, or name a new file with "
                "--out"
            )
    _owner_of(path)


def seal(made_by: str) -> str:
    """What stands once in the beginning of a text for `write_sealed`: who made it, and room for its
    hash."""
    return f"{made_by} sha256:{_NO_HASH}"


def write_sealed(path: Path, text: str) -> None:
    """Write a text, with its own hash in its seal: by that `claim_file` knows it, wherever it is
    moved, and knows that nobody has changed it."""
    digest = hashlib.sha256(text.encode()).hexdigest()
    write_text(path, text.replace(f" sha256:{_NO_HASH}", f" sha256:{digest}", 1))


def _is_as_sealed(path: Path, made_by: str) -> bool | None:
    """Whether a file is as `made_by` wrote it; None where it has not written it."""
    with path.open("rb") as file:
        beginning = file.read(MOST_BEGINNING)
        found = re.search(rb"%b sha256:([0-9a-f]{64})" % re.escape(made_by.encode()), beginning)
        if found is None:
            return None
        start, end = found.span(1)
        digest = hashlib.sha256(beginning[:start] + _NO_HASH.encode() + beginning[end:])
        hashlib.file_digest(file, lambda: digest)
    return digest.hexdigest() == found[1].decode()


def _locked_place(path: Path) -> tuple[Path, int]:
    """A file beside a path that stands for it, or above it where its folder is missing, which this
    process alone has open."""
    target = Path(os.path.realpath(path))
    folder = next(folder for folder in target.parents if folder.is_dir())
    name = hashlib.sha256(os.fsencode(target)).hexdigest()[:16]
    place = folder / f".mosa.{name}.part"
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
    told = f"{path}; wait for its end, or name another file"
    return place, _locked(place, lambda: os.open(place, flags, 0o666), told, SECONDS_TO_WAIT)


def _locked(place: Path, make: Callable[[], int], told: str, seconds: float = 0.0) -> int:
    """The file at a place, opened or made by `make`, which this process alone has open; others may
    have it for so many seconds. `told` is the end of the sentence about one who keeps it."""
    deadline = time.monotonic() + seconds
    while True:
        descriptor = make()
        if _lock(descriptor) is not False:
            with suppress(FileNotFoundError):  # its holder has just removed it
                if os.path.samestat(os.fstat(descriptor), os.lstat(place)):
                    return descriptor
        elif time.monotonic() > deadline:
            os.close(descriptor)
            raise UserError(f"another process is writing {told}")
        os.close(descriptor)
        time.sleep(SECONDS_TO_WAIT / 10)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """An empty file beside `path` to write to; it replaces `path` when the block ends well.

    A symbolic link is followed to its file, and an old file's mode is kept. Missing folders are
    made. Raises UserError where `path` is a folder, device, pipe or socket or a link to nothing,
    where the old file is read-only or, in a folder that is claimed, is not ours, and for disk
    errors; `path` is then unchanged.
    """
    with user_errors(path):
        target, mode = _place(path)
        _clear_leftovers(target.parent)
        with _private(target.parent, _new_file) as temporary:
            fresh = stat.S_IMODE(temporary.stat().st_mode)
            yield temporary
            # A library may have made the file anew, with a mode of its own.
            temporary.chmod(fresh if mode is None else mode)
            _flush(temporary)
            _keep(path, temporary)
            temporary.replace(target)
            _flush_names(target.parent)


@contextmanager
def writing(path: Path) -> Iterator[TextIO]:
    """A UTF-8 text file to write to, as in `replacing`; line ends stay as they are written."""
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        yield file


def write_text(path: Path, text: str) -> None:
    """Write a text as UTF-8, whole or not at all."""
    with writing(path) as file:
        file.write(text)


def append_text(path: Path, text: str) -> None:
    """Write a text behind what a file of ours holds, or into a new one.

    In a folder that is claimed the file stays ours while it grows. A kill may leave a part of the
    text. Raises UserError as `replacing` does.
    """
    with user_errors(path):
        target, mode = _place(path)
        if mode is None or not target.stat().st_size:
            write_text(path, text)
            text = ""
        _keep(path, target, grows=True)
        with target.open("a", encoding="utf-8", newline="") as file:
            file.write(text)


def write_bytes(path: Path, content: bytes) -> None:
    """Write bytes, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON with a line end, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def plain_cell(value: Any) -> Any:
    """A cell of a table as a spreadsheet shows and does not run it: formulas get a `'` before them.

    >>> plain_cell("=1+1"), plain_cell("no"), plain_cell(-1.5)
    ("'=1+1", 'no', -1.5)
    """
    if not isinstance(value, str):
        return value
    runs = value.lstrip()[:1] in _FORMULA or value[:1] in ("\t", "\r", "\n")
    return f"'{value}" if value and runs else value


@contextmanager
def filling(folder: Path) -> Iterator[Path]:
    """An empty folder to save files to, for results of several files and for libraries that choose
    their names; when the block ends well, each file takes its place in `folder`, as in `replacing`,
    after all places were found free or ours."""
    with user_errors(folder):
        _check_folder(folder, folder)
        folder.mkdir(parents=True, exist_ok=True)
        _clear_leftovers(folder)
        with _private(folder, _new_folder) as part:
            mode = part.stat().st_mode & 0o666
            yield part
            files = sorted(path for path in part.rglob("*") if path.is_file())
            for place in [folder / file.relative_to(part) for file in files]:
                _check_place(place)
            for file in files:
                place = folder / file.relative_to(part)
                target, old = _place(place)
                file.chmod(mode if old is None else old)
                _flush(file)
                _keep(place, file)
                file.replace(target)
            _flush_names(folder)


# ---------------------------------------------------------------------------- a folder of our own


class OwnFolder:
    """A folder that this process holds, and the files in it that are ours."""

    def __init__(
        self, path: Path, descriptor: int, made_by: str, known: frozenset[str] = frozenset()
    ) -> None:
        self.path = path
        self._descriptor = descriptor
        mark = _read_mark(path, descriptor)
        self._files, self.is_finished = mark.files, mark.is_finished
        os.ftruncate(descriptor, mark.num_bytes if mark.made_by == made_by else 0)
        if mark.made_by != made_by:
            self._add({"made_by": made_by})
            for name in sorted(known):
                self._keep(name, path / name)

    @property
    def files(self) -> frozenset[str]:
        """The paths of our files, from the folder."""
        return frozenset(self._files)

    def expect(self, *names: str) -> None:
        """Raises UserError where others have put files of these names, or have changed ours: they
        would be in the way of ours at the end."""
        for name in names:
            if name not in self._files and os.path.lexists(self.path / name):
                raise UserError(
                    f"{self.path / name} was not made by this command; move it, or name a new "
                    "folder with --out"
                )
            if self._is_changed(name):
                raise UserError(
                    f"{self.path / name} was changed since this command wrote it; move it, or name "
                    "a new folder with --out"
                )

    def finish(self) -> None:
        """Keep that the result is whole; `is_finished` says so to the next that holds it."""
        self._add({"finished": True})
        self.is_finished = True

    def discard(self, *names: str) -> None:
        """Remove our files of these names and below them; those of others stay."""
        for file in sorted(self._files):
            if any(file == name or file.startswith(f"{name}/") for name in names):
                self._remove(file)

    def discard_all(self) -> None:
        """Remove all our files; those of others, and those that others have changed, stay."""
        for file in sorted(self._files):
            self._remove(file)
        if self.is_finished:
            self._add({"finished": False})
            self.is_finished = False

    def set_aside(self, name: str) -> Path:
        """Rename a damaged file or folder of ours, so that a whole one can take its place; returns
        where it is now. Nothing of it is ours any more. What others have made stays where it is."""
        place = self.path / name
        known = [file for file in self._files if file == name or file.startswith(f"{name}/")]
        if not known:
            return place
        aside = (place.with_name(f"{place.name}.damaged-{number}") for number in itertools.count(1))
        target = next(path for path in aside if not os.path.lexists(path))
        with user_errors(self.path):
            place.rename(target)
            for file in known:
                self._add({"removed": file})
                del self._files[file]
        return target

    def _is_changed(self, name: str) -> bool:
        """Whether a file of ours is there and is not what we wrote."""
        place = self.path / name
        if name not in self._files or not place.is_file():
            return False
        return not any(kept.is_of(place) for kept in self._files[name])

    def _remove(self, name: str) -> None:
        place, folder = self.path / name, Path(os.path.realpath(self.path))
        with user_errors(self.path):
            is_within = Path(os.path.realpath(place)) == folder / name  # no link leads elsewhere
            if is_within and not self._is_changed(name):
                place.unlink(missing_ok=True)
                for parent in list(Path(name).parents)[:-1]:
                    with suppress(OSError):  # what others have put there keeps it
                        (self.path / parent).rmdir()
            self._add({"removed": name})
        del self._files[name]

    def _name_of(self, path: Path) -> str | None:
        """The name of a path in this folder; None for a private one."""
        name = _absolute(path).relative_to(_absolute(self.path)).as_posix()
        return None if any(map(_PART.fullmatch, name.split("/"))) else name

    def _keep(self, name: str, content: Path, *, grows: bool = False) -> None:
        """Note that a file with this content is ours, before it is there."""
        if grows and any(kept.grows and kept.is_of(content) for kept in self._files.get(name, ())):
            return
        size = content.stat().st_size
        kept = _Content(size, _digest(content, size), grows)
        if kept in self._files.get(name, ()):  # the same again
            return
        self._add({"file": name, **kept._asdict()})
        self._files.setdefault(name, set()).add(kept)

    def _add(self, entry: dict[str, Any]) -> None:
        end = os.lseek(self._descriptor, 0, os.SEEK_END)
        line = json.dumps(entry).encode() + b"\n"
        if os.write(self._descriptor, line) < len(line):
            os.ftruncate(self._descriptor, end)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


_owned: dict[Path, OwnFolder] = {}
"""The folders that this process holds, by their absolute paths as they were given."""


def check_folder(path: Path, made_by: str, known: frozenset[str] = frozenset()) -> None:
    """Raises UserError where `claim_folder` would: the folder holds what `made_by` did not make."""
    with user_errors(path):
        _check_folder(path, path)
        if not path.exists():
            return
        mark = _Mark(None, {}, False, 0)
        with suppress(FileNotFoundError):
            descriptor = _open_mark(path, os.O_RDONLY)
            try:
                mark = _read_mark(path, descriptor)
            finally:
                os.close(descriptor)
        others = [n for n in os.listdir(path) if n != MARK and not _PART.fullmatch(n)]
        if mark.made_by is None and others and not known:
            raise UserError(
                f"{path} holds other things ({min(others)}); name a new folder for the result with "
                "--out"
            )
        if mark.made_by not in (None, made_by) and (mark.files or others):
            raise UserError(f"{path} was made by `{mark.made_by}`; name a new --out")


@contextmanager
def claim_folder(
    path: Path, made_by: str, known: frozenset[str] = frozenset()
) -> Iterator[OwnFolder]:
    """Hold a folder for the block: a new one, an empty one, or one that the same command has made.

    `known` are files that are ours by their content, in a folder that was copied without its mark.
    Leftovers of a process that was killed are cleared. A folder that stays empty is left as it was.
    Raises UserError for a folder that holds other things, that another process holds, or that
    cannot be written.
    """
    check_folder(path, made_by, known)
    with user_errors(path):
        made = [folder for folder in (path, *path.parents) if not folder.is_dir()]
        path.mkdir(parents=True, exist_ok=True)
        told = f"into {path}; wait for its end, or name another folder"
        descriptor = _locked(path / MARK, lambda: _open_mark(path, os.O_RDWR | os.O_CREAT), told)
        try:
            check_folder(path, made_by, known)  # another process may have come first
            own = OwnFolder(path, descriptor, made_by, known)
        except BaseException:
            os.close(descriptor)
            raise
    _owned[_absolute(path)] = own
    try:
        with user_errors(path):
            for folder in {(path / name).parent for name in own.files} | {path}:
                _clear_leftovers(folder)
        yield own
    finally:
        del _owned[_absolute(path)]
        with suppress(OSError):
            if os.listdir(path) == [MARK]:
                (path / MARK).unlink()
                for folder in made:
                    folder.rmdir()
        os.close(descriptor)


class _Content(NamedTuple):
    """What a file was when we wrote it."""

    size: int
    """In bytes."""
    digest: str
    """`_digest` of all of it."""
    grows: bool
    """We append to it: it is known by what it began with."""

    def is_of(self, path: Path) -> bool:
        """Whether a file is this, or began with it where it grows."""
        size = path.stat().st_size
        is_long_enough = size >= self.size if self.grows else size == self.size
        return is_long_enough and _digest(path, self.size) == self.digest


class _Mark(NamedTuple):
    made_by: str | None
    """None: nobody yet."""
    files: dict[str, set[_Content]]
    """By name; several where a kill may have come between the mark and the file."""
    is_finished: bool
    num_bytes: int
    """Of its whole lines; a kill may have cut the last one."""


def _read_mark(path: Path, descriptor: int) -> _Mark:
    content = b"".join(iter(lambda: os.read(descriptor, _CHUNK), b""))
    *lines, cut = content.split(b"\n")
    made_by: str | None = None
    files: dict[str, set[_Content]] = {}
    is_finished = False
    try:
        for number, line in enumerate(lines):
            match number, json.loads(line):
                case 0, {"made_by": str(name)}:
                    made_by = name
                case _, {
                    "file": str(name),
                    "size": int(size),
                    "digest": str(digest),
                    "grows": bool(grows),
                } if number and _is_below(name):
                    files.setdefault(name, set()).add(_Content(size, digest, grows))
                case _, {"removed": str(name)} if number:
                    files.pop(name, None)
                case _, {"finished": bool(value)} if number:
                    is_finished = value
                case other:
                    raise ValueError(other)
        if not lines and not b'{"made_by": '.startswith(cut[:12]):
            raise ValueError(cut)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path / MARK} is damaged, or not of mosa; name a new folder") from error
    return _Mark(made_by, files, is_finished, len(content) - len(cut))


def _digest(path: Path, size: int) -> str:
    """A hash of a file's first `size` bytes.

    The time of the last change would be cheaper and wrong: a folder that is copied or restored has
    others. The edges would be, too: an edit in the middle may keep the size.
    """
    found = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(min(size, _CHUNK)):
            found.update(part)
            size -= len(part)
    return found.hexdigest()


def _is_below(name: str) -> bool:
    return not name.startswith("/") and ".." not in name.split("/") and "\0" not in name


def _open_mark(path: Path, flags: int) -> int:
    """The mark of a folder, which is no link and no pipe."""
    descriptor = os.open(path / MARK, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UserError(f"{path / MARK} is not of mosa; name a new folder")
    return descriptor


# ------------------------------------------------------------------------------------ what is there


def _place(path: Path) -> tuple[Path, int | None]:
    """As `_check_place`, the file's folder made."""
    target, mode = _check_place(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    return target, mode


def _check_place(path: Path) -> tuple[Path, int | None]:
    """The file to write for a path, and the mode of the old one, if there is one.

    Raises UserError where something stands there that must not be replaced.
    """
    _check_folder(path.parent, path)
    mode = _old_mode(path)
    own = _owner_of(path)
    if own is not None and (name := own._name_of(path)) is not None:
        own.expect(name)
    target = Path(os.path.realpath(path))
    if str(target) in _claimed:
        _check_file(path, _claimed[str(target)])  # what has come while the command worked
    return target, mode


def _keep(path: Path, content: Path, *, grows: bool = False) -> None:
    """Note in the folder of ours that `path` is in, if there is one, what will stand there."""
    own = _owner_of(path)
    if own is not None and (name := own._name_of(path)) is not None:
        own._keep(name, content, grows=grows)


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path))


def _owner_of(path: Path) -> OwnFolder | None:
    """The folder of ours that a path is in; UserError where a link leads from there elsewhere."""
    place = _absolute(path)
    own = next((_owned[parent] for parent in place.parents if parent in _owned), None)
    if own is not None:
        name = place.relative_to(_absolute(own.path))
        if Path(os.path.realpath(path)) != Path(os.path.realpath(own.path)) / name:
            raise UserError(f"{path} is behind a link; remove the link, or name a new folder")
    return own


def _check_folder(folder: Path, path: Path) -> None:
    """UserError that names `path` where `folder` cannot be written to, or cannot be made."""
    for place in (folder, *folder.parents):
        if not os.path.lexists(place):
            continue
        named = path if place == path else f"{path}: {place}"
        try:
            mode = place.stat().st_mode
        except FileNotFoundError:
            raise UserError(f"{named} is a link to nothing; name another") from None
        if not stat.S_ISDIR(mode):
            raise UserError(f"{named} is {_KINDS[stat.S_IFMT(mode)]} and no folder; name another")
        # The bits too: the superuser may write everywhere.
        if not mode & 0o222 or not os.access(place, os.W_OK | os.X_OK):
            raise UserError(f"{named} is read-only; name another, or let it be written")
        for name in path.parts[len(place.parts) :]:
            with suppress(FileNotFoundError):  # a name that cannot be is another error
                os.lstat(place / name)
        return


def _old_mode(path: Path) -> int | None:
    """The permissions of the file to replace, None where there is none."""
    try:
        old = path.stat().st_mode
    except FileNotFoundError:
        if path.is_symlink():
            raise UserError(f"{path} is a link to nothing; remove it, or name another") from None
        return None
    if not stat.S_ISREG(old):
        raise UserError(f"{path} is {_KINDS[stat.S_IFMT(old)]}; name a file")
    if not old & 0o222 or not os.access(path, os.W_OK):
        raise UserError(f"{path} is read-only; name another file, or let it be written")
    return stat.S_IMODE(old)


# ------------------------------------------------------------------------------------ private names


def _new_file(path: Path) -> int:
    # The umask decides on the mode, as for any new file.
    return os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)


def _new_folder(path: Path) -> int:
    path.mkdir()
    return os.open(path, os.O_RDONLY)


@contextmanager
def _private(folder: Path, make: Callable[[Path], int]) -> Iterator[Path]:
    """What `make` makes and opens, under a private name, gone at the end; its lock says that its
    writer lives."""
    while True:
        path = folder / f".mosa.{secrets.token_hex(8)}.part"
        try:
            descriptor = make(path)
        except FileNotFoundError:  # another writer has just cleared it
            if not folder.is_dir():
                raise
            continue
        if _lock(descriptor) is not False and path.exists():
            break
        os.close(descriptor)
    try:
        yield path
    finally:
        _delete(path)
        os.close(descriptor)


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _clear_leftovers(folder: Path) -> None:
    """Remove what processes that are gone have left in a folder under private names."""
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            if not _PART.fullmatch(entry.name):
                continue
            with suppress(OSError):  # of another user, or cleared by another process meanwhile
                descriptor = os.open(entry.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
                try:
                    if _lock(descriptor):
                        _delete(Path(entry.path))
                finally:
                    os.close(descriptor)


def _lock(descriptor: int) -> bool | None:
    """Whether this is now the only one to hold it; None where the file system has no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return None
    return True


def _flush_names(folder: Path) -> None:
    """Flush a folder's names. What fails here costs nothing but where the power goes, and not all
    file systems can."""
    with suppress(OSError):
        _flush(folder)


def _flush(path: Path) -> None:
    """Flush a file's content, or a folder's names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
