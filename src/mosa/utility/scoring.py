"""Scores of the tasks that compare more than an answer: generated code, and instructions.

HumanEval and MBPP (arXiv:2107.03374, 2108.07732): a response is right if the tests pass. Its code
is what comes before the closing fence; the prompt has opened the code block. (For MBPP lm_eval
0.4.13 differs: its pattern removes the first word of an answer of only code, and it leaves out
the set-up that task 367 needs.)

IFEval (arXiv:2311.07911): its own checks, as in lm_eval. Those that count sentences or words
in capitals need NLTK's `punkt_tab`, which lm_eval fetches from the network if it can; without it
their rows are unscored.
"""

from __future__ import annotations

import contextlib
import functools
import io
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mosa.types import UserError, Verdict
from mosa.utility.code_sandbox import run_program

TaskRow = Mapping[str, Any]

NOT_RUN = "generated code is run with --run_code alone"
NO_PUNKT = (
    "an instruction of this row is checked with nltk's punkt_tab, which is not there; "
    "`python -m nltk.downloader punkt_tab` fetches it"
)
NEEDS_PUNKT = ("length_constraints:number_sentences", "change_case:capital_word_frequency")
"""The instructions of IFEval that are checked with it."""
IFEVAL_METRICS = ("prompt_level_strict_acc", "prompt_level_loose_acc")
FENCE = "```"


def humaneval_program(row: TaskRow, response: str) -> str:
    """The completed function with its tests."""
    function = row["prompt"] + code_of(response)
    return f"{function}\n{row['test']}\ncheck({row['entry_point']})"


def mbpp_program(row: TaskRow, response: str) -> str:
    """The code with its tests, after the set-up that one task has."""
    tests = "\n".join((row["test_setup_code"], *row["test_list"]))
    return f"{code_of(response)}\n{tests}"


def run_tests(
    program: Callable[[TaskRow, str], str],
    row: TaskRow,
    responses: Sequence[str],
    *,
    run_code: bool,
) -> dict[str, Verdict]:
    """Whether the program that is made of the response passes its tests."""
    if not run_code:
        return {"pass@1": Verdict.unscored(NOT_RUN)}
    outcome = run_program(program(row, responses[0]))
    native = {"ended": outcome.detail, "isolation": outcome.isolation}
    return {"pass@1": Verdict(float(outcome.passed), outcome.passed, native)}


def ifeval(row: TaskRow, responses: Sequence[str]) -> dict[str, Verdict]:
    """Whether the response follows all instructions; loosely: also without its first or last line,
    or without asterisks."""
    check = _ifeval_check()
    if not set(NEEDS_PUNKT).isdisjoint(row["instruction_id_list"]) and not _has_punkt():
        return dict.fromkeys(IFEVAL_METRICS, Verdict.unscored(NO_PUNKT))
    # Where a row has a value unknown to a check (a letter that is "#"), the check draws one
    # at random; here the same for every model and run.
    state = random.getstate()
    random.seed(row["key"])
    values = check(row, responses)
    random.setstate(state)
    return {name: Verdict(float(values[name]), bool(values[name])) for name in IFEVAL_METRICS}


def code_of(response: str) -> str:
    """The code that a response begins with: all before the fence that closes its block."""
    return response.partition(FENCE)[0]


def mean_of_scored(values: Sequence[float | None]) -> float:
    """The mean of what is scored; NaN where nothing is."""
    scored = [value for value in values if value is not None]
    return sum(scored) / len(scored) if scored else float("nan")


@functools.cache
def _ifeval_check() -> Callable[..., dict[str, Any]]:
    """lm_eval's own check, which first tries to fetch `punkt_tab` if that is not there."""
    try:
        import langdetect  # pyright: ignore[reportMissingImports]

        with contextlib.redirect_stdout(io.StringIO()):  # it reports success in any case
            from lm_eval.tasks.ifeval import utils  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError as error:
        raise UserError(
            f"ifeval needs the package {error.name}; install mosa-dllm[eval]"
        ) from error
    langdetect.DetectorFactory.seed = 0  # by default it draws again for every text
    return utils.process_results


def _has_punkt() -> bool:
    import nltk  # pyright: ignore[reportMissingImports]

    try:
        nltk.data.find("tokenizers/punkt_tab")
    except LookupError:
        return False
    return True
