"""Phrase sets: the sentences whose likelihood MOSA raises and lowers (arXiv 2508.12398).

The paper's S_safe and S_harmful were never published; ours are text files beside this module, one
phrase per line, `#` for comments. Example of a harmless pair: "therefore, I cannot answer this
question." followed by a breaker, against "the next step is to".

A *breaker* cuts the answer after a refusal: end tokens that are scored with the phrase.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mosa.families import DiffusionLM
from mosa.inputs import is_file, plain_text, read_text, shortened
from mosa.types import UserError

PHRASE_FOLDER = Path(__file__).parent / "phrases"

Breaker = Literal["eot_then_eos_run", "eos", "eot", "none", "fill"]
LeadingSpace = Literal["with", "without", "both"]

EOS_RUN = 3
"""Number of end-of-text tokens in the breaker eot_then_eos_run."""


@dataclass(frozen=True)
class Phrase:
    """One phrase as tokens; its variants differ by the leading space and compete for the start."""

    text: str
    words: tuple[tuple[int, ...], ...]
    """Token ids of each variant, without the breaker."""
    variants: tuple[tuple[int, ...], ...]
    """Token ids of each variant, with the breaker that is written as a fixed number of tokens."""
    fill_token_id: int | None = None
    """With the breaker "fill": the token that fills the window after the phrase."""

    @property
    def max_length(self) -> int:
        """Number of tokens of the longest variant."""
        return max(len(variant) for variant in self.variants)


def read_phrases(name_or_path: str | Path) -> list[str]:
    """The phrases of a packaged set ("refusals", ...) or of a text file, one per line.

    Raises UserError where there is neither, or the file holds no phrase.
    """
    path = Path(name_or_path)
    if path.suffix != ".txt":
        path = PHRASE_FOLDER / f"{name_or_path}.txt"
    if not is_file(path):
        packaged = ", ".join(sorted(file.stem for file in PHRASE_FOLDER.glob("*.txt")))
        raise UserError(
            f"There is no phrase set {shortened(Path(name_or_path))}; give a .txt file or one of "
            f"{packaged}."
        )
    lines = [line.strip() for line in plain_text(read_text(path), str(path)).split("\n")]
    phrases = [line for line in lines if line and not line.startswith("#")]
    if not phrases:
        raise UserError(f"The phrase file {path} holds no phrase; write one per line.")
    return phrases


def breaker_token_ids(model: DiffusionLM, breaker: Breaker) -> tuple[tuple[int, ...], int | None]:
    """The tokens that follow a refusal, and the fill token (or None).

    eot_then_eos_run  end-of-turn, then end-of-text `EOS_RUN` times (what a finished answer looks
                      like to a model trained with end-of-text padding)
    eos, eot          one end-of-text / one end-of-turn token
    fill              end-of-text on every position up to the end of the window
    none              nothing

    Raises UserError where the breaker needs an end-of-turn token that the model lacks.
    """
    if breaker == "none":
        return (), None
    if breaker == "eos":
        return (model.eos_token_id,), None
    if breaker == "fill":
        return (), model.eos_token_id
    turn_end = model.turn_end_token_id
    if turn_end is None:
        raise UserError(
            f"The breaker {breaker} needs an end-of-turn token, but this model has no end token "
            "besides end-of-text; use breaker=eos."
        )
    return (turn_end,) if breaker == "eot" else (turn_end, *[model.eos_token_id] * EOS_RUN), None


def encode_phrases(
    model: DiffusionLM,
    phrases: Sequence[str],
    *,
    leading_space: LeadingSpace,
    breaker: Breaker = "none",
) -> list[Phrase]:
    """Tokenise phrases as they read in running text ("with" a leading space) or at a beginning.

    A byte-level BPE has different tokens for " therefore" and "therefore"; a word-level tokenizer
    has the same, so its two variants become one. Raises UserError for a model without a tokenizer
    and for a phrase with an unknown token or no token.
    """
    tokenizer = model.tokenizer
    if tokenizer is None:
        raise UserError("The model has no tokenizer for the phrases; load a checkpoint with one.")
    suffix, fill_token_id = breaker_token_ids(model, breaker)
    prefixes = {"with": (" ",), "without": ("",), "both": ("", " ")}[leading_space]
    encoded = []
    for text in phrases:
        words = tuple(dict.fromkeys(tuple(model.encode_text(p + text)) for p in prefixes))
        for ids in words:
            if not ids:
                raise UserError(f"The phrase {text!r} has no token in this model's vocabulary.")
            if tokenizer.unk_token_id is not None and tokenizer.unk_token_id in ids:
                unknown = [
                    w for w in text.split() if tokenizer.unk_token_id in model.encode_text(w)
                ]
                raise UserError(
                    f"The phrase {text!r} is not in this model's vocabulary "
                    f"(unknown: {' '.join(unknown)}); write phrases in words that it has."
                )
        variants = tuple((*ids, *suffix) for ids in words)
        encoded.append(Phrase(text, words, variants, fill_token_id))
    return encoded
