"""Records survive interruption, and their keys change with whatever determines a response."""

import dataclasses

import pytest

from mosa.denoising import DecoderConfig, sample
from mosa.evaluation.records import JsonLines, attempt_of, attempts_of
from mosa.types import Message, UserError, content_key

CONFIG = DecoderConfig(max_new_tokens=8, steps=4)
PROMPTS = ["how is tea made?", [Message("user", "hello"), Message("user", "and now?")]]


@pytest.fixture(scope="module")
def attempts(tiny_llada):
    return attempts_of(
        tiny_llada,
        sample(tiny_llada, PROMPTS, CONFIG),
        model_name="tiny",
        model_version="1",
        attack="direct",
        behaviors=["tea", "hello"],
        prompts=PROMPTS,
    )


def test_attempt_holds_the_generation(tiny_llada, attempts):
    result = sample(tiny_llada, PROMPTS, CONFIG)
    assert result.text is not None
    assert [a.response for a in attempts] == result.text
    start = result.trace.response_start
    assert attempts[1].responses[0].commit_step == result.trace.commit_step[1, start:].tolist()
    assert attempts[1].prompt[1] == {"role": "user", "content": "and now?"}
    for attempt, ids in zip(attempts, result.tokens.tolist(), strict=True):
        ends = [i for i, id in enumerate(ids) if id in tiny_llada.end_token_ids]
        assert attempt.responses[0].end_positions == ends
        assert attempt.responses[0].num_read == (ends[0] if ends else 8)


def test_written_attempts_are_read_back(tmp_path, attempts):
    log = JsonLines(tmp_path / "folder" / "attempts.jsonl")
    for attempt in attempts:
        log.append_attempt(attempt)
    assert [attempt_of(record) for record in log] == attempts


def test_a_line_cut_off_is_dropped_and_replaced(tmp_path, attempts):
    """What a killed process leaves behind neither breaks reading nor the next line."""
    log = JsonLines(tmp_path / "attempts.jsonl")
    for attempt in attempts:
        log.append_attempt(attempt)
    whole = log.path.read_bytes()
    log.path.write_bytes(whole[:-20])
    assert [record["key"] for record in log] == [attempts[0].key]
    log.append_attempt(attempts[1])
    assert log.path.read_bytes() == whole


def test_damage_in_the_middle_is_reported(tmp_path):
    path = tmp_path / "attempts.jsonl"
    path.write_text('{"key": "a"}\n{"key"\n{"key": "c"}\n')
    with pytest.raises(UserError, match="line 2"):
        list(JsonLines(path))


def test_key_changes_with_everything_that_determines():
    base = {"model": "m", "prompt": [{"role": "user", "content": "x"}]}
    decoder = dataclasses.asdict(CONFIG)
    key = content_key(**base, decoder=decoder)
    assert key == content_key(decoder=dict(reversed(decoder.items())), **base)
    others = [
        content_key(**base | {"model": "n"}, decoder=decoder),
        content_key(**base, decoder=decoder | {"steps": 5}),
        content_key(**base, decoder=decoder, attack="prefill"),
    ]
    assert len({key, *others}) == 4
