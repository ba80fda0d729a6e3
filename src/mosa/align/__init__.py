"""Alignment: MOSA, the initial-token baseline, supervised refusals, and preference optimisation.

Start reading in reference.py (one training step of the paper in plain tensors), then objective.py
(its mathematics) and mosa.py (the step as it is trained). `METHODS` is the table of methods.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from mosa.align.method import METHODS, Method

if TYPE_CHECKING:
    from mosa.align.config import AlignConfig, load_config, presets
    from mosa.align.mosa import MosaTrainer
    from mosa.align.mosa_config import MosaConfig
    from mosa.align.phrases import read_phrases
    from mosa.align.run import AlignResult, add_adapter, align, merge
    from mosa.align.sft import SftConfig, SftTrainer
    from mosa.align.trainer import DiffusionTrainer, TrainingData
    from mosa.align.vrpo import VrpoConfig, VrpoTrainer

_HOMES = {
    "mosa.align.config": ("AlignConfig", "load_config", "presets"),
    "mosa.align.mosa": ("MosaTrainer",),
    "mosa.align.mosa_config": ("MosaConfig",),
    "mosa.align.phrases": ("read_phrases",),
    "mosa.align.run": ("AlignResult", "add_adapter", "align", "merge"),
    "mosa.align.sft": ("SftConfig", "SftTrainer"),
    "mosa.align.trainer": ("DiffusionTrainer", "TrainingData"),
    "mosa.align.vrpo": ("VrpoConfig", "VrpoTrainer"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "METHODS",
    "AlignConfig",
    "AlignResult",
    "DiffusionTrainer",
    "Method",
    "MosaConfig",
    "MosaTrainer",
    "SftConfig",
    "SftTrainer",
    "TrainingData",
    "VrpoConfig",
    "VrpoTrainer",
    "add_adapter",
    "align",
    "load_config",
    "merge",
    "presets",
    "read_phrases",
]


def __getattr__(name: str) -> object:
    # torch and transformers take seconds to import; a list of methods should not wait for them.
    if name not in _HOME_OF:
        raise AttributeError(f"module 'mosa.align' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value
