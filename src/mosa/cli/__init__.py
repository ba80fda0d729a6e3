"""The command line: parse, call, print.

    mosa generate --model testbed --prompt "how do i make a copper lantern ?" --show-steps

Each command is one entry of `COMMANDS`. Its parser is built, and torch imported, only when that
command is the one called, so that `mosa --help` is quick. Options of a command are the fields of
the dataclass that the library takes (`DecoderConfig`, `MosaConfig`), with their docstrings as help;
`--config FILE` reads the same names from YAML, and a name that no field has is refused.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import sys
from argparse import ArgumentError
from collections.abc import Sequence

from jsonargparse import ArgumentParser, Namespace, set_parsing_settings

from mosa.cli.analyze import ANALYZE_COMMANDS
from mosa.cli.attacks_check import ATTACKS_CHECK_COMMANDS
from mosa.cli.bench import BENCH_COMMANDS
from mosa.cli.catalogue import CATALOGUE_COMMANDS
from mosa.cli.compare import COMPARE_COMMANDS
from mosa.cli.evaluate import EVALUATE_COMMANDS
from mosa.cli.judge import JUDGE_COMMANDS
from mosa.cli.models import MODEL_COMMANDS
from mosa.cli.options import Command, HelpFormatter, show
from mosa.cli.report import REPORT_COMMANDS
from mosa.cli.results import RESULTS_COMMANDS
from mosa.runs.processes import (
    EXIT_USER_ERROR,
    Processes,
    launched,
    use_cpu_without_gpu,
)
from mosa.types import UserError

EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141

COMMANDS: dict[str, Command] = {
    **MODEL_COMMANDS,
    **EVALUATE_COMMANDS,
    **JUDGE_COMMANDS,
    **ANALYZE_COMMANDS,
    **RESULTS_COMMANDS,
    **REPORT_COMMANDS,
    **COMPARE_COMMANDS,
    **CATALOGUE_COMMANDS,
    **ATTACKS_CHECK_COMMANDS,
    **BENCH_COMMANDS,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status.

    0 success, 1 a condition of `mosa compare` that holds, 2 a mistake of the user (one sentence on
    stderr), 3 an evaluation in which every task failed, 130 an interruption. A
    bug of ours keeps its traceback.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    kept = ""
    processes = launched()
    if not processes.is_main:  # the main one speaks for all
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    try:
        if not words or words[0] in ("-h", "--help"):
            show(_overview())
            return 0
        if words[0] == "--version":
            show(f"mosa {importlib.metadata.version('mosa-dllm')}")
            return 0
        name, _ = _split(words)
        if name is None:
            show(_overview(words[0]))
            return 0
        kept = COMMANDS[name].kept
        if processes.count > 1:
            if not COMMANDS[name].runs_on_several_processes:
                return _refuse_several(name, processes)
            use_cpu_without_gpu()
        command, args = parse(words)
        return command.run(args) or 0
    except UserError as error:
        whose = "" if processes.is_main else f"process {processes.index}: "
        print(f"mosa: {whose}{error}", file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt as interruption:
        if processes.is_main:
            print(f"\nmosa: {str(interruption) or f'interrupted. {kept}'}", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of our output (`mosa ... | head`) has closed it; write nothing more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE


def _refuse_several(name: str, processes: Processes) -> int:
    """UserError on the main process; the others end before it, silently and with status 0, since a
    launcher ends all when one fails."""
    if not processes.is_main:
        return 0
    several = ", ".join(n for n, command in COMMANDS.items() if command.runs_on_several_processes)
    raise UserError(
        f"`mosa {name}` runs in one process and a launcher has started {processes.count}; start it "
        f"without accelerate or torchrun (those that share work are {several})"
    )


def parse(words: list[str]) -> tuple[Command, Namespace]:
    """The command that `words` name, and its options; raises UserError where they do not fit."""
    name, options = _split(words)
    assert name is not None, "a group of commands has no options"
    command = COMMANDS[name]
    try:
        args = _parser(name, command).parse_args([_with_underscores(option) for option in options])
    except ArgumentError as error:
        raise UserError(f"{_one_line(error)} (see mosa {name} --help)") from error
    return command, args


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
    known = ", ".join(group or COMMANDS)
    raise UserError(f"there is no command `{' '.join(words[:2])}`; choose one of: {known}")


def _parser(name: str, command: Command) -> ArgumentParser:
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(
        prog=f"mosa {name}",
        usage=f"mosa {name} [options]",
        description=f"{command.summary[0].upper()}{command.summary[1:]}.",
        formatter_class=HelpFormatter,
        print_config=None,
        exit_on_error=False,
    )
    command.add_arguments(parser)
    return parser


def _overview(group: str = "") -> str:
    names = [name for name in COMMANDS if name.startswith(group)]
    width = max(map(len, names)) + 2
    lines = [f"  {name:<{width}}{COMMANDS[name].summary}" for name in names]
    return "\n".join(
        [
            "usage: mosa COMMAND [options]      (mosa COMMAND --help lists the options)",
            "",
            "mosa aligns, attacks and measures diffusion language models.",
            "",
            *lines,
            "",
            "  --version  print the version",
        ]
    )


def _with_underscores(option: str) -> str:
    """`--show-steps` is `--show_steps`: both spellings work, as fields are spelled with `_`."""
    match = re.match(r"--[a-z][a-z0-9_-]*(?==|$)", option)
    if match is None:
        return option
    return "--" + match[0][2:].replace("-", "_") + option[match.end() :]


def _one_line(error: ArgumentError) -> str:
    text = " ".join(str(error).split()).rstrip(".").removeprefix("argument ")
    text = text.replace(": takes ", " takes ", 1)
    return re.sub(r"<class '([^']*)'>", r"\1", text).replace("Parser key", "option")
