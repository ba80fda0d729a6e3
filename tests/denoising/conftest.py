"""What the denoising tests share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import pytest
import torch

from mosa.denoising import Canvas
from mosa.families import DiffusionLM


@pytest.fixture
def padded_canvas(tiny_llada) -> Canvas:
    """Three rows with prompts of 6, 3 and 5 tokens, padded on the left, and 8 masks each."""
    ids = torch.randint(0, 250, (3, 6), generator=torch.Generator().manual_seed(5))
    real = torch.arange(6) >= 6 - torch.tensor([6, 3, 5])[:, None]
    return Canvas.from_prompts(tiny_llada, ids, max_new_tokens=8, attention_mask=real)


@pytest.fixture
def counted(tiny_llada) -> Iterator[list[int]]:
    """The number of rows in each call of tiny_llada's network, as they happen."""
    calls = []
    handle = tiny_llada.network.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    yield calls
    handle.remove()


@pytest.fixture
def favouring() -> Callable[..., AbstractContextManager[DiffusionLM]]:
    """A context in which a model prefers some tokens, by so much.

    With `every`, it does so at every so-manieth column alone and shuns them elsewhere.
    """

    @contextmanager
    def favour(model: DiffusionLM, token_ids: Sequence[int], amount: float, every: int = 1):
        plain = model.logits

        def raised(input_ids, attention_mask, positions):
            logits = plain(input_ids, attention_mask, positions)
            sign = torch.where(positions % every == 0, amount, -amount)
            logits[..., list(token_ids)] += sign[:, None]
            return logits

        model.logits = raised  # type: ignore[method-assign]
        try:
            yield model
        finally:
            del model.logits

    return favour
