"""The available attacks, judges and sets, as a file that listings read without torch.

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
    """The lists `attacks`, `judges` and `sets`, an object for each entry."""
    return json.loads(FILE.read_text(encoding="utf-8"))


def make_catalogue() -> Catalogue:
    """The same from the tables themselves."""
    from mosa.attacks import ATTACKS, ENGLISH
    from mosa.data import KNOWN_FILES, known_set_names
    from mosa.judges import JUDGES
    from mosa.runs.sets import ALL_TASKS
    from mosa.testbed.behaviors import TESTBED_SETS, in_alignment_data
    from mosa.utility import USEFUL_SETS

    attacks = [
        {
            "name": attack.name,
            "summary": attack.summary,
            "source": attack.source,
            "threat": attack.threat,
            "access": list(attack.access),
            "takes": list(attack.takes),
            "roles": list(attack.roles),
            "needs_answer": attack.needs_answer,
            "decides": attack.decides,
            "bounds": {
                preset: attack.bound(attack.config(preset), ENGLISH).asked
                for preset in attack.presets
                if attack.bound is not None
            },
            "in_alignment_data": in_alignment_data(attack.name),
        }
        for attack in ATTACKS.values()
    ]
    judges = [
        {
            "name": judge.name,
            "summary": judge.summary,
            "source": judge.source,
            "needs": judge.needs,
            "threshold": judge.threshold,
            "tells_refusals": judge.tells_refusals,
        }
        for judge in JUDGES.values()
    ]
    sets: list[dict[str, Any]] = []
    for name in TESTBED_SETS:
        is_harmless = name in ("testbed:benign", "testbed:near_miss")
        sets.append({"name": name, "kind": "harmless" if is_harmless else "harmful"})
    for name in known_set_names():
        known = KNOWN_FILES[name.partition(":")[0]]
        is_harmless = known.role == "benign" and name != "xstest:unsafe"
        sets.append(
            {
                "name": name,
                "kind": "harmless" if is_harmless else "harmful",
                "licence": known.licence,
                "origin": known.origin,
            }
        )
    sets += [{"name": name, "kind": "useful"} for name in (ALL_TASKS, *USEFUL_SETS)]
    return {"attacks": attacks, "judges": judges, "sets": sets}


if __name__ == "__main__":
    write_json(FILE, make_catalogue())
