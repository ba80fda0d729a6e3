"""What an evaluation asks at most, and the time of it, known before it begins."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest
from refusals import cli_refuses, refuses
from run_stand_ins import ScriptedChat

from mosa.attacks import ATTACKS, ENGLISH
from mosa.cli import main
from mosa.responder import answer_all
from mosa.runs.evaluate import EvaluateConfig, run_evaluation
from mosa.runs.price import ANSWER_TOKENS, PASSES, Price, most_asked, seconds_of_a_pass, total
from mosa.runs.sets import SetOptions
from mosa.runs.subject import Subject, subjects_of

DECODER = {"max_new_tokens": 24, "steps": 8, "block_length": 24}


def config(*attacks: str, **changes) -> EvaluateConfig:
    settings = {"preset": "smoke", "seeds": (0,), **changes}
    return EvaluateConfig(
        subjects_of("testbed", decoder=DECODER), ("testbed",), attacks, **settings
    )


def test_rows_are_bounds_times_tasks():
    asked = config("direct", "tap", "gcg", seeds=(0, 1))
    rows = {row.attack: row for row in most_asked(asked)}
    num_tasks = rows["direct"].num_tasks
    assert num_tasks == rows["tap"].num_tasks and num_tasks % 2 == 0
    for name in ("tap", "gcg"):
        attack = ATTACKS[name]
        assert attack.bound is not None
        bound = Counter(attack.bound(attack.config("smoke"), ENGLISH).asked)
        bound[PASSES] += bound["target"] * 8
        assert rows[name].asked == {each: n * num_tasks for each, n in bound.items()}
    assert total([*rows.values()])["target"] == sum(
        row.asked["target"] for row in rows.values() if row.asked is not None
    )


def test_of_a_served_model_the_tokens_of_its_answers_are_bounded(tmp_path):
    """Two cases, of which `direct` asks one response each and `best_of_n` more, of 24 tokens."""
    (tmp_path / "tea.csv").write_text("id,behavior\na,Brew tea.\nb,Pour tea.\n")
    subjects = subjects_of(
        "http://127.0.0.1:9/v1#tea", decoder={"max_new_tokens": 24}, i_am_authorized=True
    )
    asked = EvaluateConfig(
        subjects, (str(tmp_path / "tea.csv"),), ("direct", "best_of_n"), preset="smoke"
    )
    rows = most_asked(asked)
    assert rows[0].asked == {"target": 2, ANSWER_TOKENS: 48}
    assert total(rows)[ANSWER_TOKENS] == 24 * total(rows)["target"] > 96


def test_a_price_is_for_a_million_tokens():
    """250,000 at 4 dollars a million and 30,000 at 20: 1.00 and 0.60 dollars."""
    assert Price(4.0, 20.0).of(250_000, 30_000) == "$1.60"
    assert Price(4.0, 20.0).of(0, 100) == "under $0.01" and Price(0.0, 0.0).of(5, 5) == "$0.00"
    for wrong in (-1.0, float("nan"), float("inf")):
        with refuses("price"):
            Price(1.0, wrong)


def test_a_run_asks_no_more(tmp_path):
    asked = config("direct", "tap", "prefill", options=SetOptions(limit=2))
    most = {row.attack: row.asked for row in most_asked(asked)}
    run = run_evaluation(tmp_path, asked)
    assert run is not None
    spent: dict[str, Counter[str]] = {}
    with run:
        for task, outcome in run.tasks():
            assert outcome is not None and outcome.status == "done"
            budget = outcome.budget
            spent.setdefault(task.attack, Counter()).update(
                {"target": budget.target_queries, PASSES: budget.forward_passes}
            )
    for attack, of_attack in spent.items():
        allowed = most[attack]
        assert allowed is not None
        assert 0 < of_attack["target"] <= allowed["target"]
        assert of_attack[PASSES] <= allowed[PASSES]


def test_a_model_that_fills_blocks_asks_no_more(tmp_path):
    """Edits take passes of their own, and the prompt may begin the first of one more block."""
    settings = {"max_new_tokens": 24, "steps": 24, "edit_threshold": 0.0, "max_post_steps": 2}
    asked = EvaluateConfig(
        subjects_of("testbed:block", decoder=settings),
        ("testbed",),
        ("direct", "dija_response"),
        options=SetOptions(limit=2),
        seeds=(0,),
    )
    rows = {row.attack: row for row in most_asked(asked)}
    assert rows["dija_response"].num_tasks == 0 and "block" in rows["dija_response"].reason
    most = rows["direct"].asked
    run = run_evaluation(tmp_path, asked)
    assert run is not None and most is not None
    with run:
        spent = [outcome.budget.forward_passes for _, outcome in run.tasks() if outcome]
    assert 24 * len(spent) < sum(spent) <= most[PASSES]


SURE = 0.9999999
"""A threshold that no proposal reaches, so that a pass fills one token."""


@pytest.mark.parametrize("model", ["testbed", "testbed:block"])
@pytest.mark.parametrize(
    "decoder",
    [
        {"max_new_tokens": 24, "steps": 3},
        {"max_new_tokens": 24, "steps": 24, "threshold": SURE, "block_length": None},
    ],
)
def test_attacks_that_own_the_sampler_ask_no_more(tmp_path, model, decoder):
    """`dija` takes a step for each mask of its template, `decoding_order` one at least for each
    block, and what `traj_hijack` masks again is filled anew."""
    from mosa.runs.sets import SetOptions

    asked = EvaluateConfig(
        subjects_of(model, decoder=decoder),
        ("testbed",),
        ("dija", "decoding_order", "traj_hijack", "anchoring", "dija_canvas"),
        "smoke",
        attack_options={
            "decoding_order": {"orders": ("block_2",)},
            "traj_hijack": {"ways": ("remask only",)},
        },
        options=SetOptions(limit=2),
        seeds=(0,),
    )
    rows = {row.attack: row for row in most_asked(asked)}
    run = run_evaluation(tmp_path, asked, is_judged=False)
    assert run is not None
    spent: Counter[str] = Counter()
    with run:
        for task, outcome in run.tasks():
            assert outcome is not None and outcome.status == "done"
            spent[task.attack] += outcome.budget.forward_passes
    most = {name: row.asked[PASSES] for name, row in rows.items() if row.asked is not None}
    assert most.keys() == spent.keys()
    assert all(0 < number <= most[name] for name, number in spent.items()), (spent, most)
    if decoder["steps"] == 3:  # the decoder's own steps are no bound
        own = most["dija_canvas"]
        assert spent["dija"] > own and spent["decoding_order"] > own
    elif model == "testbed":
        assert spent["traj_hijack"] > most["dija_canvas"]


def test_a_template_has_no_bound_where_the_context_is_not_known():
    elsewhere = replace(config("dija", "direct"), subjects=subjects_of("owner/elsewhere"))
    elsewhere = replace(elsewhere, sets=("advbench_50",))
    rows = most_asked(elsewhere, {"attacker": ScriptedChat("unread")})
    assert {row.attack: row.asked is None for row in rows} == {
        "dija": True,
        "direct": False,
    }


def test_what_is_not_applicable_costs_nothing(tmp_path):
    rows = most_asked(config("fits", "direct"))
    assert {row.attack: (row.num_tasks > 0, bool(row.reason)) for row in rows} == {
        "fits": (True, False),
        "direct": (True, False),
    }
    prompts_alone = Subject("testbed", "testbed", grants=("prompt",))
    limited = EvaluateConfig((prompts_alone,), ("testbed",), ("prefill", "direct"))
    found = {row.attack: row for row in most_asked(limited)}
    assert found["prefill"].num_tasks == 0 and "canvas" in found["prefill"].reason


@pytest.mark.parametrize("model", ["testbed", "testbed:block"])
def test_the_time_is_that_of_a_pass_of_a_response(model, monkeypatch):
    """A clock that counts answers: 8 responses of 24 tokens take 2 s, so a pass takes 2 s over the
    passes that they report."""
    asked = replace(config("direct"), subjects=subjects_of(model), batch_size=8)
    passes: list[int] = []

    def answers(*args, **kwargs):
        responses = answer_all(*args, **kwargs)
        passes.append(sum(each.num_forward_passes for each in responses))
        return responses

    monkeypatch.setattr("mosa.runs.price.answer_all", answers)
    clock = iter([10.0, 12.0])
    monkeypatch.setattr("mosa.runs.price.time", SimpleNamespace(perf_counter=clock.__next__))
    assert seconds_of_a_pass(asked, asked.subjects[0]) == 2.0 / passes[1]
    assert passes[0] == passes[1] <= 8 * (72 // 8 + 1)


def test_the_command_shows_it_and_makes_nothing(tmp_path, capsys):
    out = tmp_path / "run"
    words = [
        "evaluate",
        "--model",
        "testbed",
        "--sets",
        "testbed",
        "--limit",
        "3",
        "--out",
        str(out),
    ]
    assert main([*words, "--attacks", "direct,tap", "--preset", "smoke", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "tap:smoke on testbed, 3 tasks: 18 responses" in said and "In all at most" in said
    assert "testbed: at most" in said and "ms for a pass" in said
    assert not out.exists()
    cli_refuses(capsys, [*words, "--attacks", "tpa", "--dry-run"], "tpa", "tap")
