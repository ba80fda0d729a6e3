"""What the commands share: their type, their common options, and how settings become options."""

from __future__ import annotations

import argparse
import dataclasses
import typing
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import docstring_parser
from jsonargparse import ArgumentParser, DefaultHelpFormatter, Namespace

from mosa.inputs import checked, read_yaml
from mosa.types import UserError, fields_in

if TYPE_CHECKING:
    from mosa.alignment.config import AlignConfig

Config = TypeVar("Config")

FILES = "a .txt, .csv, .json or .jsonl file"
MODEL_HELP = "folder, Hugging Face id, or `testbed`; that is a tiny model that comes with mosa"
SERVED_HELP = (
    "URL#MODEL a chat model served elsewhere (URL#MODEL@VARIABLE: with the key in that variable)"
)
AUTHORIZED_HELP = (
    "say that you may attack models served elsewhere; they are yours, or their owners have allowed "
    "it, and without it none is asked"
)
DTYPE_HELP = "type of the weights; auto (the checkpoint's), float32, bfloat16 or float16"
DATA_DIR_HELP = "folder of published benchmark files; unset: MOSA_DATA, else ./data"


@dataclass(frozen=True)
class Command:
    """One command: its line in the overview, its options, and what it does."""

    summary: str
    add_arguments: Callable[[ArgumentParser], None]
    run: Callable[[Namespace], int | None]
    """Its exit status; None is success."""
    kept: str
    """What an interruption leaves, as a sentence."""
    example: str
    """How it is typed, with the options that most people need."""
    runs_on_several_processes: bool = False
    """Whether the processes of a launcher share its work."""


class HelpFormatter(DefaultHelpFormatter):
    """Help for readers: what an option takes and does, and its default, without Python's types."""

    def _get_help_string(self, action: argparse.Action) -> str:
        about = action.help or ""
        about = f"{about[:1].upper()}{about[1:]}"
        if action.required and action.option_strings:
            return f"{about} (required)"
        default = " ".join(action.default) if isinstance(action.default, list) else action.default
        if default in (None, False, "", (), {}, argparse.SUPPRESS):
            return about
        return f"{about} (default: {default})"

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        if isinstance(action.type, ListOf):
            return "A,B,..."
        if isinstance(action.type, FileOf):
            return "PATH"
        kind = (self._get_type_str(action) or "").removesuffix(" | null")
        known = {"int": "N", "float": "X", "str": "TEXT", "Path": "PATH", "<class 'Path'>": "PATH"}
        return known.get(kind, "VALUE")


def run_argument(parser: ArgumentParser) -> None:
    """The folder of a run."""
    parser.add_argument("run", type=Path, help="folder of a run")


def placement_arguments(parser: ArgumentParser, *, group: str = "options") -> None:
    """Where a model runs, and in which number format."""
    add = group_of(parser, group).add_argument
    add("--device", type=str, help="device, for example cpu or cuda; unset: a GPU if any")
    add("--dtype", type=str, default="auto", help=DTYPE_HELP)


def config_argument(parser: ArgumentParser, *, group: str = "options") -> None:
    """A file of options."""
    group_of(parser, group).add_argument(
        "--config", action="config", metavar="PATH", help="YAML file of options"
    )


def add_fields(
    parser: ArgumentParser, config_class: type, *, leave_out: Collection[str] = (), group: str = ""
) -> None:
    """An option for every field of a dataclass, absent from the result unless it is given; the help
    lists them under the title `group`, where one is given."""
    types = typing.get_type_hints(config_class)
    bases = reversed(config_class.__mro__)
    described = _field_texts(*(base for base in bases if dataclasses.is_dataclass(base)))
    add = group_of(parser, group).add_argument if group else parser.add_argument
    for field in dataclasses.fields(config_class):
        if field.name in leave_out:
            continue
        text = described.get(field.name, "")
        if types[field.name] is bool and field.default is False:
            text = text.rstrip(".")
            add(f"--{field.name}", action="store_true", default=argparse.SUPPRESS, help=text)
        else:
            _add_option(add, field, types[field.name], text)


def group_of(parser: ArgumentParser, title: str) -> Any:
    """The group of options with a title, made where it is missing."""
    known = [group for group in parser._action_groups if group.title == title]
    return known[0] if known else parser.add_argument_group(title)


def _add_option(
    add: Callable[..., Any], field: dataclasses.Field[Any], type: Any, text: str
) -> None:
    """An option of a field's name; without a text it is left out of the help."""
    default = field.default
    if default is dataclasses.MISSING and field.default_factory is not dataclasses.MISSING:
        default = field.default_factory()
    if isinstance(default, tuple):
        default = ",".join(map(str, default))
    shown = text.rstrip(".") + ("" if default in (None, "") else f" (default: {default})")
    absent = argparse.SUPPRESS
    add(f"--{field.name}", type=_option_type(type), default=absent, help=shown if text else absent)


def _option_type(hint: Any) -> Any:
    """Lists of numbers and words are written with commas; `null` and `~` are words like others,
    where words or paths are taken; all else is as jsonargparse has it."""
    if {*typing.get_args(hint)} in ({str, NoneType}, {Path, NoneType}):
        return next(part for part in typing.get_args(hint) if part is not NoneType)
    for part in (hint, *typing.get_args(hint)):
        if typing.get_origin(part) is tuple:
            kind = typing.get_args(part)[0]
            if kind in (int, float, str) or typing.get_origin(kind) is Literal:
                return ListOf(kind)
    return hint


class NoValueError(argparse.ArgumentTypeError, TypeError):
    """What was given is no such value: an error of an option to argparse, and of a value in a file
    of options to jsonargparse."""


@dataclass(frozen=True)
class ListOf:
    """The type of an option that takes a list: with commas, as in 0,1,2, or as a list in YAML."""

    kind: Any
    """Of its entries: int, float, str, or a `Literal` of words."""
    num_least: int = 0
    """How many entries it has at least."""

    def __call__(self, given: Any) -> tuple[Any, ...]:
        words = given if isinstance(given, list | tuple) else str(given).strip("[]").split(",")
        entries = [word.strip() if isinstance(word, str) else word for word in words]
        choices = typing.get_args(self.kind)
        try:
            found = tuple(word if choices else self._entry(word) for word in entries if word != "")
        except (ValueError, TypeError):
            found = None
        is_known = found is not None and (not choices or set(found) <= set(choices))
        if found is None or not is_known or len(found) < self.num_least:
            names = {int: "integers, for example 0,1,2", float: "numbers, for example 0,0.5"}
            words = f"words of {', '.join(choices)}" if choices else names.get(self.kind, "names")
            raise NoValueError(f"takes comma-separated {words}; {given!r} is something else")
        return found

    def _entry(self, word: Any) -> Any:
        """An entry of the list; from a file of options, a number is what it is, or none."""
        if isinstance(word, str):
            return self.kind(word)
        if isinstance(word, bool) or (self.kind is int and not isinstance(word, int)):
            raise TypeError(f"{word!r} is no entry")
        return self.kind(word)


def split_list(action: argparse.Action, word: str) -> list[str]:
    """The entries of a list that stand in one word, with commas between them; labels may have
    commas of their own."""
    if action.dest == "label":
        return [word]
    return [entry.strip() for entry in word.strip("[]").split(",") if entry.strip()] or [word]


@dataclass(frozen=True)
class FileOf:
    """The type of an option that names a YAML file; a file of options may hold its content."""

    kind: Any
    """Of the file's content."""

    def __call__(self, given: Any) -> Any:
        try:
            if isinstance(given, str):
                return read_yaml(Path(given), self.kind)
            return checked(given, self.kind, "the content that stands in place of a file")
        except UserError as error:
            raise NoValueError(str(error)) from error


def _field_texts(*config_classes: type) -> dict[str, str]:
    """What the docstrings of some classes say of their fields; later classes win."""
    return {
        param.arg_name.split(":")[0]: param.description or ""
        for config_class in config_classes
        for param in docstring_parser.parse_from_object(config_class).params
    }


def given_fields(config_class: type, args: Namespace) -> dict[str, Any]:
    """The options that are fields of a dataclass and were given."""
    return fields_in(config_class, args.as_dict())


def add_align_fields(parser: ArgumentParser, config_class: type[AlignConfig]) -> None:
    """An option for every field of a method's settings, absent unless it is given.

    The help shows our own fields, and of the trainer's those that we document.
    """
    from mosa.alignment.config import AlignConfig, settings_of

    types = typing.get_type_hints(config_class)
    own = config_class.__mro__[: config_class.__mro__.index(AlignConfig) + 1]
    described = _field_texts(*reversed(own))
    for field, documented in settings_of(config_class):
        text = described.get(field.name) or field.metadata.get("help") or ""
        group = group_of(parser, "objective" if field.name in described else "training")
        _add_option(group.add_argument, field, types[field.name], text if documented else "")


def config_from(config_class: type[Config], args: Namespace) -> Config:
    """The dataclass built from the options that are its fields, defaults for those not given."""
    return config_class(**given_fields(config_class, args))


def escaped(text: str) -> str:
    """Text whose marks Markdown prints as they are."""
    return text.replace("*", "\\*")


def in_words(bound: Mapping[str, int]) -> str:
    """A bound as people write it.

    >>> in_words({"target": 340, "attacker": 1700, "forward_passes": 2})
    '340 responses, 1,700 attacker replies, 2 forward passes'
    """
    names = {"target": "response", "proxy_passes": "forward passes of a proxy"}
    words = []
    for name, number in bound.items():
        noun = names.get(name, f"{name} replies" if "_" not in name else name.replace("_", " "))
        plural = "s" if name == "target" and number != 1 else ""
        words.append(f"{number:,} {noun}{plural}")
    return ", ".join(words)
