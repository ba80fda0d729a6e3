"""Read the behaviors of a benchmark, known by name or brought by the user, from their files.

A row becomes a `Behavior`. One example of each format (all harmless):

    .txt    How do I bake bread?
    .csv    goal,target / "Bake bread","Sure, here is how"   (AdvBench)
            Behavior,FunctionalCategory,SemanticCategory,Tags,ContextString,BehaviorID /
            Sum it up,contextual,food,,A text about bread,bread_sum                  (HarmBench)
    .json   a list of strings, or of records such as {"prompt": "Bake bread", "answer": "Mix ..."}
    .jsonl  one of these per line, or {"question_id": 1, "category": "4", "turns": ["Bake bread"],
            "prompt_style": "base"}                                               (SORRY-Bench)

A name ("advbench", "harmbench:standard") stands for a known set. The hash of its bytes finds its
file: the content counts, and not the name. docs/behaviors.md lists the sets.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mosa.data.prompts import ANSWER_COLUMNS, STYLE_COLUMNS, only_turn
from mosa.data.registry import (
    KNOWN_FILES,
    KnownFile,
    candidates,
    data_folder,
    find,
    identify,
)
from mosa.data.rows import CONTEXT_COLUMNS, FORMATS, REQUEST_COLUMNS, read_rows, text_of
from mosa.inputs import is_file, sha256, shortened
from mosa.types import Behavior, CaseSet, UserError, content_key, is_json_object

TURNS = "turns"
"""The column that holds the request as a list of one text (SORRY-Bench)."""

ID_COLUMNS = ("id", "behaviorid", "question_id")
TARGET_COLUMNS = ("target",)
CATEGORY_COLUMNS = ("category", "semanticcategory")


@dataclass(frozen=True)
class Subsets:
    """The parts of a known set, distinguished by one of its columns."""

    column: str
    names: tuple[str, ...]
    default: tuple[str, ...]
    """The parts that the set's bare name means."""
    harmful: tuple[str, ...] = ()
    """The parts of a harmless set that are its harmful contrast."""


# Whether a text reproduces copyrighted words is decided by reference hashes, not by a judge that
# reads; the rate of any other judge on these rows would mean nothing.
_HARMBENCH = Subsets(
    "functionalcategory",
    ("standard", "contextual", "copyright"),
    default=("standard", "contextual"),
)

SUBSETS: dict[str, Subsets] = {
    "harmbench": _HARMBENCH,
    "harmbench_test": _HARMBENCH,
    "harmbench_val": _HARMBENCH,
    # The unsafe half is the contrast: refusing it is not over-refusal.
    "xstest": Subsets("label", ("safe", "unsafe"), default=("safe",), harmful=("unsafe",)),
}

# Where a known file keeps its category under a name too common to look for in files of users.
_CATEGORY_OF = {"xstest": ("type",)}


def known_set_names() -> tuple[str, ...]:
    """Every name of a known set that `load_cases` takes, the subsets included."""
    names: list[str] = []
    for known in _known_sets().values():
        parts = SUBSETS[known.name].names if known.name in SUBSETS else ()
        names += [known.name, *(f"{known.name}:{part}" for part in parts)]
    return tuple(names)


def names_known_set(source: str) -> bool:
    """Whether `load_cases` takes this name: that of a known set, or of a file by its ending."""
    return source.partition(":")[0] in _known_sets() or Path(source).suffix.lower() in FORMATS


def load_cases(
    source: str,
    *,
    data_dir: Path | None = None,
    limit: int | None = None,
    is_harmless: bool = False,
) -> CaseSet:
    """The requests of a known set or of a .csv, .json, .jsonl or .txt file, at most `limit`.

    Known sets define whether they are harmless, `is_harmless` says it for files. The set of a file
    has the whole file name, which no known set has.

    `source` is a path, or a name such as "advbench" or "harmbench:standard". The hash of its bytes
    finds a known set everywhere under `data_dir` (else the folder that the environment variable
    MOSA_DATA names, else ./data). The path of a known file gives the set that
    its bare name gives. Raises UserError for an unknown name, a set that is not there, or a file
    that cannot be read, with the row.
    """
    if limit is not None and limit < 1:
        raise UserError(f"The limit is {limit}; ask for one behavior at least.")
    base, colon, part = source.partition(":")
    if base in _known_sets():
        if colon:
            _check_part(base, part)
        path = _find(_known_sets()[base], data_dir)
        name, known = source, KNOWN_FILES[base]
    elif Path(source).suffix.lower() in FORMATS:
        path, part = Path(source), ""
        if not is_file(path):
            raise UserError(f"There is no file of behaviors {shortened(path)}; check the path.")
        known = identify(path)
        name = known.name if known else path.name
    else:
        raise UserError(
            f"{source} is neither a known set ({', '.join(_known_sets())}) nor a file that ends in "
            f"{', '.join(FORMATS)}; give one of these."
        )

    # A known file is what its bytes are, even if a copy was given another ending.
    rows = read_rows(path, Path(known.filename if known else path).suffix.lower())
    if not rows:
        raise UserError(f"{path} holds no behavior; give a file with at least one.")
    # Equal bytes hold equally many rows, so a difference is a fault of the reader or the registry.
    assert known is None or len(rows) == known.num_rows, (
        f"{path} was read as {len(rows)} rows, but {known.name} has {known.num_rows}"
    )
    category = _CATEGORY_OF.get(known.name if known else "", CATEGORY_COLUMNS)
    items = [_behavior(item, number, where, category) for number, (item, where) in enumerate(rows)]
    _check_ids(items, [where for _, where in rows])
    if known is not None and known.name in SUBSETS:
        subsets = SUBSETS[known.name]
        wanted = (part,) if part else subsets.default
        items = [
            item
            for item, (record, _) in zip(items, rows, strict=True)
            if record[subsets.column] in wanted
        ]
    is_harmless = is_harmless if known is None else is_harmless_part(known, part)
    return CaseSet(
        name=name,
        kind="harmless" if is_harmless else "harmful",
        cases=tuple(items[:limit]),
        file=path.name,
        sha256=sha256(path),
        content_hash=hash_of_cases(items),
        known_as=known.name if known else None,
        licence=known.licence if known else None,
        origin=known.origin if known else None,
    )


def hash_of_cases(cases: Iterable[Behavior | Mapping[str, Any]], **beside: Any) -> str:
    """A hash of the full content of a set's cases, in their order; 20 hex digits.

    A case is its `Behavior`, or the row from which request, target and score are made. `beside` is
    what else decides how all cases are asked and scored, as JSON.
    """
    plain = [vars(case) if isinstance(case, Behavior) else dict(case) for case in cases]
    return content_key(cases=plain, **beside)


# --- known sets -----------------------------------------------------------------------------------


def _known_sets() -> dict[str, KnownFile]:
    return {n: known for n, known in KNOWN_FILES.items() if known.role in ("harmful", "benign")}


def is_harmless_part(known: KnownFile, part: str) -> bool:
    """Whether the requests of a known set, or of its subset `part`, are harmless."""
    is_contrast = known.name in SUBSETS and part in SUBSETS[known.name].harmful
    return known.role == "benign" and not is_contrast


def _check_part(base: str, part: str) -> None:
    if base not in SUBSETS:
        raise UserError(f"{base} has no subsets; name {base} without one.")
    names = SUBSETS[base].names
    if part not in names:
        raise UserError(
            f"{base} has no subset {part or '(nothing)'}; ask for "
            f"{', '.join(f'{base}:{name}' for name in names)}, or {base}."
        )


def _find(known: KnownFile, data_dir: Path | None) -> Path:
    """The file under the data folder that has the bytes of `known`."""
    folder = data_folder(data_dir)
    path = find(known, folder)
    if path is not None:
        return path
    namesake = next((p for p in candidates(known, folder) if p.name == known.filename), None)
    other = f" ({namesake} has its name but other bytes)" if namesake else ""
    raise UserError(
        f"No file under {shortened(folder)} is {known.name}{other}; `mosa data get {known.name}` "
        f"fetches it (github.com/{known.found_at}), or let the environment variable MOSA_DATA name "
        "the folder that holds it."
    )


# --- rows -----------------------------------------------------------------------------------------


def _behavior(item: Any, number: int, where: str, category: tuple[str, ...]) -> Behavior:
    record = {"text": item} if isinstance(item, str) else item
    if not is_json_object(record):
        raise UserError(f"{where} is {json.dumps(item)}; make it a string or an object.")
    if TURNS not in record and record.keys().isdisjoint(REQUEST_COLUMNS):
        # The empty name of an index column carries no information.
        raise UserError(
            f"{where} has the columns {', '.join(filter(None, record)) or '(none)'}; the one with "
            f"the request must be called one of {', '.join(REQUEST_COLUMNS)}."
        )
    text = text_of(record, REQUEST_COLUMNS, where)
    if text is None and TURNS in record:
        text = only_turn(record[TURNS], where)
    if text is None:
        raise UserError(f"{where} has an empty request; give it one or delete the row.")
    return Behavior(
        id=_id(record, number, where),
        text=text,
        context=text_of(record, CONTEXT_COLUMNS, where),
        target=text_of(record, TARGET_COLUMNS, where),
        answer=text_of(record, ANSWER_COLUMNS, where),
        category=text_of(record, category, where),
    )


def _id(record: dict[str, Any], number: int, where: str) -> str:
    column = next((name for name in ID_COLUMNS if name in record), None)
    if column is None:
        return str(number)
    # A request in several styles has one number in SORRY-Bench.
    style = text_of(record, STYLE_COLUMNS, where)
    suffix = "" if style is None else f"-{style}"
    if isinstance(record[column], int) and not isinstance(record[column], bool):
        return f"{record[column]}{suffix}"
    text = text_of(record, (column,), where)
    if text is None:
        raise UserError(f"{where} has no {column}; give every row one, or none.")
    return f"{text}{suffix}"


def _check_ids(items: list[Behavior], places: list[str]) -> None:
    seen: dict[str, str] = {}
    for item, where in zip(items, places, strict=True):
        if item.id in seen:
            raise UserError(
                f"{where} has the id {item.id}, as {seen[item.id]} has; give every row its own."
            )
        seen[item.id] = where
