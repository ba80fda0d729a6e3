"""The reference is ours at temperature 0, and the table says what was measured."""

from __future__ import annotations

import dataclasses
import json
import re

import pytest
import torch
from refusals import cli_refuses, refuses
from tiny_models import (
    DIFFUSION_GEMMA_LAYOUT,
    LLADA2_LAYOUT,
    LLADA_MOE_LAYOUT,
    SDAR_MOE_LAYOUT,
    llada_tokenizer,
    qwen3_layout,
    randomised,
    tiny_llada_config,
)

from mosa import cli
from mosa.bench import common, sampler
from mosa.bench.common import Shape
from mosa.bench.published import published_loop
from mosa.bench.sampler import SamplerBenchConfig, Setting, bench_sampler
from mosa.denoising import Canvas, DecoderConfig, sample
from mosa.families import new_model

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
    filled = published_loop(model, canvas, setting.decoder)
    assert (filled.num_forward_passes, filled.num_row_passes) == (steps, 3 * steps)
    assert torch.equal(filled.tokens, sample(model, canvas, setting.decoder).tokens)


def test_reference_draws_above_temperature_0(tiny, tiny_llada):
    """It fills all but what it drew as masks, and another seed draws otherwise."""
    canvas = Canvas.from_prompts(tiny_llada, PROMPTS, max_new_tokens=12)
    tokens = published_loop(tiny_llada, canvas, setting_of(tiny, 1.0).decoder).tokens
    assert (tokens != tiny_llada.mask_token_id).float().mean() > 0.9
    greedy = published_loop(tiny_llada, canvas, setting_of(tiny).decoder).tokens
    assert not torch.equal(tokens, greedy)


MDLM = qwen3_layout(model_type="a2d-qwen3")
BD3LM = {**MDLM, "block_size": 4}
SDAR = qwen3_layout(model_type="sdar", block_size=4)
LLADA2 = {**LLADA2_LAYOUT, "block_size": 4}
SDAR_MOE = {**SDAR_MOE_LAYOUT, "block_size": 4}


@pytest.mark.parametrize(
    ("config", "num_calls", "num_row_calls"),
    [
        pytest.param(MDLM, 6, 18, id="mdlm"),
        pytest.param(LLADA_MOE_LAYOUT, 6, 18, id="LLaDA-MoE"),
        pytest.param(BD3LM, 6 + 4, 3 * (6 + 4), id="bd3lm"),
        pytest.param(SDAR, 3 * (7 + 4), 3 * (7 + 4), id="SDAR"),
        pytest.param(SDAR_MOE, 3 * (7 + 4), 3 * (7 + 4), id="SDAR-MoE"),
        pytest.param(LLADA2, 3 * 7, 3 * 7, id="LLaDA2"),
    ],
)
def test_reference_of_each_family_is_ours(config, num_calls, num_row_calls):
    """Three prompts of 6 tokens and 12 to fill in blocks of 4, two steps for each block.

    Counted from the prompt's first token that are 4 blocks, the first with two masks, which take
    one step; from the response's 3. bd3lm keeps the prompt and every block, SDAR the prompt's whole
    block and all but the last.
    """
    model = randomised(new_model(config, seed=5), 5)
    prompts = torch.randint(0, 300, (3, 6), generator=torch.Generator().manual_seed(1))
    canvas = Canvas.from_prompts(model, prompts, max_new_tokens=12)
    decoder = DecoderConfig(max_new_tokens=12, block_length=4, steps=6)
    filled = published_loop(model, canvas, decoder)
    assert (filled.num_forward_passes, filled.num_row_passes) == (num_calls, num_row_calls)
    assert torch.equal(filled.tokens, sample(model, canvas, decoder).tokens)


@pytest.mark.parametrize("config", [SDAR, LLADA2], ids=["SDAR", "LLaDA2"])
def test_reference_commits_above_a_threshold_and_edits(config):
    """These are settings of the published loops, so the reference has them too."""
    model = randomised(new_model(config, seed=5), 5)
    canvas = Canvas.from_prompts(model, torch.arange(10).reshape(2, 5), max_new_tokens=12)
    plain = DecoderConfig(max_new_tokens=12, block_length=4, steps=12)
    decoder = dataclasses.replace(plain, threshold=0.03, edit_threshold=0.02, max_post_steps=3)
    filled = published_loop(model, canvas, decoder)
    assert torch.equal(filled.tokens, sample(model, canvas, decoder).tokens)
    assert not torch.equal(filled.tokens, published_loop(model, canvas, plain).tokens)


@pytest.mark.parametrize("config", [BD3LM, SDAR, LLADA2], ids=["bd3lm", "SDAR", "LLaDA2"])
def test_block_references_draw_above_temperature_0(config):
    model = randomised(new_model(config, seed=5), 5)
    canvas = Canvas.from_prompts(model, torch.arange(12).reshape(2, 6), max_new_tokens=12)
    greedy = DecoderConfig(max_new_tokens=12, block_length=4, steps=6)
    drawn = published_loop(model, canvas, dataclasses.replace(greedy, temperature=1.0)).tokens
    assert (drawn != model.mask_token_id).float().mean() > 0.9
    assert not torch.equal(drawn, published_loop(model, canvas, greedy).tokens)


def test_references_fill_the_networks_own_blocks():
    model = new_model(SDAR, seed=5)
    canvas = Canvas.from_prompts(model, torch.arange(12).reshape(2, 6), max_new_tokens=12)
    with refuses("--block_length", "4", "6"):
        published_loop(model, canvas, DecoderConfig(max_new_tokens=12, block_length=6, steps=6))


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
    limit = {"compute": 1e6, "bandwidth": 1e6}
    shares = sampler._limit_shares(limit, tiny_llada, setting, name, filled, 2.0)
    num_logits = 18 if name == "reference" else 2
    assert shares["compute"] == 6 * 3 * common.forward_flop(tiny_llada, 1, 18, num_logits) / 2e6
    size = 4 * sum(weight.numel() for weight in tiny_llada.network.parameters())
    assert shares["bandwidth"] == 6 * size / 2e6
    cached = setting_of(tiny, cache="dual")
    shares = sampler._limit_shares(limit, tiny_llada, cached, name, filled, 2.0)
    assert (shares == {}) == (name == "mosa")
    by_block = new_model(SDAR, seed=0)
    assert sampler._limit_shares(limit, by_block, setting, name, filled, 2.0) == {}


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
    assert out.read_text(encoding="utf-8").split("\n", 1)[1] in shown
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


def test_reference_of_noise_is_the_librarys_own():
    """Every step of every canvas, of all rows together; what it draws is its own."""
    model = randomised(new_model(DIFFUSION_GEMMA_LAYOUT, seed=5), 5)
    prompts = torch.randint(0, 300, (3, 6), generator=torch.Generator().manual_seed(1))
    canvas = Canvas.from_prompts(model, prompts, max_new_tokens=20)
    decoder = DecoderConfig(max_new_tokens=20, steps=6, rules=({"name": "renoise"},))
    filled = published_loop(model, canvas, decoder)
    assert (filled.num_forward_passes, filled.num_row_passes) == (6, 18)
    ours = sample(model, canvas, decoder)
    assert ours.num_forward_passes == 6 and filled.tokens.shape == ours.tokens.shape
