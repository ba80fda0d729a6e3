"""What a table says of an attack beside its rates: what it is in plain words, which try decides,
how long responses are, and whether its wrapping was trained against; and of a subject, that it is
served elsewhere."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from operator import attrgetter
from urllib.parse import urlsplit

from mosa.attacks import ATTACKS
from mosa.evidence.figures import Figure, Headline, trained_against
from mosa.runs.records import SubjectRecord
from mosa.stats.rates import NOTHING
from mosa.testbed.behaviors import InAlignmentData
from mosa.types import SetRecord
from mosa.utility import USEFUL_SETS

MARKS: Mapping[InAlignmentData, str] = {"all": "*", "some": "(*)", "none": ""}
"""By how many of an attack's wrappings stand in the testbed's alignment data."""


def marked(name: str, figures: Iterable[Figure]) -> str:
    """The name of what figures of attacks are about, with the mark of wrappings that were trained
    against: all of them, or some."""
    return name + MARKS[alignment_data_of(figures)]


def marked_attack(record: SetRecord, attack: str) -> str:
    """The name of an attack on a set, with the same mark."""
    return attack + MARKS[trained_against(record, attack)]


def alignment_data_of(figures: Iterable[Figure]) -> InAlignmentData:
    """How many of the wrappings of some figures' attacks stand in the testbed's alignment data."""
    found: set[InAlignmentData] = {figure.in_alignment_data for figure in figures}
    if len(found) > 1:
        return "some"
    for only in found:
        return only
    return "none"


def task_title(name: str) -> str:
    """What a useful task is in plain words; its name where nothing is known."""
    base, _, decoder = name.rpartition(":")
    if name not in USEFUL_SETS and base in USEFUL_SETS:
        return f"{USEFUL_SETS[base]}, {decoder}"
    return USEFUL_SETS.get(name, name)


def title_of(figure: Figure) -> str:
    """What a figure's attack or useful task is in plain words; its name where nothing is known."""
    if figure.kind == "utility":
        return task_title(figure.name)
    if figure.attack not in ATTACKS:
        return figure.name
    preset = figure.name.removeprefix(figure.attack).removeprefix(":")
    return ", ".join(filter(None, (ATTACKS[figure.attack].title, preset)))


Names = Callable[[Figure], str]


def names_in(figures: Iterable[Figure], name_of: Names = attrgetter("name")) -> str:
    """The attacks that figures are about, each once and with its mark."""
    by_name: dict[str, list[Figure]] = defaultdict(list)
    for figure in figures:
        by_name[name_of(figure)].append(figure)
    return ", ".join(marked(name, own) for name, own in by_name.items())


def worst_of(head: Headline, name_of: Names = attrgetter("name")) -> str:
    """The name of the worst attack, and how many others are as bad; empty where none was scored."""
    if not head.figures:
        return ""
    worst, *others = head.figures
    return marked(name_of(worst), [worst]) + (f" (and {len(others)} more)" if others else "")


def legend(figures: Iterable[Figure]) -> str:
    """What the marks mean that occur; empty where none does."""
    found: set[InAlignmentData] = {figure.in_alignment_data for figure in figures}
    return legend_of(found)


def legend_of(found: Collection[InAlignmentData]) -> str:
    """The same, where these occur."""
    told = ", ".join(f"{mark} {how}" for how, mark in MARKS.items() if mark and how in found)
    return told and (
        f"Marks: {told} wrappings of the attack stand in the testbed's alignment data; there a low "
        "rate shows what was trained, not that it generalises."
    )


def tries_of(figures: Iterable[Figure]) -> str:
    """Which of how many tries of a case decides, for one attack: `selected of 340`, `any of 12` or
    `1`; the most of any subject."""
    found = [figure for figure in figures if figure.most_tries]
    if not found:
        return NOTHING
    most = max(figure.most_tries for figure in found)
    if any(figure.decides == "best rated" for figure in found):
        return f"selected of {most}"
    return f"any of {most}" if most > 1 else "1"


UNKNOWN = "unknown"
"""What stands for something that a server does not tell."""
VERSIONS = ("version", "build_info", "system_fingerprint")
DECODERS = ("dllm_algorithm", "dllm_algorithm_config")


def place_of(record: SubjectRecord) -> str:
    """Where a subject is served, as "localhost:8000"; empty where it was loaded here."""
    return "" if record.server is None else urlsplit(record.source).netloc


def served_facts(record: SubjectRecord) -> str:
    """What a served subject's server tells of itself, and what it does not."""
    told = record.server or {}
    words = [f"{name} {value}" for name, value in told.items() if name not in DECODERS]
    if not any(name in told for name in VERSIONS):
        words.append(f"its version is {UNKNOWN}")
    algorithm = ", ".join(f"{name} {told[name]}" for name in DECODERS if name in told)
    sent = ", ".join(f"{name} {value}" for name, value in record.decoder.items() if name != "seed")
    rest = f"and else {UNKNOWN}" if not algorithm else f"and by its server {algorithm}"
    words.append(f"its decoder is sent {sent}, {rest}")
    return ", ".join(words)


def length_of(figures: Iterable[Figure]) -> str:
    """The tokens of a response under one attack, each length once."""
    lengths = {round(figure.length): None for figure in figures if figure.length is not None}
    return ", ".join(map(str, lengths)) or NOTHING
