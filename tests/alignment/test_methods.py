"""The table of methods: what an entry must be, and that one entry and one class are a method."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from align_tiny import tiny_model
from refusals import refuses
from torch import nn

from mosa.alignment import (
    METHODS,
    AlignConfig,
    DiffusionTrainer,
    Method,
    TrainingData,
    load_config,
    read_phrases,
    run_training,
)
from mosa.alignment.states import encode_examples
from mosa.families import DiffusionLM


@dataclass
class LengthConfig(AlignConfig):
    """Settings of the method below."""

    endings: str = "refusals"
    """A phrase set, only to be recorded."""
    pull: float = 1.0
    """How strongly end-of-text is made likely."""


class EndAtOnceTrainer(DiffusionTrainer):
    """Makes end-of-text likely at the first response position: a method that nobody needs."""

    config_class = LengthConfig

    config: LengthConfig

    @classmethod
    def from_data(cls, model: DiffusionLM, config: Any, data: TrainingData) -> EndAtOnceTrainer:
        trainer = cls(model, config, encode_examples(model, data.harmful, config.response_length))
        trainer.config = config
        return trainer

    def example_losses(self, model: nn.Module, indices: list[int]) -> torch.Tensor:
        diffusion, losses = self.diffusion_model, []
        for index in indices:
            prompt_ids = self.examples[index].prompt_ids
            canvas = torch.tensor([[*prompt_ids, *[diffusion.mask_token_id] * 4]])
            position = torch.tensor([canvas.shape[1] - 4])
            logits = diffusion.logits(canvas, positions=position, network=model)
            log_probs = logits.log_softmax(-1)[0, 0]
            losses.append(-self.config.pull * log_probs[diffusion.eos_token_id])
        return torch.stack(losses)


END_AT_ONCE = Method(
    "test_methods:EndAtOnceTrainer",
    "end at once",
    "ending at once (a method of a test)",
    "end_at_once",
    phrase_sets={"endings": "endings"},
    fixed={"response_length": 24},
)


def test_a_method_is_a_class_and_an_entry(tmp_path, monkeypatch, phrase_files, harmful):
    """Settings, record, phrases, card, adapter and checks come with the entry."""
    monkeypatch.setitem(METHODS, "end", END_AT_ONCE)
    preset = tmp_path / "end.yaml"
    preset.write_text(
        "response_length: 24\nlora_r: 4\nlearning_rate: 1.0e-2\nmax_steps: 20\nuse_cpu: true\n"
        f"per_device_train_batch_size: 4\nendings: {phrase_files['safe_phrases']}\n"
    )
    model = tiny_model()
    result = run_training("end", model, harmful, tmp_path / "out", config=preset, progress=False)
    out = result.out
    assert result.finished and (out / "adapter_model.safetensors").is_file()
    assert json.loads((out / "versions.json").read_text())["method"] == "end"
    assert "ending at once (a method of a test)" in (out / "README.md").read_text()
    assert (out / "phrases" / "endings.txt").read_text().splitlines() == read_phrases(
        phrase_files["safe_phrases"]
    )
    assert load_config(LengthConfig, out / "config.yaml").pull == 1.0
    canvas = torch.tensor([[*model.encode(harmful[0].prompt), *[model.mask_token_id] * 4]])
    with torch.no_grad():
        share = model.logits(canvas).softmax(-1)[0, -4, model.eos_token_id]
        with model.adapter_disabled():
            before = model.logits(canvas).softmax(-1)[0, -4, model.eos_token_id]
    assert share > 1.2 * before
    with refuses("end", "response_length"):
        run_training(
            "end", tiny_model(), harmful, tmp_path / "b", config=preset,
            overrides={"response_length": 20},
        )  # fmt: skip
    with refuses("end", "benign", "benign_beta"):
        run_training("end", tiny_model(), harmful, tmp_path / "b", benign=harmful, config=preset)


@pytest.mark.parametrize("name", METHODS)
def test_every_entry_fits_its_trainer(name):
    """Its class is there, its preset loads, and every setting that it names exists."""
    method = METHODS[name]
    assert issubclass(method.trainer_class, DiffusionTrainer)
    config = load_config(method.trainer_class.config_class, method.preset)
    fields = {field.name for field in dataclasses.fields(config)}
    assert {*method.phrase_sets.values(), *method.fixed} <= fields
    for setting in method.phrase_sets.values():
        assert read_phrases(getattr(config, setting))
    for setting, value in method.fixed.items():
        assert getattr(config, setting) == value
