"""The command line: parse, call, print.

    mosa generate --model testbed --prompt "how do i make a copper lantern ?" --show-steps

Each command is one entry of `COMMANDS`. Its module is imported, and torch with it, only when that
command is called; `--help` shows what `python -m mosa.cli.help_texts` has written down, so that it
is quick. Options of a command are the fields of the dataclass that the library takes
(`DecoderConfig`, `MosaConfig`), with their docstrings as help; they are shown with dashes, and
taken with underscores too. `--config FILE` reads the same names from YAML, with underscores, and a
name that no field has is refused.
"""

from __future__ import annotations

import errno
import importlib
import importlib.metadata
import json
import math
import os
import re
import sys
import typing
from argparse import Action, ArgumentError, _AppendAction
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import NoneType
from typing import Any

from jsonargparse import (
    ActionConfigFile,  # pyright: ignore[reportPrivateImportUsage]
    ArgumentParser,
    Namespace,
    set_parsing_settings,
)

from mosa.alignment.method import METHODS
from mosa.catalogue import read_catalogue
from mosa.cli.help import commands_page, dashed, page_of, read_help
from mosa.cli.options import Command, FileOf, HelpFormatter, ListOf, split_list
from mosa.inputs import checked, did_you_mean, parse_yaml, read_yaml, truth_value_hint
from mosa.runs.processes import (
    ALONE,
    EXIT_USER_ERROR,
    Processes,
    launched,
    use_cpu_without_gpu,
)
from mosa.terminal import encodable_streams, sentence, short_warnings, show
from mosa.types import UserError

EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141

COMMANDS: dict[str, str] = {
    "generate": "models",
    **{f"align {method}": "models" for method in METHODS},
    "merge": "models",
    "demo": "models",
    "testbed tables": "models",
    "testbed build": "models",
    "evaluate": "evaluate",
    "judge": "judge",
    "judge check": "judge",
    **{f"analyze {probe['name']}": "analyze" for probe in read_catalogue()["probes"]},
    "status": "results",
    "results": "results",
    "report": "report",
    "compare": "compare",
    "attacks": "catalogue",
    "judges": "catalogue",
    "sets": "catalogue",
    "data get": "catalogue",
    "data overlap": "catalogue",
    "attacks check": "attacks_check",
    **{f"bench {name}": "bench" for name in ("sampler", "align", "drift", "campaign", "report")},
    "completion": "completion",
}
"""Every command, and the module of this folder whose `COMMANDS` have it."""


def command_named(name: str) -> Command:
    """A command; its module is imported by then, and torch with most."""
    return importlib.import_module(f"mosa.cli.{COMMANDS[name]}").COMMANDS[name]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status.

    0 success, 1 a condition of `mosa compare` that holds, 2 a mistake of the user (one sentence on
    stderr), 3 where an attack, a subject or a judge that was asked for has produced nothing, 130 an
    interruption. A bug of ours keeps its traceback.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    encodable_streams()
    short_warnings()
    os.environ.pop("MPLBACKEND", None)  # a notebook's, which this program may not have
    kept = ""
    processes = ALONE
    try:
        processes = launched()
        if not processes.is_main:  # the main one speaks for all
            _be_silent()
        if words[:1] == ["help"]:  # `mosa help judge check`
            words = [*words[1:], "--help"]
        if not words or words[0] in ("-h", "--help", "--help-all"):
            show(commands_page())
            return 0
        if words[0] == "--version":
            show(f"mosa {importlib.metadata.version('mosa-dllm')}")
            return 0
        name, options = _split(words)
        if name is None:
            show(commands_page(f"{words[0]} "))
            return 0
        if {"-h", "--help", "--help-all", "--help_all"} & {*options}:
            show(page_of(name, whole="-h" not in options and "--help" not in options))
            return 0
        called = command_named(name)
        kept = called.kept
        if processes.count > 1:
            if not called.runs_on_several_processes:
                return _refuse_several(name, processes)
            use_cpu_without_gpu()
        with _memory_errors(name, kept):
            command, args = parse(words)
            return command.run(args) or 0
    except UserError as error:
        whose = "" if processes.is_main else f"process {processes.index}: "
        print(f"mosa: {whose}{dashed(sentence(str(error)))}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt as interruption:
        if processes.is_main:
            print(f"\nmosa: {str(interruption) or f'interrupted. {kept}'}", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of our output (`mosa ... | head`) has closed it; write nothing more.
        _be_silent()
        return EXIT_BROKEN_PIPE
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        _be_silent()
        print(f"mosa: the output cannot be written ({error.strerror})", file=sys.stderr)
        return EXIT_USER_ERROR


@contextmanager
def _memory_errors(name: str, kept: str) -> Iterator[None]:
    """Turns memory that does not suffice into a UserError with the remedy."""
    try:
        yield
    except (MemoryError, RuntimeError, OSError, ImportError) as error:
        is_memory = isinstance(error, MemoryError) or (
            isinstance(error, OSError) and error.errno == errno.ENOMEM
        )
        if not is_memory and not re.search(OUT_OF_MEMORY, str(error), re.IGNORECASE):
            raise
        groups = read_help()[name]["groups"].values()
        known = {option.split()[0] for options in groups for option in options}
        options = [option for option in LESS_MEMORY if option in known]
        remedy = f"set a smaller {options[0]}" if options else "use a machine with more"
        raise UserError(f"the memory does not suffice; {remedy}. {kept}") from error


OUT_OF_MEMORY = (
    "out of memory|can't allocate memory|cannot allocate memory|alloc_cpu|std::bad_alloc|"
    "unable to mmap|failed to allocate|failed to map segment|can't start new thread"
)
"""What torch and the system say; torch's errors for it are RuntimeErrors on most devices."""
LESS_MEMORY = ("--per-device-train-batch-size", "--batch-size", "--workers")
"""Options that need less memory when they are smaller."""


def _be_silent() -> None:
    """Nothing that is printed from here on goes anywhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _refuse_several(name: str, processes: Processes) -> int:
    """UserError on the main process; the others end before it, silently and with status 0, since a
    launcher ends all when one fails."""
    if not processes.is_main:
        return 0
    several = ", ".join(n for n in COMMANDS if command_named(n).runs_on_several_processes)
    raise UserError(
        f"`mosa {name}` runs in one process and a launcher has started {processes.count}; start it "
        f"without accelerate or torchrun (those that share work are {several})"
    )


def parse(words: list[str]) -> tuple[Command, Namespace]:
    """The command that `words` name, and its options; raises UserError where they do not fit."""
    name, options = _split(words)
    assert name is not None, "a group of commands has no options"
    parser = parser_of(name)
    try:
        args = parser.parse_args(_plain(parser, [_with_underscores(word) for word in options]))
    except ArgumentError as error:
        known = [word for action in parser._actions for word in action.option_strings]
        wrong = [w for w in map(_with_underscores, options) if f" {w}" in f" {error}"]
        unknown = [w.partition("=")[0] for w in wrong if w.startswith("--")]
        hint = "".join(did_you_mean(word, known) for word in unknown if word not in known)
        raise UserError(f"{_one_line(error)}{hint} (see mosa {name} --help)") from error
    for option, value in args.as_dict().items():
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"--{option} is {value}, and must be a finite number")
        if isinstance(value, Path) and str(value).startswith("~/"):  # --out=~/x, as it is typed
            args[option] = value.expanduser()
    return command_named(name), args


def _plain(parser: ArgumentParser, words: list[str]) -> list[str]:
    """Options as the parser reads them: a list stands once, however often its option is named,
    `none` is no number, and a file of options is its content.

    Raises UserError for an option other than a list that is given twice, since the first would be
    lost, and for an empty path.
    """
    actions = {word: action for action in parser._actions for word in action.option_strings}
    plain: list[str] = []
    lists: dict[str, list[str]] = {}
    given: set[str] = set()
    option = ""  # the one whose value may stand here
    for word in words:
        name, equals, value = word.partition("=")
        is_option = name in actions
        option = name if is_option else option
        action = actions.get(option)
        if action is not None and _takes_a_list(action):
            if option not in lists:
                plain.append(option)
                lists[option] = []
            if equals or not is_option:
                lists[option] += split_list(action, value if is_option else word)
                option = option if action.nargs == "+" and not is_option else ""
        elif is_option:
            if name in given and not isinstance(action, _AppendAction):
                raise UserError(f"{name} is given twice; give it once")
            given.add(name)
            plain.append(f"{name}={_plain_value(value, action, actions)}" if equals else name)
            option = "" if equals else option
        else:
            plain.append(_plain_value(word, action, actions))
    for name, values in lists.items():
        at = plain.index(name)
        is_one_word = actions[name].nargs != "+" and values
        plain[at : at + 1] = [f"{name}={','.join(values)}"] if is_one_word else [name, *values]
    return plain


def _plain_value(value: str, action: Action | None, actions: Mapping[str, Action]) -> str:
    """The value of an option, or of a place where there is none, as the parser reads it."""
    if not value and (action is None or Path in _types_of(action)):  # it would be this folder
        place = "a path" if action is None else action.option_strings[0]
        raise UserError(f"{place} is empty; name a file or a folder")
    if action is None:
        return value
    if value == "none" and _may_be_no_number(action):
        return "null"
    if value != "null" and str(getattr(action, "_typehint", "")).startswith("dict["):
        return json.dumps(parse_yaml(value, action.option_strings[0]))
    if isinstance(action, ActionConfigFile):
        return json.dumps(_options_of(Path(value), actions))
    return value


def _takes_a_list(action: Action) -> bool:
    return action.nargs == "+" or any(isinstance(kind, ListOf) for kind in _types_of(action))


def _types_of(action: Action) -> set[Any]:
    hint = getattr(action, "_typehint", None)
    return {hint, action.type, *typing.get_args(hint)}


def _may_be_no_number(action: Action) -> bool:
    kinds = _types_of(action)
    return NoneType in kinds and str not in kinds


def _options_of(path: Path, actions: Mapping[str, Action]) -> dict[str, Any]:
    """What a YAML file of options says. Lists may have one entry without its brackets, and files
    that it names are found from its own folder."""
    options = read_yaml(path)
    if "config" in options:
        raise UserError(f"{path} names another file of options; give one file, with all of them")
    for name, value in options.items():
        action = actions.get(f"--{name}")
        if action is not None and action.nargs == "+":
            options[name] = checked([value] if isinstance(value, str) else value, list[str], name)
        elif value == "none" and action is not None and _may_be_no_number(action):
            options[name] = None
        elif isinstance(getattr(action, "type", None), FileOf) and isinstance(value, str):
            options[name] = str(path.parent / value)
    return options


def _split(words: list[str]) -> tuple[str | None, list[str]]:
    """The command's name (one word or two) and the options after it; no name if `words` ask for
    help on a group of commands."""
    for length in (2, 1):  # `judge check` before `judge`
        name = " ".join(words[:length])
        if name in COMMANDS:
            return name, words[length:]
    group = [name for name in COMMANDS if name.startswith(f"{words[0]} ")]
    if group and (len(words) == 1 or words[1] in ("-h", "--help")):
        return None, []
    typed = " ".join(words[:2] if group else words[:1])
    hint = did_you_mean(" ".join(words[:2]), COMMANDS) or did_you_mean(words[0], COMMANDS)
    remedy = f"choose one of: {', '.join(group)}" if group else "`mosa --help` lists them"
    raise UserError(f"there is no command `{typed}`{hint}; {remedy}")


def parser_of(name: str) -> ArgumentParser:
    """The parser of a command's options."""
    command = command_named(name)
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(
        prog=f"mosa {name}",
        usage=f"mosa {name} [options]",
        description=f"{command.summary[0].upper()}{command.summary[1:]}.",
        formatter_class=HelpFormatter,
        print_config=None,
        exit_on_error=False,
        allow_abbrev=False,
    )
    command.add_arguments(parser)
    return parser


def _with_underscores(option: str) -> str:
    """`--show-steps` is `--show_steps`: both spellings work, as fields are spelled with `_`."""
    match = re.match(r"--[a-z][a-z0-9_-]*(?==|$)", option)
    if match is None:
        return option
    return "--" + match[0][2:].replace("-", "_") + option[match.end() :]


def _one_line(error: ArgumentError) -> str:
    text = " ".join(str(error).split()).rstrip(".").removeprefix("argument ")
    text = text.replace(": takes ", " takes ", 1)
    text += truth_value_hint(text)
    return re.sub(r"<class '([^']*)'>", r"\1", text).replace("Parser key", "option")
