"""Commands that measure speed and memory: bench sampler, align, drift, campaign, report."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser, Namespace

from mosa.cli.options import Command, add_fields, config_argument, config_from, show

if TYPE_CHECKING:
    from mosa.bench.common import BenchResult


@dataclass(frozen=True)
class Bench:
    """A benchmark as a command runs it."""

    config_class: type
    run: Callable[..., BenchResult]
    """Of the config, the given settings of the decoder, the command, and what tells a line."""
    decoder_settings: Collection[str] = ()
    """The fields of `DecoderConfig` that are options too."""


def _sampler() -> Bench:
    from mosa.bench.sampler import OWN_FIELDS, SamplerBenchConfig, bench_sampler
    from mosa.denoising import DecoderConfig

    return Bench(
        SamplerBenchConfig,
        bench_sampler,
        {field.name for field in dataclasses.fields(DecoderConfig)} - set(OWN_FIELDS),
    )


def _align() -> Bench:
    from mosa.bench.align import AlignBenchConfig, bench_align

    return Bench(
        AlignBenchConfig,
        lambda config, _, **more: bench_align(config, **more),
    )


def _campaign() -> Bench:
    from mosa.bench.campaign import CampaignBenchConfig, bench_campaign

    return Bench(
        CampaignBenchConfig,
        lambda config, _, **more: bench_campaign(config, **more),
    )


def _report() -> Bench:
    from mosa.bench.report import ReportBenchConfig, bench_report

    return Bench(
        ReportBenchConfig,
        lambda config, _, **more: bench_report(config, **more),
    )


def _drift() -> Bench:
    from mosa.bench.drift import DriftConfig, bench_drift
    from mosa.denoising.config import APPROXIMATE_SETTINGS

    def run(config: DriftConfig, settings: dict[str, Any], **more: Any) -> BenchResult:
        if settings:
            config = dataclasses.replace(config, approximations=(settings,))
        return bench_drift(config, **more)

    return Bench(DriftConfig, run, APPROXIMATE_SETTINGS)


def _command(name: str, summary: str, load: Callable[[], Bench]) -> Command:
    """`mosa bench NAME`."""

    def add_arguments(parser: ArgumentParser) -> None:
        bench = load()
        config_argument(parser)
        parser.add_argument("--out", type=Path | None, help="file that also gets what is shown")
        parser.add_argument("--json", type=Path | None, help="file that also gets the numbers")
        add_fields(parser, bench.config_class, leave_out=("approximations",))
        if bench.decoder_settings:
            from mosa.denoising import DecoderConfig

            names = {field.name for field in dataclasses.fields(DecoderConfig)}
            left_out = names - set(bench.decoder_settings)
            add_fields(parser, DecoderConfig, leave_out=left_out, group="decoder")

    def run(args: Namespace) -> None:
        bench = load()
        result = bench.run(
            config_from(bench.config_class, args),
            {name: args[name] for name in bench.decoder_settings if name in args},
            command=_written(name, args),
            tell=show,
        )
        show(result.text().rstrip())
        result.write(args.out, args.json)

    return Command(summary, add_arguments, run, "Nothing is recorded; start the benchmark again.")


def _written(name: str, args: Namespace) -> str:
    """The command with the options that were given."""
    words = ["mosa", "bench", name]
    for option, value in args.as_dict().items():
        if value is True:
            words.append(f"--{option}")
        elif isinstance(value, tuple):
            words += [f"--{option}", ",".join(map(str, value))]
        elif value is not None and not isinstance(value, list):  # a list: the files of options
            words += [f"--{option}", str(value)]
    return shlex.join(words)


BENCH_COMMANDS: dict[str, Command] = {
    f"bench {name}": _command(name, summary, load)
    for name, summary, load in (
        ("sampler", "time our sampler beside the published loop, and measure its memory", _sampler),
        ("align", "time a training step beside a plain one, and measure its memory", _align),
        ("drift", "measure how far approximate decoders change harm, utility and tokens", _drift),
        ("campaign", "time the recording of attempts as their number grows", _campaign),
        ("report", "time the report of made-up runs as they grow", _report),
    )
}
