"""Canvases of uniform noise: the library's own sampler token by token, pins, ends, hooks."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest
import torch
import transformers.models.diffusion_gemma.generation_diffusion_gemma as theirs
from refusals import refuses
from tiny_models import VARIANTS, randomised, turn_tokenizer
from transformers import DiffusionGemmaForBlockDiffusion

from mosa.denoising import Action, Canvas, DecoderConfig, denoiser_of, evaluation_mode, sample
from mosa.denoising.drawing import draw
from mosa.draws import TOKEN_DRAW, counter_uniform, row_keys
from mosa.families import DiffusionLM, new_model
from mosa.families import noise as of_noise

C = 16


def tiny(number: int = 0, scale: float = 1.0) -> DiffusionLM:
    """A model with random weights; a larger scale makes it surer."""
    model = new_model(VARIANTS["diffusion_gemma"][number], turn_tokenizer(), seed=1)
    model = randomised(model, 1)
    with torch.no_grad():
        model.base_network.model.decoder.norm.weight.mul_(scale)
    return model


@pytest.fixture(scope="module")
def model() -> DiffusionLM:
    return tiny()


@pytest.fixture(scope="module")
def sure() -> DiffusionLM:
    return tiny(scale=8.0)


def prompts(length: int, num: int = 2) -> torch.Tensor:
    return torch.randint(0, 350, (num, length), generator=torch.Generator().manual_seed(length))


def renoise(**options) -> tuple[dict, ...]:
    return ({"name": "renoise", **options},)


class Library:
    """The library's `generate` on one row at a time, with our numbers in place of its own draws."""

    def __init__(self, model: DiffusionLM, patch: pytest.MonkeyPatch) -> None:
        self.model, self.patch = model, patch
        config: Any = model.base_network.config
        self.network: Any = DiffusionGemmaForBlockDiffusion(config).eval()
        self.network.load_state_dict(model.network.state_dict())
        self.length = model.attention.block_length or 0

    def generate(self, ids: torch.Tensor, key, seed: int, **settings) -> tuple[torch.Tensor, int]:
        """The response, and in how many passes of the decoder it was made."""
        steps, canvases = itertools.count(), itertools.count()
        at = {"step": 0, "canvas": 0}
        length, size = self.length, self.model.vocab_size

        def positions() -> torch.Tensor:
            return torch.arange(length) + at["canvas"] * length

        class Sampler(theirs.EntropyBoundSampler):
            def initialize_canvas(self, batch_size, device):
                step = torch.full((length,), at["step"])
                return of_noise.noise(seed, key.expand(length), positions(), step, size)[None]

        def multinomial(probs, num_samples):
            keys = key.expand(length)
            uniform = counter_uniform(seed, keys, positions(), at["step"], TOKEN_DRAW)
            at["step"] = next(steps) + 1
            return draw(probs, uniform)[:, None]

        def finalize(**arguments):
            at["canvas"] = next(canvases) + 1
            return theirs.DiffusionGemmaGenerationMixin._finalize_canvas(**arguments)

        def sampler_of(config):
            return Sampler(
                config=config.sampler_config,
                canvas_length=length,
                vocab_size=size,
                max_denoising_steps=config.max_denoising_steps,
            )

        with self.patch.context() as patch:
            patch.setattr(self.network, "_prepare_sampler", sampler_of, raising=False)
            patch.setattr(self.network, "_finalize_canvas", finalize, raising=False)
            patch.setattr(torch, "multinomial", multinomial)
            found = self.network.generate(
                ids[None],
                eos_token_id=list(self.model.end_token_ids),
                pad_token_id=None,
                **settings,
            )
        return found.sequences[0, len(ids) :], at["step"]


# name -> our rule, their settings, steps of a canvas
REGIMES = {
    "as published": ({}, {}, 12),
    "few steps": ({}, {}, 3),
    "many accepted": (
        {"entropy_bound": 30.0},
        {"sampler_config": theirs.EntropyBoundSamplerConfig(30.0)},
        8,
    ),
    "ends once stable": (
        {"sure_below": 10.0},
        {"confidence_threshold": 10.0},
        12,
    ),
    "ends at once": (
        {"sure_below": 10.0, "stable_steps": 0},
        {"confidence_threshold": 10.0, "stability_threshold": 0},
        12,
    ),
    "two stable steps": (
        {"sure_below": 10.0, "stable_steps": 2},
        {"confidence_threshold": 10.0, "stability_threshold": 2},
        12,
    ),
    "colder": ({"hottest": 0.3, "coldest": 0.1}, {"t_max": 0.3, "t_min": 0.1}, 6),
}


@pytest.mark.parametrize(("num_prompt", "length"), [(5, 16), (40, 16), (23, 40), (9, 7)])
@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("kind", ["model", "sure"])
def test_tokens_and_passes_are_those_of_the_library(
    kind, regime, num_prompt, length, request, monkeypatch
):
    """Two rows at once, beside each by itself; prompts shorter and longer than the window."""
    model: DiffusionLM = request.getfixturevalue(kind)
    rule, settings, steps = REGIMES[regime]
    ids, seed = prompts(num_prompt), 7
    num_canvases = -(-length // C)
    found = sample(
        model,
        ids,
        max_new_tokens=length,
        steps=steps * num_canvases,
        seed=seed,
        rules=renoise(**rule),
    )
    canvas = Canvas.from_prompts(model, ids, max_new_tokens=length)
    keys = row_keys(canvas.tokens, canvas.attention_mask, num_prompt, torch.tensor([seed, seed]))
    library = Library(model, monkeypatch)
    for row in range(2):
        response, passes = library.generate(
            ids[row], keys[row], seed, max_new_tokens=length, max_denoising_steps=steps, **settings
        )
        read = min(len(response), length)  # theirs stops with the canvas of an end token
        ours = found.tokens[row].tolist()
        assert ours[:read] == response[:read].tolist()
        assert set(ours[read:]) <= {model.eos_token_id}
        assert int(found.trace.row_forward_passes[row]) == passes


def test_a_row_is_the_same_alone_in_a_batch_and_in_turns(model):
    texts = ["Tell me how to make tea.", "How can I help you today?", "Sure."]
    settings: dict[str, Any] = {"max_new_tokens": 20, "steps": 8, "seed": 3}
    together = sample(model, texts, **settings)
    assert sample(model, texts, batch_size=1, **settings).text == together.text
    for number, text in enumerate(texts):
        alone = sample(model, text, **settings)
        assert torch.equal(alone.tokens[0], together.tokens[number])
    assert sample(model, texts, **{**settings, "seed": 4}).text != together.text


def test_the_default_is_the_published_decoder(model):
    result = sample(model, "Tea?", max_new_tokens=C)
    (rule,) = result.config.rules
    assert rule.name == "renoise" and result.config.steps == 48
    named = sample(model, "Tea?", "diffusion-gemma", max_new_tokens=C)
    assert torch.equal(named.tokens, result.tokens)
    long = sample(model, "Tea?", max_new_tokens=C, steps=2)
    assert long.config.steps == 2 and long.num_forward_passes == 2


def test_pins_stay_in_the_canvas_and_are_the_answer(model):
    """Whatever the network says there, in either canvas; the rest reads them."""
    canvas = Canvas.from_prompts(model, prompts(9), max_new_tokens=2 * C)
    pinned = canvas.pin(3, [11, 12, 13]).pin(20, [14])
    plain = sample(model, canvas, steps=8, seed=1)
    found = sample(model, pinned, steps=8, seed=1)
    assert found.tokens[:, 3:6].tolist() == [[11, 12, 13]] * 2
    assert found.tokens[:, 20].tolist() == [14, 14]
    columns = torch.tensor([12, 13, 14, 29])
    assert bool((found.trace.commit_step[:, columns] == -1).all())
    assert not torch.equal(found.tokens[:, :3], plain.tokens[:, :3])


def test_a_canvas_that_is_pinned_whole_takes_no_pass(model):
    canvas = Canvas.from_prompts(model, prompts(9, 1), max_new_tokens=2 * C)
    given = torch.arange(20, 20 + C)
    found = sample(model, canvas.pin(0, given), steps=8)
    assert torch.equal(found.tokens[0, :C], given)
    assert int(found.trace.row_forward_passes[0]) == 4


def test_what_replaces_is_an_edit_of_the_trace_and_replays(model):
    found = sample(model, "Tell me how to make tea.", max_new_tokens=24, steps=16)
    trace = found.trace
    assert trace.remasks and not trace.notes
    assert torch.equal(trace.replay(), trace.tokens)
    last = trace.remasks[-1]
    before = trace.replay(until_step=last.step - 1)
    assert torch.equal(before[last.row, last.columns], last.tokens)
    assert found.replaced[0] and found.block_starts[0] == [0, C]


def test_steps_are_reported_as_they_happen(model):
    canvas = Canvas.from_prompts(model, prompts(9, 1), max_new_tokens=20)
    denoiser, heard = denoiser_of(model, 4), []
    config = DecoderConfig(max_new_tokens=20, steps=8, rules=renoise())
    filling = denoiser.add(canvas, config, on_step=heard.append)
    tokens = canvas.tokens.clone()
    with evaluation_mode(model):
        while denoiser.has_work:
            denoiser.step()
    for change in heard:
        for position, token in zip(change.positions, change.tokens, strict=True):
            tokens[0, 9 + position] = token
    assert torch.equal(tokens, filling.trace.tokens)
    assert filling.is_full and filling.num_masked == 0


def test_a_row_that_is_removed_leaves_the_others_as_they_are(model):
    config = DecoderConfig(max_new_tokens=C, steps=6, rules=renoise())
    canvases = [Canvas.from_prompts(model, prompts(n, 1), max_new_tokens=C) for n in (9, 12)]
    alone = sample(model, canvases[1], config)
    denoiser = denoiser_of(model, 1)
    fillings = [denoiser.add(canvas, config) for canvas in canvases]
    with evaluation_mode(model):
        denoiser.step()
        denoiser.remove(fillings[0])
        while denoiser.has_work:
            denoiser.step()
    assert bool((fillings[0].trace.tokens != model.mask_token_id).all())
    assert torch.equal(fillings[1].trace.tokens, alone.trace.tokens)


def test_an_end_in_a_canvas_ends_the_row(model):
    """The network is made to say nothing but the end of a turn."""
    spoken = tiny()
    end = spoken.end_token_ids[1]
    with torch.no_grad():
        embedding = spoken.base_network.model.decoder.embed_tokens.weight
        embedding.mul_(0.01)
        embedding[end] = 5 * spoken.base_network.model.decoder.norm.weight.sign()
    settings: dict[str, Any] = {"max_new_tokens": 3 * C, "steps": 12, "seed": 0}
    ended = sample(spoken, prompts(9, 1), **settings)
    assert end in ended.tokens[0, :C].tolist()
    assert set(ended.tokens[0, C:].tolist()) == {spoken.eos_token_id}
    on = sample(spoken, prompts(9, 1), **settings, stop_when_finished=False)
    assert on.num_forward_passes > ended.num_forward_passes
    banned = sample(spoken, prompts(9, 1), **settings, end_tokens="forbid")
    assert not set(banned.tokens[0].tolist()) & set(spoken.end_token_ids)


def test_only_the_canvases_that_are_needed_are_written(model):
    found = sample(model, prompts(9, 1), max_new_tokens=3 * C, steps=12, stop_after=C + 1)
    assert bool((found.tokens[0, 2 * C :] == model.mask_token_id).all())
    whole = sample(model, prompts(9, 1), max_new_tokens=3 * C, steps=12)
    assert torch.equal(found.tokens[0, : 2 * C], whole.tokens[0, : 2 * C])
    assert int(found.trace.row_forward_passes[0]) == 8


@pytest.mark.parametrize("step", [0, 3])
def test_logits_that_are_no_numbers_are_no_answer(step):
    """From the first step on, or later; the row beside it has its answer."""
    damaged = tiny()
    head, calls = damaged.head, []

    def spoiled(hidden):
        calls.append(len(calls))
        logits = head(hidden)
        return logits * torch.nan if calls[-1] // 2 >= step and calls[-1] % 2 else logits

    damaged.head = spoiled  # type: ignore[method-assign]
    denoiser = denoiser_of(damaged, 2)
    config = DecoderConfig(max_new_tokens=C, steps=6, rules=renoise())
    fillings = [
        denoiser.add(Canvas.from_prompts(damaged, prompts(n, 1), max_new_tokens=C), config)
        for n in (9, 12)
    ]
    with evaluation_mode(damaged):
        for _ in range(step + 1):
            denoiser.step()
    assert [filling.unusable_step for filling in fillings] == [None, step]
    assert fillings[1].is_full and not fillings[0].is_full


# ------------------------------------------------------------------------------------------- hooks


def test_a_hook_writes_into_the_canvas_and_the_network_reads_it(model):
    canvas = Canvas.from_prompts(model, prompts(9, 1), max_new_tokens=C)
    seen = []

    def hook(row):
        seen.append((row.step, row.tokens[9:].tolist(), row.logits(row.computed[:2]).shape))
        if row.step == 1:
            row.tokens[9:13] = torch.tensor([5, 6, 7, 8])
            return Action(tokens=row.tokens, note="wrote")
        return None

    settings: dict[str, Any] = {"steps": 6, "seed": 2}
    plain = sample(model, canvas, **settings)
    found = sample(model, canvas, hook=hook, **settings)
    assert [step for step, *_ in seen] == [0, 1, 2, 3, 4, 5]
    assert seen[0][2] == (2, model.vocab_size)
    assert seen[2][1] != _at_step(plain, 2)
    assert [note.text for note in found.trace.notes] == ["wrote"]
    assert torch.equal(found.trace.replay(until_step=1)[0, 9:13], torch.tensor([5, 6, 7, 8]))


def _at_step(result, step: int) -> list[int]:
    return result.trace.replay(until_step=step)[0, 9:].tolist()


def test_what_a_hook_masks_in_an_earlier_canvas_is_written_again(model):
    canvas = Canvas.from_prompts(model, prompts(9, 1), max_new_tokens=2 * C)
    steps = []

    def hook(row):
        steps.append((row.step, int((row.tokens[9:] == row.mask_token_id).sum())))
        if row.step == 5:  # in the second canvas
            row.tokens[9:] = row.mask_token_id
            return Action(tokens=row.tokens)
        return None

    found = sample(model, canvas, steps=8, hook=hook)
    assert bool((found.tokens != model.mask_token_id).all())
    assert [step for step, _ in steps] == list(range(6 + 8))
    assert steps[6][1] == C and torch.equal(found.trace.replay(), found.trace.tokens)


def read_by(model: DiffusionLM, canvas: Canvas, hook) -> list[tuple[int, list[int], Any]]:
    """The noisy canvas of each pass of one row, with the number of tokens before it and what the
    step before had expected."""
    seen, denoise = [], of_noise.denoise

    def note(network, noisy, contexts, conditioning):
        seen.append((contexts[0].get_seq_length(), noisy[0].tolist(), conditioning))
        return denoise(network, noisy, contexts, conditioning)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(of_noise, "denoise", note)
        sample(model, canvas, steps=8, hook=hook)
    return seen


def write_at(step: int, place: int, ids: list[int]):
    """A hook that writes ids at a response position after a step."""

    def hook(row):
        if row.step != step:
            return None
        row.tokens[9 + place : 9 + place + len(ids)] = torch.tensor(ids)
        return Action(tokens=row.tokens)

    return hook


@pytest.mark.parametrize(("step", "place"), [(1, 2), (1, C + 3), (5, 2), (5, C + 3)])
def test_what_a_hook_writes_is_read_wherever_it_stands(model, step, place):
    """In the open canvas at once, in a later one when it opens, in an earlier one when it opens
    again, whose other tokens stand as they were."""
    canvas = Canvas.from_prompts(model, prompts(9, 1), max_new_tokens=2 * C)
    plain = read_by(model, canvas, lambda row: None)
    seen = read_by(model, canvas, write_at(step, place, [11, 12, 13]))
    first = place // C * C
    number = next(i for i, (before, *_) in enumerate(seen) if i > step and before == 9 + first)
    assert seen[number][1][place - first : place - first + 3] == [11, 12, 13]
    assert [kept[:2] for kept in seen[: step + 1]] == [kept[:2] for kept in plain[: step + 1]]


def test_what_was_expected_where_a_hook_wrote_is_forgotten(model):
    canvas = Canvas.from_prompts(model, prompts(9, 1), max_new_tokens=C)
    seen = read_by(model, canvas, write_at(2, 4, [11, 12]))
    assert [kept[2] is None for kept in seen] == [True] + [False] * 7
    zeros = [(kept[2][0] == 0).all(dim=-1).nonzero()[:, 0].tolist() for kept in seen[1:]]
    assert zeros == [[], [], [4, 5], [], [], [], []]


def test_with_a_hook_every_planned_step_is_taken(sure):
    """Else an edit that is timed by steps would not be made where the canvas is sure before."""
    rules = renoise(sure_below=10.0, stable_steps=0)
    settings: dict[str, Any] = {"max_new_tokens": C, "steps": 8, "rules": rules}
    assert sample(sure, prompts(9, 1), **settings).num_forward_passes == 1
    seen = []
    sample(sure, prompts(9, 1), **settings, hook=lambda row: seen.append(row.step))
    assert seen == list(range(8))


def test_a_hook_that_masks_for_ever_is_stopped(model):
    def hook(row):
        row.tokens[row.is_free] = row.mask_token_id
        return Action(tokens=row.tokens)

    with refuses("hook"):
        sample(model, prompts(5, 1), max_new_tokens=4, steps=1, hook=hook)


def test_a_hook_may_stop_and_not_touch_what_is_pinned(model):
    canvas = Canvas.from_prompts(model, prompts(9, 1), max_new_tokens=2 * C)
    stopped = sample(model, canvas, steps=8, hook=lambda row: Action(stop=row.step == 1))
    assert stopped.num_forward_passes == 2
    assert set(stopped.tokens[0, C:].tolist()) == {model.eos_token_id}

    def leave(row):
        row.tokens[row.is_free] = row.mask_token_id
        return Action(tokens=row.tokens, stop=True)

    left = sample(model, canvas, steps=8, hook=leave)
    assert set(left.tokens[0].tolist()) == {model.eos_token_id}

    def spoil(row):
        row.tokens[0] += 1
        return Action(tokens=row.tokens)

    with refuses("pinned"):
        sample(model, canvas, steps=8, hook=spoil)


# ---------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"rules": ()}, "diffusion-gemma"),
        ({"remasking": "random"}, "remasking"),
        ({"threshold": 0.9}, "threshold"),
        ({"cfg_scale": 1.0}, "cfg_scale"),
        ({"block_length": 4}, "block_length"),
        ({"top_p": 0.9}, "top_p"),
        ({"end_tokens": "suppress"}, "end_tokens"),
        ({"steps": 1, "max_new_tokens": 2 * C}, "steps"),
        (
            {
                "rules": (
                    *renoise(),
                    {"name": "remask_below", "threshold": 0.1, "max_taken_back": 1},
                )
            },
            "remask_below",
        ),
    ],
)
def test_settings_about_masks_are_refused_by_name(model, settings, named):
    with refuses(named):
        sample(model, "Tea?", **{"max_new_tokens": C, "steps": 4, **settings})


def test_a_prompt_has_no_masks_and_a_token(model):
    canvas = Canvas.from_prompts(model, prompts(9, 1), max_new_tokens=C)
    tokens = canvas.tokens.clone()
    tokens[0, 3] = model.mask_token_id
    for spoiled in (
        dataclasses.replace(canvas, tokens=tokens),
        dataclasses.replace(canvas, response_start=0),
    ):
        with refuses("prompt"):
            sample(model, spoiled, steps=4)


def test_the_rule_is_for_noise_alone(tiny_llada):
    with refuses("renoise"):
        sample(tiny_llada, "Tea?", max_new_tokens=8, steps=4, rules=renoise())
    with refuses("coldest"):
        DecoderConfig(rules=renoise(coldest=0.0))
    with refuses("hottest"):
        DecoderConfig(rules=renoise(hottest=0.1))


def test_one_temperature_may_stand_in_place_of_the_schedule(model, sure):
    cold = [
        sample(sure, "Tea?", max_new_tokens=C, steps=6, seed=s, temperature=0.01).tokens
        for s in (1, 1)
    ]
    assert torch.equal(*cold)
    falling = sample(model, "Tea?", max_new_tokens=C, steps=6, seed=1)
    even = sample(
        model, "Tea?", max_new_tokens=C, steps=6, seed=1, rules=renoise(hottest=0.6, coldest=0.6)
    )
    fixed = sample(model, "Tea?", max_new_tokens=C, steps=6, seed=1, temperature=0.6)
    assert torch.equal(even.tokens, fixed.tokens)
    assert not torch.equal(falling.trace.confidence, fixed.trace.confidence)
