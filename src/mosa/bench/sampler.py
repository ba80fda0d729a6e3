"""Our sampler beside the published loop, or beside itself with approximate settings.

    mosa bench sampler --shape wide --against reference

The reference is LLaDA's `generate` (arXiv:2502.09992; ML-GSAI/LLaDA, generate.py) as
`denoising.reference` writes it out: the network answers for the whole canvas in every step, all of
that goes through a softmax and, above temperature 0, gets float64 Gumbel noise, and each row has a
`topk`. At temperature 0 in float32 its tokens are ours.

# B rows, L canvas length (prompt + response), V vocabulary
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Int
from torch import Tensor

from mosa.bench.common import (
    BenchResult,
    BenchTable,
    Column,
    Environment,
    Limit,
    Ratio,
    Shape,
    bench_canvas,
    bench_model,
    forward_flop,
    limit_of,
    mebibytes,
    peak_memory,
    profile_table,
    profiled,
    shape_named,
    side_by_side,
    threads,
)
from mosa.denoising import Canvas, sample
from mosa.denoising.config import APPROXIMATE_SETTINGS, DecoderConfig
from mosa.denoising.reference import fill_block_by_block
from mosa.families import DiffusionLM
from mosa.types import UserError
from mosa.worker import device_of

OURS = "mosa"
OWN_FIELDS = ("max_new_tokens", "steps", "block_length", "temperature", "seed")
"""Fields of the decoder that the benchmark sets from options of its own."""


@dataclass(frozen=True)
class SamplerBenchConfig:
    """What `mosa bench sampler` measures."""

    shape: str = "testbed"
    """The model: testbed (the checkpoint that comes with mosa), wide (a small network under a
    vocabulary of 126,464 words), or llada-8b (needs a GPU)."""
    against: Literal["reference", "exact", "none"] = "reference"
    """What to compare with: the published loop, or our sampler without its approximate settings."""
    batch: tuple[int, ...] | None = None
    """Rows that run together, each number measured by itself; null takes the shape's."""
    temperature: tuple[float, ...] = (0.0, 1.0)
    """Temperatures, each measured by itself."""
    prompt: int | None = None
    """Prompt tokens of a row, drawn at random; null takes the shape's, for the testbed its
    requests."""
    length: int | None = None
    """Response tokens; null takes the shape's."""
    block_length: int | None = None
    """Response tokens in a block; null takes the shape's."""
    steps: int | None = None
    """Denoising steps; null takes the shape's."""
    repeats: int | None = None
    """Rounds in which each contestant has one turn; null takes the shape's."""
    max_seconds: float | None = None
    """No further round of a setting begins after so many seconds; null means no bound."""
    device: str | None = None
    """cpu, cuda, ...; null takes a GPU if there is one."""
    dtype: str | None = None
    """Number format of the weights; null takes the shape's."""
    threads: int | None = None
    """Threads of the CPU; null leaves PyTorch's number."""
    seed: int = 0
    """Seed of random weights, prompts and draws."""

    def __post_init__(self):
        for name in ("batch", "prompt", "length", "block_length", "steps", "repeats"):
            value = getattr(self, name)
            if value is not None and min(value if name == "batch" else (value,)) < 1:
                raise UserError(f"--{name} must be at least 1, not {value}")


@dataclass(frozen=True)
class Setting:
    """One line of comparison: everything that a contestant is told."""

    shape: Shape
    batch: int
    temperature: float
    prompt: int | None
    length: int
    block_length: int
    steps: int
    dtype: str
    seed: int

    @classmethod
    def of(cls, shape: Shape, given: Any, batch: int, temperature: float) -> Setting:
        """The options `given` (a namespace or config), and what the shape has for those unset."""
        return cls(
            shape=shape,
            batch=batch,
            temperature=temperature,
            prompt=given.prompt or shape.prompt,
            length=given.length or shape.length,
            block_length=given.block_length or shape.block_length,
            steps=given.steps or shape.steps,
            dtype=given.dtype or shape.dtype,
            seed=given.seed,
        )

    @property
    def title(self) -> str:
        """All but the batch and the temperature, in two lines."""
        prompts = "requests" if self.prompt is None else f"{self.prompt} tokens"
        return (
            f"{self.shape.name}: {self.shape.summary}; {self.dtype}\n"
            f"prompts: {prompts}; response: {self.length} tokens, blocks of {self.block_length}, "
            f"{self.steps} steps"
        )

    def decoder(self, **others: Any) -> DecoderConfig:
        """Our settings for it."""
        return DecoderConfig(
            max_new_tokens=self.length,
            steps=self.steps,
            block_length=self.block_length,
            temperature=self.temperature,
            seed=self.seed,
            **others,
        )

    def canvas(self, model: DiffusionLM) -> Canvas:
        """Its prompts, with masks to fill."""
        return bench_canvas(
            model, self.shape, self.batch, prompt=self.prompt, length=self.length, seed=self.seed
        )


@dataclass(frozen=True)
class Filled:
    """What a contestant made of the canvas."""

    tokens: Int[Tensor, "B R"]
    num_forward_passes: int
    num_row_passes: int
    """Passes times the rows that took part in each."""


@dataclass(frozen=True)
class SamplerRow:
    """What one contestant took in one setting; medians over the rounds."""

    batch: int
    temperature: float
    sampler: str
    seconds: float
    num_forward_passes: int
    num_tokens: int
    """Response tokens of all rows."""
    peak_bytes: int
    """Beyond the weights."""
    as_fast: Ratio | None
    """How many times as long the other contestant took; None for the other itself."""
    agreement: float | None
    """Share of tokens equal to the other's at temperature 0."""
    compute_share: float | None
    bandwidth_share: float | None

    def cells(self) -> tuple[Any, ...]:
        """The row as the table has it."""
        return (
            self.batch,
            self.temperature,
            self.sampler,
            self.seconds,
            self.num_tokens / self.seconds,
            self.num_forward_passes,
            self.num_tokens / self.batch / self.num_forward_passes,
            1000 * self.seconds / self.num_forward_passes,
            mebibytes(self.peak_bytes),
            *Ratio.cells(self.as_fast),
            self.agreement,
            self.compute_share,
            self.bandwidth_share,
        )


COLUMNS = (
    Column("batch", "d"),
    Column("temp", "g"),
    Column("sampler"),
    Column("seconds", ".3f"),
    Column("tokens/s", ".1f"),
    Column("passes", "d"),
    Column("tokens/pass", ".2f"),
    Column("ms/pass", ".2f"),
    Column("peak MiB", ".0f"),
    Column("times as fast", ".2f"),
    Column("low", ".2f"),
    Column("high", ".2f"),
    Column("equal", ".1%"),
    Column("compute", ".1%"),
    Column("bandwidth", ".1%"),
)


def bench_sampler(
    config: SamplerBenchConfig,
    decoder: Mapping[str, Any] | None = None,
    *,
    command: str = "mosa bench sampler",
    on_row: Callable[[SamplerRow], object] = lambda row: None,
) -> BenchResult:
    """Times our sampler, with the `decoder` fields given, and what it is compared with.

    `on_row` is told each row once it is measured. Raises UserError for settings that do not fit.
    """
    decoder = dict(decoder or {})
    _check(config, decoder)
    shape = shape_named(config.shape)
    device = device_of(config.device)
    rows, tables = [], []
    with threads(config.threads):
        model = bench_model(shape, device, config.dtype, seed=config.seed)
        batches = config.batch or shape.batch
        for batch in batches:
            for temperature in config.temperature:
                setting = _setting(config, shape, batch, temperature)
                for row in _measured(config, setting, decoder, model):
                    rows.append(row)
                    on_row(row)
        for temperature in config.temperature:
            setting = _setting(config, shape, max(batches), temperature)
            run = contestant(OURS, setting, decoder, model)
            title = f"Where the time goes: batch {setting.batch}, temperature {temperature:g}"
            tables.append(profile_table(title, profiled(run, device)))
        environment = Environment.of(command, device)
    changed = ", ".join(f"{name} {value}" for name, value in decoder.items())
    title = setting.title + (f"\n{OURS}: {changed}" if changed else "")
    head = BenchTable(title, COLUMNS, tuple(row.cells() for row in rows))
    return BenchResult(environment, (head, *tables))


def _check(config: SamplerBenchConfig, decoder: Mapping[str, Any]) -> None:
    for name in OWN_FIELDS:
        assert name not in decoder, f"{name} is an option of the benchmark"
    if config.against == "exact" and not any(name in decoder for name in APPROXIMATE_SETTINGS):
        raise UserError(
            "--against exact compares an approximate setting with none; give at least one of "
            + ", ".join(f"--{name}" for name in APPROXIMATE_SETTINGS)
        )


def _setting(config: SamplerBenchConfig, shape: Shape, batch: int, temperature: float) -> Setting:
    setting = Setting.of(shape, config, batch, temperature)
    num_blocks, left = divmod(setting.length, setting.block_length)
    if config.against == "reference" and (left or setting.steps % num_blocks):
        raise UserError(
            f"the published loop needs whole blocks with the same number of steps: make --length "
            f"{setting.length} a multiple of --block_length {setting.block_length}, and --steps "
            f"{setting.steps} one of the number of blocks"
        )
    return setting


# --- measuring ------------------------------------------------------------------------------------


def _measured(
    config: SamplerBenchConfig, setting: Setting, decoder: Mapping[str, Any], model: DiffusionLM
) -> list[SamplerRow]:
    """The rows of one setting: the other contestant's, if there is one, and ours."""
    device = model.device
    names = [OURS] if config.against == "none" else [config.against, OURS]
    runs = {name: contestant(name, setting, decoder, model) for name in names}
    timings = side_by_side(
        runs,
        repeats=setting.shape.repeats if config.repeats is None else config.repeats,
        device=device,
        max_seconds=config.max_seconds,
    )
    other = timings.first[names[0]].tokens
    rows = []
    for name in names:
        filled = timings.first[name]
        is_compared = name == OURS and len(names) > 1
        is_same = is_compared and setting.temperature == 0
        compute, bandwidth = _limit_shares(
            limit_of(device), model, setting, decoder, name, filled, timings.median(name)
        )
        rows.append(
            SamplerRow(
                batch=setting.batch,
                temperature=setting.temperature,
                sampler=name,
                seconds=timings.median(name),
                num_forward_passes=filled.num_forward_passes,
                num_tokens=filled.tokens.numel(),
                peak_bytes=peak_memory(device, runs[name], prepared, name, setting, decoder),
                as_fast=timings.ratio(names[0], name) if is_compared else None,
                agreement=float((filled.tokens == other).float().mean()) if is_same else None,
                compute_share=compute,
                bandwidth_share=bandwidth,
            )
        )
    return rows


def contestant(
    name: str, setting: Setting, decoder: Mapping[str, Any], model: DiffusionLM
) -> Callable[[], Filled]:
    """A run of the reference, of ours, or of ours without what is approximate."""
    canvas = setting.canvas(model)
    if name == "reference":
        return lambda: published_loop(model, canvas, setting)
    if name == "exact":
        decoder = {key: decoder[key] for key in decoder if key not in APPROXIMATE_SETTINGS}
    settings = setting.decoder(**decoder)

    def ours() -> Filled:
        result = sample(model, canvas, settings)
        num_row_passes = int(result.trace.row_forward_passes.sum())
        return Filled(result.tokens, result.num_forward_passes, num_row_passes)

    return ours


def prepared(name: str, setting: Setting, decoder: Mapping[str, Any]) -> Callable[[], Filled]:
    """The same in a process of its own, on the CPU, with the same weights."""
    device = torch.device("cpu")
    model = bench_model(setting.shape, device, setting.dtype, seed=setting.seed)
    return contestant(name, setting, decoder, model)


def _limit_shares(
    limit: Limit | None,
    model: DiffusionLM,
    setting: Setting,
    decoder: Mapping[str, Any],
    name: str,
    filled: Filled,
    seconds: float,
) -> tuple[float | None, float | None]:
    """Shares of the device's compute and bandwidth that the passes need at the least.

    Unknown where a cache makes passes smaller than a whole one.
    """
    is_cached = name == OURS and decoder.get("cache", "none") != "none"
    if limit is None or is_cached:
        return None, None
    attended_BL = setting.canvas(model).attention_mask
    if name == "reference":
        length = num_logits = attended_BL.shape[1]
    else:  # no padding, and logits for masks alone: on average about half of the active block
        length = int(attended_BL.sum()) // setting.batch
        num_logits = max(1, setting.block_length // 2)
    flop = filled.num_row_passes * forward_flop(model, 1, length, num_logits)
    size = sum(weight.numel() * weight.itemsize for weight in model.network.parameters())
    read = filled.num_forward_passes * size
    return flop / seconds / limit.flops, read / seconds / limit.bytes


# --- the reference --------------------------------------------------------------------------------


def published_loop(model: DiffusionLM, canvas: Canvas, setting: Setting) -> Filled:
    """The published `generate` on the canvas; its draws are its own, so that above temperature 0
    only the time compares.

    The network is called directly: the logits stay in the number format of the weights.
    """
    is_padded = not bool(canvas.attention_mask.all())
    tokens = fill_block_by_block(
        lambda tokens, real: (
            model.network(
                input_ids=tokens, attention_mask=real if is_padded else None, use_cache=False
            ).logits
        ),
        canvas.tokens,
        canvas.attention_mask,
        mask_token_id=canvas.mask_token_id,
        response_start=canvas.response_start,
        block_length=setting.block_length,
        steps=setting.steps,
        temperature=setting.temperature,
        generator=torch.Generator(canvas.tokens.device).manual_seed(setting.seed),
    )
    response_BR = tokens[:, canvas.response_start :]
    return Filled(response_BR, setting.steps, setting.steps * setting.batch)
