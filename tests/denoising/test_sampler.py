"""Single features of the sampler, each shown to matter."""

import pytest
import torch

from mosa.denoising import Canvas, DecoderConfig, sample
from mosa.types import UserError

PROMPTS = torch.randint(0, 250, (2, 6), generator=torch.Generator().manual_seed(6))


# --- end tokens --------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.0, 0.5])
def test_end_tokens_can_be_forbidden(tiny_llada, favouring, temperature):
    run = {"max_new_tokens": 8, "steps": 8, "temperature": temperature}
    ends = torch.tensor(tiny_llada.end_token_ids)
    with favouring(tiny_llada, dict.fromkeys(tiny_llada.end_token_ids, 20.0)) as model:
        allowed = sample(model, PROMPTS, **run)
        forbidden = sample(model, PROMPTS, end_tokens="forbid", **run)
    assert torch.isin(allowed.tokens, ends).all()
    assert not torch.isin(forbidden.tokens, ends).any()
    assert allowed.text == ["", ""]
    assert forbidden.text == forbidden.full_text


@pytest.mark.parametrize("temperature", [0.0, 0.5])
@pytest.mark.parametrize("rule", ["low_confidence", "entropy", "random"])
def test_suppressed_end_tokens_come_last(tiny_llada, favouring, temperature, rule):
    """Where the model proposes an end token it waits for all others, at every temperature."""
    run = {"max_new_tokens": 16, "steps": 16, "temperature": temperature, "remasking": rule}
    end = tiny_llada.eos_token_id

    def order(end_tokens):
        proposed_first = []

        def hook(step):
            if step.step == 0:
                proposed_first.append((step.proposals == end).sum(dim=1))
                proposed_first.append((step.committed[:, 6:] & (step.response == end)).any(dim=1))

        result = sample(model, PROMPTS, end_tokens=end_tokens, hook=hook, **run)
        is_end = result.tokens == end
        return proposed_first, result.trace.commit_step[:, 6:], is_end

    with favouring(tiny_llada, {end: 7.0}) as model:
        (proposed, committed), _, _ = order("suppress")
        _, allowed_steps, allowed_end = order("allow")
        _, steps, is_end = order("suppress")
    assert (proposed > 0).all() and (proposed < 16).all()
    assert not committed.any()
    # Allowed, they come early; suppressed, later than in that run.
    for row in range(2):
        assert allowed_steps[row][allowed_end[row]].float().mean() < (
            steps[row][is_end[row]].float().mean() if is_end[row].any() else 16
        )


def test_a_finished_row_is_filled_and_leaves_the_batch(tiny_llada, favouring, counted):
    """Row 0 ends at once (its end token is pinned in reach of nothing else); row 1 goes on."""
    end = tiny_llada.eos_token_id
    canvas = Canvas.from_prompts(tiny_llada, PROMPTS, max_new_tokens=8)
    canvas = canvas.pin(0, [20, 21], rows=0)
    plain = tiny_llada.logits

    def ends_row_0(input_ids, attention_mask=None, positions=None):
        logits = plain(input_ids, attention_mask, positions)
        is_row_0 = (input_ids[:, 6] == 20)[:, None]
        is_first_free = (positions == 8)[None]
        logits[..., end] = torch.where(is_row_0 & is_first_free, 1e4, -1e4)
        return logits

    tiny_llada.logits = ends_row_0
    try:
        stopped = sample(tiny_llada, canvas, steps=8, stop_when_finished=True)
        calls, counted[:] = list(counted), []
        whole = sample(tiny_llada, canvas, steps=8)
    finally:
        del tiny_llada.logits
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
    bound = 0.2
    canvas = Canvas.from_prompts(tiny_llada, PROMPTS, max_new_tokens=12)
    steps = []
    result = sample(tiny_llada, canvas, block_length=6, threshold=bound, hook=steps.append)
    for state in steps:
        for row in range(2):
            confidence = state.confidence[row]
            expected = confidence >= bound
            if confidence.max() > -torch.inf:
                expected[confidence.argmax()] = True
            assert torch.equal(state.committed[row][state.columns], expected)
    assert len(steps) == result.num_forward_passes < 12
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


def test_random_remasking_does_not_follow_the_confidence(tiny_llada):
    run = {"max_new_tokens": 16, "steps": 16}
    chance = sample(tiny_llada, PROMPTS, remasking="random", **run)
    other = sample(tiny_llada, PROMPTS, remasking="random", seed=1, **run)
    assert not torch.equal(chance.trace.commit_step, other.trace.commit_step)
    assert sorted(chance.trace.commit_step[0, 6:].tolist()) == list(range(16))


def test_alg_temp_draws_positions(tiny_llada):
    """Nearly 0 takes the best, as without it; large ignores the confidence."""
    run = {"max_new_tokens": 16, "steps": 8, "remasking": "maskgit_plus"}
    best = sample(tiny_llada, PROMPTS, **run)
    cold = sample(tiny_llada, PROMPTS, alg_temp=1e-6, **run)
    hot = sample(tiny_llada, PROMPTS, alg_temp=100.0, **run)
    assert torch.equal(cold.trace.commit_step, best.trace.commit_step)
    assert not torch.equal(hot.trace.commit_step, best.trace.commit_step)


# --- settings ----------------------------------------------------------------------------------


def test_the_mask_token_is_never_generated(tiny_llada, favouring):
    with favouring(tiny_llada, {tiny_llada.mask_token_id: 50.0}) as model:
        for temperature in (0.0, 1.0):
            tokens = sample(model, PROMPTS, max_new_tokens=6, steps=3, temperature=temperature)
            assert not (tokens.tokens == model.mask_token_id).any()


def test_guidance_calls_the_model_once_with_both_canvases(tiny_llada, counted):
    result = sample(tiny_llada, PROMPTS, max_new_tokens=4, steps=4, cfg_scale=1.0)
    assert counted == [4] * 4
    assert result.num_forward_passes == 4


def test_the_forward_passes_are_those_that_are_reported(tiny_llada, counted):
    for run in (
        {"steps": 8, "block_length": 4},
        {"steps": 3, "temperature": 1.0},
        {"threshold": 0.3, "block_length": 2},
        {"steps": 9, "remasking": "origin"},
    ):
        counted.clear()
        result = sample(tiny_llada, PROMPTS, max_new_tokens=8, **run)
        assert len(counted) == result.num_forward_passes
        assert sum(counted) == result.trace.row_forward_passes.sum()


def test_the_model_runs_in_evaluation_mode_and_is_left_as_it_was(new_tiny_llada):
    model = new_tiny_llada()
    model.network.train()
    modes = []
    model.network.register_forward_pre_hook(lambda module, args: modes.append(module.training))
    result = sample(model, PROMPTS, max_new_tokens=2, steps=2)
    assert modes == [False, False] and model.network.training
    assert not result.trace.confidence.requires_grad


def test_progress_shows_a_bar(tiny_llada, capsys):
    sample(tiny_llada, PROMPTS, max_new_tokens=4, steps=2, progress=True)
    assert "denoising" in capsys.readouterr().out


def test_settings_override_the_config_and_are_reported(tiny_llada):
    config = DecoderConfig(max_new_tokens=4, steps=4, seed=3)
    result = sample(tiny_llada, PROMPTS, config, steps=2)
    assert result.config == DecoderConfig(max_new_tokens=4, steps=2, seed=3)
    assert result.num_forward_passes == 2


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"step": 3}, "no setting 'step'"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"max_new_tokens": 8, "block_length": 2, "steps": 3}, "too few for 4 blocks"),
        ({"temperature": -1.0}, "temperature must be"),
        ({"temperature": float("nan")}, "temperature must be"),
        ({"top_p": 0.0}, "top_p must be"),
        ({"remasking": "best"}, "choose from low_confidence"),
        ({"remasking": "random", "threshold": 0.5}, "has no confidence"),
        ({"threshold": 0.5, "alg_temp": 0.5}, "exclude each other"),
        ({"banned_token_ids": (99999,)}, "banned_token_ids names 99999"),
        ({"banned_token_ids": tuple(range(384))}, "All tokens are banned"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"attention_mask": torch.ones(2, 5)}, "attention_mask has shape"),
    ],
)
def test_mistakes_are_told_in_a_sentence(tiny_llada, settings, sentence):
    with pytest.raises(UserError, match=sentence):
        sample(tiny_llada, PROMPTS, **settings)


def test_mistakes_with_canvases_and_prompts(tiny_llada, tiny_dream):
    canvas = Canvas.from_prompts(tiny_llada, PROMPTS, max_new_tokens=4)
    with pytest.raises(UserError, match="leave out attention_mask and max_new_tokens"):
        sample(tiny_llada, canvas, max_new_tokens=5)
    with pytest.raises(UserError, match="make the canvas for this model"):
        sample(tiny_dream, canvas)
    with pytest.raises(UserError, match="outside the model's vocabulary"):
        sample(tiny_llada, PROMPTS + 300)
    with pytest.raises(UserError, match="at least one"):
        sample(tiny_llada, [])
    with pytest.raises(UserError, match="goes with prompts given as token ids"):
        sample(tiny_llada, ["hi"], attention_mask=torch.ones(1, 2))
