"""benchmarks/blocks.py: its four contestants write the same, and its tables say what they did."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
from tiny_models import LLADA2_LAYOUT, qwen3_layout, randomised

from mosa.bench.common import Shape
from mosa.bench.sampler import Setting
from mosa.denoising import DecoderConfig
from mosa.families import new_model

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "blocks.py"
LAYOUTS = {
    "SDAR": qwen3_layout(model_type="sdar", block_size=4),
    "LLaDA2": {**LLADA2_LAYOUT, "block_size": 4},
}


@pytest.fixture(scope="module")
def blocks():
    spec = importlib.util.spec_from_file_location("blocks_script", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_contestants_write_the_same(blocks, name):
    model = randomised(new_model(LAYOUTS[name], seed=5), 5)
    shape = Shape(name, "tiny", "float32", (3,), 8, 4, 8, repeats=1, prompt=6)
    settings = [
        Setting(shape, "float32", 3, 6, DecoderConfig(length, length, 4)) for length in (8, 16)
    ]
    table = blocks.parts(blocks.Prompts(model, settings[0]), repeats=1)
    assert [row["sampler"] for row in table.rows] == [
        "whole prefix",
        "kept keys",
        "one row",
        "all rows",
        "first to last",
    ]
    assert [row.get("equal") for row in table.rows] == [None, 1.0, 1.0, 1.0, None]
    grown = blocks.growth(model, settings, repeats=1)
    assert [(row["tokens"], row["blocks"]) for row in grown.rows] == [(8, 2), (16, 4)]
