"""Tasks of lm-evaluation-harness through its own code, from files and from a stand-in hub."""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import itertools
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from stand_ins import PowerCutError
from utility_files import CHOICES, FUNCTIONS, PROGRAMS, hub_splits, subjects, write_files

from mosa.data import KNOWN_FILES
from mosa.data.registry import KNOWN_FOLDERS
from mosa.denoising import DecoderConfig
from mosa.evaluation.engine import LocalResponder
from mosa.evaluation.store import Measurement, Store
from mosa.utility import OWN_TASKS, UtilityConfig, local_tasks, run_utility
from mosa.utility import answers as answers_module
from mosa.utility.answers import Answerer
from mosa.utility.harness import FOLDER, has_turns, plan_task, score_task
from mosa.utility.scoring import NEEDS_PUNKT, NO_PUNKT, NOT_RUN, _has_punkt
from mosa.families import DiffusionLM
from mosa.types import Response, UserError, prompt_turns

lm_eval = pytest.importorskip("lm_eval")

DECODER = DecoderConfig(max_new_tokens=8, steps=2)
on_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="runs on Linux alone")


@pytest.fixture
def files(tmp_path, monkeypatch) -> Path:
    return write_files(tmp_path / "data", monkeypatch)


@pytest.fixture(scope="module")
def model(new_tiny_llada) -> DiffusionLM:
    """A tiny random model with room for worked examples."""
    return new_tiny_llada(max_sequence_length=4096)


@pytest.fixture(scope="module")
def model_folder(model, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    model.save(folder)
    return str(folder)


@pytest.fixture
def answering(monkeypatch) -> Callable[[Callable[[str], str]], list[str]]:
    """Puts a function from prompt to response in the model's place; gives the prompts asked."""

    def install(answer: Callable[[str], str]) -> list[str]:
        asked: list[str] = []

        def respond(self: Any, rows: Sequence[Any]) -> list[Response]:
            del self
            found = []
            for row in rows:
                turns = prompt_turns(row.prompt)
                asked.append(" ".join(turn["content"] for turn in turns))
                text = answer(asked[-1])
                found.append(Response(row.key, turns, text, text))
            return found

        monkeypatch.setattr(LocalResponder, "respond", respond)
        return asked

    return install


def scored(
    model: DiffusionLM, name: str, data_dir: Path | None = None, **settings: Any
) -> dict[tuple[str, str], Measurement]:
    """The measurements of a task by metric and case."""
    limit = settings.pop("limit", None)
    task = plan_task(
        name, data_dir=data_dir, **{"num_fewshot": None, "run_code": False, **settings}
    )
    answerer = Answerer(model, DECODER, batch_size=8, num_draws=4)
    found = score_task(task, answerer, model_name="m", limit=limit).measurements
    return {(m.metric, m.case): m for m in found}


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


def test_gsm8k(model, files, answering):
    """Strictly only what stands behind ####, flexibly the last number; shots from the training
    split, as turns."""

    def answer(prompt: str) -> str:
        number = int(prompt.rsplit("Ann has ", 1)[1].split()[0])
        return {
            0: "0 + 2.\n#### 2\n\nQuestion: What is 5?",  # cut before the next question
            1: "So she has 3",
            2: "So she has 5.\n#### 5",
        }[number]

    asked = answering(answer)
    found = scored(model, "gsm8k", files)
    strict, flexible = "exact_match,strict-match", "exact_match,flexible-extract"
    assert [found[strict, c].value for c in "012"] == [1.0, 0.0, 0.0]
    assert [found[flexible, c].value for c in "012"] == [1.0, 1.0, 0.0]
    assert found[flexible, "1"].details["read"] == ["3"]
    assert all(prompt.count("Question:") == 6 for prompt in asked)
    asked.clear()
    scored(model, "gsm8k", files, num_fewshot=0, limit=1)
    assert [prompt.count("Question:") for prompt in asked] == [1]


def test_mmlu(model, files):
    """Every subject, with its five examples; the value follows from the likelihoods."""
    found = scored(model, "mmlu", files, limit=1)
    assert {case for _, case in found} == {f"{subject}/0" for subject in subjects()}
    for m in found.values():
        values = [value for value, _ in m.details["read"]]
        assert len(set(values)) == 4 and all(value < 0 for value in values)
        assert m.value == float(values.index(max(values)) == 0)  # row 0 has the answer A
    task = plan_task("mmlu", data_dir=files, num_fewshot=None, run_code=False)
    part = task.parts[subjects().index("anatomy")]
    part.set_fewshot_seed(0)
    prompt = part.fewshot_context(part.eval_docs[0], 5)
    assert prompt.startswith("The following are multiple choice questions (with answers) about ana")
    assert prompt.count("in anatomy?") == 6 and "in astronomy?" not in prompt


def test_answers_that_a_model_cannot_tell_apart_are_unscored(model, files, monkeypatch):
    """Else the first of equals would win, and the share of A's would be called accuracy."""
    encode = model.encode_text
    monkeypatch.setattr(
        model, "encode_text", lambda text: [5] if text in ("A", "B", "C", "D") else encode(text)
    )
    found = scored(model, "mmlu", files, limit=1, num_fewshot=0)
    assert {m.value for m in found.values()} == {None}
    assert {m.reason for m in found.values()} == {
        "two of the answers are the same tokens to this model"
    }


@on_linux
def test_humaneval(model, files, answering):
    solutions = [function["canonical_solution"] for function in FUNCTIONS]

    def answer(prompt: str) -> str:
        number = int(prompt.rsplit("def add_", 1)[1][0])
        return ("    return 0", f"{solutions[1]}```\nIt adds.", f"{solutions[2]}\ndef more(")[
            number
        ]

    asked = answering(answer)
    found = scored(model, "humaneval", files, run_code=True)
    assert [found["pass@1,none", f"HumanEval/{n}"].value for n in range(3)] == [0.0, 1.0, 1.0]
    assert found["pass@1,none", "HumanEval/0"].details["ended"] == "AssertionError"
    assert all(p.endswith("Here is the completed function:\n```python\ndef add_"
                          f"{n}(x):\n\n") for n, p in enumerate(sorted(asked)))  # fmt: skip


@on_linux
def test_mbpp(model, files, answering):
    programs = {p["task_id"]: p["code"] for p in PROGRAMS}

    def answer(prompt: str) -> str:
        number = int(prompt.rsplit("adds ", 1)[1].split(".")[0])
        return programs[number] + "\n```" if number != 12 else "def add(x):\n    return x\n```"

    asked = answering(answer)
    found = scored(model, "mbpp", files, run_code=True)
    assert {case: m.value for (_, case), m in found.items()} == {"11": 1.0, "12": 0.0, "510": 1.0}
    assert all("similar_elements" in prompt and "heap queue" in prompt for prompt in asked)


def test_code_is_never_run_without_the_flag(model, files, monkeypatch):
    monkeypatch.setattr("mosa.utility.scoring.run_program", None)
    for name in ("humaneval", "mbpp"):
        found = scored(model, name, files)
        assert {(m.value, m.reason) for m in found.values()} == {(None, NOT_RUN)}
        assert all(m.details["answers"] for m in found.values()), "it was answered all the same"


def test_ifeval(model, files, answering, monkeypatch):
    monkeypatch.setattr("mosa.utility.scoring._has_punkt", lambda: False)
    answering(lambda prompt: "**no, comma**" if "commas" in prompt else "I like to drink tea")
    found = scored(model, "ifeval", files)
    strict = "prompt_level_strict_acc,none"
    assert [found[strict, key].value for key in "78"] == [0.0, 1.0]
    assert (found[strict, "9"].value, found[strict, "9"].reason) == (None, NO_PUNKT)
    answering(lambda prompt: "Sure, here it is:\nno comma here" if "commas" in prompt else "five")
    found = scored(model, "ifeval", files)
    # Loosely, the first line may be left out.
    assert found[strict, "7"].value == 0.0
    assert found["prompt_level_loose_acc,none", "7"].value == 1.0


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
    """Three examples are longer than its 512 tokens; nothing is cut off in silence."""
    found = scored(tiny_llada, "mbpp", files)
    assert {m.value for m in found.values()} == {None}
    assert "more tokens than the model's context, 512" in next(iter(found.values())).reason


def test_base_models_are_asked_in_plain_text(model, files, answering, monkeypatch):
    tokenizer = model.tokenizer
    assert tokenizer is not None and has_turns(model)
    family = dataclasses.replace(model.family, template_tokens=("<|no_such|>",))
    monkeypatch.setattr(tokenizer, "chat_template", None)
    monkeypatch.setattr(model, "family", family)
    assert not has_turns(model)
    asked = answering(lambda prompt: "#### 2")
    scored(model, "gsm8k", files, num_fewshot=1, limit=1)
    assert asked[0].count("Question:") == 2 and asked[0].endswith("\nAnswer:")


# --- whole runs -----------------------------------------------------------------------------------


def test_a_run_that_is_cut_off_goes_on(model_folder, files, tmp_path, monkeypatch):
    """The power goes within a task; nothing that was answered is asked again, and the figures are
    those of a run without. Both kinds of requests: generation and likelihoods."""
    config = UtilityConfig(
        model=model_folder,
        tasks=("gsm8k", "mmlu"),
        data_dir=files,
        limit=1,
        num_fewshot=0,
        batch_size=1,
    )
    with run_utility(tmp_path / "whole", config, DECODER) as store:
        whole = list(store.measurements())
        num_asked = store.sessions()[0]["models"]["tiny"]["num_answered"]
    assert len(whole) == 2 + 57 and num_asked == 1 + 57
    count = itertools.count()
    logits = answers_module.guided_logits

    def cut_off(*args: Any, **settings: Any) -> Any:
        if next(count) == 20:
            raise PowerCutError
        return logits(*args, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(answers_module, "guided_logits", cut_off)
        with pytest.raises(PowerCutError):
            run_utility(tmp_path / "cut", config, DECODER)
    with Store(tmp_path / "cut" / "utility") as store:
        assert {m.task for m in store.measurements()} == {"gsm8k"}
    with run_utility(tmp_path / "cut", config, DECODER) as store:
        tally = store.sessions()[1]["models"]["tiny"]
        assert (tally["num_recorded"], tally["num_answered"]) == (21, num_asked - 21)
        assert [(m.case, m.value) for m in store.measurements()] == [
            (m.case, m.value) for m in whole
        ]


@on_linux
def test_code_may_be_run_later(model_folder, files, tmp_path):
    """The responses are there; only the programs are run."""
    config = UtilityConfig(model=model_folder, tasks=("humaneval",), data_dir=files)
    with run_utility(tmp_path, config, DECODER) as store:
        assert {m.value for m in store.measurements()} == {None}
        assert store.meta("tasks")["humaneval"] | {"config": ""} == {
            "source": "files",
            "file": "humaneval",
            "sha256": KNOWN_FILES["humaneval"].sha256_prefix,
            "licence": "MIT",
            "origin": "openai/human-eval",
            "headline": "pass@1,none",
            "num_fewshot": 0,
            "stop_strings": ["\nclass", "\ndef", "\n#", "\nif", "\nprint"],
            "config": "",
            "limits": store.meta("tasks")["humaneval"]["limits"],
            "chat_template": True,
        }
    with run_utility(tmp_path, dataclasses.replace(config, run_code=True), DECODER) as store:
        assert {m.value for m in store.measurements()} == {0.0}
        assert store.sessions()[1]["models"]["tiny"]["num_answered"] == 0
        assert {"lm_eval", "datasets"} <= store.sessions()[1]["versions"].keys()


def test_other_settings_of_a_task_need_another_folder(model_folder, files, tmp_path, monkeypatch):
    config = UtilityConfig(model=model_folder, tasks=("gsm8k",), data_dir=files, limit=1)
    config = dataclasses.replace(config, num_fewshot=0)
    run_utility(tmp_path / "run", config, DECODER).close()
    with pytest.raises(UserError, match=r"gsm8k with other settings \(num_fewshot 0, not 1\)"):
        run_utility(tmp_path / "run", dataclasses.replace(config, num_fewshot=1), DECODER)
    other = write_files(tmp_path / "other", monkeypatch)
    (other / "b.jsonl").write_text((other / "b.jsonl").read_text().replace("Ann", "Bob"))
    changed = dataclasses.replace(config, data_dir=other)
    monkeypatch.setattr("datasets.load_dataset", _no_hub)
    with pytest.raises(UserError, match="no file under .*other has its bytes either"):
        run_utility(tmp_path / "run", changed, DECODER)


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
    limits = {"limit": 1} if name == "mmlu" else {}
    local, remote = (scored(model, name, folder, **limits) for folder in (files, hub))
    assert {key: m.value for key, m in local.items()} == {key: m.value for key, m in remote.items()}
    assert local == remote
    settings = [
        plan_task(name, data_dir=folder, num_fewshot=None, run_code=False).settings
        for folder in (files, hub)
    ]
    assert [s["source"] for s in settings] == ["files", "hub"]
    assert settings[0]["config"] == settings[1]["config"]
    assert len(settings[1]["sha256"]) == 16


def test_any_task_of_the_harness_can_be_asked(model, hub):
    """Several answers of several tokens, compared by their bound, with metrics of its own."""
    found = scored(model, "arc_easy", hub)
    assert {metric for metric, _ in found} == {"acc,none", "acc_norm,none"}
    for number in range(3):
        m = found["acc,none", str(number)]
        values = [value for value, _ in m.details["read"]]
        assert m.value == float(values.index(max(values)) == number)
    task = plan_task("arc_easy", data_dir=None, num_fewshot=None, run_code=False)
    assert (task.headline, task.settings["source"]) == ("acc,none", "hub")
    assert task.settings["origin"] == "allenai/ai2_arc" and not task.checks_greedy


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("gsm9k", {}, "there is no task gsm9k, here or in lm_eval; did you mean"),
        ("humaneval_plus", {}, "by lm_eval's own means, which are no sandbox"),
        ("wikitext", {}, "perplexity of running text, which is not defined for a diffusion model"),
        ("humaneval", {"num_fewshot": 2}, "humaneval is asked without examples"),
        ("arc_easy", {}, "the data of arc_easy cannot be had from the hub .Couldn't reach the Hub"),
        ("gsm8k", {}, "put copies of github.com/openai/grade-school-math: .*train.jsonl .* and"),
        ("mmlu", {}, "put copies of github.com/HaeChan0305/MLILAB-FedLLM: data/mmlu"),
        ("gsm8k", {"data_dir": Path("nowhere")}, "there is no folder nowhere"),
    ],
)
def test_tasks_that_cannot_be_had(tmp_path, monkeypatch, name, settings, message):
    def load(path: str, *args: Any, **kwargs: Any) -> Any:
        import datasets

        if "wikitext" not in path and "humaneval" not in path:
            return _no_hub()
        row = {"page": "Some text.", "prompt": "", "test": "", "entry_point": ""}
        return dict.fromkeys(("train", "validation", "test"), datasets.Dataset.from_list([row]))

    monkeypatch.setattr("datasets.load_dataset", load)
    monkeypatch.setenv("MOSA_DATA", str(tmp_path))
    given = {"data_dir": None, "num_fewshot": None, "run_code": False} | settings
    with pytest.raises(UserError, match=message):
        plan_task(name, **given)


# --- the adapter itself ---------------------------------------------------------------------------


def test_simple_evaluate_takes_the_adapter_and_our_tasks(model, files, answering):
    """As docs/utility.md shows it."""
    from mosa.utility.lm import MosaLM

    answering(lambda prompt: "#### 2")
    found = lm_eval.simple_evaluate(
        model=MosaLM(model, DECODER),
        tasks=local_tasks(["gsm8k"], files),
        apply_chat_template=True,
        bootstrap_iters=0,
    )
    assert found["results"]["gsm8k"]["exact_match,strict-match"] == pytest.approx(1 / 3)
    with pytest.raises(UserError, match="arc_easy is no task with data files"):
        local_tasks(["arc_easy"])


@dataclasses.dataclass
class Request:
    """As much of the harness's own as the adapter reads."""

    args: tuple[Any, ...]
    task_name: str = "t"
    doc_id: int = 0


def test_what_the_adapter_refuses(tiny_llada):
    from mosa.utility.lm import MosaLM

    lm = MosaLM(tiny_llada, DECODER, num_draws=2)
    with pytest.raises(UserError, match="not defined for a diffusion model"):
        lm.loglikelihood_rolling([Request(("text",))])
    for settings in ({"do_sample": True}, {"temperature": 0.7}):
        with pytest.raises(UserError, match="asks for draws and the decoder has temperature 0"):
            lm.generate_until([Request(("make", settings))])
    with pytest.raises(UserError, match="row 0 of t cannot be asked: the prompt and an answer"):
        lm.generate_until([Request(("tea " * 600, {}))])
    with pytest.raises(UserError, match="the same tokens"):
        same = [Request(("make", " tea")), Request(("make ", "tea"))]
        lm.loglikelihood(same)
    assert (lm.rank, lm.world_size) == (0, 1)


def test_repeats_are_other_tries_and_equal_rows_are_not(tiny_llada):
    """A request that the harness repeats gets another seed; two rows with one prompt do not."""
    from mosa.utility.lm import MosaLM

    lm = MosaLM(tiny_llada, dataclasses.replace(DECODER, temperature=1.0))
    first, second = Request(("make tea", {"do_sample": True})), Request(("make tea", {}), doc_id=1)
    a, b, c = lm.generate_until([first, first, second])
    assert a == c != b
    assert len(set(lm.keys["t", 0])) == 2 and lm.keys["t", 1] == lm.keys["t", 0][:1]


def test_greedy_answers_are_told_where_they_are_asked_for(tiny_llada):
    from mosa.utility.lm import MosaLM

    lm = MosaLM(tiny_llada, DECODER)
    ids = tuple(tiny_llada.encode_text("make"))
    (best,) = lm.answerer.greedy_answers([answers_module.Pair(ids, (0,))])
    text = tiny_llada.decode(best)
    requests = [Request(("make", text)), Request(("make", " tea"), doc_id=1)]
    found = lm.loglikelihood(requests)
    assert [greedy for _, greedy in found] == [tuple(tiny_llada.encode_text(text)) == best, False]
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
@pytest.mark.parametrize("name", OWN_TASKS)
def test_the_published_files(model, name):
    """Each is found, has the rows that are known of it, and can be asked."""
    known = [KNOWN_FOLDERS.get(file) or KNOWN_FILES[file] for file in OWN_TASKS[name].files]
    task = plan_task(name, data_dir=_published(), num_fewshot=None, run_code=False)
    assert task.settings["source"] == "files"
    num_rows = sum(len(part.eval_docs) for part in task.parts)
    examples = {"gsm8k": 7473, "mmlu": 285, "mbpp": 474}.get(name, 0)
    assert num_rows + examples == sum(entry.num_rows for entry in known)
    answerer = Answerer(model, DECODER, batch_size=8, num_draws=1)
    parts = task.parts[:2]
    found = score_task(
        dataclasses.replace(task, parts=parts), answerer, model_name="m", limit=2
    ).measurements
    assert len({m.case for m in found}) == 2 * len(parts)
    assert all(m.reason in ("", NOT_RUN, NO_PUNKT) for m in found), [m.reason for m in found]


def test_made_up_choices_are_of_several_tokens(model):
    """What the bound of several tokens is tested with above."""
    assert all(len(model.encode_text(f" {choice}")) > 1 for choice in CHOICES)
