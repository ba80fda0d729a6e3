"""Where the sampler's lead over the loops of block-causal families comes from, and how the cost of
a response grows with its length; run by hand.

    python benchmarks/blocks.py --shape llada2 --threads 1

Four contestants write the same tokens, in turns, and each differs from the one before it:

    whole prefix   LLaDA2's published loop, row by row: every step computes all up to the open block
    kept keys      SDAR's, row by row: every step computes the open block beside kept keys, and one
                   more call for each block keeps its own
    one row        our sampler, one canvas after the other: no such call, and no logits that are not
                   used
    all rows       our sampler, all rows in one batch

`mosa bench sampler` measures a family's own loop beside the last.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

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
from mosa.bench.published import OpenBlock, WholePrefix, fill_blocks
from mosa.bench.sampler import Setting
from mosa.denoising import sample
from mosa.families import DiffusionLM
from mosa.worker import device_of

LENGTHS = (64, 128, 256, 512)
"""Response tokens of the second table."""
PARTS = {"sampler": "", "seconds": ".3f", **RATIO, "equal": ".1%"}
GROWTH = {"tokens": "d", "blocks": "d", "seconds": ".3f", "tokens/s": ".1f", "ms/block": ".1f"}


@dataclass(frozen=True)
class Prompts:
    """What every contestant gets."""

    model: DiffusionLM
    setting: Setting

    @property
    def prompt(self) -> Tensor:
        canvas = self.setting.canvas(self.model)
        return canvas.tokens[:, : canvas.response_start]

    def published(self, asks: type[WholePrefix] | type[OpenBlock]) -> Tensor:
        """The responses by a published loop."""
        prompt_BP, decoder = self.prompt, self.setting.decoder
        generator = torch.Generator(self.model.device)
        filled = [
            fill_blocks(asks(self.model), row[None], decoder, self.model, generator)
            for row in prompt_BP
        ]
        begin = prompt_BP.shape[1]
        return torch.cat(filled)[:, begin : begin + decoder.max_new_tokens]

    def one_by_one(self) -> Tensor:
        """The responses by our sampler without a batch."""
        filled = [sample(self.model, row[None], self.setting.decoder) for row in self.prompt]
        return torch.cat([result.tokens for result in filled])

    def together(self) -> Tensor:
        """The responses by our sampler."""
        return sample(self.model, self.prompt, self.setting.decoder).tokens


def parts(prompts: Prompts, repeats: int) -> BenchTable:
    """A row for each contestant, with how it compares with the one before it."""
    runs: dict[str, Callable[[], Tensor]] = {
        "whole prefix": partial(prompts.published, WholePrefix),
        "kept keys": partial(prompts.published, OpenBlock),
        "one row": prompts.one_by_one,
        "all rows": prompts.together,
    }
    timings = side_by_side(runs, repeats=repeats, device=prompts.model.device)
    rows, before = [], None
    for name in runs:
        row = {"sampler": name, "seconds": timings.median(name)}
        if before is not None:
            equal = timings.first[name] == timings.first[before]
            row |= timings.ratio(before, name) | {"equal": float(equal.float().mean())}
        rows.append(row)
        before = name
    whole = timings.ratio("whole prefix", "all rows")
    rows.append({"sampler": "first to last", **whole})
    title = (
        f"{prompts.setting.title}; {prompts.setting.batch} rows\ntimes as fast: as the row above"
    )
    return BenchTable(title, PARTS, rows)


def growth(model: DiffusionLM, settings: list[Setting], repeats: int) -> BenchTable:
    """A row for each length: our sampler, all rows."""
    runs = {str(s.decoder.max_new_tokens): Prompts(model, s).together for s in settings}
    timings = side_by_side(runs, repeats=repeats, device=model.device)
    rows = []
    for setting in settings:
        length = setting.decoder.max_new_tokens
        num_blocks = length // (setting.decoder.block_length or length)
        seconds = timings.median(str(length))
        rows.append(
            {
                "tokens": length,
                "blocks": num_blocks,
                "seconds": seconds,
                "tokens/s": setting.batch * length / seconds,
                "ms/block": 1000 * seconds / num_blocks,
            }
        )
    return BenchTable(f"Growth with the response: {settings[0].batch} rows", GROWTH, rows)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description="Where the lead in block-causal models comes from."
    )
    parser.add_argument("--shape", default="llada2", help="sdar, llada2, sdar-1.7b or llada2-mini")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    shape, device = shape_named(args.shape), device_of(args.device)

    def setting_of(length: int) -> Setting:
        given = argparse.Namespace(
            length=length,
            steps=shape.steps * length // shape.length,
            block_length=None,
            dtype=None,
            prompt=None,
            seed=0,
        )
        return Setting.of(shape, given, args.batch, 0.0)

    with threads(args.threads):
        model = bench_model(shape, device)
        tables = (
            parts(Prompts(model, setting_of(shape.length)), args.repeats),
            growth(model, [setting_of(length) for length in LENGTHS], args.repeats),
        )
        command = shlex.join(["python", "benchmarks/blocks.py", *sys.argv[1:]])
        environment = Environment.of(command, device)
    result = BenchResult(environment, tables)
    print(result.text(), end="")
    result.write(args.out, None)


if __name__ == "__main__":
    main()
