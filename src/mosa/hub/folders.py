"""Checkpoints and adapters by folder or hub id: found, or fetched without any code."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from huggingface_hub import constants, snapshot_download  # pyright: ignore[reportUnknownVariableType]
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
)

from mosa.hub.bounded import said
from mosa.inputs import is_file, is_folder, shortened
from mosa.types import UserError

DOWNLOADED = ("*.safetensors", "*.json", "*.jinja", "*.model", "merges.txt")
"""What is fetched from the hub: weights, configs and tokenizers, and no code."""


def folder_of(name: str | Path) -> Path:
    """The path that a name means, `~` written out, whether anything is there or not."""
    return Path(os.path.expanduser(name))  # noqa: PTH111 - Path's own raises for an unknown user


def locate(
    name: str | Path, *, revision: str | None = None, patterns: Sequence[str] = DOWNLOADED
) -> Path:
    """The folder of a checkpoint or adapter: the named folder, or a copy of those of the hub's
    files that are like `patterns`.

    Raises UserError where there is neither.
    """
    folder = folder_of(name)
    if is_folder(folder):
        return folder
    if is_file(folder):
        raise UserError(f"{shortened(name)} is a file; give the checkpoint folder that holds it.")
    if isinstance(name, Path) or not re.fullmatch(r"\w[\w.-]{0,95}/\w[\w.-]{0,95}", name):
        raise UserError(
            f"There is no folder {shortened(name)}; give an existing folder, or a hub id such as "
            "organisation/model."
        )
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(patterns)))
    except Exception as error:  # its client meets more than its own errors, such as a full disk
        raise UserError(_not_given_out(name, revision, error)) from error


def _not_given_out(name: str, revision: str | None, error: Exception) -> str:
    """Why the hub did not give a model out: a licence, its limit, no connection, no such model."""
    if isinstance(error, GatedRepoError):
        return (
            f"The hub gives out {name} only to those who accepted its licence; accept it at "
            f"https://huggingface.co/{name} and log in with `hf auth login`, or give a folder."
        )
    if isinstance(error, HFValidationError):
        return f"{name} is no name of the hub ({shortened(error)}); correct it."
    if not isinstance(error, LocalEntryNotFoundError | HfHubHTTPError):
        return (
            f"There is no folder {name}, and from the hub at {constants.ENDPOINT} it cannot be had "
            f"({said(error)}); check HF_ENDPOINT and the connection, or give the folder of a copy."
        )
    statuses = {cause.response.status_code for cause in _http_errors(error)}
    if 429 in statuses:
        return (
            f"The hub limits how often it is asked, so that {name} was not downloaded; try again "
            "in some minutes, log in with `hf auth login`, or give the folder of a copy."
        )
    if statuses & {401, 403, 404}:
        return (
            f"There is no folder {name} and the hub does not give out a model of that name"
            f"{f' at revision {revision}' if revision else ''}; check the spelling, and log in "
            "with `hf auth login` if it is private."
        )
    return (
        f"There is no folder {name} and the hub cannot be reached to download it; check the "
        "path or the connection, or give the folder of a copy."
    )


def _http_errors(error: BaseException | None) -> Iterator[HfHubHTTPError]:
    while error is not None:
        if isinstance(error, HfHubHTTPError):
            yield error
        error = error.__cause__ or error.__context__
