"""Align, attack and measure diffusion language models.

    >>> import mosa
    >>> model = mosa.load_model("testbed")  # doctest: +SKIP
    >>> mosa.sample(model, "how do i make a copper lantern ?").show()  # doctest: +SKIP

The functions are the commands of the command line, with the same names for the same things:
`load_model`, `sample`, `align`, `evaluate`, `analyze`, `judge`, `results`, `report`, `compare`.
Packages have the names of things (`mosa.alignment`, `mosa.evidence`) and never of functions.

Start reading in `mosa.denoising.reference` (the published loop) and `mosa.alignment.reference` (the
paper's training step), both in plain tensors.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mosa.alignment import MosaConfig, MosaTrainer, SftConfig, SftTrainer
    from mosa.api.pages import compare, report
    from mosa.api.probing import analyze
    from mosa.api.runs import RunFolder, evaluate, judge, results
    from mosa.api.training import align
    from mosa.attacks import Attack, Query, Target
    from mosa.data import TrainingExample, load_prompts
    from mosa.denoising import Canvas, DecoderConfig, DenoisingTrace, SampleResult, sample
    from mosa.evidence.figures import Evidence, Figure, gather, headline
    from mosa.families import DiffusionLM, load_model, new_model
    from mosa.responder import LocalResponder, Responder
    from mosa.runs.evaluate import EvaluateConfig
    from mosa.runs.sets import SetOptions, load_sets
    from mosa.runs.subject import Subject, subjects_of
    from mosa.types import CaseSet, Message, Prompt, UserError

    __version__: str

_HOMES = {
    "mosa.alignment": ("MosaConfig", "MosaTrainer", "SftConfig", "SftTrainer"),
    "mosa.api.pages": ("compare", "report"),
    "mosa.api.probing": ("analyze",),
    "mosa.api.runs": ("RunFolder", "evaluate", "judge", "results"),
    "mosa.api.training": ("align",),
    "mosa.attacks": ("Attack", "Query", "Target"),
    "mosa.data": ("TrainingExample", "load_prompts"),
    "mosa.denoising": ("Canvas", "DecoderConfig", "DenoisingTrace", "SampleResult", "sample"),
    "mosa.evidence.figures": ("Evidence", "Figure", "gather", "headline"),
    "mosa.families": ("DiffusionLM", "load_model", "new_model"),
    "mosa.responder": ("LocalResponder", "Responder"),
    "mosa.runs.evaluate": ("EvaluateConfig",),
    "mosa.runs.sets": ("SetOptions", "load_sets"),
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
    "RunFolder",
    "SampleResult",
    "SetOptions",
    "SftConfig",
    "SftTrainer",
    "Subject",
    "Target",
    "TrainingExample",
    "UserError",
    "__version__",
    "align",
    "analyze",
    "compare",
    "evaluate",
    "gather",
    "headline",
    "judge",
    "load_model",
    "load_prompts",
    "load_sets",
    "new_model",
    "report",
    "results",
    "sample",
    "subjects_of",
]


def __getattr__(name: str) -> object:
    # torch and transformers take seconds to import; `import mosa` and a Tab should not wait.
    if name == "__version__":
        value: object = importlib.import_module("importlib.metadata").version("mosa-dllm")
    elif name in _HOME_OF:
        value = getattr(importlib.import_module(_HOME_OF[name]), name)
    else:
        raise AttributeError(f"module 'mosa' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)
