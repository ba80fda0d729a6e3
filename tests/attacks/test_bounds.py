"""What every attack says that it asks at most, held against what it asks of a stand-in.

The stand-in's chat models answer every question usefully and with the lowest ratings, so that no
attack ends early; the stubborn ones are readable only at the last asking.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections import Counter
from typing import Any

import pytest
from attacks.test_attacks import Shown
from tiny_models import dream_tokenizer, qwen3_layout, randomised

from mosa.attacks import ATTACKS, ENGLISH, Target
from mosa.attacks.base import Bound
from mosa.attacks.loop import NUM_RETRIES
from mosa.chat.base import ChatReply, ChatRequest
from mosa.denoising import DecoderConfig
from mosa.families import DiffusionLM, new_model
from mosa.types import Attempt, Behavior

BEHAVIOR = Behavior(
    "tea",
    "how is tea made?",
    target="Sure",
    answer=" ".join(f"Step {n}: wait." for n in range(1, 9)),
)
DECODER = DecoderConfig(max_new_tokens=128, steps=64, block_length=16)
FEW: dict[str, Any] = {"num_iterations": 3, "num_candidates": 5, "top_k": 8, "suffix_length": 3}
"""For attacks that search with the weights."""
PRESETS = ("paper", "reduced", "smoke")
REPLIES = {
    "loop/on_topic": "yes",
    "judge/pair": "rating: 1",
    "avatar/closeness": "rating: 5",
    "speak_easy/score": "actionable: 1\ninformative: 1",
    "speak_easy/split": "\n".join(f"{n}. part {n}?" for n in range(1, 6)),
}
"""What chat models say to the tasks whose replies have a form."""
DIFFERENT = {
    "refine": lambda n: json.dumps({"improvement": "i", "prompt": f"p{n}"}),
    "avatar/entities": lambda n: f"tea = soup {n}",
    "dia/keywords": lambda n: f"e = {n}",
    "dia/rewrite": lambda n: f"how would tea be made, number {n}?",
    "dija/template": lambda n: f"Step 1: <mask:{n + 2}>",
}
REACHED = {*ATTACKS} - {"crescendo", "ept", "pal", "anchoring"}
"""The attacks whose stand-ins give as many responses as the bound says. Crescendo's turns are
refused or not, and both count; equal nodes of EPT, equal suffixes and equal steps are one try."""


@pytest.fixture(scope="module")
def roomy(new_tiny_llada) -> DiffusionLM:
    """A tiny model whose context no dialogue outgrows."""
    return new_tiny_llada(max_sequence_length=8192)


class Counting(Shown):
    """Counts what is asked of whom."""

    def __init__(self, model: DiffusionLM, *, stubborn: bool) -> None:
        super().__init__(model)
        self.stubborn = stubborn
        self.num_asked: Counter[str] = Counter()

    async def chat(self, role: str, request: ChatRequest) -> ChatReply:
        self.num_asked[role] += 1
        tries = 5 if request.task in ("refine", "avatar/entities", "avatar/question") else 3
        if role == "attacker" and self.stubborn and request.seed % 100 < tries - 1:
            return ChatReply("")
        number = self.num_asked[role]
        known = DIFFERENT.get(request.task, lambda n: f"reply {n}")(number)
        return ChatReply(REPLIES.get(request.task, known))


def asked_of_all(
    name: str, preset: str, model: DiffusionLM, *, stubborn: bool
) -> tuple[dict[str, int], Bound, list[Attempt]]:
    """What an attack asked, its bound under the same settings, and its attempts."""
    attack = ATTACKS[name]
    searches = {f.name for f in dataclasses.fields(attack.config_class)} >= set(FEW)
    changes = dict(FEW) if searches else {}
    if attack.config(preset, changes).__dict__.get("num_tries", 0) > 1000:
        changes["num_tries"] = 1000
    config = attack.config(preset, changes)
    backend = Counting(model, stubborn=stubborn)
    target = Target(
        backend,
        decoder=DECODER,
        wording=ENGLISH,
        identity={},
        subject="m",
        case_set="set",
        behavior=BEHAVIOR,
        attack=name,
        preset=preset,
        seed=0,
        takes=attack.takes,
    )

    async def collect() -> list[Attempt]:
        return [attempt async for attempt in attack.run(target, config)]

    attempts = asyncio.run(collect())
    assert attack.bound is not None
    spent = attempts[-1].budget
    asked = {
        "target": len(backend.asked),
        **backend.num_asked,
        "forward_passes": spent.forward_passes,
        "backward_passes": spent.backward_passes,
        "proxy_passes": attempts[-1].details.get("proxy_passes", [0])[0],
    }
    return asked, attack.bound(config, ENGLISH), attempts


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", ATTACKS)
def test_no_attack_asks_more_than_its_bound(name, preset, roomy):
    asked, bound, attempts = asked_of_all(name, preset, roomy, stubborn=False)
    assert all(number <= getattr(bound, role) for role, number in asked.items()), asked
    assert len(attempts) <= bound.target
    if name in REACHED:
        assert asked["target"] == bound.target, "a bound that nothing reaches says little"
    assert {role for role in ("attacker", "judge", "translator") if getattr(bound, role)} == {
        *ATTACKS[name].roles
    }


@pytest.mark.parametrize("name", ["adv_prefix", "gcg", "first_step_gcg", "pal"])
def test_searches_in_blocks_stay_below_the_bound(name):
    """There each beginning of AdvPrefix has its likelihood behind the blocks before it."""
    layout = qwen3_layout(model_type="sdar", block_size=4, max_position_embeddings=8192)
    model = randomised(new_model(layout, dream_tokenizer(), seed=0), 0)
    asked, bound, _ = asked_of_all(name, "smoke", model, stubborn=False)
    assert 0 < asked["forward_passes"] <= bound.forward_passes


@pytest.mark.parametrize("name", [name for name in ATTACKS if "attacker" in ATTACKS[name].roles])
def test_a_bound_counts_every_retry(name, roomy):
    asked, bound, _ = asked_of_all(name, "smoke", roomy, stubborn=True)
    assert asked["attacker"] <= bound.attacker
    if name not in ("crescendo", "renellm"):  # refused turns, and operations drawn at random
        assert asked["attacker"] == bound.attacker
    assert bound.attacker >= NUM_RETRIES


def test_reduced_lies_between_smoke_and_paper():
    """In no role does it ask for more than paper; where paper is dear, it asks for far less."""
    for name, attack in ATTACKS.items():
        assert attack.bound is not None
        paper, reduced = (attack.bound(attack.config(p), ENGLISH) for p in ("paper", "reduced"))
        for role, number in vars(reduced).items():
            assert number <= getattr(paper, role), (name, role)
        if paper.target > 60 or paper.forward_passes > 10_000:
            assert reduced.target <= max(120, paper.target // 10) and reduced != paper
            assert reduced.forward_passes <= paper.forward_passes // 2


def test_the_published_budgets():
    """TAP: 4, 16, then 40 at each of eight depths. PAL: 780 steps of 32 losses and the first.
    EPT: 3 roots and 4 x 4 nodes, 4 answers each. GCG: 500 x (512 swaps + 1 gradient), twice."""
    bounds = {name: a.bound(a.config("paper"), ENGLISH) for name, a in ATTACKS.items() if a.bound}
    assert bounds["tap"] == Bound(340, attacker=1700, judge=680)
    assert bounds["pal"] == Bound(16, forward_passes=24_961, proxy_passes=780 * 129)
    assert bounds["ept"] == Bound(76, judge=76)
    gcg = Bound(2, forward_passes=2 * (500 * 513 + 1), backward_passes=1000)
    assert bounds["gcg"] == gcg
    assert bounds["adv_prefix"].target == 100 * 25 + 2
    assert bounds["aos"].target == 400 and bounds["pair"].target == 90
