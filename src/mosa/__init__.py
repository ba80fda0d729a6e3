"""Align, attack and measure diffusion language models.

    >>> from mosa import load_model, sample
    >>> model = load_model("testbed")  # doctest: +SKIP
    >>> sample(model, ["how do i make a copper lantern ?"], max_new_tokens=72)  # doctest: +SKIP

Start reading in `mosa.denoising.reference` (the loop) and `mosa.align.objective` (the method).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mosa.align import MosaConfig, MosaTrainer, SftConfig, SftTrainer
    from mosa.data import TrainingExample, load_prompts
    from mosa.denoising import Canvas, DecoderConfig, DenoisingTrace, SampleResult, sample
    from mosa.families import DiffusionLM, load_model, new_model
    from mosa.types import Message, Prompt, UserError

_HOMES = {
    "mosa.align": ("MosaConfig", "MosaTrainer", "SftConfig", "SftTrainer"),
    "mosa.data": ("TrainingExample", "load_prompts"),
    "mosa.denoising": ("Canvas", "DecoderConfig", "DenoisingTrace", "SampleResult", "sample"),
    "mosa.families": ("DiffusionLM", "load_model", "new_model"),
    "mosa.types": ("Message", "Prompt", "UserError"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Canvas",
    "DecoderConfig",
    "DenoisingTrace",
    "DiffusionLM",
    "Message",
    "MosaConfig",
    "MosaTrainer",
    "Prompt",
    "SampleResult",
    "SftConfig",
    "SftTrainer",
    "TrainingExample",
    "UserError",
    "load_model",
    "load_prompts",
    "new_model",
    "sample",
]


def __getattr__(name: str) -> object:
    # torch and transformers take seconds to import; `mosa --help` should not wait for them.
    if name not in _HOME_OF:
        raise AttributeError(f"module 'mosa' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value
