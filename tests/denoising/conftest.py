"""What the denoising tests share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import pytest
import torch
from edited_logits import edited_logits

from mosa.denoising import Canvas
from mosa.families import DiffusionLM


@pytest.fixture(scope="session")
def tiny_llada(new_tiny_llada) -> DiffusionLM:
    """In double precision, so that no rounding of a batch decides between tokens or positions."""
    return in_double_precision(new_tiny_llada())


@pytest.fixture(scope="session")
def tiny_dream(new_tiny_dream) -> DiffusionLM:
    """As `tiny_llada`."""
    return in_double_precision(new_tiny_dream())


def in_double_precision(model: DiffusionLM) -> DiffusionLM:
    model.network.double()
    return model


@pytest.fixture
def padded_canvas(tiny_llada) -> Canvas:
    """Three rows with prompts of 6, 3 and 5 tokens, padded on the left, and 8 masks each."""
    ids = torch.randint(0, 250, (3, 6), generator=torch.Generator().manual_seed(5))
    real = torch.arange(6) >= 6 - torch.tensor([6, 3, 5])[:, None]
    return Canvas.from_prompts(tiny_llada, ids, max_new_tokens=8, attention_mask=real)


@pytest.fixture
def counted(tiny_llada, monkeypatch) -> list[int]:
    """The number of rows in each call of tiny_llada's network, as they happen."""
    calls: list[int] = []
    plain = tiny_llada.packed_hidden_states

    def counting(tokens, rotary, lengths, **kwargs):
        calls.append(len(lengths))
        return plain(tokens, rotary, lengths, **kwargs)

    monkeypatch.setattr(tiny_llada, "packed_hidden_states", counting)
    return calls


@pytest.fixture
def favouring() -> Callable[..., AbstractContextManager[DiffusionLM]]:
    """A context in which a model prefers some tokens, by so much.

    With `every`, it does so at every so-manieth column alone and shuns them elsewhere.
    """

    def favour(model: DiffusionLM, token_ids: Sequence[int], amount: float, every: int = 1):
        def raised(logits, columns, known):
            sign = torch.where(columns % every == 0, amount, -amount)
            logits[:, list(token_ids)] += sign[:, None]

        return edited_logits(model, raised)

    return favour
