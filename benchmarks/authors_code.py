"""The authors' own sampler beside our transcription of it and beside ours; run by hand.

    python benchmarks/authors_code.py PATH/TO/LLaDA/generate.py --shape wide --batch 1

The file is `generate.py` of ML-GSAI/LLaDA, which is not part of this repository; fetch it yourself
and look at its terms. It is executed as it stands, with the same weights, prompts and settings, in
turns with the other two. `mosa bench sampler` measures all else.
"""

from __future__ import annotations

import argparse
import importlib.util
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mosa.bench.common import (
    RATIO,
    BenchResult,
    BenchTable,
    Environment,
    bench_model,
    shape_named,
    side_by_side,
    threads,
)
from mosa.bench.published import Filled
from mosa.bench.sampler import OURS, Setting, contestant
from mosa.families import DiffusionLM
from mosa.worker import device_of

AUTHORS = "authors"


@dataclass(frozen=True)
class Wrapped:
    """A model as the authors' code calls it: `model(x, attention_mask=...).logits`."""

    model: DiffusionLM

    @property
    def device(self) -> torch.device:
        return self.model.device

    def __call__(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Any:
        mask = None if attention_mask is None else attention_mask.bool()
        return self.model.network(input_ids=input_ids, attention_mask=mask, use_cache=False)


def authors_run(path: Path, setting: Setting, model: DiffusionLM) -> Callable[[], Filled]:
    """A run of the file's `generate`."""
    spec = importlib.util.spec_from_file_location("authors_generate", path)
    assert spec is not None and spec.loader is not None, f"{path} is no Python file"
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    canvas, decoder = setting.canvas(model), setting.decoder
    start = canvas.response_start
    is_padded = not bool(canvas.attention_mask.all())

    def run() -> Filled:
        tokens = module.generate(
            Wrapped(model),
            canvas.tokens[:, :start],
            attention_mask=canvas.attention_mask[:, :start].long() if is_padded else None,
            steps=decoder.steps,
            gen_length=decoder.max_new_tokens,
            block_length=decoder.block_length,
            temperature=decoder.temperature,
            mask_id=model.mask_token_id,
        )
        return Filled(tokens[:, start:], decoder.steps, decoder.steps * setting.batch)

    return run


def measured(path: Path, setting: Setting, model: DiffusionLM, repeats: int) -> list[dict]:
    """A row for each contestant: median seconds, how we compare, and equal tokens."""
    runs = {AUTHORS: authors_run(path, setting, model)}
    runs |= {name: contestant(name, setting, model) for name in ("reference", OURS)}
    timings = side_by_side(runs, repeats=repeats, device=model.device)
    temperature = setting.decoder.temperature
    rows = []
    for name in runs:
        row = {
            "batch": setting.batch,
            "temp": temperature,
            "sampler": name,
            "seconds": timings.median(name),
            **timings.ratio(name, OURS),
        }
        if temperature == 0:
            equal = timings.first[name].tokens == timings.first[OURS].tokens
            row["equal"] = float(equal.float().mean())
        rows.append(row)
    return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Times the authors' sampler beside ours.")
    parser.add_argument("path", type=Path, help="generate.py of ML-GSAI/LLaDA")
    parser.add_argument("--shape", default="wide", help="testbed, wide or llada-8b")
    parser.add_argument("--batch", type=int, nargs="+", default=[1])
    parser.add_argument("--temperature", type=float, nargs="+", default=[0.0, 1.0])
    parser.add_argument("--prompt", type=int, help="prompt tokens")
    parser.add_argument("--length", type=int, help="response tokens")
    parser.add_argument("--block_length", type=int)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--repeats", type=int)
    parser.add_argument("--device")
    parser.add_argument("--dtype")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()

    shape, device = shape_named(args.shape), device_of(args.device)
    rows = []
    with threads(args.threads):
        model = bench_model(shape, device, args.dtype, seed=args.seed)
        for batch in args.batch:
            for temperature in args.temperature:
                setting = Setting.of(shape, args, batch, temperature)
                rows += measured(args.path, setting, model, args.repeats or shape.repeats)
        command = shlex.join(["python", "benchmarks/authors_code.py", *sys.argv[1:]])
        environment = Environment.of(command, device)
    columns = {"batch": "d", "temp": "g", "sampler": "", "seconds": ".3f", **RATIO, "equal": ".1%"}
    title = f"{setting.title}\ntimes as fast: {OURS} beside each"
    result = BenchResult(environment, (BenchTable(title, columns, rows),))
    print(result.text(), end="")
    result.write(args.out, args.json)


if __name__ == "__main__":
    main()
