"""The command about harmless requests: over-refusal."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace

from mosa.cli.campaigns import (
    Shown,
    decoder_settings,
    entries,
    integers,
    judge_all,
    judges_arguments,
    judges_of,
    models_arguments,
    running_arguments,
    show_nothing,
    wide_console,
    written_judges,
)
from mosa.cli.compliance import EXPLANATION, show_compliance
from mosa.cli.options import FILES, Command, config_argument

if TYPE_CHECKING:
    from mosa.evaluation.store import Store


def _arguments(parser: ArgumentParser) -> None:
    config_argument(parser)
    models_arguments(parser)
    parser.add_argument(
        "--sets",
        type=str,
        required=True,
        help="sets of harmless requests, with commas: xstest, or_bench_hard_1k, "
        f"jailbreakbench_benign, testbed:benign, testbed:near_miss, or {FILES}",
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help="folder of a run; attacks that it holds decide the decoder",
    )
    judges_arguments(parser)
    running_arguments(parser)


def _over_refusal(args: Namespace) -> None:
    from mosa.evaluation.defaults import default_decoder
    from mosa.evaluation.over_refusal import (
        OverRefusalConfig,
        check_judge,
        run_over_refusal,
        world_of_sets,
    )
    from mosa.evaluation.runs import decoder_beside

    config = OverRefusalConfig(
        model=args.model,
        sets=entries(args.sets),
        adapters=tuple(args.adapter),
        seeds=integers("--seeds", args.seeds),
        limit=args.limit,
        data_dir=args.data_dir,
        batch_size=args.batch_size,
        dtype=args.dtype,
        device=args.device,
    )
    world = world_of_sets(config)
    judges = judges_of(args, written_judges(args, world), world)
    for judge in judges:
        check_judge(judge.id)
    decoder = None
    if given := decoder_settings(args):
        decoder = dataclasses.replace(decoder_beside(args.out) or default_decoder(world), **given)
    console = wide_console()
    with Shown() as shown:

        def judge_and_show(store: Store) -> None:
            shown.stop()
            judge_all(store, judges)
            if store.judges():
                show_compliance(store, console)
            else:
                show_nothing(store)

        run_over_refusal(
            args.out,
            config,
            decoder,
            on_progress=shown.progress,
            on_finished=judge_and_show,
        )
    console.print(EXPLANATION)


OVER_REFUSAL_COMMANDS: dict[str, Command] = {
    "over-refusal": Command(
        "ask models harmless requests, and count how many they refuse",
        _arguments,
        _over_refusal,
        "All but the batch in flight is recorded; the same command goes on from there.",
    )
}
