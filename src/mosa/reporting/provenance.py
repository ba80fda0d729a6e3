"""The sources of a report's figures: subjects, runs, decoders, attacks, data, judges, versions; and
how to cite them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, get_args

from mosa.attacks import ATTACKS
from mosa.evidence.figures import RunFacts, trained_against
from mosa.evidence.labels import UNKNOWN, legend_of, marked_attack, served_facts
from mosa.judges import JUDGES
from mosa.probes import PROBES
from mosa.reporting.content import CellValue, ReportTable
from mosa.reporting.setup import ReportSetup
from mosa.runs.judging import CANVAS
from mosa.testbed.behaviors import InAlignmentData
from mosa.types import Access
from mosa.utility import DECODER

PAPER = (
    "Xie, Song, Luo: Where to Start Alignment? Diffusion Large Language Model May Demand a "
    "Distinct Position. arXiv 2508.12398, AAAI 2026."
)


def settings_tables(setup: ReportSetup) -> Iterator[ReportTable]:
    """Everything that decides the figures, as tables."""
    subjects = ReportTable(
        "subjects",
        "Subjects",
        "The hash is over everything that was loaded: weights, configs, tokenizer, chat template, "
        "adapter; of a subject that is served elsewhere, over its address, its name there and the "
        "fields of every request. Grants: what an attacker of the subject controls; offers: the "
        "decoder settings that its users may choose.",
        (
            "Subject",
            "name in the runs",
            "source",
            "adapter",
            "system prompt",
            "grants",
            "offers",
            "hash",
            "its server",
        ),
        tuple(
            (
                label,
                name,
                (record := setup.evidence.subjects[name]).source,
                record.adapter,
                record.system_prompt,
                "all" if set(record.grants) == set(get_args(Access)) else ", ".join(record.grants),
                ", ".join(record.offers) or None,
                record.weights,
                None if record.server is None else served_facts(record),
            )
            for name, label in setup.labels.items()
        ),
    )
    yield _last_where_filled(subjects)
    yield _decoders(setup)
    yield ReportTable(
        "runs",
        "Runs",
        "Sessions are the processes that worked on a run; one that was cut off counts up to the "
        "last time that it noted.",
        ("Run", "sets", "judges", "seeds", "sessions", "seconds", "device", "begun"),
        tuple(map(_run_row, setup.evidence.runs)),
    )
    yield _attacks(setup)
    yield _data(setup)
    yield _judges(setup)
    yield _versions(setup)


def _last_where_filled(table: ReportTable) -> ReportTable:
    """The table, without its last column where no row has anything in it."""
    if any(row[-1] is not None for row in table.rows):
        return table
    return replace(table, columns=table.columns[:-1], rows=tuple(row[:-1] for row in table.rows))


def _run_row(run: RunFacts) -> tuple[CellValue, ...]:
    settings = [session.get("settings", {}) for session in run.sessions]
    seeds = sorted({seed for found in settings for seed in found.get("seeds", ())})
    return (
        run.folder.name,
        _all(run.sets),
        _all(run.judges),
        _all(map(str, seeds)),
        len(run.sessions),
        round(sum(session.get("seconds", 0.0) for session in run.sessions)),
        _all(session.get("device") for session in run.sessions),
        run.sessions[0].get("started") if run.sessions else None,
    )


def _all(values: Iterable[Any]) -> str | None:
    """Every different value, once."""
    return ", ".join(dict.fromkeys(str(value) for value in values if value)) or None


def _decoders(setup: ReportSetup) -> ReportTable:
    """A column for each decoder, under the names of the subjects that have it."""
    columns: dict[tuple[str, str | None], list[str]] = {}
    for name, label in setup.labels.items():
        record = setup.evidence.subjects[name]
        absent = None if record.server is None else UNKNOWN
        columns.setdefault((_text(record.decoder), absent), []).append(label)
    decoders = [(json.loads(text), absent) for text, absent in columns]
    names = dict.fromkeys(n for decoder, _ in decoders for n in decoder if n != "seed")
    return ReportTable(
        "decoder",
        "Decoder",
        "How a subject generates every response, as its defender set it. An attack that owns the "
        "sampler, or that takes settings which the subject offers, changes some of it; its own "
        f"settings say so. What a server does not tell is {UNKNOWN}.",
        ("Setting", *(", ".join(labels) for labels in columns.values())),
        tuple(
            (name, *(_text(decoder.get(name, absent)) for decoder, absent in decoders))
            for name in names
        ),
    )


def _attacks(setup: ReportSetup) -> ReportTable:
    rows: dict[tuple[CellValue, ...], None] = {}
    told: set[InAlignmentData] = set()
    for task, _ in setup.tasks:
        case_set = setup.evidence.sets[task.case_set]
        if case_set.kind != "harmful":
            continue
        told.add(trained_against(case_set, task.attack))
        name = marked_attack(case_set, task.attack)
        known = (ATTACKS | PROBES).get(task.attack)
        access = None if known is None else ", ".join(known.access)
        source = None if known is None else known.source
        rows[name, task.preset, task.threat, access, _text(task.config), source] = None
    return ReportTable(
        "attack-settings",
        "Attacks and their settings",
        "The access that an attacker needs, every setting, and the source of the attack. "
        f"{legend_of(told)}".rstrip(),
        ("Attack", "preset", "Threat", "access", "settings", "source"),
        tuple(rows),
    )


def _data(setup: ReportSetup) -> ReportTable:
    rows = tuple(
        (name, r.kind, r.file, r.sha256, r.content_hash or None, r.licence, r.origin)
        + (_text(r.settings[DECODER]) if DECODER in r.settings else None,)
        for name, r in setup.evidence.sets.items()
    )
    data = ReportTable(
        "data",
        "Data and licences",
        "SHA-256 of the file as it was read, and a hash of the set's cases.",
        ("Set", "kind", "file", "SHA-256", "hash of the cases", "licence", "origin")
        + ("decoder of its own",),
        rows,
    )
    return _last_where_filled(data)


def _judges(setup: ReportSetup) -> ReportTable:
    rows: dict[tuple[CellValue, ...], None] = {}
    for run in setup.evidence.runs:
        for judge in run.judges:
            known = JUDGES.get(judge.split("/")[0])
            if known is not None:
                reads = "whole canvas" if judge.endswith(CANVAS) else "up to the first end token"
                rows[judge, known.threshold, reads, known.source] = None
    return ReportTable(
        "judges",
        "Judges",
        "An id names the version, the prompt's hash and the model that was asked.",
        ("Judge", "a success is", "reads", "source"),
        tuple(rows),
    )


def _versions(setup: ReportSetup) -> ReportTable:
    found: dict[str, dict[str, None]] = {}
    for run in setup.evidence.runs:
        for session in run.sessions:
            for name, version in session.get("versions", {}).items():
                if version is not None:
                    found.setdefault(name, {})[str(version)] = None
    return ReportTable(
        "versions",
        "Versions",
        "Versions in all sessions; several where the sessions differed.",
        ("Package", "version"),
        tuple((name, ", ".join(versions)) for name, versions in found.items()),
    )


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def citation(setup: ReportSetup) -> Iterator[str]:
    """What to cite, as sentences."""
    yield "mosa (mosa-dllm), Apache-2.0; give the version and the settings above."
    yield f"The method MOSA: {PAPER}"
    attacks = dict.fromkeys(task.attack for task, _ in setup.tasks)
    names = [judge.split("/")[0] for run in setup.evidence.runs for judge in run.judges]
    sets = setup.evidence.sets
    for what, found in (
        ("Attacks", [f"{name}: {ATTACKS[name].source}" for name in attacks if name in ATTACKS]),
        ("Judges", [JUDGES[name].source for name in names if name in JUDGES]),
        ("Sets", [f"{name} ({record.origin})" for name, record in sets.items() if record.origin]),
    ):
        if found:
            yield f"{what}: {'; '.join(dict.fromkeys(found))}."
