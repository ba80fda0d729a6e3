"""The one place that reads what others wrote: bounded, checked, each failure one sentence.

Whatever comes from a file goes through `read_bytes` and, where it is text, JSON or YAML, through
the functions behind it. They bound size and depth, refuse what has no plain meaning (numbers that
are not finite, a name twice, half a character), and raise UserError that names the file.

    settings = read_json(folder / "config.json")
    recipe = read_json(folder / "recipe.json", Recipe)
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any, NoReturn, TypeVar, overload

import msgspec
import yaml

from mosa.types import UserError

Kind = TypeVar("Kind")

MOST_BYTES = 1 << 30
"""Of any file that is read whole."""
MOST_SETTINGS_BYTES = 1 << 20
"""Of a file of settings in YAML."""
MOST_DEPTH = 100
"""Of lists and tables within each other."""
MOST_YAML_NODES = 20_000
"""Of a YAML file, with its aliases written out."""
MOST_DIGITS = 300
"""Of a number."""

_NO_TEXT = re.compile("[\0\ud800-\udfff]")


def is_file(path: Path) -> bool:
    """Whether a regular file stands there; a name that the system refuses names none."""
    return _kind(path) == stat.S_IFREG


def is_folder(path: Path) -> bool:
    """Whether a folder stands there; a name that the system refuses names none."""
    return _kind(path) == stat.S_IFDIR


def shortened(value: object) -> str:
    """A text, name or number of others as a part of a sentence: one line, shortened."""
    text = str(value)
    line = " ".join("".join(c if c.isprintable() else " " for c in text[:1000]).split())
    return line if len(text) <= 200 else f"{line[:100]}... ({len(text)} letters)"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A question behind a word that is not known, where one that is known is near; else nothing.

    >>> did_you_mean("prefil", ["direct", "prefill"])
    ' (did you mean prefill?)'
    """
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.7)
    return f" (did you mean {near[0]}?)" if near else ""


def one_line(value: object, *, most: int = 300) -> str:
    """What an error or a library says, on one line, of so many letters at most."""
    return " ".join(str(value).split())[:most]


@contextmanager
def refusing(
    kinds: type[Exception] | tuple[type[Exception], ...], what: str, remedy: str
) -> Iterator[None]:
    """Inside, an error of these kinds becomes the UserError "WHAT (what the error says); REMEDY".

    A UserError passes as it is.
    """
    try:
        yield
    except UserError:
        raise
    except kinds as error:
        reason = error.strerror if isinstance(error, OSError) else None
        raise UserError(f"{what} ({one_line(reason or error)}); {remedy}") from error


@contextmanager
def opened(path: Path) -> Iterator[BufferedReader]:
    """A file to read from; inside, an error of the system is the UserError that it cannot be."""
    remedy = "check its permissions"
    with refusing(OSError, f"{path} cannot be read", remedy), path.open("rb") as file:
        yield file


def read_bytes(path: Path, *, missing: str = "", most: int = MOST_BYTES) -> bytes:
    """The content of a regular file; UserError, with the sentence `missing` where none is there.

    A device or a pipe is refused, since reading it may never end.
    """
    kind = _kind(path)
    if kind is None:
        raise UserError(missing or f"there is no file {shortened(path)}; check the path")
    if kind == stat.S_IFDIR:
        raise UserError(f"{path} is a folder; name a file")
    if kind != stat.S_IFREG:
        raise UserError(f"{path} is no regular file; copy its content into one")
    with opened(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise UserError(f"{path} is larger than {most:,} bytes, the most that is read")
    return content


def read_text(path: Path, *, missing: str = "", most: int = MOST_BYTES) -> str:
    """The text of a UTF-8 file without its byte order mark, lines ended by \\n; else UserError."""
    content = read_bytes(path, missing=missing, most=most)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UserError(
            f"{path}, line {line} is not UTF-8 text ({error.reason}); convert the file first"
        ) from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def sha256(*paths: str | Path) -> str:
    """The SHA-256 of the bytes of one file, or of several one after the other; 64 hex digits.

    UserError for one that cannot be read.
    """
    digest = hashlib.sha256()
    for path in paths:
        with opened(Path(path)) as file:
            hashlib.file_digest(file, lambda: digest)
    return digest.hexdigest()


def plain_text(text: str, where: str) -> str:
    """The text itself; UserError where it holds half a character or a NUL, which no model reads."""
    found = _NO_TEXT.search(text)
    if found:
        code = ord(found[0])
        what = f"half of a character (U+{code:04X})" if code else "a NUL character"
        raise UserError(f"{where} holds {what}; take it out")
    return text


def plain_texts(value: Any, where: str) -> None:
    """UserError where a text within a value, at any depth, is no `plain_text`."""
    if isinstance(value, str):
        plain_text(value, where)
    else:
        for part in (*value, *_inside(value)) if isinstance(value, dict) else _inside(value):
            plain_texts(part, where)


def is_blank(text: str) -> bool:
    """Whether a text holds nothing that is seen: blanks, marks without a width."""
    return not any(char.isprintable() and not char.isspace() for char in text)


def parse_json(text: str | bytes, where: str) -> Any:
    """The value of a JSON text.

    Raises UserError for what is no JSON, for a name that stands twice in one object, for numbers
    that are not finite or too long, and for what nests deeper than `MOST_DEPTH`.
    """
    with (
        refusing(RecursionError, f"{where} nests too deeply to be read as JSON", "flatten it"),
        refusing(ValueError, f"{where} is not readable JSON", "correct it"),
    ):
        value = json.loads(
            text,
            object_pairs_hook=_object,
            parse_constant=_refuse_constant,
            parse_float=_finite,
            parse_int=_whole,
        )
    if _is_deeper(value, MOST_DEPTH):
        raise UserError(f"{where} nests deeper than {MOST_DEPTH} levels; flatten it")
    return value


@overload
def read_json(path: Path, *, missing: str = ...) -> dict[str, Any]: ...
@overload
def read_json(path: Path, kind: type[Kind], *, missing: str = ...) -> Kind: ...
def read_json(path: Path, kind: Any = dict[str, Any], *, missing: str = "") -> Any:
    """The content of a JSON file, as `kind`, by default an object; UserError for anything else."""
    return checked(parse_json(read_text(path, missing=missing), str(path)), kind, str(path))


def read_yaml(path: Path, kind: Any = dict[str, Any]) -> Any:
    """The content of a YAML file of settings as `kind`; a table, empty for an empty file.

    Raises UserError for what is no YAML or of another kind, for Python's tags, for a name that
    stands twice, for numbers that are not finite, and for files that are large, deep, or whose
    aliases multiply.
    """
    return parse_yaml(read_text(path, most=MOST_SETTINGS_BYTES), str(path), kind)


def parse_yaml(text: str, where: str, kind: Any = dict[str, Any]) -> Any:
    """The content of a YAML text, as in `read_yaml`."""
    unreadable = (yaml.YAMLError, ValueError, OverflowError)
    with refusing(unreadable, f"{where} is not readable YAML", "correct it"):
        _bound_events(text, where)
        loader = _StrictLoader(text)
        node = loader.get_single_node()
        if node is not None and _num_nodes(node, {}, where) > MOST_YAML_NODES:
            raise UserError(f"{where} has aliases that multiply; write the values out")
        content = None if node is None else loader.construct_document(node)
    plain_texts(content, where)
    return checked({} if content is None else content, kind, where)


def truth_value_hint(message: str) -> str:
    """What to do about a message on a value that YAML took for a truth value; else nothing."""
    if re.search(r"(Got|Given) value: (True|False)\b", message):
        return "; YAML reads yes, no, on and off as truth values: put quotes around a word"
    return ""


@overload
def checked(value: Any, kind: type[Kind], where: str) -> Kind: ...
@overload
def checked(value: Any, kind: Any, where: str) -> Any: ...
def checked(value: Any, kind: Any, where: str) -> Any:
    """A value of plain tables, lists, texts and numbers as `kind`; UserError where it is none.

    Types are strict: a truth value is no number, and a number is no text.
    """
    wrong = (msgspec.ValidationError, UnicodeEncodeError)  # the latter: half a character
    with refusing(wrong, f"{where} does not hold what it should", "correct it"):
        return msgspec.convert(value, kind)


def _kind(path: Path) -> int | None:
    """The type bits of what stands there, links followed; None where nothing can."""
    try:
        return stat.S_IFMT(os.stat(path).st_mode)
    except PermissionError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}); check its permissions"
        ) from error
    except (OSError, ValueError):  # not there, name too long, a loop of links, NUL in the name
        return None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the name {twice[:50]!r} stands twice in one object")
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no finite number")


def _finite(digits: str) -> float:
    number = float(digits)
    if number in (float("inf"), float("-inf")):
        raise ValueError(f"{digits[:20]} is no finite number")
    return number


def _whole(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise ValueError(f"a number has {len(digits)} digits")
    return int(digits)


def _is_deeper(value: Any, most: int) -> bool:
    level = [value]
    for _ in range(most):
        level = [inner for outer in level for inner in _inside(outer)]
        if not level:
            return False
    return True


def _inside(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        yield from value.values()
    elif isinstance(value, list):
        yield from value


class _StrictLoader(yaml.SafeLoader):
    """Refuses a name that stands twice in a table, and numbers that are not finite."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise yaml.YAMLError(f"the name {twice!r} stands twice in one table")
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: Any) -> int:
        if len(node.value) > MOST_DIGITS:
            raise yaml.YAMLError(f"a number has {len(node.value)} digits")
        if not re.fullmatch(r"[-+]?(0|[1-9][0-9]*|0x[0-9a-fA-F]+)", node.value):
            raise yaml.YAMLError(f"{node.value} is read in several ways; write a decimal number")
        return super().construct_yaml_int(node)

    def construct_yaml_float(self, node: Any) -> float:
        number = super().construct_yaml_float(node)
        if ":" in node.value:
            raise yaml.YAMLError(f"{node.value} is read in several ways; write a decimal number")
        if not abs(number) < float("inf"):
            raise yaml.YAMLError(f"{node.value} is no finite number")
        return number


# Days and bytes are no settings: 2026-11-29 is a name.
_StrictLoader.yaml_implicit_resolvers = {
    first: [pair for pair in pairs if pair[0] != "tag:yaml.org,2002:timestamp"]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_StrictLoader.yaml_constructors = {
    tag: construct
    for tag, construct in yaml.SafeLoader.yaml_constructors.items()
    if tag is None or tag.rpartition(":")[2] not in ("binary", "set", "omap", "pairs", "timestamp")
}
# YAML 1.2's floats: 1e-5 is a number, which PyYAML takes for a text.
_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+[eE][-+]?[0-9]+$"), list("-+0123456789")
)
_StrictLoader.add_constructor("tag:yaml.org,2002:int", _StrictLoader.construct_yaml_int)
_StrictLoader.add_constructor("tag:yaml.org,2002:float", _StrictLoader.construct_yaml_float)


def _bound_events(text: str, where: str) -> None:
    """UserError where the text nests too deeply or has too many values, while it is scanned."""
    depth = 0
    for number, event in enumerate(yaml.parse(text, Loader=yaml.SafeLoader)):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MOST_DEPTH:
            raise UserError(f"{where} nests deeper than {MOST_DEPTH} levels; flatten it")
        if number > MOST_YAML_NODES:
            raise UserError(f"{where} has more than {MOST_YAML_NODES:,} values; shorten it")


def _num_nodes(node: Any, known: dict[int, int], where: str) -> int:
    """How many nodes there are where every alias is written out."""
    if id(node) in known:
        if known[id(node)] == 0:
            raise UserError(f"{where} holds a value within itself; write it out")
        return known[id(node)]
    known[id(node)] = 0
    inner = node.value if isinstance(node, yaml.CollectionNode) else []
    flat = [part for item in inner for part in (item if isinstance(item, tuple) else (item,))]
    known[id(node)] = 1 + sum(_num_nodes(part, known, where) for part in flat)
    return known[id(node)]
