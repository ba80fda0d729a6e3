"""`mosa analyze NAME`: runs a probe on one or several subjects, and shows what it has found."""

from __future__ import annotations

from jsonargparse import ArgumentParser, Namespace

from mosa.api.probing import run_probes
from mosa.api.runs import asked_for, nothing_from, problems_of
from mosa.cli.evaluate import begin_groups, evaluation_arguments
from mosa.cli.options import Command, add_fields, given_fields
from mosa.cli.results import end_status
from mosa.cli.tables import Column, Page, TextTable, rate_cell
from mosa.evidence.findings import Finding
from mosa.probes import PROBES, PROTOCOLS
from mosa.probes.base import Protocol
from mosa.runs.evaluate import EvaluateConfig
from mosa.runs.options import judge_config, probe_config, taken_by
from mosa.runs.processes import join
from mosa.runs.progress import ProgressBar
from mosa.runs.store import Run
from mosa.stats.pairs import PairedDifference
from mosa.stats.rates import format_p


def _command(name: str, summary: str) -> Command:
    """The options of a probe's settings, over a preset."""

    def add_arguments(parser: ArgumentParser) -> None:
        meant = ", ".join(f"{preset} ({_in_words(of)})" for preset, of in PROTOCOLS[name].items())
        of_the_probe = f"settings of the probe {name}"
        begin_groups(parser, of_the_probe)
        evaluation_arguments(
            parser,
            sets_help="harmful or harmless",
            group=of_the_probe,
            preset="quick",
            preset_help=f"settings of the probe; {meant}, and options given beside it win, "
            "--limit for the number of cases",
            taken=taken_by(name),
        )
        add_fields(parser, PROBES[name].config_class, group=of_the_probe)

    def run(args: Namespace) -> int | None:
        processes = join()

        def settings() -> EvaluateConfig:
            options = given_fields(PROBES[name].config_class, args)
            return probe_config(name, args.as_dict(), options)

        config = processes.agree(settings)
        with ProgressBar() as bar:
            found = run_probes(
                args.out,
                config,
                judge_config=judge_config(args.as_dict()),
                on_progress=bar.update,
                on_judged=bar.judging,
                processes=processes,
            )
        processes.disband()
        page = Page()
        for finding in found:
            show_finding(finding, page)
            folder = args.out / finding.name
            page.say(f"All sentences with intervals (finding.md), data and figures: {folder}")
        if not processes.is_main:
            return None
        with Run(args.out) as recorded:
            nothing = nothing_from(recorded, bar.judged, asked_for(config.subjects, config.attacks))
            if nothing:
                page.say_each(problems_of(recorded))
            return end_status(nothing)

    kept = "All but the batch in flight is recorded; the same command resumes the run."
    return Command(
        summary,
        add_arguments,
        run,
        kept,
        example=f"mosa analyze {name} --model testbed --sets testbed:direct --out runs/{name}",
        runs_on_several_processes=True,
    )


def show_finding(finding: Finding, page: Page) -> None:
    """The key figures as a table, what they say, and what a reader has to know."""
    is_tested = any(key.p_adjusted is not None for key in finding.key_figures)
    rows = [
        (
            key.of,
            key.what,
            rate_cell(key.figure, signed=isinstance(key.figure, PairedDifference)),
            str(key.figure.n),
            *([format_p(key.p_adjusted)] if is_tested else []),
        )
        for key in finding.key_figures
    ]
    columns = (
        Column("figure", is_number=False),
        Column("value", is_number=False),
        Column("n", 1),
        *([Column("p (Holm)")] if is_tested else []),
    )
    if rows:
        title = f"{finding.probe}, preset {finding.preset}, responses of {finding.length} tokens"
        page.table(TextTable(title, columns, rows, grouped_by="subject and set"))
    page.say_each(finding.key_sentences)


def _in_words(protocol: Protocol) -> str:
    """What a preset is meant to be run on, in words."""
    drawn = "" if protocol.sample_seed is None else "random "
    length = protocol.max_new_tokens
    tokens = "" if length is None else f" of {length} tokens"
    return f"{protocol.num_cases} {drawn}cases{tokens}"


COMMANDS: dict[str, Command] = {
    f"analyze {name}": _command(name, f"measure {probe.summary}") for name, probe in PROBES.items()
}
