"""The decoders under which LLaDA's authors publish their figures of useful tasks.

A subject's decoder is the same for all that it is asked, so that models compare; published figures
are each made under a decoder of their own. A set such as `gsm8k:authors` is the task under that
decoder, beside `gsm8k` under the subject's. The table is authors_decoders.csv, a line for each
decoder and task, with the published figure: repository ML-GSAI/LLaDA at commit b7e6c35, EVAL.md and
opencompass/examples (arXiv 2502.09992, appendix B.4; LLaDA 1.5: arXiv 2505.19223).
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from mosa.denoising import DecoderConfig
from mosa.types import UserError, as_plain

FILE = Path(__file__).with_suffix(".csv")


@dataclass(frozen=True)
class AuthorsDecoder:
    """One line of the table."""

    decoder: str
    """The name of a decoder, the same for several tasks."""
    task: str
    max_new_tokens: int
    steps: int
    block_length: int
    end_tokens: Literal["allow", "forbid", "forbid_eos", "suppress"]
    """`logits_eos_inf` is `forbid_eos` here, `confidence_eos_eot_inf` is `suppress`."""
    figure: float | None
    """What the authors report, in percent."""
    of: str
    """The model that has this figure."""
    source: str

    @property
    def settings(self) -> dict[str, Any]:
        """Every setting of the decoder but for what belongs to a subject (its rules and banned
        tokens) or a run (its seed)."""
        config = DecoderConfig(
            max_new_tokens=self.max_new_tokens,
            steps=self.steps,
            block_length=self.block_length,
            end_tokens=self.end_tokens,
        )
        plain = as_plain(config)
        return {n: plain[n] for n in plain if n not in ("rules", "banned_token_ids", "seed")}


def _read() -> dict[tuple[str, str], AuthorsDecoder]:
    with FILE.open(encoding="utf-8", newline="") as file:
        rows = [{**row, "figure": row["figure"] or None} for row in csv.DictReader(file)]
    # Not strict: a table of text has its numbers as text.
    found = msgspec.convert(rows, list[AuthorsDecoder], strict=False)
    return {(one.decoder, one.task): one for one in found}


AUTHORS_DECODERS = _read()
"""By the names of decoder and task."""
DECODER_NAMES = tuple(dict.fromkeys(name for name, _ in AUTHORS_DECODERS))


def tasks_of(decoder: str) -> tuple[str, ...]:
    """The tasks that have a decoder of this name; UserError where there is none."""
    if decoder not in DECODER_NAMES:
        raise UserError(
            f"decoder_of_task={decoder} is not known; choose from {', '.join(DECODER_NAMES)}"
        )
    return tuple(task for name, task in AUTHORS_DECODERS if name == decoder)


def task_and_decoder(name: str) -> tuple[str, AuthorsDecoder | None]:
    """The task that a set's name stands for, and its own decoder, if it names one; UserError for a
    decoder that the task does not have."""
    task, colon, decoder = name.partition(":")
    if not colon or task not in {task for _, task in AUTHORS_DECODERS}:
        return name, None
    if (decoder, task) not in AUTHORS_DECODERS:
        known = [f"{task}:{one}" for one in DECODER_NAMES if (one, task) in AUTHORS_DECODERS]
        raise UserError(f"there is no set {name}; choose from {task}, {', '.join(known)}")
    return task, AUTHORS_DECODERS[decoder, task]
