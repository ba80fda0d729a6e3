"""Tasks of lm-evaluation-harness as sets of cases, from files and from a stand-in hub."""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import importlib.util
import json
import os
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from asking import Alone, Solved, scores, solve
from refusals import refuses
from utility_files import CHOICES, FUNCTIONS, PROGRAMS, hub_splits, subjects, write_files

from mosa.data import KNOWN_FILES
from mosa.denoising import DecoderConfig, sample
from mosa.families import DiffusionLM
from mosa.runs.evaluate import EvaluateConfig, run_evaluation
from mosa.runs.judging import judge_run
from mosa.runs.records import checksum
from mosa.runs.sets import SetOptions, load_sets
from mosa.runs.store import FILE, DamagedRun, Run
from mosa.runs.subject import subjects_of
from mosa.types import Message, dialogue
from mosa.utility import OWN_TASKS, is_task, local_tasks
from mosa.utility.authors_decoders import AUTHORS_DECODERS
from mosa.utility.harness import load_harness_set
from mosa.utility.harness_task import FOLDER, HarnessTask, _manager, find_task
from mosa.utility.prompts import SAME_TOKENS, pair_of, prompt_ids
from mosa.utility.scoring import NEEDS_PUNKT, NO_PUNKT, NOT_RUN, _has_punkt

pytestmark = pytest.mark.integration

lm_eval = pytest.importorskip("lm_eval")

from mosa.utility.lm import MosaLM  # noqa: E402, needs lm_eval

DECODER = DecoderConfig(max_new_tokens=8, steps=2)
on_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="runs on Linux alone")


@pytest.fixture
def files(tmp_path, monkeypatch) -> Path:
    return write_files(tmp_path / "data", monkeypatch)


@pytest.fixture(autouse=True)
def no_environment(monkeypatch) -> None:
    """simple_evaluate asks git, pip and drivers about the machine, which takes half a minute."""
    for name in ("add_env_info", "get_git_commit_hash"):
        monkeypatch.setattr(f"lm_eval.evaluator.{name}", lambda *args: None)


@pytest.fixture(scope="module")
def model(new_tiny_llada) -> DiffusionLM:
    """A tiny random model with room for worked examples."""
    return new_tiny_llada(max_sequence_length=4096)


def solved(
    model: DiffusionLM,
    name: str,
    data_dir: Path | None = None,
    answer: Callable[[str], str] | None = None,
    **settings: Any,
) -> tuple[Solved, Alone]:
    """Every case of a task, and what was asked; `answer` takes the model's place."""
    backend = Alone(model, answer)
    case_set = load_harness_set(name, data_dir=data_dir, **{"num_draws": 4, **settings})
    return solve(backend, case_set, DECODER), backend


# --- the settings ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def of_harness() -> Any:
    """The settings of lm_eval's own tasks, unread functions and all."""
    from lm_eval.tasks import TaskManager

    return TaskManager().task_index


SAME = (
    "output_type",
    "dataset_path",
    "test_split",
    "doc_to_text",
    "doc_to_target",
    "doc_to_choice",
)
SAME += ("gen_prefix", "generation_kwargs", "target_delimiter", "fewshot_split", "dataset_name")


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("gsm8k", "gsm8k"),
        ("mmlu", "mmlu_anatomy"),
        ("humaneval", "humaneval_instruct"),
        ("mbpp", "mbpp_instruct"),
        ("ifeval", "ifeval"),
    ],
)
def test_prompts_are_those_of_the_harness(of_harness, name, theirs):
    own = yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
    known = of_harness[theirs].cfg
    different = {key for key in SAME if own.get(key) != known.get(key)}
    assert different <= ({"dataset_name"} if name == "mmlu" else set())
    assert own["num_fewshot"] == (5 if name == "mmlu" else known["num_fewshot"])
    if name in ("gsm8k", "mmlu"):
        assert own["metric_list"] == known["metric_list"]
        assert own.get("filter_list") == known.get("filter_list")
    if name == "mmlu":
        assert own["description"].format(subject="anatomy") == known["description"]
        assert own["fewshot_config"] == known["fewshot_config"]
        there = {key.removeprefix("mmlu_") for key in of_harness if key.startswith("mmlu_")}
        assert set(own["subjects"]) <= there and len(own["subjects"]) == 57


def test_the_worked_examples_of_mbpp_are_those_of_the_harness():
    spec = importlib.util.find_spec("lm_eval")
    assert spec is not None and spec.origin is not None
    source = (Path(spec.origin).parent / "tasks" / "mbpp" / "utils.py").read_text()
    (function,) = [
        node
        for node in ast.parse(source).body
        if isinstance(node, ast.FunctionDef) and node.name == "list_fewshot_samples"
    ]
    returned = function.body[0]
    assert isinstance(returned, ast.Return) and returned.value is not None
    own = yaml.safe_load((FOLDER / "mbpp.yaml").read_text(encoding="utf-8"))
    assert own["fewshot_config"]["samples"] == ast.literal_eval(returned.value)


# --- each task, from files ------------------------------------------------------------------------


def test_gsm8k(model, files):
    """Strictly only what comes behind ####, flexibly the last number; shots from the training
    split, as turns."""

    def answer(prompt: str) -> str:
        number = int(prompt.rsplit("Ann has ", 1)[1].split()[0])
        return {
            0: "0 + 2.\n#### 2\n\nQuestion: What is 5?",  # cut before the next question
            1: "So she has 3",
            2: "So she has 5.\n#### 5",
        }[number]

    found, backend = solved(model, "gsm8k", files, answer)
    strict, flexible = "exact_match,strict-match", "exact_match,flexible-extract"
    assert list(scores(found, strict).values()) == [1.0, 0.0, 0.0]
    assert list(scores(found, flexible).values()) == [1.0, 1.0, 0.0]
    attempt, verdicts = found["0"]
    assert attempt.details == {"answers": [["0 + 2.\n#### 2\n\n"]]}
    assert attempt.response == "0 + 2.\n#### 2\n\n"
    assert found["1"][1][flexible].native == {"read": ["3"]}
    assert all(prompt.count("Question:") == 6 for prompt in backend.prompts)
    _, backend = solved(model, "gsm8k", files, answer, num_fewshot=0, limit=1)
    assert [prompt.count("Question:") for prompt in backend.prompts] == [1]


def test_mmlu(model, files):
    """Every subject, with its five examples; the value follows from the likelihoods, one piece of
    work for the four answers of a row."""
    found, backend = solved(model, "mmlu", files, limit=1)
    assert list(found) == [f"{subject}/0" for subject in subjects()]
    for attempt, verdicts in found.values():
        values = [value for ((value, _),) in attempt.details["answers"]]
        assert len(set(values)) == 4 and all(value < 0 for value in values)
        assert verdicts["acc,none"].score == float(values.index(max(values)) == 0)  # A is right
        assert attempt.responses == [] and attempt.budget.forward_passes == 1
    assert len(backend.works) == 57 and backend.queries == []
    words = model.decode(backend.works[subjects().index("anatomy")].state["prompt"])
    assert "The following are multiple choice questions (with answers) about anatomy" in words
    assert words.count("in anatomy?") == 6 and "in astronomy?" not in words


# --- the decoders of LLaDA's authors --------------------------------------------------------------


def test_the_table_of_decoders():
    """Every line is a decoder of a task that we have, with the figures of EVAL.md."""
    for (name, task), one in AUTHORS_DECODERS.items():
        assert (one.decoder, one.task) == (name, task) and task in OWN_TASKS and one.source
        decoder = DecoderConfig(**one.settings)
        assert decoder.steps == decoder.max_new_tokens >= (decoder.block_length or 0)
    figures = {t: one.figure for (n, t), one in AUTHORS_DECODERS.items() if n == "authors"}
    assert figures == {"gsm8k": 69.4, "mmlu": 65.5, "humaneval": 49.4, "mbpp": 41.0, "ifeval": None}


def test_a_task_is_asked_under_its_own_decoder(model, files):
    """Beside the same task under the subject's, whose other settings do not reach it."""
    options = SetOptions(data_dir=files, limit=1, decoder_of_task="authors", num_fewshot=0)
    shared, own = load_sets(("gsm8k",), None, options)
    assert (shared.name, own.name) == ("gsm8k", "gsm8k:authors")
    assert [case.id for case in shared.cases] == [case.id for case in own.cases]
    assert "decoder" not in shared.settings and own.settings["decoder"]["max_new_tokens"] == 512
    backend = Alone(model, lambda prompt: "#### 2")
    subject = dataclasses.replace(DECODER, threshold=0.5, seed=3, banned_token_ids=(7,))
    for case_set in (shared, own):
        found = solve(backend, case_set, subject)
        assert scores(found, "exact_match,flexible-extract") == {"0": 1.0}
    (_, first), (_, second) = backend.queries
    assert first == subject
    assert second == DecoderConfig(
        max_new_tokens=512,
        steps=512,
        block_length=512,
        end_tokens="suppress",
        seed=3,
        banned_token_ids=(7,),
    )


def test_mmlu_is_generated_where_the_authors_generate_it(model, files):
    """Of each subject's two questions the right letters are A and B; the first letter that stands
    by itself counts."""
    case_set = load_harness_set("mmlu:authors", data_dir=files, limit=2, num_fewshot=0)
    assert case_set.settings["decoder"]["steps"] == 3 and "num_draws" not in case_set.settings
    backend = Alone(model, lambda prompt: "Answer: B, not A")
    found = solve(backend, case_set, DECODER)
    assert not backend.works and len(backend.queries) == len(case_set.cases) == 114
    values = list(scores(found, case_set.headline).values())
    assert values == [0.0, 1.0] * 57
    long = dataclasses.replace(DECODER, max_new_tokens=4000, steps=4000)
    found = solve(backend, case_set, long)  # which its own decoder replaces
    assert None not in scores(found, case_set.headline).values()
    unread = solve(Alone(model, lambda prompt: "Both"), case_set, DECODER)
    assert set(scores(unread, case_set.headline).values()) == {0.0}


def test_own_decoders_name_what_they_lack(files):
    with refuses("mmlu:authors_1.5", "mmlu:authors"):
        load_harness_set("mmlu:authors_1.5", data_dir=files)
    with refuses("decoder_of_task", "ours", "authors"):
        load_sets(("gsm8k",), None, SetOptions(decoder_of_task="ours"))
    with refuses("decoder_of_task", "authors_blocks", "gsm8k"):
        load_sets(("mbpp",), None, SetOptions(decoder_of_task="authors_blocks"))


def test_answers_that_a_model_cannot_tell_apart_are_unscored(model, files, monkeypatch):
    """Else the first of equals would win, and the share of A's would be called accuracy."""
    encode = model.encode_text
    monkeypatch.setattr(
        model, "encode_text", lambda text: [5] if text in ("A", "B", "C", "D") else encode(text)
    )
    found, backend = solved(model, "mmlu", files, limit=1, num_fewshot=0)
    for attempt, verdicts in found.values():
        assert attempt.details["not_asked"] == SAME_TOKENS
        assert {name: v.reason for name, v in verdicts.items()} == {"acc,none": SAME_TOKENS}
    assert backend.works == []


@on_linux
def test_humaneval(model, files):
    solutions = [function["canonical_solution"] for function in FUNCTIONS]

    def answer(prompt: str) -> str:
        number = int(prompt.rsplit("def add_", 1)[1][0])
        return ("    return 0", f"{solutions[1]}```\nIt adds.", f"{solutions[2]}\ndef more(")[
            number
        ]

    found, backend = solved(model, "humaneval", files, answer, run_code=True)
    assert scores(found, "pass@1,none") == {
        f"HumanEval/{n}": value for n, value in enumerate((0.0, 1.0, 1.0))
    }
    assert found["HumanEval/0"][1]["pass@1,none"].native["ended"] == "AssertionError"
    assert all(
        prompt.endswith(f"Here is the completed function:\n```python\ndef add_{n}(x):\n\n")
        for n, prompt in enumerate(backend.prompts)
    )


@on_linux
def test_mbpp(model, files):
    programs = {p["task_id"]: p["code"] for p in PROGRAMS}

    def answer(prompt: str) -> str:
        number = int(prompt.rsplit("adds ", 1)[1].split(".")[0])
        return programs[number] + "\n```" if number != 12 else "def add(x):\n    return x\n```"

    found, backend = solved(model, "mbpp", files, answer, run_code=True)
    assert scores(found, "pass@1,none") == {"11": 1.0, "12": 0.0, "510": 1.0}
    assert all("similar_elements" in p and "heap queue" in p for p in backend.prompts)


def test_code_is_never_run_without_the_flag(model, files, monkeypatch):
    """It is asked for all the same; a set with the flag scores the same attempts later."""
    monkeypatch.setattr("mosa.utility.scoring.run_program", None)
    for name in ("humaneval", "mbpp"):
        found, _ = solved(model, name, files)
        assert {v.reason for _, verdicts in found.values() for v in verdicts.values()} == {NOT_RUN}
        assert all("answers" in attempt.details for attempt, _ in found.values())


@on_linux
def test_code_may_be_run_later(model, files):
    found, _ = solved(model, "humaneval", files, lambda prompt: "    return x + 1")
    later = load_harness_set("humaneval", data_dir=files, run_code=True)
    assert later.score is not None
    verdicts = [later.score(case, found[case.id][0])["pass@1,none"] for case in later.cases]
    assert [verdict.score for verdict in verdicts] == [0.0, 1.0, 0.0]


def test_ifeval(model, files, monkeypatch):
    monkeypatch.setattr("mosa.utility.scoring._has_punkt", lambda: False)
    strict, loose = "prompt_level_strict_acc,none", "prompt_level_loose_acc,none"
    found, _ = solved(
        model,
        "ifeval",
        files,
        lambda prompt: "**no, comma**" if "commas" in prompt else "I like to drink tea",
    )
    assert scores(found, strict) == {"7": 0.0, "8": 1.0, "9": None}
    assert found["9"][1][strict].reason == NO_PUNKT
    found, _ = solved(
        model,
        "ifeval",
        files,
        lambda prompt: "Sure, here it is:\nno comma here" if "commas" in prompt else "five",
    )
    # Loosely, the first line may be left out.
    assert (scores(found, strict)["7"], scores(found, loose)["7"]) == (0.0, 1.0)


@pytest.mark.skipif(
    importlib.util.find_spec("nltk") is None or _has_punkt(), reason="punkt_tab is there"
)
def test_no_other_instruction_needs_punkt():
    """Every instruction is checked; those that fail for want of the file are those listed."""
    from mosa.utility.scoring import _ifeval_check

    _ifeval_check()
    from lm_eval.tasks.ifeval.instructions_registry import INSTRUCTION_DICT

    needs = set()
    for name, kind in INSTRUCTION_DICT.items():
        instruction = kind(name)
        if "prompt_to_repeat" in instruction.get_instruction_args_keys():
            instruction.build_description(prompt_to_repeat="Write.")
        else:
            instruction.build_description()
        try:
            instruction.check_following("A line of text. And * another *, with TWO words.\n\nMore.")
        except LookupError as error:
            assert "punkt_tab" in str(error), name
            needs.add(name)
    assert needs == set(NEEDS_PUNKT)


def test_a_prompt_that_does_not_fit_is_unscored(tiny_llada, files):
    """Three examples are longer than its 512 tokens; nothing is cut off in silence, and no code is
    run to find out what is not scored."""
    found, backend = solved(tiny_llada, "mbpp", files, run_code=True)
    for attempt, verdicts in found.values():
        assert "512" in attempt.details["not_asked"]
        assert {name: v.reason for name, v in verdicts.items()} == {
            "pass@1,none": attempt.details["not_asked"]
        }
    assert backend.queries == []


def test_base_models_are_asked_in_plain_text(model, files, monkeypatch):
    tokenizer = model.tokenizer
    assert tokenizer is not None and model.has_turns
    case_set = load_harness_set("gsm8k", data_dir=files, num_fewshot=1, limit=1)
    backend = Alone(model, lambda prompt: "#### 2")
    before = solve(backend, case_set, DECODER)
    family = dataclasses.replace(model.family, template_tokens=("<|no_such|>",))
    monkeypatch.setattr(tokenizer, "chat_template", None)
    monkeypatch.setattr(model, "family", family)
    assert not model.has_turns
    assert before.keys() == solve(backend, case_set, DECODER).keys()
    turns, text = (query.prompt for query, _ in backend.queries)
    assert isinstance(text, str) and not isinstance(turns, str)
    assert text.count("Question:") == 2 and text.endswith("\nAnswer:")
    assert " ".join(turn.content for turn in dialogue(turns)).count("Question:") == 2
    with refuses("system prompt"):
        solve(backend, case_set, DECODER, system_prompt="Be kind.")


def test_a_system_prompt_comes_first(model, files):
    case_set = load_harness_set("gsm8k", data_dir=files, num_fewshot=1, limit=1)
    backend = Alone(model, lambda prompt: "#### 2")
    solve(backend, case_set, DECODER, system_prompt="Be kind.")
    ((query, _),) = backend.queries
    assert not isinstance(query.prompt, str) and query.prompt[0] == Message("system", "Be kind.")
    assert list(query.prompt_ids or ()) == model.encode(query.prompt)


def test_a_set_says_where_it_is_from_and_what_it_depends_on(files):
    case_set = load_harness_set("humaneval", data_dir=files)
    limits = {"seconds", "cpu_seconds", "memory_bytes", "file_bytes", "folder_bytes"}
    assert case_set.settings["limits"].keys() == limits
    assert case_set.settings.keys() == {"num_fewshot", "stop_strings", "config", "limits"}
    assert case_set.settings["stop_strings"] == ["\nclass", "\ndef", "\n#", "\nif", "\nprint"]
    assert (case_set.kind, case_set.headline) == ("useful", "pass@1,none")
    assert (case_set.file, case_set.known_as) == ("c.jsonl.gz", "humaneval")
    assert (case_set.licence, case_set.origin) == ("MIT", "openai/human-eval")
    bytes_ = (files / "c.jsonl.gz").read_bytes()
    assert case_set.sha256 == hashlib.sha256(bytes_).hexdigest()
    assert [case.id for case in case_set.cases] == [f"HumanEval/{n}" for n in range(3)]
    assert "def add_1(x):" in case_set.cases[1].text
    mmlu = load_harness_set("mmlu", data_dir=files, limit=1)
    assert (mmlu.sha256 or "").startswith(KNOWN_FILES["mmlu"].sha256_prefix)
    assert (mmlu.settings["num_draws"], mmlu.settings["num_fewshot"]) == (128, 5)
    assert len(mmlu.cases) == 57
    part = load_harness_set("gsm8k", data_dir=files, limit=2)
    whole = load_harness_set("gsm8k", data_dir=files)
    assert part == dataclasses.replace(whole, cases=whole.cases[:2], ask=part.ask, score=part.score)


@pytest.mark.parametrize(
    "details",
    [{"answers": "4"}, {"answers": [[]]}, {"answers": [[4]]}, {"not_asked": ["too long"]}],
)
def test_answers_that_no_attempt_has_are_damage(files, tmp_path, details):
    """A run whose record of an attempt was changed, right checksum and all."""
    options = SetOptions(data_dir=files, limit=1, num_fewshot=0)
    config = EvaluateConfig(subjects_of("testbed"), ("gsm8k",), ("direct",), options=options)
    run = run_evaluation(tmp_path / "run", config, is_judged=False)
    assert run is not None
    run.close()
    file = tmp_path / "run" / FILE
    with sqlite3.connect(file) as database:
        *columns, record = database.execute(
            "SELECT key, task, number, record FROM attempts"
        ).fetchone()
        text = json.dumps(json.loads(record) | {"details": details})
        database.execute(
            "UPDATE attempts SET record = ?, crc = ?", (text, checksum(*columns, text))
        )
    cases = load_harness_set("gsm8k", data_dir=files, limit=1, num_fewshot=0)
    with Run(tmp_path / "run") as run, refuses(file, columns[0], error=DamagedRun):
        judge_run(run, [], sets=[cases])


def test_without_the_published_bytes_a_file_is_none(files, monkeypatch):
    changed = (files / "b.jsonl").read_text().replace("Ann", "Bob")
    (files / "b.jsonl").write_text(changed)
    monkeypatch.setattr("datasets.load_dataset", _no_hub)
    with refuses("gsm8k", "MOSA_DATA"):
        load_harness_set("gsm8k", data_dir=files)


# --- the hub --------------------------------------------------------------------------------------


def _no_hub(*args: Any, **settings: Any) -> Any:
    raise ConnectionError("Couldn't reach the Hub")


@pytest.fixture
def hub(monkeypatch, tmp_path) -> Path:
    """A stand-in for the hub, and an empty folder of files."""
    import datasets

    def load(path: str, name: str | None = None, **settings: Any) -> Any:
        del settings
        rows = hub_splits(path, name)
        return {split: datasets.Dataset.from_list(list(r)) for split, r in rows.items()}

    monkeypatch.setattr("datasets.load_dataset", load)
    (tmp_path / "empty").mkdir()
    return tmp_path / "empty"


@pytest.mark.parametrize("name", OWN_TASKS)
def test_without_files_the_same_task_comes_from_the_hub(model, files, hub, name):
    """The same prompts, so the same responses, and the same values."""
    limit = 1 if name == "mmlu" else None
    local, remote = (solved(model, name, folder, limit=limit)[0] for folder in (files, hub))
    assert local == remote
    from_files, from_hub = (load_harness_set(name, data_dir=f, limit=limit) for f in (files, hub))
    assert from_files.settings == from_hub.settings and from_files.cases == from_hub.cases
    assert from_files.content_hash == from_hub.content_hash
    assert from_hub.known_as is None and from_hub.sha256 is None
    assert (from_hub.origin or "").startswith("hub: ")


def test_any_task_of_the_harness_can_be_asked(model, hub):
    """Several answers of several tokens, compared by their bound, with metrics of its own."""
    found, backend = solved(model, "arc_easy", hub)
    assert {frozenset(verdicts) for _, verdicts in found.values()} == {
        frozenset(("acc,none", "acc_norm,none"))
    }
    for number in range(3):
        attempt, verdicts = found[str(number)]
        values = [value for ((value, _),) in attempt.details["answers"]]
        assert verdicts["acc,none"].score == float(values.index(max(values)) == number)
    assert [work.state["num_draws"] for work in backend.works] == [4] * 3
    assert not any(work.state["greedy"] for work in backend.works)
    case_set = load_harness_set("arc_easy", limit=1)
    assert (case_set.headline, case_set.origin) == ("acc,none", "hub: allenai/ai2_arc")
    assert is_task("arc_easy") and not is_task("gsm9k")


@pytest.mark.parametrize(
    ("name", "settings", "names"),
    [
        ("gsm9k", {}, ("gsm9k",)),
        ("humaneval_plus", {}, ("humaneval_plus", "sandbox")),
        ("wikitext", {}, ("wikitext", "perplexity")),
        ("humaneval", {"num_fewshot": 2}, ("humaneval", "--num_fewshot")),
        ("arc_easy", {}, ("arc_easy", "Hub")),
        ("gsm8k", {}, ("gsm8k", "mosa data get gsm8k_train gsm8k_test")),
        ("mmlu", {}, ("mmlu", "github.com/HaeChan0305/MLILAB-FedLLM")),
        ("gsm8k", {"data_dir": Path("nowhere")}, ("folder nowhere",)),
    ],
)
def test_tasks_that_cannot_be_had(tmp_path, monkeypatch, name, settings, names):
    def load(path: str, *args: Any, **kwargs: Any) -> Any:
        import datasets

        if "wikitext" not in path and "humaneval" not in path:
            return _no_hub()
        row = {"page": "Some text.", "prompt": "", "test": "", "entry_point": ""}
        return dict.fromkeys(("train", "validation", "test"), datasets.Dataset.from_list([row]))

    monkeypatch.setattr("datasets.load_dataset", load)
    monkeypatch.setenv("MOSA_DATA", str(tmp_path))
    with refuses(*names):
        load_harness_set(name, **settings)


# --- against the harness itself -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "with_turns"),
    [
        *((name, True) for name in (*OWN_TASKS, "arc_easy", "lambada_openai")),
        ("gsm8k", False),
        ("arc_easy", False),
    ],
)
def test_prompts_answers_and_scores_are_those_of_simple_evaluate(
    model, files, hub, monkeypatch, name, with_turns
):
    """Row by row: what is asked, what comes back, and what it is worth, with and without a chat
    template."""
    if not with_turns:
        family = dataclasses.replace(model.family, template_tokens=("<|no_such|>",))
        monkeypatch.setattr(model.tokenizer, "chat_template", None)
        monkeypatch.setattr(model, "family", family)
    folder = files if name in OWN_TASKS else hub
    limit = 1 if name == "mmlu" else 2
    task = find_task(name, data_dir=folder, num_fewshot=None, run_code=False)
    theirs = lm_eval.simple_evaluate(
        model=MosaLM(model, DECODER, num_draws=4),
        tasks=list(task.parts),
        limit=limit,
        apply_chat_template=with_turns,
        bootstrap_iters=0,
        task_manager=_manager(include_defaults=False),  # its own takes seconds to read
    )
    ours, backend = solved(model, name, folder, limit=limit)
    assert_same(task, theirs, ours)
    asked: dict[str, list[Any]] = {}
    for part in task.parts:
        for row in theirs["samples"][part.task_name]:
            asked[task.case_id(part, row["doc"], row["doc_id"])] = row["arguments"]
    if task.asks_likelihoods:
        pairs = [pair_of(model, *words) for group in asked.values() for words in group]
        assert pairs == [
            (tuple(work.state["prompt"]), tuple(answer))
            for work in backend.works
            for answer in work.state["answers"]
        ]
    else:
        prompts = [prompt_ids(model, words[0]) for group in asked.values() for words in group]
        assert [ids for ids, _ in prompts] == [query.prompt_ids for query, _ in backend.queries]
        assert [words for _, words in prompts] == [query.prompt for query, _ in backend.queries]


def assert_same(task: HarnessTask, theirs: Any, ours: Solved) -> None:
    """The answers and the scores of `lm_eval.simple_evaluate` are those of the cases."""
    num_compared = 0
    for part in task.parts:
        for row in theirs["samples"][part.task_name]:
            attempt, verdicts = ours[task.case_id(part, row["doc"], row["doc_id"])]
            answers = attempt.details["answers"]
            if part.OUTPUT_TYPE == "generate_until":
                assert row["resps"] == answers
            else:
                values = [value for ((value, _),) in answers]
                expected = [value for ((value, _),) in row["resps"]]
                assert values == pytest.approx(expected, abs=1e-4)
                assert [g for ((_, g),) in answers] == [
                    g and task.checks_greedy for ((_, g),) in row["resps"]
                ]
            for metric in row["metrics"]:
                verdict = verdicts.get(f"{metric},{row['filter']}")
                if verdict is not None:
                    assert verdict.score == row[metric]
                    num_compared += 1
    assert num_compared >= len(ours) > 0


def test_repeats_are_other_tries_as_in_simple_evaluate(model, files, monkeypatch):
    """A request that the harness repeats is asked with seeds of its own, and rows with one prompt
    are not."""
    decoder = dataclasses.replace(DECODER, temperature=1.0, seed=7)

    def repeated(name: str, **settings: Any) -> HarnessTask:
        task = find_task(name, **settings)
        for part in task.parts:
            part.config.repeats = 3
        return task

    task = repeated("gsm8k", data_dir=files, num_fewshot=0, run_code=False)
    theirs = lm_eval.simple_evaluate(
        model=MosaLM(model, decoder),
        tasks=list(task.parts),
        limit=2,
        num_fewshot=0,
        apply_chat_template=True,
        bootstrap_iters=0,
        task_manager=_manager(include_defaults=False),
    )
    monkeypatch.setattr("mosa.utility.harness.find_task", repeated)
    backend = Alone(model)
    case_set = load_harness_set("gsm8k", data_dir=files, num_fewshot=0, limit=2)
    ours = solve(backend, case_set, decoder)
    assert_same(task, theirs, ours)
    assert [decoder.seed for _, decoder in backend.queries] == [7, 8, 9] * 2
    for attempt, _ in ours.values():
        ((*answers,),) = attempt.details["answers"]
        assert len(set(answers)) == 3 and attempt.budget.target_queries == 3


# --- the adapter itself ---------------------------------------------------------------------------


def test_simple_evaluate_takes_the_adapter_and_our_tasks(model, files):
    """As docs/utility.md shows it."""
    found = lm_eval.simple_evaluate(
        model=MosaLM(model, DECODER),
        tasks=local_tasks(["gsm8k"], files),
        apply_chat_template=True,
        bootstrap_iters=0,
    )
    assert found["results"]["gsm8k"]["exact_match,strict-match"] == 0.0
    with refuses("arc_easy"):
        local_tasks(["arc_easy"])


@dataclasses.dataclass
class Request:
    """As much of the harness's own as the adapter reads."""

    args: tuple[Any, ...]
    task_name: str = "t"
    doc_id: int = 0


def test_what_the_adapter_refuses(tiny_llada):
    lm = MosaLM(tiny_llada, DECODER, num_draws=2)
    with refuses("perplexity"):
        lm.loglikelihood_rolling([Request(("text",))])
    for settings in ({"do_sample": True}, {"temperature": 0.7}):
        with refuses("temperature"):
            lm.generate_until([Request(("make", settings))])
    with refuses("row 0", "t", "512"):
        lm.generate_until([Request(("tea " * 600, {}))])
    with refuses("row 0", "t", "answers"):
        lm.loglikelihood([Request(("make", " tea")), Request(("make ", "tea"))])
    with refuses("batch_size"):
        MosaLM(tiny_llada, batch_size=0)
    assert (lm.rank, lm.world_size) == (0, 1)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_what_the_adapter_says_does_not_depend_on_the_batch(tiny_llada, temperature):
    decoder = dataclasses.replace(DECODER, temperature=temperature)
    words = ("make tea", "Tell me a story about a friendly robot.", "Step 1:", "make tea")
    requests = [Request((text, {}), doc_id=n) for n, text in enumerate(words)]
    found = [MosaLM(tiny_llada, decoder, batch_size=n).generate_until(requests) for n in (1, 2, 8)]
    assert found[0] == found[1] == found[2]
    assert found[0][0] == found[0][3] and len(set(found[0])) == 3


def test_greedy_answers_are_told_where_they_are_asked_for(tiny_llada):
    prompt = tiny_llada.encode_text("make")
    result = sample(tiny_llada, torch.tensor([prompt]), DecoderConfig(max_new_tokens=1, steps=1))
    text = tiny_llada.decode(result.tokens[0])
    requests = [Request(("make", text)), Request(("make", " tea"), doc_id=1)]
    found = MosaLM(tiny_llada, DECODER).loglikelihood(requests)
    is_read_back = tiny_llada.encode_text(text) == result.tokens[0].tolist()
    assert [greedy for _, greedy in found] == [is_read_back, False]
    assert found[0][0] > found[1][0]
    quick = MosaLM(tiny_llada, DECODER, checks_greedy=False).loglikelihood(requests)
    assert [greedy for _, greedy in quick] == [False, False]
    assert [value for value, _ in quick] == pytest.approx([value for value, _ in found], abs=1e-4)


# --- the published files --------------------------------------------------------------------------


def _published() -> Path | None:
    """Where MOSA_DATA says, or beside the repository."""
    beside = Path(__file__).parents[3] / "shared" / "data"
    folder = Path(os.environ["MOSA_DATA"]) if "MOSA_DATA" in os.environ else beside
    return folder if folder.is_dir() else None


@pytest.mark.skipif(_published() is None, reason="the published files do not travel with mosa")
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] if n == "mmlu" else []) for n in OWN_TASKS],
)
def test_the_published_files(model, name):
    """Each is found, has the rows that are known of it, and can be asked."""
    known = [KNOWN_FILES[file] for file in OWN_TASKS[name].files]
    whole = load_harness_set(name, data_dir=_published(), num_draws=1)
    assert whole.known_as == ", ".join(OWN_TASKS[name].files)
    examples = {"gsm8k": 7473, "mmlu": 285, "mbpp": 474}.get(name, 0)
    assert len(whole.cases) + examples == sum(entry.num_rows for entry in known)
    assert len({case.id for case in whole.cases}) == len(whole.cases)
    few = load_harness_set(name, data_dir=_published(), num_draws=1, limit=2)
    few = dataclasses.replace(few, cases=few.cases[:4])
    found = solve(Alone(model), few, DECODER)
    reasons = {v.reason for _, verdicts in found.values() for v in verdicts.values()}
    assert reasons <= {"", NOT_RUN, NO_PUNKT}


def test_made_up_choices_are_of_several_tokens(model):
    """What the bound of several tokens is tested with above."""
    assert all(len(model.encode_text(f" {choice}")) > 1 for choice in CHOICES)
