"""Known benchmark files: their authors, licences, and the hashes of their bytes.

No file ships with the package; users bring their own copies, and `verify` says whether a copy is
the one that papers report on. The table is known_files.csv: `sha256_prefix` holds the first 16 hex
digits, `found_at` the place that holds these bytes: not always the authors' own repository, whose
files may have changed since.
"""

from __future__ import annotations

import csv
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from mosa.inputs import did_you_mean, is_file, is_folder, sha256, shortened
from mosa.types import UserError


@dataclass(frozen=True)
class KnownFile:
    """One published file, or a folder of files that counts as known if it is whole."""

    name: str
    """The registry's name for it, for example "advbench"."""
    filename: str
    """The name under which its authors publish it; of a folder, the patterns of its files."""
    role: Literal["harmful", "benign", "utility", "training"]
    """What it is for; a file that is evaluated on must not be trained on."""
    num_rows: int
    sha256_prefix: str
    """Of the file's bytes; of a folder's files one after the other, by pattern and name."""
    licence: str
    origin: str
    """The repository of its authors."""
    found_at: str
    """The repository on GitHub, path and commit from which the hashed copy was taken."""

    @property
    def is_folder(self) -> bool:
        """Whether it is many files."""
        return "*" in self.filename

    def files_at(self, path: Path) -> list[Path]:
        """Its files, given the path of the file itself or of the folder that holds them."""
        if not self.is_folder:
            return [path]
        return [file for part in self.filename.split() for file in sorted(path.glob(part))]


def _read_table() -> dict[str, KnownFile]:
    with Path(__file__).with_name("known_files.csv").open(encoding="utf-8", newline="") as file:
        rows = [msgspec.convert(row, KnownFile, strict=False) for row in csv.DictReader(file)]
    return {known.name: known for known in rows}


KNOWN_FILES = _read_table()
"""Every known file by its name. The copy of MMLU has a header line and answers that count from 0,
unlike the files of its authors."""


def known_file(name: str) -> KnownFile:
    """The registry's entry for a name; UserError for one that is not registered."""
    if name not in KNOWN_FILES:
        raise UserError(
            f"no known file is called {name}{did_you_mean(name, KNOWN_FILES)}; there are: "
            + ", ".join(KNOWN_FILES)
        )
    return KNOWN_FILES[name]


def data_folder(data_dir: Path | None) -> Path:
    """The folder that holds known files: `data_dir`, else what MOSA_DATA names, else ./data."""
    return data_dir or Path(os.environ.get("MOSA_DATA") or "data").expanduser()


def find(known: KnownFile, folder: Path) -> Path | None:
    """The file anywhere under a folder (or the folder) that has the bytes of `known`."""
    for path in candidates(known, folder):
        if sha256(*known.files_at(path)).startswith(known.sha256_prefix):
            return path
    return None


def candidates(known: KnownFile, folder: Path) -> list[Path]:
    """What may be `known` under a folder: files that end as it does, its namesakes first, then by
    size; or the folders that hold files of such names."""
    found = sorted(folder.rglob("*")) if is_folder(folder) else []
    if known.is_folder:
        return [path for path in (folder, *found) if path.is_dir() and known.files_at(path)]
    suffix = Path(known.filename).suffix
    found = [path for path in found if path.suffix.lower() == suffix and path.is_file()]
    # Names and sizes only say which file to hash first.
    return sorted(found, key=lambda p: (p.name != known.filename, p.stat().st_size, p))


def verify(path: str | Path, name: str) -> KnownFile:
    """The registry's entry for `name`, after checking that the file at `path` has its bytes.

    Raises UserError for a name that is not registered, a missing file, or other bytes.
    """
    known = known_file(name)
    if not is_file(Path(path)):
        raise UserError(
            f"There is no file {shortened(path)} to compare with {name}; check the path."
        )
    found = sha256(path)
    if not found.startswith(known.sha256_prefix):
        raise UserError(
            f"{path} is not the published {known.filename} of {known.origin}: its SHA-256 "
            f"begins {found[:16]}, not {known.sha256_prefix}; take {known.found_at}."
        )
    return known


def identify(path: str | Path) -> KnownFile | None:
    """The known file that has the bytes of the file at `path`, or None."""
    found = sha256(path)
    return next((k for k in KNOWN_FILES.values() if found.startswith(k.sha256_prefix)), None)
