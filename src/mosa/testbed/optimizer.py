"""Muon for the hidden matrices of a small network, AdamW for the rest.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) replaces the momentum of a
matrix by a nearly orthogonal one, so that directions with small gradients move as far as those with
large ones. On the testbed it forms the copying from the prompt that AdamW had not formed in ten
minutes (LOG.md has the comparison).

How we differ from `torch.optim.Muon`, and why: the iteration runs in float32 and on stacks of
matrices of one shape. In bfloat16, as there, it takes several times as long as the rest of an
update on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic iteration; chosen by its author to grow small singular values fast."""
_ITERATIONS = 5
_MOMENTUM = 0.95


class Muon(torch.optim.AdamW):
    """AdamW, in which the groups marked `orthogonal` take Muon's update instead."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if group["orthogonal"]:
                self._orthogonal_step(group)
        super().step()  # pyright: ignore[reportUnknownMemberType]
        return loss

    def _orthogonal_step(self, group: dict[str, Any]) -> None:
        by_shape: dict[torch.Size, list[nn.Parameter]] = {}
        for parameter in group["params"]:
            if parameter.grad is not None:
                by_shape.setdefault(parameter.shape, []).append(parameter)
        for (rows, columns), parameters in by_shape.items():
            updates: list[Tensor] = []
            for parameter in parameters:
                state = self.state[parameter]
                momentum = state.setdefault("momentum", torch.zeros_like(parameter))
                gradient = parameter.grad
                assert gradient is not None, "left out above"
                momentum.lerp_(gradient, 1 - _MOMENTUM)
                updates.append(gradient.lerp(momentum, _MOMENTUM))
            scale = group["lr"] * max(1.0, rows / columns) ** 0.5
            for parameter, update in zip(
                parameters, orthogonalize(torch.stack(updates)), strict=True
            ):
                parameter.add_(update, alpha=-scale)
                # AdamW, which runs afterwards, skips what has no gradient.
                parameter.grad = None


def orthogonalize(matrices: Float[Tensor, "N A B"]) -> Float[Tensor, "N A B"]:
    """Each matrix with its singular values brought near one (between about 0.7 and 1.2)."""
    is_tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.transpose(1, 2) if is_tall else matrices
    norm = cast(Tensor, x.norm(dim=(1, 2), keepdim=True))  # pyright: ignore[reportUnknownMemberType]
    x = x / norm.clamp(min=1e-7)
    a, b, c = _COEFFICIENTS
    for _ in range(_ITERATIONS):
        gram = x @ x.transpose(1, 2)
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.transpose(1, 2) if is_tall else x


def muon_for(network: nn.Module, *, hidden_rate: float, other_rate: float) -> Muon:
    """The optimizer of a network: Muon at `hidden_rate` for the matrices of its blocks, AdamW at
    `other_rate` for embedding, output head and norms."""
    hidden: list[nn.Parameter] = []
    other: list[nn.Parameter] = []
    for name, parameter in network.named_parameters():
        is_hidden = parameter.ndim == 2 and ".layers." in name
        (hidden if is_hidden else other).append(parameter)
    return Muon(
        [
            {"params": hidden, "lr": hidden_rate, "orthogonal": True},
            {"params": other, "lr": other_rate, "orthogonal": False},
        ],
        betas=(0.9, 0.98),
        weight_decay=0.0,
    )
