"""What the benchmarks share: shapes of models, timing in turns, peaks of memory, profiles, results.

Figures of contestants compare because they are taken in one process run, with the same weights and
settings, in turns. A benchmark returns a `BenchResult`; `as_text` and `as_json` write it.
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
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from mosa.files import write_text
from mosa.provenance import versions
from mosa.testbed import world_of
from mosa.types import Prompt, UserError
from mosa.world import WRAPPINGS, World

SHAPES_FOLDER = Path(__file__).parent / "shapes"
STAGE = "mosa."
"""How the labels begin by which a profile tells stages apart (`torch.profiler.record_function`)."""
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
    prompt: int | None = None
    """Prompt tokens of each row; None: as long as the requests of the checkpoint's world are."""
    config: Mapping[str, Any] | None = None
    """config.json of a model with random weights."""
    checkpoint: str | None = None
    """A checkpoint instead."""
    needs_accelerator: bool = False


def read_shape(path: Path) -> Shape:
    """The shape that a YAML file describes, called as the file is."""
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
    """The shape's model on the device; random weights are made there, in `dtype`.

    `dtype` None is the shape's own. Raises UserError for a shape that the device cannot run.
    """
    if shape.needs_accelerator and device.type == "cpu":
        raise UserError(
            f"The shape {shape.name} takes minutes for a forward pass on a CPU; run it on a "
            "machine with a GPU (--device cuda), or choose --shape wide."
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
    """So many prompts, each followed by `length` masks, padded on the left.

    With a number of `prompt` tokens they are words drawn at random; without one they are requests
    of the checkpoint's world, in all its wrappings, which differ in length.
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


# --- time -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ratio:
    """How many times as long one contestant took as another."""

    value: float
    """Of the medians."""
    low: float
    """The smallest ratio of one round."""
    high: float

    @staticmethod
    def cells(ratio: Ratio | None) -> tuple[float | None, float | None, float | None]:
        """The three columns that a table has of it, empty for what nothing is compared with."""
        return (None, None, None) if ratio is None else (ratio.value, ratio.low, ratio.high)


@dataclass(frozen=True)
class Timings:
    """What each contestant took in each round, in seconds, and what it returned first."""

    seconds: Mapping[str, tuple[float, ...]]
    first: Mapping[str, Any]

    def median(self, name: str) -> float:
        """The contestant's median over the rounds."""
        return statistics.median(self.seconds[name])

    def ratio(self, slow: str, fast: str) -> Ratio:
        """How many times as long `slow` took as `fast`."""
        paired = [a / b for a, b in zip(self.seconds[slow], self.seconds[fast], strict=True)]
        return Ratio(self.median(slow) / self.median(fast), min(paired), max(paired))


def side_by_side(
    contestants: Mapping[str, Callable[[], Any]],
    *,
    repeats: int,
    device: torch.device,
    warmup: int = 1,
    max_seconds: float | None = None,
) -> Timings:
    """Times the contestants in turns: A B A B ..., `repeats` rounds after `warmup` untimed ones.

    What disturbs the machine for a while falls on all of them. After `max_seconds` no further round
    begins; one is always measured.
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
    """Seconds that a run took, the work it left to the device included, and what it returned."""
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
    """Inside, PyTorch computes with so many threads; None leaves their number as it is."""
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
    """Bytes that one run takes at its peak beyond what stood before it, weights aside.

    On CUDA `run` is called here. Elsewhere the system counts by process, so `prepare(*args)`, which
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
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            return pool.submit(function, *args).result()
        except BrokenProcessPool as error:
            raise UserError(
                "A process of the benchmark was ended from outside, most likely for want of "
                "memory; choose smaller sizes."
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
    """Begins the count of this process's peak anew where the system can; the bytes that count."""
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


@dataclass(frozen=True)
class TimeShare:
    """A part of a run's time."""

    name: str
    seconds: float
    share: float
    """Of the whole run, 0 to 1."""
    calls: int


@dataclass(frozen=True)
class Profile:
    """Where the time of one run goes; measuring it slows the run down."""

    seconds: float
    """The whole run under the profiler."""
    stages: tuple[TimeShare, ...]
    """By label, and last what no label covers; empty where the run carries none."""
    operators: tuple[TimeShare, ...]
    """The costliest operators, each without the operators that it calls."""


def profiled(run: Callable[[], Any], device: torch.device) -> Profile:
    """Profile of one run. On CUDA the seconds of a part are those of its kernels."""
    on_cuda = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_cuda else [])]
    with profile(activities=activities) as found:
        seconds, _ = timed(run, device)
    kind = "device" if on_cuda else "cpu"

    def share(name: str, microseconds: float, calls: int) -> TimeShare:
        return TimeShare(name, microseconds / 1e6, microseconds / 1e6 / seconds, calls)

    # Labels come a second time as spans on the device, which carry no kernels of their own.
    events = [event for event in found.events() or () if event.device_type.name == "CPU"]
    stages = [share(*stage) for stage in _stages(events, f"{kind}_time_total")]
    if stages:
        rest = max(0.0, seconds - sum(stage.seconds for stage in stages))
        stages.append(TimeShare(OUTSIDE, rest, rest / seconds, 1))
    operators = [
        share(event.key, getattr(event, f"self_{kind}_time_total"), event.count)
        for event in found.key_averages()
        if event.device_type.name == "CPU" and not event.key.startswith(STAGE)
    ]
    operators.sort(key=lambda part: -part.seconds)
    return Profile(seconds, tuple(stages), tuple(operators[:NUM_OPERATORS]))


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


def profile_table(title: str, found: Profile) -> BenchTable:
    """A profile as a table of shares."""
    columns = (
        Column("part"),
        Column("seconds", ".3f"),
        Column("share", ".1%"),
        Column("calls", "d"),
    )
    parts = (*found.stages, *found.operators)
    rows = tuple((part.name, part.seconds, part.share, part.calls) for part in parts)
    return BenchTable(title, columns, rows)


# --- limits of a device ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Limit:
    """What a device can do at most."""

    flops: float
    """Dense bfloat16 floating-point operations per second."""
    bytes: float
    """Bytes read from its memory per second."""


LIMITS: dict[str, Limit] = {
    "H200": Limit(989e12, 4.8e12),
    "H100 80GB HBM3": Limit(989e12, 3.35e12),
}
"""By a piece of the device's name; from the makers' data sheets."""


def limit_of(device: torch.device) -> Limit | None:
    """The limits of a device, where they are known."""
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
class Column:
    """A heading, and how the numbers below it are written; text without a format."""

    name: str
    format: str = ""


@dataclass(frozen=True)
class BenchTable:
    """Rows of plain values; None is what does not apply."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Any, ...], ...]

    def __post_init__(self):
        assert all(len(row) == len(self.columns) for row in self.rows), self.title

    def text(self) -> str:
        """The table in fixed-width characters, numbers to the right; no column without values."""
        written = []
        for i, column in enumerate(self.columns):
            values = [row[i] for row in self.rows]
            if any(value is not None for value in values):
                cells = [column.name, *(_written(value, column) for value in values)]
                width = max(map(len, cells))
                fit = str.rjust if column.format else str.ljust
                written.append([fit(cell, width) for cell in cells])
        lines = ["  ".join(cells).rstrip() for cells in zip(*written, strict=True)]
        return "\n".join([self.title, *lines])

    def plain(self) -> dict[str, Any]:
        """The table for machines: its title, and a mapping by heading for each row."""
        names = [column.name for column in self.columns]
        return {
            "title": self.title,
            "rows": [dict(zip(names, row, strict=True)) for row in self.rows],
        }


def _written(value: Any, column: Column) -> str:
    if value is None:
        return "-"
    return format(value, column.format) if column.format else str(value)


@dataclass(frozen=True)
class Environment:
    """What a figure was measured on."""

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
        """A few lines that go before the figures."""
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        return (
            f"$ {self.command}\n{self.date}; {versions}\n{self.platform}, {self.num_cpus} CPUs, "
            f"{self.num_threads} threads, device {self.device}"
        )


@dataclass(frozen=True)
class BenchResult:
    """All that a benchmark found."""

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
        """Write the files that are asked for, and the folders that they go to."""
        for path, content in (
            (out, self.text()),
            (json_file, json.dumps(self.plain(), indent=1) + "\n"),
        ):
            if path is not None:
                write_text(path, content)


def mebibytes(num_bytes: int | None) -> float | None:
    """A number of bytes in MiB."""
    return None if num_bytes is None else num_bytes / 2**20
