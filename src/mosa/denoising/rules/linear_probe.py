"""Watches a row through a linear probe on hidden states, and notes or stops it above a threshold.

After each step the score is the mean over the response's tokens of `weight` @ h + `bias`, where h
is the output of one layer at a token: how far generation has moved along a direction, such as the
difference between harmful and refusing answers that adaptive steering finds (arXiv:2605.13043).
Beside a cache, the tokens that a pass does not compute keep the value of the latest that did.

# n tokens of one row, m of them, D width
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from mosa.denoising.rules.base import Action, Monitor, RowView
from mosa.families.base import DiffusionLM
from mosa.inputs import read_bytes, refusing
from mosa.types import UserError


@dataclass
class ProbeState:
    """The state of a row's probe."""

    weight: Float[Tensor, " D"]
    bias: Float[Tensor, ""]
    scores: Float[Tensor, " n"] | None = None
    """The latest score of each token."""
    has_noted: bool = False


@dataclass(frozen=True)
class LinearProbe(Monitor):
    """A monitor that scores the response by a direction in hidden states."""

    name: str = field(default="linear_probe", init=False)
    file: str = field(kw_only=True)
    """A safetensors file with the tensors `weight` [D] and `bias` (one number)."""
    layer: int = field(kw_only=True)
    """The layer whose output is read, from 1."""
    threshold: float = field(kw_only=True)
    """The score above which it acts."""
    action: Literal["note", "stop"] = "note"
    """Whether the row continues with a note in its trace, or is also stopped."""
    sha256: str = ""
    """The hash of the file, which is found when none is given; another file is refused."""

    def __post_init__(self):
        self.check_range("layer", 1.0)
        self.check_range("threshold", -float("inf"))
        if self.action not in ("note", "stop"):
            raise UserError(f"action of {self.name} must be note or stop, not {self.action!r}.")
        if not self.sha256:
            object.__setattr__(
                self, "sha256", hashlib.sha256(read_bytes(Path(self.file))).hexdigest()
            )

    @property
    def layers(self) -> tuple[int, ...]:
        return (self.layer,)

    def check_model(self, model: DiffusionLM) -> None:
        config = model.network.config
        weight_D, _ = _probe(self.file, self.sha256)
        if self.layer > config.num_hidden_layers or len(weight_D) != config.hidden_size:
            raise UserError(
                f"{self.file} is a probe of width {len(weight_D)} for layer {self.layer}, but the "
                f"model has {config.num_hidden_layers} layers of width {config.hidden_size}; name "
                "a probe that was made for this model."
            )

    def start(self, model: DiffusionLM) -> ProbeState:
        weight_D, bias = _probe(self.file, self.sha256)
        return ProbeState(weight_D.to(model.device), bias.to(model.device))

    def look(self, row: RowView, state: ProbeState) -> Action | None:
        score_m = row.hidden(self.layer).float() @ state.weight + state.bias
        if state.scores is None:
            state.scores = torch.zeros(len(row.tokens), device=score_m.device)
        state.scores[row.computed] = score_m
        score = float(state.scores[row.positions >= 0].mean())
        if state.has_noted or not score > self.threshold:
            return None
        state.has_noted = True
        return Action(stop=self.action == "stop", note="above the threshold", value=score)


@functools.lru_cache(maxsize=8)
def _probe(file: str, sha256: str) -> tuple[Float[Tensor, " D"], Float[Tensor, ""]]:
    data = read_bytes(Path(file))
    if hashlib.sha256(data).hexdigest() != sha256:
        raise UserError(f"{file} has changed since it was named; name it again, as a new rule.")
    with refusing(SafetensorError, f"{file} is no safetensors file", "make the probe again"):
        tensors = load(data)
    weight, bias = tensors.get("weight"), tensors.get("bias")
    if weight is None or bias is None or weight.ndim != 1 or bias.numel() != 1:
        raise UserError(f"{file} must hold the tensors weight [D] and bias (one number).")
    if not bool(torch.cat([weight.float(), bias.float().reshape(1)]).isfinite().all()):
        raise UserError(f"{file} holds numbers that are not finite; make the probe again.")
    return weight.float(), bias.float().reshape(())
