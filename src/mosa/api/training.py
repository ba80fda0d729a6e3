"""`mosa.align`: a model and prompts in, an adapter out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mosa.alignment import AlignConfig
from mosa.alignment.run import AlignResult, run_training
from mosa.chat import check_endpoints
from mosa.data import TrainingExample
from mosa.families import DiffusionLM
from mosa.judges.base import Judge
from mosa.runs.judging import JudgeConfig, build_judges, chats_of
from mosa.testbed import find_world
from mosa.worker import run_coroutine


def align(
    method: str,
    model: DiffusionLM | str | Path,
    data: str | Path | Sequence[TrainingExample],
    out: str | Path,
    *,
    benign: str | Path | Sequence[TrainingExample] | None = None,
    judge: Judge | str | None = None,
    config: AlignConfig | str | Path | None = None,
    resume: bool = False,
    dtype: str = "auto",
    device: str | None = None,
    progress: bool = True,
    **settings: Any,
) -> AlignResult:
    """Train an adapter to refuse and write it to the folder `out` (`mosa align METHOD`).

    `method` is mosa, initial, end, sft, ... (`mosa align` lists them); `data` are harmful prompts,
    a file or examples; `benign` prompts with answers and a `judge` (NAME or NAME=URL#MODEL) are for
    settings that use them. `config` is a preset or a YAML file (unset: the method's preset), and
    `settings` are the method's own over it. A loaded `model` keeps the adapter on, named after
    `out`; a name is loaded with `dtype` and `device`. `progress` shows a bar and the log.

        mosa.align("mosa", "testbed", "harmful.jsonl", "runs/mosa", config="mosa_testbed_paper")

    SIGTERM and Ctrl-C end it after the current step and leave a checkpoint, from which `resume`
    goes on; the result's `finished` is then false. Raises UserError for settings, data or folders
    that do not fit.
    """
    if isinstance(judge, str):
        world = find_world(model.source if isinstance(model, DiffusionLM) else str(model))
        (named,) = build_judges([judge], JudgeConfig(device=device), world)
        run_coroutine(check_endpoints(chats_of([named])))
        judge = named.judge
    return run_training(
        method,
        model,
        data,
        out,
        benign=benign,
        judge=judge,
        config=config,
        overrides=settings or None,
        resume=resume,
        dtype=dtype,
        device=device,
        progress=progress,
    )
