"""What a model can still do: useful sets, which `mosa evaluate` runs beside the attacks.

On the testbed its own tasks (`testbed.py`); on other models those of lm-evaluation-harness
(`harness.py`, `lm.py`; the extra `eval`). Start reading in harness.py. docs/utility.md is the page
for users.
"""

from __future__ import annotations

from pathlib import Path

from mosa.types import CaseSet, UserError
from mosa.utility.harness import load_harness_set
from mosa.utility.harness_task import OWN_TASKS, is_task, local_tasks
from mosa.utility.testbed import TESTBED_TASKS, testbed_set
from mosa.world import World

USEFUL_SETS = (*(f"testbed:{task}" for task in TESTBED_TASKS), *OWN_TASKS)
"""The useful sets that are known here; every other task of lm_eval is one, too."""

__all__ = ["OWN_TASKS", "TESTBED_TASKS", "USEFUL_SETS", "load_useful_set", "local_tasks"]


def load_useful_set(
    name: str,
    *,
    world: World | None = None,
    data_dir: Path | None = None,
    limit: int | None = None,
    num_fewshot: int | None = None,
    num_draws: int | None = None,
    run_code: bool = False,
) -> CaseSet | None:
    """A useful set by its name; None where no set has it.

    `world` is that of a testbed's model; the settings after `limit` are for tasks of lm_eval, as
    in `load_harness_set`. Raises UserError where the set cannot be had.
    """
    task = name.removeprefix("testbed:")
    if name != task and task in TESTBED_TASKS:
        if world is None:
            raise UserError(
                f"{name} asks about the testbed's world; use it with --model testbed, or leave it "
                "out"
            )
        return testbed_set(world, task, limit=limit)
    if name.partition(":")[0] == "testbed" or not is_task(name):
        return None
    return load_harness_set(
        name,
        data_dir=data_dir,
        limit=limit,
        num_fewshot=num_fewshot,
        num_draws=num_draws,
        run_code=run_code,
    )
