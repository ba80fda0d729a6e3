"""Commands that measure speed and memory: bench sampler, align, drift, campaign, report."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser, Namespace

from mosa.cli.options import (
    Command,
    add_fields,
    config_argument,
    entries,
    given_fields,
    integers,
    numbers,
    show,
)

if TYPE_CHECKING:
    from mosa.bench.common import BenchResult

LISTS = ("batch", "temperature", "sizes")
"""Settings that are written with commas."""
KEPT = "Nothing is written before all is measured; start it again."


def _output_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--out", type=Path | None, help="also write what is shown to this file")
    parser.add_argument("--json", type=Path | None, help="also write the numbers to this file")


def _command(name: str, args: Namespace) -> str:
    """The command with the options that were given."""
    words = ["mosa", "bench", name]
    for option, value in args.as_dict().items():
        if value is True:
            words.append(f"--{option}")
        elif isinstance(value, list):  # of files of options, which are among the others
            continue
        elif value is not None:
            words += [f"--{option}", str(value)]
    return shlex.join(words)


def _finish(result: BenchResult, args: Namespace) -> None:
    show(result.text().rstrip())
    result.write(args.out, args.json)


# --- sampler --------------------------------------------------------------------------------------


def _sampler_arguments(parser: ArgumentParser) -> None:
    from mosa.bench.sampler import OWN_FIELDS, SamplerBenchConfig
    from mosa.denoising import DecoderConfig

    config_argument(parser)
    _output_arguments(parser)
    parser.add_argument("--batch", type=str | None, help="rows that run together, as in 1,8,32")
    parser.add_argument("--temperature", type=str | None, help="temperatures, as in 0,1")
    add_fields(parser, SamplerBenchConfig, leave_out=LISTS)
    add_fields(parser, DecoderConfig, leave_out=OWN_FIELDS)


def _sampler(args: Namespace) -> None:
    from mosa.bench.sampler import OWN_FIELDS, SamplerBenchConfig, bench_sampler
    from mosa.denoising import DecoderConfig

    given = given_fields(SamplerBenchConfig, args, leave_out=LISTS)
    if args.batch is not None:
        given["batch"] = integers("--batch", args.batch)
    if args.temperature is not None:
        given["temperature"] = numbers("--temperature", args.temperature)
    decoder = given_fields(DecoderConfig, args, leave_out=OWN_FIELDS)

    command = _command("sampler", args)
    _finish(bench_sampler(SamplerBenchConfig(**given), decoder, command=command, tell=show), args)


# --- align ----------------------------------------------------------------------------------------


def _align_arguments(parser: ArgumentParser) -> None:
    from mosa.bench.align import AlignBenchConfig

    _output_arguments(parser)
    add_fields(parser, AlignBenchConfig)


def _align(args: Namespace) -> None:
    from mosa.bench.align import AlignBenchConfig, bench_align

    config = AlignBenchConfig(**given_fields(AlignBenchConfig, args))
    _finish(bench_align(config, command=_command("align", args), tell=show), args)


# --- campaign and report --------------------------------------------------------------------------

SIZES_HELP = "numbers of attempts, each measured by itself, as in 1200,12000"


def _campaign_arguments(parser: ArgumentParser) -> None:
    from mosa.bench.campaign import CampaignBenchConfig

    config_argument(parser)
    _output_arguments(parser)
    parser.add_argument("--sizes", type=str | None, help=SIZES_HELP)
    add_fields(parser, CampaignBenchConfig, leave_out=LISTS)


def _campaign(args: Namespace) -> None:
    from mosa.bench.campaign import CampaignBenchConfig, bench_campaign

    given = given_fields(CampaignBenchConfig, args, leave_out=LISTS)
    config = CampaignBenchConfig(**given, **_sizes(args))
    _finish(bench_campaign(config, command=_command("campaign", args), tell=show), args)


def _report_arguments(parser: ArgumentParser) -> None:
    config_argument(parser)
    _output_arguments(parser)
    parser.add_argument("--sizes", type=str | None, help=SIZES_HELP)


def _report(args: Namespace) -> None:
    from mosa.bench.report import ReportBenchConfig, bench_report

    config = ReportBenchConfig(**_sizes(args))
    _finish(bench_report(config, command=_command("report", args), tell=show), args)


# --- drift ----------------------------------------------------------------------------------------


def _drift_arguments(parser: ArgumentParser) -> None:
    from mosa.bench.drift import DriftConfig
    from mosa.denoising.config import APPROXIMATE_SETTINGS, DecoderConfig

    config_argument(parser)
    _output_arguments(parser)
    parser.add_argument(
        "--adapter",
        type=str,
        default="none",
        help="adapters with commas, each compared by itself; none is the model without one",
    )
    add_fields(parser, DriftConfig, leave_out=("adapters", "approximations"))
    names = (field.name for field in dataclasses.fields(DecoderConfig))
    add_fields(
        parser, DecoderConfig, leave_out=tuple(n for n in names if n not in APPROXIMATE_SETTINGS)
    )


def _drift(args: Namespace) -> None:
    from mosa.bench.drift import DriftConfig, bench_drift
    from mosa.denoising import DecoderConfig

    given = given_fields(DriftConfig, args, leave_out=LISTS)
    settings = given_fields(DecoderConfig, args)
    if settings:
        given["approximations"] = (settings,)
    config = DriftConfig(adapters=entries(args.adapter), **given)
    _finish(bench_drift(config, command=_command("drift", args), tell=show), args)


def _sizes(args: Namespace) -> dict[str, Any]:
    return {} if args.sizes is None else {"sizes": integers("--sizes", args.sizes)}


BENCH_COMMANDS: dict[str, Command] = {
    "bench sampler": Command(
        "time our sampler beside the published loop, with its memory and where the time goes",
        _sampler_arguments,
        _sampler,
        KEPT,
    ),
    "bench align": Command(
        "time a training step beside a plain one, with its memory and where the time goes",
        _align_arguments,
        _align,
        KEPT,
    ),
    "bench drift": Command(
        "compare approximate decoders with the exact one on the testbed: harm, utility, tokens",
        _drift_arguments,
        _drift,
        KEPT,
    ),
    "bench campaign": Command(
        "time a campaign with a target that takes no time: how its cost grows with the attempts",
        _campaign_arguments,
        _campaign,
        KEPT,
    ),
    "bench report": Command(
        "time the report of made-up runs: how its cost grows with the attempts",
        _report_arguments,
        _report,
        KEPT,
    ),
}
