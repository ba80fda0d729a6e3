"""Windows, breakers and revealed positions, in the units of the settings."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from align_tiny import tiny_model
from refusals import refuses

from mosa.alignment.mosa_config import MosaConfig
from mosa.alignment.phrases import breaker_token_ids, encode_phrases, read_phrases
from mosa.alignment.scoring import PhraseScorer, Place, window_of
from mosa.families import DiffusionLM

RESPONSE = 12


def settings(**changes) -> MosaConfig:
    values: dict[str, Any] = {"response_length": RESPONSE, "window_start": 3, "window_end": 8}
    return MosaConfig(**{**values, **changes})


def phrases(model: DiffusionLM, *texts: str, breaker: Any = "none"):
    return encode_phrases(model, texts, leading_space="without", breaker=breaker)


def random_log_probs(model: DiffusionLM, rows: int = 1, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, RESPONSE, model.vocab_size, generator=generator).log_softmax(-1)


def score_one(model, config, phrase, log_probs, free=None, wide=False):
    free = torch.ones(log_probs.shape[:2], dtype=torch.bool) if free is None else free
    scorer = PhraseScorer(config, [phrase], model.vocab_size)
    rows, window = len(log_probs), scorer.wide_window if wide else scorer.window
    places = [[Place(row, phrase, window)] for row in range(rows)]
    return scorer(log_probs[..., scorer.scored_ids], free, places)


@pytest.mark.parametrize("segment", ["contain", "start_in_window"])
def test_window_edges(model, segment):
    """Window 3..8, phrase of three tokens: starts 3..6 if contained, 3..8 if it may overrun."""
    (phrase,) = phrases(model, "we stop here")
    config = settings(segment=segment)
    last_start = 6 if segment == "contain" else 8
    scored = set()
    for start in range(1, RESPONSE - 1):
        log_probs = torch.full((1, RESPONSE, model.vocab_size), -10.0)
        for j, token in enumerate(phrase.variants[0]):
            log_probs[0, start - 1 + j, token] = -0.5
        scores = score_one(model, config, phrase, log_probs)
        if scores.value.item() == -1.5:
            assert scores.best_start.item() + 1 == start
            scored.add(start)
    assert scored == set(range(3, last_start + 1))


def test_without_an_end_phrases_start_at_the_first_position_exactly(model):
    config = settings(window_start=1, window_end=None)
    (phrase,) = phrases(model, "we stop here")
    window = window_of(config, [phrase])
    assert (window.first, window.last, window.end) == (0, 0, 3)
    log_probs = random_log_probs(model)
    expected = sum(log_probs[0, j, t].item() for j, t in enumerate(phrase.variants[0]))
    scores = score_one(model, config, phrase, log_probs)
    assert scores.value.item() == pytest.approx(expected)


def test_phrase_longer_than_the_window_is_an_error(model):
    (phrase,) = phrases(model, "therefore i cannot answer this question .")
    with refuses("therefore i cannot answer this question .", "7", "6"):
        window_of(settings(), [phrase])
    (phrase,) = phrases(model, "we stop here", breaker="eot_then_eos_run")
    with refuses("we stop here", "7", "6"):
        window_of(settings(), [phrase])


def test_breakers(model):
    """What each breaker appends; `fill` appends nothing and fills instead."""
    eos = model.eos_token_id
    eot = next(i for i in model.end_token_ids if i != eos)
    assert breaker_token_ids(model, "none") == ((), None)
    assert breaker_token_ids(model, "eos") == ((eos,), None)
    assert breaker_token_ids(model, "eot") == ((eot,), None)
    assert breaker_token_ids(model, "eot_then_eos_run") == ((eot, eos, eos, eos), None)
    assert breaker_token_ids(model, "fill") == ((), eos)


def test_fill_breaker_in_the_window(model):
    """Window 3..8, phrase of three: from start k the rest of the window is end-of-text."""
    (phrase,) = phrases(model, "we stop here", breaker="fill")
    log_probs = random_log_probs(model)
    expected = max(
        sum(log_probs[0, k + j, t].item() for j, t in enumerate(phrase.variants[0]))
        + sum(log_probs[0, p, model.eos_token_id].item() for p in range(k + 3, 8))
        for k in range(2, 6)
    )
    scores = score_one(model, settings(breaker="fill"), phrase, log_probs)
    assert scores.value.item() == pytest.approx(expected, rel=1e-5)


def test_free_starts_avoid_revealed_positions(model):
    """Position 5 revealed in the window 3..8: only starts 6 (tokens 6, 7, 8) is left."""
    (phrase,) = phrases(model, "we stop here")
    free = torch.ones(1, RESPONSE, dtype=torch.bool)
    free[0, 4] = False
    log_probs = random_log_probs(model)
    scores = score_one(model, settings(), phrase, log_probs, free)
    assert scores.found.item() and scores.best_start.item() + 1 == 6
    free[0, 6] = False
    scores = score_one(model, settings(), phrase, log_probs, free)
    assert not scores.found.item() and scores.value.item() == 0.0


def test_around_writes_on_the_masked_positions(model):
    """Positions 4 and 6 revealed: the phrase stands on three of 3, 5, 7, 8, in order."""
    (phrase,) = phrases(model, "we stop here")
    ids = phrase.variants[0]
    free = torch.ones(1, RESPONSE, dtype=torch.bool)
    free[0, [3, 5]] = False
    log_probs = random_log_probs(model)
    places = [[2, 4, 6], [4, 6, 7]]
    values = [sum(log_probs[0, p, t].item() for p, t in zip(at, ids, strict=True)) for at in places]
    scores = score_one(model, settings(revealed="around"), phrase, log_probs, free)
    assert scores.value.item() == pytest.approx(max(values), rel=1e-5)
    assert scores.best_start.item() == places[values.index(max(values))][0]


@pytest.mark.parametrize("revealed", ["free", "around"])
def test_all_rules_agree_on_a_fully_masked_answer(model, revealed):
    (phrase,) = phrases(model, "we stop here", breaker="eos")
    log_probs = random_log_probs(model, rows=3)
    expected = score_one(model, settings(), phrase, log_probs)
    scores = score_one(model, settings(revealed=revealed), phrase, log_probs)
    torch.testing.assert_close(scores.value, expected.value)
    assert torch.equal(scores.best_start, expected.best_start)


def test_wide_rows_use_the_whole_response(model):
    (phrase,) = phrases(model, "we stop here")
    log_probs = torch.full((1, RESPONSE, model.vocab_size), -10.0)
    for j, token in enumerate(phrase.variants[0]):
        log_probs[0, 9 + j, token] = -0.5
    config = settings(contaminated_window="response")
    assert score_one(model, config, phrase, log_probs, wide=False).value.item() == -30.0
    scores = score_one(model, config, phrase, log_probs, wide=True)
    assert scores.value.item() == -1.5 and scores.best_start.item() == 9


def test_rows_with_different_phrases_are_scored_apart(model):
    """A batch of two rows with two phrases each equals the four single scores."""
    first, second = phrases(model, "we stop here", "therefore i cannot")
    config, log_probs = settings(), random_log_probs(model, rows=2)
    scorer = PhraseScorer(config, [first, second], model.vocab_size)
    free = torch.ones(2, RESPONSE, dtype=torch.bool)
    scored = log_probs[..., scorer.scored_ids]
    pairs = [[first, second], [second, first]]
    places = [[Place(row, p, scorer.window) for p in own] for row, own in enumerate(pairs)]
    both = scorer(scored, free, places)
    for row, place, phrase in ((0, 0, first), (0, 1, second), (1, 0, second), (1, 1, first)):
        alone = score_one(model, config, phrase, log_probs[row : row + 1])
        assert both.value[row, place].item() == pytest.approx(alone.value.item())


def test_variants_compete_for_the_start(model):
    """A word-level tokenizer knows no leading space, so that both variants are one."""
    (phrase,) = encode_phrases(model, ["we stop"], leading_space="both")
    assert len(phrase.variants) == 1


def test_unknown_words_are_named(model):
    with refuses("we stop quantum", "quantum"):
        phrases(model, "we stop quantum")


def test_phrases_need_a_tokenizer():
    with refuses("tokenizer"):
        phrases(tiny_model(with_tokenizer=False), "we stop")


def test_packaged_phrase_sets_read():
    for name in ("refusals", "continuations", "testbed_refusals", "testbed_continuations"):
        assert len(read_phrases(name)) >= 2
    with refuses("nowhere", "refusals"):
        read_phrases("nowhere")


def test_a_phrase_file_without_phrases_is_an_error(tmp_path):
    (tmp_path / "empty.txt").write_text("# nothing\n\n")
    with refuses("empty.txt"):
        read_phrases(tmp_path / "empty.txt")
