"""Runs templates, tokenizers and patterns of others for bounded.py, in a process of its own.

Each line of the input is a request as JSON, each line of the output its outcome. A request that
takes too long ends the process. This file imports nothing of mosa, so that it starts at once.
"""

from __future__ import annotations

import contextlib
import functools
import json
import re
import resource
import string
import sys
from datetime import datetime
from typing import Any

MOST_MEMORY = 2 << 30
"""Bytes of addresses."""
MOST_SECONDS = {"render": 2, "match": 2, "tokenize": 8}
"""Of the processor, for one request."""
MOST_SAID = 200
"""Letters of an error."""

TEXTS = (
    "x",
    "how do I make a cup of tea ?",
    string.printable,
    *(f"{letter * 5000}!" for letter in string.ascii_lowercase + "AZ01 .,-_'\"\n"),
)
"""What a tokenizer is tried with. Long runs make regular expressions backtrack."""
MOST_TOKENS_A_LETTER = 8


class _Refused(Exception):
    """A template refuses a dialogue."""


# --- templates ------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=32)
def compiled(template: str) -> Any:
    """A template with all that the transformers library gives to templates."""
    from jinja2 import nodes
    from jinja2.exceptions import SecurityError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from jinja2.utils import Namespace

    class Generation(Extension):
        """`{% generation %}`, which marks what a model is trained on and renders as it is."""

        tags = {"generation"}

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body).set_lineno(line)

    class PlainDict:
        """`dict`, without the attributes of the type."""

        def __call__(self, *args: Any, **named: Any) -> dict[Any, Any]:
            return dict(*args, **named)

        def fromkeys(self, *args: Any) -> dict[Any, Any]:
            return dict.fromkeys(*args)

    class PlainNamespace(Namespace):
        def __setitem__(self, name: str, value: Any) -> None:
            if name.startswith("_"):
                raise SecurityError(f"a template cannot store {name}")
            super().__setitem__(name, value)

    def raise_exception(message: Any) -> Any:
        raise _Refused(message)

    def tojson(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(
            value,
            ensure_ascii=ensure_ascii,
            indent=indent,
            separators=separators,
            sort_keys=sort_keys,
        )

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    environment.globals["dict"] = PlainDict()
    environment.globals["namespace"] = PlainNamespace
    return environment.from_string(template)


def render(template: str, context: dict[str, Any], most: int) -> dict[str, Any]:
    """The text that a template makes of a dialogue; no more than `most` letters."""
    pieces: list[str] = []
    length = 0
    try:
        for piece in compiled(template).generate(**context):
            length += len(piece)
            if length > most:
                return {"error": f"it writes more than {most:,} letters"}
            pieces.append(piece)
    except _Refused as error:
        return {"refused": on_one_line(str(error))}
    return {"value": "".join(pieces)}


# --- tokenizers and patterns ----------------------------------------------------------------------


def tokenize(file: str) -> dict[str, Any]:
    """Reads a tokenizer and tries it on some texts."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(file)
    for text in TEXTS:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        if len(ids) > MOST_TOKENS_A_LETTER * len(text) + MOST_TOKENS_A_LETTER:
            return {"error": f"it makes {len(ids)} tokens of {len(text)} letters"}
        tokenizer.decode(ids)
    return {"value": None}


def match(pattern: str, names: list[str]) -> dict[str, Any]:
    """Which of some names a pattern matches, wholly or at their end, as PEFT does it."""
    whole, end = re.compile(pattern), re.compile(rf"(.*\.)?({pattern})$")
    return {"value": [name for name in names if whole.fullmatch(name) or end.match(name)]}


TASKS = {"render": render, "tokenize": tokenize, "match": match}


def on_one_line(text: str) -> str:
    """A text on one line, shortened."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= MOST_SAID else f"{line[:MOST_SAID]}..."


def limit(kind: int, most: int) -> None:
    """Sets a limit of this process, no higher than it may."""
    _, hardest = resource.getrlimit(kind)
    soft = most if hardest == resource.RLIM_INFINITY else min(most, hardest)
    resource.setrlimit(kind, (soft, hardest))


def main() -> None:
    """Answers requests until there are no more."""
    # Where a system does not know this limit (macOS), its own memory is the bound.
    with contextlib.suppress(ValueError, OSError):
        limit(resource.RLIMIT_AS, MOST_MEMORY)
    limit(resource.RLIMIT_CORE, 0)
    for line in sys.stdin:
        request = json.loads(line)
        used = resource.getrusage(resource.RUSAGE_SELF)
        task = request.pop("task")
        limit(resource.RLIMIT_CPU, int(used.ru_utime + used.ru_stime) + 1 + MOST_SECONDS[task])
        try:
            outcome = TASKS[task](**request)
        except BaseException as error:  # one of the libraries panics with a BaseException
            outcome = {"error": f"{type(error).__name__}: {on_one_line(str(error))}"}
        sys.stdout.write(json.dumps(outcome) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
