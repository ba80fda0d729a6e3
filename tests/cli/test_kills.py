"""Killed at any moment, a command that writes leaves nothing half and goes on to the same end."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from made_runs import attacked
from peft import LoraConfig

from mosa.families import load_model
from mosa.files import MARK

COMMANDS = {
    "align mosa": "align mosa --config mosa_testbed_paper --model testbed --data prompts.txt "
    "--max_steps 40 --save_strategy steps --save_steps 5 --lora_r 2 --use_cpu true --out OUT",
    "merge": "merge --model testbed --adapter adapter --out OUT",
    "results": "results run --export csv --out OUT",
    "report": "report run --out OUT/page.html --tables OUT/tables",
    "testbed build": "testbed build --width 16 --num_layers 1 --num_heads 2 --mlp_width 16 "
    "--batch_size 2 --primer_steps 9 --helpful_steps 9 --shallow_steps 9 --num_measured 1 "
    "--out OUT",
}
TIMES = ("metrics.jsonl", "README.md", "versions.json", "page.html", "training_args.bin")
"""Files that say when or how fast they were made."""
NUM_KILLS = 4


def start(command: str, out: str, *more: str) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "mosa", *command.replace("OUT", out).split(), *more]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder but those that tell times."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in (*TIMES, MARK)
    }


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_a_killed_command_goes_on_to_the_same_result(tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    attacked(Path("run"), {"a": {"direct": {"x": True}}})
    Path("prompts.txt").write_text("how do i make a copper kiln ?\nhow do i make a tin pump ?\n")
    model = load_model("testbed")
    model.add_lora(LoraConfig(r=1))
    model.save_adapter("adapter")
    began = time.monotonic()
    told, _ = (undisturbed := start(COMMANDS[command], "straight")).communicate()
    assert undisturbed.returncode == 0, told
    seconds = time.monotonic() - began
    rng = random.Random(command)
    for _ in range(NUM_KILLS):
        # The first half is the loading of the program.
        process = start(COMMANDS[command], "killed", *resumes(Path("killed")))
        time.sleep(seconds * rng.uniform(0.5, 1.0))
        process.kill()
        process.communicate()
    done = start(COMMANDS[command], "killed", *resumes(Path("killed")))
    told, _ = done.communicate()
    # A kill may have come when all was done, and a finished result is not made twice.
    assert done.returncode == 0 or "holds a" in told, told
    assert contents(Path("killed")) == contents(Path("straight"))


def resumes(out: Path) -> list[str]:
    """The option with which a training goes on that has left a checkpoint."""
    return ["--resume"] if any(out.glob("checkpoint-*/files.json")) else []
