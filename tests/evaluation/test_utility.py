"""Useful tasks without lm_eval: prompts, answers, the testbed's tasks, and runs of them."""

from __future__ import annotations

import dataclasses
import itertools
import math
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from stand_ins import PowerCutError

from mosa.denoising import DecoderConfig
from mosa.denoising.likelihood import log_likelihood_bound
from mosa.evaluation.campaign import CampaignConfig, run_campaign
from mosa.evaluation.store import FILE, Measurement, Store
from mosa.evaluation.utility import (
    TESTBED_TASKS,
    UtilityConfig,
    UtilityProgress,
    run_utility,
    utility_decoder,
    utility_lines,
)
from mosa.evaluation.utility import answers as answers_module
from mosa.evaluation.utility.answers import Answerer, Pair, Question
from mosa.evaluation.utility.prompts import Dialogue, cut, pair_of, prompt_ids, stop_strings
from mosa.evaluation.utility.scoring import Scorer, code_of, mean_of_scored
from mosa.evaluation.utility.testbed import cases, score_testbed_task
from mosa.families import DiffusionLM, load_model
from mosa.testbed.measure import DECODER, measure
from mosa.types import Message, UserError
from mosa.world import World

WORLD = World(0)
NOISE = 0.1
QUICK = dataclasses.replace(DECODER, steps=12)
CONFIG = UtilityConfig(model="testbed", tasks=("arithmetic", "benign_recall_wrapped"), limit=3)


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
    assert prompt == (Message("user", "say <|eot_id|>"),)
    assert list(ids).count(tiny_llada.turn_end_token_id) == 1  # the template's own


def test_an_answer_that_is_begun_goes_on_behind_the_last_header(tiny_llada):
    turns = [{"role": "user", "content": "tea?"}, {"role": "assistant", "content": "Sure, "}]
    ids, prompt = prompt_ids(tiny_llada, Dialogue.of(turns))
    assert list(ids) == tiny_llada.encode("tea?") + tiny_llada.encode_text("Sure, ")
    assert prompt[-1] == Message("assistant", "Sure, ")


def test_text_without_turns_goes_as_it_is(tiny_llada):
    ids, prompt = prompt_ids(tiny_llada, "make tea")
    assert (list(ids), prompt) == (tiny_llada.encode_text("make tea"), "make tea")
    assert prompt_ids(tiny_llada, "")[0] == (tiny_llada.tokenizer.bos_token_id,)


def test_prompt_and_answer_are_cut_where_the_answer_begins(tiny_llada):
    """Blanks at the prompt's end belong to the answer, as its first token is read with them."""
    expected = Pair(
        tuple(tiny_llada.encode_text("make")), tuple(tiny_llada.encode_text(" tea. Step"))
    )
    assert pair_of(tiny_llada, "make", " tea. Step") == expected
    assert pair_of(tiny_llada, "make ", "tea. Step") == expected
    dialogue = Dialogue.of([{"role": "user", "content": "make"}])
    pair = pair_of(tiny_llada, dialogue, "tea")
    assert pair == Pair(tuple(tiny_llada.encode("make")), tuple(tiny_llada.encode_text("tea")))
    with pytest.raises(UserError, match="empty answer"):
        pair_of(tiny_llada, "make", "")


# --- answers --------------------------------------------------------------------------------------


def answerer(model: DiffusionLM, batch_size: int = 4, **settings: Any) -> Answerer:
    decoder = DecoderConfig(**{"max_new_tokens": 12, "steps": 6, **settings})
    return Answerer(model, decoder, batch_size=batch_size, num_draws=16)


PROMPTS = ("make tea", "Tell me a story about a friendly robot.", "Step 1:", "help", "make tea")


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_what_is_answered_does_not_depend_on_the_batch(tiny_llada, temperature):
    questions = [Question(tuple(tiny_llada.encode(p)), 3, p) for p in PROMPTS]
    found = [
        [r.token_ids for r in answerer(tiny_llada, n, temperature=temperature).respond(questions)]
        for n in (1, 2, 8)
    ]
    assert found[0] == found[1] == found[2]
    assert found[0][0] == found[0][4]  # one and the same question has one answer
    assert len({tuple(ids) for ids in found[0]}) == 4


def test_other_tries_are_other_draws(tiny_llada):
    ids = tuple(tiny_llada.encode("make tea"))
    questions = [Question(ids, seed, "make tea") for seed in (0, 1, 0)]
    a, b, c = answerer(tiny_llada, temperature=1.0).respond(questions)
    assert a.token_ids == c.token_ids != b.token_ids
    assert (a.decoder["seed"], b.decoder["seed"]) == (0, 1)


@pytest.mark.parametrize("name", ["tiny_llada", "tiny_dream"])
def test_a_single_token_has_its_exact_probability(request, name):
    """Whatever the number of draws, and whatever stands beside it in the batch."""
    model = request.getfixturevalue(name)
    prompts = [model.encode_text(text) for text in PROMPTS[:3]]
    pairs = [Pair(tuple(ids), (token,)) for ids in prompts for token in (70, 81, 92)]
    pairs.append(Pair(tuple(prompts[0]), (70, 81)))
    for batch_size in (1, 4, 16):
        found = answerer(model, batch_size).log_likelihoods(pairs)
        for pair, value in zip(pairs[:-1], found, strict=False):
            canvas = torch.tensor([[*pair.ids, model.mask_token_id]])
            with torch.no_grad():
                logits = model.logits(canvas)[0, -1]
            assert value == pytest.approx(
                float(logits.log_softmax(-1)[pair.answer_ids[0]]), abs=1e-4
            )


@pytest.mark.parametrize("cfg_scale", [0.0, 0.5])
def test_single_tokens_are_what_the_bound_says_of_them(tiny_llada, cfg_scale):
    """With guidance too; they take another way, in which answers of one prompt share a row."""
    pairs = [Pair(tuple(tiny_llada.encode_text(PROMPTS[n % 3])), (70 + n,)) for n in range(7)]
    asked = answerer(tiny_llada, cfg_scale=cfg_scale)
    found = asked.log_likelihoods(pairs)
    assert asked.tally.num_answered == 3
    canvas = answers_module._pair_canvas(tiny_llada, pairs)
    bound = log_likelihood_bound(tiny_llada, canvas, num_samples=1, cfg_scale=cfg_scale)
    assert found == pytest.approx(bound.mean.tolist(), abs=1e-4)


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
    many = Answerer(tiny_llada, DecoderConfig(), batch_size=64, num_draws=2000)
    (found,) = many.log_likelihoods([Pair(tuple(prompt), answer)])
    # Half of the draws mask one token, so that chance is about which of the two: the mean of 1000
    # such draws, weighing 2/1, is off by `spread / sqrt(1000)`, and counts for half.
    spread = abs(log_prob((mask, answer[1]), 0) - log_prob((answer[0], mask), 1))
    error = spread / math.sqrt(1000) / 2
    assert found == pytest.approx(exact, abs=3 * error)
    assert abs(one - exact) > 4 * error and abs(both - exact) > 4 * error


def test_likelihoods_do_not_depend_on_the_batch(tiny_llada):
    """Nor on what is asked twice; the answers have one to four tokens."""
    prompts = [tuple(tiny_llada.encode_text(text)) for text in PROMPTS[:4]]
    pairs = [Pair(ids, (70, 81, 92, 65)[:n]) for ids, n in itertools.product(prompts, (1, 2, 4))]
    alone = [answerer(tiny_llada).log_likelihoods([pair])[0] for pair in pairs]
    together = answerer(tiny_llada, 40).log_likelihoods([*pairs, *pairs])
    assert together == pytest.approx(alone * 2, abs=1e-4)


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
    pairs = [Pair(tuple(prompt), wanted), Pair(tuple(prompt), (1, 2, 3, 4)), Pair((70,), (1,))]
    assert answerer(tiny_llada).greedy_answers(pairs)[:2] == [wanted, wanted]


def test_answers_are_recorded_batch_by_batch(tiny_llada, tmp_path, monkeypatch):
    """The power goes at the third batch; what was answered before is not asked again."""
    prompts = [tuple(tiny_llada.encode_text(f"make {n} cups")) for n in range(8)]
    questions = [Question(ids, 0, "") for ids in prompts]
    pairs = [Pair(ids, (70, 81)) for ids in prompts]

    def asked(store: Store) -> Answerer:
        settings = DecoderConfig(max_new_tokens=6, steps=3)
        return Answerer(tiny_llada, settings, batch_size=2, num_draws=2, store=store)

    with Store(tmp_path / "whole", create=True) as store:
        whole = asked(store)
        texts = [r.token_ids for r in whole.respond(questions)]
        values, greedy = whole.log_likelihoods(pairs), whole.greedy_answers(pairs)
        assert whole.tally.num_answered == whole.tally.num_asked == 24

    def cut_off(work: Any, count: int) -> Any:
        left = iter(range(count))

        def working(*args: Any, **settings: Any) -> Any:
            if next(left, None) is None:
                raise PowerCutError
            return work(*args, **settings)

        return working

    for name, ask in (
        ("sample", lambda a: a.greedy_answers(pairs)),
        ("log_likelihood_bound", lambda a: a.log_likelihoods(pairs)),
        ("LocalResponder", None),
    ):
        with Store(tmp_path / "cut", create=True) as store, monkeypatch.context() as patch:
            if ask is None:
                owner = answers_module.LocalResponder
                patch.setattr(owner, "respond", cut_off(owner.respond, 2))
                ask = lambda a: a.respond(questions)  # noqa: E731
            else:
                patch.setattr(answers_module, name, cut_off(getattr(answers_module, name), 2))
            with pytest.raises(PowerCutError):
                ask(asked(store))
    with Store(tmp_path / "cut") as store:
        again = asked(store)
        assert [r.token_ids for r in again.respond(questions)] == texts
        assert again.log_likelihoods(pairs) == pytest.approx(values, abs=1e-6)
        assert again.greedy_answers(pairs) == greedy
        # Two batches of two of each: responses, greedy answers, and one pair at a time.
        assert again.tally.num_recorded == 4 + 4 + 2
        assert again.tally.num_answered == 24 - 10


def test_what_does_not_fit_is_told(tiny_llada):
    asked = answerer(tiny_llada)
    assert asked.too_long(500, 12) == ""
    assert "more tokens than the model's context, 512" in asked.too_long(501, 12)
    for batch_size, num_draws in ((0, 1), (1, 0)):
        with pytest.raises(UserError, match="at least 1"):
            Answerer(tiny_llada, DecoderConfig(), batch_size=batch_size, num_draws=num_draws)


# --- scores ---------------------------------------------------------------------------------------

ADD = {
    "task_id": "HumanEval/0",
    "prompt": "def add(x, y):\n",
    "entry_point": "add",
    "test": "def check(f):\n    assert f(1, 2) == 3\n",
}


def test_code_is_what_stands_before_the_fence():
    assert code_of("    return x + y\n```\nThis adds.") == "    return x + y\n"
    assert code_of("    return x + y") == "    return x + y"


def test_code_is_run_with_the_flag_alone(monkeypatch):
    """Without it nothing is started, and the row is unscored for that reason."""
    monkeypatch.setattr("mosa.evaluation.utility.code_sandbox.subprocess.Popen", None)
    scorer = Scorer(run_code=False)
    assert scorer.humaneval(ADD, ["    return x + y"]) == {"pass@1": None}
    assert scorer.reasons == {"HumanEval/0": "generated code is run with --run_code alone"}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="code is run on Linux alone")
def test_functions_are_tested():
    scorer = Scorer(run_code=True)
    assert scorer.humaneval(ADD, ["    return x + y\n```\n"]) == {"pass@1": 1.0}
    assert scorer.details["HumanEval/0"]["ended"] == ""
    assert scorer.humaneval(ADD, ["    return x - y\n"]) == {"pass@1": 0.0}
    assert scorer.details["HumanEval/0"]["ended"] == "AssertionError"
    task = {"task_id": 7, "test_setup_code": "two = 2", "test_list": ["assert f(two) == 3"]}
    assert scorer.mbpp(task, ["def f(x):\n    return x + 1\n```"]) == {"pass@1": 1.0}
    assert scorer.mbpp(task, [""]) == {"pass@1": 0.0}
    assert scorer.reasons == {} and scorer.details["7"]["isolation"] in ("namespaces", "python")


def test_the_mean_leaves_out_what_is_unscored():
    assert mean_of_scored([1.0, None, 0.0]) == 0.5
    assert math.isnan(mean_of_scored([None]))


# --- the testbed's tasks --------------------------------------------------------------------------


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
    asked = Answerer(model, QUICK, batch_size=32, num_draws=1)
    rates = []
    for task in ("benign_recall", "arithmetic", "lists", "lookup", "dialogue"):
        found = score_testbed_task(WORLD, task, asked, model_name="m", limit=3)
        values = [m.value for m in found if m.value is not None]
        name = task if task == "benign_recall" else f"task/{task}"
        assert card[name] == {"rate": pytest.approx(sum(values) / 3, abs=1e-4), "n": 3}
        rates.append(card[name]["rate"])
    assert 0 < sum(rates) < len(rates), "some are solved and some are not"


def test_every_case_is_held_out():
    objects = {obj.name for obj in WORLD.objects(restricted=False, split="heldout")}
    plain, wrapped = (cases(WORLD, name) for name in TESTBED_TASKS[:2])
    assert {case.name for case in plain} == {case.name for case in wrapped} == objects
    assert {case.details["wrapping"] for case in wrapped} == {
        "code", "nested", "forged_history", "second_language", "splitting"
    }  # fmt: skip
    assert all(case.details == {"wrapping": "direct"} for case in plain)
    by_name = WORLD.by_name
    for case in wrapped:
        answer = WORLD.answer(by_name[case.name])
        assert (case.value(answer), case.value("")) == (1.0, 0.0)
    assert len(cases(WORLD, "lists")) == 100 and len(cases(WORLD, "lists", 7)) == 7


# --- runs -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory, worse) -> Path:
    out = tmp_path_factory.mktemp("utility") / "run"
    seen: list[UtilityProgress] = []
    config = dataclasses.replace(CONFIG, adapters=("none", str(worse)))
    run_utility(out, config, QUICK, on_progress=seen.append).close()
    assert [now.num_done for now in seen] == sorted(now.num_done for now in seen)
    assert seen[-1].num_done == seen[-1].num_tasks == 4
    return out


def measured(out: Path) -> list[Measurement]:
    with Store(out / "utility") as store:
        return list(store.measurements())


def test_a_run_knows_what_it_was_made_of(folder):
    with Store(folder / "utility") as store:
        assert store.meta("kind") == "utility" and store.meta("world_seed") == 0
        assert store.meta("decoder")["steps"] == 12 and store.meta("seed") == 0
        tasks = store.meta("tasks")
        assert list(tasks) == list(CONFIG.tasks)
        assert tasks["arithmetic"]["headline"] == "accuracy"
        (session,) = store.sessions()
        assert session["settings"]["tasks"] == list(CONFIG.tasks)
        assert {"torch", "python", "git_commit"} <= session["versions"].keys()
        assert session["seconds"] > 0 and session["started"] <= session["ended"]
        # Splitting asks five prompts, but none of the first three objects takes that turn.
        assert session["models"]["testbed"]["num_answered"] == 6
        assert store.models()["testbed"]["weights"] == load_model("testbed").content_hash()
        for m in store.measurements():
            assert m.value is not None and m.details["answers"]
            assert all(store.response(key) is not None for key in m.details["answers"])


def test_lines_have_intervals_and_models_are_compared_case_by_case(folder):
    with Store(folder / "utility") as store:
        lines = list(utility_lines(store))
        assert [(x.model, x.task, x.metric) for x in lines] == [
            ("testbed", "arithmetic", "accuracy"),
            ("testbed", "benign_recall_wrapped", "recall"),
            ("testbed+worse", "arithmetic", "accuracy"),
            ("testbed+worse", "benign_recall_wrapped", "recall"),
        ]
        assert all(x.is_headline and x.rate is not None and x.rate.n == 3 for x in lines)
        named = {name: {(m.task, m.case) for m in store.measurements() if m.model == name}
                 for name in store.models()}  # fmt: skip
    assert named["testbed"] == named["testbed+worse"] and len(named["testbed"]) == 6


def test_the_same_again_asks_nothing_and_more_is_added(folder, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(folder, out)
    before = measured(out)
    run_utility(out, CONFIG, QUICK).close()
    assert measured(out) == before
    more = dataclasses.replace(CONFIG, tasks=("arithmetic", "lists"), limit=4)
    with run_utility(out, more, QUICK) as store:
        assert store.sessions()[-1]["models"]["testbed"]["num_answered"] == 1 + 4
        assert list(store.meta("tasks")) == ["arithmetic", "benign_recall_wrapped", "lists"]
    assert set(map(str, before)) < set(map(str, measured(out)))


def test_a_run_that_is_cut_off_goes_on(folder, tmp_path, monkeypatch):
    """The power goes in the second of six batches; the outcome is that of the run without."""
    owner = answers_module.LocalResponder
    respond, count = owner.respond, itertools.count()

    def cut_off(self: Any, rows: Any) -> Any:
        if next(count) == 1:
            raise PowerCutError
        return respond(self, rows)

    small = dataclasses.replace(CONFIG, batch_size=1)
    with monkeypatch.context() as patch:
        patch.setattr(owner, "respond", cut_off)
        with pytest.raises(PowerCutError):
            run_utility(tmp_path, small, QUICK)
    with run_utility(tmp_path, small, QUICK) as store:
        assert "ended" in store.sessions()[0]
        assert store.sessions()[1]["models"]["testbed"] | {"model_seconds": 0.0} == {
            "num_asked": 6, "num_recorded": 1, "num_answered": 5, "model_seconds": 0.0
        }  # fmt: skip
    whole = [m for m in measured(folder) if m.model == "testbed"]
    assert measured(tmp_path) == whole


def test_useful_tasks_are_decoded_like_the_attacks_beside_them(tmp_path):
    assert utility_decoder(tmp_path, "testbed") == DECODER
    assert utility_decoder(tmp_path, "some/model") == DecoderConfig()
    campaign = CampaignConfig(model="testbed", behaviors="testbed", preset="smoke", limit=1)
    run_campaign(tmp_path, campaign, QUICK).close()
    assert utility_decoder(tmp_path, "testbed") == QUICK
    one = dataclasses.replace(CONFIG, tasks=("arithmetic",), limit=1)
    with pytest.raises(UserError, match="with steps 12 and not 36"):
        run_utility(tmp_path, one, DECODER)
    assert not (tmp_path / "utility").exists()
    with run_utility(tmp_path, one) as store:
        assert store.meta("decoder")["steps"] == 12
    assert (tmp_path / FILE).is_file()
    with Store(tmp_path) as store:
        store.add_model("testbed", store.models()["testbed"] | {"weights": "of yesterday"})
    with pytest.raises(UserError, match="testbed has other weights than in"):
        run_utility(tmp_path, one)


def test_another_decoder_seed_or_world_needs_another_folder(folder, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(folder, out)
    with pytest.raises(UserError, match="with steps 12 and not 6"):
        run_utility(out, CONFIG, dataclasses.replace(QUICK, steps=6))
    with pytest.raises(UserError, match="with seed 0 and not 1"):
        run_utility(out, CONFIG, dataclasses.replace(QUICK, seed=1))
    with Store(out / "utility") as store:
        tasks = store.meta("tasks")
        tasks["arithmetic"]["headline"] = "beauty"
        store.set_meta("tasks", tasks)
    with pytest.raises(UserError, match=r"holds arithmetic with other settings \(headline beauty"):
        run_utility(out, CONFIG, QUICK)
    campaign = CampaignConfig(model="testbed", behaviors="testbed", preset="smoke", limit=1)
    run_campaign(tmp_path / "other" / "utility", campaign, QUICK).close()
    with pytest.raises(UserError, match="holds another run"):
        run_utility(tmp_path / "other", CONFIG, QUICK)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": ()}, "no task is named"),
        ({"tasks": ("testbed", "lists")}, "named twice"),
        ({"limit": 0}, "limit must be at least 1"),
        ({"num_fewshot": 3}, "--num_fewshot is for tasks of lm_eval"),
        ({"num_draws": 3}, "none of the tasks compares likelihoods"),
        ({"data_dir": Path("data")}, "--data_dir is for tasks of lm_eval"),
        ({"run_code": True}, "none of the tasks has code to run"),
        ({"model": "some/model"}, "is no testbed"),
        ({"adapters": ("nowhere",)}, "there is no adapter folder nowhere"),
    ],
)
def test_mistakes_are_told_of_before_anything_is_asked(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        run_utility(tmp_path / "run", dataclasses.replace(CONFIG, **changes))
    assert not (tmp_path / "run").exists()


def test_without_lm_eval_its_tasks_say_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(UserError, match=r"install mosa-dllm\[eval\]"):
        run_utility(tmp_path, dataclasses.replace(CONFIG, tasks=("gsm8k",)))


def test_attacks_and_requests_are_decoded_as_the_useful_tasks_before_them(tmp_path):
    """Whichever is measured first decides the decoder of the folder."""
    one = dataclasses.replace(CONFIG, tasks=("arithmetic",), limit=1)
    seeded = dataclasses.replace(QUICK, seed=3)
    run_utility(tmp_path, one, seeded).close()
    assert utility_decoder(tmp_path, "testbed") == seeded
    campaign = CampaignConfig(model="testbed", behaviors="testbed", preset="smoke", limit=1)
    with pytest.raises(UserError, match="utility is decoded with steps 12 and not 36"):
        run_campaign(tmp_path, campaign, DECODER)
    with run_campaign(tmp_path, campaign) as store:
        assert store.meta("decoder")["steps"] == 12
