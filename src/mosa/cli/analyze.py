"""`mosa analyze NAME`: a probe on one or several subjects, and what it has found."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from mosa.cli.evaluate import running_arguments, subject_arguments, subjects_from
from mosa.cli.judge import judge_config, judge_options
from mosa.cli.options import (
    FILES,
    Command,
    add_fields,
    config_argument,
    entries,
    given_fields,
    integers,
    show,
)
from mosa.cli.progress import ProgressBar


def _command(name: str, summary: str) -> Command:
    """The options of a probe's settings, over a preset."""

    def add_arguments(parser: ArgumentParser) -> None:
        from mosa.probes import NUM_CASES, PROBES

        config_argument(parser)
        subject_arguments(parser, taken=_taken(name))
        parser.add_argument(
            "--sets",
            type=str,
            required=True,
            help=f"harmful or harmless sets with commas (`mosa sets`), or {FILES}",
        )
        parser.add_argument("--out", type=Path, required=True, help="folder of the run")
        cases = ", ".join(f"{preset} {num}" for preset, num in NUM_CASES[name].items())
        parser.add_argument(
            "--preset",
            type=str,
            default="quick",
            help="named settings, with a limit of cases unless --limit says another: "
            f"{cases}; single options win over it",
        )
        parser.add_argument(
            "--judges",
            type=str | None,
            help="names with commas (`mosa judges`); unset: truth on the testbed, else refusal",
        )
        judge_options(parser)
        running_arguments(parser)
        add_fields(parser, PROBES[name].config_class)

    def run(args: Namespace) -> None:
        from mosa.analyze import analyze
        from mosa.probes import NUM_CASES, PROBES
        from mosa.runs.evaluate import EvaluateConfig
        from mosa.runs.processes import join
        from mosa.runs.sets import SetOptions

        processes = join()

        def settings() -> EvaluateConfig:
            options = given_fields(PROBES[name].config_class, args)
            PROBES[name].config(args.preset, options)  # before its number of cases is looked up
            sets = {"limit": NUM_CASES[name][args.preset], **given_fields(SetOptions, args)}
            return EvaluateConfig(
                subjects=subjects_from(args, taken=_taken(name)),
                sets=entries(args.sets),
                attacks=(name,),
                preset=args.preset,
                attack_options={name: options} if options else {},
                judges=None if args.judges is None else entries(args.judges),
                seeds=integers("--seeds", args.seeds),
                options=SetOptions(**sets),
                batch_size=args.batch_size,
                dtype=args.dtype,
                device=args.device,
            )

        config = processes.agree(settings)
        with ProgressBar() as bar:
            found = analyze(
                args.out,
                config,
                judge_config=judge_config(args),
                on_progress=bar.evaluation,
                on_judged=bar.judging,
                processes=processes,
            )
        processes.disband()
        for finding in found:
            show(finding.paragraph)
            show(f"Data and figures are in {args.out / finding.name}.")

    kept = "All but the batch in flight is recorded; the same command goes on from there."
    return Command(summary, add_arguments, run, kept, runs_on_several_processes=True)


def _taken(name: str) -> set[str]:
    """The decoder settings that the probe sets, so that they are options of the probe or none; the
    length of a response is the subject's."""
    from mosa.probes import PROBES

    fields = {field.name for field in dataclasses.fields(PROBES[name].config_class)}
    return fields | {*PROBES[name].takes} - {"max_new_tokens"}


ANALYZE_COMMANDS: dict[str, Command] = {
    f"analyze {name}": _command(name, summary)
    for name, summary in (
        ("position", "harm by what is forced into a response, and where"),
        ("suffix", "how far an optimised prompt steers a position"),
        ("order", "in which order positions are committed"),
        ("step", "harm by position and step of an intervention"),
        ("depth", "where and when a model puts refusals"),
    )
}
