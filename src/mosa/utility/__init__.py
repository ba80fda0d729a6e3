"""What a model can still do: useful sets, which `mosa evaluate` runs beside the attacks.

On the testbed its own tasks (`testbed.py`); on other models those of lm-evaluation-harness
(`harness.py`, `lm.py`; the extra `eval`). Start reading in harness.py. docs/utility.md is the page
for users.
"""

from __future__ import annotations

from mosa.utility.authors_decoders import tasks_of
from mosa.utility.harness import DECODER, load_harness_set
from mosa.utility.harness_task import OWN_TASKS, is_task, local_tasks
from mosa.utility.testbed import TESTBED_TASKS, testbed_set

USEFUL_SETS = {
    **{f"testbed:{task}": title for task, title in TESTBED_TASKS.items()},
    **{name: task.title for name, task in OWN_TASKS.items()},
}
"""The useful sets that are known here, each with what it is in plain words; every other task of
lm_eval is one, too."""

__all__ = [
    "DECODER",
    "OWN_TASKS",
    "TESTBED_TASKS",
    "USEFUL_SETS",
    "is_task",
    "load_harness_set",
    "local_tasks",
    "tasks_of",
    "testbed_set",
]
