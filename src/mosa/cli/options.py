"""What the commands share: their type, their common options, and how settings become options."""

from __future__ import annotations

import argparse
import dataclasses
import typing
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import docstring_parser
from jsonargparse import ArgumentParser, Namespace

from mosa.types import UserError

if TYPE_CHECKING:
    from mosa.align.config import AlignConfig

Config = TypeVar("Config")

FILES = "a .txt, .csv, .json or .jsonl file"
MODEL_HELP = "folder, hub id, or `testbed` (a tiny model that comes with mosa)"
DTYPE_HELP = "weights in this type: auto (the checkpoint's), float32, bfloat16 or float16"
DATA_DIR_HELP = "folder with known benchmark files (unset: MOSA_DATA, else ./data)"


@dataclass(frozen=True)
class Command:
    """One command: its line in the overview, its options, and what it does."""

    summary: str
    add_arguments: Callable[[ArgumentParser], None]
    run: Callable[[Namespace], int | None]
    """Its exit status; None is success."""
    kept: str
    """What an interruption leaves, as a sentence."""
    runs_on_several_processes: bool = False
    """Whether the processes of a launcher share its work."""


def run_argument(parser: ArgumentParser) -> None:
    """The folder of a run."""
    parser.add_argument("run", type=Path, help="folder of a run")


def no_arguments(parser: ArgumentParser) -> None:
    """For commands without options."""
    del parser


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
    described = _field_texts(config_class)
    for field in dataclasses.fields(config_class):
        if field.name in leave_out:
            continue
        text = described.get(field.name, "")
        if types[field.name] is bool and field.default is False:
            name, absent = f"--{field.name}", argparse.SUPPRESS
            help = text.replace("%", "%%")
            parser.add_argument(name, action="store_true", default=absent, help=help)
        else:
            _add_option(parser, field, types[field.name], text)


def _add_option(
    parser: ArgumentParser, field: dataclasses.Field[Any], type: Any, text: str
) -> None:
    """An option of a field's name; without a text it is left out of the help."""
    text = text.replace("%", "%%").replace("%%%%", "%%")
    absent = argparse.SUPPRESS
    default = field.default
    if default is dataclasses.MISSING and field.default_factory is not dataclasses.MISSING:
        default = field.default_factory()
    shown = f"{text} (default: {'unset' if default is None else default})"
    help = shown if text else argparse.SUPPRESS
    parser.add_argument(f"--{field.name}", type=type, default=absent, help=help)


def _field_texts(*config_classes: type) -> dict[str, str]:
    """What the docstrings of some classes say of their fields; later classes win."""
    return {
        param.arg_name.split(":")[0]: param.description or ""
        for config_class in config_classes
        for param in docstring_parser.parse_from_object(config_class).params
    }


def given_fields(
    config_class: type, args: Namespace, *, leave_out: tuple[str, ...] = ()
) -> dict[str, Any]:
    """The options that are fields of a dataclass and were given."""
    names = {field.name for field in dataclasses.fields(config_class)} - set(leave_out)
    return {name: value for name, value in args.as_dict().items() if name in names}


def add_align_fields(parser: ArgumentParser, config_class: type[AlignConfig]) -> list[str]:
    """An option for every field of a method's settings, absent unless it is given; their names.

    The help shows our own fields, and of the trainer's those that we document.
    """
    from mosa.align.config import AlignConfig, settings_of

    types = typing.get_type_hints(config_class)
    own = config_class.__mro__[: config_class.__mro__.index(AlignConfig) + 1]
    described = _field_texts(*reversed(own))
    names = []
    for field, documented in settings_of(config_class):
        text = described.get(field.name) or field.metadata.get("help") or ""
        _add_option(parser, field, types[field.name], text if documented else "")
        names.append(field.name)
    return names


def config_from(config_class: type[Config], args: Namespace) -> Config:
    """The dataclass built from the options that are its fields, defaults for those not given."""
    return config_class(**given_fields(config_class, args))


def entries(text: str | None) -> tuple[str, ...]:
    """The entries of a list with commas."""
    return tuple(entry.strip() for entry in (text or "").split(",") if entry.strip())


def integers(option: str, text: str) -> tuple[int, ...]:
    """The integers of a list with commas; UserError where it holds anything else."""
    try:
        return tuple(int(word) for word in entries(text))
    except ValueError:
        raise UserError(
            f"{option} takes comma-separated integers, for example 0,1,2; {text} is something else"
        ) from None


def numbers(option: str, text: str) -> tuple[float, ...]:
    """The numbers of a list with commas; UserError where it holds anything else."""
    try:
        return tuple(float(word) for word in entries(text))
    except ValueError:
        raise UserError(
            f"{option} takes comma-separated numbers, for example 0,1; {text} is something else"
        ) from None


def show(*lines: str | Iterable[str]) -> None:
    """Print, at once."""
    print(*lines, flush=True)
