"""`mosa.evaluate`, `mosa.judge`, `mosa.results`: measure models into a run, and read it."""

from __future__ import annotations

import dataclasses
import html
import os
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mosa.chat import ChatOptions
from mosa.denoising import DecoderConfig
from mosa.evidence.figures import CONTROL, REFUSED, Figure, figures_of, world_of_run
from mosa.evidence.labels import legend, length_of, marked
from mosa.families import DiffusionLM
from mosa.inputs import did_you_mean, read_yaml
from mosa.reporting.content import Sample
from mosa.reporting.setup import ReportConfig, read_setup
from mosa.reporting.views import scan
from mosa.runs.evaluate import EvaluateConfig, run_evaluation
from mosa.runs.judging import METRIC, examiners_of_themselves, judge_meant, judge_run
from mosa.runs.options import (
    evaluation_config,
    judge_config,
    judges_of_run,
    role_chats,
    served_by,
)
from mosa.runs.progress import ProgressBar
from mosa.runs.records import TaskCell, TaskStatus
from mosa.runs.sets import SetOptions
from mosa.runs.store import Run
from mosa.runs.subject import NO_ADAPTER, Subject
from mosa.stats.rates import format_rate, format_value
from mosa.tables import html_table, text_table
from mosa.types import UserError

if TYPE_CHECKING:
    import pandas

AnyPath = str | os.PathLike[str]
"""A folder's path; a `RunFolder` is one, too."""
SETTINGS = (SetOptions, ChatOptions, DecoderConfig)
"""Whose fields `evaluate` takes as further arguments."""


class NothingCame(UserWarning):
    """An attack, a subject or a judge that was asked for has produced nothing, or not all."""


# --- evaluate and judge ---------------------------------------------------------------------------


def evaluate(
    model: str | Path | DiffusionLM | None = None,
    *,
    sets: str | Sequence[str],
    out: AnyPath,
    adapter: str | Sequence[str] = NO_ADAPTER,
    system_prompt: str | None = None,
    decoder: str | None = None,
    subjects: str | Path | Sequence[Subject | Mapping[str, Any]] | None = None,
    attacks: str | Sequence[str] = "direct",
    preset: str = "paper",
    attack_options: Mapping[str, Mapping[str, Any]] | None = None,
    attacker: str | None = None,
    loop_judge: str | None = None,
    translator: str | None = None,
    judges: str | Sequence[str] | None = None,
    judge_model: str | None = None,
    judge_templates: str | Path | None = None,
    seeds: int | Sequence[int] = 0,
    batch_size: int = 32,
    dtype: str = "auto",
    device: str | None = None,
    tokenizer: str | None = None,
    i_am_authorized: bool = False,
    max_tokens_total: int | None = None,
    progress: bool = True,
    **settings: Any,
) -> RunFolder:
    """Attack a model, ask it harmless requests and useful tasks, and judge the responses, into the
    run in the folder `out` (`mosa evaluate`).

    `model` is a name, folder or hub id, with an `adapter` or several, each a subject of its own; a
    loaded model as it is; or an address URL#NAME, where `i_am_authorized` says that its owner
    agrees, `max_tokens_total` is the most that is spent there, and `tokenizer` that of a model
    whose server takes canvases. `sets` and `attacks` are names in a list or with commas
    (`mosa.catalogue.read_catalogue()` has them all). `settings` are fields of
    `SetOptions` (limit, sample_seed, ...), `DecoderConfig` (max_new_tokens, ...) and `ChatOptions`;
    `decoder` names a published one (`mosa.denoising.published`), over which they are.
    `progress` shows how far it is.

        run = mosa.evaluate(model, attacks=["direct", "prefill"], sets="testbed", out="runs/a")

    The same call again resumes where it stopped; another model or set goes into the same run.
    Works inside a running event loop, too. Raises UserError for what cannot be run as requested,
    before anything is generated; warns (`NothingCame`) where an attack or judge produced nothing.
    """
    check_known(settings)
    given = {
        "sets": sets,
        "adapter": adapter,
        "system_prompt": system_prompt,
        "decoder": decoder,
        "subjects": subjects,
        "attacks": attacks,
        "attack_options": attack_options,
        "preset": preset,
        "attacker": attacker,
        "loop_judge": loop_judge,
        "translator": translator,
        "judges": judges,
        "judge_model": judge_model,
        "judge_templates": judge_templates,
        "seeds": seeds,
        "batch_size": batch_size,
        "dtype": dtype,
        "device": device,
        "tokenizer": tokenizer,
        "i_am_authorized": i_am_authorized,
        "max_tokens_total": max_tokens_total,
        **settings,
    }
    options = options_of(model, given)
    config = evaluation_config(options)
    judging = judge_config(options, served_by(config))
    with ProgressBar(is_shown=progress) as bar:
        run = run_evaluation(
            Path(out),
            config,
            chats=role_chats(options, served_by(config)),
            judge_config=judging,
            endpoint_options=judging.chat,
            on_stopped=lambda why: warnings.warn(why, NothingCame, stacklevel=2),
            models=models_of(model, config),
            on_progress=bar.update,
            on_judged=bar.judging,
        )
    assert run is not None, "this process is the main one"
    with run:
        warn_of_nothing(nothing_from(run, bar.judged, asked_for(config.subjects, config.attacks)))
    return RunFolder(out)


def judge(
    run: AnyPath,
    judges: str | Sequence[str],
    *,
    judge_model: str | None = None,
    judge_templates: str | Path | None = None,
    device: str | None = None,
    progress: bool = True,
    **settings: Any,
) -> RunFolder:
    """Let judges score the responses of a run, without generating them again (`mosa judge`).

    `judges` are names in a list or with commas, each NAME, NAME=BACKEND or NAME@canvas;
    `judge_model` is the chat model of those that name none, and `settings` are fields of
    `ChatOptions`. Raises UserError for a judge that is unknown, lacks what it needs, reads none of
    the run's sets, or steered its attacks; warns (`NothingCame`) where one could score nothing.
    """
    check_known(settings, (ChatOptions,))
    names = _listed(judges)
    options = {
        "judges": names,
        "judge_model": judge_model,
        "judge_templates": None if judge_templates is None else Path(judge_templates),
        "device": device,
        **settings,
    }
    with Run(Path(run), adds=True) as opened:
        config = judge_config(options)
        chosen = judges_of_run(opened, names, config, world_of_run(opened))
        with ProgressBar(is_shown=progress) as bar:
            judge_run(opened, chosen, on_progress=bar.judging)
        warn_of_nothing(nothing_from(opened, {each.id for each in chosen}))
    return RunFolder(run)


def options_of(model: str | Path | DiffusionLM | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `evaluate` and `analyze` as the command line has them: names in tuples,
    paths, and a loaded model by its folder and adapter."""
    options: dict[str, Any] = {"tokenizer": None, "i_am_authorized": False, **given}
    options["model"] = None if model is None else str(model)
    for name in ("sets", "attacks", "judges", "adapter"):
        if options.get(name) is not None:
            options[name] = _listed(options[name])
    if isinstance(model, DiffusionLM):
        if options["adapter"] != (NO_ADAPTER,):
            raise UserError("a loaded model brings its adapter; leave adapter out")
        if model.has_new_adapter:
            raise UserError(
                "the adapter of this model is in no folder yet, so that a run could not say what "
                "was measured; save it first (model.save_adapter(FOLDER))"
            )
        options |= {"model": model.source, "adapter": (model.adapter or NO_ADAPTER,)}
    if isinstance(given["subjects"], str | Path):
        options["subjects"] = read_yaml(Path(given["subjects"]), list[dict[str, Any]])
    for name in ("judge_templates", "data_dir"):
        if options.get(name) is not None:
            options[name] = Path(options[name])
    of_attacks: Mapping[str, Mapping[str, Any]] = options.get("attack_options") or {}
    options["attack_options"] = {name: dict(of) for name, of in of_attacks.items()}
    seeds = options["seeds"]
    options["seeds"] = (seeds,) if isinstance(seeds, int) else tuple(seeds)
    return options


def models_of(
    model: str | Path | DiffusionLM | None, config: EvaluateConfig
) -> dict[str, DiffusionLM]:
    """A loaded model by the name of its subject, so that it is not loaded again."""
    loaded = [model] if isinstance(model, DiffusionLM) else []
    return {subject.name: of for of in loaded for subject in config.subjects}


def asked_for(subjects: Sequence[Subject], attacks: Sequence[str]) -> Callable[[TaskCell], bool]:
    """Whether a cell of tasks belongs to these subjects and attacks, the plain request included."""
    names = {subject.name for subject in subjects}
    wanted = {CONTROL, *(name.partition(":")[0] for name in attacks)}
    return lambda cell: cell.subject in names and bool({"all", cell.attack} & wanted)


def nothing_from(
    run: Run, judged: Collection[str], asked: Callable[[TaskCell], bool] = lambda cell: False
) -> list[str]:
    """What has produced nothing at all, in words: cells of tasks that were `asked` for and failed,
    and judges that have `judged` and could score no attempt."""
    found = [
        f"{cell.attack} on {cell.case_set} against {cell.subject}: every task failed"
        for cell, states in run.counts().items()
        if asked(cell) and states["failed"] and not states["done"]
    ]
    for name in run.judges():
        if name in judged and all(v.score is None for v in run.verdicts(name).values()):
            found.append(f"judge {name}: no attempt has a score")
    return found


def warn_of_nothing(nothing: Sequence[str]) -> None:
    """Warns the caller of a function of the library of each."""
    for line in nothing:
        warnings.warn(
            f"nothing came of {line}; `problems()` of the run says why", NothingCame, stacklevel=3
        )


def _listed(names: str | Sequence[str]) -> tuple[str, ...]:
    """Names in a list, or with commas."""
    if not isinstance(names, str):
        return tuple(names)
    return tuple(name.strip() for name in names.split(",") if name.strip())


def check_known(settings: Mapping[str, Any], classes: Sequence[type] = SETTINGS) -> None:
    """UserError for a setting that is none."""
    fields = {field.name: of for of in classes for field in dataclasses.fields(of)}
    fields.pop("seed", None)  # which `seeds` sets
    for name in settings:
        if name not in fields:
            raise UserError(f"there is no setting {name}{did_you_mean(name, fields)}")


# --- a run, and what it says ----------------------------------------------------------------------


class RunFolder:
    """A run by its folder, as `mosa.evaluate` returns it; `RunFolder("runs/a")` names an older one.

    It opens the run's file for each question and closes it again. It is a path, and can be given
    wherever a folder of a run can.
    """

    def __init__(self, folder: AnyPath) -> None:
        """UserError where the folder holds no run."""
        self.folder = Path(folder)
        Run(self.folder).close()

    def __fspath__(self) -> str:
        return str(self.folder)

    def __repr__(self) -> str:
        """Where it is, and how much of what it holds."""
        with Run(self.folder) as run:
            return f"<RunFolder {self.folder}: {_contents_in_words(run)}>"

    def _repr_html_(self) -> str:
        return f"<p>{html.escape(repr(self)[1:-1])}</p>{self.results()._repr_html_()}"

    def results(self, *, judge: str | None = None, by_variant: bool = False) -> Results:
        """Its rates; see `mosa.results`."""
        return results(self.folder, judge=judge, by_variant=by_variant)

    def samples(
        self,
        *,
        subject: str | None = None,
        attack: str | None = None,
        case_set: str | None = None,
        case: str | None = None,
        outcome: str | None = None,
        judge: str | None = None,
        redact: bool | None = None,
    ) -> list[Sample]:
        """The tries of attacks and harmless requests, each of which can be shown; those of one
        subject, attack, set, case or outcome where given.

        Outcomes are `succeeded`, `held` and `unscored` for attacks, and what the judge `compliance`
        says for harmless requests; they are those of `judge`, unset the most trusted one. `redact`
        unset leaves out the words of all but the testbed's sets. Raises UserError for an outcome
        that no try has, and an unknown judge.
        """
        with Run(self.folder) as run:
            setup = read_setup([run], ReportConfig(judge=judge, redact=redact))
            found = scan(setup, [run]).samples
        wanted = {"subject": subject, "attack": attack, "case_set": case_set, "case": case}
        given = {name: value for name, value in wanted.items() if value is not None}
        outcomes = [_outcome(sample, setup.judge) for sample in found]
        if outcome is not None and outcome not in outcomes:
            known = ", ".join(sorted(set(outcomes))) or "none, since nothing was tried"
            raise UserError(f"no try has the outcome {outcome}; there are {known}")
        for name, value in given.items():
            known = sorted({getattr(sample, name) for sample in found})
            if value not in known:
                raise UserError(f"no try has the {name} {value}; there are {', '.join(known)}")
        return [
            sample
            for sample, is_so in zip(found, outcomes, strict=True)
            if outcome in (None, is_so)
            and all(getattr(sample, name) == value for name, value in given.items())
        ]

    def problems(self) -> list[str]:
        """What failed, could not be scored, or is not applicable, with the reasons."""
        with Run(self.folder) as run:
            return problems_of(run)


def _contents_in_words(run: Run) -> str:
    counts = run.counts()
    states = sum(counts.values(), Counter())
    attacks = dict.fromkeys(cell.attack for cell in counts)
    judges = [name for name in run.judges() if not name.startswith(METRIC)]
    left = "".join(f", {states[s]} {word}" for s, word in _LEFT.items() if states[s])
    return (
        f"{', '.join(run.subjects()) or 'no subject'} on {', '.join(run.sets()) or 'no set'}; "
        f"{', '.join(attacks) or 'no attack'}; {states['done']} tasks done{left}; judged by "
        f"{', '.join(judges) or 'nobody'}"
    )


_LEFT: dict[TaskStatus, str] = {"failed": "failed", "todo": "left"}


def _outcome(sample: Sample, judge: str | None) -> str:
    """The outcome by the judge that decides, else by the first that has one."""
    asked = [judge, *sample.outcomes] if judge is not None else [*sample.outcomes]
    return next((sample.outcomes[name] for name in asked if name in sample.outcomes), "not judged")


def problems_of(run: Run) -> list[str]:
    """What failed, could not be scored, or is not applicable in a run, with the reasons; and judges
    whose model wrote the attacks."""
    found = [f"{attack}: {count} failed: {reason}" for attack, reason, count in run.failures()]
    for name in run.judges():
        reasons = run.unscored(name)
        if num := reasons.total():
            num_tries = len(run.verdicts(name))
            share = format_value(num / num_tries)
            found.append(f"judge {name}: {num} of {num_tries} tries ({share}) are unscored")
        for reason, count in reasons.most_common():
            found.append(f"judge {name}: {count} unscored: {reason}")
    for name in examiners_of_themselves(run.judges(), run.sessions()):
        found.append(
            f"judge {name}: its model wrote the attacks too, and may be lenient with them; another "
            "model is a better examiner"
        )
    for pair in run.not_applicable():
        found.append(
            f"not applicable: {pair.attack} on {pair.case_set} against {pair.subject}: it "
            f"{pair.reason}"
        )
    return found


def results(run: AnyPath, *, judge: str | None = None, by_variant: bool = False) -> Results:
    """The rates of a run: attacks, harmless sets and useful tasks of each subject (`mosa results`).

    Rates are shares from 0 to 1 with 95 % intervals. `judge` keeps the figures of one judge, by its
    id or name, `by_variant` gives each way of an attack a row of its own. Raises UserError for a
    folder without a run and an unknown judge.
    """
    with Run(Path(run)) as opened:
        if judge is not None:
            judge = judge_meant(judge, opened.judges(), opened.folder)
        found = figures_of(opened, by_variant=by_variant)
    return Results(tuple(f for f in found if judge in (None, f.judge)))


SHOWN = {"safety": ("success",), "over_refusal": (REFUSED, "full compliance")}
"""The measures that a table of results shows by kind; of useful tasks their headlines."""
MEASURES = {"success": "succeeds", REFUSED: "refused", "full compliance": "answered"}
"""What a table calls them."""


@dataclass(frozen=True, repr=False)
class Results(Sequence[Figure]):
    """Figures as a table: printed as text, in a notebook as HTML, `to_pandas()` for all columns."""

    figures: tuple[Figure, ...]

    def __len__(self) -> int:
        return len(self.figures)

    def __getitem__(self, place: Any) -> Any:
        return self.figures[place]

    def rows(self) -> list[tuple[str, ...]]:
        """The rows of the table, below `HEADINGS`."""
        judges = {f.judge for f in self.figures if f.kind == "safety"}
        found = []
        for figure in self.figures:
            is_shown = figure.measure in SHOWN.get(figure.kind, ()) or (
                figure.kind == "utility" and figure.is_headline
            )
            if not is_shown:
                continue
            name = figure.name + (f", {figure.variant}" if figure.variant else "")
            name += f" on {figure.case_set}" if figure.kind == "safety" else ""
            by = f" ({figure.judge})" if len(judges) > 1 and figure.kind == "safety" else ""
            found.append(
                (
                    figure.subject,
                    marked(name, [figure]),
                    MEASURES.get(figure.measure, figure.measure) + by,
                    format_rate(figure.rate),
                    "0" if figure.rate is None else str(figure.rate.n),
                    length_of([figure]),
                    str(figure.num_unscored),
                )
            )
        return found

    def __repr__(self) -> str:
        return with_legend(text_table(HEADINGS, self.rows()), self.figures)

    def _repr_html_(self) -> str:
        return html_table(HEADINGS, self.rows()) + html_legend(self.figures)

    def records(self) -> list[dict[str, Any]]:
        """A dictionary for each figure: what it is of, its rate with interval and number of cases,
        and counts of what is in no rate."""
        return [record_of(figure) for figure in self.figures]

    def to_pandas(self) -> pandas.DataFrame:
        """The records as a data frame; UserError where pandas is not installed."""
        return data_frame(self.records())


HEADINGS = ("subject", "of", "measure", "rate (95 % interval)", "n", "tokens", "unscored")


def record_of(figure: Figure) -> dict[str, Any]:
    """A figure as one flat dictionary; numbers that it does not have are None."""
    rate, score, any_rate = figure.rate, figure.score, figure.any_rate
    return {
        "kind": figure.kind,
        "subject": figure.subject,
        "name": figure.name,
        "set": figure.case_set,
        "attack": figure.attack,
        "preset": figure.preset,
        "variant": figure.variant,
        "threat": figure.threat,
        "judge": figure.judge,
        "measure": figure.measure,
        "rate": None if rate is None else rate.value,
        "low": None if rate is None else rate.low,
        "high": None if rate is None else rate.high,
        "n": 0 if rate is None else rate.n,
        "num_unscored": figure.num_unscored,
        "num_failed": figure.num_failed,
        "num_left": figure.num_left,
        "score": None if score is None else score.value,
        "any_rate": None if any_rate is None else any_rate.value,
        "num_tries": figure.num_tries,
        "num_garbled": figure.num_garbled,
        "num_empty": figure.num_empty,
        "mean_queries": figure.mean_queries,
        "length": figure.length,
        "decides": figure.decides if figure.kind == "safety" else None,
        "in_alignment_data": figure.in_alignment_data,
    }


def data_frame(records: Sequence[Mapping[str, Any]]) -> pandas.DataFrame:
    """Records as a data frame; UserError where pandas is not installed."""
    if find_spec("pandas") is None:
        raise UserError(
            "pandas is not installed; `pip install pandas`, or use records() for plain dictionaries"
        )
    import pandas

    return pandas.DataFrame([dict(record) for record in records])


def with_legend(table: str, figures: Iterable[Figure]) -> str:
    """A table as text, and what the marks in it mean."""
    return "\n".join(filter(None, (table, legend(figures))))


def html_legend(figures: Iterable[Figure]) -> str:
    """What the marks of a table mean, as HTML; empty where it has none."""
    told = legend(figures)
    return f"<p>{html.escape(told)}</p>" if told else ""
