"""What holds for every canvas and every setting."""

from typing import Any

import torch
from hypothesis import HealthCheck, assume, given
from hypothesis import settings as how
from hypothesis import strategies as st

from mosa.denoising import Canvas, DecoderConfig, sample
from mosa.denoising.rules import ORDERS

WIDTH, LENGTH = 5, 8


def grid_of(num_rows: int, share_free: float, seed: int):
    """Token rows with padding on the left and masks and pins anywhere: tokens, free, real."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, 250, (num_rows, WIDTH + LENGTH), generator=generator)
    free = torch.rand(tokens.shape, generator=generator) < share_free
    free[:, :WIDTH] &= torch.rand(num_rows, WIDTH, generator=generator) < 0.3
    padding = torch.randint(0, WIDTH, (num_rows, 1), generator=generator)
    real = torch.arange(WIDTH + LENGTH) >= padding
    return tokens, free & real, real


GRIDS = st.tuples(st.integers(1, 3), st.sampled_from([0.2, 0.7, 1.0]), st.integers(0, 2**16))


@st.composite
def configs(draw):
    """Fields of a DecoderConfig that go together."""
    rule = draw(st.sampled_from(sorted(ORDERS)))
    blind = not ORDERS[rule].rates_confidence
    threshold = draw(st.sampled_from([None, None, 0.02, 0.5])) if not blind else None
    return {
        "max_new_tokens": LENGTH,
        "steps": draw(st.integers(5, 11)),
        "block_length": draw(st.sampled_from([None, 2, 3, 8])),
        "temperature": draw(st.sampled_from([0.0, 0.7, 3.0])),
        "top_p": draw(st.sampled_from([None, 0.6])),
        "top_k": draw(st.sampled_from([None, 3])),
        "remasking": rule,
        "alg_temp": None if blind or threshold else draw(st.sampled_from([None, 0.5])),
        "schedule": draw(st.sampled_from(["even", "timesteps"])),
        "threshold": threshold,
        "cfg_scale": draw(st.sampled_from([0.0, 1.0])),
        "end_tokens": draw(st.sampled_from(["allow", "forbid", "forbid_eos", "suppress"])),
        "stop_when_finished": draw(st.booleans()),
        "banned_token_ids": draw(st.sampled_from([(), (3, 7)])),
        "rules": draw(st.sampled_from([(), ({"name": "anchor_first", "start": 4, "end": 5},)])),
        "seed": draw(st.integers(0, 2**40)),
    }


@how(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(grid=GRIDS, drawn=configs())
def test_every_run_keeps_its_promises(tiny_llada, grid, drawn):
    tokens, free, real = grid_of(*grid)
    config = DecoderConfig(**drawn)
    mask = tiny_llada.mask_token_id
    canvas = Canvas(tokens.masked_fill(free, mask), real, WIDTH, mask)
    result = sample(tiny_llada, canvas, config)
    out, trace = result.canvas.tokens, result.trace

    assert torch.equal(out[~free], tokens[~free])  # prompts, pins and padding as they were
    assert (out != mask).all()
    assert torch.equal(result.tokens, out[:, WIDTH:])
    # Every free position was committed once, and nothing else was.
    assert torch.equal(trace.free, free)
    assert torch.equal(trace.replay(), out)
    assert torch.equal(trace.replay(until_step=-1), canvas.tokens)
    assert trace.confidence[~free].isnan().all()
    assert trace.remasks == []
    # No row waits for another, so there are as many calls as the slowest row needs.
    assert trace.num_forward_passes == int(trace.row_forward_passes.max())
    if not config.order.commits_by_chance:  # which may run a step in which chance commits nothing
        # A row takes part for every step in which it commits something, and for no other.
        for row in range(len(out)):
            steps = trace.commit_step[row][free[row]].unique()
            assert int(trace.row_forward_passes[row]) == len(steps)
    if not config.stop_when_finished:
        assert not trace.confidence[free].isnan().any()
    # A row's steps replay one by one: never fewer tokens, and only in free places.
    filled = [(trace.replay(step) != mask).sum() for step in range(-1, int(out.shape[1]) + 4)]
    assert filled == sorted(filled)
    for banned in config.banned_token_ids:
        assert not (out[free] == banned).any()
    if config.end_tokens == "forbid" and not config.stop_when_finished:
        assert not torch.isin(out[free], torch.tensor(tiny_llada.end_token_ids)).any()
    if config.end_tokens == "forbid_eos" and not config.stop_when_finished:
        assert not (out[free] == tiny_llada.eos_token_id).any()
    # The window is filled first, and the blocks from left to right.
    if (config.block_length or config.stages) and not config.stop_when_finished:
        position = torch.arange(WIDTH + LENGTH) - WIDTH
        block = position.clamp(min=0) // (config.block_length or LENGTH) + 1
        if config.stages:
            block[(position >= 3) & (position < 5)] = 0
        for row in range(len(out)):
            steps = trace.commit_step[row]
            for later in range(1, int(block.max()) + 1):
                earlier = steps[(block < later) & free[row]]
                here = steps[(block == later) & free[row]]
                if len(earlier) and len(here):
                    assert earlier.max() < here.min()


@how(
    max_examples=15,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(grid=GRIDS, drawn=configs())
def test_a_row_alone_is_the_row_in_a_batch(tiny_llada, grid, drawn):
    """Tokens and trace, at every temperature, whatever stands beside a row, padding included."""
    tokens, free, real = grid_of(*grid)
    config = DecoderConfig(**drawn)
    mask = tiny_llada.mask_token_id
    canvas = Canvas(tokens.masked_fill(free, mask), real, WIDTH, mask)
    # Rows that are alike are told apart within a batch, so that one of them alone is the first.
    rows = [tuple(row[kept].tolist()) for row, kept in zip(canvas.tokens, real, strict=True)]
    assume(len(set(rows)) == len(rows))
    # In a row of masks alone all positions tie, and rounding decides.
    assume(all(set(row) != {mask} for row in rows))
    together = sample(tiny_llada, canvas, config)
    for row in range(len(tokens)):
        alone = sample(tiny_llada, canvas.select(torch.tensor([row])), config)
        num_padding = canvas.tokens.shape[1] - alone.canvas.tokens.shape[1]
        assert torch.equal(alone.tokens[0], together.tokens[row])
        assert torch.equal(
            alone.trace.commit_step[0], together.trace.commit_step[row, num_padding:]
        )
        assert alone.num_forward_passes == together.trace.row_forward_passes[row]


def test_same_seed_same_text_other_seed_other_text(tiny_llada):
    prompts = torch.randint(0, 250, (2, 6), generator=torch.Generator().manual_seed(1))
    run: dict[str, Any] = {"max_new_tokens": 12, "steps": 6, "temperature": 1.0}
    first = sample(tiny_llada, prompts, **run, seed=1)
    torch.manual_seed(99)  # nothing hangs on the global generator
    assert torch.equal(first.tokens, sample(tiny_llada, prompts, **run, seed=1).tokens)
    assert not torch.equal(first.tokens, sample(tiny_llada, prompts, **run, seed=2).tokens)
    greedy: dict[str, Any] = run | {"temperature": 0.0}
    assert torch.equal(
        sample(tiny_llada, prompts, **greedy, seed=1).tokens,
        sample(tiny_llada, prompts, **greedy, seed=2).tokens,
    )


def test_order_batch_size_and_padding_side_change_nothing(tiny_llada):
    generator = torch.Generator().manual_seed(2)
    rows = [torch.randint(0, 250, (n,), generator=generator) for n in (7, 3, 5, 3)]
    left, right = torch.zeros(4, 7).long(), torch.zeros(4, 7).long()
    for i, row in enumerate(rows):
        left[i, 7 - len(row) :] = row
        right[i, : len(row)] = row
    left_real = torch.arange(7) >= 7 - torch.tensor([len(row) for row in rows])[:, None]
    run: dict[str, Any] = {"max_new_tokens": 8, "steps": 4, "temperature": 0.8, "seed": 3}
    expected = sample(tiny_llada, left, attention_mask=left_real, **run)
    mirrored = sample(tiny_llada, right, attention_mask=left_real.flip(1), **run)
    assert torch.equal(mirrored.tokens, expected.tokens)
    split = sample(tiny_llada, left, attention_mask=left_real, batch_size=2, **run)
    assert torch.equal(split.tokens, expected.tokens)
    assert torch.equal(split.trace.commit_step, expected.trace.commit_step)
    assert torch.equal(split.trace.replay(), split.canvas.tokens)
    assert split.num_forward_passes == 2 * expected.num_forward_passes
    order = torch.tensor([2, 0, 3, 1])
    shuffled = sample(tiny_llada, left[order], attention_mask=left_real[order], **run)
    assert torch.equal(shuffled.tokens, expected.tokens[order])


def test_a_prompt_given_twice_gets_two_samples(tiny_llada):
    prompt = torch.randint(0, 250, (1, 6), generator=torch.Generator().manual_seed(4))
    run: dict[str, Any] = {"max_new_tokens": 8, "steps": 4, "temperature": 1.0}
    three = sample(tiny_llada, prompt.repeat(3, 1), **run).tokens
    assert len({tuple(row) for row in three.tolist()}) == 3
    assert torch.equal(three[:2], sample(tiny_llada, prompt.repeat(2, 1), **run).tokens)


def test_dream_rows_do_not_depend_on_each_other(tiny_dream):
    prompts = ["Tell me how to make tea.", "Sure?", "a story about a friendly robot"]
    run: dict[str, Any] = {
        "max_new_tokens": 8,
        "steps": 5,
        "temperature": 0.5,
        "remasking": "entropy",
    }
    run |= {"schedule": "timesteps", "top_p": 0.95, "alg_temp": 0.3}
    together = sample(tiny_dream, prompts, **run)
    for row, prompt in enumerate(prompts):
        assert torch.equal(sample(tiny_dream, [prompt], **run).tokens[0], together.tokens[row])


def test_a_dialogue_and_a_string_are_prompts(tiny_llada):
    from mosa.types import Message

    text = sample(tiny_llada, "Tell me", max_new_tokens=4, steps=4)
    dialogue = sample(tiny_llada, [[Message("user", "Tell me")]], max_new_tokens=4, steps=4)
    ids = torch.tensor([tiny_llada.encode("Tell me")])
    raw = sample(tiny_llada, ids, max_new_tokens=4, steps=4)
    assert text.text is not None and len(text.text) == 1
    assert text.full_text == dialogue.full_text == raw.full_text
