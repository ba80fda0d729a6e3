"""The command about useful tasks: utility."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser, Namespace

from mosa.cli.campaigns import (
    SECONDS_BETWEEN_LINES,
    decoder_settings,
    entries,
    models_arguments,
    wide_console,
)
from mosa.cli.options import Command, add_fields, config_argument, placement_arguments, show

if TYPE_CHECKING:
    from mosa.evaluation.store import Store
    from mosa.evaluation.utility import UtilityProgress


def _arguments(parser: ArgumentParser) -> None:
    from mosa.denoising import DecoderConfig
    from mosa.evaluation.utility import UtilityConfig

    config_argument(parser)
    models_arguments(parser)
    parser.add_argument(
        "--tasks",
        type=str,
        required=True,
        help="names with commas: testbed, gsm8k, mmlu, humaneval, mbpp, ifeval, or any task of "
        "lm_eval",
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help="folder of a run; attacks that it holds decide the decoder",
    )
    own = ("model", "adapters", "tasks", "dtype", "device")
    add_fields(parser, UtilityConfig, leave_out=own)
    placement_arguments(parser)
    add_fields(parser, DecoderConfig)


def _utility(args: Namespace) -> None:
    from mosa.evaluation.utility import UtilityConfig, run_utility, utility_decoder
    from mosa.evaluation.utility.code_sandbox import ISOLATIONS, best_isolation

    names = {field.name for field in dataclasses.fields(UtilityConfig)}
    given = {name: value for name, value in args.as_dict().items() if name in names}
    given |= {"tasks": entries(args.tasks), "adapters": tuple(args.adapter)}
    config = UtilityConfig(**given)
    decoder = utility_decoder(args.out, config.model)
    decoder = dataclasses.replace(decoder, **decoder_settings(args))
    shown = ", ".join(f"{name} {value}" for name, value in vars(decoder).items())
    show(f"Decoder: {shown}.")
    if config.run_code:
        show(f"Generated code is run in {ISOLATIONS[best_isolation()]}.")
    with run_utility(args.out, config, decoder, on_progress=_Told().progress) as store:
        show_utility(store)


class _Told:
    """Progress as a line now and then."""

    def __init__(self) -> None:
        self.last = time.monotonic()

    def progress(self, now: UtilityProgress) -> None:
        """Take in how far the run has come."""
        if time.monotonic() > self.last + SECONDS_BETWEEN_LINES:
            self.last = time.monotonic()
            tally = now.tally
            done = tally.num_answered + tally.num_recorded
            show(
                f"{now.model}: {now.num_done} of {now.num_tasks} tasks, {now.task}: {done} of "
                f"{tally.num_asked} answers so far"
            )


def show_utility(store: Store) -> None:
    """The table of a run of useful tasks."""
    from rich import box
    from rich.table import Table

    from mosa.evaluation.utility import utility_lines
    from mosa.stats.rates import format_rate

    console = wide_console()
    table = Table(title="Useful tasks", box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("task", "metric", "rate"):
        table.add_column(heading)
    for heading in ("n", "unscored"):
        table.add_column(heading, justify="right", no_wrap=True)
    last = ""
    found = list(utility_lines(store))
    for line in found:
        if line.model != last:
            last = line.model
            table.add_section()
            table.add_row(f"[bold]{last}[/bold]")
        rate = line.rate
        table.add_row(
            f"  {line.task}" if line.is_headline else "",
            line.metric,
            format_rate(rate),
            "0" if rate is None else str(rate.n),
            str(line.num_unscored),
        )
    console.print(table)
    for line in found:
        for reason, count in line.reasons if line.is_headline else ():
            console.print(f"{line.model}, {line.task}: {count} unscored: {reason}")
    for name, figures in _only_whole(store, found):
        console.print(f"{name}: lm_eval gives no share of cases, but {figures}")
    console.print(
        "rate: mean over the n scored cases with its 95 % interval; the first metric of a "
        f"task stands for it. Unscored cases are in no rate. Run: {store.folder}."
    )


def _only_whole(store: Store, found: list[Any]) -> list[tuple[str, str]]:
    """Tasks without a line, with the figures that lm_eval has for them as a whole."""
    from mosa.evaluation.utility.results import figures_name

    told = {(line.model, line.task) for line in found}
    shown = []
    for model in store.models():
        for task in store.meta("tasks") or {}:
            figures = store.meta(figures_name(model, task))
            if figures and (model, task) not in told:
                text = "; ".join(
                    f"{part} {name} {value:.4g}"
                    for part, values in figures.items()
                    for name, value in values.items()
                )
                shown.append((f"{model}, {task}", text))
    return shown


UTILITY_COMMANDS: dict[str, Command] = {
    "utility": Command(
        "ask models useful tasks, and count how many they solve",
        _arguments,
        _utility,
        "All but the batch in flight is recorded; the same command goes on from there.",
    )
}
