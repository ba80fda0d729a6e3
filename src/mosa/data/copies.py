"""Copies of published benchmark files, from the places that the table of known files names."""

from __future__ import annotations

import hashlib
from pathlib import Path
from urllib.parse import quote

import httpx2

from mosa.data.registry import KnownFile, data_folder, find, known_file
from mosa.files import claim_file, write_bytes
from mosa.inputs import is_folder
from mosa.types import UserError

SERVER = "https://raw.githubusercontent.com"
MOST_BYTES = 64 * 2**20
"""Of a file; the largest known one has 4 MiB."""
SECONDS = 60.0
"""How long the server may be silent."""


def download(name: str, data_dir: Path | None = None) -> tuple[Path, bool]:
    """The path of a known file's copy under the data folder, and whether it was fetched now; of the
    whole file where `name` is a subset of its set, as in harmbench:standard.

    A file that is there already, anywhere under the folder, is not fetched again. Bytes whose hash
    is not that of the table are not kept. Raises UserError for an unknown name, a folder of many
    files, a server that does not give the file, other bytes, and where something else stands at
    its place.
    """
    name = name.partition(":")[0]
    known, folder = known_file(name), data_folder(data_dir)
    if known.is_folder:
        raise UserError(f"{name} consists of many files; fetch github.com/{known.found_at} by hand")
    if is_folder(folder) and (there := find(known, folder)) is not None:
        return there, False
    path = folder / name / known.filename
    with claim_file(path):  # before the download
        content = _fetch(known)
        digest = hashlib.sha256(content).hexdigest()
        if not digest.startswith(known.sha256_prefix):
            raise UserError(
                f"github.com/{known.found_at} gave other bytes than those of {known.filename} "
                f"(SHA-256 begins {digest[:16]}, not {known.sha256_prefix}); nothing was kept"
            )
        write_bytes(path, content)
    return path, True


def _fetch(known: KnownFile) -> bytes:
    """The bytes at the place of the table; an owner's redirect is not followed."""
    place, _, commit = known.found_at.partition(" @ ")
    repository, _, inside = place.partition(": ")
    address = f"{SERVER}/{repository}/{commit}/{quote(inside)}"
    content = bytearray()
    try:
        with httpx2.stream("GET", address, timeout=SECONDS) as response:
            if response.status_code != 200:
                raise UserError(_failed(known, f"status {response.status_code}"))
            for part in response.iter_bytes():
                content += part
                if len(content) > MOST_BYTES:
                    raise UserError(_failed(known, f"more than {MOST_BYTES} bytes"))
    except (httpx2.HTTPError, httpx2.StreamError, OSError) as error:
        raise UserError(_failed(known, type(error).__name__)) from error
    return bytes(content)


def _failed(known: KnownFile, why: str) -> str:
    return (
        f"{known.name} cannot be fetched ({why}); try again, or fetch github.com/{known.found_at} "
        "by hand and put it anywhere under the data folder"
    )
