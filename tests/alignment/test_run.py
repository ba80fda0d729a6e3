"""`align` and `merge` from end to end: the folder, resuming, signals, and refusals to overwrite."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import transformers
from align_tiny import tiny_model
from refusals import refuses

from mosa.alignment import (
    AlignResult,
    MosaConfig,
    MosaTrainer,
    SftConfig,
    load_config,
    merge,
    run_training,
)
from mosa.alignment.checkpoints import HASHES
from mosa.alignment.config import config_dict
from mosa.alignment.run import MADE_BY
from mosa.families import load_model
from mosa.files import MARK, claim_folder

SMALL: dict[str, Any] = {
    "response_length": 24,
    "window_start": 5,
    "window_end": 20,
    "lora_r": 4,
    "lora_alpha": 8,
    "per_device_train_batch_size": 4,
    "max_steps": 4,
    "max_grad_norm": 1.0,
    "learning_rate": 3e-3,
    "logging_steps": 2,
    "use_cpu": True,
}
RESUMABLE = {"save_steps": 1, "save_total_limit": 3, "logging_steps": 3}


@pytest.fixture
def checkpoint(tmp_path):
    tiny_model().save(tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def run(tmp_path, checkpoint, phrase_files, harmful):
    """`align` with small settings; keywords as for `align`, `overrides` on top."""

    def call(out="out", method="mosa", overrides=None, **arguments) -> AlignResult:
        given = {**SMALL, **phrase_files, **(overrides or {})}
        arguments = {"progress": False, "model": checkpoint, "data": harmful, **arguments}
        return run_training(method, out=tmp_path / out, overrides=given, **arguments)

    return call


class Interrupt(transformers.TrainerCallback):
    """Sends a signal to this very process during one step."""

    def __init__(self, step: int, number: int) -> None:
        self.step, self.number = step, number

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            os.kill(os.getpid(), self.number)


class Kill(transformers.TrainerCallback):
    """Stops a training as a kill does: nothing is saved any more."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


def weights(folder) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(folder / "adapter_model.safetensors")


def test_what_a_run_leaves_behind(run, tmp_path, phrase_files, checkpoint):
    result = run()
    assert result.finished and result.num_steps == 4 and "out" in result.message
    names = {path.name for path in result.out.iterdir()}
    assert names == {"adapter_model.safetensors", "adapter_config.json", "config.yaml"} | {
        "metrics.jsonl",
        "phrases",
        "versions.json",
        "README.md",
        ".mosa.jsonl",
    }
    lines = [json.loads(line) for line in (result.out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 4]
    wanted = {"loss", "reward", "score_safe", "score_harmful", "kl", "best_start", "grad_norm"}
    assert wanted | {"refusal_share"} <= lines[0].keys()
    record = json.loads((result.out / "versions.json").read_text())
    assert record["method"] == "mosa" and record["seed"] == 42
    assert record["model"]["source"] == str(checkpoint)
    assert record["data"]["harmful"]["num_examples"] == 8
    assert {"torch", "transformers", "peft", "mosa-dllm", "python"} <= record["versions"].keys()
    saved = (result.out / "phrases" / "safe.txt").read_text().splitlines()
    assert saved == ["therefore i cannot answer this question .", "we stop here ."]
    config = load_config(MosaConfig, result.out / "config.yaml")
    assert config.window_end == 20 and config_dict(config)["beta"] == 0.05
    card = (result.out / "README.md").read_text()
    assert "measured nothing" in card and "2508.12398" in card
    assert f"--model {checkpoint} --adapter none,PATH/TO/THIS/FOLDER" in card
    assert "[optional]" not in card and "More Information Needed" not in card


def test_the_adapter_loads_and_changes_the_model(run, checkpoint):
    result = run()
    plain, aligned = load_model(checkpoint), load_model(checkpoint, adapter=result.out)
    ids = torch.tensor([plain.encode("how do i bake bread") + [plain.mask_token_id] * 24])
    with torch.no_grad():
        assert not torch.equal(aligned.logits(ids), plain.logits(ids))
        with aligned.adapter_disabled():
            assert torch.equal(aligned.logits(ids), plain.logits(ids))


def test_merge_writes_a_full_checkpoint(run, checkpoint, tmp_path):
    result = run()
    told = []
    out = merge(checkpoint, result.out, tmp_path / "merged", tell=lambda *now: told.append(now))
    merged, aligned = load_model(out), load_model(checkpoint, adapter=result.out)
    matrices = [now[1:] for now in told if now[0] == "merge: matrices"]
    assert matrices and matrices == [(i, len(matrices)) for i in range(len(matrices))]
    assert [now[0] for now in told if now[2] is None] == [
        "merge: loading the model",
        "merge: loading the adapter",
        "merge: writing the checkpoint",
    ]
    ids = torch.tensor([merged.encode("how do i bake bread")])
    with torch.no_grad():
        torch.testing.assert_close(merged.logits(ids), aligned.logits(ids), rtol=1e-4, atol=1e-5)
    with refuses("merged"):
        merge(checkpoint, result.out, tmp_path / "merged")


def test_merge_warns_about_another_base(run, tmp_path):
    result = run()
    tiny_model(seed=1).save(tmp_path / "other")
    with pytest.warns(UserWarning, match="content hash"):
        merge(tmp_path / "other", result.out, tmp_path / "merged")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_run_resumes_to_the_same_weights(run, number):
    before = signal.getsignal(signal.SIGINT)
    straight = run("straight")
    stopped = run("out", callbacks=[Interrupt(1, number)])
    assert not stopped.finished and stopped.num_steps == 2
    assert "step 2 of 4" in stopped.message and "--resume" in stopped.message
    assert not (stopped.out / "adapter_model.safetensors").exists()
    with refuses("out", "--resume"):
        run("out")
    resumed = run("out", resume=True)
    assert resumed.finished
    for name, tensor in weights(resumed.out).items():
        assert torch.equal(tensor, weights(straight.out)[name]), name
    lines = (resumed.out / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines if '"reward"' in line] == [2, 4]
    assert signal.getsignal(signal.SIGINT) is before


@pytest.fixture
def killed(run, tmp_path):
    """The folder of a training of four steps, killed in its fourth, with checkpoints 1 to 3."""
    with pytest.raises(KeyboardInterrupt):
        run("out", overrides=RESUMABLE, callbacks=[Kill(3)])
    assert sorted(path.name for path in (tmp_path / "out").glob("checkpoint-*")) == [
        "checkpoint-1",
        "checkpoint-2",
        "checkpoint-3",
    ]
    return tmp_path / "out"


def cut(path):
    path.write_bytes(path.read_bytes()[:50])


DAMAGES = {
    "no optimizer": lambda folder: (folder / "optimizer.pt").unlink(),
    "no scheduler": lambda folder: (folder / "scheduler.pt").unlink(),
    "no random state": lambda folder: (folder / "rng_state.pth").unlink(),
    "no adapter": lambda folder: (folder / "adapter_model.safetensors").unlink(),
    "no hashes": lambda folder: (folder / "files.json").unlink(),
    "cut optimizer": lambda folder: cut(folder / "optimizer.pt"),
    "cut adapter": lambda folder: cut(folder / "adapter_model.safetensors"),
    "empty state": lambda folder: (folder / "trainer_state.json").write_text(""),
    "another step": lambda folder: (folder / "trainer_state.json").write_text(
        (folder / "trainer_state.json").read_text().replace('"global_step": 3', '"global_step": -1')
    ),
    "another name": lambda folder: folder.rename(folder.with_name("checkpoint-9")),
}


def figures_of(folder) -> list[dict[str, float]]:
    """The lines of a training's log, and the figures of its card, times apart."""
    text = (folder / "metrics.jsonl").read_text()
    card = (folder / "README.md").read_text()
    assert "train_loss" not in text + card
    rows = re.findall(r"\| (\w+) \| ([-+.e0-9]+) \|$", card, flags=re.MULTILINE)
    found = [*map(json.loads, text.splitlines()), dict(rows)]
    return [{k: v for k, v in one.items() if not k.startswith("train_")} for one in found]


@pytest.mark.parametrize("damage", DAMAGES)
def test_resuming_takes_the_newest_whole_checkpoint(run, killed, damage, caplog):
    """To the weights of an unbroken run, its log and its card; and it says what it passes over."""
    straight = run("straight", overrides=RESUMABLE)
    for name in ("checkpoint-best", "checkpoint-3-old", "checkpoint-"):  # the user's own
        (killed / name).mkdir()
        (killed / name / "notes.txt").write_text("mine")
    assert len(figures_of(straight.out)) == 3  # one log in the middle, one at the end, and the card
    with (killed / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')
    DAMAGES[damage](killed / "checkpoint-3")
    run("out", resume=True, overrides=RESUMABLE)
    assert "checkpoint-2" in caplog.text and "not whole" in caplog.text
    for name, tensor in weights(straight.out).items():
        assert torch.equal(tensor, weights(killed)[name]), name
    assert figures_of(straight.out) == figures_of(killed)
    assert (killed / "checkpoint-best" / "notes.txt").read_text() == "mine"
    assert (killed / "checkpoint-3-old" / "notes.txt").read_text() == "mine"
    assert not (killed / "checkpoint-2").exists()
    with refuses("out", "finished"):
        run("out", resume=True, overrides=RESUMABLE)


def test_a_training_without_its_checkpoints_starts_anew(run, killed):
    for checkpoint in killed.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    with refuses("out", "--resume"):
        run("out", resume=True, overrides=RESUMABLE)
    assert run("out", overrides=RESUMABLE).finished


def test_a_copy_without_its_mark_resumes(run, killed, tmp_path):
    """As `cp -r out/*` makes it, which leaves the hidden file out; notes beside it stay."""
    straight = run("straight", overrides=RESUMABLE)
    (killed / MARK).unlink()
    (killed / "notes.txt").write_text("mine")
    with refuses("out"):
        run("out", overrides=RESUMABLE)
    assert run("out", resume=True, overrides=RESUMABLE).finished
    for name, tensor in weights(straight.out).items():
        assert torch.equal(tensor, weights(killed)[name]), name
    assert not list(killed.glob("checkpoint-*")) and (killed / "notes.txt").read_text() == "mine"


def test_a_file_in_the_way_of_the_result_is_told_before_the_training(run, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run("out", callbacks=[Kill(1)])
    (tmp_path / "out" / "README.md").write_text("mine")
    with refuses(tmp_path / "out" / "README.md"):
        run("out", model="missing")
    assert (tmp_path / "out" / "README.md").read_text() == "mine"


def test_without_a_whole_checkpoint_resuming_is_refused(run, killed):
    for folder in killed.glob("checkpoint-*"):
        (folder / "optimizer.pt").write_bytes(b"")
    before = sorted(killed.rglob("*"))
    with refuses("checkpoint-3", "optimizer.pt"):
        run("out", resume=True, overrides=RESUMABLE)
    with refuses("out", "--resume"):
        run("out", overrides=RESUMABLE)
    assert sorted(killed.rglob("*")) == before


def put(file: Path, content: bytes) -> None:
    """Write a file of a checkpoint, and its hash into the list."""
    file.write_bytes(content)
    hashes = json.loads((file.parent / HASHES).read_text())
    hashes["files"][file.name] = hashlib.sha256(content).hexdigest()
    (file.parent / HASHES).write_text(json.dumps(hashes))


class Touch:
    """A pickle that writes a file where it is loaded without a guard."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


@pytest.mark.parametrize(
    "name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"]
)
@pytest.mark.parametrize("is_pickle", [True, False])
def test_a_checkpoint_of_another_hand_whose_hashes_fit_runs_nothing(
    run, killed, tmp_path, name, is_pickle
):
    file = killed / "checkpoint-3" / name
    content = pickle.dumps(Touch(tmp_path / "ran")) if is_pickle else b'{"lr": 3, "steps": "x"}'
    put(file, content)
    with refuses("checkpoint-3", "--resume"):
        run("out", resume=True, overrides=RESUMABLE)
    assert not (tmp_path / "ran").exists()
    shutil.rmtree(file.parent)
    assert run("out", resume=True, overrides=RESUMABLE).finished


@pytest.mark.parametrize("step", [-1, 0, 2, 10**9])
def test_a_state_of_another_step_is_refused_though_its_hash_fits(run, killed, step):
    file = killed / "checkpoint-3" / "trainer_state.json"
    state = json.loads(file.read_text()) | {"global_step": step}
    put(file, json.dumps(state).encode())
    with refuses("checkpoint-3", step):
        run("out", resume=True, overrides=RESUMABLE)


@pytest.mark.parametrize("content", ["", "null", "[]", "{}", "{\n", "- !!python/name:os.system"])
@pytest.mark.parametrize("name", ["config.yaml", "versions.json"])
def test_settings_of_another_hand_are_refused(run, killed, name, content):
    (killed / name).write_text(content)
    with refuses("out"):
        run("out", resume=True, overrides=RESUMABLE)


@pytest.mark.parametrize("name", ["data", "method", "model"])
def test_a_long_record_of_another_hand_is_one_short_sentence(run, killed, name):
    file = killed / "versions.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {name: "a\n\x1b" * 5000}))
    with refuses("out", name):
        run("out", resume=True, overrides=RESUMABLE)


def test_a_training_killed_before_its_first_checkpoint_starts_anew(run, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run("out", callbacks=[Kill(1)])
    assert (tmp_path / "out" / "config.yaml").is_file()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with refuses("out", "--resume"):
        run("out", resume=True)
    assert run("out").finished
    assert (tmp_path / "out" / "thesis.txt").read_text() == "mine"


def test_a_full_disk_costs_what_came_after_the_last_checkpoint(run, tmp_path, monkeypatch):
    """Within the third save, of the trainer's own files; the same command with --resume goes on."""
    save = torch.save

    def full(*args, **kwargs):
        if (tmp_path / "out" / "checkpoint-2").exists():
            raise RuntimeError("[enforce fail at inline_container.cc:858] . PytorchStreamWriter")
        return save(*args, **kwargs)

    straight = run("straight", overrides=RESUMABLE)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with refuses("out", "full"):
            run("out", overrides=RESUMABLE)
    assert not [path.name for path in (tmp_path / "out").iterdir() if ".part" in path.name]
    resumed = run("out", resume=True, overrides=RESUMABLE)
    for name, tensor in weights(straight.out).items():
        assert torch.equal(tensor, weights(resumed.out)[name]), name


class Claim(transformers.TrainerCallback):
    """Tries, as another training would, to get the folder while this one is at work."""

    def on_step_begin(self, args, state, control, **kwargs):
        with refuses("out", "another process"), claim_folder(Path(str(args.output_dir)), MADE_BY):
            raise AssertionError("two own one folder")


def test_two_trainings_cannot_own_one_folder(run, tmp_path):
    assert run("out", callbacks=[Claim()]).num_steps == 4
    with claim_folder(tmp_path / "other", MADE_BY), refuses("other", "another process"):
        run("other", model="missing")


def test_weights_have_the_mode_that_the_umask_says(run, checkpoint, tmp_path):
    result = run(overrides={"keep_checkpoints": True, "save_steps": 2})
    merged = merge(checkpoint, result.out, tmp_path / "merged")
    umask = os.umask(0)
    os.umask(umask)
    files = [path for folder in (result.out, merged) for path in folder.rglob("*")]
    files = [path for path in files if path.is_file()]
    assert {path.stat().st_mode & 0o777 for path in files} == {0o666 & ~umask}
    assert len([path for path in files if path.suffix == ".safetensors"]) == 3


def test_a_merge_that_was_cut_off_goes_on(run, checkpoint, tmp_path, monkeypatch):
    result = run(overrides={"max_steps": 1})
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", _full)
        with refuses("merged", "full"):
            merge(checkpoint, result.out, tmp_path / "merged")
    assert not list((tmp_path / "merged").glob("*.safetensors"))
    merge(checkpoint, result.out, tmp_path / "merged")
    assert load_model(tmp_path / "merged").tokenizer is not None


def _full(descriptor):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"model": 3}', '{"model": {}}'])
def test_a_merge_reads_the_versions_of_an_adapter_strictly(run, checkpoint, tmp_path, content):
    result = run(overrides={"max_steps": 1})
    (result.out / "versions.json").write_text(content)
    with refuses("versions.json"):
        merge(checkpoint, result.out, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_resuming_another_run_is_refused(run, harmful):
    run("out", callbacks=[Interrupt(1, signal.SIGTERM)])
    with refuses("out", "beta=0.05", "0.5"):
        run("out", resume=True, overrides={"beta": 0.5})
    with refuses("out", "data"):
        run("out", resume=True, data=harmful[:4])
    assert run("out", resume=True, overrides={"save_steps": 1}).finished


def test_a_folder_with_files_is_left_alone(run, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with refuses("out", "result"):
        run("out")
    with refuses("elsewhere", "--resume"):
        run("elsewhere", resume=True)


def test_same_seed_same_weights_other_seed_others(run):
    one, two = run("one"), run("two")
    three = run("three", overrides={"seed": 7})
    assert all(torch.equal(t, weights(two.out)[n]) for n, t in weights(one.out).items())
    assert any(not torch.equal(t, weights(three.out)[n]) for n, t in weights(one.out).items())


def test_initial_alignment_trains_at_the_first_token(run):
    window = {"window_start": 1, "window_end": None}
    result = run(method="initial", overrides={**window, "logging_steps": 1})
    lines = (result.out / "metrics.jsonl").read_text().splitlines()
    starts = [json.loads(line).get("best_start") for line in lines]
    assert starts[:4] == [1.0] * 4
    with refuses("initial", "window_start=1"):
        run("other", method="initial")


def test_sft_baseline_teaches_refusals(tmp_path, checkpoint, phrase_files, harmful, benign):
    overrides = {
        "response_length": 24,
        "refusals": phrase_files["safe_phrases"],
        "max_steps": 2,
        "lora_r": 4,
        "use_cpu": True,
        "per_device_train_batch_size": 4,
    }
    arguments = {"overrides": overrides, "progress": False}
    out = tmp_path / "out"
    result = run_training("sft", checkpoint, harmful, out, benign=benign[:2], **arguments)
    assert result.finished and "accuracy" in (out / "metrics.jsonl").read_text()
    assert (out / "phrases" / "refusals.txt").is_file()
    with refuses("9", "answer"):
        run_training("sft", checkpoint, harmful, tmp_path / "b", benign=benign, **arguments)


def test_sft_of_all_weights_writes_a_checkpoint(tmp_path, checkpoint, phrase_files, harmful):
    overrides = {"response_length": 24, "refusals": phrase_files["safe_phrases"], "max_steps": 1}
    overrides |= {"trainable": "full", "use_cpu": True}
    out = tmp_path / "out"
    run_training("sft", checkpoint, harmful, out, overrides=overrides, progress=False)
    assert load_model(out).tokenizer is not None
    assert not (out / "adapter_config.json").exists()


def test_prompts_come_from_files_and_are_recorded(run, tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("how do i bake bread\nhow do i make tea\n")
    result = run(data=file)
    data = json.loads((result.out / "versions.json").read_text())["data"]["harmful"]
    assert data["file"] == "prompts.txt" and data["num_examples"] == 2
    assert "prompts.txt" in (result.out / "README.md").read_text()


def test_prompts_are_drawn_by_the_seed(run, tmp_path, monkeypatch):
    """The training gets the drawn ones alone, and the record says how many."""
    file = tmp_path / "prompts.txt"
    file.write_text("".join(f"how do i bake {number} loaves\n" for number in range(50)))
    trained = []
    from_data = MosaTrainer.from_data.__func__

    def watched(cls, model, config, data):
        trained.append([example.prompt for example in data.harmful])
        return from_data(cls, model, config, data)

    monkeypatch.setattr(MosaTrainer, "from_data", classmethod(watched))
    for out in ("one", "two"):
        result = run(out, data=file, overrides={"num_prompts": 5, "max_steps": 1})
    data = json.loads((result.out / "versions.json").read_text())["data"]["harmful"]
    assert data["num_examples"] == 5
    assert trained[0] == trained[1] and len(set(trained[0])) == 5
    assert trained[0] != [f"how do i bake {number} loaves" for number in range(5)]
    with refuses("num_prompts", "51", "50"):
        run("three", data=file, overrides={"num_prompts": 51})


def test_tensorboard_and_kept_checkpoints(run):
    settings = {"report_to": "tensorboard", "keep_checkpoints": True, "save_steps": 2}
    result = run(overrides=settings)
    assert (result.out / "checkpoint-4").is_dir()
    assert list(result.out.rglob("events.out.tfevents.*"))


def test_mistakes(run, tmp_path, benign):
    with refuses("nothing", "method"):
        run(method="nothing")
    with refuses("benign", "benign_beta"):
        run(benign=benign)
    with refuses(tmp_path / "nothing.csv"):
        run(data=tmp_path / "nothing.csv")
    with refuses("sft", "SftConfig", "MosaConfig"):
        run_training("sft", tiny_model(), [], tmp_path / "x", config=MosaConfig())
    with refuses("output_dir=y", tmp_path / "x"):
        run_training("sft", tiny_model(), [], tmp_path / "x", config=SftConfig(output_dir="y"))
    with refuses("seed"):
        run_training(
            "sft", tiny_model(), [], tmp_path / "x", config=SftConfig(), overrides={"seed": 1}
        )


@pytest.mark.parametrize(
    "settings",
    [
        {"optim": "adamw_8bit"},
        {"optim": "galore_adamw"},
        {"optim": "sgd", "optim_args": "nonsense"},
        {"lr_scheduler_type": "cosine_with_min_lr"},
        {"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"num_cycles": "x"}},
        {"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"nonsense": 1}},
    ],
    ids=str,
)
def test_what_the_library_cannot_make_of_settings_is_told(run, tmp_path, settings):
    """Also where it finds that out as the first step begins; then the same folder may be used."""
    with refuses("training setting"):
        run(overrides=settings)
    assert not (tmp_path / "out" / "adapter_model.safetensors").exists()
    assert run(overrides={"max_steps": 1}).num_steps == 1


def test_a_training_without_a_step_is_none(run, tmp_path):
    """Eight prompts make no whole batch of nine."""
    settings = {"dataloader_drop_last": True, "per_device_train_batch_size": 9}
    with refuses("dataloader_drop_last", "8"):
        run(overrides=settings)
    assert not (tmp_path / "out" / "adapter_model.safetensors").exists()


# ------------------------------------------------------------------------- numbers that are none


@pytest.mark.parametrize("overrides", [{}, {"save_strategy": "no"}])
def test_an_update_that_breaks_the_weights_saves_nothing(run, tmp_path, overrides):
    """What is logged comes before the last update, and the last update is the only one here."""
    with refuses("learning_rate"):
        run(overrides={"max_steps": 1, "learning_rate": 1e30, "warmup_steps": 0, **overrides})
    assert not (tmp_path / "out" / "adapter_model.safetensors").exists()


def test_all_weights_that_break_are_not_saved(tmp_path, checkpoint, phrase_files, harmful):
    settings = {**SMALL, "max_steps": 1, "learning_rate": 1e30, "trainable": "full"}
    settings = {name: settings[name] for name in settings if name not in ("lora_r", "lora_alpha")}
    for name in ("window_start", "window_end"):
        del settings[name]
    with refuses("learning_rate"):
        run_training(
            "sft", checkpoint, harmful, tmp_path / "full", overrides=settings, progress=False
        )
    assert not list((tmp_path / "full").glob("*.safetensors"))


def test_a_merge_says_its_format_and_what_rounding_costs(run, checkpoint, tmp_path):
    result = run()
    said = {}
    for dtype in ("float32", "bfloat16"):
        merge(checkpoint, result.out, tmp_path / dtype, dtype=dtype, on_merged=said.__setitem__)
    assert said["float32"] == 0
    assert 0.001 < said["bfloat16"] < 1
    merged = load_model(tmp_path / "bfloat16")
    assert merged.dtype == torch.bfloat16


def test_a_merge_that_overflows_is_refused(run, checkpoint, tmp_path):
    """1e5 fits into float32 and not into float16."""
    result = run()
    tensors = weights(result.out)
    large = {name: t.fill_(300.0) for name, t in tensors.items()}
    safetensors.torch.save_file(large, result.out / "adapter_model.safetensors")
    with refuses("float16", "--dtype float32"):
        merge(checkpoint, result.out, tmp_path / "merged", dtype="float16")
    assert not list((tmp_path / "merged").glob("*"))
