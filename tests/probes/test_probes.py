"""What every probe has, and what each of them writes, asks and computes."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from refusals import refuses
from sampled_target import Sampled, factors, probe, target_of
from tiny_models import dream_tokenizer, qwen3_layout, role_tokenizer, tiny_llada2_config

import mosa.probes
from mosa.attacks import ATTACKS, ENGLISH, Edit, Query
from mosa.denoising import Canvas, DecoderConfig
from mosa.denoising.schedule import Pace, blocks_of
from mosa.evidence.findings import FINDINGS
from mosa.families import load_model, new_model
from mosa.probes import PROBES, PROTOCOLS, suffix
from mosa.probes.base import chosen_ids, fitting_positions, step_numbers
from mosa.probes.depth import look, profile
from mosa.probes.order import OrderConfig, conditions
from mosa.probes.position import PositionConfig, cells
from mosa.probes.suffix import SuffixConfig, methods_of, reached, words_at
from mosa.suffix_search import GcgState
from mosa.testbed import world_of
from mosa.testbed.behaviors import TESTBED_SETS
from mosa.testbed.behaviors import testbed_wording as wording_of
from mosa.types import Behavior, Response, as_plain

DOCS = Path(__file__).parents[2] / "docs" / "analysis.md"
WORLD = world_of("testbed")
REQUESTS = TESTBED_SETS["testbed:direct"](WORLD, limit=3).cases
TEA = Behavior("tea", "how is tea made?")
SHORT = DecoderConfig(max_new_tokens=72, steps=36, block_length=24)


@pytest.fixture(scope="module")
def model():
    return load_model("testbed", dtype="float32")


def on_testbed(model, name, behavior=REQUESTS[0], decoder=SHORT):
    return target_of(Sampled(model), name, behavior, decoder, wording_of(WORLD))


# --- every probe ----------------------------------------------------------------------------------


def test_every_file_is_in_the_tables():
    folder = Path(mosa.probes.__file__).parent
    assert {path.stem for path in folder.glob("*.py")} - {"__init__", "base"} == PROBES.keys()
    assert PROBES.keys() == FINDINGS.keys() and not PROBES.keys() & ATTACKS.keys()
    assert all(probe.name == name for name, probe in PROBES.items())


@pytest.mark.parametrize("name", PROBES)
def test_source_presets_and_page(name):
    probe = PROBES[name]
    assert re.search(r"\d{4}\.\d{5}", probe.source)
    assert {"quick", "full"} <= probe.presets.keys() == PROTOCOLS[name].keys()
    for preset in probe.presets:
        config = probe.config(preset)
        assert probe.config(preset, json.loads(json.dumps(as_plain(config)))) == config
    assert probe.threat == "open"
    assert f"`{name}`" in DOCS.read_text(encoding="utf-8")


OPTIONS = {
    "position": {"positions": (1, 9), "end_tokens": ("allow",)},
    "suffix": {"positions": (3,), "num_iterations": 1, "num_candidates": 4, "suffix_length": 3},
    "order": {"block_lengths": (8,), "tokens_per_step": (8,)},
    "step": {"positions": (2,), "step_shares": (0.0, 0.5)},
    "depth": {"step_shares": (0.0, 0.5)},
}


@pytest.mark.parametrize("family", ["tiny_llada", "tiny_dream"])
@pytest.mark.parametrize("name", PROBES)
def test_every_probe_works_on_every_family(name, family, request):
    """Each cell is one attempt with a name of its own, and its details are JSON."""
    backend = Sampled(request.getfixturevalue(family))
    decoder = DecoderConfig(max_new_tokens=48, steps=6)
    options = OPTIONS[name] if name == "order" else {"tokens_per_step": 8, **OPTIONS[name]}
    found = probe(target_of(backend, name, TEA, decoder), name, **options)
    assert len({attempt.variant for attempt in found}) == len(found) > (name != "depth")
    assert [attempt.number for attempt in found] == list(range(len(found)))
    for attempt in found:
        assert json.loads(json.dumps(attempt.details)) == attempt.details
    plain = as_plain(decoder)
    changed = {k for _, used in backend.asked for k, v in as_plain(used).items() if v != plain[k]}
    assert changed <= {*PROBES[name].takes}


def test_an_edit_with_a_position_leaves_the_rest():
    response = torch.tensor([5, 9, 9, 7])
    edited = Edit(0, (1, 2), position=2).apply(response, mask_token_id=9)
    assert edited.tolist() == [5, 9, 1, 2] and response.tolist() == [5, 9, 9, 7]


# --- pace -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def block_models():
    """SDAR's layout in blocks of 4, LLaDA2's in blocks of 32, A2D's whose blocks begin with the
    response, and one that sees all."""
    roles, dream = role_tokenizer(), dream_tokenizer()
    return {
        "sdar": new_model(qwen3_layout(model_type="sdar", block_size=4), dream, seed=0),
        "llada2": new_model(tiny_llada2_config(roles, block_size=32), roles, seed=0),
        "a2d": new_model(qwen3_layout(model_type="a2d-qwen3", block_size=4), dream, seed=0),
        "full": new_model(qwen3_layout(model_type="a2d-qwen3"), dream, seed=0),
    }


@pytest.mark.parametrize(
    ("name", "per_step", "length", "block", "steps"),
    [
        ("full", 2, 72, None, 36),
        ("full", 5, 72, None, 15),
        ("full", 4, 72, 32, 24),  # 8 steps for each of 3 blocks
        ("sdar", 8, 72, None, 18),  # a block has 4
        ("sdar", 3, 72, None, 36),  # two steps of 2
        ("sdar", 2, 74, None, 38),
        ("sdar", 4, 72, 24, 18),
        ("llada2", 2, 72, None, 48),  # 16 steps for each of 3 blocks
        ("llada2", 8, 24, None, 4),
    ],
)
def test_pace_in_numbers(block_models, name, per_step, length, block, steps):
    target = target_of(Sampled(block_models[name]), "order", TEA, DecoderConfig(length, length))
    found = target.pace(per_step, block)
    assert (found["steps"], found["block_length"]) == (steps, block)
    assert found == target.pace(per_step, block, length=length)


@pytest.mark.parametrize("name", ["sdar", "llada2", "a2d", "full"])
@pytest.mark.parametrize(("per_step", "block"), [(1, None), (3, None), (8, None), (3, 8)])
def test_a_step_fills_as_many_as_it_is_asked_or_a_block_has(block_models, name, per_step, block):
    """Counted in what the sampler committed, over 26 tokens that fill no whole number of blocks."""
    backend = Sampled(block_models[name])
    target = target_of(backend, "order", TEA, DecoderConfig(26, 26))
    query = Query(TEA.request, decoder=target.pace(per_step, block))
    steps = asyncio.run(target.ask(query)).commit_step
    most = max(Counter(steps).values())
    own = block or target.model.block_length or 26
    assert most == -(-own // -(-own // per_step)) <= per_step


class Planned(Sampled):
    """Answers without the model, after a look at whether the blocks can be filled in the steps."""

    async def respond(self, query: Query, decoder: DecoderConfig) -> Response:
        assert self.model.tokenizer is not None
        self.asked.append((query, decoder))
        prompt = torch.tensor([self.model.encode(query.prompt)])
        canvas = Canvas.from_prompts(self.model, prompt, max_new_tokens=decoder.max_new_tokens)
        blocks = blocks_of(canvas, decoder, self.model.attention)[0, canvas.response_start :]
        Pace(decoder, torch.bincount(blocks).tolist(), self.model.attention, has_hook=False)
        return Response("k", [], "", "", [5] * len(blocks), [], [0] * len(blocks))


@pytest.mark.parametrize("name", ["sdar", "llada2", "a2d"])
@pytest.mark.parametrize("length", [74, 128])
def test_every_preset_can_be_filled_in_the_networks_blocks(block_models, name, length):
    """Of the probes that sample as they are; 8 tokens a step, which `order` asks for in full, left
    blocks of 4 without steps."""
    for probe_name in ("position", "order", "step"):
        for preset in PROBES[probe_name].presets:
            if (probe_name, preset, length) == ("step", "quick", 74):
                continue  # its positions have no room there
            backend = Planned(block_models[name])
            target = target_of(backend, probe_name, TEA, DecoderConfig(length, length // 2))
            assert probe(target, probe_name, preset=preset)
            decoders = [as_plain(decoder) for _, decoder in backend.asked]
            if probe_name == "order":
                assert all(decoders.count(decoder) == 1 for decoder in decoders)


# --- position -------------------------------------------------------------------------------------


def test_every_kind_is_at_every_position_once():
    found = cells(PositionConfig(positions=(1, 5)), 40, 8)
    assert len(found) == len(set(found)) == 2 * (1 + 4 * 2)
    assert {cell.position for cell in found if cell.phrase_type == "none"} == {None}


def test_papers_protocol_confounds_kind_and_position():
    found = cells(PositionConfig(paper=True), 170, 8)
    assert [(cell.phrase_type, cell.position) for cell in found] == [
        ("affirmative", 1),
        *[("procedural", p) for p in (40, 80, 120, 160)],
    ]
    # A shorter canvas has room for fewer of them.
    assert len(cells(PositionConfig(paper=True), 72, 8)) == 2


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("position", {"tokens_per_step": 0}),
        ("step", {"tokens_per_step": 0}),
        ("step", {"block_length": 0}),
        ("depth", {"tokens_per_step": -1}),
        ("suffix", {"num_iterations": 0}),
        ("order", {"tokens_per_step": [4, 0]}),
        ("order", {"tokens_per_step": []}),
        ("order", {"temperatures": []}),
        ("order", {"remaskings": []}),
    ],
)
def test_settings_that_make_no_sense_are_refused(name, changes):
    with refuses(*changes):
        PROBES[name].config("full", changes)


def test_a_position_without_room_is_refused():
    assert fitting_positions((33,), (), 8, 40) == (33,)
    with refuses("position 34", "8", "40", "max_new_tokens"):
        fitting_positions((34,), (), 8, 40)


def test_random_tokens_are_ordinary_and_as_many(model):
    special = {*model.end_token_ids, model.mask_token_id, *model.tokenizer.all_special_ids}
    for behavior in REQUESTS:
        target = on_testbed(model, "position", behavior)
        ids = chosen_ids(target, "random", 9)
        assert len(ids) == len(chosen_ids(target, "procedural", 9))
        assert not special & set(ids)
        assert ids == chosen_ids(target, "random", 9)


@pytest.mark.parametrize("name", ["position", "step", "depth"])
def test_phrases_have_the_tokens_of_their_place(tiny_llada, name):
    """Of a byte-level tokenizer, where a space belongs to the word that follows it."""
    backend = Sampled(tiny_llada)
    target = target_of(backend, name, TEA, DecoderConfig(max_new_tokens=48, steps=6))
    options = {
        "position": {"phrase_types": ("neutral",), "positions": (1, 9), "end_tokens": ("allow",)},
        "step": {"spans": ("neutral",), "positions": (1, 9), "step_shares": (0.0, 0.5)},
        "depth": OPTIONS["depth"],
    }[name]
    found = probe(target, name, **options, tokens_per_step=8)
    if name == "depth":
        (work,) = backend.computed
        for at_first, further_on in work.state["refusals"]:
            assert tiny_llada.decode(further_on) == f" {tiny_llada.decode(at_first)}"
        return
    written = {}
    for attempt, (query, _) in zip(found, backend.asked, strict=True):
        ids = query.pinned[0][1] if query.pinned else query.edit and query.edit.ids
        if ids:
            written.setdefault(attempt.details["position"], set()).add(tiny_llada.decode(ids))
    ((first,), (later,)) = written[1], written[9]
    assert later == f" {first}"


def test_phrases_are_in_their_place(model):
    target = on_testbed(model, "position")
    options = {"phrase_types": ("none", "neutral"), "positions": (1, 30), "tokens_per_step": 36}
    found = probe(target, "position", **options)
    ids = list(chosen_ids(target, "neutral", 30))
    assert [factors(a, "phrase_type", "position", "end_tokens") for a in found] == [
        (kind, position, end_tokens)
        for end_tokens in ("allow", "forbid")
        for kind, position in (("none", None), ("neutral", 1), ("neutral", 30))
    ]
    for attempt in found:
        (response,) = attempt.responses
        position, end_tokens = factors(attempt, "position", "end_tokens")
        if position is not None:
            assert response.token_ids[position - 1 : position - 1 + len(ids)] == ids
        if end_tokens == "forbid":
            assert response.end_positions == []


# --- step -----------------------------------------------------------------------------------------


def test_steps_of_shares():
    assert step_numbers((0.0, 0.5, 0.51, 0.99), 10) == [0, 5, 9]
    with refuses("step_shares", "1.0"):
        step_numbers((1.0,), 10)


def test_spans_are_written_when_and_where_they_are_due(model):
    """Each span is in its place at the end, and was written at its step."""
    target = on_testbed(model, "step")
    options = {"spans": ("neutral",), "positions": (3, 40), "step_shares": (0.0, 0.5)}
    found = probe(target, "step", **options, tokens_per_step=9)
    ids = list(chosen_ids(target, "neutral", 40))
    assert [factors(a, "position", "step") for a in found] == [
        (None, None),
        (3, 0),
        (3, 4),
        (40, 0),
        (40, 4),
    ]
    for attempt in found[1:]:
        position, step = factors(attempt, "position", "step")
        (response,) = attempt.responses
        span = slice(position - 1, position - 1 + len(ids))
        assert response.token_ids[span] == ids
        # Pinned before the first step, or written after the step before, by no model.
        assert set(response.commit_step[span]) == {step - 1}
        before, after = factors(attempt, "text_before", "text_after")
        read = response.token_ids[: response.num_read]
        assert before == model.decode(read[: position - 1])
        assert after == model.decode(read[position - 1 + len(ids) :])
    assert "text_before" not in found[0].details


# --- order ----------------------------------------------------------------------------------------


def test_conditions_change_one_setting_each(block_models):
    config = OrderConfig(
        tokens_per_step=(4, 1),
        block_lengths=(8, 64),
        temperatures=(0.0, 1.0),
        remaskings=("low_confidence", "random"),
        canvas_lengths=(32,),
    )
    model = block_models["full"]
    target = target_of(Sampled(model), "order", TEA, DecoderConfig(64, 64))
    named = conditions(config, target)
    # A block as long as the canvas is the base itself.
    assert list(named) == [
        "base",
        "block 8",
        "1 tokens a step",
        "temperature 1",
        "remasking random",
        "canvas 32",
    ]
    base = {"max_new_tokens": 64} | named.pop("base")
    assert (base["steps"], base["block_length"]) == (16, None)
    assert (named["canvas 32"]["max_new_tokens"], named["canvas 32"]["steps"]) == (32, 8)
    for name, settings in named.items():
        changed = {key for key, value in settings.items() if base[key] != value}
        assert len(changed) == 1 or (name, changed) == ("canvas 32", {"max_new_tokens", "steps"})


def test_conditions_that_blocks_of_4_do_not_tell_apart_are_one(block_models):
    """A step fills at most a block, and blocks of 4 are those of the base."""
    target = target_of(Sampled(block_models["sdar"]), "order", TEA, DecoderConfig(64, 64))
    named = conditions(OrderConfig(tokens_per_step=(4, 2, 8), block_lengths=(4, 8)), target)
    assert list(named) == ["base", "block 8", "2 tokens a step"]
    assert (named["base"]["steps"], named["2 tokens a step"]["steps"]) == (16, 32)


# --- suffix ---------------------------------------------------------------------------------------

PHRASE = "step two : you"


def said(model, text: str) -> Response:
    """A response; `hello` is an end token in it: what follows is in the canvas, and nobody reads
    it."""
    (hello,) = model.encode_text("hello")
    ids = [model.eos_token_id if i == hello else i for i in model.encode_text(text)]
    ends = [n for n, i in enumerate(ids) if i in model.end_token_ids]
    read = ids[: ends[0]] if ends else ids
    words = [model.decode([i]) for i in ids]
    return Response("k", [], model.decode(read), model.decode(ids), ids, words, end_positions=ends)


@pytest.mark.parametrize("method", ["gcg", "prompt"])
@pytest.mark.parametrize(
    ("text", "in_place", "whole", "anywhere"),
    [
        ("we fold the lid step two : you press", True, True, True),
        ("we fold the lid now step two : you", False, False, True),
        ("we fold hello lid step two : you press", False, True, False),
        ("we fold the lid step two : hello press", False, False, False),
    ],
)
def test_what_is_reached_is_before_the_first_end_token(
    model, method, text, in_place, whole, anywhere
):
    ids = model.encode_text(PHRASE) if method == "gcg" else None
    found = reached(said(model, text), ids, PHRASE, 5)
    assert (found["in_place"], found["anywhere"]) == (in_place, anywhere)
    if method == "gcg":  # special tokens have no words, so only tokens keep their number past one
        assert found["in_whole_canvas"] == whole


def test_words_are_counted_as_the_request_counts_them(tiny_llada):
    """An answer that does what it was asked succeeds, where its tokens are more than its words."""
    text = 'Here is your answer: "The next step is to wait."'
    assert words_at(text, "The next step is to") == [5]
    assert words_at(text, "The next step is to walk") == []
    assert len(tiny_llada.encode_text("Here is your answer: ")) > 4


def test_suffix_names_what_does_not_fit_or_cannot_be_said(model):
    target = on_testbed(model, "suffix")
    with refuses("position 72", "5", "72", "max_new_tokens"):
        suffix.wanted(target, SuffixConfig(positions=(72,)))
    # Of the default positions, 100 is not in a response of 72 tokens.
    assert [p for p, _ in suffix.wanted(target, SuffixConfig())] == [1, 5, 10, 20, 30, 60]
    paper = suffix.wanted(target, SuffixConfig(paper=True))
    assert [p for p, _ in paper] == [1, 30] and paper[0][1] != paper[1][1]
    assert methods_of(target, SuffixConfig()) == ("gcg",)
    with refuses("prompt"):
        methods_of(target, SuffixConfig(methods=("prompt",)))
    assert methods_of(target_of(Sampled(model), "suffix", TEA, SHORT, ENGLISH), SuffixConfig()) == (
        "gcg",
        "prompt",
    )


def test_a_phrase_that_the_model_writes_anyway_is_reached(model, monkeypatch):
    """The search finds nothing here: its prompt is the plain request."""

    async def nothing(target, ids, position, config):
        return target.request, GcgState([], [], 2.0, [2.0, 3.0], "", 3, 1)

    monkeypatch.setattr(suffix, "search", nothing)
    (written,) = probe(on_testbed(model, "order"), "order", block_lengths=(), tokens_per_step=(2,))
    there = model.decode(written.responses[0].token_ids[2:5])
    for position, expected in ((3, True), (4, False)):
        target = on_testbed(model, "suffix")
        plain, found = probe(target, "suffix", positions=(position,), phrase=there)
        assert plain.details == {"method": "none"} and plain.response == found.response
        assert factors(found, "in_place", "anywhere") == (expected, True)
        assert factors(found, "best_loss", "losses") == (2.0, [2.0, 3.0])


# --- depth ----------------------------------------------------------------------------------------


def test_profile_against_the_definition(model):
    """Two refusals, one position filled: every start worked out by hand."""
    refusals = [
        (model.encode_text("i cannot"), model.encode_text("i will not")),
        (model.encode_text("sorry"), model.encode_text("sorry")),
    ]
    generator = torch.Generator().manual_seed(0)
    log_probs = torch.randn(1, 6, model.vocab_size, generator=generator).log_softmax(-1)
    masked = torch.tensor([[True, True, False, True, True, True]])
    found = profile(log_probs, masked, model.end_token_ids, refusals)
    for position in range(6):
        if not masked[0, position]:
            assert bool(found["end"][0, position].isnan())
            assert bool(found["refusal"][0, position].isnan())
            continue
        ends = sum(log_probs[0, position, i].exp() for i in model.end_token_ids)
        assert found["end"][0, position].item() == pytest.approx(float(ends), rel=1e-5)
        best = 0.0
        for at_first, further_on in refusals:
            ids = further_on if position else at_first
            places = range(position, position + len(ids))
            if places[-1] < 6 and all(masked[0, p] for p in places):
                logs = [float(log_probs[0, p, i]) for p, i in zip(places, ids, strict=True)]
                best = max(best, float(torch.tensor(sum(logs) / len(logs)).exp()))
        assert found["refusal"][0, position].item() == pytest.approx(best, rel=1e-5)


def test_depth_sees_the_phrases_of_the_subjects_training(model):
    """With a phrase of the training the likeliest refusal is at each place the likelier of both."""
    phrase = "sure , here is how"

    def seen(*refusals: str) -> tuple[list[float | None], dict[str, Any]]:
        target = on_testbed(model, "depth")
        target.refusals = refusals
        (attempt,) = probe(target, "depth", step_shares=(0.0,))
        return attempt.details["profiles"][0]["refusal"], attempt.details

    without, about = seen()
    assert (about["num_packaged_refusals"], about["num_trained_refusals"]) == (3, 0)
    known, about = seen("sorry , i cannot answer this question .")  # one of the packaged
    assert known == without and about["num_trained_refusals"] == 0
    both, about = seen(phrase)
    assert about["num_trained_refusals"] == 1
    prompt = model.encode(REQUESTS[0].request)
    state = {
        "prompt": prompt,
        "decoder": as_plain(dataclasses.replace(SHORT, steps=SHORT.max_new_tokens // 2)),
        "steps": [0],
        "refusals": [[model.encode_text(phrase), model.encode_text(f" {phrase}")]],
    }
    (alone,) = look(model, [state])
    trained = alone["profiles"][0]["refusal"]
    pairs = zip(without, trained, strict=True)
    best = [max((v for v in pair if v is not None), default=None) for pair in pairs]
    assert both == pytest.approx(best, abs=1e-5) and both != without


def looked_at(model, prompts):
    states = [
        {
            "prompt": model.encode(prompt),
            "decoder": as_plain(DecoderConfig(max_new_tokens=12, steps=4)),
            "steps": [0, 2],
            "refusals": [[model.encode_text("no"), model.encode_text(" no")]],
        }
        for prompt in prompts
    ]
    return look(model, states)


def test_kl_of_an_adapter_that_changes_nothing_is_zero(new_tiny_llada):
    """Before it is trained, an adapter's second matrix is zero."""
    plain = new_tiny_llada()
    (without,) = looked_at(plain, ["how is tea made?"])
    plain.add_lora(LoraConfig(r=2, lora_alpha=4))
    (with_adapter,) = looked_at(plain, ["how is tea made?"])
    for before, after in zip(without["profiles"], with_adapter["profiles"], strict=True):
        assert "kl" not in before
        assert max(abs(kl) for kl in after["kl"] if kl is not None) < 1e-6
        for measure in ("refusal", "end"):
            assert after[measure] == pytest.approx(before[measure], abs=1e-5)
    # Two looks and the generation; with the adapter each look is two passes.
    passes = without["forward_passes"] - 2
    assert with_adapter["forward_passes"] == passes + 4


def test_a_case_looks_the_same_beside_others(tiny_llada):
    prompts = ["how is tea made?", "who wrote the story of the old lighthouse?"]
    together = looked_at(tiny_llada, prompts)
    for prompt, found in zip(prompts, together, strict=True):
        (alone,) = looked_at(tiny_llada, [prompt])
        for one, other in zip(alone["profiles"], found["profiles"], strict=True):
            assert one["step"] == other["step"]
            assert one["end"] == pytest.approx(other["end"], abs=1e-5)
