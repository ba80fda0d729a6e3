"""What the runs of one folder share: a decoder, the meaning of models' names, records of sessions.

    OUT/run.sqlite                      attacks
    OUT/over_refusal/SET/run.sqlite     a set of harmless requests
    OUT/utility/run.sqlite              useful tasks

Safety and what it costs are figures of one model decoded in one way, whichever was measured first.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from mosa.denoising import DecoderConfig
from mosa.evaluation.store import FILE, Store
from mosa.provenance import versions
from mosa.types import UserError, as_plain

OVER_REFUSAL = "over_refusal"
"""The folder of the sets of harmless requests."""
UTILITY = "utility"
"""The folder of the useful tasks, and what their records say they are."""
SECONDS_BETWEEN_NOTES = 30.0
"""How often a session's record is brought up to date."""


def is_utility(store: Store) -> bool:
    """Whether a run is about useful tasks."""
    return store.meta("kind") == UTILITY


def runs_beside(out: Path) -> list[Path]:
    """The folders of runs: `out` itself, then its sets of requests and its useful tasks."""
    folders = [out, *sorted((out / OVER_REFUSAL).glob("*")), out / UTILITY]
    return [folder for folder in folders if (folder / FILE).is_file()]


def decoder_beside(out: Path) -> DecoderConfig | None:
    """How the runs in and below `out` are decoded; None where there is none."""
    found = (decoder_of(folder) for folder in runs_beside(out))
    return next((decoder for decoder in found if decoder is not None), None)


def decoder_of(folder: Path) -> DecoderConfig | None:
    """How a run is decoded; None where it has not got so far as to say so."""
    with Store(folder) as store:
        settings, seed = store.meta("decoder"), store.meta("seed")
    return None if settings is None else read_decoder({**settings, "seed": seed or 0})


def read_decoder(settings: Mapping[str, Any]) -> DecoderConfig:
    """The decoder that a record describes."""
    banned = tuple(settings.get("banned_token_ids", ()))  # JSON has lists alone
    return DecoderConfig(**{**settings, "banned_token_ids": banned})


def plain_decoder(decoder: DecoderConfig) -> dict[str, Any]:
    """A decoder as runs keep it: without its seed, of which a run may have several."""
    return as_plain(dataclasses.replace(decoder, seed=0))


def check_decoder(out: Path, decoder: DecoderConfig) -> None:
    """UserError where a run in or below `out` is decoded in another way, seeds apart."""
    wanted = plain_decoder(decoder)
    for folder in runs_beside(out):
        own = decoder_of(folder)
        known = wanted if own is None else plain_decoder(own)
        changed = [f"{k} {known[k]} and not {wanted[k]}" for k in known if known[k] != wanted[k]]
        if changed:
            raise UserError(
                f"{folder} is decoded with {', '.join(changed)}, and the runs of a folder have one "
                "decoder, so that safety and its cost can be compared; leave these settings out, "
                "or name a new folder with --out"
            )


def check_weights(out: Path, name: str, weights: str) -> None:
    """UserError where a run in or below `out` knows other weights by a model's name."""
    for folder in runs_beside(out):
        with Store(folder) as store:
            known = store.models().get(name)
        if known is not None and known["weights"] != weights:
            raise UserError(
                f"{name} has other weights than in {folder} (trained again?); name a new folder "
                "with --out, so that results are not mixed"
            )


# --- sessions -------------------------------------------------------------------------------------


def session_record(config: Any, decoder: DecoderConfig) -> dict[str, Any]:
    """What this process is and does, given the settings of its command (a dataclass)."""
    settings = dataclasses.asdict(config)
    data_dir, device = settings["data_dir"], settings["device"]
    if device in (None, "cuda") and torch.cuda.is_available():
        device = torch.cuda.get_device_name()
    return {
        "started": _now(),
        "settings": settings | {"data_dir": None if data_dir is None else str(data_dir)},
        "decoder": plain_decoder(decoder),
        "versions": versions(),
        "device": device or "cpu",
        "threads": torch.get_num_threads(),
    }


@contextmanager
def session(
    store: Store, record: Mapping[str, Any], tallies: Mapping[str, Any]
) -> Iterator[Callable[[], None]]:
    """Keep the record of a session, with its end and what each model was asked (a dataclass).

    Gives what is to be called now and then, so that the record says how long the session has been
    running in case it is killed.
    """
    number = store.begin_session(record)
    begin = last = time.perf_counter()

    def note() -> None:
        nonlocal last
        now = time.perf_counter()
        if now > last + SECONDS_BETWEEN_NOTES:
            last = now
            store.update_session(number, {**record, "seconds": round(now - begin, 2)})

    try:
        yield note
    finally:
        ended = {
            "ended": _now(),
            "seconds": round(time.perf_counter() - begin, 2),
            "models": {name: dataclasses.asdict(tally) for name, tally in tallies.items()},
        }
        store.update_session(number, {**record, **ended})
        store.commit()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
