"""Files as others hand them in, damaged in many ways: what stands in them and how it is changed."""

from __future__ import annotations

import copy
import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from refusals import check_sentence

from mosa.chat import ChatError
from mosa.types import UserError

SECONDS = 60
"""After which reading a small file counts as not coming back."""
NUM_INPUTS = int(os.environ.get("MOSA_FUZZ", "1000"))
SLOW = (
    HealthCheck.data_too_large,
    HealthCheck.filter_too_much,
    HealthCheck.large_base_example,
    HealthCheck.too_slow,
)
"""What hypothesis complains of where inputs are large and reading them is slow."""
many = settings(max_examples=NUM_INPUTS, deadline=None, database=None, suppress_health_check=SLOW)


@dataclass(frozen=True)
class Surface:
    """A kind of file, and what reads it."""

    name: str
    file: str
    """Which of the folder's files is damaged."""
    make: Callable[[Path], object]
    """Writes a sound sample into an empty folder."""
    read: Callable[[Path], object]
    """Reads what is in the folder, as a command does."""


@contextmanager
def comes_back() -> Iterator[None]:
    """Ends what is inside with TimeoutError where it does not come back."""

    def stop(number: int, frame: object) -> None:
        raise TimeoutError(f"no end within {SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def read_or_refuse(read: Callable[[Path], object], folder: Path) -> None:
    """Read; what is refused is refused by one sentence, and nothing else is raised."""
    with comes_back():
        try:
            read(folder)
        except (UserError, ChatError) as error:
            check_sentence(str(error))


# --- changes --------------------------------------------------------------------------------------

DEEP: Any = []
for _ in range(200):
    DEEP = [DEEP]

VALUES = st.one_of(
    st.sampled_from(
        [None, True, False, 0, -1, 1, 1.5, -0.0, 1e308, float("inf"), float("nan"), 2**31, 2**63]
        + [10**19, 10**400, "", "x", "8", "\0", "\ud83d", "../../x", "/etc/passwd", "a" * 5000]
        + [[], [1], [None], {}, {"a": 1}, {"": {}}, [[[]]], "\x1b[31m", "null", "(a+)+$", DEEP]
    ),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
)


@st.composite
def changed_bytes(draw: st.DrawFn, content: bytes) -> bytes:
    """A file's bytes with some flipped, cut off, put in, repeated or all replaced."""
    damaged = bytearray(content)
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, max(0, len(damaged) - 1)))
        match draw(st.sampled_from(["flip", "cut", "insert", "repeat", "zero", "replace"])):
            case "flip" if damaged:
                damaged[place] ^= 1 << draw(st.integers(0, 7))
            case "cut":
                del damaged[place:]
            case "insert":
                damaged[place:place] = draw(st.binary(min_size=1, max_size=12))
            case "repeat":
                damaged[place:place] = damaged[place : place + draw(st.integers(1, 200))]
            case "zero":
                damaged[place : place + 64] = bytes(min(64, len(damaged) - place))
            case _:
                damaged[:] = draw(st.sampled_from(REPLACEMENTS))
    return bytes(damaged)


REPLACEMENTS = [b"", b"\n", b"null", b"[]", b"{}", b"[1]", b'"x"', b"1", b"NaN", b"[" * 100_000]
REPLACEMENTS += [b"\xff\xfe{\0}\0", b"\xef\xbb\xbf{}", b"caf\xe9", b"\0" * 100, b"{" * 100_000]
REPLACEMENTS += [b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"]


@st.composite
def changed_json(draw: st.DrawFn, content: bytes) -> bytes:
    """A JSON file with one to three of its values replaced, left out or added."""
    value = json.loads(content)
    for _ in range(draw(st.integers(1, 3))):
        holders = [holder for holder in _holders(value) if holder]
        if not holders:
            break
        holder = draw(st.sampled_from(holders))
        key = draw(
            st.sampled_from(sorted(holder) if isinstance(holder, dict) else [*range(len(holder))])
        )
        match draw(st.sampled_from(["replace", "replace", "delete", "add"])):
            case "delete":
                del holder[key]
            case "add" if isinstance(holder, dict):
                holder[draw(st.text(max_size=8))] = copy.deepcopy(draw(VALUES))
            case _:
                holder[key] = copy.deepcopy(draw(VALUES))
    return json.dumps(value).encode()


def _holders(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [value, *(found for part in value.values() for found in _holders(part))]
    if isinstance(value, list):
        return [value, *(found for part in value[:50] for found in _holders(part))]
    return []


def changed(content: bytes) -> st.SearchStrategy[bytes]:
    """Any change of a file; of JSON also changes of its values."""
    try:
        json.loads(content)
    except ValueError:
        return changed_bytes(content)
    return st.one_of(changed_json(content), changed_json(content), changed_bytes(content))
