"""Changes the logits that the sampler sees, at chosen places."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch

from mosa.families import DiffusionLM

Edit = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], None]


@contextmanager
def edited_logits(model: DiffusionLM, edit: Edit) -> Iterator[DiffusionLM]:
    """A context in which `edit` changes the model's logits [N, V] in the sampler, in place.

    It is also given the columns [N] at which they stand, and the tokens of their rows up to the
    ninth [N, 9], to know the rows by.
    """
    states_of, head = model.packed_hidden_states, model.head

    def packed(tokens, rotary, lengths, *, asked=None, **others):
        states = states_of(tokens, rotary, lengths, asked=asked, **others)
        begins = torch.tensor([0, *lengths]).cumsum(0)
        index = torch.arange(len(tokens)) if asked is None else asked.index
        row = torch.searchsorted(begins, index, right=True) - 1
        known = tokens[(begins[row][:, None] + torch.arange(9)).clamp(max=len(tokens) - 1)]
        return torch.cat([states, (index - begins[row])[:, None], known], dim=1)

    def edited(states):
        logits = head(states[:, :-10])
        edit(logits, states[:, -10].long(), states[:, -9:].long())
        return logits

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "packed_hidden_states", packed)
        patch.setattr(model, "head", edited)
        yield model
