"""The checkpoints of an unfinished training: written whole, told from damaged ones, and cleared.

Each `checkpoint-STEP` has `files.json` with the hashes of its files. One whose files are not those
any more is not resumed from: transformers would train on without what is missing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mosa.files import OwnFolder, filling, write_json
from mosa.inputs import is_file, is_folder, read_bytes, read_json, sha256
from mosa.types import UserError

HASHES = "files.json"
"""In a checkpoint: its step, and the hashes of its files."""
NAME = "checkpoint-{}"
"""Of the folder, with the step."""
_FORM = re.compile(r"checkpoint-(0|[1-9][0-9]*)")


@dataclass(frozen=True)
class _Hashes:
    step: int
    files: dict[str, str]
    """SHA-256 by name."""


def numbered_checkpoints(out: Path) -> dict[int, Path]:
    """The checkpoints of a folder by step, the newest first; other names are not ours."""
    if not is_folder(out):
        return {}
    found = {
        int(match[1]): path
        for path in out.iterdir()
        if (match := _FORM.fullmatch(path.name)) and is_folder(path)
    }
    return dict(sorted(found.items(), reverse=True))


def fault_of(checkpoint: Path) -> str:
    """Why a checkpoint is not whole, in words; empty where it is."""
    try:
        kept = read_json(checkpoint / HASHES, _Hashes, missing=f"{HASHES} is missing")
    except UserError as error:
        return str(error)
    for name, digest in kept.files.items():
        if not is_file(checkpoint / name):
            return f"{name} is missing"
        if sha256(checkpoint / name) != digest:
            return f"{name} is not what was written"
    return "" if checkpoint.name == NAME.format(kept.step) else f"it is of step {kept.step}"


def files_of_training(out: Path) -> frozenset[str]:
    """The files of an unfinished training: those that its checkpoints list, and its settings."""
    found: set[str] = set()
    for name in map(NAME.format, numbered_checkpoints(out)):
        with suppress(UserError):
            listed = {*read_json(out / name / HASHES, _Hashes).files, HASHES}
            there = (path.relative_to(out / name).as_posix() for path in (out / name).rglob("*"))
            found |= {f"{name}/{file}" for file in there if file in listed}
    if found:
        about = [out / name for name in ("config.yaml", "versions.json", "metrics.jsonl")]
        about += (out / "phrases").glob("*.txt")
        found |= {path.relative_to(out).as_posix() for path in about if is_file(path)}
    return frozenset(found)


@contextmanager
def saving(out: Path, step: int) -> Iterator[Path]:
    """A folder to save `checkpoint-STEP` into; its files take their place when the block ends.

    For the process that writes; the others save into the same folder.
    """
    name = NAME.format(step)
    with filling(out) as part:
        yield part
        files = sorted(path for path in (part / name).rglob("*") if path.is_file())
        hashes = {path.relative_to(part / name).as_posix(): sha256(path) for path in files}
    write_json(out / name / HASHES, {"step": step, "files": hashes})  # last: now it is whole


def keep_newest(own: OwnFolder, step: int, limit: int | None) -> None:
    """Remove checkpoints before that of `step`, but for the `limit - 1` newest of them."""
    earlier = [number for number in numbered_checkpoints(own.path) if number < step]
    if limit is not None:
        own.discard(*(NAME.format(number) for number in earlier[limit - 1 :]))


def read_log(path: Path, *, most: int) -> list[str]:
    """The lines of a training's log up to a step; a last line that a kill has cut is dropped.

    Raises UserError for another line that is none of a log.
    """
    if not is_file(path):
        return []
    *lines, _ = read_bytes(path).split(b"\n")
    kept = []
    for number, line in enumerate(lines, start=1):
        step = _step_of(line)
        if step is None:
            raise UserError(f"{path}, line {number} is not of a log; delete the line")
        if step <= most:
            kept.append(line.decode())
    return kept


def _step_of(line: bytes) -> int | None:
    try:
        entry: Any = json.loads(line.decode())
    except (ValueError, RecursionError):
        return None
    step = entry.get("step") if isinstance(entry, dict) else None
    return step if type(step) is int else None
