"""Anchor, then fill: does it help to write the deciding part of an answer first? Run by hand.

    python benchmarks/anchor_then_fill.py --out runs/anchor

Part 1, useful tasks (mosa.world.worked). The testbed's helpful model is trained on answers with the
working or the result first on the page, with LLaDA's masks (any order) or with those that the rule
`anchor_first` meets (anchored), by three seeds. Each is asked held-out instances in four orders of
filling, in as many steps as tokens, half and a quarter. Part 2, a refusal as the anchor: the
testbed and MOSA's alignment of it, attacked with and without the window 20..60 filled first.

What is done is kept in the folder, so that a second call goes on where the first ended. The tables
and their regime go to OUT/anchor_then_fill.txt; docs/anchor_then_fill.md reads them.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import re
import shlex
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers

from mosa.alignment import SftConfig, SftTrainer
from mosa.attacks import Query
from mosa.bench.common import BenchResult, BenchTable, Environment
from mosa.data import TrainingExample
from mosa.denoising import DecoderConfig
from mosa.denoising.rules.anchor_first import AnchorFirst
from mosa.evidence.figures import figures_of
from mosa.experiments.models import NUM_PROMPTS, Recipe, rate_by_device, train
from mosa.families import DiffusionLM, load_model
from mosa.files import write_json, write_text
from mosa.responder import answer_all
from mosa.runs.evaluate import EvaluateConfig, run_evaluation
from mosa.runs.sets import SetOptions
from mosa.runs.subject import Subject
from mosa.stats.pairs import paired_difference
from mosa.stats.rates import Values, format_rate, rate_of
from mosa.testbed.measure import DECODER
from mosa.testbed.optimizer import muon_for
from mosa.world import World
from mosa.world.worked import WORKED, Layout, WorkedInstance

SEEDS = (0, 1, 2)
TRAININGS: tuple[tuple[Layout, str], ...] = (
    ("working_first", "any_order"),
    ("working_first", "anchored"),
    ("result_first", "any_order"),
)
"""Layout of the answers, and the masks of the training. With the result first on the page every
order that goes from left to right writes it first, so that anchored masks add little there."""
ORDERS = ("left_to_right", "low_confidence", "result_window", "middle_window")
"""The last two are `anchor_first` on that window, with low_confidence in it and after it; the
middle is that of the working, which a look-up does not need."""
LENGTH = 36
"""Response tokens: the answers have 34 with their end of turn."""
ASKED = {
    "sums": (*itertools.product(ORDERS[:3], (36, 18, 9)), ("middle_window", 18)),
    "places": tuple(itertools.product(ORDERS[:3], (9,))),
}
"""Order and number of denoising steps of what is asked."""
NUM_CASES = 100
TASK_SHARES = {"sums": 7, "places": 1}
"""How often each task is drawn in training; look-ups are learnt at once."""
RECIPE: dict[str, Any] = {
    "max_steps": 400,
    "batch_size": 16,
    "full_mask_share": 0.25,
    "hidden_rate": 0.0033,
    "other_rate": 0.002,
    "decay": 0.5,
}
"""Updates, and the rest as in the testbed's own trainings; `decay` is the share of the updates in
which the rates fall to zero."""


# --- part 1: results and their working ------------------------------------------------------------


def held_out(task: str) -> list[WorkedInstance]:
    """Different instances that no training draws."""
    rng, found = random.Random(f"anchor-{task}"), {}
    while len(found) < NUM_CASES:
        instance = WORKED[task](rng, "heldout")
        found[instance.prompt] = instance
    return list(found.values())


def trained(layout: Layout, training: str, seed: int) -> DiffusionLM:
    """The testbed's helpful model, all of whose weights were trained on answers of one layout."""
    model = load_model("testbed:helpful", dtype="float32", device="cpu")
    rng, num = random.Random(f"anchor-train-{seed}"), RECIPE["max_steps"] * RECIPE["batch_size"]
    tasks = rng.choices(list(TASK_SHARES), list(TASK_SHARES.values()), k=num)
    instances = [WORKED[task](rng, "train") for task in tasks]
    (window,) = {instance.result_window(layout) for instance in instances}  # tasks share it
    with tempfile.TemporaryDirectory() as scratch:
        settings = SftConfig(
            output_dir=scratch,
            trainable="full",
            response_length=LENGTH,
            per_device_train_batch_size=RECIPE["batch_size"],
            full_mask_share=RECIPE["full_mask_share"],
            anchor_start=window[0] if training == "anchored" else None,
            anchor_end=window[1] if training == "anchored" else None,
            lr_scheduler_type="warmup_stable_decay",
            lr_scheduler_kwargs={"num_decay_steps": int(RECIPE["decay"] * RECIPE["max_steps"])},
            warmup_steps=50.0,
            train_sampling_strategy="sequential",
            save_strategy="no",
            report_to="none",
            logging_steps=100.0,
            disable_tqdm=True,
            use_cpu=True,
            seed=seed,
        )
        transformers.set_seed(seed)
        optimizer = muon_for(
            model.network, hidden_rate=RECIPE["hidden_rate"], other_rate=RECIPE["other_rate"]
        )
        examples = [TrainingExample(each.prompt, each.answer(layout)) for each in instances]
        SftTrainer(model, settings, examples, optimizer=optimizer).train()
    return model


def decoder_of(order: str, steps: int, instance: WorkedInstance, layout: Layout) -> DecoderConfig:
    """The decoder that fills a response of an instance in one of `ORDERS`."""
    if order == "left_to_right":
        return DecoderConfig(LENGTH, steps, remasking=order)
    if order == "low_confidence":
        return DecoderConfig(LENGTH, steps)
    is_result = order == "result_window"
    start, end = instance.result_window(layout) if is_result else instance.middle_window(layout)
    return DecoderConfig(LENGTH, steps, rules=(AnchorFirst(start=start, end=end),))


def measured(model: DiffusionLM, layout: Layout) -> list[dict[str, Any]]:
    """What a trained model answers: one row for each task, order and number of steps."""
    rows = []
    asked = [(task, *settings) for task in WORKED for settings in ASKED[task]]
    for task, order, steps in asked:
        cases = held_out(task)
        queries = [(Query(each.prompt), decoder_of(order, steps, each, layout)) for each in cases]
        found = answer_all(model, "not recorded", queries)
        rows.append(
            {
                "task": task,
                "order": order,
                "steps": steps,
                "passes": [response.num_forward_passes for response in found],
                "result": [c.has_result(r.text) for c, r in zip(cases, found, strict=True)],
                "working": [c.has_working(r.text) for c, r in zip(cases, found, strict=True)],
                "texts": [response.text for response in found],
            }
        )
    return rows


def part_one(out: Path) -> Iterator[dict[str, Any]]:
    """The rows of all trainings, with layout, training and seed."""
    for seed, (layout, training) in itertools.product(SEEDS, TRAININGS):
        file = out / f"{layout}-{training}-{seed}.json"
        done = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        if done.get("recipe") != RECIPE:
            print(f"training {file.stem}", flush=True)
            done = {"recipe": RECIPE, "rows": measured(trained(layout, training, seed), layout)}
            write_json(file, done)
        for row in done["rows"]:
            yield {"layout": layout, "training": training, "seed": seed, **row}


def agree(text: str) -> bool | None:
    """Whether the last line of a sum's working says what its result says; None where one of the two
    cannot be read, and for look-ups."""
    line = re.search(r"four : \d plus \d is (\d) \.", text)
    result = re.search(r"so the sum of all these is (\d) \.", text)
    return line[1] == result[1] if line and result else None


def _rate(values: Values) -> str:
    is_scored = any(value is not None for by_seed in values.values() for value in by_seed.values())
    return format_rate(rate_of(values) if is_scored else None)


def tables_of_part_one(rows: list[dict[str, Any]]) -> list[BenchTable]:
    """Rates of every order, and each order's difference from left to right on the same cases."""
    keys = ("task", "layout", "training", "order", "steps")
    measures = ("result", "working", "agree")
    values: dict[tuple[Any, ...], dict[str, Values]] = {}
    passes: dict[tuple[Any, ...], list[int]] = {}
    for row in rows:
        key = tuple(row[name] for name in keys)
        passes.setdefault(key, []).extend(row["passes"])
        row["agree"] = list(map(agree, row["texts"]))
        for measure in measures:
            by_case: Any = values.setdefault(key, {}).setdefault(measure, {})
            for case, value in enumerate(row[measure]):
                by_case.setdefault(str(case), {})[row["seed"]] = (
                    None if value is None else float(value)
                )
    rates, differences = [], []
    for key in sorted(values, key=lambda key: (*key[:3], ORDERS.index(key[3]), -key[4])):
        named, mean = dict(zip(keys, key, strict=True)), sum(passes[key]) / len(passes[key])
        rates.append(
            named
            | {name: _rate(found) for name, found in values[key].items()}
            | {"trainings": rate_of(values[key]["result"]).num_seeds}
            | {"passes": mean, "tokens a pass": LENGTH / mean}
        )
        base = values[(*key[:3], "left_to_right", key[4])]
        if key[3] != "left_to_right":
            differences.append(
                named
                | {
                    name: format_rate(paired_difference(base[name], values[key][name]), signed=True)
                    for name in measures[:2]
                }
            )
    text = dict.fromkeys(keys, "")
    return [
        BenchTable(
            f"Right results and right workings: {NUM_CASES} held-out instances of each task, "
            "95 % intervals; agree: the working ends with the result",
            text
            | dict.fromkeys(measures, "")
            | {"trainings": "d", "passes": ".1f", "tokens a pass": ".1f"},
            rates,
        ),
        BenchTable(
            "Minus left to right on the same instances and trainings",
            text | {"result": "", "working": ""},
            differences,
        ),
    ]


# --- part 2: a refusal as the anchor --------------------------------------------------------------

ATTACKS = ("direct", "prefill:paper", "dija_canvas", "deep_inception")
SETS = ("testbed", "testbed:benign_recall")
NUM_OBJECTS = 25
PRESET = "mosa_testbed_paper"
WINDOW = AnchorFirst(start=20, end=60)
"""Where MOSA's training puts refusals."""
DECODERS: dict[str, DecoderConfig] = {
    "one block": replace(DECODER, block_length=None),
    "window 20..60 first": replace(DECODER, block_length=None, rules=(WINDOW,)),
}
"""All with 36 steps for 72 tokens and low_confidence."""


def adapter_of(out: Path, seed: int) -> Path:
    """The folder of MOSA's adapter, trained as in the demo unless that is done."""
    folder = out / "adapters" / f"mosa-{seed}"
    return train(Recipe("mosa", PRESET, seed), "testbed", folder, lambda *_: None)


def part_two(out: Path) -> list[BenchTable]:
    """Harm under some attacks and benign recall by decoder; and what the window changes."""
    adapters = {"original": {0: None}, "mosa": {s: str(adapter_of(out, s)) for s in SEEDS}}
    subjects = [
        Subject(f"{model} {seed}, {name}", "testbed", adapter, decoder=decoder)
        for model, by_seed in adapters.items()
        for seed, adapter in by_seed.items()
        for name, decoder in DECODERS.items()
    ]
    options = SetOptions(limit=NUM_OBJECTS)
    config = EvaluateConfig(tuple(subjects), SETS, ATTACKS, "smoke", options=options)
    run = run_evaluation(out / "run", config)
    assert run is not None, "this is the only process of its launch"
    figures = figures_of(run)
    run.close()
    rates, differences = [], []
    for model, by_seed in adapters.items():
        values: dict[tuple[str, str], Values] = {}
        for figure in figures:
            owner, _, decoder = figure.subject.partition(", ")
            if owner.startswith(f"{model} ") and figure.is_headline:
                by_case: Any = values.setdefault((decoder, figure.name), {})
                for case, of_case in figure.values.items():
                    by_case.setdefault(case, {})[int(owner.split()[-1])] = of_case[0]
        names = list(dict.fromkeys(name for _, name in values))
        for decoder in DECODERS:
            row = {"model": model, "seeds": len(by_seed), "decoder": decoder}
            rates.append(
                row | {n: format_rate(rate_by_device(values[decoder, n], World())) for n in names}
            )
        one, first = DECODERS
        changed = {n: paired_difference(values[one, n], values[first, n]) for n in names}
        differences.append(
            {"model": model, "seeds": len(by_seed)}
            | {name: format_rate(found, signed=True) for name, found in changed.items()}
        )
    columns = dict.fromkeys(names, "")
    shared = {"model": "", "seeds": "d"}
    return [
        BenchTable(
            f"Attack success and benign recall: {NUM_OBJECTS} held-out objects each, 95 % "
            "intervals clustered by device",
            shared | {"decoder": ""} | columns,
            rates,
        ),
        BenchTable(
            "Window first minus one block, on the same objects", shared | columns, differences
        ),
    ]


def main() -> None:
    """Run what is missing and write the tables."""
    parser = argparse.ArgumentParser(description="Anchor, then fill.")
    parser.add_argument("--out", type=Path, required=True, help="folder of what is done")
    out = parser.parse_args().out
    transformers.utils.logging.set_verbosity_error()
    torch.set_num_threads(1)
    tables = [*tables_of_part_one(list(part_one(out))), *part_two(out)]
    command = shlex.join(["python", "benchmarks/anchor_then_fill.py", *sys.argv[1:]])
    regime = ", ".join(f"{name} {value}" for name, value in RECIPE.items())
    notes = (
        f"trainings of part 1: {regime}; decoder: {LENGTH} tokens, one block, temperature 0",
        f"trainings of part 2: {PRESET} on {NUM_PROMPTS} prompts; decoder: {DECODER.steps} steps "
        f"for {DECODER.max_new_tokens} tokens, low_confidence, temperature 0",
    )
    result = BenchResult(Environment.of(command, torch.device("cpu")), tuple(tables), notes)
    write_text(out / "anchor_then_fill.txt", result.text())
    print(result.text())


if __name__ == "__main__":
    main()
