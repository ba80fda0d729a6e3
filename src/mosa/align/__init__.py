"""Alignment: MOSA, the initial-token baseline, and supervised refusals.

Start reading in objective.py (the paper's mathematics), then trainer.py (one training step).
A method differs from another by its settings; the table of methods is `METHODS`.
"""

from mosa.align.config import (
    AlignConfig,
    MosaConfig,
    SftConfig,
    add_align_arguments,
    load_config,
    presets,
)
from mosa.align.phrases import read_phrases
from mosa.align.run import METHODS, AlignResult, Method, add_adapter, align, merge
from mosa.align.sft import SftTrainer
from mosa.align.trainer import MosaTrainer

__all__ = [
    "METHODS",
    "AlignConfig",
    "AlignResult",
    "Method",
    "MosaConfig",
    "MosaTrainer",
    "SftConfig",
    "SftTrainer",
    "add_adapter",
    "add_align_arguments",
    "align",
    "load_config",
    "merge",
    "presets",
    "read_phrases",
]
