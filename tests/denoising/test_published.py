"""Published decoders by name, from Python, the command line and a file of subjects."""

from __future__ import annotations

import pytest
import torch
from refusals import refuses

from mosa.denoising import PUBLISHED, DecoderConfig, sample
from mosa.denoising.published import over_published, published_decoder
from mosa.runs.subject import subject_from


@pytest.mark.parametrize("name", PUBLISHED)
def test_each_is_a_decoder_with_a_step_for_every_token(name):
    """But for canvases of noise, of which each has 48."""
    config = DecoderConfig(**published_decoder(name, 300))
    steps = 2 * 48 if config.renoise else 300
    assert (config.max_new_tokens, config.steps) == (300, steps)


def test_the_two_pairs_of_thresholds():
    """As its authors' code and as SGLang run the same weights."""
    pairs = {
        name: (settings["threshold"], settings["edit_threshold"])
        for name, settings in PUBLISHED.items()
        if "edit_threshold" in settings
    }
    assert pairs == {
        "llada2.1": (0.95, 0.9),
        "llada2.1-quality": (0.7, 0.5),
        "llada2.1-speed": (0.5, 0.0),
    }


def test_other_settings_go_over_it():
    settings = over_published("llada2.1", {"max_new_tokens": 40, "threshold": 0.6}, 128)
    assert (settings["steps"], settings["threshold"]) == (40, 0.6)
    assert settings["edit_threshold"] == 0.9
    assert over_published(None, {"steps": 3}, 128) == {"steps": 3}
    with refuses("llada9", "llada2.1"):
        over_published("llada9", {}, 128)


def test_a_call_names_one(tiny_llada):
    prompt = torch.tensor([[5, 6, 7]])
    found = sample(tiny_llada, prompt, "llada2.0", max_new_tokens=12)
    assert (found.config.steps, found.config.threshold) == (12, 0.95)


def test_a_subject_names_one():
    record = {"name": "a", "model": "testbed"}
    plain = subject_from({**record, "decoder": "llada2.1-speed"})
    assert plain.decoder is not None and plain.decoder.max_new_tokens == 72
    assert (plain.decoder.threshold, plain.decoder.edit_threshold) == (0.5, 0.0)
    changed = subject_from(
        {**record, "decoder": {"published": "llada2.1-speed", "max_new_tokens": 24}}
    )
    assert changed.decoder is not None and changed.decoder.steps == 24
    with refuses("nonsense"):
        subject_from({**record, "decoder": "nonsense"})
