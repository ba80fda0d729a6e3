"""Shapes, turns, ratios, peaks, profiles, and how results are written."""

from __future__ import annotations

import json
import os

import pytest
import torch
from refusals import refuses
from torch.profiler import record_function

from mosa.bench.common import (
    OUTSIDE,
    SHAPES,
    STAGE,
    BenchResult,
    BenchTable,
    Environment,
    Timings,
    bench_canvas,
    bench_model,
    forward_flop,
    in_own_process,
    limit_of,
    peak_memory,
    profile_table,
    shape_named,
    side_by_side,
    threads,
)
from mosa.families import new_model
from mosa.worker import device_of

pytestmark = pytest.mark.integration

CPU = torch.device("cpu")


# --- shapes ---------------------------------------------------------------------------------------


def test_the_shapes_are_those_of_the_docs():
    small = {"testbed", "wide", "qwen3_mdlm", "qwen3_bd3lm", "sdar", "llada2", "llada_moe"}
    small |= {"diffusion_gemma"}
    large = {"llada-8b", "qwen3-0.6b", "sdar-1.7b", "llada2-mini"}
    assert set(SHAPES) == small | large
    assert {name for name, shape in SHAPES.items() if shape.needs_accelerator} == large
    assert all(shape.steps >= shape.length // shape.block_length for shape in SHAPES.values())


@pytest.mark.parametrize(
    ("name", "family", "billions"),
    [
        ("qwen3-0.6b", "A2D", 0.596),
        ("sdar-1.7b", "SDAR", 2.032),
        ("llada2-mini", "LLaDA2", 16.26),
        ("llada-8b", "LLaDA", 8.016),
    ],
)
def test_the_large_shapes_are_the_released_ones(name, family, billions):
    """By their weights; SDAR-1.7B has a head of its own, Qwen3's 1.72 and 0.31 billion."""
    shape = SHAPES[name]
    assert shape.config is not None
    with torch.device("meta"):
        model = new_model(shape.config, seed=0, dtype=torch.bfloat16)
    assert model.family.name == family
    num_weights = sum(weight.numel() for weight in model.network.parameters())
    assert num_weights / 1e9 == pytest.approx(billions, rel=1e-3)


@pytest.mark.parametrize(
    "name", ["qwen3_mdlm", "qwen3_bd3lm", "sdar", "llada2", "llada_moe", "diffusion_gemma"]
)
def test_a_small_shape_of_each_family(name):
    """Its network fills the shape's blocks, and its prompts hold no special token."""
    shape = SHAPES[name]
    model = bench_model(shape, CPU)
    assert model.attention.block_length in (None, shape.block_length)
    assert shape.length % shape.block_length == 0
    canvas = bench_canvas(model, shape, 2, prompt=shape.prompt, length=shape.length, seed=0)
    assert int(canvas.free.sum()) == 2 * shape.length


def test_a_shape_that_is_not_there():
    with refuses("huge", "llada-8b", "testbed", "wide"):
        shape_named("huge")


def test_a_large_shape_needs_an_accelerator():
    with refuses("llada-8b", "--shape"):
        bench_model(SHAPES["llada-8b"], CPU)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there():
    assert device_of(None) == CPU
    with refuses("cuda", "device"):
        device_of("cuda")
    with refuses("warp", "device"):
        device_of("warp")


def test_the_testbed_is_asked_its_own_requests():
    """They differ in length, so rows are padded; the same seed draws the same."""
    shape = SHAPES["testbed"]
    model = bench_model(shape, CPU)
    canvas = bench_canvas(model, shape, 6, prompt=None, length=8, seed=3)
    lengths = canvas.attention_mask.sum(dim=1)
    assert len(set(lengths.tolist())) > 1
    assert int(canvas.free.sum()) == 6 * 8
    again = bench_canvas(model, shape, 6, prompt=None, length=8, seed=3)
    assert torch.equal(canvas.tokens, again.tokens)


def test_drawn_prompts_hold_no_special_token(tiny_llada):
    canvas = bench_canvas(tiny_llada, SHAPES["wide"], 4, prompt=50, length=4, seed=0)
    prompt = canvas.tokens[:, :50]
    special = torch.tensor([tiny_llada.mask_token_id, *tiny_llada.end_token_ids])
    assert canvas.response_start == 50
    assert not torch.isin(prompt, special).any()


# --- time -----------------------------------------------------------------------------------------


def test_contestants_take_turns():
    """One warm-up round, then two rounds; what is kept is what each returned first."""
    turns = []

    def contestant(name):
        def run():
            turns.append(name)
            return f"{name}{len(turns)}"

        return run

    runs = {"a": contestant("a"), "b": contestant("b")}
    timings = side_by_side(runs, repeats=2, device=CPU)
    assert "".join(turns) == "ababab"
    assert timings.first == {"a": "a1", "b": "b2"}
    assert [len(timings.seconds[name]) for name in "ab"] == [2, 2]


def test_no_round_begins_after_the_bound():
    timings = side_by_side({"a": lambda: None}, repeats=9, device=CPU, warmup=0, max_seconds=0.0)
    assert len(timings.seconds["a"]) == 1


def test_ratio_is_that_of_the_medians():
    """Medians 4 and 1; the rounds by themselves give 2, 4 and 2."""
    timings = Timings({"slow": (2.0, 4.0, 6.0), "fast": (1.0, 1.0, 3.0)}, {})
    assert timings.ratio("slow", "fast") == {"times as fast": 4.0, "low": 2.0, "high": 4.0}


def test_threads_are_given_back():
    before = torch.get_num_threads()
    with threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
    with refuses("--threads", "0"), threads(0):
        pass


# --- memory ---------------------------------------------------------------------------------------


def prepare_megabytes(num: int):
    """A run that holds so many MB for a moment; at the head of the module, as a process needs."""
    return lambda: bytearray(num * 10**6).count(1)


def end_process():
    os._exit(1)


def test_peak_is_that_of_the_run():
    """100 MB, give or take what the interpreter takes for itself."""
    peak = peak_memory(CPU, prepare_megabytes(0), prepare_megabytes, 100)
    assert 95e6 < peak < 130e6


def test_a_process_that_is_ended():
    with refuses("memory"):
        in_own_process(end_process)


# --- profile and limits ---------------------------------------------------------------------------


def profile_of(run) -> tuple[dict[str, dict], dict[str, dict]]:
    """The rows of a profile by part: stages, and operators."""
    rows = {row["part"]: row for row in profile_table("A run", run, CPU).plain()["rows"]}
    stages = {name for name in rows if name.startswith(STAGE) or name == OUTSIDE}
    return {name: rows[name] for name in rows if name in stages}, {
        name: rows[name] for name in rows if name not in stages
    }


def test_profile_tells_stages_and_operators_apart(capfd):
    weights = torch.randn(64, 64)

    def run():
        for _ in range(3):
            with record_function("mosa.network"):
                weights.mm(weights)
        with record_function("mosa.commit"):
            weights.argsort()

    stages, operators = profile_of(run)
    assert list(stages) == ["mosa.network", "mosa.commit", "outside"]
    assert [stages[name]["calls"] for name in ("mosa.network", "mosa.commit")] == [3, 1]
    assert sum(stage["share"] for stage in stages.values()) == pytest.approx(1)
    assert operators["aten::mm"]["calls"] == 3
    seconds = [operator["seconds"] for operator in operators.values()]
    assert seconds == sorted(seconds, reverse=True)
    assert capfd.readouterr().err == "", "the profiler says nothing of itself"


def test_a_stage_inside_another_counts_once():
    """All the work is in the inner one, so the outer one keeps next to nothing of it."""
    weights = torch.randn(300, 300)

    def run():
        with record_function("mosa.propose"), record_function("mosa.head"):
            for _ in range(20):
                weights.mm(weights)

    stages, _ = profile_of(run)
    assert 0 <= stages["mosa.propose"]["seconds"] < stages["mosa.head"]["seconds"]


def test_profile_without_labels_has_operators_alone():
    stages, operators = profile_of(lambda: torch.ones(3) + 1)
    assert not stages and "aten::add" in operators


def test_operations_of_a_forward_pass(tiny_llada):
    """Width 32, 2 layers, inner width 48: 4 * 32² + 3 * 32 * 48 = 8,704 weights a layer.

    For 2 rows of 10 tokens: 2 * 2 * 8,704 * 10 = 348,160 a row, attention 4 * 10² * 32 * 2 =
    25,600, and the head for 3 positions 2 * 32 * 384 * 3 = 73,728.
    """
    assert forward_flop(tiny_llada, 2, 10, 3) == 2 * (348_160 + 25_600 + 73_728)


def test_operations_of_the_large_shape():
    """2.898 TFLOP for 192 tokens, as worked out from the released config."""
    config = SHAPES["llada-8b"].config
    assert config is not None
    with torch.device("meta"):
        model = new_model(config, seed=0, dtype=torch.bfloat16)
    assert forward_flop(model, 1, 192, 192) == pytest.approx(2.898e12, rel=1e-3)


def test_a_cpu_has_no_known_limit():
    assert limit_of(CPU) is None


# --- results --------------------------------------------------------------------------------------


@pytest.fixture
def result() -> BenchResult:
    columns = {"sampler": "", "seconds": ".2f", "equal": ".0%", "x": "d"}
    rows = [
        {"sampler": "reference", "seconds": 2.0},
        {"sampler": "mosa", "seconds": 0.5, "equal": 0.25, "x": None},
    ]
    environment = Environment.of("mosa bench sampler --batch 1", CPU)
    return BenchResult(environment, (BenchTable("Times", columns, rows),), ("A verdict.",))


def test_text_lines_up_and_leaves_out_what_nobody_has(result):
    text = result.text()
    assert text.startswith("$ mosa bench sampler --batch 1\n")
    assert f"torch {torch.__version__}" in text
    assert f"{torch.get_num_threads()} threads, device cpu" in text
    assert text.endswith(
        "Times\n"
        "sampler    seconds  equal\n"
        "reference     2.00      -\n"
        "mosa          0.50    25%\n"
        "\n"
        "A verdict.\n"
    )


def test_files_hold_what_is_shown(result, tmp_path):
    result.write(tmp_path / "new" / "a.txt", tmp_path / "a.json")
    _, shown = (tmp_path / "new" / "a.txt").read_text(encoding="utf-8").split("\n", 1)
    assert shown == result.text()
    read = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    assert read["tables"][0]["rows"][1] == {
        "sampler": "mosa",
        "seconds": 0.5,
        "equal": 0.25,
        "x": None,
    }
    assert read["environment"]["device"] == "cpu"
    assert read["notes"] == ["A verdict."]
