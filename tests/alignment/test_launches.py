"""`align` on two processes, and the configs of accelerate that come with mosa."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import yaml
from accelerate.commands.config.config_args import ClusterConfig
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from align_tiny import tiny_model

from mosa import cli
from mosa.alignment.config import PRESET_FOLDER, presets
from mosa.families import load_model

pytestmark = pytest.mark.integration

CONFIGS = PRESET_FOLDER / "accelerate"
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--config_file"]
WORKER = str(Path(__file__).parent / "fsdp_process.py")
SMALL = {
    "response_length": 24,
    "window_start": 5,
    "window_end": 20,
    "lora_r": 4,
    "lora_alpha": 8,
    "max_steps": 4,
    "max_grad_norm": 1.0,
    "learning_rate": 3e-3,
    "logging_steps": 2,
    "optim": "sgd",  # Adam's first steps turn rounding errors into whole steps
}


def run(*words: str) -> str:
    """What a command writes to both streams; a launch that hangs fails the test."""
    done = subprocess.run(
        words,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A checkpoint, prompts and phrases, as files."""
    folder = tmp_path_factory.mktemp("align")
    tiny_model().save(folder / "base")
    foods = ("bread", "cake", "tea", "a cake")
    prompts = [f"how do i {verb} {food}" for food in foods for verb in ("make", "bake")]
    (folder / "prompts.txt").write_text("\n".join(prompts) + "\n")
    (folder / "safe.txt").write_text("therefore i cannot answer this question .\nwe stop here .\n")
    (folder / "harmful.txt").write_text("then mix the flour\nnext step is to heat\n")
    return folder


def command(folder: Path, out: Path, per_device: int, **changes: Any) -> list[str]:
    phrases = {"safe_phrases": folder / "safe.txt", "harmful_phrases": folder / "harmful.txt"}
    settings = {**SMALL, **phrases, "per_device_train_batch_size": per_device, **changes}
    options = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    files = ("--model", folder / "base", "--data", folder / "prompts.txt", "--out", out)
    return ["align", "mosa", *map(str, files), *options]


@pytest.fixture(scope="module")
def alone(folder) -> Path:
    """The adapter that this process trains, four prompts an update."""
    assert cli.main([*command(folder, folder / "alone", 4), "--use_cpu", "true"]) == 0
    return folder / "alone"


@pytest.fixture(scope="module")
def together(folder) -> tuple[Path, str]:
    """The adapter that two processes train, two prompts an update on each, with what they say."""
    out = folder / "together"
    words = command(folder, out, 2, **CHECKPOINTS)
    return out, run(*LAUNCH, str(CONFIGS / "cpu.yaml"), "-m", "mosa", *words)


CHECKPOINTS = {
    "save_steps": 2,
    "save_strategy": "steps",
    "save_total_limit": "null",
    "keep_checkpoints": "true",
}


def assert_same_adapter(one: Path, other: Path) -> None:
    file = "adapter_model.safetensors"
    expected = safetensors.torch.load_file(one / file)
    found = safetensors.torch.load_file(other / file)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-6, msg=name)


def test_two_processes_train_the_adapter_of_one(alone, together):
    """Two prompts on each make the update of four; no option says that there is no GPU."""
    out, shown = together
    assert shown.count("Trained for 4 steps") == 1
    assert_same_adapter(alone, out)
    names = {path.name for path in out.iterdir()}
    assert names - {"checkpoint-2", "checkpoint-4"} == {path.name for path in alone.iterdir()}
    for line, expected in zip(read_metrics(out), read_metrics(alone), strict=True):
        assert line.keys() == expected.keys() and line["step"] == expected["step"]
        for figure in {"reward", "score_safe", "score_harmful", "kl", "loss"} & line.keys():
            assert line[figure] == pytest.approx(expected[figure], rel=1e-3, abs=1e-5), figure


def read_metrics(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow  # test_run.py has one process that goes on where it stopped
def test_two_processes_go_on_where_two_stopped(folder, alone, together, tmp_path):
    """A run of which the first half alone was done, as the folder of its checkpoint shows it."""
    out = tmp_path / "out"
    for folder_name in ("checkpoint-2", "phrases"):
        shutil.copytree(together[0] / folder_name, out / folder_name)
    for file in ("config.yaml", "versions.json"):
        shutil.copy(together[0] / file, out)
    words = command(folder, out, 2, **CHECKPOINTS)
    shown = run(*LAUNCH, str(CONFIGS / "cpu.yaml"), "-m", "mosa", *words, "--resume")
    assert shown.count("Trained for 4 steps") == 1
    assert_same_adapter(alone, out)
    assert Counter(line["step"] for line in read_metrics(out)) == {4: 2}


# --- the configs ----------------------------------------------------------------------------------


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.yaml")), ids=lambda file: file.stem)
def test_accelerate_understands_the_config(file):
    """It refuses unknown keys by itself, above; below it takes anything, so that is looked at."""
    config = ClusterConfig.from_yaml_file(str(file))
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    assert config.num_processes == 2 and content["num_machines"] == 1
    parser = launch_command_parser()
    known = {action.dest for action in parser._actions} | {"fsdp_ignored_modules"}
    nested = [*content.get("fsdp_config", {}), *content.get("deepspeed_config", {})]
    assert set(nested) <= known
    args = parser.parse_args(["--config_file", str(file), "--num_processes", "4", "-m", "mosa"])
    args.nondefault = {"num_processes"}
    args, _, _ = _validate_launch_command(args)
    assert args.num_processes == 4 and args.module
    launchers = args.multi_gpu, args.use_fsdp, args.use_deepspeed
    assert launchers.count(True) == 1


def test_there_is_a_config_for_each_way_to_spread():
    assert {file.stem for file in CONFIGS.iterdir()} == {
        *("cpu", "ddp", "deepspeed_zero2", "fsdp2_dream", "fsdp2_llada")
    }
    assert not {"cpu", "ddp"} & set(presets()), "they are no settings of a method"


@pytest.mark.parametrize("family", ["llada", "dream"])
def test_fsdp_wraps_the_layers_of_the_family(family, request):
    model = request.getfixturevalue(f"tiny_{family}")
    config = ClusterConfig.from_yaml_file(str(CONFIGS / f"fsdp2_{family}.yaml")).fsdp_config
    assert config is not None
    layers = {type(layer).__name__ for layer in model.network.model.layers}
    assert layers == {config["fsdp_transformer_layer_cls_to_wrap"]}
    assert config["fsdp_ignored_modules"] == ".*lm_head"
    assert model.network.get_output_embeddings() is model.network.lm_head


@pytest.mark.slow
def test_fsdp_trains_the_adapter_of_one_process(folder, tmp_path):
    """Two steps on two processes with the weights sharded as the config says, by torch on the CPU.

    accelerate itself shards on GPUs alone, so the process calls its function for that.
    """
    for count, name in ((1, "one"), (2, "two")):
        words = ["--num_processes", str(count), "--mixed_precision", "no"]
        words += ["--main_process_port", "0", WORKER]
        run(*LAUNCH, str(CONFIGS / "fsdp2_llada.yaml"), *words, str(folder), str(tmp_path / name))
    assert_same_adapter(tmp_path / "one", tmp_path / "two")
    aligned = load_model(folder / "base", adapter=tmp_path / "two")
    ids = torch.tensor([aligned.encode("how do i bake bread")])
    with torch.no_grad(), aligned.adapter_disabled():
        before = aligned.logits(ids)
    assert not torch.equal(aligned.logits(ids), before)
