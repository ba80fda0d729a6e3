"""Tiny models with random weights that every part of the tests shares.

The session-wide ones (`tiny_llada`, `tiny_dream`) must not be changed by a test; one that trains,
adds an adapter or merges builds its own with `new_tiny_llada()` / `new_tiny_dream()`.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable

# Before torch is imported. Processes that share the tests would otherwise fight for the cores, and
# some processors add up in another order on several threads. Processes that tests start inherit it.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import shape_checks  # noqa: F401  # before mosa
from tiny_models import (
    dream_tokenizer,
    llada_tokenizer,
    randomised,
    tiny_dream_config,
    tiny_llada_config,
)

from mosa.families import DiffusionLM, new_model


def pytest_collection_finish() -> None:
    """What was imported stays; a collection of garbage need not look through it each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def new_tiny_llada() -> Callable[..., DiffusionLM]:
    """Builds a fresh tiny LLaDA-layout model; keywords change its config (`seed` its weights)."""

    def build(*, seed: int = 0, **fields) -> DiffusionLM:
        tokenizer = llada_tokenizer()
        config = tiny_llada_config(tokenizer, **fields)
        return randomised(new_model(config, tokenizer, seed=seed), seed)

    return build


@pytest.fixture(scope="session")
def new_tiny_dream() -> Callable[..., DiffusionLM]:
    """Builds a fresh tiny Dream-layout model; keywords change its config (`seed` its weights)."""

    def build(*, seed: int = 0, **fields) -> DiffusionLM:
        tokenizer = dream_tokenizer()
        config = tiny_dream_config(tokenizer, **fields)
        return randomised(new_model(config, tokenizer, seed=seed), seed)

    return build


@pytest.fixture(scope="session")
def tiny_llada(new_tiny_llada) -> DiffusionLM:
    """A tiny LLaDA-layout model with a byte-level tokenizer; not to be changed."""
    return new_tiny_llada()


@pytest.fixture(scope="session")
def tiny_dream(new_tiny_dream) -> DiffusionLM:
    """A tiny Dream-layout model with a byte-level tokenizer; not to be changed."""
    return new_tiny_dream()
