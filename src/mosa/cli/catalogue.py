"""Commands that list attacks, judges and sets; copies and overlaps of prompt files."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from jsonargparse import ArgumentParser, Namespace

from mosa.catalogue import read_catalogue
from mosa.cli.options import DATA_DIR_HELP, FILES, Command, ListOf, in_words
from mosa.inputs import did_you_mean
from mosa.terminal import show
from mosa.types import Access, UserError

SHOWN_PAIRS = 50
"""Of near-duplicates, on the terminal."""
UNCHANGED = "Nothing is written."
TRIES = {
    "best rated": "several, of which its loop selects the one that it rates best",
    "only": "one",
    "any": "each counts; a success in any of them is one",
}
MARKS = {
    "all": ("testbed: its wrapping stands in the alignment data",),
    "some": ("testbed: some of its wrappings stand in the alignment data",),
    "none": (),
}


def _list_arguments(of: str) -> Callable[[ArgumentParser], None]:
    def add_arguments(parser: ArgumentParser) -> None:
        parser.add_argument("name", type=str, nargs="*", help=f"{of} to show in full")
        parser.add_argument("--json", action="store_true", help="show everything as JSON")

    return add_arguments


def _attacks_arguments(parser: ArgumentParser) -> None:
    _list_arguments("attacks")(parser)
    parser.add_argument(
        "--access",
        type=ListOf(Access),
        help="list the attacks that need no other access: comma-separated words of "
        f"{', '.join(get_args(Access))}",
    )
    parser.add_argument(
        "--no_chat_model", action="store_true", help="list the attacks that ask no chat model"
    )


def _attacks(args: Namespace) -> None:
    found = read_catalogue()["attacks"]
    if args.access is not None:
        found = [attack for attack in found if {*attack["access"]} <= {*args.access}]
    if args.no_chat_model:
        found = [attack for attack in found if not attack["roles"]]
    _show_list("attack", found, args, _about_attack)


def _about_attack(attack: Mapping[str, Any]) -> Iterator[str]:
    yield f"threat model: {attack['threat']}; needs access to: {', '.join(attack['access'])}"
    if attack["takes"]:
        yield f"sets the decoder's {', '.join(attack['takes'])}"
    if attack["roles"]:
        yield f"asks: {', '.join(attack['roles'])}"
    if attack["needs_answer"]:
        yield "cases need an answer"
    yield f"tries: {TRIES[attack['decides']]}"
    for preset, bound in attack["bounds"].items():
        yield f"{preset}: at most {in_words(bound)} a case"
    yield from MARKS[attack["in_alignment_data"]]
    yield f"source: {attack['source']}"


def _judges(args: Namespace) -> None:
    _show_list("judge", read_catalogue()["judges"], args, _about_judge)


def _about_judge(judge: Mapping[str, Any]) -> Iterator[str]:
    yield f"needs: {judge['needs']}"
    yield f"success: {judge['threshold']}"
    if judge["tells_refusals"]:
        yield "tells refusals of harmless requests"
    yield f"source: {judge['source']}"


def _sets(args: Namespace) -> None:
    found = [{"summary": each["kind"], **each} for each in read_catalogue()["sets"]]
    _show_list("set", found, args, _about_set)
    if not args.json and not args.name:
        show("\nFiles of requests and tasks of lm_eval are sets, too.")


def _about_set(each: Mapping[str, Any]) -> Iterator[str]:
    if "origin" in each:
        yield each["licence"]
        yield each["origin"]


def _show_list(
    kind: str,
    entries: Sequence[Mapping[str, Any]],
    args: Namespace,
    about: Callable[[Mapping[str, Any]], Iterable[str]],
) -> None:
    """Entries on a line each (in a terminal on as many as they need), or in full where they are
    named; all of it as JSON where asked."""
    by_name = {entry["name"]: entry for entry in entries}
    for name in args.name:
        if name not in by_name:
            raise UserError(
                f"there is no {kind} {name} in this list{did_you_mean(name, by_name)}; "
                f"`mosa {kind}s` lists them"
            )
    chosen = [by_name[name] for name in args.name] or [*entries]
    if args.json:
        print(json.dumps(chosen, indent=2, ensure_ascii=False))
        return
    column = max(map(len, by_name), default=0) + 2
    room = shutil.get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize
    for entry in chosen:
        if not args.name:
            line = f"{entry['name']:<{column}}{entry['summary']}"
            wrapped = textwrap.wrap(
                line,
                max(room, column + 20),
                subsequent_indent=" " * column,
                break_long_words=False,
                break_on_hyphens=False,
            )
            show("\n".join(wrapped))
            continue
        show(f"{entry['name']}: {entry['summary']}")
        for line in about(entry):
            show(f"  {line}")


def _get_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "name",
        type=str,
        nargs="+",
        help="published files; names of `mosa sets`, or for example gsm8k_test",
    )
    parser.add_argument("--data_dir", type=Path, help=DATA_DIR_HELP)


def _get(args: Namespace) -> None:
    from mosa.data import KNOWN_FILES, download

    for name in args.name:
        path, is_new = download(name, args.data_dir)
        known = KNOWN_FILES[name.partition(":")[0]]
        done = f"fetched {path}" if is_new else f"there already, {path}"
        show(f"{name}: {done} ({known.num_rows} rows, {known.licence}, by {known.origin})")


def _overlap_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("train", type=Path, help=f"training prompts: {FILES}")
    parser.add_argument(
        "evaluation", type=str, help=f"case set: a name (`mosa sets` lists them) or {FILES}"
    )
    parser.add_argument(
        "--threshold",
        type=float,
        default=0.7,
        help="share of common words from which two requests count as near-duplicates",
    )
    parser.add_argument("--data_dir", type=Path, help=DATA_DIR_HELP)


def _overlap(args: Namespace) -> None:
    from mosa.data import describe_overlap

    found = describe_overlap(
        args.train, args.evaluation, threshold=args.threshold, data_dir=args.data_dir
    )
    show(
        f"{len(found.train_indices)} of {found.num_train} training prompts have a near-duplicate "
        f"among the {len(found.evaluation.cases)} cases of {found.evaluation.name} (threshold "
        f"{found.threshold:g}, share of words in common)."
    )
    for pair in found.pairs[:SHOWN_PAIRS]:
        case = found.evaluation.cases[pair.eval_index]
        show(f"row {pair.train_index + 1} ~ {case.id}: {pair.similarity:.2f}")
    if len(found.pairs) > SHOWN_PAIRS:
        show(
            f"and {len(found.pairs) - SHOWN_PAIRS} more pairs (mosa.data.describe_overlap has all)"
        )


COMMANDS: dict[str, Command] = {
    "attacks": Command(
        "list the attacks, or show some in full",
        _attacks_arguments,
        _attacks,
        UNCHANGED,
        example="mosa attacks --access prompt,history --no-chat-model",
    ),
    "judges": Command(
        "list the judges, or show some in full",
        _list_arguments("judges"),
        _judges,
        UNCHANGED,
        example="mosa judges strongreject",
    ),
    "sets": Command(
        "list the case sets, or show some in full",
        _list_arguments("sets"),
        _sets,
        UNCHANGED,
        example="mosa sets xstest",
    ),
    "data get": Command(
        "fetch published benchmark files, and check their bytes",
        _get_arguments,
        _get,
        "Files that were fetched whole stay.",
        example="mosa data get advbench_50 xstest",
    ),
    "data overlap": Command(
        "find training prompts that are also in a case set",
        _overlap_arguments,
        _overlap,
        UNCHANGED,
        example="mosa data overlap harmful.jsonl advbench_50",
    ),
}
