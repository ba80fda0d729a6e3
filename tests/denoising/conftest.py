"""What the denoising tests share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

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
def favouring() -> Callable[..., object]:
    """A context in which a model's logits for some tokens are raised by some amount."""

    @contextmanager
    def favour(model: DiffusionLM, bonus: dict[int, float]):
        plain = model.logits

        def raised(*args, **kwargs):
            logits = plain(*args, **kwargs)
            for token_id, amount in bonus.items():
                logits[..., token_id] += amount
            return logits

        model.logits = raised  # type: ignore[method-assign]
        try:
            yield model
        finally:
            del model.logits

    return favour
