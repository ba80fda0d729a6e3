"""The reference is ours at temperature 0, and the table says what was measured."""

from __future__ import annotations

import json
import re

import pytest
import torch
from refusals import cli_refuses, refuses
from tiny_models import llada_tokenizer, tiny_llada_config

from mosa import cli
from mosa.bench import common, sampler
from mosa.bench.common import Shape
from mosa.bench.sampler import SamplerBenchConfig, Setting, bench_sampler, published_loop
from mosa.denoising import Canvas, DecoderConfig, sample

PROMPTS = ["Tell me how to make tea.", "A story?", "First read aloud to a friend, then stop here."]


@pytest.fixture(autouse=True)
def tiny(monkeypatch) -> Shape:
    """A shape with random weights that is quick to run, known by the name `tiny`."""
    shape = Shape(
        name="tiny",
        summary="width 32",
        dtype="float32",
        batch=(1, 2),
        length=8,
        block_length=4,
        steps=4,
        repeats=2,
        prompt=6,
        config=tiny_llada_config(llada_tokenizer()),
    )
    monkeypatch.setitem(common.SHAPES, "tiny", shape)
    return shape


@pytest.fixture
def in_one_process(monkeypatch):
    """Peaks without a process for each; the processes have a test of their own."""
    monkeypatch.setattr(sampler, "peak_memory", lambda device, run, *spawned: 3 * 2**20)


def setting_of(shape: Shape, temperature: float = 0.0, **others) -> Setting:
    settings = {"max_new_tokens": 12, "block_length": 4, "steps": 6, **others}
    return Setting(shape, "float32", 3, 6, DecoderConfig(temperature=temperature, **settings))


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("steps", [3, 6, 12])
def test_reference_is_ours_at_temperature_0(tiny, new_tiny_llada, seed, steps):
    """Prompts of different lengths, padded on the left; 4, 2 and 1 commits in a step."""
    model = new_tiny_llada(seed=seed)
    canvas = Canvas.from_prompts(model, PROMPTS, max_new_tokens=12)
    assert not canvas.attention_mask.all()
    setting = setting_of(tiny, steps=steps)
    filled = published_loop(model, canvas, setting)
    assert (filled.num_forward_passes, filled.num_row_passes) == (steps, 3 * steps)
    assert torch.equal(filled.tokens, sample(model, canvas, setting.decoder).tokens)


def test_reference_draws_above_temperature_0(tiny, tiny_llada):
    """It fills all but what it drew as masks, and another seed draws otherwise."""
    canvas = Canvas.from_prompts(tiny_llada, PROMPTS, max_new_tokens=12)
    tokens = published_loop(tiny_llada, canvas, setting_of(tiny, 1.0)).tokens
    assert (tokens != tiny_llada.mask_token_id).float().mean() > 0.9
    greedy = published_loop(tiny_llada, canvas, setting_of(tiny)).tokens
    assert not torch.equal(tokens, greedy)


def test_rows_and_what_they_hold(in_one_process):
    told = []
    result = bench_sampler(
        SamplerBenchConfig(shape="tiny", device="cpu"), tell=lambda *line: told.append(line)
    )
    assert told[-1][1] == told[-1][2]
    table = result.tables[0].plain()["rows"]
    expected = [(b, t, name) for b in (1, 2) for t in (0, 1) for name in ("reference", "mosa")]
    assert [(row["batch"], row["temp"], row["sampler"]) for row in table] == expected
    assert [line.partition(": ")[0] for line, _, _ in told] == [
        f"batch {b}, temperature {t}, {name}" for b, t, name in expected
    ]
    for first, second in zip(table[::2], table[1::2], strict=True):
        assert first["times as fast"] is None
        assert second["times as fast"] == pytest.approx(first["seconds"] / second["seconds"])
        assert second["low"] <= second["high"]
        assert second["equal"] == (1.0 if second["temp"] == 0 else None)
        assert (second["passes"], second["tokens/pass"], second["peak MiB"]) == (4, 2.0, 3.0)
        assert second["tokens/s"] == pytest.approx(8 * second["batch"] / second["seconds"])
        assert second["ms/pass"] == pytest.approx(1000 * second["seconds"] / 4)
    assert [table.title for table in result.tables[1:]] == [
        "Where the time goes: batch 2, temperature 0",
        "Where the time goes: batch 2, temperature 1",
    ]


def test_approximate_settings_beside_none(in_one_process):
    """A threshold of 0 commits a block in a pass: 2 passes for 2 blocks instead of 4."""
    config = SamplerBenchConfig(
        shape="tiny", against="exact", batch=(2,), temperature=(0.0,), device="cpu"
    )
    result = bench_sampler(config, {"threshold": 0.0})
    rows = result.tables[0].plain()["rows"]
    assert [(row["sampler"], row["passes"]) for row in rows] == [("exact", 4), ("mosa", 2)]
    assert "mosa: threshold 0.0" in result.text()


def test_ours_alone(in_one_process):
    config = SamplerBenchConfig(shape="tiny", against="none", batch=(1,), device="cpu")
    rows = bench_sampler(config).tables[0].plain()["rows"]
    assert [(row["sampler"], row["times as fast"]) for row in rows] == [("mosa", None)] * 2


@pytest.mark.parametrize("name", ["reference", "mosa"])
def test_shares_of_a_limit(tiny, tiny_llada, name):
    """A device of 1 MFLOP/s and 1 MB/s, and a run of 2 s: 6 passes of 3 rows of 18 tokens.

    The reference takes logits for all of them, ours for half a block of 4.
    """
    setting = setting_of(tiny)
    filled = sampler.contestant(name, setting, tiny_llada)()
    limit = common.Limit(flops=1e6, bytes=1e6)
    shares = sampler._limit_shares(limit, tiny_llada, setting, name, filled, 2.0)
    num_logits = 18 if name == "reference" else 2
    assert shares["compute"] == 6 * 3 * common.forward_flop(tiny_llada, 1, 18, num_logits) / 2e6
    size = 4 * sum(weight.numel() for weight in tiny_llada.network.parameters())
    assert shares["bandwidth"] == 6 * size / 2e6
    cached = setting_of(tiny, cache="dual")
    shares = sampler._limit_shares(limit, tiny_llada, cached, name, filled, 2.0)
    assert (shares == {}) == (name == "mosa")


def test_peak_is_measured_in_a_process_of_its_own():
    config = SamplerBenchConfig(
        shape="tiny", against="none", batch=(1,), temperature=(0.0,), device="cpu"
    )
    (row,) = bench_sampler(config).tables[0].plain()["rows"]
    assert 0 < row["peak MiB"] < 1000


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"against": "exact"}, ("--against", "exact", "--threshold")),
        ({"steps": 3}, ("--block_length", "--steps 3")),
        ({"length": 10}, ("--block_length", "--length 10")),
        ({"steps": 0}, ("--steps", 0)),
        ({"batch": (1, 0)}, ("--batch", "(1, 0)")),
        ({"dtype": "int8"}, ("--dtype", "int8")),
        ({"shape": "huge"}, ("shape", "huge")),
    ],
)
def test_settings_that_do_not_fit(settings, names):
    with refuses(*names):
        bench_sampler(SamplerBenchConfig(**{"shape": "tiny", "device": "cpu", **settings}))


# --- the command ----------------------------------------------------------------------------------


def test_command_shows_and_writes(in_one_process, tmp_path, capsys):
    out, file = tmp_path / "a.txt", tmp_path / "a.json"
    words = "bench sampler --shape tiny --batch 1,2 --temperature 0 --threshold 0.5 --device cpu"
    assert cli.main([*words.split(), "--out", str(out), "--json", str(file)]) == 0
    shown = capsys.readouterr().out
    assert "batch 2, temperature 0, mosa: " in shown
    assert out.read_text(encoding="utf-8") in shown
    read = json.loads(file.read_text(encoding="utf-8"))
    assert [row["batch"] for row in read["tables"][0]["rows"]] == [1, 1, 2, 2]
    for option in ("--batch 1,2", "--temperature 0", "--threshold 0.5", f"--out {out}"):
        assert option in read["environment"]["command"]


def test_command_reads_settings_from_a_file(in_one_process, tmp_path, capsys):
    config = tmp_path / "bench.yaml"
    config.write_text("shape: tiny\nbatch: '2'\nagainst: none\n", encoding="utf-8")
    assert cli.main(["bench", "sampler", "--config", str(config), "--device", "cpu"]) == 0
    (command,) = re.findall(r"\$ mosa bench sampler (.*)", capsys.readouterr().out)
    assert "--batch 2" in command and "--shape tiny" in command


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ("--shape llada-8b --device cpu", ("llada-8b", "--device cuda")),
        ("--batch 1,x", ("--batch", "1,x")),
        ("--temperature hot", ("--temperature", "hot")),
        ("--against nothing", ("against", "nothing")),
    ],
)
def test_command_refuses(words, names, capsys):
    cli_refuses(capsys, ["bench", "sampler", *words.split()], *names)
