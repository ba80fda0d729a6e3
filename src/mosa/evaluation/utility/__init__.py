"""What a model is still good for: useful tasks, under the decoder of the attacks.

On the testbed its own tasks (`testbed.py`); on other models those of lm-evaluation-harness
(`harness.py`, `lm.py`; the extra `eval`). Start reading in run.py. docs/utility.md is the page for
users.
"""

from mosa.evaluation.utility.harness import OWN_TASKS, local_tasks
from mosa.evaluation.utility.results import UtilityLine, utility_lines
from mosa.evaluation.utility.run import (
    UtilityConfig,
    UtilityProgress,
    run_utility,
    utility_decoder,
)
from mosa.evaluation.utility.testbed import TESTBED_TASKS

__all__ = [
    "OWN_TASKS",
    "TESTBED_TASKS",
    "UtilityConfig",
    "UtilityLine",
    "UtilityProgress",
    "local_tasks",
    "run_utility",
    "utility_decoder",
    "utility_lines",
]
