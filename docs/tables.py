"""The tables on the pages that say what the program's own tables say, written from those.

    make docs-tables

rewrites them in place: attacks and what they ask at most (attacks/README.md), judges
(judges/README.md), and the settings of each attack under `paper`, `reduced` and `smoke`
(attacks/NAME.md). tests/test_docs_tables.py compares.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import docstring_parser

from mosa.attacks import ATTACKS, ENGLISH
from mosa.attacks.base import Attack
from mosa.cli.catalogue import in_words
from mosa.judges import JUDGES
from mosa.testbed.behaviors import in_alignment_data

DOCS = Path(__file__).parent
PRESETS = ("paper", "reduced", "smoke")
"""The presets that every attack has."""


def tables() -> Iterator[tuple[Path, Sequence[str]]]:
    """Each page with the lines of its table; the first two, the head, are on the page already."""
    yield DOCS / "attacks" / "README.md", attacks_table()
    yield DOCS / "attacks" / "README.md", bounds_table()
    yield DOCS / "judges" / "README.md", judges_table()
    for name, attack in ATTACKS.items():
        if dataclasses.fields(attack.config_class):
            yield DOCS / "attacks" / f"{name}.md", settings_table(attack)


def attacks_table() -> list[str]:
    """What each attack needs and does, and which of its tries decides."""
    head = (
        "attack",
        "threat",
        "access needed",
        "chat models",
        "try that decides",
        "in alignment data",
        "what it does",
    )
    rows = [
        (
            f"[{name}]({name}.md)",
            attack.threat,
            ", ".join(attack.access),
            ", ".join(attack.roles) or "none",
            attack.decides,
            in_alignment_data(name),
            attack.summary + ("; needs `answer`" if attack.needs_answer else ""),
        )
        for name, attack in ATTACKS.items()
    ]
    return markdown(head, rows)


def bounds_table() -> list[str]:
    """The most that each attack asks for one case, by preset."""
    rows = [
        (name, *(in_words(bound_of(attack, preset)) for preset in PRESETS))
        for name, attack in ATTACKS.items()
    ]
    return markdown(("at most, for a case", *PRESETS), rows)


def bound_of(attack: Attack, preset: str) -> Mapping[str, int]:
    """What an attack asks at most under a preset, in English."""
    assert attack.bound is not None, "only probes have none"
    return attack.bound(attack.config(preset), ENGLISH).asked


def judges_table() -> list[str]:
    """What each judge does, needs and calls a success."""
    rows = [
        (f"[{name}]({name}.md)", info.summary, info.needs, info.threshold)
        for name, info in JUDGES.items()
    ]
    return markdown(("judge", "what it does", "needs", "success"), rows)


def settings_table(attack: Attack) -> list[str]:
    """Each setting of an attack, its own before those of its base: the sentence under its field,
    and its values in the presets."""
    own = attack.config_class.__annotations__
    names = [field.name for field in dataclasses.fields(attack.config_class)]
    meaning = sentences(attack.config_class)
    configs = [attack.config(preset) for preset in PRESETS]
    rows = [
        (f"`{name}`", meaning[name], *(shown(getattr(config, name)) for config in configs))
        for name in sorted(names, key=lambda name: name not in own)
    ]
    return markdown(("field", "meaning", *PRESETS), rows)


def sentences(config_class: type) -> Mapping[str, str]:
    """The sentence under each field, its base's where it has none, as the inside of a cell."""
    found = {}
    for base in reversed(config_class.__mro__[:-1]):
        for param in docstring_parser.parse_from_object(base).params:
            words = " ".join((param.description or "").split()).removesuffix(".")
            found[param.arg_name] = words[:1].lower() + words[1:]
    return found


def shown(value: Any) -> str:
    """A setting as people write it: yes and no, unset, 10,000, names as code, lists with commas."""
    match value:
        case None:
            return "unset"
        case bool():
            return "yes" if value else "no"
        case int() if value >= 10_000:
            return f"{value:,}"
        case int() | float():
            return str(value)
        case str():
            return f"`{value}`"
        case tuple():
            return ", ".join(map(shown, value))
    raise TypeError(f"no way to show {value!r}")


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table."""
    cells = [head, ["---"] * len(head), *rows]
    assert not any("|" in cell for row in cells for cell in row)
    lines = [f"| {' | '.join(row)} |" for row in cells]
    return [lines[0], lines[1].replace(" ", ""), *lines[2:]]


def with_table(text: str, table: Sequence[str]) -> str:
    """A page with the table in the place of the one that has its head."""
    lines = text.split("\n")
    start = lines.index(table[0])
    rest = itertools.dropwhile(lambda line: line.startswith("|"), lines[start:])
    return "\n".join([*lines[:start], *table, *rest])


def main() -> None:
    """Rewrite the pages."""
    for page, table in tables():
        page.write_text(with_table(page.read_text(encoding="utf-8"), table), encoding="utf-8")


if __name__ == "__main__":
    main()
