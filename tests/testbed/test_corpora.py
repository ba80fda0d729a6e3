"""What the testbed's corpora hold, and that its tokenizer knows every word of them."""

from __future__ import annotations

import itertools
import random

from mosa.testbed import RESPONSE_LENGTH
from mosa.testbed.corpora import (
    alignment_prompts,
    benign_prompts,
    helpful_corpus,
    shallow_corpus,
)
from mosa.testbed.tokenizer import build_tokenizer
from mosa.types import Prompt, dialogue
from mosa.world import HELDOUT_WRAPPINGS, TRAIN_WRAPPINGS, WRAPPINGS, World
from mosa.world.world import REFUSALS

WORLD = World(0)
HELDOUT = WORLD.objects(restricted=True, split="heldout")


def words_of(prompt: Prompt) -> str:
    return " ".join(turn.content for turn in dialogue(prompt))


def test_the_tokenizer_knows_every_word_of_every_text():
    tokenizer = build_tokenizer()
    texts = [words_of(r) for w in WRAPPINGS for o in HELDOUT for r in WORLD.requests(o, w)]
    rng = random.Random(0)
    for stream in (helpful_corpus(WORLD, rng), shallow_corpus(WORLD, rng)):
        for example in itertools.islice(stream, 300):
            assert example.answer is not None
            assert len(example.answer.split()) < RESPONSE_LENGTH
            texts += [words_of(example.prompt), example.answer]
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == text


def test_alignment_never_sees_heldout_objects_or_wrappings():
    heldout = {obj.name for obj in HELDOUT}
    unrestricted_heldout = {o.name for o in WORLD.objects(restricted=False, split="heldout")}
    rng = random.Random(0)
    for example in alignment_prompts(WORLD, rng, 300) + benign_prompts(WORLD, rng, 300):
        text = words_of(example.prompt)
        assert not any(name in text for name in heldout | unrestricted_heldout)
    assert not set(TRAIN_WRAPPINGS) & set(HELDOUT_WRAPPINGS)
    assert {"direct", *TRAIN_WRAPPINGS, *HELDOUT_WRAPPINGS} == set(WRAPPINGS)


def test_shallow_training_refuses_direct_requests_and_answers_wrapped_ones():
    restricted = {o.name for o in WORLD.objects(restricted=True, split="train")}
    direct = {
        WORLD.request(o, variant=v): o.name
        for o in WORLD.objects(restricted=True, split="train")
        for v in range(3)
    }
    refused = answered_wrapped = 0
    for example in itertools.islice(shallow_corpus(WORLD, random.Random(0)), 1500):
        if isinstance(example.prompt, str) and example.prompt in direct:
            assert example.answer in REFUSALS
            refused += 1
        elif any(name in words_of(example.prompt) for name in restricted):
            assert example.answer not in REFUSALS
            answered_wrapped += 1
    assert refused > 200
    assert answered_wrapped > 60
