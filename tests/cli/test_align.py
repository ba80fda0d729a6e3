"""`mosa align METHOD`: every entry of the table is a command, with its settings as options."""

from __future__ import annotations

import json

import jsonargparse
import pytest

from mosa import cli
from mosa.alignment import METHODS
from mosa.cli.options import add_align_fields, given_fields


@pytest.mark.parametrize("method", METHODS)
def test_options_are_the_fields_of_the_settings(method):
    """Only what was given comes back, typed; the help shows our fields with their defaults."""
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    config_class = METHODS[method].trainer_class.config_class
    add_align_fields(parser, config_class)
    given = parser.parse_args(["--learning_rate", "1e-3", "--logging_steps", "5"])
    assert given_fields(config_class, given) == {"learning_rate": 1e-3, "logging_steps": 5.0}
    text = " ".join(parser.format_help().split())
    assert "--lora_r" in text and "Rank of the LoRA adapter (default: 32)" in text
    assert "--hub_token" not in text and "--trackio" not in text


def test_every_method_is_a_command():
    commands = {name for name in cli.COMMANDS if name.startswith("align ")}
    assert commands == {f"align {method}" for method in METHODS}


@pytest.mark.parametrize("judge", ["refusal", "truth"])
def test_a_judge_by_its_name(tmp_path, judge):
    """Pairs from the testbed's own answers, told apart by the judge; one small update."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("how do i make a copper kiln ?\nhow do i make a copper pump ?\n")
    out = tmp_path / "out"
    words = (
        f"align vrpo --config vrpo_testbed_rollouts --model testbed --data {prompts} --out {out}"
    )
    words += f" --judge {judge} --max_steps 1 --rollout_steps 6 --num_samples 1 --use_cpu true"
    assert cli.main([*words.split(), "--per_device_train_batch_size", "2"]) == 0
    record = json.loads((out / "versions.json").read_text())
    assert record["method"] == "vrpo" and record["judge"].startswith(f"{judge}/")
    assert (out / "adapter_model.safetensors").is_file()
