"""Commands about models: answer, align, merge, build, demonstrate, analyze."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from mosa.cli.options import (
    FILES,
    MODEL_HELP,
    Command,
    add_fields,
    config_argument,
    config_from,
    placement_arguments,
    show,
)
from mosa.types import Prompt, UserError, dialogue

# --- generate -------------------------------------------------------------------------------------


def _generate_arguments(parser: ArgumentParser) -> None:
    from mosa.denoising import DecoderConfig

    config_argument(parser)
    parser.add_argument("--model", type=str, required=True, help=MODEL_HELP)
    parser.add_argument("--adapter", type=str | None, help="folder of an adapter to put on it")
    placement_arguments(parser)
    parser.add_argument("--prompt", type=str | None, help="one user turn to answer")
    parser.add_argument("--system", type=str | None, help="a system turn to put before it")
    parser.add_argument("--data", type=str | None, help=f"prompts to answer instead: {FILES}")
    parser.add_argument("--limit", type=int | None, help="only the first so many rows of --data")
    parser.add_argument("--batch_size", type=int, default=8, help="prompts per forward pass")
    parser.add_argument(
        "--out", type=Path | None, help="also write the responses as JSON lines to this new file"
    )
    parser.add_argument(
        "--show_steps", action="store_true", help="play the denoising in the terminal"
    )
    parser.add_class_arguments(DecoderConfig, as_group=True)


def _generate(args: Namespace) -> None:
    from mosa.data import load_prompts
    from mosa.denoising import DecoderConfig, sample
    from mosa.evaluation.records import JsonLines, attempts_of
    from mosa.families import load_model
    from mosa.report.terminal import play

    if (args.prompt is None) == (args.data is None):
        raise UserError("say what to answer with either --prompt TEXT or --data FILE")
    if args.limit is not None and args.data is None:
        raise UserError("--limit counts rows of --data; leave it out with --prompt")
    if args.out is not None and args.out.exists():
        raise UserError(f"{args.out} exists; name a new file with --out or remove it")
    prompts: list[Prompt]
    if args.prompt is not None:
        prompts = [args.prompt]
    else:
        prompts = [example.prompt for example in load_prompts(args.data)][: args.limit]
    if args.system is not None:
        prompts = [dialogue(prompt, args.system) for prompt in prompts]

    config = config_from(DecoderConfig, args)
    model = load_model(args.model, adapter=args.adapter, dtype=args.dtype, device=args.device)
    if model.tokenizer is None:
        raise UserError(f"{args.model} has no tokenizer.json, so it cannot read a prompt in words")
    version = model.content_hash()
    for start in range(0, len(prompts), args.batch_size):
        batch = prompts[start : start + args.batch_size]
        result = sample(model, batch, config)
        attempts = attempts_of(
            model,
            result,
            model_name=args.model,
            model_version=version,
            attack="none",
            behaviors=[str(start + i) for i in range(len(batch))],
            prompts=batch,
        )
        for row, attempt in enumerate(attempts):
            if args.data is not None:
                show(f"[{start + row + 1}/{len(prompts)}] {attempt.prompt[-1]['content']}")
            if args.show_steps:
                play(model, result.trace, row=row)
            else:
                show(attempt.response)
            if args.out is not None:
                JsonLines(args.out).append_attempt(attempt)


# --- align ----------------------------------------------------------------------------------------


def _align_command(method: str, summary: str) -> Command:
    """`mosa align METHOD`: the options of the method's settings class, over a preset or file."""

    def add_arguments(parser: ArgumentParser) -> None:
        from mosa.align import METHODS, add_align_arguments, presets

        chosen = METHODS[method]
        parser.add_argument(
            "--config",
            type=str | None,
            help=f"YAML file or preset ({', '.join(presets())}); unset: {chosen.preset}",
        )
        parser.add_argument("--model", type=str, required=True, help=MODEL_HELP)
        parser.add_argument("--data", type=str, required=True, help=f"harmful prompts: {FILES}")
        parser.add_argument(
            "--benign",
            type=str | None,
            help="benign prompts and answers, for settings that use them",
        )
        parser.add_argument("--out", type=str, required=True, help="folder for the adapter")
        parser.add_argument(
            "--resume", action="store_true", help="continue the interrupted run in --out"
        )
        placement_arguments(parser)
        add_align_arguments(parser, chosen.config_class)

    def run(args: Namespace) -> None:
        from mosa.align import align

        own = {"config", "model", "data", "benign", "out", "resume", "dtype", "device"}
        result = align(
            method,
            args.model,
            args.data,
            args.out,
            benign=args.benign,
            config=args.config,
            overrides={k: v for k, v in args.as_dict().items() if k not in own},
            resume=args.resume,
            dtype=args.dtype,
            device=args.device,
        )
        if not result.finished:
            raise KeyboardInterrupt(result.message)
        show(result.message)

    kept = "What was trained since the last checkpoint in --out is lost; --resume goes on from it."
    return Command(summary, add_arguments, run, kept, runs_on_several_processes=True)


# --- merge ----------------------------------------------------------------------------------------


def _merge_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--model", type=str, required=True, help=MODEL_HELP)
    parser.add_argument("--adapter", type=str, required=True, help="folder of the adapter")
    parser.add_argument("--out", type=str, required=True, help="folder for the full checkpoint")
    placement_arguments(parser)


def _merge(args: Namespace) -> None:
    from mosa.align import merge

    merge(args.model, args.adapter, args.out, dtype=args.dtype, device=args.device)
    show(f"Merged checkpoint in {args.out}; `mosa generate --model {args.out}` answers with it.")


# --- demo and testbed -----------------------------------------------------------------------------


def _demo_arguments(parser: ArgumentParser) -> None:
    from mosa.demo import DemoConfig

    config_argument(parser)
    parser.add_argument("--out", type=Path, required=True, help="folder for everything it makes")
    parser.add_class_arguments(DemoConfig, as_group=True)


def _demo(args: Namespace) -> None:
    from mosa.demo import DemoConfig, closing_lines, run_demo

    config = config_from(DemoConfig, args)
    run_demo(args.out, config)
    for line in closing_lines(args.out, config):
        show(line)


def _build_arguments(parser: ArgumentParser) -> None:
    from mosa.testbed.build import BuildConfig

    config_argument(parser)
    parser.add_argument(
        "--out", type=Path | None, help="folder for both models; unset: runs/testbed-WORLD_SEED"
    )
    parser.add_class_arguments(BuildConfig, as_group=True)


def _build(args: Namespace) -> None:
    from mosa.testbed.build import BuildConfig, build

    config = config_from(BuildConfig, args)
    out = args.out or Path("runs") / f"testbed-{config.world_seed}"
    figures = build(out, config)
    for name, found in figures.items():
        show(f"{name}: " + ", ".join(f"{key} {row['rate']:.2f}" for key, row in found.items()))
    show(f"The figures with their n are in {out}/README.md.")
    show(f"`mosa demo --testbed {out}/shallow --out DIR` aligns and attacks it.")


# --- analyze --------------------------------------------------------------------------------------


def _analyze_command(name: str, summary: str) -> Command:
    """`mosa analyze NAME`: the options of its settings class, over a preset."""

    def add_arguments(parser: ArgumentParser) -> None:
        from mosa.analysis import ANALYSES

        analysis = ANALYSES[name]
        config_argument(parser)
        parser.add_argument("--model", type=str, required=True, help=MODEL_HELP)
        parser.add_argument("--adapter", type=str | None, help="folder of an adapter to put on it")
        parser.add_argument(
            "--second_model", type=str | None, help="a model to compare with; unset: the same one"
        )
        parser.add_argument(
            "--second_adapter", type=str | None, help="folder of an adapter for the second model"
        )
        parser.add_argument(
            "--behaviors",
            type=str,
            required=True,
            help=f"{FILES}, or testbed, testbed:benign, testbed:WRAPPING",
        )
        parser.add_argument("--out", type=Path, required=True, help="folder for data and figures")
        parser.add_argument(
            "--preset",
            type=str | None,
            help=f"named settings ({', '.join(analysis.presets)}); single options win over it",
        )
        placement_arguments(parser)
        add_fields(parser, analysis.config_class)

    def run(args: Namespace) -> None:
        from mosa.analysis import ANALYSES
        from mosa.analysis.study import Study, Subject, load_cases
        from mosa.families import load_model

        analysis = ANALYSES[name]
        if args.preset is not None and args.preset not in analysis.presets:
            raise UserError(
                f"there is no preset {args.preset}; choose {' or '.join(analysis.presets)}"
            )
        preset = {} if args.preset is None else analysis.presets[args.preset]
        fields = {field.name for field in dataclasses.fields(analysis.config_class)}
        given = {key: value for key, value in args.as_dict().items() if key in fields}
        config = analysis.config_class(**{**preset, **given})
        behaviors = load_cases(args.behaviors, args.model)
        chosen = [(args.model, args.adapter)]
        if args.second_model is not None or args.second_adapter is not None:
            chosen.append((args.second_model or args.model, args.second_adapter))
        subjects = [
            Subject(
                _subject_name(model, adapter),
                load_model(model, adapter=adapter, dtype=args.dtype, device=args.device),
            )
            for model, adapter in chosen
        ]
        if len({subject.name for subject in subjects}) < len(subjects):
            raise UserError("both models are the same; give another --second_model or adapter")
        result = analysis.run(subjects, behaviors, config, Study(args.out, name))
        show(result.paragraph)
        show(f"Data and figures are in {args.out}.")

    kept = "Rows already measured stay in --out; the same command goes on from them."
    return Command(summary, add_arguments, run, kept)


def _subject_name(model: str, adapter: str | None) -> str:
    """What a model is called in tables and file names: the last parts of its paths."""
    name = Path(model).name.replace(":", "-")
    return name if adapter is None else f"{name}+{Path(adapter).name}"


MODEL_COMMANDS: dict[str, Command] = {
    "generate": Command(
        "answer a prompt, or a file of prompts",
        _generate_arguments,
        _generate,
        "Responses already printed or written stay; start it again with a new --out.",
    ),
    "align mosa": _align_command("mosa", "train an adapter to refuse in the middle of an answer"),
    "align initial": _align_command(
        "initial", "train the baseline, which refuses at the first token"
    ),
    "align sft": _align_command("sft", "train on refusals as supervised examples"),
    "merge": Command(
        "write a model with its adapter as a full checkpoint",
        _merge_arguments,
        _merge,
        "The model and the adapter are as they were; remove the unfinished --out folder.",
    ),
    "demo": Command(
        "align the testbed, attack it, and write a report (no GPU needed)",
        _demo_arguments,
        _demo,
        "Finished adapters and responses stay; the same command goes on from them.",
    ),
    "analyze criticality": _analyze_command(
        "criticality", "harm by what is forced into a response, and where"
    ),
    "analyze reach": _analyze_command("reach", "how far an optimised prompt steers a position"),
    "analyze order": _analyze_command("order", "in which order positions are committed"),
    "analyze map": _analyze_command("map", "harm by position and step of an intervention"),
    "analyze refusal-depth": _analyze_command(
        "refusal-depth", "where and when a model puts refusals"
    ),
    "testbed build": Command(
        "train the testbed's two models from nothing (no GPU needed)",
        _build_arguments,
        _build,
        "A finished model stays; the same command goes on with the other one.",
    ),
}
