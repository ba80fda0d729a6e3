"""The recordings of published decoders: that the networks behind them are still the same."""

from __future__ import annotations

import pytest
import torch
from recorded import CHECKED_IDS, DECODERS, MASK, filled, full_logits, recordings


@pytest.mark.parametrize("decoder", DECODERS)
def test_recorded_networks_are_rebuilt(decoder):
    """Where this fails, no comparison of tokens says anything about the sampler."""
    for recording in recordings(decoder):
        model = filled(recording.network, recording.weight_seed, recording.echo)
        logits = full_logits(model, recording.prompts[0])[-1, list(CHECKED_IDS)]
        expected = torch.tensor(recording.logits)
        assert torch.allclose(logits, expected, rtol=0, atol=1e-3), recording.name


def test_recordings_show_what_they_are_for():
    """Ends before the last block, uneven prompts, guidance, edits, and edits without an end."""
    every = {decoder: recordings(decoder) for decoder in DECODERS}
    assert all(len(some) >= 12 for some in every.values())
    in_batches = ("llada", "mdlm", "bd3lm")
    assert all(any(len(one.prompts) > 1 for one in every[name]) for name in in_batches)
    assert any(one.settings["cfg_scale"] for one in every["llada"])
    ended_early = {
        decoder
        for decoder, some in every.items()
        if any(MASK in response for one in some for response in one.responses)
    }
    assert ended_early == {"sdar", "llada2.0", "llada2.1"}
    edited = [one for one in every["llada2.1"] if one.edits]
    assert any(one.unsettled_blocks for one in edited)
    assert any(not one.unsettled_blocks for one in edited)
