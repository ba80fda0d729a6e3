"""Laying out prompts, pinning tokens, masking again."""

from dataclasses import replace

import torch
from refusals import refuses

from mosa.denoising import Canvas, sample
from mosa.types import Message


def test_prompts_are_padded_on_the_left(tiny_llada):
    canvas = Canvas.from_prompts(
        tiny_llada, ["Tell me", "Tell me how to make tea."], max_new_tokens=3
    )
    long = tiny_llada.encode("Tell me how to make tea.")
    short = tiny_llada.encode("Tell me")
    mask = tiny_llada.mask_token_id
    assert canvas.tokens[1].tolist() == [*long, mask, mask, mask]
    padding = len(long) - len(short)
    assert canvas.tokens[0, padding:].tolist() == [*short, mask, mask, mask]
    assert canvas.attention_mask[0].tolist() == [False] * padding + [True] * (len(short) + 3)
    assert canvas.response_start == len(long)
    assert canvas.response.tolist() == [[mask] * 3] * 2
    assert canvas.free.sum(dim=1).tolist() == [3, 3]


def test_a_system_turn_stands_before_strings_and_dialogues(tiny_llada):
    as_string = Canvas.from_prompts(tiny_llada, ["Tell me"], max_new_tokens=1, system="Be brief.")
    turns = [Message("system", "Be brief."), Message("user", "Tell me")]
    as_turns = Canvas.from_prompts(tiny_llada, [turns], max_new_tokens=1)
    assert torch.equal(as_string.tokens, as_turns.tokens)
    with refuses("chat template"):
        Canvas.from_prompts(tiny_llada, as_turns.tokens, max_new_tokens=1, system="Be brief.")


def test_users_cannot_write_masks(tiny_llada):
    canvas = Canvas.from_prompts(tiny_llada, ["fill <|mdm_mask|> in"], max_new_tokens=2)
    assert canvas.free.sum() == 2


def test_ids_are_moved_to_the_right_of_their_padding(tiny_llada):
    ids = torch.tensor([[5, 6, 0, 0], [0, 7, 0, 8]])
    real = torch.tensor([[1, 1, 0, 0], [0, 1, 0, 1]])
    canvas = Canvas.from_prompts(tiny_llada, ids, max_new_tokens=1, attention_mask=real)
    assert canvas.tokens[:, :4].tolist() == [[0, 0, 5, 6], [0, 0, 7, 8]]
    assert canvas.attention_mask[:, :4].tolist() == [[False, False, True, True]] * 2
    assert canvas.select(torch.tensor([0, 1])).tokens.shape == (2, 3)


def test_pinning(padded_canvas):
    mask = padded_canvas.mask_token_id
    run = padded_canvas.pin(2, [11, 12])
    assert run.response.tolist() == [[mask, mask, 11, 12, mask, mask, mask, mask]] * 3
    assert torch.equal(padded_canvas.response, torch.full((3, 8), mask))  # a new canvas
    places = padded_canvas.pin(torch.tensor([0, 7]), [11, 12], rows=1)
    assert places.response[1].tolist() == [11, *[mask] * 6, 12]
    assert (places.response[[0, 2]] == mask).all()
    per_row = padded_canvas.pin(0, torch.tensor([[11], [12]]), rows=[2, 0])
    assert per_row.response[:, 0].tolist() == [12, mask, 11]
    template = padded_canvas.pin(0, [11, mask, mask, 12])
    assert template.free[:, template.response_start :].sum(dim=1).tolist() == [6, 6, 6]
    assert padded_canvas.pin(3, 9, rows=0).response[0, 3] == 9
    full = padded_canvas.pin(0, list(range(20, 28)))
    again = full.pin(torch.tensor([1, 2]), [mask, mask], rows=0)
    assert again.response[0].tolist() == [20, mask, mask, 23, 24, 25, 26, 27]
    assert not full.free.any() and not again.free[1:].any()


def test_mistakes(padded_canvas, tiny_llada):
    with refuses("[7, 8]", "8", "max_new_tokens"):
        padded_canvas.pin(7, [1, 2])
    with refuses("3", "2"):
        padded_canvas.pin(torch.tensor([0, 1]), [1, 2, 3])
    with refuses("response"):
        Canvas(torch.ones(1, 3).long(), torch.ones(1, 3).bool(), 3, 0)
    with refuses("[rows, length]", "[4]"):
        Canvas.from_prompts(tiny_llada, torch.ones(4), max_new_tokens=2)
    with refuses("prompt"):
        Canvas.from_prompts(tiny_llada, torch.ones(0, 4).long(), max_new_tokens=2)
    with refuses("max_new_tokens"):
        Canvas.from_prompts(tiny_llada, ["hi"], max_new_tokens=0)


def test_a_canvas_may_be_all_response(tiny_llada):
    """Then there is no token to look at before the first step."""
    canvas = Canvas.from_prompts(tiny_llada, "Tell me", max_new_tokens=4)
    alone = replace(canvas, response_start=0).select(torch.tensor([0]))
    masks = torch.full_like(alone.tokens, tiny_llada.mask_token_id)
    filled = sample(tiny_llada, replace(alone, tokens=masks), steps=4).tokens
    assert bool((filled != tiny_llada.mask_token_id).all())
