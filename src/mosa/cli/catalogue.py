"""Commands that list attacks, judges and sets; and overlaps of prompt files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from mosa.catalogue import read_catalogue
from mosa.cli.options import DATA_DIR_HELP, FILES, Command, no_arguments
from mosa.terminal import show

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


def _attacks(args: Namespace) -> None:
    del args
    for attack in read_catalogue()["attacks"]:
        chats = f"; asks: {', '.join(attack['roles'])}" if attack["roles"] else ""
        answer = "; cases need an answer" if attack["needs_answer"] else ""
        takes = f"; sets the decoder's {', '.join(attack['takes'])}" if attack["takes"] else ""
        _entry(
            attack["name"],
            attack["summary"],
            f"threat model: {attack['threat']}; needs access to: {', '.join(attack['access'])}"
            f"{takes}{chats}{answer}",
            f"tries: {TRIES[attack['decides']]}",
            *(
                f"{preset}: at most {in_words(bound)} a case"
                for preset, bound in attack["bounds"].items()
            ),
            *MARKS[attack["in_alignment_data"]],
            f"source: {attack['source']}",
        )


def _judges(args: Namespace) -> None:
    del args
    for judge in read_catalogue()["judges"]:
        tells = "; tells refusals of harmless requests" if judge["tells_refusals"] else ""
        _entry(
            judge["name"],
            judge["summary"],
            f"needs: {judge['needs']}; success: {judge['threshold']}{tells}",
            f"source: {judge['source']}",
        )


def _sets(args: Namespace) -> None:
    del args
    for each in read_catalogue()["sets"]:
        origin = f"; {each['licence']}; {each['origin']}" if "origin" in each else ""
        _entry(each["name"], f"{each['kind']}{origin}")
    show("\nFiles of requests and tasks of lm_eval are sets, too.")


def _entry(name: str, *texts: str) -> None:
    """A name, with lines about it beside it."""
    for i, text in enumerate(texts):
        show(f"{name if i == 0 else '':<32}{text}")


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
        f"among the {found.num_eval} cases of {found.evaluation.name} (threshold "
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
    "attacks": Command("list the attacks", no_arguments, _attacks, UNCHANGED),
    "judges": Command("list the judges", no_arguments, _judges, UNCHANGED),
    "sets": Command("list the case sets", no_arguments, _sets, UNCHANGED),
    "data overlap": Command(
        "find training prompts that are also in a case set",
        _overlap_arguments,
        _overlap,
        UNCHANGED,
    ),
}
