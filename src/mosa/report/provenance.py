"""Where the figures of a report come from: models, runs, decoders, attacks, data, judges, versions;
and how to cite what was used."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from mosa.attacks import ATTACKS
from mosa.evaluation.evidence import Evidence, Run
from mosa.evaluation.judging import CANVAS
from mosa.evaluation.store import Store
from mosa.judges import JUDGES
from mosa.report.content import Cell, Table

PAPER = (
    "Xie, Song, Luo: Where to Start Alignment? Diffusion Large Language Model May Demand a "
    "Distinct Position. arXiv 2508.12398, AAAI 2026."
)


def settings_tables(evidence: Evidence, labels: Mapping[str, str]) -> Iterator[Table]:
    """Everything that decides the figures, as tables."""
    yield Table(
        "models",
        "Models",
        "The hash is over all weights, configs, tokenizer and chat template.",
        ("Model", "name in the runs", "source", "adapter", "hash of the weights"),
        tuple(
            (labels[name], name, record["source"], record.get("adapter"), record["weights"])
            for name, record in evidence.models.items()
            if name in labels
        ),
    )
    yield Table(
        "runs",
        "Runs",
        "Sessions are the processes that worked on a run; one that was cut off is counted as far "
        "as it noted its time.",
        ("Run", "kind", "requests", "judges", "seeds", "sessions", "seconds", "device", "begun"),
        tuple(_run_row(run) for run in evidence.runs),
    )
    yield from _decoders(evidence)
    yield from _attacks(evidence)
    yield from _data(evidence)
    yield from _judges(evidence)
    yield from _versions(evidence)


def _run_row(run: Run) -> tuple[Cell, ...]:
    settings = [session.get("settings", {}) for session in run.sessions]
    seeds = sorted({seed for found in settings for seed in found.get("seeds", ())})
    return (
        run.folder.name,
        run.kind.replace("_", "-"),
        run.behavior_set or None,
        ", ".join(run.judges) or None,
        ", ".join(map(str, seeds)) or None,
        len(run.sessions),
        round(sum(session.get("seconds", 0.0) for session in run.sessions)),
        _all(session.get("device") for session in run.sessions),
        run.sessions[0].get("started") if run.sessions else None,
    )


def _all(values: Any) -> str | None:
    """Every different value, once."""
    return ", ".join(dict.fromkeys(str(value) for value in values if value)) or None


def _decoders(evidence: Evidence) -> Iterator[Table]:
    decoders: dict[str, list[Run]] = {}
    for run in evidence.runs:
        if run.decoder:
            decoders.setdefault(_text(run.decoder), []).append(run)
    if not decoders:
        return
    settings = [json.loads(text) for text in decoders]
    names = dict.fromkeys(name for found in settings for name in found if name != "seed")
    heads = tuple(", ".join(run.folder.name for run in runs) for runs in decoders.values())
    yield Table(
        "decoder",
        "Decoder",
        "How every response was generated; attacks on the sampler change some of it, as their "
        "settings say.",
        ("Setting", *heads),
        tuple((name, *(_text(found.get(name)) for found in settings)) for name in names),
    )


def _attacks(evidence: Evidence) -> Iterator[Table]:
    rows: dict[tuple[Cell, ...], None] = {}
    for run in evidence.runs:
        if run.kind != "safety":
            continue
        with Store(run.folder) as store:
            for task in store.tasks():
                known = ATTACKS.get(task.attack)
                access = None if known is None else ", ".join(known.access)
                source = None if known is None else known.source
                rows[task.attack, task.preset, access, _text(task.config), source] = None
    if rows:
        yield Table(
            "attack-settings",
            "Attacks and their settings",
            "What an attacker needs access to, every setting, and where the attack comes from.",
            ("Attack", "preset", "access", "settings", "source"),
            tuple(rows),
        )


def _data(evidence: Evidence) -> Iterator[Table]:
    rows: dict[tuple[Cell, ...], None] = {}
    for run in evidence.runs:
        described = run.about if run.kind == "utility" else {run.behavior_set: run.about}
        for name, about in described.items():
            facts = (about.get(fact) for fact in ("file", "sha256", "licence", "origin"))
            rows[name, *facts] = None
    if rows:
        yield Table(
            "data",
            "Data and licences",
            "SHA-256 of the file as it was read.",
            ("Requests or task", "file", "SHA-256", "licence", "authors' repository"),
            tuple(rows),
        )


def _judges(evidence: Evidence) -> Iterator[Table]:
    rows: dict[tuple[Cell, ...], None] = {}
    for run in evidence.runs:
        for judge in run.judges:
            known = JUDGES.get(judge.split("/")[0])
            if known is not None:
                reads = "whole canvas" if judge.endswith(CANVAS) else "up to the first end token"
                rows[judge, known.threshold, reads, known.source] = None
    if rows:
        yield Table(
            "judges",
            "Judges",
            "An id names the version, the prompt's hash and the model that was asked.",
            ("Judge", "a success is", "reads", "source"),
            tuple(rows),
        )


def _versions(evidence: Evidence) -> Iterator[Table]:
    found: dict[str, dict[str, None]] = {}
    for run in evidence.runs:
        for session in run.sessions:
            for name, version in session.get("versions", {}).items():
                if version is not None:
                    found.setdefault(name, {})[str(version)] = None
    if found:
        yield Table(
            "versions",
            "Versions",
            "Of all sessions; several where they differed.",
            ("Package", "version"),
            tuple((name, ", ".join(versions)) for name, versions in found.items()),
        )


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def citation(evidence: Evidence) -> Iterator[str]:
    """What to cite, as sentences."""
    yield "mosa (mosa-dllm), Apache-2.0; give the version and the settings above."
    yield f"The method MOSA: {PAPER}"
    sources = []
    sets = []
    judges = []
    for run in evidence.runs:
        judges += [JUDGES[j.split("/")[0]].source for j in run.judges if j.split("/")[0] in JUDGES]
        if run.kind != "utility" and run.about.get("origin"):
            sets.append(f"{run.behavior_set} ({run.about['origin']})")
        if run.kind == "safety":
            with Store(run.folder) as store:
                names = dict.fromkeys(attack for _, attack, _, _, _ in store.counts())
            sources += [f"{name}: {ATTACKS[name].source}" for name in names if name in ATTACKS]
    for what, found in (("Attacks", sources), ("Judges", judges), ("Requests", sets)):
        if found:
            yield f"{what}: {'; '.join(dict.fromkeys(found))}."
