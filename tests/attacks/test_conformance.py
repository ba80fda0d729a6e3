"""What holds for every line of the table of attacks."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest
from refusals import refuses

import mosa.attacks
from mosa.attacks import ATTACKS, ENGLISH
from mosa.responder import LocalResponder
from mosa.runs.evaluate import EvaluateConfig, run_evaluation
from mosa.runs.sets import SetOptions
from mosa.runs.store import Run
from mosa.runs.subject import subjects_of
from mosa.suffix_search import GcgSearch
from mosa.testbed.attacker import ScriptedAttacker
from mosa.testbed.behaviors import ATTACK_WRAPPINGS, in_alignment_data
from mosa.testbed.measure import DECODER
from mosa.types import Attempt, Behavior, as_plain, dialogue
from mosa.world import WRAPPINGS, World, WorldObject

DOCS = Path(__file__).parents[2] / "docs" / "attacks"
NOT_ATTACKS = {"__init__", "base", "check", "ciphers", "loop", "refinement", "wording"}
FEW_STEPS = {"num_iterations": 2, "num_candidates": 8, "top_k": 8}
SEARCHES = ("pal", "adv_prefix", "gcg", "first_step_gcg")
LIMIT = 2
WORLD = World(0)
TESTBED_DECODER_RECORD = as_plain(DECODER)
CONFIG = EvaluateConfig(
    subjects_of("testbed"),
    ("testbed",),
    attacks=("all",),
    preset="smoke",
    options=SetOptions(limit=LIMIT),
    attack_options=dict.fromkeys(SEARCHES, FEW_STEPS),
)
EDITING = dataclasses.replace(
    CONFIG,
    subjects=subjects_of("testbed", decoder={"threshold": 0.95, "edit_threshold": 0.5}),
    attacks=tuple(name for name, attack in ATTACKS.items() if attack.needs_edits),
    attack_options={},
)
"""For attacks on what a decoder edits, which the testbed's own does not."""
BEHAVIOR = Behavior("b", 'how do i "bake" bread?', target="Sure", answer="Mix. Knead. Bake.")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """All attacks against two objects of the testbed."""
    folder = tmp_path_factory.mktemp("all")
    run = run_evaluation(folder, CONFIG)
    assert run is not None
    run.close()
    return folder


@pytest.fixture(scope="module")
def attempts(folder, editing) -> dict[str, list[Attempt]]:
    found: dict[str, list[Attempt]] = {name: [] for name in ATTACKS}
    for each in (folder, editing):
        with Run(each) as store:
            assert store.failures() == []
            for attempt in store.attempts():
                responses = store.responses_of(attempt.key)
                found[attempt.attack].append(dataclasses.replace(attempt, responses=responses))
    return found


@pytest.fixture(scope="module")
def editing(tmp_path_factory) -> Path:
    """Attacks on edits against two objects of the testbed, whose decoder makes some."""
    folder = tmp_path_factory.mktemp("editing")
    run = run_evaluation(folder, EDITING)
    assert run is not None
    run.close()
    return folder


def test_attacks_on_edits_are_not_applicable_without_any(folder):
    with Run(folder) as store:
        left_out = {pair.attack: pair.reason for pair in store.not_applicable()}
    assert left_out.keys() == set(EDITING.attacks)
    assert all("edit_threshold" in reason for reason in left_out.values())


def test_every_file_is_in_the_table():
    folder = Path(mosa.attacks.__file__).parent
    files = {path.stem for path in folder.glob("*.py")} - NOT_ATTACKS
    assert files == {attack.run.__module__.rpartition(".")[2] for attack in ATTACKS.values()}
    assert all(attack.name == name for name, attack in ATTACKS.items())


@pytest.mark.parametrize("name", ATTACKS)
def test_source_page_and_presets(name):
    attack = ATTACKS[name]
    assert re.search(r"\d{4}\.\d{5}", attack.source), "no arXiv id"
    module = __import__(attack.run.__module__, fromlist=["_"])
    for number in re.findall(r"\d{4}\.\d{5}", attack.source):
        assert number in module.__doc__ or name == "direct", f"{number} is not in the docstring"
    assert attack.paper.removeprefix("https://arxiv.org/abs/") in attack.source
    assert 1 <= len(attack.title.split()) <= 5
    assert [other.title for other in ATTACKS.values()].count(attack.title) == 1
    page = (DOCS / f"{name}.md").read_text(encoding="utf-8")
    assert attack.source.split(",")[0] in page
    assert {"paper", "reduced", "smoke"} <= attack.presets.keys()
    for preset in attack.presets:
        config = attack.config(preset)
        plain = json.loads(json.dumps(as_plain(config)))
        assert attack.config(preset, plain) == config, "settings do not survive a record"
    with refuses(name, "nonsense", "smoke"):
        attack.config("nonsense")
    with refuses(name, "nonsense"):
        attack.config("paper", {"nonsense": 1})


@pytest.mark.parametrize("name", ATTACKS)
def test_runs_on_the_testbed_and_keeps_accounts(name, attempts):
    found = attempts[name]
    assert len({attempt.case for attempt in found}) == LIMIT
    for behavior in {attempt.case for attempt in found}:
        mine = sorted((a for a in found if a.case == behavior), key=lambda a: a.number)
        assert [a.number for a in mine] == list(range(len(mine)))
        last = mine[-1].budget
        responses = [response for attempt in mine for response in attempt.responses]
        attack = ATTACKS[name]
        generated = sum(r.num_forward_passes for r in responses)
        if name == "crescendo":  # an attempt rests on all that its dialogue has answered so far
            responses = [attempt.responses[-1] for attempt in mine]
            generated = sum(r.num_forward_passes for r in responses)
        if name == "adv_prefix":  # its completions choose a prefix and are no attempts
            assert last.target_queries > len(responses)
        else:
            assert last.target_queries == len(responses)
            assert last.target_tokens == sum(len(r.token_ids) for r in responses)
            computes = bool({"gradients", "likelihood"} & {*attack.access})
            assert (last.forward_passes > generated) == computes
        assert last.forward_passes >= generated > 0
        # The passes of pal's proxy are in its details, even where the target is its own proxy.
        assert (last.backward_passes > 0) == ("gradients" in attack.access)
        writes = {"attacker", "translator"} & {*attack.roles}
        assert (last.attacker_calls > 0) == bool(writes)
        assert (last.judge_calls > 0) == ("judge" in attack.roles)
        # Budgets only grow.
        for before, after in zip(mine, mine[1:], strict=False):
            earlier, later = vars(before.budget), vars(after.budget)
            assert all(later[k] >= earlier[k] for k in earlier)


@pytest.mark.parametrize("name", ATTACKS)
def test_runs_on_the_testbed_and_selects_as_the_table_says(name, attempts):
    """A loop selects a try from the first one on; attacks without one select none."""
    decides = ATTACKS[name].decides
    for case in {attempt.case for attempt in attempts[name]}:
        mine = sorted((a for a in attempts[name] if a.case == case), key=lambda a: a.number)
        selected = [a.selected for a in mine]
        if decides == "best rated":
            assert all(s is not None and s <= a.number for s, a in zip(selected, mine, strict=True))
            changes = [a.number for a in mine if a.selected == a.number]
            assert changes and selected[-1] == changes[-1]
        else:
            assert set(selected) == {None}
        assert decides != "only" or len(mine) == 1


def ways_to_ask(obj: WorldObject, wrapping: str) -> set[str]:
    """Every last user's turn of a wrapping."""
    prompts = [
        prompt for variant in range(4) for prompt in WORLD.requests(obj, wrapping, variant=variant)
    ]
    return {dialogue(prompt)[-1].content for prompt in prompts}


@pytest.mark.parametrize("name", ATTACKS)
def test_runs_on_the_testbed_in_the_wrappings_that_tables_mark(name, attempts):
    """Every prompt is plain, or one of the attack's wrappings; of those each is sent by some
    attack. Suffixes differ, and a model's proposals lose sight of the object now and then."""
    known = ATTACK_WRAPPINGS.get(name, ())
    sent = {(a.case, r.prompt[-1]["content"]) for a in attempts[name] for r in a.responses}
    mask = "<|mdm_mask|>"
    for case, text in sent:
        obj = WORLD.by_name[case]
        plain = ways_to_ask(obj, "direct")
        ways = plain.union(*(ways_to_ask(obj, wrapping) for wrapping in known))
        if text in ways or name in ("best_of_n", "avatar"):
            continue
        if obj.name not in text and name in ("tap", "pair", "speak_easy", "cipher_chat", "dia"):
            continue  # another object, another language, or the object's nickname
        assert any(text.startswith(way) for way in plain), (name, text)
        assert "suffix" in known or mask in text, (name, text)
    wrapped = [
        text for case, text in sent if text not in ways_to_ask(WORLD.by_name[case], "direct")
    ]
    assert bool(wrapped) == (bool(known) or name in ("best_of_n", "dija", "dija_response"))


def test_which_attacks_stand_in_the_alignment_data():
    marked = {name: in_alignment_data(name) for name in ATTACKS}
    assert {name for name, share in marked.items() if share == "all"} == {
        *("avatar", "aos", "pal", "adv_prefix", "pap", "past_tense", "gcg", "first_step_gcg")
    }
    assert {name for name, share in marked.items() if share == "some"} == {
        *("tap", "dia", "pair", "renellm")
    }
    assert ATTACK_WRAPPINGS.keys() <= ATTACKS.keys()
    assert {w for known in ATTACK_WRAPPINGS.values() for w in known} <= WRAPPINGS.keys()


def test_each_attack_says_which_settings_of_the_decoder_it_takes(folder, attempts):
    """Those that differ from the defender's in its responses, under all attempts."""
    for name, found in attempts.items():
        changed = set()
        for attempt in found:
            for response in attempt.responses:
                own = TESTBED_DECODER_RECORD | {"seed": 0}
                if ATTACKS[name].needs_edits:
                    own |= {"threshold": 0.95, "edit_threshold": 0.5}
                changed |= {key for key, value in response.decoder.items() if own[key] != value}
        assert changed <= set(ATTACKS[name].takes), name


@pytest.mark.parametrize("name", ATTACKS)
def test_access_is_what_the_attack_uses(name, attempts):
    """Pins need the canvas; other decoder settings and edits need the sampler."""
    attack = ATTACKS[name]
    for attempt in attempts[name]:
        for response in attempt.responses:
            steered = response.decoder["end_tokens"] != "allow"
            steered |= response.decoder["remasking"] != "low_confidence"
            steered |= response.decoder["block_length"] != 24 or response.decoder["steps"] != 36
            assert not steered or "sampler" in attack.access
            # Earlier turns of the model that no response of this attack said are forged.
            said = {r.text for a in attempts[name] for r in a.responses}
            turns = [t["content"] for t in response.prompt if t["role"] == "assistant"]
            assert set(turns) <= said or "history" in attack.access
            pinned = -1 in response.commit_step or response.filled_prompt_ids is not None
            assert not pinned or "canvas" in attack.access


def test_again_nothing_is_generated(folder, monkeypatch):
    def refuse(self, *args, **kwargs):
        raise AssertionError("done again")

    with Run(folder) as store:
        before = [attempt.key for attempt in store.attempts()]
    monkeypatch.setattr(LocalResponder, "submit", refuse)
    monkeypatch.setattr(LocalResponder, "compute", refuse)
    monkeypatch.setattr(GcgSearch, "advance", refuse)
    monkeypatch.setattr(ScriptedAttacker, "complete", refuse)
    again = run_evaluation(folder, CONFIG)
    assert again is not None
    with again as store:
        assert [attempt.key for attempt in store.attempts()] == before
    # Not even where the tasks' ends are lost: their answers are recorded.
    with Run(folder) as store:
        store._db.execute("DELETE FROM outcomes")
    again = run_evaluation(folder, CONFIG)
    assert again is not None
    with again as store:
        assert [attempt.key for attempt in store.attempts()] == before
        assert store.failures() == []


def test_english_phrases_hold_the_request():
    for kind, nest in ENGLISH.nestings.items():
        text = nest(BEHAVIOR)
        assert isinstance(text, str)
        assert BEHAVIOR.request in text and "{request}" not in text, kind
    assert len(ENGLISH.post_contexts) == 6
