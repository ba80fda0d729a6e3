"""A run as tables, as one JSON document, and in the formats of HarmBench and others.

An export is derived: the same call makes it again and replaces the old one. It leaves nothing out:
failed tasks and unscored attempts are in every format, never as "safe".

    csv             attempts.csv, tasks.csv
    json            run.json
    harmbench       results/ATTACK/SET-PRESET-seedSEED/{completions,results}/SUBJECT.json
    jailbreakbench  attack-artifacts/ATTACK-SET-PRESET-seedSEED/ACCESS/SUBJECT.json
    inspect         inspect/SUBJECT/ATTACK-SET-PRESET-seedSEED.eval

A format is one file with a function that writes it and one line in `EXPORTS`. Start reading in
common.py, which all of them use, then in tables.py. docs/exports.md is the page for users.
"""

from __future__ import annotations

from mosa.exports import harmbench, inspect_log, jailbreakbench, tables
from mosa.exports.common import REDACTED, Export, ExportSetting, safe_name
from mosa.exports.tables import NOT_JUDGED

EXPORTS: dict[str, Export] = {
    "csv": Export("tables of attempts and tasks", tables.write_csv),
    "json": Export(
        "one document with everything, tokens and commit steps included", tables.write_run
    ),
    "harmbench": Export("HarmBench's completions and results", harmbench.write),
    "jailbreakbench": Export("JailbreakBench artifacts", jailbreakbench.write),
    "inspect": Export("logs for Inspect's viewer (needs inspect-ai)", inspect_log.write),
}
"""Every export by name."""

__all__ = ["EXPORTS", "NOT_JUDGED", "REDACTED", "Export", "ExportSetting", "safe_name"]
