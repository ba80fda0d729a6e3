"""`mosa analyze NAME`: runs a probe on one or several subjects, and shows what it has found."""

from __future__ import annotations

import dataclasses

from jsonargparse import ArgumentParser, Namespace

from mosa.catalogue import read_catalogue
from mosa.cli.evaluate import evaluation_arguments, evaluation_config
from mosa.cli.judge import judge_config
from mosa.cli.options import Command, add_fields, given_fields, show
from mosa.cli.progress import ProgressBar


def _command(name: str, summary: str) -> Command:
    """The options of a probe's settings, over a preset."""

    def add_arguments(parser: ArgumentParser) -> None:
        from mosa.probes import NUM_CASES, PROBES

        cases = ", ".join(f"{preset} ({num} cases)" for preset, num in NUM_CASES[name].items())
        evaluation_arguments(
            parser,
            sets_help="harmful or harmless sets",
            preset="quick",
            preset_help=f"settings of the probe: {cases}; options given beside it win, and --limit "
            "sets another number of cases",
            taken=_taken(name),
        )
        add_fields(parser, PROBES[name].config_class, group=f"settings of the probe {name}")

    def run(args: Namespace) -> None:
        from mosa.analyze import analyze
        from mosa.probes import NUM_CASES, PROBES
        from mosa.runs.evaluate import EvaluateConfig
        from mosa.runs.processes import join

        processes = join()

        def settings() -> EvaluateConfig:
            options = given_fields(PROBES[name].config_class, args)
            PROBES[name].config(args.preset, options)  # before its number of cases is looked up
            return evaluation_config(
                args,
                attacks=(name,),
                attack_options={name: options} if options else {},
                taken=_taken(name),
                limit=NUM_CASES[name][args.preset],
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

    kept = "All but the batch in flight is recorded; the same command resumes the run."
    return Command(summary, add_arguments, run, kept, runs_on_several_processes=True)


def _taken(name: str) -> set[str]:
    """The decoder settings that the probe sets, so that they are options of the probe or none; the
    length of a response is the subject's."""
    from mosa.probes import PROBES

    fields = {field.name for field in dataclasses.fields(PROBES[name].config_class)}
    return fields | {*PROBES[name].takes} - {"max_new_tokens"}


ANALYZE_COMMANDS: dict[str, Command] = {
    f"analyze {probe['name']}": _command(probe["name"], f"measure {probe['summary']}")
    for probe in read_catalogue()["probes"]
}
