"""What the commands share: their type, their common options, and how settings become options."""

from __future__ import annotations

import argparse
import dataclasses
import typing
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import docstring_parser
from jsonargparse import ArgumentParser, Namespace

if TYPE_CHECKING:
    from mosa.align.config import AlignConfig

Config = TypeVar("Config")

FILES = "a .txt, .csv, .json or .jsonl file"
MODEL_HELP = "folder, hub id, or `testbed` (a tiny model that comes with mosa)"
DTYPE_HELP = "weights in this type: auto (the checkpoint's), float32, bfloat16 or float16"


@dataclass(frozen=True)
class Command:
    """One command: its line in the overview, its options, and what it does."""

    summary: str
    add_arguments: Callable[[ArgumentParser], None]
    run: Callable[[Namespace], int | None]
    """Its exit status; None is success."""
    kept: str
    """What an interruption leaves behind, as a sentence."""
    runs_on_several_processes: bool = False
    """Whether the processes of a launcher share its work."""


def placement_arguments(parser: ArgumentParser) -> None:
    """Where a model runs, and in which number format."""
    parser.add_argument("--dtype", type=str, default="auto", help=DTYPE_HELP)
    parser.add_argument("--device", type=str | None, help="cpu, cuda, ...; unset: a GPU if any")


def config_argument(parser: ArgumentParser) -> None:
    """A file of options."""
    parser.add_argument("--config", action="config", help="YAML file with options by name")


def add_fields(
    parser: ArgumentParser, config_class: type, *, leave_out: tuple[str, ...] = ()
) -> None:
    """An option for every field of a dataclass, absent from the result unless it is given."""
    types = typing.get_type_hints(config_class)
    described = {
        param.arg_name.split(":")[0]: param.description or ""
        for param in docstring_parser.parse_from_object(config_class).params
    }
    for field in dataclasses.fields(config_class):  # pyright: ignore
        if field.name in leave_out:
            continue
        text = described.get(field.name, "").replace("%", "%%")
        if types[field.name] is bool:
            parser.add_argument(
                f"--{field.name}", action="store_true", default=argparse.SUPPRESS, help=text
            )
            continue
        parser.add_argument(
            f"--{field.name}",
            type=types[field.name],
            default=argparse.SUPPRESS,
            help=f"{text} (default: {'unset' if field.default is None else field.default})",
        )


def add_align_fields(parser: ArgumentParser, config_class: type[AlignConfig]) -> list[str]:
    """An option for every field of a method's settings, absent unless it is given; their names.

    The help shows our own fields, and of the trainer's those that we document.
    """
    from mosa.align.config import AlignConfig, settings_of

    types = typing.get_type_hints(config_class)
    described = {
        param.arg_name.split(":")[0]: param.description
        for base in reversed(config_class.__mro__[: config_class.__mro__.index(AlignConfig) + 1])
        for param in docstring_parser.parse_from_object(base).params
    }
    names = []
    for field, documented in settings_of(config_class):
        text = described.get(field.name) or field.metadata.get("help") or ""
        summary = text.replace("%", "%%").replace("%%%%", "%%")
        default = "none" if field.default is None else field.default
        parser.add_argument(
            f"--{field.name}",
            type=types[field.name],
            default=argparse.SUPPRESS,
            help=f"{summary} (default: {default})" if documented else argparse.SUPPRESS,
        )
        names.append(field.name)
    return names


def config_from(config_class: type[Config], args: Namespace) -> Config:
    """The dataclass built from the options that are its fields."""
    names = [field.name for field in dataclasses.fields(config_class)]  # pyright: ignore
    return config_class(**{name: args[name] for name in names})


def show(*lines: str | Iterable[str]) -> None:
    """Print, at once."""
    print(*lines, flush=True)
