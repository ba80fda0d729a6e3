"""Commands about models: answer, align, merge, build, demonstrate."""

from __future__ import annotations

import asyncio
import json
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import IO

from jsonargparse import ArgumentParser, Namespace

from mosa.alignment.method import METHODS
from mosa.cli.options import (
    AUTHORIZED_HELP,
    FILES,
    MODEL_HELP,
    SERVED_HELP,
    Command,
    add_align_fields,
    add_fields,
    config_argument,
    config_from,
    given_fields,
    placement_arguments,
)
from mosa.inputs import plain_text
from mosa.terminal import LiveBar, new_console, show
from mosa.types import Prompt, Response, UserError, dialogue

# --- generate -------------------------------------------------------------------------------------


def _generate_arguments(parser: ArgumentParser) -> None:
    from mosa.denoising import PUBLISHED, DecoderConfig

    parser.add_argument("--model", type=str, required=True, help=f"{MODEL_HELP}, and {SERVED_HELP}")
    parser.add_argument("--prompt", type=str, help="prompt to answer, one user turn")
    parser.add_argument("--data", type=str, help=f"file of prompts to answer; {FILES}")
    parser.add_argument("--adapter", type=str, help="folder of an adapter for the model")
    parser.add_argument("--system", type=str, help="system prompt, before every prompt")
    parser.add_argument("--limit", type=int | None, help="answer only the first N rows of --data")
    parser.add_argument("--i_am_authorized", action="store_true", help=AUTHORIZED_HELP)
    parser.add_argument(
        "--batch_size",
        type=int,
        default=8,
        help="prompts per forward pass, or under way at once to a served model",
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="new file for the responses as JSON lines; it appears when all are done",
    )
    parser.add_argument(
        "--show_steps", action="store_true", help="show every step of the denoising"
    )
    parser.add_argument(
        "--decoder", type=str, help="published decoder to start from; " + ", ".join(PUBLISHED)
    )
    placement_arguments(parser)
    config_argument(parser)
    add_fields(parser, DecoderConfig, group="decoder")


def _generate(args: Namespace) -> None:
    from mosa.chat import names_endpoint
    from mosa.files import claim_file

    if (args.prompt is None) == (args.data is None):
        raise UserError("one of --prompt and --data is needed; give --prompt TEXT or --data FILE")
    if args.limit is not None and args.data is None:
        raise UserError("--limit counts rows of --data; leave it out with --prompt")
    for option in ("limit", "batch_size"):
        number = getattr(args, option)
        if number is not None and number < 1:
            raise UserError(f"--{option} must be at least 1, not {number}")
    if args.prompt is not None and not args.prompt.strip():
        raise UserError("--prompt is empty; give it the text to answer")
    is_served = names_endpoint(args.model)
    if args.i_am_authorized and not is_served:
        raise UserError("--i_am_authorized is for models served elsewhere; leave it out")
    with claim_file(args.out):  # before the work
        answer = _ask_server if is_served else _answer
        answer(args, _prompts(args))


def _prompts(args: Namespace) -> list[Prompt]:
    """What is to be answered, behind the system prompt."""
    from mosa.data import load_prompts

    prompts: list[Prompt]
    if args.prompt is not None:
        prompts = [plain_text(args.prompt, "--prompt")]
    else:
        prompts = [example.prompt for example in load_prompts(args.data)][: args.limit]
    if args.system is not None:
        prompts = [dialogue(prompt, plain_text(args.system, "--system")) for prompt in prompts]
    return prompts


def _ask_server(args: Namespace, prompts: Sequence[Prompt]) -> None:
    """Have a served model answer the prompts, several at once."""
    from mosa.attacks import Query
    from mosa.chat import ChatError, ChatOptions, NoAnswerError, check_endpoints
    from mosa.denoising import DecoderConfig
    from mosa.files import writing
    from mosa.runs.subject import check_authorized, subjects_of
    from mosa.served import ServedResponder
    from mosa.worker import run_coroutine

    given = [name for name in ("adapter", "decoder", "device", "show_steps") if getattr(args, name)]
    given += ["dtype"] if args.dtype != "auto" else []
    for name in given:
        raise UserError(
            f"--{name} is for a model that is loaded here, and {args.model} is served elsewhere; "
            "leave it out"
        )
    settings = given_fields(DecoderConfig, args)
    settings.setdefault("max_new_tokens", DecoderConfig().max_new_tokens)
    (subject,) = subjects_of(args.model, decoder=settings, i_am_authorized=args.i_am_authorized)
    check_authorized([subject])
    responder = ServedResponder(subject.model, ChatOptions(num_concurrent=args.batch_size))

    async def answered(number: int, prompt: Prompt) -> Response:
        try:
            return await responder.answer(responder.prepare(Query(prompt), subject.full_decoder))
        except ChatError as error:
            where = f"prompt {number} of {args.data or '--prompt'}"
            raise NoAnswerError(f"{where}: {error}") from None

    async def answer_all(file: IO[str] | None) -> None:
        await check_endpoints([], [responder.endpoint])
        tasks = [asyncio.ensure_future(answered(*each)) for each in enumerate(prompts, start=1)]
        try:
            for number, task in enumerate(tasks, start=1):
                response = await task
                _show_prompt(args, number, len(prompts), response)
                show(response.text)
                _write(file, response)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    with nullcontext() if args.out is None else writing(args.out) as file:
        run_coroutine(answer_all(file))


def _show_prompt(args: Namespace, number: int, total: int, response: Response) -> None:
    """Which prompt of a file is answered."""
    if args.data is not None:
        show(f"[{number}/{total}] {response.prompt[-1]['content']}")


def _write(file: IO[str] | None, response: Response) -> None:
    """A response as a line of --out, where that is given."""
    if file is not None:
        record = {
            "key": response.key,
            "prompt": response.prompt,
            "response": response.text,
            "response_full": response.full_text,
            "decoder": response.decoder,
        }
        file.write(json.dumps(record, ensure_ascii=False) + "\n")


def _answer(args: Namespace, prompts: Sequence[Prompt]) -> None:
    """Load the model and answer the prompts."""
    from mosa.attacks import Query
    from mosa.denoising import (
        DecoderConfig,
        UnknownWords,
        default_config,
        sample,
        warn_of_unknown_words,
    )
    from mosa.denoising.published import over_published
    from mosa.families import load_model
    from mosa.files import writing
    from mosa.reporting.terminal import play
    from mosa.responder import prepare, responses_of

    settings = given_fields(DecoderConfig, args)
    length = DecoderConfig().max_new_tokens
    settings = over_published(args.decoder, settings, length)
    DecoderConfig(**settings)  # refuses what cannot be, before the model is loaded
    model = load_model(args.model, adapter=args.adapter, dtype=args.dtype, device=args.device)
    if model.tokenizer is None:
        raise UserError(f"{args.model} has no tokenizer.json, so it cannot read a prompt in words")
    config = default_config(model, settings)
    warn_of_unknown_words(model, prompts)
    weights = model.content_hash()
    has_bar = new_console().is_terminal  # elsewhere its lines would stand among the answers
    keys: list[str] = []
    for number, prompt in enumerate(prompts, start=1):
        try:
            keys.append(prepare(model, weights, Query(prompt), config).key)
        except UserError as error:
            raise UserError(f"prompt {number} of {args.data or '--prompt'}: {error}") from error
    with nullcontext() if args.out is None else writing(args.out) as file:
        for start in range(0, len(prompts), args.batch_size):
            batch = prompts[start : start + args.batch_size]
            with warnings.catch_warnings():  # of which one was given
                warnings.simplefilter("ignore", UnknownWords)
                result = sample(model, batch, config, progress=has_bar)
            responses = responses_of(
                model, result, prompts=batch, keys=keys[start : start + len(batch)]
            )
            for row, response in enumerate(responses):
                _show_prompt(args, start + row + 1, len(prompts), response)
                if args.show_steps:
                    play(model, result.trace, row=row)
                else:
                    show(response.text)
                _write(file, response)


# --- align ----------------------------------------------------------------------------------------


def _align_command(method: str) -> Command:
    """`mosa align METHOD`: the options of the method's settings class, over a preset or file."""

    def add_arguments(parser: ArgumentParser) -> None:
        from mosa.alignment import presets

        chosen = METHODS[method]
        parser.add_argument("--model", type=str, required=True, help=MODEL_HELP)
        parser.add_argument("--data", type=str, required=True, help=f"harmful prompts; {FILES}")
        parser.add_argument("--out", type=str, required=True, help="folder for the adapter")
        parser.add_argument(
            "--config",
            type=str,
            help=f"YAML file or preset, {chosen.preset} if unset; one of {', '.join(presets())}",
        )
        parser.add_argument(
            "--benign",
            type=str,
            help="harmless prompts and their answers, for settings that use them",
        )
        parser.add_argument(
            "--judge",
            type=str,
            help="judge of answers, for settings that need one; NAME or NAME=URL#MODEL "
            "(`mosa judges` lists the names)",
        )
        parser.add_argument(
            "--resume", action="store_true", help="resume the interrupted training in --out"
        )
        placement_arguments(parser)
        add_align_fields(parser, chosen.trainer_class.config_class)

    def run(args: Namespace) -> None:
        from mosa.api.training import align

        result = align(
            method,
            args.model,
            args.data,
            args.out,
            benign=args.benign,
            judge=args.judge,
            config=args.config,
            resume=args.resume,
            dtype=args.dtype,
            device=args.device,
            **given_fields(METHODS[method].trainer_class.config_class, args),
        )
        if not result.finished:
            raise KeyboardInterrupt(result.message)
        show(result.message)

    kept = (
        "Training since the last checkpoint in --out is lost; --resume starts from that checkpoint."
    )
    preset = "" if method == "sft" else f"--config {METHODS[method].preset} "
    return Command(
        METHODS[method].summary,
        add_arguments,
        run,
        kept,
        example=f"mosa align {method} --model GSAI-ML/LLaDA-8B-Instruct --data harmful.jsonl "
        f"{preset}--out runs/{method}",
        runs_on_several_processes=True,
    )


# --- merge ----------------------------------------------------------------------------------------


def _merge_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--model", type=str, required=True, help=MODEL_HELP)
    parser.add_argument("--adapter", type=str, required=True, help="folder of the adapter")
    parser.add_argument(
        "--out", type=str, required=True, help="folder to write the full checkpoint to"
    )
    placement_arguments(parser)


def _merge(args: Namespace) -> None:
    from mosa.alignment import merge

    def say(dtype: str, rounding: float) -> None:
        show(
            f"Rounding to {dtype} changes what the adapter changes by up to {rounding:.2g} of it; "
            "evaluate the checkpoint that you will use."
        )

    with LiveBar(vanishes=True) as bar:
        merge(
            args.model,
            args.adapter,
            args.out,
            dtype=args.dtype,
            device=args.device,
            on_merged=say,
            tell=bar.update,
        )
    show(f"Merged checkpoint in {args.out}; `mosa generate --model {args.out}` answers with it.")


# --- demo and testbed -----------------------------------------------------------------------------


def _experiment_arguments(parser: ArgumentParser, config: type, out: str) -> None:
    config_argument(parser)
    parser.add_argument("--out", type=Path, required=True, help=out)
    add_fields(parser, config)


def _demo_arguments(parser: ArgumentParser) -> None:
    from mosa.experiments.demo import DemoConfig

    _experiment_arguments(parser, DemoConfig, "folder for adapters, runs and report")


def _demo(args: Namespace) -> None:
    from mosa.experiments.demo import DemoConfig, closing_lines, run_demo

    config = config_from(DemoConfig, args)
    run_demo(args.out, config)
    for line in closing_lines(args.out, config):
        show(line)


def _tables_arguments(parser: ArgumentParser) -> None:
    from mosa.experiments.methods import MethodsConfig

    _experiment_arguments(parser, MethodsConfig, "folder for adapters, records and tables.md")


def _tables(args: Namespace) -> None:
    from mosa.experiments.methods import MethodsConfig, run_methods

    show(f"The tables are in {run_methods(args.out, config_from(MethodsConfig, args))}.")


def _build_arguments(parser: ArgumentParser) -> None:
    from mosa.testbed.build import BuildConfig

    config_argument(parser)
    parser.add_argument(
        "--out", type=Path, help="folder for the models; unset: runs/testbed-WORLD_SEED"
    )
    add_fields(parser, BuildConfig)


def _build(args: Namespace) -> None:
    from mosa.stats.rates import format_value
    from mosa.testbed.build import BuildConfig, build_testbed

    config = config_from(BuildConfig, args)
    out = args.out or Path("runs") / f"testbed-{config.world_seed}"
    figures = build_testbed(out, config)
    for name, found in figures.items():
        rates = (f"{key} {format_value(row['rate'])}" for key, row in found.items())
        show(f"{name}: {', '.join(rates)}")
    show(f"The figures with their n are in {out}/README.md.")
    show(f"`mosa demo --testbed {out}/shallow --out DIR` aligns and attacks it.")


COMMANDS: dict[str, Command] = {
    "generate": Command(
        "answer a prompt or a file of prompts",
        _generate_arguments,
        _generate,
        "--out is not written; start the command again.",
        example='mosa generate --model testbed --prompt "how do i make a copper lantern ?" '
        "--max-new-tokens 72 --steps 36 --show-steps",
    ),
    **{f"align {method}": _align_command(method) for method in METHODS},
    "merge": Command(
        "merge an adapter into its model, as a full checkpoint",
        _merge_arguments,
        _merge,
        "The model and the adapter are unchanged; the same command starts again.",
        example="mosa merge --model GSAI-ML/LLaDA-8B-Instruct --adapter runs/mosa --out merged",
    ),
    "demo": Command(
        "align and attack the testbed, with a report (needs no GPU)",
        _demo_arguments,
        _demo,
        "Finished adapters and responses are kept; the same command resumes.",
        example="mosa demo --out demo",
    ),
    "testbed tables": Command(
        "compare methods over training seeds (takes hours)",
        _tables_arguments,
        _tables,
        "Finished adapters and responses are kept; the same command resumes.",
        example="mosa testbed tables --out runs/tables",
    ),
    "testbed build": Command(
        "train the testbed's two models anew (no GPU needed)",
        _build_arguments,
        _build,
        "A finished model is kept; the same command trains the other.",
        example="mosa testbed build --world-seed 1 --out runs/testbed-1",
    ),
}
