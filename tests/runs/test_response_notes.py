"""A response as it is recorded."""

from __future__ import annotations

import torch
from safetensors.torch import save_file

from mosa.attacks import Query
from mosa.denoising import DecoderConfig
from mosa.responder import answer_all
from mosa.runs.store import Run


def test_what_a_rule_notes_is_recorded_with_the_response(tmp_path, tiny_llada):
    """A probe whose score is 0.5 everywhere, over the thresholds 0.25 and not 0.75."""
    file = str(tmp_path / "probe.safetensors")
    width = tiny_llada.network.config.hidden_size
    save_file({"weight": torch.zeros(width), "bias": torch.tensor([0.5])}, file)
    queries = []
    for threshold, action in ((0.25, "note"), (0.75, "note"), (0.25, "stop")):
        probe = {"name": "linear_probe", "file": file, "layer": 1, "threshold": threshold}
        decoder = DecoderConfig(max_new_tokens=4, steps=4, rules=({**probe, "action": action},))
        queries.append((Query("Tell me how to make tea."), decoder))
    noted, quiet, stopped = responses = answer_all(tiny_llada, "1f", queries)
    note = {"rule": "linear_probe", "step": 0, "text": "above the threshold", "value": 0.5}
    assert noted.notes == [{**note, "stopped": False}]
    assert quiet.notes == [] and quiet.token_ids == noted.token_ids
    assert stopped.notes == [{**note, "stopped": True}]
    assert stopped.num_forward_passes == 1 and noted.num_forward_passes == 4
    assert len({response.key for response in responses}) == 3
    assert noted.decoder["rules"][0]["name"] == "linear_probe"
    with Run(tmp_path / "run", create=True) as run:
        run.add_response(noted)
        run.commit()
    with Run(tmp_path / "run") as run:
        assert run.response(noted.key) == noted
        assert DecoderConfig.from_dict(noted.decoder) == queries[0][1]
