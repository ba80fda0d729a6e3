"""Plans: which attacks are run on which sets of which subject, and what cannot be."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import pytest
from made_runs import made_set
from refusals import refuses
from run_stand_ins import ScriptedChat

from mosa.attacks import ATTACKS
from mosa.denoising import DecoderConfig
from mosa.probes import PROBES
from mosa.runs.plan import choose_attacks, courses_of, plan
from mosa.runs.subject import Subject, refusals_of
from mosa.testbed.behaviors import TESTBED_SETS
from mosa.types import CaseSet
from mosa.utility import DECODER
from mosa.world import World

WORLD = World(0)
HARMFUL = made_set("bad", "harmful", ["a", "b"])
HARMLESS = made_set("fine", "harmless", ["c"])
USEFUL = made_set("sums", "useful", ["d"], headline="accuracy")
SUBJECT = Subject("m", "testbed", decoder=DecoderConfig())


def tasks_of(
    sets: list[CaseSet],
    attacks: tuple[str, ...],
    *,
    subject: Subject = SUBJECT,
    seeds: tuple[int, ...] = (0,),
    weights: str = "hash",
    options: dict[str, Any] | None = None,
    chats: dict[Any, Any] | None = None,
) -> tuple[list[Any], list[Any]]:
    chosen = choose_attacks(attacks, "smoke", options or {})
    return plan(subject, weights, courses_of(sets, chosen, WORLD, chats or {}), seeds)


def test_attacks_are_for_harmful_sets_and_all_others_are_asked_plainly():
    planned, left_out = tasks_of([HARMFUL, HARMLESS, USEFUL], ("prefill", "pad"), seeds=(0, 5))
    assert not left_out
    assert Counter((p.task.case_set, p.task.attack, p.task.seed) for p in planned) == {
        **{("bad", attack, seed): 2 for attack in ("prefill", "pad") for seed in (0, 5)},
        **{(name, "direct", seed): 1 for name in ("fine", "sums") for seed in (0, 5)},
    }
    assert {p.task.threat for p in planned if p.task.attack == "prefill"} == {"canvas"}
    assert {p.task.threat for p in planned if p.task.attack == "direct"} == {"prompt"}


def test_probes_are_run_on_harmless_sets_too_and_on_no_useful_one():
    probe = next(name for name, attack in PROBES.items() if not attack.needs_answer)
    planned, _ = tasks_of([HARMFUL, HARMLESS, USEFUL], (f"{probe}:quick",))
    assert {(p.task.case_set, p.task.attack) for p in planned} == {
        ("bad", probe),
        ("fine", probe),
        ("sums", "direct"),
    }
    planned, _ = tasks_of([HARMFUL, HARMLESS], (f"{probe}:quick", "prefill"))
    assert {p.task.attack for p in planned if p.task.case_set == "fine"} == {"direct", probe}


def test_what_is_not_granted_is_listed_and_not_planned():
    api = dataclasses.replace(SUBJECT, grants=("prompt", "history"))
    planned, left_out = tasks_of([HARMFUL], ("direct", "prefill", "pad"), subject=api)
    assert {p.task.attack for p in planned} == {"direct"}
    assert [(x.subject, x.case_set, x.attack, x.threat) for x in left_out] == [
        ("m", "bad", name, ATTACKS[name].threat) for name in ("prefill", "pad")
    ]
    assert all(pair.reason for pair in left_out)


def test_an_attack_that_shows_an_answer_is_not_applicable_where_there_is_none():
    name = next(name for name, attack in ATTACKS.items() if attack.needs_answer)
    chats = {role: ScriptedChat("x") for role in ATTACKS[name].roles}
    testbed = TESTBED_SETS["testbed"](WORLD, limit=1)
    planned, left_out = tasks_of([HARMFUL, testbed], (name,), chats=chats)
    assert {p.task.case_set for p in planned} == {"testbed"}
    assert [(pair.case_set, pair.attack) for pair in left_out] == [("bad", name)]


def test_a_key_moves_with_everything_that_decides_a_task():
    def key(**changes: Any) -> str:
        planned, _ = tasks_of(**{"sets": [HARMFUL], "attacks": ("prefill",)} | changes)
        return planned[0].task.key

    case = dataclasses.replace(HARMFUL.cases[0], text="why?")
    keys = [
        key(),
        key(weights="other"),
        key(seeds=(1,)),
        key(attacks=("prefill:paper",)),
        key(options={"prefill": {"positions": [3]}}),
        key(subject=dataclasses.replace(SUBJECT, decoder=DecoderConfig(steps=64))),
        key(subject=dataclasses.replace(SUBJECT, system_prompt="be kind")),
        key(subject=dataclasses.replace(SUBJECT, name="n")),
        key(sets=[dataclasses.replace(HARMFUL, name="worse")]),
        key(sets=[dataclasses.replace(HARMFUL, cases=(case,))]),
        key(sets=[dataclasses.replace(HARMFUL, settings={"num_fewshot": 3})]),
    ]
    assert len(set(keys)) == len(keys)
    assert key() == key()


def test_what_an_adapter_was_trained_to_say_is_given_to_those_that_read_it(tmp_path):
    """`mosa align` writes the set of refusals as `safe` or `refusals`; other sets are none."""
    for name, text in (("safe", "# note\nnot a word .\n"), ("harmful", "the next step is\n")):
        (tmp_path / "phrases").mkdir(exist_ok=True)
        (tmp_path / "phrases" / f"{name}.txt").write_text(text)
    aligned = dataclasses.replace(SUBJECT, adapter=str(tmp_path))
    assert refusals_of(aligned.adapter) == ["not a word ."]
    assert refusals_of(None) == refusals_of("org/adapter") == []
    planned, _ = tasks_of([HARMLESS], ("depth:quick", "step:quick"), subject=aligned)
    read = {p.task.attack: p.identity.get("refusals") for p in planned}
    assert read == {"depth": ["not a word ."], "step": None}
    (tmp_path / "phrases" / "safe.txt").write_text("no .\n")
    again, _ = tasks_of([HARMLESS], ("depth:quick", "step:quick"), subject=aligned)
    keys = [{p.task.attack: p.task.key for p in found} for found in (planned, again)]
    assert keys[0]["depth"] != keys[1]["depth"] and keys[0]["step"] == keys[1]["step"]


def test_a_changed_setting_is_part_of_the_presets_name():
    (chosen,) = choose_attacks(("prefill",), "smoke", {"prefill": {"positions": [3]}})
    assert chosen.preset == "smoke (positions=[3])" and chosen.config.positions == (3,)


def test_all_stands_for_every_attack_and_no_probe():
    chosen = choose_attacks(("all", "tap:middle_smoke"), "smoke", {})
    assert [(c.attack.name, c.preset) for c in chosen] == [
        *((name, "smoke") for name in ATTACKS),
        ("tap", "middle_smoke"),
    ]


@pytest.mark.parametrize(
    ("attacks", "options", "names"),
    [
        ((), {}, ("attack", "prefill")),
        (("magic",), {}, ("attack", "magic")),
        (("direct:huge",), {}, ("direct", "huge", "smoke")),
        (("direct", "direct:smoke"), {}, ("direct", "smoke")),
        (("direct",), {"pad": {}}, ("attack_options", "pad")),
        (("prefill",), {"prefill": {"place": 1}}, ("prefill", "place")),
    ],
)
def test_attacks_that_do_not_exist_are_refused(attacks, options, names):
    with refuses(*names):
        choose_attacks(attacks, "smoke", options)


def test_chat_models_are_asked_for_and_used():
    """Outside the testbed no script plays a role; a chat model that nobody asks is a mistake."""
    dija = choose_attacks(("dija",), "smoke", {})
    with refuses("dija", "--attacker"):
        courses_of([HARMFUL], dija, WORLD, {})
    chat = ScriptedChat("x")
    (course,) = courses_of([HARMFUL], dija, WORLD, {"attacker": chat})
    assert course.chats["attacker"] is chat
    (course,) = courses_of([TESTBED_SETS["testbed"](WORLD, limit=1)], dija, WORLD, {})
    assert course.chats["attacker"].name != chat.name
    with refuses("--loop_judge"):
        courses_of([HARMFUL], dija, WORLD, {"attacker": chat, "judge": chat})


def test_attacks_without_a_harmful_set_are_a_mistake():
    with refuses("prefill"):
        courses_of([HARMLESS], choose_attacks(("direct", "prefill"), "smoke", {}), WORLD, {})
    (course,) = courses_of([HARMLESS], choose_attacks(("direct",), "smoke", {}), WORLD, {})
    assert [chosen.attack.name for chosen in course.attacks] == ["direct"]


def test_what_rests_on_masks_is_not_applicable_to_a_model_of_noise():
    """Tasks that ask how likely answers are, and tasks with a decoder of their own about masks."""
    decoder = DecoderConfig(max_new_tokens=8, rules=({"name": "renoise"},))
    noise = dataclasses.replace(SUBJECT, decoder=decoder)
    by_likelihood = dataclasses.replace(USEFUL, name="letters", needs_likelihoods=True)
    own = dataclasses.replace(USEFUL, name="own", settings={DECODER: ["remasking", "steps"]})
    planned, left_out = tasks_of([USEFUL, by_likelihood, own], ("direct",), subject=noise)
    assert {p.task.case_set for p in planned} == {USEFUL.name}
    reasons = {pair.case_set: pair.reason for pair in left_out}
    assert reasons.keys() == {"letters", "own"}
    assert "likely" in reasons["letters"] and "remasking" in reasons["own"]
    planned, left_out = tasks_of([by_likelihood, own], ("direct",))
    assert len(planned) == 2 and not left_out
