"""Commands that measure speed and memory: bench sampler, align, drift, campaign, report."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from mosa.bench import align, campaign, drift, report, sampler
from mosa.bench.common import MADE_BY, Bench
from mosa.cli.options import Command, add_fields, config_argument, config_from
from mosa.denoising import DecoderConfig
from mosa.files import claim_file
from mosa.terminal import LiveBar, show


def _command(name: str, summary: str, bench: Bench) -> Command:
    """`mosa bench NAME`."""

    def add_arguments(parser: ArgumentParser) -> None:
        config_argument(parser)
        parser.add_argument("--out", type=Path, help="file that also gets what is shown")
        parser.add_argument("--json", type=Path, help="file that also gets the numbers")
        add_fields(parser, bench.config_class, leave_out=("approximations",))
        if bench.decoder_settings:
            names = {field.name for field in dataclasses.fields(DecoderConfig)}
            left_out = names - set(bench.decoder_settings)
            add_fields(parser, DecoderConfig, leave_out=left_out, group="decoder")

    def run(args: Namespace) -> None:
        with claim_file(args.out, MADE_BY), claim_file(args.json, MADE_BY):  # before the work
            config = config_from(bench.config_class, args)
            decoder = {name: args[name] for name in bench.decoder_settings if name in args}
            more = {"decoder": decoder} if bench.decoder_settings else {}
            with LiveBar() as bar:

                def tell(told: str, done: int, total: int) -> None:
                    bar.update(f"bench {name}", done, total)
                    bar.say(told)

                result = bench.run(config, command=_written(name, args), tell=tell, **more)
            show(result.text().rstrip())
            result.write(args.out, args.json)

    return Command(
        summary,
        add_arguments,
        run,
        "Nothing is recorded; start the benchmark again.",
        example=f"mosa bench {name} --out {name}.txt",
    )


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


COMMANDS: dict[str, Command] = {
    f"bench {name}": _command(name, summary, bench)
    for name, summary, bench in (
        (
            "sampler",
            "time our sampler beside the published loop, with memory",
            sampler.BENCH,
        ),
        ("align", "time a training step beside a plain one, with memory", align.BENCH),
        (
            "drift",
            "measure what approximate decoders change in harm and use",
            drift.BENCH,
        ),
        ("campaign", "time the recording of attempts as their number grows", campaign.BENCH),
        ("report", "time the report of made-up runs as they grow", report.BENCH),
    )
}
