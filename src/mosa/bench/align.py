"""Our training step beside a plain one, and how long the paper's whole run would take.

    mosa bench align --shape wide --against plain

The plain step is `mosa.alignment.reference`, as arXiv 2508.12398 writes it down: a second copy of
the model as the reference, logits and log-softmax of both over the whole canvas and vocabulary, the
KL by its definition, and gradients through all of that. For a model that fills block after block it
makes a pass for each block as it opens. The two share trainer, weights, prompts and settings. The
benchmark compares their losses and gradients before it takes any time.
"""

from __future__ import annotations

import dataclasses
import math
import random
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import transformers
from jaxtyping import Float
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn

from mosa.alignment import (
    DiffusionTrainer,
    MosaConfig,
    MosaTrainer,
    add_adapter,
    load_config,
    read_phrases,
    reference,
)
from mosa.bench.common import (
    RATIO,
    Bench,
    BenchResult,
    BenchTable,
    Environment,
    ModelBenchConfig,
    Shape,
    bench_model,
    check_counts,
    peak_memory,
    profile_table,
    shape_named,
    side_by_side,
    synchronize,
    threads,
    world_requests,
)
from mosa.data import TrainingExample
from mosa.families import DiffusionLM
from mosa.testbed import world_of
from mosa.types import Prompt, Tell, UserError, tell_nobody
from mosa.worker import device_of

OURS = "mosa"
NUM_PROMPTS = 3000
"""Prompts of the paper's run, which is one epoch (arXiv 2508.12398)."""
NUM_PROJECTED_STEPS = 50
"""Steps to project from on an accelerator."""
NUM_WARMUP_STEPS = 3
"""Steps before those."""
OF_THE_PAPER = (
    "response_length",
    "window_start",
    "window_end",
    "safe_phrases",
    "harmful_phrases",
    "breaker",
    "beta",
)
"""Settings that the plain step knows; the other settings of the method must be the paper's."""


@dataclass(frozen=True, kw_only=True)
class AlignBenchConfig(ModelBenchConfig):
    """What `mosa bench align` measures."""

    against: Literal["plain", "none"] = "plain"
    """What to compare with: a plain step with a second copy of the model, or nothing."""
    settings: str | None = None
    """Settings of the training, a preset or YAML file; null takes the shape's."""
    batch: int | None = None
    """Prompts of an update; null takes the shape's."""
    prompt: int | None = None
    """Prompt tokens of a row, drawn at random; null takes 64, for the testbed its requests."""
    length: int | None = None
    """Response tokens; null takes the settings'."""
    repeats: int = 3
    """Rounds in which each contestant has one turn."""
    projected_steps: int | None = None
    """Steps from which the paper's whole run is projected; null takes 50 on an accelerator and
    none on a CPU."""

    def __post_init__(self):
        check_counts(self, "batch", "prompt", "length", "repeats")
        if self.projected_steps is not None and self.projected_steps < 0:
            raise UserError(f"--projected_steps must be at least 0, not {self.projected_steps}")


@dataclass(frozen=True)
class AlignSetting:
    """The settings of a contestant."""

    shape: Shape
    dtype: str
    batch: int
    prompt: int
    seed: int
    source: str
    """The preset or YAML file."""
    overrides: Mapping[str, Any]

    @property
    def title(self) -> str:
        """The setting in a line."""
        asked = "its world's requests" if self.shape.checkpoint else f"prompts of {self.prompt}"
        return (
            f"{self.shape.name} ({self.shape.summary}), {self.dtype}: updates of {self.batch}, "
            f"{asked}, responses of {self.config(1).response_length}, settings {self.source}"
        )

    def config(self, num_steps: int) -> MosaConfig:
        """The settings of a training of `num_steps` that writes no files."""
        overrides = {
            **self.overrides,
            "per_device_train_batch_size": self.batch,
            "max_steps": num_steps,
            "seed": self.seed,
            "output_dir": tempfile.gettempdir(),
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
        }
        return load_config(MosaConfig, self.source, overrides)

    def prompts(self, number: int, *, with_answers: bool) -> list[TrainingExample]:
        """Prompts to train on; with answers, where words are drawn at random, of a whole response,
        so that every block has a beginning before it."""
        requests: Sequence[Prompt]
        if self.shape.checkpoint is not None:
            requests = world_requests(world_of(self.shape.checkpoint), number, self.seed)
        else:
            draw = random.Random(self.seed)
            requests = [" ".join(draw.choices(WORDS, k=self.prompt)) for _ in range(number)]
        if not with_answers:
            return [TrainingExample(request) for request in requests]
        assert self.shape.checkpoint is None, "no checkpoint among the shapes fills blocks"
        draw, length = random.Random(self.seed + 1), self.config(1).response_length
        return [TrainingExample(r, " ".join(draw.choices(WORDS, k=length))) for r in requests]


COLUMNS = {
    "step": "",
    "seconds": ".3f",  # the median over the rounds
    "prompts/s": ".2f",
    "peak MiB": ".0f",  # beyond the weights
    **RATIO,
    "memory": ".2f",  # the peak as a share of the plain step's
}
PROJECTION_COLUMNS = {
    "prompts": "d",
    "batch": "d",
    "measured steps": "d",
    "seconds/step": ".3f",
    "projected seconds": ".1f",
    "peak GB with weights": ".1f",
}


def bench_align(
    config: AlignBenchConfig,
    *,
    command: str = "mosa bench align",
    tell: Tell = tell_nobody,
) -> BenchResult:
    """Times our training step beside the plain one, and projects the paper's run from it.

    Calls `tell` with a line on each contestant. Raises UserError for settings that do not fit.
    """
    shape = shape_named(config.shape)
    device = device_of(config.device)
    if device.type == "cuda" and device.index not in (None, 0):
        raise UserError(
            f"--device {device}: a training runs on the first visible GPU; choose it with "
            "CUDA_VISIBLE_DEVICES and leave the number out."
        )
    setting = _setting(config, shape, device)
    notes: list[str] = []
    num_projected = config.projected_steps
    if num_projected is None:
        num_projected = 0 if device.type == "cpu" else NUM_PROJECTED_STEPS
    with threads(config.threads):
        tables = [_projection(setting, device, num_projected)] if num_projected else []
        names = [OURS] if config.against == "none" else [config.against, OURS]
        trainers = {name: trainer_of(name, setting, device, num_steps=1) for name in names}
        if len(names) > 1:
            notes.append(_agreement(*trainers.values()))
        runs = {name: steps_of(trainer) for name, trainer in trainers.items()}
        rows = _measured(runs, setting, device, config.repeats)
        for done, row in enumerate(rows, start=1):
            tell(f"{row['step']}: {row['seconds']:.3f} s", done, len(rows))
        environment = Environment.of(command, device)
        profile = profile_table("Where the time of a step goes", runs[OURS], device)
    head = BenchTable(setting.title, COLUMNS, rows)
    return BenchResult(environment, (head, *tables, profile), tuple(notes))


def _setting(config: AlignBenchConfig, shape: Shape, device: torch.device) -> AlignSetting:
    overrides: dict[str, Any] = {}
    if config.length is not None:
        overrides["response_length"] = config.length
    if device.type == "cpu":
        overrides["use_cpu"] = True
    return AlignSetting(
        shape=shape,
        dtype=config.dtype or shape.dtype,
        batch=config.batch or shape.update,
        prompt=config.prompt or 64,
        seed=config.seed,
        source=config.settings or shape.settings,
        overrides=overrides,
    )


# --- contestants ----------------------------------------------------------------------------------


class PlainTrainer(MosaTrainer):
    """The trainer with the loss of `mosa.alignment.reference`."""

    reference: DiffusionLM
    """The second copy of the model."""

    def harmful_losses(self, model: nn.Module, indices: list[int]) -> Float[Tensor, " B"]:
        """As `MosaTrainer.harmful_losses`, from all log-probabilities of both models."""
        config, placed = self.config, self.draw(indices)
        models = self.diffusion_model, self.reference
        prompts = [self.examples[index].prompt_ids for index in indices]
        safe, harmful = (
            [place.phrase.variants[0] for (place,) in places]
            for places in (placed.safe, placed.harmful)
        )
        if self.diffusion_model.attention.is_full:
            return reference.losses(
                *models,
                prompts,
                safe,
                harmful,
                window=(config.window_start, config.window_end),
                response_length=config.response_length,
                beta=config.beta,
                network=model,
            )
        return reference.block_losses(
            *models,
            prompts,
            placed.targets[: len(indices)].tolist(),
            [(window.first + 1, window.last + 1, window.end) for window in placed.windows],
            safe,
            harmful,
            beta=config.beta,
            network=model,
        )


def check_plain(config: MosaConfig) -> None:
    """UserError where the settings ask for more than the plain step does."""
    paper = MosaConfig(use_cpu=config.use_cpu)
    for field in dataclasses.fields(MosaConfig):
        ours = field.name in MosaConfig.__annotations__ and field.name != "max_grad_norm"
        value = getattr(config, field.name)
        if ours and field.name not in OF_THE_PAPER and value != getattr(paper, field.name):
            raise UserError(
                f"the plain step is the paper's, but the settings have {field.name}={value}; time "
                "them with --against none"
            )
    if config.breaker == "fill" or config.leading_space == "both":
        raise UserError(
            "the plain step knows phrases of one length and one tokenisation; time breaker=fill "
            "and a window from the first token to a later one with --against none"
        )


def trainer_of(
    name: str, setting: AlignSetting, device: torch.device, *, num_steps: int
) -> MosaTrainer:
    """A contestant ready to train; the same adapter and prompts whatever its name."""
    config = setting.config(num_steps)
    model = _model(setting, config, device)
    torch.manual_seed(setting.seed)
    add_adapter(model, config)
    _disturb(model, setting.seed)
    with_answers = not model.attention.is_full
    prompts = setting.prompts(setting.batch * num_steps, with_answers=with_answers)
    if name == OURS:
        trainer = MosaTrainer(model, config, prompts)
    else:
        check_plain(config)
        trainer = PlainTrainer(model, config, prompts)
        trainer.reference = _model(setting, config, device)
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer


def steps_of(trainer: MosaTrainer) -> Callable[[], None]:
    """A function that makes one update of the adapter; this call makes the first one."""
    trainer.train()
    network, optimizer = trainer.diffusion_model.network, trainer.optimizer
    assert isinstance(optimizer, torch.optim.Optimizer), "the trainer has made one"
    trained = [p for p in network.parameters() if p.requires_grad]
    indices = torch.arange(trainer.config.per_device_train_batch_size)

    def step() -> None:
        trainer.compute_loss(network, {"index": indices}).backward()
        nn.utils.clip_grad_norm_(trained, trainer.config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()

    return step


def prepared_step(name: str, setting: AlignSetting) -> Callable[[], Any]:
    """A training of one step, in a process of its own, on the CPU, with the same weights."""
    return trainer_of(name, setting, torch.device("cpu"), num_steps=1).train


WORDS = [f"word{number}" for number in range(1000)]
"""What prompts are drawn from where the shape brings no tokenizer."""


def _model(setting: AlignSetting, config: MosaConfig, device: torch.device) -> DiffusionLM:
    """The shape's model, with a tokenizer of whole words where it brings none."""
    model = bench_model(setting.shape, device, setting.dtype, seed=setting.seed)
    if model.is_noise:
        raise UserError(
            f"--shape {setting.shape.name} has no masks, on which the plain step is taken; choose "
            "another shape, such as wide or sdar"
        )
    if model.tokenizer is not None:
        return model
    assert isinstance(model.network, transformers.PreTrainedModel), "it has no adapter yet"
    texts = [*read_phrases(config.safe_phrases), *read_phrases(config.harmful_phrases)]
    words = dict.fromkeys([word for text in texts for word in text.split()] + WORDS)
    vocabulary = {word: number for number, word in enumerate(words)}
    # An end-of-turn token, for the breaker; no other word of the chat template, so that prompts
    # stay the bare words they are.
    specials = {
        "<unknown>": len(vocabulary),
        "<mask>": model.mask_token_id,
        "<end>": model.eos_token_id,
        model.family.end_tokens[0]: model.eos_token_id - 1,
    }
    tokenizer = Tokenizer(models.WordLevel(vocabulary | specials, unk_token="<unknown>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(list(specials))
    return DiffusionLM(
        model.network,
        model.family,
        model.config,
        transformers.PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, unk_token="<unknown>", eos_token="<end>"
        ),
        source=setting.shape.name,
        companions={},
    )


def _disturb(model: DiffusionLM, seed: int) -> None:
    """Move a fresh adapter away from 0, so that policy and reference differ."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.network.parameters():
            if parameter.requires_grad:
                noise = 0.02 * torch.randn(parameter.shape, generator=generator)
                parameter.add_(noise.to(parameter))


# --- measuring ------------------------------------------------------------------------------------


def _agreement(plain: MosaTrainer, ours: MosaTrainer) -> str:
    """The distance between the two in loss and in the adapter's gradients, in a sentence."""
    (loss, gradient), (our_loss, our_gradient) = loss_and_gradient(plain), loss_and_gradient(ours)
    apart = float((our_gradient - gradient).norm() / gradient.norm())
    return (
        f"Before the first step the losses are {loss:.6f} (plain) and {our_loss:.6f} ({OURS}); the "
        f"adapter's gradients differ by {apart:.1e} of their norm."
    )


def loss_and_gradient(trainer: DiffusionTrainer) -> tuple[float, Tensor]:
    """The loss of the first prompts, and the adapter's gradients in one row."""
    network = trainer.diffusion_model.network
    indices = torch.arange(trainer.args.per_device_train_batch_size)
    loss = trainer.compute_loss(network, {"index": indices})
    loss.backward()
    trained = [p for p in network.parameters() if p.requires_grad]
    gradients = torch.cat([p.grad.flatten().double() for p in trained if p.grad is not None])
    network.zero_grad()
    return loss.item(), gradients


def _measured(
    runs: Mapping[str, Callable[[], None]],
    setting: AlignSetting,
    device: torch.device,
    repeats: int,
) -> list[dict[str, Any]]:
    """The rows of the contestants, the plain one's first if there is one."""
    timings = side_by_side(runs, repeats=repeats, device=device)
    names = list(runs)
    peaks = {name: peak_memory(device, runs[name], prepared_step, name, setting) for name in names}
    rows = []
    for name in names:
        row = {
            "step": name,
            "seconds": timings.median(name),
            "prompts/s": setting.batch / timings.median(name),
            "peak MiB": peaks[name] / 2**20,
        }
        if name != names[0]:
            row |= timings.ratio(names[0], name) | {"memory": peaks[name] / peaks[names[0]]}
        rows.append(row)
    return rows


class _StepTimes(transformers.TrainerCallback):
    """The time at which each update ended, with the work that it left to the device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.times: list[float] = []

    def on_step_end(self, args, state, control, **kwargs) -> None:
        """Wait for the device and look at the clock."""
        synchronize(self.device)
        self.times.append(time.perf_counter())


def _projection(setting: AlignSetting, device: torch.device, num_steps: int) -> BenchTable:
    """The paper's whole run, projected from the mean of some steps of a real one."""
    trainer = trainer_of(OURS, setting, device, num_steps=NUM_WARMUP_STEPS + num_steps)
    times = _StepTimes(device)
    trainer.add_callback(times)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    trainer.train()
    seconds = (times.times[-1] - times.times[NUM_WARMUP_STEPS - 1]) / num_steps
    row = {
        "prompts": NUM_PROMPTS,
        "batch": setting.batch,
        "measured steps": num_steps,
        "seconds/step": seconds,
        "projected seconds": math.ceil(NUM_PROMPTS / setting.batch) * seconds,
    }
    if device.type == "cuda":
        row["peak GB with weights"] = torch.cuda.max_memory_allocated(device) / 1e9
    title = "The paper's run of one epoch, projected, without loading the weights"
    return BenchTable(title, PROJECTION_COLUMNS, [row])


BENCH = Bench(AlignBenchConfig, bench_align)
