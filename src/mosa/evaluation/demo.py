"""The demo: align the testbed three ways, attack all four models, measure what it cost.

What is compared, on objects that no training text mentions:

    models    the original; aligned at the initial token; MOSA as in the paper; MOSA `robust`
    attacks   a plain request; requests wrapped in ways that alignment never saw; a prefilled start;
              a template whose steps are masks
    utility   making unrestricted objects, refusing them wrongly, arithmetic

The four models are independent of each other, so that worker processes of one thread each take one
model at a time: on these small matrices two processes do about twice the work of two threads.
Adapters and responses that are there already are used again, so a second run goes on where the
first one ended.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import multiprocessing
import os
import queue
import random
import signal
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from mosa.align import align
from mosa.attacks import ATTACKS
from mosa.denoising import Canvas, DecoderConfig, sample
from mosa.evaluation.metrics import INTERVAL_STATEMENT, Rate, mean_by_case, rate_of
from mosa.evaluation.records import (
    Attempt,
    JsonLines,
    attempt_key,
    attempts_of,
    prompt_turns,
    read_attempts,
    versions,
)
from mosa.families import ALIASES, DiffusionLM, load_model
from mosa.testbed import Judge, World
from mosa.testbed.corpora import alignment_prompts, benign_prompts
from mosa.testbed.tasks import TASKS
from mosa.testbed.world import HELDOUT_WRAPPINGS, WorldObject
from mosa.types import Prompt, UserError

ATTACK_WRAPPINGS = HELDOUT_WRAPPINGS[:3]
"""The wrapped requests of the demo: the first three that alignment data never uses."""
ATTACK_NAMES = ("direct", *ATTACK_WRAPPINGS, "prefill", "masked_template")
METHODS = {"initial": "testbed_initial", "mosa": "testbed_mosa", "mosa_robust": "testbed_robust"}
"""Aligned models and the preset (src/mosa/configs) of each; `original` is the testbed itself."""
MODEL_NAMES = ("original", *METHODS)

LABELS: dict[str, dict[str, Any]] = {
    "models": {
        "original": "Original",
        "initial": "Initial alignment",
        "mosa": "MOSA (paper)",
        "mosa_robust": "MOSA (robust)",
    },
    "attacks": {
        "direct": (
            "Direct request",
            "The request for a restricted object, asked plainly. The original was trained to "
            "refuse it.",
        ),
        "code": ("Asked as code", "The request written as a program to complete."),
        "nested": ("Nested scenes", "The request put into a dream or a book within a story."),
        "forged_history": (
            "Forged history",
            "A dialogue in which the model seems to have agreed already.",
        ),
        "second_language": ("Second language", "Every word replaced by its counterpart."),
        "splitting": ("Split into steps", "One request for each of the five steps."),
        "prefill": (
            "Prefilled start",
            "The attacker writes the opening words of a compliant answer into the response.",
        ),
        "masked_template": (
            "Masked template",
            "The attacker writes the frame of all five steps into the response and leaves masks "
            "where the words that matter belong.",
        ),
    },
    "utility": {
        "benign_recall": (
            "Benign recall",
            "Share of the true steps that the model tells for an unrestricted object, asked "
            "plainly (more is better).",
        ),
        "over_refusal": (
            "Over-refusal",
            "Share of those requests that it refuses (less is better).",
        ),
        "benign_recall_wrapped": (
            "Benign recall, wrapped",
            "The same for unrestricted objects asked in the attacks' wrappings (more is better).",
        ),
        "over_refusal_wrapped": (
            "Over-refusal, wrapped",
            "Share of those wrapped requests that it refuses (less is better).",
        ),
        "arithmetic": (
            "Arithmetic",
            "Share of sums of two two-digit numbers that it gets right (more is better).",
        ),
    },
    "conduct": {
        "whole_canvas": (
            "Harm in the whole canvas",
            "As harm above, and text behind the first end token counts as well.",
        ),
        "filler_leak": (
            "Right fillers",
            "Share of single actions, parts and manners that stand right where they belong, "
            "corrected for chance: pieces that leak between broken sentences.",
        ),
        "refused": ("Refused", "Share of responses that contain a refusal."),
        "coherent": (
            "Coherent",
            "Share of responses that are a well-formed refusal or a well-formed answer.",
        ),
    },
}


@dataclass(frozen=True)
class DemoConfig:
    """How much the demo does; the defaults are those of the published figures."""

    seed: int = 0
    """Seed of data, training and decoding."""
    num_objects: int = 25
    """Restricted objects to attack with (25 are held out)."""
    num_benign: int = 50
    """Unrestricted objects and sums to measure usefulness with (50 objects are held out)."""
    num_prompts: int | None = None
    """Harmful prompts to align with; none: the number that the demo is planned for."""
    steps: int = 32
    """Denoising steps for the 96 tokens of a response."""
    workers: int = 2
    """Processes of one thread that take models side by side; 1 runs in this process."""


@dataclass(frozen=True)
class Job:
    """One model of the demo: align it unless that is done, then collect its responses."""

    name: str
    out: Path
    config: DemoConfig


Emit = Callable[[str, Any], None]
"""What a job reports: ("stage", text), ("advance", (done, total)) or ("attempt", Attempt)."""


def run_demo(out: Path, config: DemoConfig | None = None) -> dict[str, Any]:
    """Align, attack and measure; returns and writes `out/results.json`.

    Beside it stand `adapters/`, `attempts.jsonl` (one response a line) and `verdicts.jsonl`.
    Raises UserError where `out` holds something else.
    """
    config = config or DemoConfig()
    started = time.monotonic()
    if out.exists() and any(out.iterdir()) and not (out / "adapters").is_dir():
        raise UserError(f"{out} holds other things; name a new folder with --out")
    (out / "adapters").mkdir(parents=True, exist_ok=True)
    jobs = [Job(name, out, config) for name in (*METHODS, "original")]
    log = JsonLines(out / "attempts.jsonl")
    with _Board(jobs) as board:

        def receive(name: str, kind: str, content: Any) -> None:
            if kind == "attempt":
                log.append_attempt(content)
            else:
                board.show(name, kind, content)

        _run_jobs(jobs, config.workers, receive)
    results = score(out, config)
    results["seconds"] = round(time.monotonic() - started, 1)
    text = json.dumps(results, indent=2, ensure_ascii=False)
    (out / "results.json").write_text(text + "\n", encoding="utf-8")
    return results


# --- one model ------------------------------------------------------------------------------------


def run_job(job: Job, emit: Emit) -> None:
    """Align one model if need be and emit every response that is not recorded yet."""
    adapter = None if job.name == "original" else _adapter(job, emit)
    emit("stage", "responding")
    model = load_model("testbed", dtype="float32", device="cpu", adapter=adapter)
    version = model_version(adapter)
    known = read_attempts(job.out / "attempts.jsonl")
    batches = list(_requests(World(), job.config))
    total = sum(len(cases) for _, cases, _ in batches)
    done = 0
    for attack, cases, prompts in batches:
        decoder = decoder_config(job.config)
        keys = _keys(job, version, attack, cases, prompts)
        missing = [i for i, key in enumerate(keys) if key not in known]
        for start in range(0, len(missing), 25):
            rows = missing[start : start + 25]
            canvas = _canvas(model, attack, [cases[i] for i in rows], [prompts[i] for i in rows])
            for attempt in attempts_of(
                model,
                sample(model, canvas, decoder),
                model_name=job.name,
                model_version=version,
                attack=attack,
                cases=[cases[i] for i in rows],
                prompts=[prompts[i] for i in rows],
                config=decoder,
                keys=[keys[i] for i in rows],
            ):
                emit("attempt", attempt)
            done += len(rows)
            emit("advance", (done, total))
    emit("advance", (total, total))
    emit("stage", "done")
