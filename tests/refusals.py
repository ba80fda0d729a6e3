"""What the user is told of a mistake: the names in it are checked, its wording is free."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mosa import cli
from mosa.chat import ChatError
from mosa.terminal import MOST_CHARACTERS
from mosa.types import UserError


@contextmanager
def refuses(
    *names: object, error: type[UserError] | type[ChatError] = UserError
) -> Iterator[pytest.ExceptionInfo[Exception]]:
    """Expects an error whose message has each name (field, option, value, file) as whole words.

    What it yields holds the error, `value`, for tests that need more of it.
    """
    with pytest.raises(error) as caught:
        yield caught
    check_message(str(caught.value), *names)


def cli_refuses(capsys: pytest.CaptureFixture[str], argv: Sequence[str], *names: object) -> str:
    """The message of a command that ends with 2, prints nothing else, and has each name in it."""
    status = cli.main(list(argv))
    captured = capsys.readouterr()
    assert (status, captured.out) == (cli.EXIT_USER_ERROR, ""), captured
    assert captured.err.startswith("mosa: ") and captured.err.endswith("\n"), captured.err
    message = captured.err.removeprefix("mosa: ").removesuffix("\n")
    assert cli.dashed(message) == message, "options are shown with dashes"
    check_message(as_field(message), *(as_field(str(name)) for name in names))
    return as_field(message)


def as_field(text: str) -> str:
    """The text with options named as their fields are: `--max-steps` is `--max_steps`."""
    option = r"(?<![\w-])--[a-z0-9]+(-[a-z0-9]+)+"
    return re.sub(option, lambda found: f"--{found[0][2:].replace('-', '_')}", text)


def unreadable(monkeypatch: pytest.MonkeyPatch, file: Path) -> Path:
    """A file that nobody may read, the superuser neither."""
    file.chmod(0)
    open_file = Path.open

    def refusing(path: Path, *args: Any, **settings: Any) -> Any:
        if path.exists() and not path.stat().st_mode & 0o444:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return open_file(path, *args, **settings)

    monkeypatch.setattr(Path, "open", refusing)
    return file


def check_sentence(message: str) -> None:
    """A message is one line, of a length that a terminal can show."""
    assert message.strip() and message == message.strip(), repr(message)
    assert len(message.splitlines()) == 1, message
    assert len(message) <= MOST_CHARACTERS, message
    assert "Traceback" not in message, message


def check_message(message: str, *names: object) -> None:
    """A message is one sentence with each name in it."""
    check_sentence(message)
    assert names and all(map(str, names)), f"name what is at fault in: {message}"
    for name in map(str, names):
        assert holds(message, name), f"{name!r} is not named in: {message}"


def holds(message: str, name: str) -> bool:
    """Whether a name stands in a message as whole words: `steps` is not in `max_steps`."""
    return re.search(rf"(?<!\w){re.escape(name)}(?!\w)", message) is not None


def with_options(argv: Sequence[str], *words: str) -> list[str]:
    """A command line with some of its `--name value` pairs replaced, and others added."""
    given = {word for word in words if word.startswith("--")}
    kept = [i for i in range(len(argv)) if not {argv[i], argv[max(i - 1, 0)]} & given]
    return [*(argv[i] for i in kept), *words]
