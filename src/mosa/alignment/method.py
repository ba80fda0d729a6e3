"""What an alignment method is, and the table of methods: one file and one entry per method.

A method is a trainer (a subclass of `DiffusionTrainer` with its settings class) and what lists,
model cards and output folders say about it. The table names trainers by module, so that reading
it imports neither torch nor transformers.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mosa.alignment.trainer import DiffusionTrainer


@dataclass(frozen=True)
class Method:
    """One way to align."""

    trainer: str
    """Path of the trainer class, as module:name."""
    summary: str
    """What it does, in a line."""
    title: str
    """What the model card calls it."""
    preset: str
    """The packaged settings that it starts from."""
    phrase_sets: Mapping[str, str] = field(default_factory=dict)
    """By the role that a phrase set has in the method, the setting that names the set."""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """Settings that define the method; other values are refused."""

    @property
    def trainer_class(self) -> type[DiffusionTrainer]:
        """The trainer, imported now."""
        return pkgutil.resolve_name(self.trainer)


METHODS: dict[str, Method] = {
    "mosa": Method(
        "mosa.alignment.mosa:MosaTrainer",
        "train an adapter to refuse in the middle of an answer",
        "MOSA (middle-token safety alignment, arXiv 2508.12398)",
        "mosa_llada_paper",
        phrase_sets={"safe": "safe_phrases", "harmful": "harmful_phrases"},
    ),
    "initial": Method(
        "mosa.alignment.mosa:MosaTrainer",
        "train the baseline, which refuses at the first token",
        "initial-token alignment (the baseline of arXiv 2508.12398)",
        "initial_llada_paper",
        phrase_sets={"safe": "safe_phrases", "harmful": "harmful_phrases"},
        fixed={"window_start": 1},
    ),
    "sft": Method(
        "mosa.alignment.sft:SftTrainer",
        "train on refusals as supervised examples",
        "supervised refusals (the SFT baseline)",
        "sft_llada",
        phrase_sets={"refusals": "refusals"},
    ),
    "vrpo": Method(
        "mosa.alignment.vrpo:VrpoTrainer",
        "train on preferences between two answers",
        "VRPO (variance-reduced preference optimisation, arXiv 2505.19223)",
        "vrpo_llada",
    ),
}
"""Every method by name."""
