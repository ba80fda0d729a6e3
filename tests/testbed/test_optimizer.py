"""The optimizer of the testbed: what it does to matrices, and that the rest is AdamW."""

from __future__ import annotations

import copy

import torch

from mosa.testbed.optimizer import muon_for, orthogonalize


class Net(torch.nn.Module):
    """One hidden matrix, one vector and one head, named as in the transformers library."""

    def __init__(self):
        super().__init__()
        hidden = torch.nn.Linear(6, 12, bias=False)
        self.model = torch.nn.ModuleDict({"layers": torch.nn.ModuleList([hidden])})
        self.hidden = hidden  # behind `model`, whose name for it counts
        self.norm = torch.nn.Parameter(torch.ones(6))
        self.lm_head = torch.nn.Linear(12, 12, bias=False)

    def forward(self, x):
        return self.lm_head(self.hidden(x * self.norm))


def test_orthogonalize_keeps_directions_and_levels_singular_values():
    torch.manual_seed(0)
    stack = torch.randn(2, 5, 9)
    for matrix, result in zip(stack, orthogonalize(stack), strict=True):
        u, _, v = torch.linalg.svd(matrix, full_matrices=False)
        inner = u.T @ result @ v.T
        singular = inner.diagonal()
        assert ((singular > 0.6) & (singular < 1.3)).all()
        assert (inner - torch.diag(singular)).abs().max() < 1e-4
    assert torch.allclose(orthogonalize(stack.mT), orthogonalize(stack).mT, atol=1e-5)


def test_an_update_moves_hidden_matrices_orthogonally_and_the_rest_as_adamw_does():
    torch.manual_seed(0)
    net = Net()
    twin = copy.deepcopy(net)
    muon = muon_for(net, hidden_rate=0.1, other_rate=0.01)
    adamw = torch.optim.AdamW(
        [twin.norm, twin.lm_head.weight], lr=0.01, betas=(0.9, 0.98), weight_decay=0.0
    )
    x = torch.randn(8, 6)
    for module, optimizer in ((net, muon), (twin, adamw)):
        module(x).square().mean().backward()
        optimizer.step()
    assert torch.allclose(net.norm, twin.norm)
    assert torch.allclose(net.lm_head.weight, twin.lm_head.weight)
    moved = net.hidden.weight - twin.hidden.weight
    singular = torch.linalg.svdvals(moved.detach()) / (0.1 * 2**0.5)  # rate * sqrt(12 / 6)
    assert ((singular > 0.6) & (singular < 1.3)).all()
