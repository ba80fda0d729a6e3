"""Alignment: MOSA, the initial-token baseline, supervised refusals, and preference optimisation.

Start reading in reference.py (one training step of the paper in plain tensors), then objective.py
(its mathematics) and mosa.py (the step as it is trained). `METHODS` is the table of methods.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from mosa.alignment.method import METHODS, Method

if TYPE_CHECKING:
    from mosa.alignment.config import AlignConfig, load_config, presets
    from mosa.alignment.mosa import MosaTrainer
    from mosa.alignment.mosa_config import MosaConfig
    from mosa.alignment.phrases import read_phrases
    from mosa.alignment.run import AlignResult, add_adapter, merge, run_training
    from mosa.alignment.sft import SftConfig, SftTrainer
    from mosa.alignment.trainer import DiffusionTrainer, TrainingData
    from mosa.alignment.vrpo import VrpoConfig, VrpoTrainer

_HOMES = {
    "mosa.alignment.config": ("AlignConfig", "load_config", "presets"),
    "mosa.alignment.mosa": ("MosaTrainer",),
    "mosa.alignment.mosa_config": ("MosaConfig",),
    "mosa.alignment.phrases": ("read_phrases",),
    "mosa.alignment.run": ("AlignResult", "add_adapter", "run_training", "merge"),
    "mosa.alignment.sft": ("SftConfig", "SftTrainer"),
    "mosa.alignment.trainer": ("DiffusionTrainer", "TrainingData"),
    "mosa.alignment.vrpo": ("VrpoConfig", "VrpoTrainer"),
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
    "run_training",
    "load_config",
    "merge",
    "presets",
    "read_phrases",
]


def __getattr__(name: str) -> object:
    # torch and transformers take seconds to import; a list of methods should not wait for them.
    if name not in _HOME_OF:
        raise AttributeError(f"module 'mosa.alignment' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value
