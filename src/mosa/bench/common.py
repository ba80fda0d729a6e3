"""What the benchmarks share: shapes of models, timing in turns, peaks of memory, profiles, results.

Figures of contestants compare because one process takes them in turns, with the same weights and
settings. A benchmark returns a `BenchResult`, which writes itself as text and as JSON.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import random
import resource
import statistics
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn
from torch.profiler import ProfilerActivity, profile

from mosa.denoising import Canvas
from mosa.families import DTYPES, DiffusionLM, load_model, new_model
from mosa.files import seal, write_sealed
from mosa.provenance import versions
from mosa.terminal import without_lines
from mosa.testbed import world_of
from mosa.types import Prompt, UserError
from mosa.worker import end_with_parent
from mosa.world import WRAPPINGS, World

SHAPES_FOLDER = Path(__file__).parent / "shapes"
MADE_BY = "mosa bench"
STAGE = "mosa."
"""The beginning of the labels of stages in a profile (`torch.profiler.record_function`)."""
PROFILER_NOISE = "USDT:"
"""The beginning of the lines by which PyTorch's profiler says that it starts and stops."""
OUTSIDE = "outside"
"""The row of a profile for what no label covers."""
NUM_OPERATORS = 8
"""Rows of a profile for operators; the costliest."""

# --- shapes ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shape:
    """A model to measure with, and the settings that go with it unless others are given."""

    name: str
    summary: str
    dtype: str
    batch: tuple[int, ...]
    """Rows that run together; every number is measured by itself."""
    length: int
    """Response tokens."""
    block_length: int
    steps: int
    repeats: int
    update: int = 8
    """Prompts of an update in training."""
    settings: str = "mosa_llada_paper"
    """Preset of the training."""
    prompt: int | None = None
    """Prompt tokens of each row; None: as long as the requests of the checkpoint's world are."""
    config: Mapping[str, Any] | None = None
    """config.json of a model with random weights."""
    checkpoint: str | None = None
    """A checkpoint instead."""
    needs_accelerator: bool = False
    decoder: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the decoder that the model needs."""


def read_shape(path: Path) -> Shape:
    """The shape that a YAML file describes, with the name of the file."""
    fields = yaml.safe_load(path.read_text(encoding="utf-8"))
    return Shape(**{**fields, "name": path.stem, "batch": tuple(fields["batch"])})


SHAPES: dict[str, Shape] = {
    shape.name: shape for shape in map(read_shape, sorted(SHAPES_FOLDER.glob("*.yaml")))
}


def shape_named(name: str) -> Shape:
    """The shape of that name; UserError where there is none."""
    if name not in SHAPES:
        raise UserError(f"there is no shape {name}; choose one of: {', '.join(SHAPES)}")
    return SHAPES[name]


def bench_model(
    shape: Shape, device: torch.device, dtype: str | None = None, *, seed: int = 0
) -> DiffusionLM:
    """The shape's model on the device, where random weights are drawn in `dtype`.

    `dtype` None is the shape's own. Raises UserError for a shape that the device cannot run.
    """
    if shape.needs_accelerator and device.type == "cpu":
        raise UserError(
            f"The shape {shape.name} needs minutes for a forward pass on a CPU; run it on a "
            "machine with a GPU (--device cuda), or choose a small shape, such as --shape wide."
        )
    dtype = dtype or shape.dtype
    if dtype not in DTYPES:
        raise UserError(f"--dtype {dtype} is not one of {', '.join(DTYPES)}")
    if shape.checkpoint is not None:
        return load_model(shape.checkpoint, dtype=dtype, device=device)
    assert shape.config is not None, "a shape has a config or a checkpoint"
    with torch.device(device):
        return new_model(shape.config, seed=seed, dtype=DTYPES[dtype])


def bench_canvas(
    model: DiffusionLM,
    shape: Shape,
    batch: int,
    *,
    prompt: int | None,
    length: int,
    seed: int,
) -> Canvas:
    """`batch` prompts, each followed by `length` masks, padded on the left.

    A number of `prompt` tokens gives words drawn at random; None gives requests of the checkpoint's
    world, in all its wrappings, which differ in length.
    """
    if prompt is None:
        assert shape.checkpoint is not None, "a shape without a prompt length has a checkpoint"
        texts = world_requests(world_of(shape.checkpoint), batch, seed)
        return Canvas.from_prompts(model, texts, max_new_tokens=length)
    generator = torch.Generator().manual_seed(seed)
    lowest = min(model.mask_token_id, *model.end_token_ids, model.pad_token_id)
    ids_BP = torch.randint(0, max(lowest, 1), (batch, prompt), generator=generator)
    return Canvas.from_prompts(model, ids_BP, max_new_tokens=length)


def world_requests(world: World, num: int, seed: int) -> list[Prompt]:
    """Requests for objects of a world, drawn without regard to restrictions or wrapping."""
    rng = random.Random(seed)
    objects = [
        obj
        for restricted in (True, False)
        for obj in world.objects(restricted=restricted, split="heldout")
    ]
    wrappings = sorted(WRAPPINGS)
    return [world.request(rng.choice(objects), rng.choice(wrappings)) for _ in range(num)]


@dataclass(frozen=True, kw_only=True)
class ModelBenchConfig:
    """The settings of a benchmark of a model."""

    shape: str = "testbed"
    """The model; testbed (the checkpoint that comes with mosa), wide (a small network under a
    vocabulary of 126,464 words), a released one made small (qwen3_mdlm, qwen3_bd3lm, sdar, llada2,
    llada_moe), or one of full size, which needs a GPU (llada-8b, qwen3-0.6b, sdar-1.7b,
    llada2-mini)."""
    device: str | None = None
    """Device, for example cpu or cuda; null takes a GPU if there is one."""
    dtype: str | None = None
    """Number format of the weights; null takes the shape's."""
    threads: int | None = None
    """Threads of the CPU; null leaves PyTorch's number."""
    seed: int = 0
    """Seed of random weights, prompts and draws."""


def check_counts(config: object, *names: str) -> None:
    """UserError where one of these settings, or a number of it, is set and below 1."""
    for name in names:
        value = getattr(config, name)
        if value is not None and min(value if isinstance(value, tuple) else (value,)) < 1:
            raise UserError(f"--{name} must be at least 1, not {value}")


# --- time -----------------------------------------------------------------------------------------

RATIO = {"times as fast": ".2f", "low": ".2f", "high": ".2f"}
"""Columns: the ratio of the medians, and the smallest and the largest ratio of one round."""


@dataclass(frozen=True)
class Timings:
    """What each contestant took in each round, in seconds, and what it returned first."""

    seconds: Mapping[str, tuple[float, ...]]
    first: Mapping[str, Any]

    def median(self, name: str) -> float:
        """The contestant's median over the rounds."""
        return statistics.median(self.seconds[name])

    def ratio(self, slow: str, fast: str) -> dict[str, float]:
        """The cells of `RATIO`: how many times as long `slow` took as `fast`."""
        paired = [a / b for a, b in zip(self.seconds[slow], self.seconds[fast], strict=True)]
        values = (self.median(slow) / self.median(fast), min(paired), max(paired))
        return dict(zip(RATIO, values, strict=True))


def side_by_side(
    contestants: Mapping[str, Callable[[], Any]],
    *,
    repeats: int,
    device: torch.device,
    warmup: int = 1,
    max_seconds: float | None = None,
) -> Timings:
    """Times the contestants in turns: A B A B ..., `repeats` rounds after `warmup` untimed ones.

    A disturbance of the machine then falls on all of them. No round begins after `max_seconds`,
    except the first.
    """
    assert repeats >= 1
    begin = time.perf_counter()
    first: dict[str, Any] = {}
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for round_ in range(-warmup, repeats):
        spent = time.perf_counter() - begin
        if round_ > 0 and max_seconds is not None and spent > max_seconds:
            break
        for name, run in contestants.items():
            took, result = timed(run, device)
            first.setdefault(name, result)
            if round_ >= 0:
                seconds[name].append(took)
    return Timings({name: tuple(values) for name, values in seconds.items()}, first)


def timed(run: Callable[[], Any], device: torch.device) -> tuple[float, Any]:
    """Seconds that a run took, with the work that it left to the device, and what it returned."""
    synchronize(device)
    begin = time.perf_counter()
    result = run()
    synchronize(device)
    return time.perf_counter() - begin, result


def synchronize(device: torch.device) -> None:
    """Wait until the device has nothing left to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def threads(number: int | None) -> Iterator[None]:
    """Inside, PyTorch computes with `number` threads; None changes nothing."""
    before = torch.get_num_threads()
    if number is not None:
        if number < 1:
            raise UserError(f"--threads must be at least 1, not {number}")
        torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# --- memory ---------------------------------------------------------------------------------------


def peak_memory(
    device: torch.device,
    run: Callable[[], Any],
    prepare: Callable[..., Callable[[], Any]],
    *args: Any,
) -> int:
    """Bytes that one run needs at its peak, beyond the memory before it (the weights, say).

    On CUDA, `run` runs here. Elsewhere the system counts by process, so `prepare(*args)`, which
    must be importable by name, makes the same run in a process of its own.
    """
    if device.type == "cuda":
        synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    return in_own_process(_peak_of_prepared, torch.get_num_threads(), prepare, *args)


def in_own_process(function: Callable[..., Any], *args: Any) -> Any:
    """What a function, importable by name, returns in a fresh process."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=end_with_parent) as pool:
        try:
            return pool.submit(function, *args).result()
        except BrokenProcessPool as error:
            raise UserError(
                "The system ended a process of the benchmark, most likely because memory ran out; "
                "choose smaller sizes."
            ) from error


def _peak_of_prepared(
    num_threads: int, prepare: Callable[..., Callable[[], Any]], *args: Any
) -> int:
    with threads(num_threads):
        run = prepare(*args)
        before = forget_peak()
        run()
        return max(0, peak_resident() - before)


def forget_peak() -> int:
    """Restarts the count of this process's peak where the system can; returns the bytes now."""
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        clear.write_text("5", encoding="ascii")
    return peak_resident()


def peak_resident() -> int:
    """The most bytes of memory that this process has held."""
    status = Path("/proc/self/status")
    if status.exists():
        # Not ru_maxrss, which a process inherits from the one that started it.
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


# --- profile --------------------------------------------------------------------------------------


def profile_table(title: str, run: Callable[[], Any], device: torch.device) -> BenchTable:
    """Where the time of one run goes, which the profiler slows down: a row for each labelled stage,
    one for what no label covers, and one for each of the costliest operators.

    An operator's row leaves out the operators that it calls. On CUDA the seconds of a row are those
    of its kernels.
    """
    on_cuda = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_cuda else [])]
    with without_lines(PROFILER_NOISE), profile(activities=activities) as found:
        seconds, _ = timed(run, device)
    kind = "device" if on_cuda else "cpu"
    # Labels come a second time as spans on the device, which carry no kernels of their own.
    events = [event for event in found.events() or () if event.device_type.name == "CPU"]
    parts = _stages(events, f"{kind}_time_total")
    if parts:
        rest = max(0.0, 1e6 * seconds - sum(took for _, took, _ in parts))
        parts.append((OUTSIDE, rest, 1))
    operators = [
        (event.key, getattr(event, f"self_{kind}_time_total"), event.count)
        for event in found.key_averages()
        if event.device_type.name == "CPU" and not event.key.startswith(STAGE)
    ]
    parts += sorted(operators, key=lambda part: -part[1])[:NUM_OPERATORS]
    rows = [
        {"part": name, "seconds": took / 1e6, "share": took / 1e6 / seconds, "calls": calls}
        for name, took, calls in parts
    ]
    return BenchTable(title, {"part": "", "seconds": ".3f", "share": ".1%", "calls": "d"}, rows)


def _stages(events: Sequence[Any], time: str) -> list[tuple[str, float, int]]:
    """Label, microseconds and calls; a label inside another counts for itself alone."""
    microseconds: dict[str, float] = {}
    calls: dict[str, int] = {}
    for event in events:
        if not event.name.startswith(STAGE):
            continue
        took = getattr(event, time)
        microseconds[event.name] = microseconds.get(event.name, 0.0) + took
        calls[event.name] = calls.get(event.name, 0) + 1
        around = event.cpu_parent
        while around is not None and not around.name.startswith(STAGE):
            around = around.cpu_parent
        if around is not None:
            microseconds[around.name] = microseconds.get(around.name, 0.0) - took
    return [(name, microseconds[name], calls[name]) for name in microseconds]


# --- limits of a device ---------------------------------------------------------------------------


LIMITS = {
    "H200": {"compute": 989e12, "bandwidth": 4.8e12},
    "H100 80GB HBM3": {"compute": 989e12, "bandwidth": 3.35e12},
}
"""What a device can do at most in a second, by a piece of its name: dense bfloat16 floating-point
operations, and bytes read from its memory. From the makers' data sheets."""


def limit_of(device: torch.device) -> dict[str, float] | None:
    """The entry of `LIMITS` for a device, if there is one."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((limit for piece, limit in LIMITS.items() if piece in name), None)


def forward_flop(model: DiffusionLM, batch: int, length: int, num_logits: int) -> int:
    """Floating-point operations of a forward pass over `batch` rows of `length` tokens.

    Two for each weight of a linear map and each token; those of the head for `num_logits` positions
    of each row; and attention's two products.
    """
    network = model.network
    head = network.get_output_embeddings()
    linear = sum(
        module.weight.numel()
        for module in network.modules()
        if isinstance(module, nn.Linear) and module is not head
    )
    assert head is not None, "a language model has a head"
    config = network.config
    attention = 4 * length**2 * config.hidden_size * config.num_hidden_layers
    return batch * (2 * linear * length + attention + 2 * head.weight.numel() * num_logits)


# --- results --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BenchTable:
    """Rows of plain values by column; None, or no entry, is what does not apply."""

    title: str
    columns: Mapping[str, str]
    """Each heading, with the format of the numbers below it; "" for text."""
    rows: Sequence[Mapping[str, Any]]

    def __post_init__(self):
        assert all(row.keys() <= self.columns.keys() for row in self.rows), self.title

    def text(self) -> str:
        """The table in fixed-width characters, numbers to the right; no column without values."""
        written = []
        for name, spec in self.columns.items():
            values = [row.get(name) for row in self.rows]
            if any(value is not None for value in values):
                cells = [name, *("-" if value is None else format(value, spec) for value in values)]
                width = max(map(len, cells))
                fit = str.rjust if spec else str.ljust
                written.append([fit(cell, width) for cell in cells])
        lines = ["  ".join(cells).rstrip() for cells in zip(*written, strict=True)]
        return "\n".join([self.title, *lines])

    def plain(self) -> dict[str, Any]:
        """The table for machines: its title, and every column of every row."""
        rows = [{name: row.get(name) for name in self.columns} for row in self.rows]
        return {"title": self.title, "rows": rows}


@dataclass(frozen=True)
class Environment:
    """The machine and software of a measurement."""

    command: str
    date: str
    versions: Mapping[str, str]
    platform: str
    num_cpus: int
    """CPUs that this process may use."""
    num_threads: int
    device: str

    @classmethod
    def of(cls, command: str, device: torch.device) -> Environment:
        """The present one."""
        on_cuda = device.type == "cuda"
        affinity = getattr(os, "sched_getaffinity", None)  # Linux alone has it
        return cls(
            command=command,
            date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            versions={name: found for name, found in versions().items() if found is not None},
            platform=f"{platform.system()} {platform.machine()}",
            num_cpus=len(affinity(0)) if affinity else os.cpu_count() or 1,
            num_threads=torch.get_num_threads(),
            device=torch.cuda.get_device_name(device) if on_cuda else str(device),
        )

    def text(self) -> str:
        """The lines before the figures."""
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        return (
            f"$ {self.command}\n{self.date}; {versions}\n{self.platform}, {self.num_cpus} CPUs, "
            f"{self.num_threads} threads, device {self.device}"
        )


@dataclass(frozen=True)
class BenchResult:
    """What a benchmark found."""

    environment: Environment
    tables: tuple[BenchTable, ...]
    notes: tuple[str, ...] = field(default=())
    """Sentences below the tables, such as a verdict."""

    def text(self) -> str:
        """The result as plain text."""
        parts = [self.environment.text(), *(table.text() for table in self.tables)]
        return "\n\n".join([*parts, *(["\n".join(self.notes)] if self.notes else [])]) + "\n"

    def plain(self) -> dict[str, Any]:
        """The same for machines."""
        return {
            "environment": vars(self.environment),
            "tables": [table.plain() for table in self.tables],
            "notes": list(self.notes),
        }

    def write(self, out: Path | None, json_file: Path | None) -> None:
        """Write the text and the numbers to the files given, and make their folders."""
        for path, content in (
            (out, f"{seal(MADE_BY)}\n{self.text()}"),
            (json_file, json.dumps({"made_by": seal(MADE_BY), **self.plain()}, indent=1) + "\n"),
        ):
            if path is not None:
                write_sealed(path, content)


@dataclass(frozen=True)
class Bench:
    """A benchmark, as `mosa bench NAME` runs it."""

    config_class: type
    run: Callable[..., BenchResult]
    """Of the config, `decoder` (the settings of the decoder that were given, where it has such),
    `command`, and `tell`, which hears of each part that is done."""
    decoder_settings: Collection[str] = ()
    """The fields of `DecoderConfig` that are options too."""


def growth(small: tuple[int, float], large: tuple[int, float]) -> str:
    """How the cost of an attempt grows between two runs (attempts, cost of one), in a sentence."""
    if small[0] == large[0]:
        return "one size alone says nothing about growth"
    return (
        f"an attempt among {large[0]:,} takes {large[1] / small[1]:.2f} times as long as one among "
        f"{small[0]:,}"
    )
