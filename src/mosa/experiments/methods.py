"""Tables of methods over several training seeds: methods, a factorial, and a sweep of windows.

    methods     the baselines, MOSA as in the paper, its runaway, and the robust kind
    factorial   position x breaker x wrapped prompts in the data x reduction of the KL
    windows     MOSA with its window at other places

Every cell is trained with each seed, which draws prompts, phrases, order and first weights, and
measured on objects that no training text mentions: six attacks, harmless requests and useful tasks
at the end; three of the attacks and benign recall at moments of the training too. Everything is in
one run, so that the same call goes on where an earlier one ended.

**Harm at matched benign recall** is that at the last moment of a training at which its benign
recall is at or above a level; the original is moment 0. Methods that stop at other points of the
trade-off between harm and usefulness can so be compared.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from statistics import fmean
from typing import Literal, get_args

from mosa.denoising.schedule import length_of_blocks
from mosa.evidence.figures import MOMENT, Evidence, Figure, gather, headline, mean_over_attacks
from mosa.evidence.labels import legend, marked
from mosa.evidence.training import over_trainings, settled
from mosa.experiments.models import (
    ExperimentConfig,
    Recipe,
    judge_recorded,
    keep_settings,
    load_testbed,
    measure_into,
    moments_of,
    rate_by_device,
    run_folder,
    testbed_subject,
    train,
)
from mosa.experiments.workers import Emit, run_jobs
from mosa.families import attention_of
from mosa.files import claim_folder, write_text
from mosa.runs.sets import ALL_TASKS
from mosa.runs.subject import default_decoder
from mosa.stats.pairs import mean_unbounded
from mosa.stats.rates import NOTHING, Rate, Value, format_rate, format_value
from mosa.testbed import world_of
from mosa.types import UserError
from mosa.world import World

PREFILL, FRAME = "prefill", "dija_canvas"
WRAPPED = ("deep_inception", "code_attack", "dia", "cipher_chat")
"""Attacks that wrap the request in a way that no alignment data uses, but for one of two ways of
`dia`."""
ATTACKS = ("direct", *WRAPPED, f"{PREFILL}:paper", FRAME)
MOMENT_ATTACKS = (f"{PREFILL}:paper", FRAME, WRAPPED[0])
"""One of each kind, for moments of a training."""
HARMFUL, HARMLESS, RECALL = "testbed", "testbed:benign", "testbed:benign_recall"
JUDGES = ("truth",)
MOMENTS = (1 / 8, 1 / 4, 1 / 2)
"""The shares of a training after which it is measured too."""
LEVELS = (0.95, 0.9, 0.8)
"""Benign recall at which methods are compared."""
ORIGINAL = "original"
Table = Literal["methods", "factorial", "windows"]


@dataclass(frozen=True)
class TrainedCell:
    """A way to train."""

    label: str
    method: str
    preset: str
    is_wrapped: bool = True
    is_for_blocks: bool = False
    """Whether the preset is for models that fill block after block, and trained on those alone."""

    @property
    def name(self) -> str:
        """What tells it from all other cells: its preset, and whether all its prompts are plain."""
        return self.preset + ("" if self.is_wrapped else "_plain")

    def recipe(self, seed: int, max_steps: int | None) -> Recipe:
        """How one of its adapters is trained."""
        return Recipe(self.method, self.preset, seed, self.is_wrapped, max_steps, MOMENTS)


METHODS_TABLE: Mapping[str, TrainedCell] = {
    "initial": TrainedCell(
        "Initial alignment, start at token 1", "initial", "initial_testbed_paper"
    ),
    "initial_window": TrainedCell(
        "Initial alignment, tokens 1 to 41", "initial", "initial_testbed_window"
    ),
    "mosa": TrainedCell("MOSA (paper), tokens 20 to 60", "mosa", "mosa_testbed_paper"),
    "mosa_block": TrainedCell(
        "MOSA for blocks, tokens 25 to 40", "mosa", "mosa_testbed_block", is_for_blocks=True
    ),
    "mosa_robust": TrainedCell("MOSA (robust)", "mosa", "mosa_testbed_robust"),
    "mosa_unbounded": TrainedCell(
        "MOSA without a bound (runaway)", "mosa", "mosa_testbed_paper_ablate_unbounded"
    ),
}
"""The rows of the table of methods, beside the original."""

POSITIONS = {
    "middle": ("mosa", "mosa_testbed_paper"),
    "first": ("initial", "initial_testbed_paper"),
}
BREAKERS = {"one end token": "", "none": "breaker_none"}
DATA = {"wrapped": True, "plain": False}
KLS = {"sum": "", "mean": "kl_mean"}
FACTORS = {"position": POSITIONS, "breaker": BREAKERS, "data": DATA, "KL": KLS}


def _factorial() -> Iterator[tuple[tuple[str, str, str, str], TrainedCell]]:
    for levels in itertools.product(POSITIONS, BREAKERS, DATA, KLS):
        position, breaker, data, kl = levels
        method, preset = POSITIONS[position]
        changes = "_".join(change for change in (BREAKERS[breaker], KLS[kl]) if change)
        preset += f"_ablate_{changes}" if changes else ""
        yield levels, TrainedCell(", ".join(levels), method, preset, DATA[data])


FACTORIAL: Mapping[tuple[str, str, str, str], TrainedCell] = dict(_factorial())
"""By position, breaker, data and reduction of the KL."""

WINDOWS: Mapping[str, TrainedCell] = {
    "1 to 40": TrainedCell("1 to 40", "mosa", "mosa_testbed_paper_ablate_window_1_40"),
    "10 to 50": TrainedCell("10 to 50", "mosa", "mosa_testbed_paper_ablate_window_10_50"),
    "20 to 60": METHODS_TABLE["mosa"],
    "40 to 72": TrainedCell("40 to 72", "mosa", "mosa_testbed_paper_ablate_window_40_72"),
}
"""MOSA by the tokens of its window."""


def all_cells(
    tables: Sequence[Table] = get_args(Table), *, with_blocks: bool = True
) -> list[TrainedCell]:
    """Every cell of some tables once, those of methods first: tables share trainings. Those for
    models that fill blocks are left out without `with_blocks`."""
    cells: dict[str, Iterable[TrainedCell]] = {
        "methods": METHODS_TABLE.values(),
        "factorial": FACTORIAL.values(),
        "windows": WINDOWS.values(),
    }
    found: dict[str, TrainedCell] = {}
    for cell in itertools.chain.from_iterable(cells[name] for name in cells if name in tables):
        if with_blocks or not cell.is_for_blocks:
            found.setdefault(cell.name, cell)
    return list(found.values())


def name_of(cell: TrainedCell, seed: int = 0) -> str:
    """The folder of one of a cell's adapters; by that of the first the pooled figures are known."""
    return f"{cell.name}-{seed}"


@dataclass(frozen=True)
class MethodsConfig(ExperimentConfig):
    """The size of the tables."""

    num_seeds: int = 3
    """Trainings of each cell, with seeds from 0."""
    tables: tuple[Table, ...] = get_args(Table)
    """The tables whose cells are trained."""
    cells: tuple[str, ...] = ()
    """Cells of these tables to train, each a preset of `mosa align`, with _plain behind it where
    all prompts ask plainly; unset: all."""

    def chosen(self) -> list[TrainedCell]:
        """The cells to train, those of methods first; UserError for unknown names."""
        fitting = all_cells(self.tables, with_blocks=not attention_of(self.testbed).is_full)
        known = {cell.name: cell for cell in fitting}
        for name in self.cells:
            if name not in known:
                raise UserError(
                    f"{name} is no cell of these tables for {self.testbed}; there are: "
                    + ", ".join(sorted(known))
                )
        return [cell for cell in fitting if not self.cells or cell.name in self.cells]


def run_methods(out: Path, config: MethodsConfig) -> Path:
    """Train, measure and judge what is missing, and write the page of tables; returns its path.

    Raises UserError where `out` holds something else, and for unknown cells.
    """
    cells = config.chosen()
    with claim_folder(out, "mosa testbed tables"):
        world = world_of(config.testbed)
        keep_settings(out, "methods", config, load_testbed(config.testbed))
        jobs = {ORIGINAL: [partial(run_cell, None, 0, out, config)]}
        # Seed by seed within the methods; what comes later adds to their tables and not to others.
        first = METHODS_TABLE.values() if "methods" in config.tables else []
        methods = [cell for cell in cells if cell in first]
        others = [cell for cell in cells if cell not in first]
        for group in (methods, others):
            for seed, cell in itertools.product(range(config.num_seeds), group):
                jobs[name_of(cell, seed)] = [partial(run_cell, cell, seed, out, config)]
        run_jobs(jobs, config.workers)
        limit = max(config.num_benign, config.num_tasks)
        judge_recorded(out, world, JUDGES, (HARMLESS, ALL_TASKS), limit=limit)
        page = out / "tables.md"
        write_text(page, "\n\n".join(Tables(out, config, world).page()) + "\n")
        return page


def run_cell(
    cell: TrainedCell | None, seed: int, out: Path, config: MethodsConfig, emit: Emit
) -> None:
    """Train a cell (none: the original), and record what is not recorded yet."""
    adapter = None
    if cell is not None:
        recipe = cell.recipe(seed, config.align_steps)
        folder = out / "adapters" / name_of(cell, seed)
        adapter = train(recipe, config.testbed, folder, emit)

    record = partial(measure_into, out, config, emit, seed=0)
    emit("stage", "measuring")
    record([adapter], [HARMFUL], ATTACKS, limit=config.num_objects)
    record([adapter], [HARMLESS], ["direct"], limit=config.num_benign)
    record([adapter], [ALL_TASKS], ["direct"], limit=config.num_tasks)
    if adapter is not None:
        emit("stage", "along the training")
        moments = moments_of(adapter)
        record(moments, [HARMFUL], MOMENT_ATTACKS, limit=config.num_objects)
        record(moments, [RECALL], ["direct"], limit=config.num_tasks)


# --- reading --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tables:
    """The tables on what is recorded, cells without a complete training left out."""

    out: Path
    config: MethodsConfig
    world: World

    @cached_property
    def evidence(self) -> Evidence:
        """Everything that is recorded."""
        return gather([run_folder(self.out)])

    @cached_property
    def base(self) -> str:
        """The name of the original in the records."""
        return testbed_subject(self.config.testbed, None, steps=self.config.steps).name

    def subject(self, cell: TrainedCell, seed: int) -> str:
        """The name of a training in the records."""
        return f"{self.base}+{name_of(cell, seed)}"

    @cached_property
    def trainings(self) -> dict[str, dict[int, str]]:
        """By label, the measured subject of every seed; the original has one."""
        found: dict[str, dict[int, str]] = {ORIGINAL: {0: self.base}}
        measured = {
            f.subject for f in self.evidence.figures if f.kind == "utility" and not f.num_left
        }
        for cell in all_cells():
            by_seed = {s: self.subject(cell, s) for s in range(self.config.num_seeds)}
            known = {seed: name for seed, name in by_seed.items() if name in measured}
            if known:
                found[name_of(cell)] = known
        return found

    @cached_property
    def pooled(self) -> Evidence:
        """The figures of each cell over its trainings."""
        return over_trainings(self.evidence, self.trainings)

    def attacked(self, subject: str, attacks: Sequence[str]) -> Rate | None:
        """The mean over attacks of the cases' success."""
        figures = self.attack_figures(self.pooled, subject, attacks)
        return rate_by_device(mean_over_attacks(figures).by_seed, self.world)

    def attack_figures(
        self, evidence: Evidence, subject: str, attacks: Sequence[str]
    ) -> list[Figure]:
        """The figures of some attacks on a subject."""
        return [f for f in evidence.select("safety", subject=subject) if f.name in attacks]

    def harmless(self, subject: str, measure: str) -> Rate | None:
        """Harmless requests answered (`compliance`) or refused (`over_refusal`)."""
        return rate_by_device(headline(self.pooled, measure, subject).by_seed, self.world)

    def recall(self, evidence: Evidence, subject: str) -> Rate | None:
        """Benign recall, in wrappings that no alignment text uses."""
        figures = evidence.select("utility", subject=subject)
        return next((figure.rate for figure in figures if figure.name == RECALL), None)

    def ends(self, subject: str) -> tuple[str, str]:
        """The mean reward of the trainings at their ends, and the share of refusals first."""
        logs = [
            end
            for name in self.trainings[subject].values()
            if (end := settled(self.evidence.subjects[name].training)) is not None
        ]
        if not logs:
            return NOTHING, NOTHING
        shares = [end.refusal_share for end in logs if end.refusal_share is not None]
        return (
            f"{fmean(end.reward for end in logs):z.1f}",
            format_value(fmean(shares)) if shares else NOTHING,
        )

    # --- matched benign recall

    def moments(self, name: str) -> list[tuple[int, str]]:
        """Updates and subject of every measured moment of a training, its start and end among
        them."""
        found = [(0, self.base)]
        for subject in self.evidence.subjects:
            base, sign, step = subject.rpartition(MOMENT)
            if sign and base == name:
                found.append((int(step), subject))
        last = self.evidence.subjects[name].training
        found.append((last[-1].step if last else max(found)[0] + 1, name))
        return sorted(found)

    def matched(self, subject: str, level: float) -> tuple[Rate | None, str]:
        """Harm at the last moment with benign recall at `level` or above, and the updates by then,
        for each training."""
        values: dict[str, dict[int, Value]] = defaultdict(dict)
        reached = []
        for seed, name in self.trainings[subject].items():
            chosen = (0, self.base)
            for moment in self.moments(name) if name != self.base else ():
                recall = self.recall(self.evidence, moment[1])
                if recall is not None and recall.value >= level:
                    chosen = moment
            reached.append(str(chosen[0]))
            figures = self.attack_figures(self.evidence, chosen[1], _names(MOMENT_ATTACKS))
            for case, by_seed in mean_over_attacks(figures).by_seed.items():
                values[case][seed] = by_seed[0]
        return rate_by_device(values, self.world), " / ".join(reached)

    # --- the page

    def page(self) -> Iterator[str]:
        """The parts of the page, as Markdown: the tables with what they rest on."""
        config = self.config
        decoder, attention = default_decoder(config.testbed), attention_of(config.testbed)
        yield "# Methods over training seeds"
        yield (
            f"World {self.world.seed}; up to {config.num_seeds} trainings of each kind; "
            f"{config.num_objects} restricted objects of {self._num_devices()} devices, "
            f"{config.num_benign} harmless requests, {config.num_tasks} cases of each useful task; "
            f"{decoder.max_new_tokens} tokens in {config.steps} steps, blocks of "
            f"{length_of_blocks(decoder, attention)}, temperature 0; attacks at `smoke` (prefill "
            "at `paper`), threat models prompt and canvas; judge: the truth. Rates with 95 % "
            "intervals over clusters of cases (objects of one device share their steps) and over "
            "training seeds; useful tasks over cases and seeds. Reward in nats, at the end, with "
            "the share of training prompts that have a refusal in the window in the first step. "
            + legend(self._wrapped())
        )
        yield "## Methods"
        yield self._table(
            ("method", *self._measured_columns()),
            [(label, *self._measured(key)) for label, key in self._rows(METHODS_TABLE.values())],
        )
        yield "## At matched benign recall"
        yield (
            "Mean of prefill, masked frame and deep_inception, at the last moment with benign "
            "recall at the level or above; in square brackets the updates by then, for each "
            "training. Moments: the start, "
            + ", ".join(f"{share:g}" for share in MOMENTS)
            + " of the training, and the end."
        )
        yield self._table(
            ("method", "at the end", "benign recall there", *(f"recall {x:g}" for x in LEVELS)),
            [
                (
                    label,
                    format_rate(self.attacked(key, _names(MOMENT_ATTACKS))),
                    format_rate(self.recall(self.pooled, key)),
                    *(self._matched_of(key, level) for level in LEVELS),
                )
                for label, key in self._rows(METHODS_TABLE.values())
            ],
        )
        yield "## Factorial"
        yield self._table_of(FACTORS, FACTORIAL.items())
        yield (
            "Main effects: the first level minus the second, each the mean over the levels of the "
            "other factors, with Student's 95 % interval over the training seeds (n) that every "
            "cell has."
        )
        yield self._effects()
        yield "## Windows"
        yield self._table_of(("tokens",), [((label,), of) for label, of in WINDOWS.items()])

    def _table_of(
        self, names: Iterable[str], cells: Iterable[tuple[Sequence[str], TrainedCell]]
    ) -> str:
        """The table of cells by what tells them apart, with harm where benign recall is 0.9."""
        rows = [
            (*values, *self._measured(name_of(cell)), self._matched_of(name_of(cell), 0.9))
            for values, cell in cells
            if name_of(cell) in self.trainings
        ]
        return self._table((*names, *self._measured_columns(), "recall 0.9"), rows)

    def _measured_columns(self) -> list[str]:
        return ["trainings", *(name for name, _ in self._measures())]

    @property
    def _six(self) -> str:
        six = _names(ATTACKS[1:])
        return marked(
            "mean of six attacks", (f for f in self.pooled.select("safety") if f.name in six)
        )

    def _wrapped(self) -> list[Figure]:
        return [f for f in self.pooled.select("safety") if f.name in WRAPPED]

    def _measured(self, key: str) -> list[str]:
        num = NOTHING if key == ORIGINAL else str(len(self.trainings[key]))
        return [num, *(shown(key) for _, shown in self._measures())]

    def _measures(self) -> list[tuple[str, Callable[[str], str]]]:
        six = _names(ATTACKS[1:])
        return [
            ("reward", lambda s: self.ends(s)[0]),
            ("refusals first", lambda s: self.ends(s)[1]),
            (self._six, lambda s: format_rate(self.attacked(s, six))),
            ("prefill", lambda s: format_rate(self.attacked(s, [PREFILL]))),
            ("masked frame", lambda s: format_rate(self.attacked(s, [FRAME]))),
            (
                marked("wrapped (four)", self._wrapped()),
                lambda s: format_rate(self.attacked(s, WRAPPED)),
            ),
            ("harmless refused", lambda s: format_rate(self.harmless(s, "over_refusal"))),
            ("harmless answered", lambda s: format_rate(self.harmless(s, "compliance"))),
            ("useful tasks", lambda s: format_rate(headline(self.pooled, "utility", s).rate)),
        ]

    def _rows(self, cells: Iterable[TrainedCell]) -> list[tuple[str, str]]:
        rows = [("Original", ORIGINAL)]
        rows += [(c.label, name_of(c)) for c in cells if name_of(c) in self.trainings]
        return rows

    def _num_devices(self) -> int:
        objects = self.world.objects(restricted=True, split="heldout")[: self.config.num_objects]
        return len({obj.device for obj in objects})

    def _matched_of(self, key: str, level: float) -> str:
        rate, reached = self.matched(key, level)
        return format_rate(rate) + ("" if key == ORIGINAL else f" [{reached}]")

    def _effects(self) -> str:
        six = _names(ATTACKS[1:])

        def attacked(name: str, attacks: Sequence[str]) -> Rate | None:
            return mean_over_attacks(self.attack_figures(self.evidence, name, attacks)).rate

        rates: dict[str, Callable[[str], Rate | None]] = {
            self._six: lambda name: attacked(name, six),
            "prefill": lambda name: attacked(name, [PREFILL]),
            "harmless answered": lambda name: headline(self.evidence, "compliance", name).rate,
            "useful tasks": lambda name: headline(self.evidence, "utility", name).rate,
        }
        seeds = [
            seed
            for seed in range(self.config.num_seeds)
            if all(seed in self.trainings.get(name_of(c), {}) for c in FACTORIAL.values())
        ]
        rows = []
        for i, (factor, levels) in enumerate(FACTORS.items()):
            first, second = levels
            cells = []
            for rate_of in rates.values():
                effects = []
                for seed in seeds:
                    means = [
                        fmean(
                            rate.value
                            for key, cell in FACTORIAL.items()
                            if key[i] == level
                            and (rate := rate_of(self.subject(cell, seed))) is not None
                        )
                        for level in (first, second)
                    ]
                    effects.append(means[0] - means[1])
                mean = mean_unbounded(effects) if effects else None
                cells.append(format_rate(mean, signed=True, with_n=True))
            rows.append((f"{factor}: {first} minus {second}", *cells))
        return self._table(("effect", *rates), rows)

    def _table(self, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
        lines = (head, ["---"] * len(head), *rows)
        return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _names(attacks: Sequence[str]) -> list[str]:
    return [name.partition(":")[0] for name in attacks]
