"""Recordings of the published decoders, and the tiny networks that they were made with.

`recordings/README.md` says how they were made. The networks are rebuilt here from numbers that
every processor draws alike, so that the tokens can be compared without the published code.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from other_networks import new_other
from tiny_models import LLADA_MOE_LAYOUT
from torch import Tensor

from mosa.families import DiffusionLM, new_model

FOLDER = Path(__file__).parent / "recordings"
DECODERS = ("llada", "mdlm", "bd3lm", "sdar", "llada2.0", "llada2.1")
MASK, END = 383, 382
CHECKED_IDS = (0, 100, 200, 300)
"""The ids whose logits behind the first prompt are recorded."""


@dataclass(frozen=True)
class Recording:
    """What a published decoder made of some prompts."""

    name: str
    decoder: str
    """One of `DECODERS`."""
    network: str
    """One of `other_networks.NETWORKS`, or `llada_moe`; see `new_recorded`."""
    weight_seed: int
    echo: float
    """How strongly a written token predicts itself; see `fill`."""
    settings: dict[str, Any]
    """Under the names of the published code."""
    prompts: list[list[int]]
    responses: list[list[int]]
    """What the canvas holds behind each prompt in the end, to its last column, not cut at an end
    token or at the length that was asked for; `MASK` where nothing was written."""
    forwards: int
    """Calls of the network that filled or edited something."""
    stores: int
    """Calls that only stored keys and values."""
    block_forwards: list[int]
    """The forwards of each block that was decoded."""
    edits: int
    """How often a written token was replaced."""
    unsettled_blocks: int
    """Blocks that ended by `max_post_steps`, and not because nothing changed."""
    gaps: dict[str, float]
    """The closest calls that decided something: between the two likeliest tokens, in the order of
    positions, at a threshold, and between experts."""
    logits: list[float]
    """Of `CHECKED_IDS` at the last position of the first prompt alone, in full attention."""


def read(path: Path) -> list[Recording]:
    """The recordings of one file."""
    return [Recording(**record) for record in json.loads(path.read_text())]


def recordings(*decoders: str) -> list[Recording]:
    """All recordings of some decoders."""
    return [one for decoder in decoders for one in read(FOLDER / f"{decoder}.json")]


def new_recorded(network: str, **attention: Any) -> DiffusionLM:
    """A network of `other_networks`, or that of the family LLaDA-MoE, to be filled."""
    if network == "llada_moe":
        return new_model({**LLADA_MOE_LAYOUT, "mask_token_id": MASK, "eos_token_id": END}, seed=0)
    return new_other(network, **attention)


def fill(model: DiffusionLM, seed: int, echo: float) -> DiffusionLM:
    """The model with weights from `numpy.random.default_rng(seed)`.

    Standard normal numbers in float64, for one tensor of the state dict after another in the order
    of their sorted names, are scaled by 0.25, in the output layer by 1, and in what corrects the
    choice of experts by 0.1. Norms are 1 + 0.1 of them, those of queries and keys twice that. With
    an `echo`, that many times the embeddings' numbers are added to them and to the output layer, so
    that a written token tends to predict itself. In the end the mask token's row of the output
    layer is 0, so that the mask is never the likeliest.
    """
    rng = np.random.default_rng(seed)
    state = model.network.state_dict()
    noise = {name: rng.standard_normal(tuple(state[name].shape)) for name in sorted(state)}
    weights = {name: _scaled(name, noise[name]) for name in noise}
    embedded = noise["model.embed_tokens.weight"]
    weights["model.embed_tokens.weight"] += echo * embedded
    weights["lm_head.weight"] += echo * embedded
    weights["lm_head.weight"][MASK] = 0
    for name, weight in weights.items():
        state[name].copy_(torch.from_numpy(weight))
    return model


def _scaled(name: str, noise: np.ndarray) -> np.ndarray:
    if name.endswith(("q_norm.weight", "k_norm.weight")):
        return 2 * (1 + 0.1 * noise)
    if name.endswith("norm.weight"):
        return 1 + 0.1 * noise
    if name.endswith("e_score_correction_bias"):
        return 0.1 * noise
    return noise.copy() if name == "lm_head.weight" else 0.25 * noise


@cache
def filled(network: str, seed: int, echo: float) -> DiffusionLM:
    """A recorded network with the weights of `fill`, in full attention."""
    return fill(new_recorded(network), seed, echo)


def full_logits(model: DiffusionLM, tokens: list[int]) -> Tensor:
    """The logits [L, V] of one row in full attention, by the network itself."""
    row = torch.tensor([tokens])
    mask = torch.ones(1, 1, len(tokens), len(tokens), dtype=torch.bool)
    with torch.no_grad():
        return model.network(input_ids=row, attention_mask=mask, use_cache=False).logits[0]
