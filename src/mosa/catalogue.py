"""Attacks, probes, judges and sets in a file that the command line reads without torch.

    python -m mosa.catalogue        # rewrite catalogue.json after a table has changed

A test holds the file equal to the tables.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mosa.files import write_json

FILE = Path(__file__).parent / "catalogue.json"
Catalogue = dict[str, list[dict[str, Any]]]


def read_catalogue() -> Catalogue:
    """The lists `attacks`, `probes`, `judges` and `sets`, an object for each entry."""
    return json.loads(FILE.read_text(encoding="utf-8"))


def make_catalogue() -> Catalogue:
    """The same from the tables themselves."""
    from mosa.attacks import ATTACKS, ENGLISH
    from mosa.data import KNOWN_FILES
    from mosa.data.behaviors import is_harmless_part, known_set_names
    from mosa.judges import JUDGES
    from mosa.probes import PROBES
    from mosa.runs.sets import ALL_TASKS
    from mosa.testbed import world_of
    from mosa.testbed.behaviors import TESTBED_SETS, in_alignment_data
    from mosa.utility import USEFUL_SETS

    facts = ("name", "title", "summary", "source")
    needs = ("threat", "access", "takes", "roles", "needs_answer")
    attacks = [
        _entry(attack, *facts, *needs, "decides")
        | {
            "presets": [*attack.presets],
            "bounds": {
                preset: attack.bound(attack.config(preset), ENGLISH).asked
                for preset in attack.presets
                if attack.bound is not None
            },
            "in_alignment_data": in_alignment_data(attack.name),
        }
        for attack in ATTACKS.values()
    ]
    facts = ("name", "summary", "source", "needs", "threshold", "tells_refusals")
    judges = [_entry(judge, *facts) for judge in JUDGES.values()]
    world = world_of("testbed")
    sets = [
        {"name": name, "kind": make(world, limit=1).kind} for name, make in TESTBED_SETS.items()
    ]
    for name in known_set_names():
        base, _, part = name.partition(":")
        kind = "harmless" if is_harmless_part(KNOWN_FILES[base], part) else "harmful"
        sets.append({"name": name, "kind": kind} | _entry(KNOWN_FILES[base], "licence", "origin"))
    sets += [{"name": name, "kind": "useful"} for name in (ALL_TASKS, *USEFUL_SETS)]
    return {
        "attacks": attacks,
        "probes": [_entry(probe, "name", "summary") for probe in PROBES.values()],
        "judges": judges,
        "sets": sets,
    }


def _entry(of: object, *names: str) -> dict[str, Any]:
    """Some facts about an entry of a table, as JSON has them."""
    found = {name: getattr(of, name) for name in names}
    return {name: list(v) if isinstance(v, tuple) else v for name, v in found.items()}


if __name__ == "__main__":
    write_json(FILE, make_catalogue())
