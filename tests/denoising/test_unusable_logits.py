"""Logits that choose no token are no answer, and a prompt beyond the context no prompt."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import torch
from refusals import refuses

from mosa.attacks import Query
from mosa.denoising import Canvas, DecoderConfig, Denoiser, log_likelihood_bound, sample
from mosa.families import DiffusionLM
from mosa.responder import LocalResponder, answer_all
from mosa.suffix_search import Loss
from mosa.types import UserError
from mosa.utility.likelihoods import likelihoods

NAN, INF = float("nan"), float("inf")
SHORT: dict[str, Any] = {"max_new_tokens": 8, "steps": 4, "block_length": 4}
DECODERS = [
    {},
    {"temperature": 0.7},
    {"temperature": 0.7, "top_p": 0.9, "top_k": 5},
    {"remasking": "random"},
    {"remasking": "entropy"},
    {"remasking": "left_to_right"},
    {"remasking": "origin"},
    {"alg_temp": 0.5},
    {"threshold": 0.9},
    {"factor": 0.5},
    {"cfg_scale": 0.5},
    {"end_tokens": "suppress"},
    {"stop_when_finished": True},
    {"cache": "dual"},
    {"rules": ({"name": "remask_below", "threshold": 0.2, "max_taken_back": 4},)},
]


def unusable(new: object, value: float, token: int | None = None) -> DiffusionLM:
    """A tiny model in whose head one token (all: None) has this weight."""
    model = new()  # type: ignore[operator]
    with torch.no_grad():
        head = model.network.lm_head.weight
        (head if token is None else head[token]).fill_(value)
    return model


@pytest.mark.parametrize("decoder", DECODERS, ids=str)
def test_no_decoder_takes_nan_for_an_answer(new_tiny_llada, decoder):
    model = unusable(new_tiny_llada, NAN)
    with refuses(model.source, "NaN", "step 1"):
        sample(model, ["Hi", "Tell me how to make tea"], **SHORT, **decoder)


@pytest.mark.parametrize(("value", "token"), [(INF, None), (0.0, None), (NAN, 7), (INF, 7)])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_infinite_and_equal_logits_are_no_answer(new_tiny_dream, value, token, temperature):
    model = unusable(new_tiny_dream, value, token)
    with refuses(model.source):
        sample(model, "Hi", **SHORT, temperature=temperature)


def test_a_nan_of_the_mask_token_alone_is_seen(new_tiny_llada):
    model = new_tiny_llada()
    with torch.no_grad():
        model.network.lm_head.weight[model.mask_token_id] = NAN
    with refuses("NaN"):
        sample(model, "Hi", **SHORT, remasking="random")


def test_numbers_that_break_later_name_their_step(new_tiny_llada):
    """A hook breaks the head after two whole steps."""
    model = new_tiny_llada()

    def spoil(view):
        if view.step == 1:
            with torch.no_grad():
                model.network.lm_head.weight.fill_(NAN)

    with refuses("step 3"):
        sample(model, "Hi", max_new_tokens=8, steps=8, hook=spoil)


def test_nobody_is_shown_a_unusable_row(new_tiny_llada):
    shown = []
    model = unusable(new_tiny_llada, NAN)
    with refuses("NaN"):
        sample(model, "Hi", **SHORT, hook=shown.append)
    denoiser = Denoiser(model, 1)
    canvas = Canvas.from_prompts(model, "Hi", max_new_tokens=8)
    denoiser.add(canvas, DecoderConfig(**SHORT), on_step=shown.append)
    while denoiser.has_work:
        denoiser.step()
    assert not shown


def test_only_the_unusable_row_of_a_batch_fails(new_tiny_llada):
    """The embedding of one token is unusable, and one prompt holds it; the rest is answered."""
    model = new_tiny_llada()
    (token,) = set(model.encode_text("tea")) - set(model.encode("Hi")) or {None}
    whole = answer_all(model, "w", [(Query("Hi"), DecoderConfig(**SHORT))])
    with torch.no_grad():
        model.network.get_input_embeddings().weight[token] = NAN
    responder = LocalResponder(model, "w", batch_size=4)

    async def ask() -> list[object]:
        queries = [Query("Hi"), Query("tea"), Query("Hi")]
        prepared = [responder.prepare(query, DecoderConfig(**SHORT)) for query in queries]
        return await asyncio.gather(*map(responder.submit, prepared), return_exceptions=True)

    try:
        first, second, third = asyncio.run(ask())
    finally:
        responder.close()
    assert isinstance(second, UserError) and "step 1" in str(second)
    assert first == third == whole[0]


def test_a_unusable_row_gives_its_place_up_at_once(new_tiny_llada):
    model = unusable(new_tiny_llada, NAN)
    denoiser = Denoiser(model, 1)
    config = DecoderConfig(max_new_tokens=16, steps=16)
    canvas = Canvas.from_prompts(model, "Hi", max_new_tokens=16)
    fillings = [denoiser.add(canvas, config) for _ in range(3)]
    num_steps = 0
    while denoiser.has_work:
        denoiser.step()
        num_steps += 1
    assert [filling.unusable_step for filling in fillings] == [0, 0, 0]
    assert num_steps <= 4


def test_likelihoods_and_logits_are_checked(new_tiny_llada):
    model = unusable(new_tiny_llada, NAN)
    canvas = Canvas.from_prompts(model, "Hi", max_new_tokens=2).pin(0, [5, 6])
    with refuses(model.source, "NaN"):
        log_likelihood_bound(model, canvas, num_samples=2)
    with refuses(model.source, "NaN"):
        model.logits(canvas.tokens)


def test_searches_and_compared_answers_are_checked(new_tiny_llada):
    """Work that attacks and tasks ask for beside generations."""
    model = unusable(new_tiny_llada, NAN)
    loss = Loss(model, [5, 9], 1, 6, 8)
    prompt = torch.tensor([20, 21, 22])
    state = {"prompt": [20, 21], "num_draws": 2, "cfg_scale": 0.0, "seed": 0, "greedy": False}
    for look in (
        lambda: loss(prompt[None]),
        lambda: loss.gradient(prompt),
        lambda: likelihoods(model, [{**state, "answers": [[5]]}]),
        lambda: likelihoods(model, [{**state, "answers": [[5, 6]]}]),
    ):
        with refuses(model.source, "NaN"):
            look()


# ------------------------------------------------------------------------------------ the context


def test_a_prompt_beyond_the_context_is_refused_on_every_way(tiny_llada):
    """512 positions; the check comes before the first step."""
    context = tiny_llada.max_length
    long = torch.full((1, context - 7), 5)
    names = (str(context - 7), "8", str(context))
    for prompts in (long, Canvas(
        tokens=torch.cat([long, torch.full((1, 8), tiny_llada.mask_token_id)], dim=1),
        attention_mask=torch.ones(1, context + 1, dtype=torch.bool),
        response_start=context - 7,
        mask_token_id=tiny_llada.mask_token_id,
    )):  # fmt: skip
        with refuses(*names):
            sample(tiny_llada, prompts, **SHORT)
    with refuses(*names):
        Canvas.from_prompts(tiny_llada, long, max_new_tokens=8)
    with refuses(str(context)):
        sample(tiny_llada, "tea " * 3000, **SHORT)
    with refuses(str(context)):
        answer_all(tiny_llada, "w", [(Query("tea " * 600), DecoderConfig(**SHORT))])
    full = Canvas(
        tokens=torch.full((1, context + 1), 5),
        attention_mask=torch.ones(1, context + 1, dtype=torch.bool),
        response_start=context - 7,
        mask_token_id=tiny_llada.mask_token_id,
    )
    with refuses(*names):
        log_likelihood_bound(tiny_llada, full, num_samples=2)


def test_padding_does_not_count(tiny_llada):
    """A prompt that just fits, padded."""
    num = tiny_llada.max_length - 8
    ids = torch.full((1, num + 3), 5)
    real = torch.ones_like(ids)
    real[:, :3] = 0
    canvas = Canvas.from_prompts(tiny_llada, ids, max_new_tokens=8, attention_mask=real)
    assert sample(tiny_llada, canvas, steps=1).tokens.shape == (1, 8)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_narrow_format_is_the_first_remedy(new_tiny_llada, dtype):
    model = unusable(new_tiny_llada, NAN)
    model.network.to(dtype)
    with refuses(model.source, "--dtype float32"):
        sample(model, ["Hi"], **SHORT)
