"""Align, attack and measure diffusion language models.

    >>> from mosa import load_model, sample
    >>> model = load_model("testbed")  # doctest: +SKIP
    >>> sample(model, ["how do i make a copper lantern ?"], max_new_tokens=72)  # doctest: +SKIP

Start reading in `mosa.denoising.reference` (the published loop) and `mosa.alignment.reference` (the
paper's training step), both in plain tensors.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mosa.alignment import MosaConfig, MosaTrainer, SftConfig, SftTrainer
    from mosa.attacks import Attack, Query, Target
    from mosa.data import TrainingExample, load_prompts
    from mosa.denoising import Canvas, DecoderConfig, DenoisingTrace, SampleResult, sample
    from mosa.evidence.figures import Evidence, Figure, gather, headline
    from mosa.families import DiffusionLM, load_model, new_model
    from mosa.responder import LocalResponder, Responder
    from mosa.runs.evaluate import EvaluateConfig, evaluate
    from mosa.runs.sets import SetOptions, load_sets
    from mosa.runs.store import Run
    from mosa.runs.subject import Subject, subjects_of
    from mosa.types import CaseSet, Message, Prompt, UserError

_HOMES = {
    "mosa.alignment": ("MosaConfig", "MosaTrainer", "SftConfig", "SftTrainer"),
    "mosa.attacks": ("Attack", "Query", "Target"),
    "mosa.data": ("TrainingExample", "load_prompts"),
    "mosa.denoising": ("Canvas", "DecoderConfig", "DenoisingTrace", "SampleResult", "sample"),
    "mosa.families": ("DiffusionLM", "load_model", "new_model"),
    "mosa.evidence.figures": ("Evidence", "Figure", "gather", "headline"),
    "mosa.runs.evaluate": ("EvaluateConfig", "evaluate"),
    "mosa.responder": ("LocalResponder", "Responder"),
    "mosa.runs.sets": ("SetOptions", "load_sets"),
    "mosa.runs.store": ("Run",),
    "mosa.runs.subject": ("Subject", "subjects_of"),
    "mosa.types": ("CaseSet", "Message", "Prompt", "UserError"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Attack",
    "Canvas",
    "CaseSet",
    "DecoderConfig",
    "DenoisingTrace",
    "DiffusionLM",
    "EvaluateConfig",
    "Evidence",
    "Figure",
    "LocalResponder",
    "Message",
    "MosaConfig",
    "MosaTrainer",
    "Prompt",
    "Query",
    "Responder",
    "Run",
    "SampleResult",
    "SetOptions",
    "SftConfig",
    "SftTrainer",
    "Subject",
    "Target",
    "TrainingExample",
    "UserError",
    "evaluate",
    "gather",
    "headline",
    "load_model",
    "load_prompts",
    "load_sets",
    "new_model",
    "sample",
    "subjects_of",
]


def __getattr__(name: str) -> object:
    # torch and transformers take seconds to import; `mosa --help` should not wait for them.
    if name not in _HOME_OF:
        raise AttributeError(f"module 'mosa' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value
