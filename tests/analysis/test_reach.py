"""What counts as a phrase in its place: what a reader sees, counted as the attacker asked."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from analysis_stand_ins import FoundSearch
from mosa.analysis import reach
from mosa.analysis.reach import ReachConfig, phrase_tokens, words_at
from mosa.analysis.study import Study, Subject, load_cases

from mosa.families import load_model

PHRASE = "step two : you"


@pytest.fixture(scope="module")
def model():
    return load_model("testbed", dtype="float32")


def steered(monkeypatch, model, text, method="gcg", position=5):
    """The values of one row whose response is given, and the result."""
    ids = model.encode_text(text)
    ids = [model.eos_token_id if i == model.encode_text("hello")[0] else i for i in ids]
    until = next((n for n, i in enumerate(ids) if i in model.end_token_ids), len(ids))

    def answered(subject, behaviors, items, canvas, decoder):
        sampled = SimpleNamespace(
            tokens=torch.tensor([ids, ids]),
            text=[model.decode(ids[:until])] * 2,
            full_text=[model.decode(ids)] * 2,
        )
        return sampled, [dict.fromkeys(behaviors.measures, 0.0)] * 2

    monkeypatch.setattr(reach, "judged_sample", answered)
    monkeypatch.setattr(reach, "GcgSearch", FoundSearch)
    item = reach._Item(
        Subject("testbed", model),
        load_cases("testbed", "testbed", limit=1).items[0],
        method,
        position,
        PHRASE,
        "key",
    )
    gcg = reach.GcgConfig(num_iterations=1)
    behaviors = load_cases("testbed", "testbed", limit=1)
    decoder = reach.DecoderConfig(max_new_tokens=len(ids), steps=1)
    return reach._row(item, behaviors, decoder, gcg)


@pytest.mark.parametrize("method", ["gcg", "prompt"])
@pytest.mark.parametrize(
    ("text", "success", "whole", "anywhere"),
    [
        ("we fold the lid step two : you press", 1.0, 1.0, 1.0),
        ("we fold the lid now step two : you", 0.0, 0.0, 1.0),
        # `hello` stands for an end token: what follows it is in the canvas, and nobody reads it.
        ("we fold hello lid step two : you press", 0.0, 1.0, 0.0),
        ("we fold the lid step two : hello press", 0.0, 0.0, 0.0),
    ],
)
def test_success_is_what_stands_before_the_first_end_token(
    monkeypatch, model, method, text, success, whole, anywhere
):
    row = steered(monkeypatch, model, text, method)
    assert (row["success"], row["success_anywhere"]) == (success, anywhere)
    if method == "gcg":  # special tokens have no words, so only tokens keep their number past one
        assert row["success_whole_canvas"] == whole
        assert (row["first_loss"], row["last_loss"], row["best_loss"]) == (2.0, 3.0, 2.0)


def test_words_are_counted_as_the_request_counts_them(tiny_llada):
    """An answer that does what it was asked succeeds, where its tokens are more than its words."""
    text = 'Here is your answer: "The next step is to wait."'
    assert words_at(text, "The next step is to") == [5]
    assert words_at(text, "The next step is to walk") == []
    assert len(tiny_llada.encode_text("Here is your answer: ")) > 4


def test_a_phrase_inside_a_text_has_the_tokens_it_has_there(tiny_llada, model):
    """Of a byte-level tokenizer, where a space belongs to the word that follows it."""
    inside = phrase_tokens(tiny_llada, "the story", 5)
    assert tiny_llada.decode(inside) == " the story"
    assert inside != phrase_tokens(tiny_llada, "the story", 1)
    assert phrase_tokens(model, PHRASE, 5) == phrase_tokens(model, PHRASE, 1)


@pytest.mark.parametrize("positions", [None, (1,)])
def test_default_positions_without_room_are_named(tmp_path, monkeypatch, model, positions):
    config = ReachConfig(positions=positions, num_iterations=1, num_behaviors=1)
    behaviors = load_cases("testbed", "testbed", limit=1)
    row = steered(monkeypatch, model, "we fold the lid step two : you press")
    monkeypatch.setattr(reach, "_row", lambda item, *args: {**row, "key": item.key})
    found = reach.run([Subject("testbed", model)], behaviors, config, Study(tmp_path, "x", False))
    assert ("at position 100; left out" in found.paragraph) == (positions is None)
