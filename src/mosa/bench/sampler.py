"""Our sampler beside the published loop, or beside itself with approximate settings.

    mosa bench sampler --shape wide --against reference

The reference is the published loop of the shape's family (`published.py`). LLaDA's `generate`
(arXiv:2502.09992; ML-GSAI/LLaDA, generate.py): in every step the network answers for the whole
canvas, a softmax takes all of its logits, float64 Gumbel noise joins them above temperature 0, and
each row has a `topk`. SDAR's and LLaDA2's take one row at a time. At temperature 0 in float32 their
tokens are ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from itertools import product
from typing import Any, Literal

import torch

from mosa.bench.common import (
    RATIO,
    Bench,
    BenchResult,
    BenchTable,
    Environment,
    ModelBenchConfig,
    Shape,
    bench_canvas,
    bench_model,
    check_counts,
    forward_flop,
    limit_of,
    peak_memory,
    profile_table,
    shape_named,
    side_by_side,
    threads,
)
from mosa.bench.published import Filled, published_loop
from mosa.denoising import Canvas, sample
from mosa.denoising.config import APPROXIMATE_SETTINGS, DecoderConfig
from mosa.families import DiffusionLM
from mosa.types import Tell, UserError, tell_nobody
from mosa.worker import device_of

OURS = "mosa"
OWN_FIELDS = ("max_new_tokens", "steps", "block_length", "temperature", "seed")
"""Fields of the decoder that the benchmark sets from options of its own."""


@dataclass(frozen=True, kw_only=True)
class SamplerBenchConfig(ModelBenchConfig):
    """What `mosa bench sampler` measures."""

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
    """Seconds after which no further round of a setting begins; null means no bound."""

    def __post_init__(self):
        check_counts(self, "batch", "prompt", "length", "block_length", "steps", "repeats")


@dataclass(frozen=True)
class Setting:
    """The settings of one comparison."""

    shape: Shape
    dtype: str
    batch: int
    prompt: int | None
    """Prompt tokens of a row; None for the requests of the checkpoint's world."""
    decoder: DecoderConfig

    @classmethod
    def of(
        cls, shape: Shape, given: Any, batch: int, temperature: float, **decoder: Any
    ) -> Setting:
        """The options `given` (a namespace or config), what the shape has for those unset, and
        other settings of the decoder."""
        length = given.length or shape.length
        block_length = given.block_length or shape.block_length
        steps = given.steps or shape.steps
        return cls(
            shape,
            given.dtype or shape.dtype,
            batch,
            given.prompt or shape.prompt,
            DecoderConfig(
                length,
                steps,
                block_length,
                temperature,
                seed=given.seed,
                **{**shape.decoder, **decoder},
            ),
        )

    @property
    def title(self) -> str:
        """The setting without batch, temperature and approximations, in two lines."""
        prompts = "requests" if self.prompt is None else f"{self.prompt} tokens"
        decoder = self.decoder
        return (
            f"{self.shape.name}: {self.shape.summary}; {self.dtype}\n"
            f"prompts: {prompts}; response: {decoder.max_new_tokens} tokens, blocks of "
            f"{decoder.block_length}, {decoder.steps} steps"
        )

    def canvas(self, model: DiffusionLM) -> Canvas:
        """Its prompts, with masks to fill."""
        length, seed = self.decoder.max_new_tokens, self.decoder.seed
        return bench_canvas(
            model, self.shape, self.batch, prompt=self.prompt, length=length, seed=seed
        )


COLUMNS = {
    "batch": "d",
    "temp": "g",
    "sampler": "",
    "seconds": ".3f",  # the median over the rounds
    "tokens/s": ".1f",  # response tokens of all rows
    "passes": "d",
    "tokens/pass": ".2f",
    "ms/pass": ".2f",
    "peak MiB": ".0f",  # beyond the weights
    **RATIO,
    "equal": ".1%",  # tokens that are the other's, at temperature 0
    "compute": ".1%",
    "bandwidth": ".1%",
}


def bench_sampler(
    config: SamplerBenchConfig,
    decoder: Mapping[str, Any] | None = None,
    *,
    command: str = "mosa bench sampler",
    tell: Tell = tell_nobody,
) -> BenchResult:
    """Times our sampler, with the `decoder` fields given, and what it is compared with.

    Calls `tell` with a line on each row. Raises UserError for settings that do not fit.
    """
    decoder = dict(decoder or {})
    if config.against == "exact" and not decoder.keys() & set(APPROXIMATE_SETTINGS):
        raise UserError(
            "--against exact compares an approximate setting with none; give at least one of "
            + ", ".join(f"--{name}" for name in APPROXIMATE_SETTINGS)
        )
    shape = shape_named(config.shape)
    device = device_of(config.device)
    rows, tables = [], []
    with threads(config.threads):
        model = bench_model(shape, device, config.dtype, seed=config.seed)
        batches = config.batch or shape.batch
        total = len(batches) * len(config.temperature)
        for done, (batch, temperature) in enumerate(product(batches, config.temperature), start=1):
            setting = _setting(config, shape, batch, temperature, decoder)
            for row in _measured(config, setting, model):
                rows.append(row)
                told = f"batch {batch}, temperature {temperature:g}, {row['sampler']}"
                tell(f"{told}: {row['seconds']:.3f} s", done, total)
        for temperature in config.temperature:
            setting = _setting(config, shape, max(batches), temperature, decoder)
            title = f"Where the time goes: batch {setting.batch}, temperature {temperature:g}"
            tables.append(profile_table(title, contestant(OURS, setting, model), device))
        environment = Environment.of(command, device)
    changed = ", ".join(f"{name} {value}" for name, value in decoder.items())
    title = setting.title + (f"\n{OURS}: {changed}" if changed else "")
    return BenchResult(environment, (BenchTable(title, COLUMNS, rows), *tables))


def _setting(
    config: SamplerBenchConfig,
    shape: Shape,
    batch: int,
    temperature: float,
    decoder: Mapping[str, Any],
) -> Setting:
    setting = Setting.of(shape, config, batch, temperature, **decoder)
    length, steps = setting.decoder.max_new_tokens, setting.decoder.steps
    block_length = setting.decoder.block_length or length
    if config.against == "reference" and (
        length % block_length or steps % (length // block_length)
    ):
        raise UserError(
            "the published loop needs whole blocks with the same number of steps: make --length "
            f"{length} a multiple of --block_length {block_length}, and --steps {steps} a multiple "
            "of the number of blocks"
        )
    return setting


# --- measuring ------------------------------------------------------------------------------------


def _measured(
    config: SamplerBenchConfig, setting: Setting, model: DiffusionLM
) -> list[dict[str, Any]]:
    """The rows of one setting: the other contestant's, if there is one, and ours."""
    device = model.device
    names = [OURS] if config.against == "none" else [config.against, OURS]
    runs = {name: contestant(name, setting, model) for name in names}
    timings = side_by_side(
        runs,
        repeats=setting.shape.repeats if config.repeats is None else config.repeats,
        device=device,
        max_seconds=config.max_seconds,
    )
    temperature = setting.decoder.temperature
    rows = []
    for name in names:
        filled, seconds = timings.first[name], timings.median(name)
        peak = peak_memory(device, runs[name], prepared_loop, name, setting)
        row = {
            "batch": setting.batch,
            "temp": temperature,
            "sampler": name,
            "seconds": seconds,
            "tokens/s": filled.tokens.numel() / seconds,
            "passes": filled.num_forward_passes,
            "tokens/pass": filled.tokens.numel() / filled.num_row_passes,
            "ms/pass": 1000 * seconds / filled.num_forward_passes,
            "peak MiB": peak / 2**20,
        }
        if name != names[0]:
            row |= timings.ratio(names[0], name)
            if temperature == 0 and not model.is_noise:  # noise is drawn at any temperature
                other = timings.first[names[0]].tokens
                row["equal"] = float((filled.tokens == other).float().mean())
        rows.append(row | _limit_shares(limit_of(device), model, setting, name, filled, seconds))
    return rows


def contestant(name: str, setting: Setting, model: DiffusionLM) -> Callable[[], Filled]:
    """A run of the reference, of ours, or of ours without approximations."""
    canvas, decoder = setting.canvas(model), setting.decoder
    if name == "reference":
        return lambda: published_loop(model, canvas, decoder)
    if name == "exact":
        plain = DecoderConfig()
        decoder = replace(decoder, **{key: getattr(plain, key) for key in APPROXIMATE_SETTINGS})

    def ours() -> Filled:
        result = sample(model, canvas, decoder)
        num_row_passes = int(result.trace.row_forward_passes.sum())
        return Filled(result.tokens, result.num_forward_passes, num_row_passes)

    return ours


def prepared_loop(name: str, setting: Setting) -> Callable[[], Filled]:
    """The same in a process of its own, on the CPU, with the same weights."""
    device = torch.device("cpu")
    model = bench_model(setting.shape, device, setting.dtype, seed=setting.decoder.seed)
    return contestant(name, setting, model)


def _limit_shares(
    limit: Mapping[str, float] | None,
    model: DiffusionLM,
    setting: Setting,
    name: str,
    filled: Filled,
    seconds: float,
) -> dict[str, float]:
    """The least shares of the device's compute and bandwidth that the passes need.

    Empty for an unknown device, and where kept keys make passes smaller than a whole one.
    """
    keeps_keys = not model.attention.is_full or (name == OURS and setting.decoder.cache != "none")
    if limit is None or keeps_keys:
        return {}
    attended_BL = setting.canvas(model).attention_mask
    if name == "reference":
        length = num_logits = attended_BL.shape[1]
    else:  # no padding, and logits for masks alone: on average about half of the active block
        length = int(attended_BL.sum()) // setting.batch
        num_logits = max(1, (setting.decoder.block_length or length) // 2)
    size = sum(weight.numel() * weight.itemsize for weight in model.network.parameters())
    needed = {
        "compute": filled.num_row_passes * forward_flop(model, 1, length, num_logits),
        "bandwidth": filled.num_forward_passes * size,
    }
    return {name: needed[name] / seconds / most for name, most in limit.items()}


BENCH = Bench(
    SamplerBenchConfig,
    bench_sampler,
    {field.name for field in fields(DecoderConfig)} - set(OWN_FIELDS),
)
