"""At least a thousand damaged folders of unfinished trainings: resumed, or one sentence.

`MOSA_FUZZ=50` makes fewer.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import transformers
from alignment.align_tiny import tiny_model
from fuzz.surfaces import changed, many, read_or_refuse
from hypothesis import given
from hypothesis import strategies as st

from mosa.alignment import MosaConfig, load_config, run, run_training
from mosa.alignment.checkpoints import HASHES, read_log
from mosa.alignment.method import METHODS
from mosa.alignment.trainer import TrainingData
from mosa.data import TrainingExample
from mosa.files import MARK

pytestmark = pytest.mark.slow

STEP = 2
SETTINGS: dict[str, Any] = {
    "response_length": 24,
    "window_start": 5,
    "window_end": 20,
    "lora_r": 2,
    "per_device_train_batch_size": 2,
    "max_steps": STEP,
    "save_steps": 1,
    "save_total_limit": 2,
    "logging_steps": 1,
    "use_cpu": True,
}
EXAMPLES = [TrainingExample(f"how do i {verb} tea") for verb in ("bake", "make", "brew", "heat")]
ABOUT = ("config.yaml", "versions.json", "metrics.jsonl", MARK, "checkpoint-2/files.json")
STATE = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "tracked-0.json")
STATE += ("adapter_model.safetensors", "adapter_config.json", "training_args.bin")


class FarEnoughError(Exception):
    """All that is read of the folder was read."""


class Kill(transformers.TrainerCallback):
    """Stops a training behind its last checkpoint, as a kill does."""

    def on_save(self, args, state, control, **kwargs):
        if state.global_step == STEP:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def phrases(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("phrases")
    for name, text in (("safe", "we stop here ."), ("harmful", "the next step is to")):
        (folder / f"{name}.txt").write_text(f"{text}\n")
    return {f"{name}_phrases": str(folder / f"{name}.txt") for name in ("safe", "harmful")}


def resumed(out: Path, phrases: dict[str, str], *, resume: bool = True, **more: Any) -> None:
    arguments = {"overrides": SETTINGS | phrases, "resume": resume, "progress": False, **more}
    run_training("mosa", tiny_model(), EXAMPLES, out, **arguments)


@pytest.fixture(scope="module")
def sound(tmp_path_factory, phrases) -> Path:
    out = tmp_path_factory.mktemp("sound") / "out"
    with pytest.raises(KeyboardInterrupt):
        resumed(out, phrases, resume=False, callbacks=[Kill()])
    assert {path.name for path in out.glob("checkpoint-*")} == {"checkpoint-1", "checkpoint-2"}
    assert {path.name for path in (out / "checkpoint-2").iterdir()} >= {*STATE, HASHES}
    return out


def test_a_folder_that_is_damaged_anywhere(sound, phrases, tmp_path, monkeypatch):
    """What says whose the folder is, what it was trained with, and which files are whole; damage of
    the others is seen by their hashes."""

    def enough(*args: object) -> None:
        raise FarEnoughError

    monkeypatch.setattr(run, "_trainer", enough)
    out = sound  # settings hold the path
    kept = Path(shutil.copytree(out, tmp_path / "kept"))

    def read(folder: Path) -> None:
        try:
            resumed(folder, phrases)
        except FarEnoughError:
            read_log(folder / "metrics.jsonl", most=STEP)

    @many
    @given(st.data(), st.sampled_from((*ABOUT, *(f"checkpoint-2/{name}" for name in STATE))))
    def is_read_or_refused(data: st.DataObject, name: str) -> None:
        shutil.rmtree(out)
        shutil.copytree(kept, out)
        (out / name).write_bytes(data.draw(changed((kept / name).read_bytes())))
        read_or_refuse(read, out)
        assert (out / "checkpoint-1" / HASHES).is_file(), "nothing whole is removed"

    try:
        is_read_or_refused()
    finally:
        shutil.rmtree(out)
        shutil.copytree(kept, out)


def test_a_state_of_another_hand_whose_hashes_fit(sound, phrases, tmp_path):
    """The library reads it, and what it cannot read is a fault of the file."""
    folder = Path(shutil.copytree(sound / "checkpoint-2", tmp_path / "checkpoint-2"))
    overrides = SETTINGS | phrases | {"save_strategy": "no", "output_dir": str(tmp_path)}
    config = load_config(MosaConfig, overrides=overrides)
    trainer = run._trainer(METHODS["mosa"], tiny_model(), config, TrainingData(EXAMPLES))

    def read(folder: Path) -> None:
        trainer.train(resume_from_checkpoint=str(folder))

    read(folder)

    @many
    @given(st.data(), st.sampled_from(STATE))
    def is_read_or_refused(data: st.DataObject, name: str) -> None:
        file = folder / name
        sound_content = file.read_bytes()
        file.write_bytes(data.draw(changed(sound_content)))
        try:
            read_or_refuse(read, folder)
        finally:
            file.write_bytes(sound_content)

    is_read_or_refused()
