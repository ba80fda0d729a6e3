"""A denoising played in the terminal: masks as dots, words where they are committed, end tokens as
blocks."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator

from rich.console import Console
from rich.live import Live
from rich.text import Text

from mosa.denoising import DenoisingTrace
from mosa.families import DiffusionLM
from mosa.terminal import new_console, printable
from mosa.types import Response

MASK = "·"
END = "■"
SECONDS_PER_STEP = 0.06
STEP_COLORS = ("#3b528b", "#21918c", "#27ad81", "#5ec962", "#aadc32", "#fde725")
"""From the first steps of a denoising to the last."""


def play(
    model: DiffusionLM,
    trace: DenoisingTrace,
    *,
    row: int = 0,
    console: Console | None = None,
    seconds_per_step: float = SECONDS_PER_STEP,
) -> None:
    """Replay one row of a generation, step by step.

    In a terminal the text is redrawn in place, tokens of the current step highlighted; elsewhere
    (a file, a pipe) every step is one line, tokens of that step in [brackets].
    """
    console = console or new_console()
    if not console.is_terminal:
        for step, pieces in _frames(model, trace, row):
            words = "".join(_in_brackets(word) if new else word for word, new in pieces)
            print(f"step {step + 1}: {words.strip()}", file=console.file)
        return
    with Live(console=console, auto_refresh=False) as live:
        for step, pieces in _frames(model, trace, row):
            text = Text()
            for word, new in pieces:
                text.append(word, style="bold black on bright_cyan" if new else "")
            text.append(f"\nstep {step + 1}", style="dim")
            live.update(text, refresh=True)
            time.sleep(seconds_per_step)
        live.update(Text("".join(word for word, _ in pieces)), refresh=True)


def picture(model: DiffusionLM, response: Response) -> Text:
    """The words of a response up to its first end token, each in the color of the time at which it
    was written, from the first step to the last."""
    space, text = _space_between_words(model), Text()
    last = max(1, *response.commit_step)
    written = zip(response.tokens, response.commit_step, strict=True)
    for word, step in itertools.islice(written, response.num_read):
        color = STEP_COLORS[max(0, step) * (len(STEP_COLORS) - 1) // last]
        text.append(space + printable(word), color)
    return text


def _frames(
    model: DiffusionLM, trace: DenoisingTrace, row: int
) -> Iterator[tuple[int, list[tuple[str, bool]]]]:
    """Each step that changed the row, with the response's words and whether each is new."""
    start, space = trace.response_start, _space_between_words(model)
    before = trace.replay(until_step=-1)[row, start:].tolist()
    last_step = int(trace.commit_step[row].max())
    for step in range(last_step + 1):
        now = trace.replay(until_step=step)[row, start:].tolist()
        if now == before:
            continue
        yield (
            step,
            [
                (_word(model, token, space), token != old and token != model.mask_token_id)
                for token, old in zip(now, before, strict=True)
            ],
        )
        before = now


def _word(model: DiffusionLM, token: int, space: str) -> str:
    if token == model.mask_token_id:
        return space + MASK
    if token in model.end_token_ids:
        return space + END
    return space + _text(model, [token])


def _in_brackets(word: str) -> str:
    """The word in brackets, its blanks left outside."""
    bare = word.strip()
    return word.replace(bare, f"[{bare}]") if bare else f"[{word}]"


def _space_between_words(model: DiffusionLM) -> str:
    """What a tokenizer of whole words puts between two of them; nothing where a token carries its
    own blank, as in a byte-level BPE."""
    token = next(i for i in range(model.vocab_size) if _text(model, [i]).isalpha())
    return " " if " " in _text(model, [token, token]) else ""


def _text(model: DiffusionLM, ids: list[int]) -> str:
    assert model.tokenizer is not None, "a denoising is played in words"
    return printable(str(model.tokenizer.decode(ids)))
