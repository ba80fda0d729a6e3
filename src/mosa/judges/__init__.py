"""Judges: whether a response does what a behavior asks for.

A judge is one file with an `INFO` and one line in `JUDGES`. Start reading in base.py (the
interface), then refusal.py (the simplest) and prompted.py (what the judges that ask a chat model
share). docs/judges has a page for each.
"""

from __future__ import annotations

from mosa.judges import (
    harmbench,
    jailbreakbench,
    llama_guard,
    mosa_scale,
    pair,
    refusal,
    strongreject,
    strongreject_finetuned,
    truth,
    xstest,
)
from mosa.judges.base import Item, Judge, JudgeInfo, JudgeSetting
from mosa.judges.clean import clean, is_garbled
from mosa.judges.compliance import REFUSAL_CLASSES, compliance_of
from mosa.types import UserError

JUDGES: dict[str, JudgeInfo] = {
    "refusal": refusal.INFO,
    "strongreject": strongreject.INFO,
    "mosa_scale": mosa_scale.INFO,
    "jailbreakbench": jailbreakbench.INFO,
    "xstest": xstest.INFO,
    "pair": pair.INFO,
    "harmbench": harmbench.INFO,
    "strongreject_finetuned": strongreject_finetuned.INFO,
    "llama_guard": llama_guard.INFO,
    "truth": truth.INFO,
}
"""Every judge by name, the cheapest first and the testbed's own last."""


def make_judge(name: str, setting: JudgeSetting | None = None) -> Judge:
    """The judge of that name; UserError for an unknown name, or where what it needs is missing."""
    if name not in JUDGES:
        raise UserError(f"No judge is called {name}; there are {', '.join(JUDGES)}.")
    setting = setting or JudgeSetting()
    if setting.batch_size < 1:
        raise UserError(f"batch_size of a judge must be at least 1, not {setting.batch_size}.")
    return JUDGES[name].make(setting)


__all__ = [
    "JUDGES",
    "REFUSAL_CLASSES",
    "Item",
    "Judge",
    "JudgeSetting",
    "clean",
    "compliance_of",
    "is_garbled",
    "make_judge",
]
