"""Plain steps are ours to float rounding, and the tables say what was measured."""

from __future__ import annotations

import dataclasses
import json
import re

import pytest
import torch
from refusals import refuses

from mosa import cli
from mosa.alignment import MosaTrainer
from mosa.bench import align, common
from mosa.bench.align import (
    AlignBenchConfig,
    AlignSetting,
    PlainTrainer,
    bench_align,
    loss_and_gradient,
    steps_of,
    trainer_of,
)
from mosa.bench.common import Shape

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def tiny(monkeypatch) -> Shape:
    """A shape with random weights that is quick to run, known by the name `tiny`."""
    shape = Shape(
        name="tiny",
        summary="width 32",
        dtype="float32",
        batch=(1,),
        length=8,
        block_length=4,
        steps=4,
        repeats=1,
        prompt=6,
        config={
            "model_type": "llada",
            "d_model": 32,
            "n_heads": 2,
            "n_kv_heads": 2,
            "n_layers": 2,
            "mlp_hidden_size": 64,
            "max_sequence_length": 256,
            "vocab_size": 1500,
            "embedding_size": 1500,
            "mask_token_id": 1490,
            "eos_token_id": 1480,
            "pad_token_id": 1480,
        },
    )
    monkeypatch.setitem(common.SHAPES, "tiny", shape)
    return shape


@pytest.fixture
def tiny_blocks(tiny, monkeypatch) -> Shape:
    """The same in blocks of 4 that begin with the prompt, by the name `blocks`."""
    config = {
        "model_type": "sdar",
        "hidden_size": 32,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "num_hidden_layers": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 256,
        "block_size": 4,
        "vocab_size": 1500,
        "mask_token_id": 1490,
        "eos_token_id": 1480,
        "pad_token_id": 1480,
    }
    shape = dataclasses.replace(tiny, name="blocks", config=config)
    monkeypatch.setitem(common.SHAPES, "blocks", shape)
    return shape


@pytest.fixture
def in_one_process(monkeypatch):
    """Peaks without a process for each; the processes have a test of their own."""
    monkeypatch.setattr(align, "peak_memory", lambda device, run, *spawned: 3 * 2**20)


def setting_of(shape: Shape, **overrides) -> AlignSetting:
    return AlignSetting(
        shape=shape,
        dtype="float32",
        batch=2,
        prompt=6,
        seed=0,
        source="mosa_llada_paper",
        overrides={"response_length": 64, "use_cpu": True, **overrides},
    )


@pytest.mark.parametrize("name", ["tiny", "blocks"])
def test_the_plain_step_is_ours(tiny_blocks, name):
    """Loss and gradients agree at first; so do three updates of each.

    The updates are those of plain gradient descent: Adam divides by the size of a gradient, and so
    makes a whole step of one that is rounding alone.
    """
    setting = setting_of(common.SHAPES[name], optim="sgd", learning_rate=10.0)
    trainers = [trainer_of(name, setting, CPU, num_steps=1) for name in ("plain", "mosa")]
    plain, ours = trainers
    assert isinstance(plain, PlainTrainer) and type(ours) is MosaTrainer
    assert plain.reference.network is not plain.diffusion_model.network
    (loss, gradient), (our_loss, our_gradient) = map(loss_and_gradient, trainers)
    assert our_loss == pytest.approx(loss, rel=1e-5)
    assert (our_gradient - gradient).norm() < 1e-4 * gradient.norm()
    before = adapter(ours)
    for trainer in trainers:
        step = steps_of(trainer)
        step()
        step()
    moved = adapter(plain) - before
    assert moved.norm() > 0.1, "three updates, each clipped to a gradient of 0.01"
    apart = (adapter(ours) - adapter(plain)).norm()
    assert apart < 1e-3 * moved.norm()


def adapter(trainer: MosaTrainer) -> torch.Tensor:
    trained = [p for p in trainer.diffusion_model.network.parameters() if p.requires_grad]
    return torch.cat([p.detach().flatten() for p in trained])


def test_prompts_have_the_length_that_is_asked(tiny):
    trainer = trainer_of("mosa", setting_of(tiny), CPU, num_steps=2)
    assert [len(example.prompt_ids) for example in trainer.examples] == [6] * 4


@pytest.mark.parametrize("shape", ["tiny", "blocks"])
def test_tables_and_notes(in_one_process, tiny_blocks, shape):
    told = []
    config = AlignBenchConfig(
        shape=shape, prompt=6, batch=2, repeats=2, projected_steps=2, device="cpu"
    )
    result = bench_align(config, tell=lambda *line: told.append(line))
    assert told[-1][1] == told[-1][2]
    head, projection, profile = (table.plain() for table in result.tables)
    assert [row["step"] for row in head["rows"]] == ["plain", "mosa"]
    assert [line.partition(":")[0] for line, _, _ in told] == ["plain", "mosa"]
    plain, ours = head["rows"]
    assert ours["times as fast"] == pytest.approx(plain["seconds"] / ours["seconds"])
    assert plain["times as fast"] is None and ours["memory"] == 1.0
    assert ours["prompts/s"] == pytest.approx(2 / ours["seconds"])
    (row,) = projection["rows"]
    assert (row["prompts"], row["batch"], row["measured steps"]) == (3000, 2, 2)
    assert row["projected seconds"] == pytest.approx(1500 * row["seconds/step"])
    assert row["peak GB with weights"] is None
    assert profile["rows"]
    apart = re.search(r"gradients differ by (\S+) of their norm", result.notes[0])
    assert apart is not None and float(apart[1]) < 1e-4


def test_activation_checkpointing_reaches_the_layers(tiny):
    trainer = trainer_of("mosa", setting_of(tiny, activation_checkpointing=True), CPU, num_steps=1)
    step, count = steps_of(trainer), []
    network = trainer.diffusion_model.network
    layer = network.get_submodule("base_model.model.model.layers.0.self_attn.q_proj")
    layer.register_forward_hook(lambda *_: count.append(1))
    step()
    assert len(count) == 3, "reference, policy, and the policy's layer once more"


@pytest.mark.slow
def test_ours_alone_with_its_peak_in_a_process_of_its_own():
    config = AlignBenchConfig(
        shape="tiny", against="none", prompt=6, batch=2, repeats=1, device="cpu"
    )
    head = bench_align(config).tables[0].plain()
    (row,) = head["rows"]
    assert row["step"] == "mosa" and row["times as fast"] is None
    assert 0 < row["peak MiB"] < 1000


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"batch": 0}, ("--batch", 0)),
        ({"projected_steps": -1}, ("--projected_steps", -1)),
        ({"shape": "huge"}, ("shape", "huge")),
        ({"shape": "diffusion_gemma"}, ("--shape diffusion_gemma", "wide")),
        ({"shape": "llada-8b"}, ("llada-8b", "--device cuda")),
        ({"length": 10}, ("window_start", "response_length", 10)),
    ],
)
def test_settings_that_do_not_fit(settings, names):
    with refuses(*names):
        bench_align(AlignBenchConfig(**{"shape": "tiny", "device": "cpu", **settings}))


def test_command_shows_and_writes(in_one_process, tmp_path, capsys):
    file = tmp_path / "a.json"
    words = "bench align --shape tiny --batch 2 --prompt 6 --repeats 1 --device cpu"
    assert cli.main([*words.split(), "--json", str(file)]) == 0
    shown = capsys.readouterr().out
    assert "plain: " in shown and "times as fast" in shown
    read = json.loads(file.read_text(encoding="utf-8"))
    assert [row["step"] for row in read["tables"][0]["rows"]] == ["plain", "mosa"]
