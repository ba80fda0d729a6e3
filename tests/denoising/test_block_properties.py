"""What holds for every canvas and every decoder of a block-causal model."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given
from hypothesis import settings as how
from hypothesis import strategies as st
from refusals import refuses
from tiny_models import qwen3_layout, randomised

from mosa.denoising import Canvas, DecoderConfig, Denoiser, evaluation_mode, passes, sample
from mosa.denoising.rules import Action
from mosa.denoising.schedule import most_passes
from mosa.families import DiffusionLM, new_model

WIDTHS, MOST_ROWS = (1, 3, 9), 3
LAYOUTS: tuple[dict[str, Any], ...] = (
    {"model_type": "sdar", "block_size": 4},
    {"model_type": "sdar", "block_size": 8},
    {"model_type": "a2d-qwen3", "block_size": 4},
)


@pytest.fixture(scope="module")
def models() -> list[DiffusionLM]:
    """Of both ways to count blocks; many of their tokens end a response."""
    found = []
    for seed, layout in enumerate(LAYOUTS):
        model = randomised(new_model(qwen3_layout(**layout), seed=seed), seed)
        model.end_token_ids = (*model.end_token_ids, *range(0, 60, 2))
        found.append(model)
    return found


@st.composite
def configs(draw):
    """Fields of a DecoderConfig that go together."""
    by = draw(st.sampled_from(["plan", "threshold", "factor", "entropy_bound"]))
    orders = ["low_confidence", "maskgit_plus"]
    orders = ["entropy"] if by == "entropy_bound" else orders
    orders += ["random", "left_to_right", "origin"] if by == "plan" else []
    order = draw(st.sampled_from(orders))
    length = draw(st.sampled_from([1, 3, 7, 10]))
    limits = {"threshold": [0.02, 0.3], "factor": [0.5, 1.0], "entropy_bound": [0.5, 3.0]}
    edits = [None, 0.0, 0.2] if order in ("low_confidence", "maskgit_plus") else [None]
    repair = {"name": "remask_below", "threshold": 0.1, "max_taken_back": 3}
    window = {"name": "anchor_first", "start": draw(st.integers(1, length)), "end": 12}
    return DecoderConfig(
        max_new_tokens=length,
        steps=draw(st.sampled_from([5, 12])),
        block_length=draw(st.sampled_from([None, None, 3, 6])),
        temperature=draw(st.sampled_from([0.0, 0.8])),
        remasking=order,
        schedule=draw(st.sampled_from(["even", "timesteps", "rounded"])),
        cfg_scale=draw(st.sampled_from([0.0, 0.0, 1.0])),
        stop_when_finished=draw(st.booleans()),
        stop_after=draw(st.sampled_from([None, None, 2, 6])),
        edit_threshold=draw(st.sampled_from(edits)),
        max_post_steps=2,
        rules=draw(st.sampled_from([(), (), (repair,), (window,)])),
        **({by: draw(st.sampled_from(limits[by]))} if by in limits else {}),
    )


JOBS = st.lists(st.tuples(configs(), st.integers(0, 2**16), st.booleans()), min_size=1, max_size=3)


def canvas_of(model: DiffusionLM, length: int, seed: int) -> Canvas:
    """Rows with padding on the left, and pins and masks anywhere."""
    generator, chance = torch.Generator().manual_seed(seed), random.Random(seed)
    width, rows = chance.choice(WIDTHS), chance.randint(1, MOST_ROWS)
    tokens = torch.randint(0, 300, (rows, width + length), generator=generator)
    free = torch.rand(tokens.shape, generator=generator) < chance.choice([0.6, 1.0])
    free[:, :width] &= torch.rand(rows, width, generator=generator) < chance.choice([0.0, 0.3])
    real = torch.arange(width + length) >= torch.randint(0, width, (rows, 1), generator=generator)
    mask = model.mask_token_id
    return Canvas(tokens.masked_fill(free & real, mask), real, width, mask)


def meddle(row) -> Action | None:
    """A hook that masks tokens again, or writes them, in some of the first steps."""
    chance = random.Random(row.step)
    if row.step >= 6 or chance.random() < 0.5 or not bool(row.is_free.any()):
        return None
    places = row.is_free.nonzero()[:, 0]
    place = places[chance.randrange(len(places))]
    row.tokens[place] = row.mask_token_id if chance.random() < 0.6 else 9
    return Action(tokens=row.tokens)


def fill_together(model: DiffusionLM, jobs: list[Any], num_slots: int) -> list[Any]:
    """The fillings of canvases that join a batch one by one, beside one that is cancelled."""
    denoiser, fillings = Denoiser(model, num_slots), []
    waiting = list(jobs)
    with evaluation_mode(model):
        dropped = denoiser.add(jobs[0][0], jobs[0][1], seeds=[7] * len(jobs[0][0].tokens))
        while waiting or denoiser.has_work:
            if waiting:
                canvas, config, hook = waiting.pop(0)
                fillings.append(denoiser.add(canvas, config, hook=hook))
            denoiser.step()
            assert all(filling.num_masked >= 0 for filling in fillings)
            if len(fillings) == 2:
                denoiser.remove(dropped)
    return fillings


@how(
    max_examples=10,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(which=st.integers(0, len(LAYOUTS) - 1), drawn=JOBS, num_slots=st.sampled_from([2, 9]))
def test_a_row_among_others_is_the_row_alone(models, which, drawn, num_slots):
    """Tokens, trace and passes, whatever decoders and hooks the rows beside it have."""
    model = models[which]
    mask = model.mask_token_id
    jobs: list[Any] = []
    for config, seed, is_meddled in drawn:
        canvas = canvas_of(model, config.max_new_tokens, seed)
        rows = zip(canvas.tokens, canvas.attention_mask, strict=True)
        kept = [tuple(row[real].tolist()) for row, real in rows]
        # Rows that are alike are told apart within a batch; in masks alone rounding decides.
        assume(len(set(kept)) == len(kept) and all(set(row) != {mask} for row in kept))
        jobs.append((canvas, config, meddle if is_meddled else None))
    for filling, (canvas, config, hook) in zip(
        fill_together(model, jobs, num_slots), jobs, strict=True
    ):
        trace, fixed = filling.trace, canvas.tokens != mask
        assert torch.equal(trace.tokens[fixed], canvas.tokens[fixed])
        assert (trace.tokens[filling.free] != mask).all()
        assert torch.equal(trace.free, filling.free)
        assert torch.equal(trace.replay(), trace.tokens)
        assert torch.equal(trace.replay(until_step=-1), canvas.tokens)
        assert trace.confidence[~filling.free].isnan().all()
        if hook is None and not config.stop_when_finished:
            assert not trace.confidence[filling.free].isnan().any()
        for row in range(len(canvas.tokens)):
            alone = sample(model, canvas.select(torch.tensor([row])), config, hook=hook)
            begin = canvas.tokens.shape[1] - alone.canvas.tokens.shape[1]
            assert torch.equal(alone.canvas.tokens[0], trace.tokens[row, begin:])
            assert torch.equal(alone.trace.commit_step[0], trace.commit_step[row, begin:])
            assert alone.num_forward_passes == trace.row_forward_passes[row]
            if hook is None and not bool(filling.free[row, : canvas.response_start].any()):
                assert alone.num_forward_passes <= most_passes(config, model.attention)


@how(
    max_examples=16,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(which=st.integers(0, len(LAYOUTS) - 1), job=st.tuples(configs(), st.integers(0, 2**16)))
def test_kept_keys_are_those_of_whole_passes(models, which, job):
    """Every block computed anew in each pass, with a hook that masks again in full blocks."""
    model, (config, seed) = models[which], job
    repairs = [monitor.name for monitor in config.monitors]
    assume(not repairs)  # they look at what a pass computes
    canvas = canvas_of(model, config.max_new_tokens, seed)
    kept = sample(model, canvas, config, hook=meddle)
    queries_of = passes._block_causal_queries

    def whole(model, packed):
        for row in packed.rows:
            row.num_settled = 0
        return queries_of(model, packed)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(passes, "_block_causal_queries", whole)
        anew = sample(model, canvas, config, hook=meddle)
    assert torch.equal(kept.canvas.tokens, anew.canvas.tokens)
    assert torch.equal(kept.trace.commit_step, anew.trace.commit_step)


def test_what_comes_after_is_not_asked_for_and_changes_nothing(models):
    """`stop_after` in each attention; decoder blocks that end within one of the network's too."""
    for model in models:
        canvas = canvas_of(model, 10, 9)
        for block_length in (None, 3):
            settings: dict[str, Any] = {"steps": 12, "block_length": block_length}
            whole = sample(model, canvas, **settings)
            for last in (1, 4, 7, 8, 9):
                part = sample(model, canvas, **settings, stop_after=last)
                assert torch.equal(part.tokens[:, :last], whole.tokens[:, :last])


def test_guidance_sees_the_blocks_of_the_network(models):
    """The last token of each block, against both passes of the whole row by the library."""
    model = models[2]
    prompt = torch.randint(0, 300, (1, 7), generator=torch.Generator().manual_seed(3))
    canvas = Canvas.from_prompts(model, prompt, max_new_tokens=8)
    found = sample(model, canvas, steps=8, cfg_scale=1.5)
    for step in (3, 7):
        place = int((found.trace.commit_step[0] == step).nonzero()[0, 0])
        tokens = found.trace.replay(until_step=step - 1)
        blind_tokens = tokens.clone()
        blind_tokens[0, :7] = model.mask_token_id
        with torch.no_grad():
            logits, blind = (
                model.logits(ids, response_start=7)[0, place] for ids in (tokens, blind_tokens)
            )
        probability = (blind + 2.5 * (logits - blind)).softmax(-1)[found.canvas.tokens[0, place]]
        torch.testing.assert_close(
            found.trace.confidence[0, place], probability, atol=1e-4, rtol=1e-3
        )


@pytest.mark.parametrize("settings", [{}, {"threshold": 0.3}, {"edit_threshold": 0.1}])
def test_a_hook_that_never_stops_masking_is_told(models, settings):
    def mask_again(row):
        row.tokens[row.is_free.nonzero()[0, 0]] = row.mask_token_id
        return Action(tokens=row.tokens)

    prompt = torch.ones(1, 5, dtype=torch.long)
    for model in models:
        with refuses("hook", "masks"):
            sample(model, prompt, max_new_tokens=2, steps=2, hook=mask_again, **settings)


def test_a_threshold_counts_beside_every_schedule(models):
    prompt = torch.randint(0, 300, (1, 8), generator=torch.Generator().manual_seed(3))
    settings: dict[str, Any] = {"max_new_tokens": 8, "steps": 8}
    for schedule in ("even", "timesteps", "rounded"):
        most = sample(models[1], prompt, **settings, schedule=schedule)
        least = sample(models[1], prompt, **settings, schedule=schedule, threshold=0.0)
        assert least.num_forward_passes == 1 < most.num_forward_passes


def test_a_stage_over_all_blocks_takes_a_step(tiny_llada):
    """Fewer steps than blocks, where a rule makes one stage of them."""
    window = {"name": "anchor_first", "start": 1, "end": 8}
    found = sample(
        tiny_llada,
        torch.ones(1, 4).long(),
        max_new_tokens=8,
        steps=1,
        block_length=4,
        rules=(window,),
    )
    assert found.num_forward_passes == 1 and found.block_starts == [[0, 4]]


@pytest.mark.parametrize("order", ["entropy", "random", "origin", "left_to_right"])
def test_edits_need_a_probability(order):
    with refuses("edit_threshold", order, "low_confidence"):
        DecoderConfig(remasking=order, edit_threshold=0.5)
