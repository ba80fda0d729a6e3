"""The interface of the loop that fills canvases (batch.py): prompts in, responses and trace out.

Implements LLaDA's sampling (arXiv:2502.09992, Section 2.4; `generate.py`) and Dream's
(arXiv:2508.15487; `_sample` in `generation_utils.py`), with confidence thresholds as in Fast-dLLM
(arXiv:2505.22618). At temperature 0 in float32 the tokens are those of the authors' code. How we
differ, and why (docs/denoising.md lists every point, and what was measured):

1. The mask token is never generated, and commits are counted for each row separately and over all
   the positions it can fill, so nothing stays masked.
2. A token is drawn with a single uniform number made from seed, row, position and step, instead of
   Gumbel noise for the whole vocabulary. A row's text depends on no other row and on no padding.
3. The model is asked for the logits of the active block's masks only, and a step in which a row
   commits nothing is skipped; the outcome is the same.
4. Ties of confidence go to the leftmost position; the references leave them to chance.

# B rows of the canvas, L canvas length, R response length
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from jaxtyping import Int
from torch import Tensor

from mosa.denoising.canvas import Canvas, each_prompt
from mosa.denoising.config import DecoderConfig, check_settings, testbed_decoder
from mosa.denoising.published import over_published
from mosa.denoising.renoising import denoiser_of
from mosa.denoising.rows import Hook
from mosa.denoising.schedule import blocks_of
from mosa.denoising.trace import DenoisingTrace, Filling
from mosa.families.base import DiffusionLM
from mosa.player import SampleResponse, display, player_html
from mosa.terminal import LiveBar
from mosa.types import Message, Prompt, Replaced, UserError, dialogue
from mosa.world import World

MOST_LISTED = 8
"""Unknown words that a warning lists."""


@dataclass(frozen=True)
class SampleResult:
    """The responses of one call, in the order of its prompts."""

    tokens: Int[Tensor, "B R"]
    """The response ids of the whole canvas, what follows the first end token included."""
    text: list[str] | None
    """Each response up to its first end token; None for a model without a tokenizer."""
    full_text: list[str] | None
    """Each response whole: what follows the first end token is part of it."""
    trace: DenoisingTrace
    canvas: Canvas
    """The filled canvas."""
    config: DecoderConfig
    """The settings as used."""
    words: list[list[str]] | None
    """Each response's tokens in words; None for a model without a tokenizer."""
    end_positions: list[list[int]]
    """Of each response: the positions (from 0) that hold an end token."""
    block_starts: list[list[int]]
    """Of each response: the positions (from 0) at which a block begins."""
    replaced: list[list[Replaced]]
    """Of each response: what stood there before, and was edited or masked again."""
    model: str
    """Model and adapter."""
    is_invented: bool
    """Whether the model knows the testbed's invented world, in which no text is harmful."""
    turns: list[list[Message]] | None = None
    """The dialogues that were answered; None where ids or a canvas were given."""

    @property
    def num_forward_passes(self) -> int:
        """How often the model was called."""
        return self.trace.num_forward_passes

    def __repr__(self) -> str:
        """What it holds, in a line; the texts too, where they are of the testbed."""
        num_rows, length = self.tokens.shape
        told = (
            f"<SampleResult: {num_rows} {'response' if num_rows == 1 else 'responses'} of {length} "
            f"tokens, {self.num_forward_passes} forward passes, by {self.model}>"
        )
        if not self.is_invented or self.text is None:
            return told
        return "\n".join([told, *(f"[{row}] {text}" for row, text in enumerate(self.text))])

    def responses(self, *, redact: bool | None = None) -> list[SampleResponse]:
        """The responses as they are played; `redact` unset hides the words of prompts and
        responses unless they are of the testbed."""
        is_hidden = not self.is_invented if redact is None else redact
        steps = self.trace.commit_step[:, self.trace.response_start :].tolist()
        shown = []
        for row, of_row in enumerate(steps):
            turns = None if self.turns is None else [(t.role, t.content) for t in self.turns[row]]
            words = None if self.words is None else tuple(self.words[row])
            shown.append(
                SampleResponse(
                    commit_step=tuple(of_row),
                    end_positions=tuple(self.end_positions[row]),
                    tokens=None if is_hidden else words,
                    prompt=None if is_hidden or turns is None else tuple(turns),
                    block_starts=tuple(self.block_starts[row]),
                    replaced=tuple(
                        (r.position, r.written, r.until, None if is_hidden else r.token)
                        for r in self.replaced[row]
                    ),
                )
            )
        return shown

    def _repr_html_(self) -> str:
        return self._player(None)

    def _player(self, redact: bool | None) -> str:
        shown = self.responses(redact=redact)
        is_hidden = any(response.tokens is None for response in shown)
        about = f"{self.model}, {self.num_forward_passes} forward passes."
        if is_hidden and self.words is not None:
            about += " Words are hidden; .show(redact=False) shows them."
        return player_html(shown, about)

    def show(self, *, redact: bool | None = None) -> None:
        """Play the denoising in a notebook; elsewhere print the responses.

        `redact` unset hides the words of prompts and responses unless they are of the testbed.
        """
        is_hidden = not self.is_invented if redact is None else redact
        texts = [] if is_hidden or self.text is None else self.text
        display(self._player(redact), "\n".join(texts) or repr(self))


def default_config(model: DiffusionLM, settings: Mapping[str, Any] | None = None) -> DecoderConfig:
    """How a model decodes but for some settings: one of the testbed as in its own figures, one of a
    family with a decoder of its own by that."""
    settings = settings or {}
    if model.family.decoder is not None:
        length = DecoderConfig().max_new_tokens
        return DecoderConfig(**over_published(model.family.decoder, settings, length))
    usual = DecoderConfig() if model.world_seed is None else testbed_decoder(model.attention)
    return replace(usual, **settings)


class UnknownWords(UserWarning):
    """A prompt has words that the model's language lacks."""


def sample(
    model: DiffusionLM,
    prompts: Canvas | Tensor | Prompt | Sequence[Prompt],
    config: DecoderConfig | str | None = None,
    *,
    system: str | None = None,
    attention_mask: Tensor | None = None,
    hook: Hook | None = None,
    row_seeds: Sequence[int] | None = None,
    batch_size: int | None = None,
    progress: bool = False,
    **settings: Any,
) -> SampleResult:
    """Generates a response to every prompt, or fills a canvas.

    `prompts` are strings, dialogues (lists of `Message` or of `{"role": ..., "content": ...}`),
    token ids [B, P] with an `attention_mask`, or a `Canvas`; `system` is put before each dialogue.
    `settings` override fields of `config`, which may be the name of a published decoder
    (`PUBLISHED`; unset: `default_config`). `batch_size` bounds how many
    rows run together (those of similar length do); it changes neither the order nor the text.
    `hook`: see `Hook`. `row_seeds` gives each row its own seed in place of the config's. `progress`
    shows a bar. The model runs in evaluation mode and without gradients.

        result = sample(model, ["What is a kiln?"], max_new_tokens=64, steps=32, block_length=32)
        print(result.text[0], result.num_forward_passes)

    Raises UserError for settings that contradict each other, the canvas or the model, and where the
    model's logits choose no token. Warns (`UnknownWords`) where a prompt has words that are not in
    the language of a testbed model.
    """
    check_settings(settings)
    if isinstance(config, str):
        length = default_config(model).max_new_tokens
        config = DecoderConfig(**over_published(config, settings, length))
    turns = None
    if isinstance(prompts, Canvas):
        if system is not None:
            raise UserError("A canvas brings its prompt; put the system turn into it.")
        width = prompts.response.shape[1]
        if attention_mask is not None or settings.get("max_new_tokens", width) != width:
            raise UserError(
                f"A canvas brings its attention mask and the length of its response ({width}); "
                "leave out attention_mask and max_new_tokens."
            )
        settings["max_new_tokens"] = width
    config = default_config(model, settings) if config is None else replace(config, **settings)
    if isinstance(prompts, Canvas):
        canvas = prompts.to(model.device)
    else:
        canvas = Canvas.from_prompts(
            model,
            prompts,
            max_new_tokens=config.max_new_tokens,
            attention_mask=attention_mask,
            system=system,
        )
        if not isinstance(prompts, Tensor):
            turns = [dialogue(prompt, system) for prompt in each_prompt(prompts)]
            warn_of_unknown_words(model, turns)
    if batch_size is not None and batch_size < 1:
        raise UserError(f"batch_size must be at least 1, not {batch_size}.")
    denoiser = denoiser_of(model, num_slots=batch_size or len(canvas.tokens))
    filling = denoiser.add(canvas, config, seeds=row_seeds, hook=hook)
    with LiveBar(is_shown=progress, vanishes=True) as bar, evaluation_mode(model):
        total = filling.num_masked
        while denoiser.has_work:
            bar.update("tokens", total - filling.num_masked, total)
            denoiser.step()
            check_usable(model, filling)
    return replace(result_of(model, filling, config), turns=turns)


def warn_of_unknown_words(model: DiffusionLM, prompts: Sequence[Prompt]) -> None:
    """Warn once, of the first prompt with words that a model of the testbed does not know."""
    if model.world_seed is None or model.tokenizer is None:
        return
    vocabulary = model.tokenizer.get_vocab()
    for prompt in prompts:
        words = [word for turn in dialogue(prompt) for word in turn.content.split()]
        unknown = [word for word in words if word not in vocabulary]
        if unknown:
            known = World(model.world_seed).objects(restricted=False, split="heldout")
            listed = ", ".join(dict.fromkeys(unknown[:MOST_LISTED]))
            more = " ..." if len(unknown) > MOST_LISTED else ""
            warnings.warn(
                f"{len(unknown)} of {len(words)} words {'is' if len(unknown) == 1 else 'are'} not "
                f"in this model's language: {listed}{more}; try "
                f'"{World(model.world_seed).request(known[0])}"',
                UnknownWords,
                stacklevel=3,  # the caller of `sample`
            )
            return


def check_usable(model: DiffusionLM, filling: Filling) -> None:
    """UserError where the model's logits chose no token at some step."""
    if filling.unusable_step is not None:
        raise model.unusable(f" at step {filling.unusable_step + 1}")


def result_of(model: DiffusionLM, filling: Filling, config: DecoderConfig) -> SampleResult:
    """The responses on a canvas that is full."""
    canvas = replace(filling.canvas, tokens=filling.trace.tokens)
    rows = canvas.response.tolist()
    ends = [[i for i, id in enumerate(ids) if id in model.end_token_ids] for ids in rows]
    text = full_text = words = None

    @functools.cache
    def word_of(token_id: int) -> str:
        assert model.tokenizer is not None
        return str(model.tokenizer.decode([token_id]))

    if model.tokenizer is not None:
        cut = [ids[: at[0]] if at else ids for ids, at in zip(rows, ends, strict=True)]
        text = [model.decode(ids) for ids in cut]
        full_text = [model.decode(ids) for ids in rows]
        words = [[word_of(id) for id in ids] for ids in rows]
    block_BR = blocks_of(canvas, config, model.attention)[:, canvas.response_start :]
    is_begin_BR = block_BR.diff(dim=1, prepend=block_BR[:, :1] - 1) > 0
    return SampleResult(
        canvas.response,
        text,
        full_text,
        filling.trace,
        canvas,
        config,
        words,
        ends,
        [row.nonzero()[:, 0].tolist() for row in is_begin_BR.cpu()],
        [
            [
                Replaced(i, str(id) if words is None else word_of(id), *steps)
                for i, id, *steps in filling.trace.undone(row)
            ]
            for row in range(len(rows))
        ],
        model.label,
        model.world_seed is not None,
    )


@contextmanager
def evaluation_mode(model: DiffusionLM) -> Iterator[None]:
    """The model without dropout, as it was before when left."""
    was_training = model.network.training
    model.network.eval()
    try:
        yield
    finally:
        model.network.train(was_training)
