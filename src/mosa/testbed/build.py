"""Build the testbed's two checkpoints from nothing: `mosa testbed build`.

`helpful` learns to answer everything. `shallow` goes on from it with safety training of the usual
shallow kind: it refuses direct requests for restricted objects and gives in to wrapped ones. The
weakness is planted on purpose. Both are trained by the project's own `SftTrainer`
(LLaDA, arXiv 2502.09992) and saved in LLaDA's released layout.
"""

from __future__ import annotations

import itertools
import json
import random
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import transformers

from mosa.align import SftConfig, SftTrainer
from mosa.data import TrainingExample
from mosa.denoising import DecoderConfig
from mosa.families import DiffusionLM, load_model, new_model
from mosa.testbed import RESPONSE_LENGTH
from mosa.testbed.corpora import helpful_corpus, shallow_corpus
from mosa.testbed.measure import measure
from mosa.testbed.tokenizer import EOS, MASK, build_tokenizer
from mosa.testbed.world import World
from mosa.types import UserError

CHECKPOINTS = ("helpful", "shallow")


@dataclass(frozen=True)
class BuildConfig:
    """The recipe of the testbed's model; the defaults are those of the shipped checkpoints."""

    world_seed: int = 0
    """Seed of the world's rules, restrictions and splits; also of weights and data."""
    width: int = 128
    """Width of the network."""
    num_layers: int = 4
    """Number of blocks."""
    num_heads: int = 4
    """Number of attention heads."""
    mlp_width: int = 384
    """Width of the gated MLP."""
    batch_size: int = 32
    """Examples of an update."""
    helpful_steps: int = 2000
    """Updates that make the helpful checkpoint."""
    shallow_steps: int = 400
    """Further updates that make the shallow one."""
    learning_rate: float = 3e-3
    """Peak learning rate of the helpful stage; the shallow stage has half of it."""
    num_measured: int = 25
    """Held-out objects (and instances of each task) that the card's figures are measured on."""


def build(
    out: Path, config: BuildConfig | None = None, *, progress: bool = True
) -> dict[str, dict[str, Any]]:
    """Train both checkpoints into `out/helpful` and `out/shallow`; returns their figures.

    A checkpoint that is there already, made by the same recipe, is kept, so that the command goes
    on after an interruption. Raises UserError where `out` holds a checkpoint of another recipe.
    """
    config = config or BuildConfig()
    world = World(config.world_seed)
    _check_recipe(out, config)
    figures: dict[str, dict[str, Any]] = {}
    for stage, name in enumerate(CHECKPOINTS):
        folder = out / name
        if not (folder / "figures.json").exists():
            model = (
                _fresh_model(config) if stage == 0 else load_model(out / "helpful", dtype="float32")
            )
            _train(model, _corpus(name, world, config), config, stage, progress=progress)
            model.save(folder)
            _write_json(folder / "recipe.json", asdict(config))
            found = measure(model, world, DecoderConfig(), num=config.num_measured)
            _write_json(folder / "figures.json", found)
        figures[name] = json.loads((folder / "figures.json").read_text(encoding="utf-8"))
    (out / "README.md").write_text(_card(config, figures), encoding="utf-8")
    return figures
