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

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from jaxtyping import Int
from rich.progress import Progress
from torch import Tensor

from mosa.denoising.batch import Denoiser
from mosa.denoising.canvas import Canvas
from mosa.denoising.config import DecoderConfig, check_settings
from mosa.denoising.rows import Hook
from mosa.denoising.trace import DenoisingTrace, Filling
from mosa.families.base import DiffusionLM
from mosa.types import Prompt, UserError


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

    @property
    def num_forward_passes(self) -> int:
        """How often the model was called."""
        return self.trace.num_forward_passes


def sample(
    model: DiffusionLM,
    prompts: Canvas | Tensor | Prompt | Sequence[Prompt],
    config: DecoderConfig | None = None,
    *,
    attention_mask: Tensor | None = None,
    hook: Hook | None = None,
    row_seeds: Sequence[int] | None = None,
    batch_size: int | None = None,
    progress: bool = False,
    **settings: Any,
) -> SampleResult:
    """Generates a response to every prompt, or fills a canvas.

    `prompts` are strings, dialogues, token ids [B, P] with an `attention_mask`, or a `Canvas`.
    `settings` override fields of `config`. `batch_size` bounds how many rows run together (those of
    similar length do); it changes neither the order nor the text. `hook`: see `Hook`. `row_seeds`
    gives each row its own seed in place of the config's. `progress` shows a bar. The model
    runs in evaluation mode and without gradients.

        result = sample(model, ["What is a kiln?"], max_new_tokens=64, steps=32, block_length=32)
        print(result.text[0], result.num_forward_passes)

    Raises UserError for settings that contradict each other, the canvas or the model, and where the
    model's logits choose no token.
    """
    check_settings(settings)
    config = config or DecoderConfig()
    if isinstance(prompts, Canvas):
        width = prompts.response.shape[1]
        if attention_mask is not None or settings.get("max_new_tokens", width) != width:
            raise UserError(
                f"A canvas brings its attention mask and the length of its response ({width}); "
                "leave out attention_mask and max_new_tokens."
            )
        config = replace(config, **settings | {"max_new_tokens": width})
        canvas = prompts.to(model.device)
    else:
        config = replace(config, **settings)
        canvas = Canvas.from_prompts(
            model, prompts, max_new_tokens=config.max_new_tokens, attention_mask=attention_mask
        )
    if batch_size is not None and batch_size < 1:
        raise UserError(f"batch_size must be at least 1, not {batch_size}.")
    denoiser = Denoiser(model, num_slots=batch_size or len(canvas.tokens))
    filling = denoiser.add(canvas, config, seeds=row_seeds, hook=hook)
    with Progress(disable=not progress) as bar, evaluation_mode(model):
        total = filling.num_masked
        task = bar.add_task("denoising", total=total)
        while denoiser.has_work:
            denoiser.step()
            check_broken(model, filling)
            bar.update(task, completed=total - filling.num_masked)
    return result_of(model, filling, config)


def check_broken(model: DiffusionLM, filling: Filling) -> None:
    """UserError where the model's logits chose no token at some step."""
    if filling.broken_step is not None:
        raise model.broken(f" at step {filling.broken_step + 1}")


def result_of(model: DiffusionLM, filling: Filling, config: DecoderConfig) -> SampleResult:
    """The responses on a canvas that is full."""
    canvas = replace(filling.canvas, tokens=filling.trace.tokens)
    text = full_text = None
    if model.tokenizer is not None:
        text = [model.decode(_before_end(ids, model)) for ids in canvas.response.tolist()]
        full_text = [model.decode(ids) for ids in canvas.response]
    return SampleResult(canvas.response, text, full_text, filling.trace, canvas, config)


def _before_end(ids: list[int], model: DiffusionLM) -> list[int]:
    ends = [i for i, token_id in enumerate(ids) if token_id in model.end_token_ids]
    return ids[: ends[0]] if ends else ids


@contextmanager
def evaluation_mode(model: DiffusionLM) -> Iterator[None]:
    """The model without dropout, as it was before when left."""
    was_training = model.network.training
    model.network.eval()
    try:
        yield
    finally:
        model.network.train(was_training)
