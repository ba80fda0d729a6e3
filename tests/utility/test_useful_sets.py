"""Useful sets without lm_eval: prompts, likelihoods, scores, and the testbed's tasks."""

from __future__ import annotations

import dataclasses
import itertools
import math
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from asking import Alone, scores, solve
from peft import LoraConfig
from refusals import refuses

from mosa.denoising import DecoderConfig
from mosa.denoising.likelihood import log_likelihood_bound
from mosa.families import DiffusionLM, load_model
from mosa.runs.sets import SetOptions, load_sets
from mosa.testbed.measure import DECODER, measure
from mosa.types import Attempt, Message
from mosa.utility import TESTBED_TASKS, USEFUL_SETS
from mosa.utility.likelihoods import Pair, comparisons, likelihoods, pair_canvas
from mosa.utility.prompts import Dialogue, cut, pair_of, prompt_ids, stop_strings, too_long
from mosa.utility.scoring import (
    NOT_RUN,
    code_of,
    humaneval_program,
    mbpp_program,
    mean_of_scored,
    run_tests,
)
from mosa.utility.testbed import testbed_set as make_set
from mosa.world import World

pytestmark = pytest.mark.integration

WORLD = World(0)
NOISE = 0.1
QUICK = dataclasses.replace(DECODER, steps=12)
ATTEMPT = Attempt("k", "m", "s", "c", "direct", [], "", "")


def comparison(prompt, answers, decoder, **settings: Any) -> dict[str, Any]:
    """What a work on one prompt is asked."""
    pairs = [(prompt, answer) for answer in answers]
    (work,) = comparisons(pairs, decoder, together=1, **settings)
    return dict(work.state)


# --- prompts --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "stops", "left"),
    [
        ("one\ntwo", ["\n"], "one"),
        ("ab def class", ["class", "def"], "ab "),  # the first in the text, not in the list
        ("aab", ["ab", "b"], "a"),
        ("Q: no", ["Q:"], ""),
        ("nothing of it", ["Q:", ""], "nothing of it"),
        ("", ["x"], ""),
    ],
)
def test_stop_strings_cut_exactly(text, stops, left):
    assert cut(text, stops) == left


def test_stop_strings_may_be_one_or_many():
    assert stop_strings({"until": "\n"}) == ["\n"]
    assert stop_strings({"until": ["a", "b"]}) == ["a", "b"]
    assert stop_strings({}) == stop_strings({"until": None}) == []


def test_turns_keep_their_template_and_users_no_special_tokens(tiny_llada):
    """A special token that a benchmark spells out stays text; the template's are special."""
    turns = [{"role": "user", "content": "say <|eot_id|>"}]
    ids, prompt = prompt_ids(tiny_llada, Dialogue.of(turns))
    assert list(ids) == tiny_llada.encode("say <|eot_id|>")
    assert prompt == [Message("user", "say <|eot_id|>")]
    assert list(ids).count(tiny_llada.turn_end_token_id) == 1  # the template's own


def test_an_answer_that_is_begun_goes_on_behind_the_last_header(tiny_llada):
    turns = [{"role": "user", "content": "tea?"}, {"role": "assistant", "content": "Sure, "}]
    ids, prompt = prompt_ids(tiny_llada, Dialogue.of(turns))
    assert list(ids) == tiny_llada.encode("tea?") + tiny_llada.encode_text("Sure, ")
    assert prompt[-1] == Message("assistant", "Sure, ")


def test_a_system_prompt_comes_before_the_turns(tiny_llada):
    turns = [{"role": "user", "content": "tea?"}]
    said = [Message("system", "Be kind."), Message("user", "tea?")]
    assert prompt_ids(tiny_llada, Dialogue.of(turns), "Be kind.") == (
        tuple(tiny_llada.encode(said)),
        said,
    )
    prompt, _ = pair_of(tiny_llada, Dialogue.of(turns), " yes", "Be kind.")
    assert list(prompt) == tiny_llada.encode(said)


def test_text_without_turns_goes_as_it_is(tiny_llada):
    ids, prompt = prompt_ids(tiny_llada, "make tea")
    assert (list(ids), prompt) == (tiny_llada.encode_text("make tea"), "make tea")
    assert prompt_ids(tiny_llada, "")[0] == (tiny_llada.tokenizer.bos_token_id,)


def test_prompt_and_answer_are_cut_where_the_answer_begins(tiny_llada):
    """Blanks at the prompt's end belong to the answer, as its first token is read with them."""
    expected = (
        tuple(tiny_llada.encode_text("make")),
        tuple(tiny_llada.encode_text(" tea. Step")),
    )
    assert pair_of(tiny_llada, "make", " tea. Step") == expected
    assert pair_of(tiny_llada, "make ", "tea. Step") == expected
    dialogue = Dialogue.of([{"role": "user", "content": "make"}])
    pair = pair_of(tiny_llada, dialogue, "tea")
    assert pair == (tuple(tiny_llada.encode("make")), tuple(tiny_llada.encode_text("tea")))
    with refuses("answer"):
        pair_of(tiny_llada, "make", "")


def test_a_prompt_fits_up_to_the_last_token(tiny_llada):
    assert too_long(tiny_llada, 500, 12) == ""
    assert "512" in too_long(tiny_llada, 501, 12)


# --- likelihoods ----------------------------------------------------------------------------------

PROMPTS = ("make tea", "Tell me a story about a friendly robot.", "Step 1:", "help")


def found(
    model: DiffusionLM, pairs: list[Pair], *, num_draws: int = 16, cfg_scale: float = 0.0
) -> list[float]:
    """The log-likelihoods of the pairs, all asked for in one call."""
    decoder = DecoderConfig(cfg_scale=cfg_scale)
    states = [
        comparison(prompt, [answer], decoder, num_draws=num_draws, greedy=False)
        for prompt, answer in pairs
    ]
    return [outcome["log_likelihoods"][0] for outcome in likelihoods(model, states)]


@pytest.mark.parametrize("name", ["tiny_llada", "tiny_dream"])
def test_a_single_token_has_its_exact_probability(request, name):
    """Whatever the number of draws, and whatever comes beside it in the batch."""
    model = request.getfixturevalue(name)
    prompts = [tuple(model.encode_text(text)) for text in PROMPTS[:3]]
    pairs = [(ids, (token,)) for ids in prompts for token in (70, 81, 92)]
    values = found(model, [*pairs, (prompts[0], (70, 81))])
    for (prompt, (token,)), value in zip(pairs, values, strict=False):
        with torch.no_grad():
            logits = model.logits(torch.tensor([[*prompt, model.mask_token_id]]))[0, -1]
        assert value == pytest.approx(float(logits.log_softmax(-1)[token]), abs=1e-4)


@pytest.mark.parametrize("cfg_scale", [0.0, 0.5])
def test_single_tokens_are_what_the_bound_says_of_them(tiny_llada, cfg_scale):
    """With guidance too; they take another way, in which answers of one prompt share a canvas."""
    prompts = [tuple(tiny_llada.encode_text(text)) for text in PROMPTS[:3]]
    pairs: list[Pair] = [(prompts[n % 3], (70 + n,)) for n in range(7)]
    bound = log_likelihood_bound(
        tiny_llada, pair_canvas(tiny_llada, pairs), num_samples=1, cfg_scale=cfg_scale
    )
    values = found(tiny_llada, pairs, cfg_scale=cfg_scale)
    assert values == pytest.approx(bound.mean.tolist(), abs=1e-4)


def test_a_longer_answer_has_the_bound(tiny_llada):
    """Against the sum over all maskings of two tokens: each of the counts 1 and 2 is as likely, and
    weighs n/count times the log-probabilities of what is masked."""
    prompt, answer = tiny_llada.encode_text("make"), (70, 81)
    mask = tiny_llada.mask_token_id

    def log_prob(shown: tuple[int, int], place: int) -> float:
        with torch.no_grad():
            logits = tiny_llada.logits(torch.tensor([[*prompt, *shown]]))[0, len(prompt) + place]
        return float(logits.log_softmax(-1)[answer[place]])

    one = (log_prob((mask, answer[1]), 0) + log_prob((answer[0], mask), 1)) / 2 * (2 / 1)
    both = (log_prob((mask, mask), 0) + log_prob((mask, mask), 1)) * (2 / 2)
    exact = (one + both) / 2
    (value,) = found(tiny_llada, [(tuple(prompt), answer)], num_draws=2000)
    # Half of the draws mask one token, so that chance is about which of the two: the mean of 1000
    # such draws, weighing 2/1, is off by `spread / sqrt(1000)`, and counts for half.
    spread = abs(log_prob((mask, answer[1]), 0) - log_prob((answer[0], mask), 1))
    error = spread / math.sqrt(1000) / 2
    assert value == pytest.approx(exact, abs=3 * error)
    assert abs(one - exact) > 4 * error and abs(both - exact) > 4 * error


def test_likelihoods_do_not_depend_on_what_is_asked_beside_them(tiny_llada):
    """Answers of one to four tokens, one prompt at a time, all at once, and with other settings
    among them."""
    prompts = [tuple(tiny_llada.encode_text(text)) for text in PROMPTS]
    answers = [(70, 81, 92, 65)[:n] for n in (1, 2, 4)]
    alone = [found(tiny_llada, [pair])[0] for pair in itertools.product(prompts, answers)]
    states = [
        comparison(prompt, answers, DecoderConfig(), num_draws=16, greedy=False)
        for prompt in prompts
    ]
    other = comparison(prompts[0], answers, DecoderConfig(seed=1), num_draws=4, greedy=True)
    together = likelihoods(tiny_llada, [*states, other, *states])
    values = [value for outcome in together for value in outcome["log_likelihoods"]]
    assert values[:12] == values[15:] == pytest.approx(alone, abs=1e-4)
    assert values[12] == pytest.approx(values[0], abs=1e-4)  # exact, whatever the seed
    assert abs(values[13] - values[1]) > 1e-4
    # One canvas for the single token, and 16 for each longer answer.
    assert together[0]["forward_passes"] == 1 + 2 * 16
    assert together[4]["forward_passes"] == 1 + 2 * 4 + (1 + 2 + 4)


def test_the_greedy_answer_is_filled_from_the_surest_place_on(tiny_llada):
    """Against the loop written out: at each step the likeliest token at the surest mask."""
    prompt = tiny_llada.encode_text("make tea")
    row = [*prompt, *[tiny_llada.mask_token_id] * 4]
    for _ in range(4):
        with torch.no_grad():
            probs = tiny_llada.logits(torch.tensor([row]))[0].softmax(-1)
        best = max(
            (i for i, id in enumerate(row) if id == tiny_llada.mask_token_id),
            key=lambda i: float(probs[i].max()),
        )
        probs[best, tiny_llada.mask_token_id] = 0
        row[best] = int(probs[best].argmax())
    wanted = tuple(row[len(prompt) :])
    answers = [wanted, (1, 2, 3, 4), (1, 2)]
    state = comparison(tuple(prompt), answers, DecoderConfig(), num_draws=1, greedy=True)
    (outcome,) = likelihoods(tiny_llada, [state])
    assert outcome["is_greedy"] == [True, False, False]


def test_work_can_travel_to_another_process(tiny_llada):
    state = comparison((1, 2), [(3,)], DecoderConfig(), num_draws=1, greedy=False)
    assert pickle.loads(pickle.dumps((likelihoods, state))) == (likelihoods, state)


# --- scores ---------------------------------------------------------------------------------------

ADD = {
    "task_id": "HumanEval/0",
    "prompt": "def add(x, y):\n",
    "entry_point": "add",
    "test": "def check(f):\n    assert f(1, 2) == 3\n",
}


def test_code_is_what_comes_before_the_fence():
    assert code_of("    return x + y\n```\nThis adds.") == "    return x + y\n"
    assert code_of("    return x + y") == "    return x + y"


def test_code_is_run_with_the_flag_alone(monkeypatch):
    """Without it nothing is started, and the row is unscored for that reason."""
    monkeypatch.setattr("mosa.utility.code_sandbox.subprocess.Popen", None)
    verdicts = run_tests(humaneval_program, ADD, ["    return x + y"], run_code=False)
    assert {name: (v.score, v.reason) for name, v in verdicts.items()} == {
        "pass@1": (None, NOT_RUN)
    }


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="code is run on Linux alone")
def test_functions_are_tested():
    right = run_tests(humaneval_program, ADD, ["    return x + y\n```\n"], run_code=True)["pass@1"]
    assert (right.score, right.success, right.native["ended"]) == (1.0, True, "")
    assert right.native["isolation"] in ("namespaces", "python")
    wrong = run_tests(humaneval_program, ADD, ["    return x - y\n"], run_code=True)["pass@1"]
    assert (wrong.score, wrong.success, wrong.native["ended"]) == (0.0, False, "AssertionError")
    task = {"task_id": 7, "test_setup_code": "two = 2", "test_list": ["assert f(two) == 3"]}
    for response, value in (("def f(x):\n    return x + 1\n```", 1.0), ("", 0.0)):
        assert run_tests(mbpp_program, task, [response], run_code=True)["pass@1"].score == value


def test_the_mean_leaves_out_what_is_unscored():
    assert mean_of_scored([1.0, None, 0.0]) == 0.5
    assert math.isnan(mean_of_scored([None]))


# --- the testbed's sets ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def worse(tmp_path_factory) -> Path:
    """An adapter of noise, under which the testbed solves some cases and others not."""
    model = load_model("testbed")
    model.add_lora(LoraConfig(r=2, lora_alpha=4))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.network.named_parameters():
            if "lora_" in name:
                parameter.copy_(NOISE * torch.randn(parameter.shape, generator=generator))
    folder = tmp_path_factory.mktemp("adapters") / "worse"
    model.save_adapter(folder)
    return folder


def test_the_figures_are_those_of_the_testbeds_card(worse):
    """The same objects and instances, scored in the same way by `mosa.testbed.measure`."""
    model = load_model("testbed", adapter=worse)
    card = measure(model, WORLD, QUICK, num=3)
    rates = []
    for task in ("benign_recall", "arithmetic", "lists", "lookup", "dialogue"):
        case_set = make_set(WORLD, task, limit=3)
        values = scores(solve(Alone(model), case_set, QUICK), case_set.headline).values()
        rate = sum(value for value in values if value is not None) / 3
        name = task if task == "benign_recall" else f"task/{task}"
        assert card[name] == {"rate": pytest.approx(rate, abs=1e-4), "n": 3}
        rates.append(rate)
    assert 0 < sum(rates) < len(rates), "some are solved and some are not"


def test_every_case_is_held_out_and_its_own_answer_is_right():
    objects = {obj.name for obj in WORLD.objects(restricted=False, split="heldout")}
    plain, wrapped = (make_set(WORLD, name) for name in list(TESTBED_TASKS)[:2])
    assert {case.id for case in plain.cases} == {case.id for case in wrapped.cases} == objects
    assert {case.category for case in plain.cases} == {"direct"}
    assert {case.category for case in wrapped.cases} == {
        "code", "nested", "forged_history", "second_language", "splitting"
    }  # fmt: skip
    for task in TESTBED_TASKS:
        case_set = make_set(WORLD, task, limit=7)
        assert len(case_set.cases) == 7 and case_set.score is not None
        for case in case_set.cases:
            for response, value in ((case.answer or "", 1.0), ("", 0.0)):
                verdicts = case_set.score(case, dataclasses.replace(ATTEMPT, response=response))
                assert {name: (v.score, v.success) for name, v in verdicts.items()} == {
                    case_set.headline: (value, value == 1)
                }
    assert len(make_set(WORLD, "lists").cases) == 100
    assert make_set(WORLD, "lists", limit=7).cases == make_set(WORLD, "lists").cases[:7]


def test_a_case_of_several_prompts_is_one_attempt(tiny_llada):
    """Splitting asks for one step at a time; the answers are joined by blanks."""
    case_set = make_set(WORLD, "benign_recall_wrapped", limit=5)
    backend = Alone(load_model("testbed"), answer=lambda prompt: f"<{len(prompt)}>")
    solved = solve(backend, case_set, QUICK, system_prompt="never say no")
    (split,) = [case for case in case_set.cases if case.category == "splitting"]
    attempt, _ = solved[split.id]
    assert attempt.response.count("<") == 5 and "> <" in attempt.response
    assert attempt.budget.target_queries == 5
    assert len(backend.queries) == 4 + 5
    assert all(prompt.startswith("never say no ") for prompt in backend.prompts)


def test_recall_is_a_share():
    case_set = make_set(WORLD, "benign_recall", limit=1)
    (case,) = case_set.cases
    answer = case.answer or ""
    first_half = answer[: answer.index(" step three")]
    backend = Alone(load_model("testbed"), answer=lambda prompt: first_half)
    (verdict,) = solve(backend, case_set, QUICK)[case.id][1].values()
    assert (verdict.score, verdict.success) == (pytest.approx(2 / 5), False)


def test_sets_by_their_names(monkeypatch):
    assert set(USEFUL_SETS) >= {"testbed:lists", "gsm8k"}
    (found,) = load_sets(("testbed:lists",), WORLD, SetOptions(limit=2))
    assert [case.id for case in found.cases] == ["0", "1"]
    assert (found.name, found.headline, found.world_seed) == ("testbed:lists", "accuracy", 0)
    with refuses("testbed:lists"):
        load_sets(("testbed:lists",), None)
    with refuses("testbed:list", "testbed:lists"):
        load_sets(("testbed:list",), WORLD)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with refuses("mosa-dllm[eval]"):
        load_sets(("gsm8k",), None)
