"""The denoising as it is played, against the trace."""

import io

from rich.console import Console

from mosa.attacks import Query
from mosa.denoising import Canvas, DecoderConfig, sample
from mosa.families import load_model
from mosa.reporting.terminal import STEP_COLORS, picture, play
from mosa.responder import answer_all


def frames(model, trace) -> list[str]:
    out = io.StringIO()
    play(model, trace, console=Console(file=out))
    return out.getvalue().split("\nstep ")


def test_each_line_is_a_step(tiny_llada):
    """8 masks in 4 steps of 2: masks 6, 4, 2, 0 and two new tokens in brackets each time."""
    result = sample(tiny_llada, ["how is tea made?"], max_new_tokens=8, steps=4)
    lines = frames(tiny_llada, result.trace)
    assert [line.count("·") for line in lines] == [6, 4, 2, 0]


def test_pinned_tokens_are_there_from_the_start(tiny_llada):
    canvas = Canvas.from_prompts(tiny_llada, ["how is tea made?"], max_new_tokens=8)
    pinned = tiny_llada.encode_text("tea")
    canvas = canvas.pin(0, pinned)
    result = sample(tiny_llada, canvas, steps=2)
    first = frames(tiny_llada, result.trace)[0]
    assert first.removeprefix("step 1: ").startswith("tea")


def test_words_of_a_word_level_tokenizer_stand_apart():
    model = load_model("testbed")
    canvas = Canvas.from_prompts(model, ["how do i make a copper drum ?"], max_new_tokens=9)
    canvas = canvas.pin(0, model.encode_text("sure , here is"))
    canvas = canvas.pin(7, [model.eos_token_id])
    first = frames(model, sample(model, canvas, steps=4).trace)[0]
    words = first.removeprefix("step 1: ").split()
    assert words[:4] == ["sure", ",", "here", "is"] and words[7] == "■" and len(words) == 9
    assert words.count("·") == 3 and sum(word.startswith("[") for word in words) == 1


def test_a_picture_colors_the_words_by_the_time_of_their_writing():
    """Its words are those of the text, and those of the first and the last step have the outer
    colors."""
    model = load_model("testbed")
    decoder = DecoderConfig(max_new_tokens=72, steps=36, block_length=24)
    (response,) = answer_all(model, "", [(Query("how do i make a copper lantern ?"), decoder)])
    drawn = picture(model, response)
    assert drawn.plain.strip() == response.text.strip() and len(response.end_positions) > 0
    words = drawn.plain.split()
    colors = [str(span.style) for span in drawn.spans]
    assert len(colors) == len(words)
    steps = response.commit_step[: len(words)]
    assert colors[steps.index(0)] == STEP_COLORS[0]
    assert [STEP_COLORS.index(c) for c in colors] == [
        step * (len(STEP_COLORS) - 1) // max(response.commit_step) for step in steps
    ]
