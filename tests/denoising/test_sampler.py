"""Single features of the sampler, each shown to matter."""

from typing import Any

import pytest
import torch
from edited_logits import edited_logits
from open_masks import open_masks
from refusals import refuses

from mosa.denoising import Canvas, DecoderConfig, sample

PROMPTS = torch.randint(0, 250, (2, 6), generator=torch.Generator().manual_seed(6))


# --- end tokens --------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.0, 0.5])
def test_end_tokens_can_be_forbidden(tiny_llada, favouring, temperature):
    run: dict[str, Any] = {"max_new_tokens": 8, "steps": 8, "temperature": temperature}
    ends = torch.tensor(tiny_llada.end_token_ids)
    with favouring(tiny_llada, tiny_llada.end_token_ids, 20.0) as model:
        allowed = sample(model, PROMPTS, **run)
        forbidden = sample(model, PROMPTS, end_tokens="forbid", **run)
    assert torch.isin(allowed.tokens, ends).all()
    assert not torch.isin(forbidden.tokens, ends).any()
    assert allowed.text == ["", ""]
    assert forbidden.text == forbidden.full_text


@pytest.mark.parametrize("temperature", [0.0, 0.5])
def test_end_of_text_alone_can_be_forbidden(tiny_llada, favouring, temperature):
    """As LLaDA's `logits_eos_inf`: the model, which would write end-of-text everywhere, ends its
    turn instead."""
    run: dict[str, Any] = {"max_new_tokens": 8, "steps": 8, "temperature": temperature}
    eos, turn_end = tiny_llada.eos_token_id, tiny_llada.turn_end_token_id
    with favouring(tiny_llada, [eos, turn_end], 20.0) as model, favouring(model, [eos], 20.0):
        allowed = sample(model, PROMPTS, **run)
        forbidden = sample(model, PROMPTS, end_tokens="forbid_eos", **run)
    assert (allowed.tokens == eos).all()
    assert (forbidden.tokens == turn_end).all()


@pytest.mark.parametrize("temperature", [0.0, 0.5])
@pytest.mark.parametrize("rule", ["low_confidence", "entropy", "random"])
def test_suppressed_end_tokens_come_last(tiny_llada, favouring, temperature, rule):
    """At every second position the model is sure of the end token, elsewhere it shuns it."""
    run: dict[str, Any] = {
        "max_new_tokens": 16,
        "steps": 16,
        "temperature": temperature,
        "remasking": rule,
    }
    with favouring(tiny_llada, [tiny_llada.eos_token_id], 50.0, every=2) as model:
        allowed = sample(model, PROMPTS, **run)
        suppressed = sample(model, PROMPTS, end_tokens="suppress", **run)
    for result in (allowed, suppressed):
        is_end = result.tokens == tiny_llada.eos_token_id
        assert is_end.tolist() == [[True, False] * 8] * 2
    end_steps = suppressed.trace.commit_step[:, 6::2]
    assert end_steps.min() == 8 and suppressed.trace.commit_step[:, 7::2].max() == 7
    assert (suppressed.trace.confidence[:, 6::2] == 0).all()
    allowed_steps = allowed.trace.commit_step[:, 6::2]
    assert (allowed_steps.max() == 7) if rule != "random" else (allowed_steps.min() < 8)


def test_a_suppressed_end_token_stays_in_its_block(tiny_llada, favouring):
    """Nothing else is left to fill in a block, so its end token goes before the next block."""
    run: dict[str, Any] = {
        "max_new_tokens": 8,
        "steps": 8,
        "block_length": 4,
        "end_tokens": "suppress",
    }
    with favouring(tiny_llada, [tiny_llada.eos_token_id], 50.0, every=2) as model:
        steps = sample(model, PROMPTS, **run).trace.commit_step[:, 6:]
    assert steps[:, ::2].sort(dim=1).values.tolist() == [[2, 3, 6, 7]] * 2


def test_a_finished_row_is_filled_and_leaves_the_batch(tiny_llada, counted):
    """Row 0 ends at once (its end token is pinned in reach of nothing else); row 1 goes on."""
    end = tiny_llada.eos_token_id
    canvas = Canvas.from_prompts(tiny_llada, PROMPTS, max_new_tokens=8)
    canvas = canvas.pin(0, [20, 21], rows=0)

    def ends_row_0(logits, columns, known):
        logits[:, end] = torch.where((known[:, 6] == 20) & (columns == 8), 1e4, -1e4)

    with edited_logits(tiny_llada, ends_row_0):
        stopped = sample(tiny_llada, canvas, steps=8, stop_when_finished=True)
        calls, counted[:] = list(counted), []
        whole = sample(tiny_llada, canvas, steps=8)
    assert stopped.tokens[0].tolist() == [20, 21, *[end] * 6]
    assert torch.equal(stopped.tokens[1], whole.tokens[1])  # the other row takes no notice
    assert stopped.trace.commit_step[0, 6:].tolist() == [-1, -1, *[0] * 6]
    assert stopped.trace.confidence[0, 6:].isnan().tolist() == [True, True, False, *[True] * 5]
    assert torch.equal(stopped.trace.replay(), stopped.canvas.tokens)
    assert calls == [2, *[1] * 7]  # one pass with both rows, then row 1 alone
    assert stopped.trace.row_forward_passes.tolist() == [1, 8]
    # 6 free positions in 8 steps: row 0 sits out the last two.
    assert counted == [2] * 6 + [1] * 2


def test_a_pinned_end_token_does_not_finish_a_row(tiny_llada):
    canvas = Canvas.from_prompts(tiny_llada, PROMPTS, max_new_tokens=6)
    canvas = canvas.pin(0, tiny_llada.eos_token_id)
    result = sample(tiny_llada, canvas, steps=6, stop_when_finished=True, end_tokens="forbid")
    assert result.num_forward_passes == 5
    assert result.text == ["", ""] and all(result.full_text or [])


# --- thresholds --------------------------------------------------------------------------------


def test_a_threshold_commits_what_reaches_it_and_the_best(tiny_llada):
    """Checked against the confidences of each step, as the hook sees them."""
    bound = 0.02
    canvas = Canvas.from_prompts(tiny_llada, PROMPTS, max_new_tokens=12)
    num_steps = [0, 0]

    def look(row):
        num_steps[row.number] += 1
        is_open, confidence = open_masks(row, 6)
        expected = confidence >= bound
        expected[confidence.argmax()] = True
        assert torch.equal((row.commit_step == row.step)[is_open], expected)

    result = sample(tiny_llada, canvas, block_length=6, threshold=bound, hook=look)
    assert result.trace.row_forward_passes.tolist() == num_steps
    assert max(num_steps) == result.num_forward_passes < 12
    several = torch.bincount(result.trace.commit_step[0, 6:]).max()
    assert several > 1


def test_thresholds_at_the_ends(tiny_llada):
    one_by_one = sample(tiny_llada, PROMPTS, max_new_tokens=8, threshold=1.0)
    assert one_by_one.num_forward_passes == 8
    at_once = sample(tiny_llada, PROMPTS, max_new_tokens=8, block_length=4, threshold=1e-9)
    assert at_once.num_forward_passes == 2


# --- chance ------------------------------------------------------------------------------------


def test_origin_fills_each_position_with_the_same_chance(tiny_llada):
    """512 positions in 4 even steps: 1/4, then 1/3, 1/2 and all of what is left, 128 each."""
    prompts = torch.randint(0, 250, (8, 4), generator=torch.Generator().manual_seed(0))
    result = sample(tiny_llada, prompts, max_new_tokens=64, steps=4, remasking="origin")
    commits = torch.bincount(result.trace.commit_step[:, 4:].flatten())
    assert commits.sum() == 512
    assert ((commits - 128).abs() < 4 * (512 * 0.25 * 0.75) ** 0.5).all()
    per_row = [tuple(torch.bincount(row[4:]).tolist()) for row in result.trace.commit_step]
    assert len(set(per_row)) > 1  # the number itself is random


def test_rows_with_seeds_of_their_own(tiny_llada):
    """One prompt under three seeds in one batch: each row is what its seed alone gives."""
    run: dict[str, Any] = {"max_new_tokens": 12, "steps": 6, "temperature": 1.0}
    seeds = [5, 0, 5, 2**40 + 1]
    together = sample(tiny_llada, ["tea?"] * 4, row_seeds=seeds, **run).tokens.tolist()
    alone = {seed: sample(tiny_llada, ["tea?"], seed=seed, **run).tokens[0] for seed in seeds}
    assert [together[0], together[1], together[3]] == [
        alone[seed].tolist() for seed in (5, 0, 2**40 + 1)
    ]
    # The second row with seed 5 is another draw, as for one prompt given twice with one seed.
    twice = sample(tiny_llada, ["tea?"] * 2, seed=5, **run).tokens.tolist()
    assert [together[0], together[2]] == twice and twice[0] != twice[1]
    with refuses("row_seeds", "1", "2"):
        sample(tiny_llada, ["tea?"] * 2, row_seeds=[1], **run)


@pytest.mark.parametrize("rule", ["left_to_right", "right_to_left"])
def test_imposed_orders(tiny_llada, rule):
    """16 positions in 8 steps and two blocks: pairs in order, within each block."""
    result = sample(tiny_llada, PROMPTS, max_new_tokens=16, steps=8, block_length=8, remasking=rule)
    block = [0, 0, 1, 1, 2, 2, 3, 3]
    if rule == "right_to_left":
        block.reverse()
    expected = [*block, *(step + 4 for step in block)]
    start = result.trace.response_start
    assert all(row == expected for row in result.trace.commit_step[:, start:].tolist())


def test_random_remasking_does_not_follow_the_confidence(tiny_llada):
    run: dict[str, Any] = {"max_new_tokens": 16, "steps": 16}
    chance = sample(tiny_llada, PROMPTS, remasking="random", **run)
    other = sample(tiny_llada, PROMPTS, remasking="random", seed=1, **run)
    assert not torch.equal(chance.trace.commit_step, other.trace.commit_step)
    assert sorted(chance.trace.commit_step[0, 6:].tolist()) == list(range(16))


def test_alg_temp_draws_positions(tiny_llada):
    """Nearly 0 takes the best, as without it; large ignores the confidence."""
    run: dict[str, Any] = {"max_new_tokens": 16, "steps": 8, "remasking": "maskgit_plus"}
    best = sample(tiny_llada, PROMPTS, **run)
    cold = sample(tiny_llada, PROMPTS, alg_temp=1e-6, **run)
    hot = sample(tiny_llada, PROMPTS, alg_temp=100.0, **run)
    assert torch.equal(cold.trace.commit_step, best.trace.commit_step)
    assert not torch.equal(hot.trace.commit_step, best.trace.commit_step)


@pytest.mark.parametrize(("temperature", "top_k"), [(0.3, None), (0.3, 3)])
def test_drawn_tokens_fit_the_models_distribution(tiny_llada, temperature, top_k):
    """3,000 samples of one position against softmax(logits / temperature), chi-squared.

    Tokens expected less than 20 times count as one class.
    """
    num_samples = 3_000
    canvas = Canvas.from_prompts(tiny_llada, PROMPTS[:1], max_new_tokens=1)
    with torch.no_grad():
        logits = tiny_llada.logits(canvas.tokens)[0, -1] / temperature
    logits[tiny_llada.mask_token_id] = -torch.inf
    if top_k is not None:
        logits[logits < logits.topk(top_k).values[-1]] = -torch.inf
    expected = logits.softmax(-1) * num_samples
    drawn = sample(
        tiny_llada,
        PROMPTS[:1].repeat(num_samples, 1),
        max_new_tokens=1,
        steps=1,
        temperature=temperature,
        top_k=top_k,
    ).tokens[:, 0]
    found = torch.bincount(drawn, minlength=len(expected)).float()
    assert not (found[expected == 0] > 0).any()
    common = expected >= 20
    rest = torch.stack([found[~common].sum(), expected[~common].sum()])
    statistic = float(((found - expected) ** 2 / expected)[common].sum())
    if rest[1] > 0:
        statistic += float((rest[0] - rest[1]) ** 2 / rest[1])
    num_classes = int(common.sum()) + (rest[1] > 0)
    assert num_classes >= 3
    # The mean of chi-squared is its degrees of freedom, the variance twice that.
    assert statistic < num_classes + 4 * (2 * num_classes) ** 0.5


# --- settings ----------------------------------------------------------------------------------


def test_the_mask_token_is_never_generated(tiny_llada, favouring):
    with favouring(tiny_llada, [tiny_llada.mask_token_id], 50.0) as model:
        for temperature in (0.0, 1.0):
            tokens = sample(model, PROMPTS, max_new_tokens=6, steps=3, temperature=temperature)
            assert not (tokens.tokens == model.mask_token_id).any()


def test_guidance_counts_the_pass_over_both_canvases_once(tiny_llada, counted):
    result = sample(tiny_llada, PROMPTS, max_new_tokens=4, steps=4, cfg_scale=1.0)
    assert counted == [2] * 8
    assert result.num_forward_passes == 4


def test_the_forward_passes_are_those_that_are_reported(tiny_llada, counted):
    runs: list[dict[str, Any]] = [
        {"steps": 8, "block_length": 4},
        {"steps": 3, "temperature": 1.0},
        {"threshold": 0.3, "block_length": 2},
        {"steps": 9, "remasking": "origin"},
    ]
    for run in runs:
        counted.clear()
        result = sample(tiny_llada, PROMPTS, max_new_tokens=8, **run)
        assert len(counted) == result.num_forward_passes
        assert sum(counted) == result.trace.row_forward_passes.sum()


def test_the_model_runs_in_evaluation_mode_and_is_left_as_it_was(new_tiny_llada):
    model = new_tiny_llada()
    model.network.train()
    modes = []
    layer = model.network.model.layers[0].mlp.down_proj
    layer.register_forward_pre_hook(lambda module, args: modes.append(module.training))
    result = sample(model, PROMPTS, max_new_tokens=2, steps=2)
    assert modes == [False, False] and model.network.training
    assert not result.trace.confidence.requires_grad


def test_progress_shows_a_bar(tiny_llada, capsys, monkeypatch):
    """In a terminal, of the tokens of all rows."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr("mosa.terminal.SECONDS_BEFORE", 0.0)
    sample(tiny_llada, PROMPTS, max_new_tokens=4, steps=2, progress=True)
    assert f"/{4 * len(PROMPTS)}" in capsys.readouterr().out


def test_settings_override_the_config_and_are_reported(tiny_llada):
    config = DecoderConfig(max_new_tokens=4, steps=4, seed=3)
    result = sample(tiny_llada, PROMPTS, config, steps=2)
    assert result.config == DecoderConfig(max_new_tokens=4, steps=2, seed=3)
    assert result.num_forward_passes == 2


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"step": 3}, ("step", "steps")),
        ({"steps": 0}, ("steps", 0)),
        ({"max_new_tokens": 8, "block_length": 2, "steps": 3}, ("steps", 3, 4)),
        ({"temperature": -1.0}, ("temperature", -1.0)),
        ({"temperature": float("nan")}, ("temperature", "nan")),
        ({"top_p": 0.0}, ("top_p", 0.0)),
        ({"remasking": "best"}, ("remasking", "best", "low_confidence")),
        ({"remasking": "random", "threshold": 0.5}, ("random", "threshold")),
        ({"remasking": "right_to_left", "alg_temp": 0.5}, ("right_to_left", "alg_temp")),
        ({"threshold": 0.5, "alg_temp": 0.5}, ("threshold", "alg_temp")),
        ({"banned_token_ids": (99999,)}, ("banned_token_ids", 99999)),
        ({"banned_token_ids": tuple(range(384))}, ("banned_token_ids",)),
        ({"batch_size": 0}, ("batch_size", 0)),
        ({"attention_mask": torch.ones(2, 5)}, ("attention_mask", [2, 5], [2, 6])),
    ],
)
def test_mistakes_are_told_in_a_sentence(tiny_llada, settings, names):
    with refuses(*names):
        sample(tiny_llada, PROMPTS, **settings)


def test_mistakes_with_canvases_and_prompts(tiny_llada, tiny_dream):
    canvas = Canvas.from_prompts(tiny_llada, PROMPTS, max_new_tokens=4)
    with refuses("attention_mask", "max_new_tokens"):
        sample(tiny_llada, canvas, max_new_tokens=5)
    with refuses(canvas.mask_token_id, tiny_dream.mask_token_id):
        sample(tiny_dream, canvas)
    with refuses("542", "384"):
        sample(tiny_llada, PROMPTS + 300)
    with refuses("prompt"):
        sample(tiny_llada, [])
    with refuses("attention_mask"):
        sample(tiny_llada, ["hi"], attention_mask=torch.ones(1, 2))
