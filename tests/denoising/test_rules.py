"""Decoding rules: chosen by name, recorded, and what monitors and repairs do to a row."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from jsonargparse import ArgumentParser
from refusals import refuses
from safetensors.torch import save_file
from test_approximate import with_frozen_keys

import mosa.denoising.rules as rules
from mosa.cli.options import config_argument, config_from
from mosa.denoising import Canvas, DecoderConfig, Denoiser, evaluation_mode, sample
from mosa.denoising.likelihood import guided_logits
from mosa.denoising.rules import RULES, Action, Monitor, RowView, Rule, rule_from_dict
from mosa.denoising.rules.linear_probe import LinearProbe
from mosa.denoising.rules.remask_below import RemaskBelow
from mosa.denoising.rules.stochastic_annealing import StochasticAnnealing
from mosa.families.attention import FULL
from mosa.types import as_plain

PROMPTS = torch.randint(0, 250, (2, 6), generator=torch.Generator().manual_seed(11))
RUN: dict[str, Any] = {"max_new_tokens": 12, "steps": 12, "block_length": 6}


@pytest.fixture
def probe_file(tmp_path, tiny_llada):
    """A direction in the hidden states of the tiny models, which have one width."""
    width = tiny_llada.network.config.hidden_size
    weight = torch.randn(width, generator=torch.Generator().manual_seed(3))
    save_file({"weight": weight, "bias": torch.tensor([0.25])}, tmp_path / "probe.safetensors")
    return str(tmp_path / "probe.safetensors")


@pytest.fixture
def examples(probe_file) -> dict[str, dict[str, Any]]:
    """Options with which each rule that has any can be made."""
    return {
        "stochastic_annealing": {"steps": 4, "alpha": 0.5},
        "anchor_first": {"start": 3, "end": 5},
        "classifier_free": {"scale": 1.5},
        "remask_below": {"threshold": 0.2, "max_taken_back": 3},
        "linear_probe": {"file": probe_file, "layer": 1, "threshold": 0.5, "action": "stop"},
    }


# --- the table ------------------------------------------------------------------------------------


def test_every_rule_is_in_the_table_under_its_name(examples):
    found = set()
    for module in pkgutil.iter_modules(rules.__path__, rules.__name__ + "."):
        for _, member in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
            if issubclass(member, Rule) and not inspect.isabstract(member) and member is not Rule:
                found.add(member)
    assert found == set(RULES.values())
    for name, rule in RULES.items():
        assert rule(**examples.get(name, {})).name == name
        assert rule.chosen_by in DecoderConfig.__dataclass_fields__


def test_rules_are_recorded_and_read_back(examples):
    for name in RULES:
        rule = rule_from_dict({"name": name, **examples.get(name, {})})
        assert rule_from_dict(rule.to_dict()) == rule
        assert hash(rule_from_dict(rule.to_dict())) == hash(rule)
        if rule.chosen_by == "rules":
            config = DecoderConfig(rules=({"name": name, **examples.get(name, {})},), seed=5)
            assert config.rules == (rule,)
            plain = as_plain(config)
            assert plain["rules"] == [rule.to_dict()]
            assert DecoderConfig.from_dict(plain) == config
            assert hash(DecoderConfig.from_dict(plain)) == hash(config)
    with refuses("remaskings"):
        DecoderConfig.from_dict({"remaskings": "entropy"})
    one = {"name": "remask_below", "threshold": 1, "max_taken_back": 1}
    assert rule_from_dict(one) == RemaskBelow(threshold=1.0, max_taken_back=1)


def test_rules_are_options_of_commands(tmp_path):
    """On the command line and in a YAML file."""
    parser = ArgumentParser(exit_on_error=False)
    config_argument(parser)
    parser.add_class_arguments(DecoderConfig, as_group=True)
    rule = "{name: remask_below, threshold: 0.2, max_taken_back: 3}"
    (tmp_path / "decoder.yaml").write_text(f"rules:\n- {rule}\n")
    for given in (["--rules", f"[{rule}]"], ["--config", str(tmp_path / "decoder.yaml")]):
        config = config_from(DecoderConfig, parser.parse_args(given))
        assert config.rules == (RemaskBelow(threshold=0.2, max_taken_back=3),)


def test_a_changed_option_is_another_decoder(probe_file):
    rule = RemaskBelow(threshold=0.2, max_taken_back=3)
    assert DecoderConfig(rules=(rule,)) != DecoderConfig(rules=(replace(rule, threshold=0.3),))
    probe = LinearProbe(file=probe_file, layer=1, threshold=0.0)
    assert len(probe.sha256) == 64
    save_file({"weight": torch.ones(3), "bias": torch.zeros(1)}, probe_file)
    assert LinearProbe(file=probe_file, layer=1, threshold=0.0) != probe


@pytest.mark.parametrize(
    ("record", "names"),
    [
        ({"name": "nonsense"}, ("nonsense",)),
        ({"threshold": 0.5}, (None,)),
        (
            {"name": "remask_below", "threshold": 0.5, "max_taken_back": 1, "bound": 2},
            ("remask_below", "bound"),
        ),
        ({"name": "remask_below", "threshold": 0.5}, ("remask_below", "max_taken_back")),
        (
            {"name": "remask_below", "threshold": 1.5, "max_taken_back": 1},
            ("threshold", 1.5),
        ),
        (
            {"name": "remask_below", "threshold": "high", "max_taken_back": 1},
            ("threshold", "float"),
        ),
        (
            {"name": "remask_below", "threshold": 0.5, "max_taken_back": 0.5},
            ("max_taken_back", "int"),
        ),
        ({"name": "stochastic_annealing", "steps": 1}, ("steps", "stochastic_annealing", 1)),
        ({"name": "linear_probe", "file": "/absent", "layer": 1, "threshold": 0}, ("/absent",)),
        ({"name": "entropy"}, ("entropy", "remasking")),
        ({"name": "classifier_free", "scale": 1.0}, ("classifier_free", "cfg_scale")),
    ],
)
def test_rules_that_cannot_be(record, names):
    with refuses(*names):
        DecoderConfig(rules=(record,))


def test_rules_that_do_not_go_together(probe_file):
    repair = RemaskBelow(threshold=0.5, max_taken_back=1)
    annealing = StochasticAnnealing(steps=4)
    for settings, names in [
        ({"rules": (repair,), "cache": "dual"}, ("remask_below", "cache")),
        ({"rules": (annealing,), "remasking": "entropy"}, ("stochastic_annealing", "entropy")),
        ({"rules": (annealing, replace(annealing, steps=5))}, ("stochastic_annealing",)),
        ({"rules": (annealing,), "threshold": 0.5}, ("stochastic_annealing", "threshold")),
    ]:
        with refuses(*names):
            DecoderConfig(**settings)
    probe = LinearProbe(file=probe_file, layer=1, threshold=0.5)
    assert DecoderConfig(rules=(annealing, probe, repair)).order == annealing
    assert DecoderConfig(rules=(annealing, probe, repair)).monitors == (probe, repair)
    assert DecoderConfig(rules=(probe,), cache="dual").approximations(FULL) == ("cache",)


def test_an_order_with_options_is_used(tiny_llada):
    """Without chance it is low_confidence; with chance alone it is the order of the draws."""
    plain = sample(tiny_llada, PROMPTS, **RUN)
    certain = sample(tiny_llada, PROMPTS, **RUN, rules=({**ANNEALED, "alpha": 0.0},))
    assert torch.equal(certain.trace.commit_step, plain.trace.commit_step)
    assert torch.equal(certain.tokens, plain.tokens)
    chance = sample(tiny_llada, PROMPTS, **RUN, rules=({**ANNEALED, "alpha": 1.0},))
    at_random = sample(tiny_llada, PROMPTS, **RUN, remasking="random")
    # The share of chance is 1 in the first step alone.
    first = at_random.trace.commit_step == 0
    assert torch.equal(chance.trace.commit_step == 0, first)
    assert not torch.equal(plain.trace.commit_step == 0, first)


ANNEALED = {"name": "stochastic_annealing", "steps": 12}


# --- a repair -------------------------------------------------------------------------------------


@torch.no_grad()
def remasked_loop(model, prompt, config: DecoderConfig, rule: RemaskBelow):
    """One row, position by position, over the library's forward pass: tokens, commit steps, and
    (step, column, token) of what was taken back."""
    mask, width, length = model.mask_token_id, len(prompt), config.max_new_tokens
    block_length, steps = config.block_length or length, config.steps
    per_block = steps // (length // block_length)
    tokens = torch.cat([prompt, torch.full((length,), mask)])
    commit_step = torch.full_like(tokens, -1)
    given = torch.arange(len(tokens)) < width
    taken: list[tuple[int, int, int]] = []
    for step in range(200):
        masked = [c for c in range(width, width + length) if tokens[c] == mask]
        if not masked:
            break
        block = step // per_block if step < steps else (masked[0] - width) // block_length
        candidates = [c for c in masked if c < width + (block + 1) * block_length]
        if not candidates:
            continue
        slots_left = per_block - step % per_block
        count = -(-len(candidates) // slots_left) if step < steps else -(-length // steps)
        logits = guided_logits(
            model,
            tokens[None],
            None,
            torch.arange(len(tokens)),
            response_start=width,
            given=given[None],
            cfg_scale=config.cfg_scale,
        )[0]
        probs = logits.softmax(-1)
        logits[:, mask] = -torch.inf
        best = logits.argmax(-1)
        candidates.sort(key=lambda c: -float(probs[c, best[c]]))
        for column in candidates[:count]:
            tokens[column], commit_step[column] = best[column], step
        earlier = [c for c in range(width, width + length) if 0 <= commit_step[c] < step]
        earlier.sort(key=lambda c: float(probs[c, tokens[c]]))
        for column in earlier[: rule.max_taken_back - len(taken)]:
            if probs[column, tokens[column]] < rule.threshold:
                taken.append((step, column, int(tokens[column])))
                tokens[column], commit_step[column] = mask, -1
    return tokens, commit_step, taken


@pytest.mark.parametrize("name", ["tiny_llada", "tiny_dream"])
@pytest.mark.parametrize(("cfg_scale", "max_taken_back"), [(0.0, 5), (0.0, 40), (1.5, 5)])
def test_doubtful_tokens_are_taken_back(request, name, cfg_scale, max_taken_back):
    model = request.getfixturevalue(name)
    rule = RemaskBelow(threshold=0.02, max_taken_back=max_taken_back)
    config = DecoderConfig(**RUN, cfg_scale=cfg_scale, rules=(rule,))
    result = sample(model, PROMPTS, config)
    trace = result.trace
    for row, prompt in enumerate(PROMPTS):
        tokens, commit_step, taken = remasked_loop(model, prompt, config, rule)
        assert torch.equal(result.canvas.tokens[row], tokens)
        assert torch.equal(trace.commit_step[row], commit_step)
        undone = [
            (remask.step, int(column), int(token))
            for remask in trace.remasks
            for column, token in zip(remask.columns, remask.tokens, strict=True)
            if remask.row == row
        ]
        assert sorted(undone) == sorted(taken)
        assert 0 < len(taken) <= max_taken_back
    assert trace.notes == []
    assert not (result.tokens == model.mask_token_id).any()
    assert torch.equal(trace.replay(), result.canvas.tokens)
    unguarded = sample(model, PROMPTS, replace(config, rules=()))
    # Five are filled within the plan, forty are not.
    extra = result.num_forward_passes - unguarded.num_forward_passes
    assert extra > 0 if max_taken_back == 40 else extra == 0


# --- a monitor ------------------------------------------------------------------------------------


@torch.no_grad()
def layer_output(model, layer: int, run):
    """What a layer (from 1) of the library's network puts out for one row while `run` runs it."""
    kept = []
    handle = model.network.model.layers[layer - 1].register_forward_hook(
        lambda module, args, output: kept.append(output[0] if isinstance(output, tuple) else output)
    )
    run()
    handle.remove()
    return kept[0].reshape(-1, kept[0].shape[-1])


@torch.no_grad()
def scores_by_step(model, prompt, result, row, layer, probe_file, cache):
    """The probe's score after every step, from the canvases that the passes saw."""
    from safetensors.torch import load_file

    probe = load_file(probe_file)
    width, scores, of_token, kept = len(prompt), [], torch.empty(0), {}
    columns = torch.arange(width + RUN["max_new_tokens"])
    for step in range(RUN["steps"]):
        seen = result.trace.replay(step - 1)[row]
        frozen = None
        if cache == "dual" and step % 6:
            begin = width + step // 6 * 6
            frozen = ~((columns >= begin) & (columns < begin + 6))
        states = layer_output(
            model,
            layer,
            lambda seen=seen, frozen=frozen: with_frozen_keys(model, seen, frozen, kept),
        )
        value = states.float() @ probe["weight"] + probe["bias"]
        of_token = value if frozen is None else torch.where(frozen, of_token, value)
        scores.append(float(of_token[width:].mean()))
    return scores


def first_rise(scores: list[float]) -> tuple[int, float]:
    """A step from 2 on whose score exceeds all before, and a threshold half-way below it."""
    rises = [
        (scores[step] - max(scores[:step]), step)
        for step in range(2, len(scores) - 1)
        if scores[step] > max(scores[:step])
    ]
    gap, step = max(rises)
    return step, scores[step] - gap / 2


@pytest.mark.parametrize("cache", ["none", "dual"])
@pytest.mark.parametrize("layer", [1, 2])
def test_a_probe_notes_and_stops(tiny_llada, probe_file, cache, layer):
    """The step, the score and the canvas, recomputed from the canvases that the passes saw."""
    model, prompt = tiny_llada, PROMPTS[:1]
    plain = sample(model, prompt, **RUN, cache=cache)
    scores = scores_by_step(model, prompt[0], plain, 0, layer, probe_file, cache)
    step, threshold = first_rise(scores)
    probe = LinearProbe(file=probe_file, layer=layer, threshold=threshold)

    noted = sample(model, prompt, **RUN, cache=cache, rules=(probe,))
    (note,) = noted.trace.notes
    assert (note.rule, note.row, note.step, note.stopped) == ("linear_probe", 0, step, False)
    assert note.value == pytest.approx(scores[step], abs=1e-4)
    assert torch.equal(noted.tokens, plain.tokens)
    assert torch.equal(noted.trace.commit_step, plain.trace.commit_step)

    stopped = sample(model, prompt, **RUN, cache=cache, rules=(replace(probe, action="stop"),))
    trace = stopped.trace
    (note,) = trace.notes
    assert (note.step, note.stopped) == (step, True)
    assert stopped.num_forward_passes == step + 1
    stood = plain.trace.replay(step)
    is_left = stood == model.mask_token_id
    assert is_left.any()
    assert torch.equal(stopped.canvas.tokens, stood.masked_fill(is_left, model.eos_token_id))
    assert (trace.commit_step[is_left] == step).all() and trace.confidence[is_left].isnan().all()
    assert torch.equal(trace.replay(step - 1), plain.trace.replay(step - 1))
    assert torch.equal(trace.replay(), stopped.canvas.tokens)


def test_a_probe_beside_a_cache_renewed_in_every_step_is_the_probe_without(tiny_dream, probe_file):
    def notes(**settings):
        probe = LinearProbe(file=probe_file, layer=2, threshold=-50.0)
        return sample(tiny_dream, PROMPTS, **RUN, rules=(probe,), **settings).trace.notes

    exact, cached = notes(), notes(cache="dual", cache_refresh=1)
    assert [note.row for note in exact] == [note.row for note in cached] == [0, 1]
    assert [note.step for note in exact] == [note.step for note in cached]
    for one, other in zip(exact, cached, strict=True):
        assert one.value == pytest.approx(other.value, abs=1e-4)


def test_a_probe_for_another_model_is_refused(tiny_llada, probe_file):
    probe = LinearProbe(file=probe_file, layer=1, threshold=0.0)
    save_file({"weight": torch.ones(3), "bias": torch.zeros(1)}, probe_file)
    with refuses(probe_file):
        sample(tiny_llada, PROMPTS, **RUN, rules=(probe,))
    with refuses(probe_file, "width 3", "layer 1"):
        sample(tiny_llada, PROMPTS, **RUN, rules=({**PROBE, "file": probe_file},))
    width = tiny_llada.network.config.hidden_size
    save_file({"weight": torch.ones(width), "bias": torch.zeros(1)}, probe_file)
    with refuses(probe_file, "layer 3"):
        sample(tiny_llada, PROMPTS, **RUN, rules=({**PROBE, "file": probe_file, "layer": 3},))
    for tensors in ({"weight": torch.ones(3)}, {"weight": torch.ones(3, 3), "bias": torch.ones(1)}):
        save_file(tensors, probe_file)
        with refuses(probe_file, "weight", "bias"):
            sample(tiny_llada, PROMPTS, **RUN, rules=({**PROBE, "file": probe_file},))
    weight = torch.full((width,), float("nan"))  # no score would ever exceed a threshold
    save_file({"weight": weight, "bias": torch.ones(1)}, probe_file)
    with refuses(probe_file, "finite"):
        sample(tiny_llada, PROMPTS, **RUN, rules=({**PROBE, "file": probe_file},))
    with open(probe_file, "w") as file:
        file.write("no tensors")
    with refuses(probe_file):
        sample(tiny_llada, PROMPTS, **RUN, rules=({**PROBE, "file": probe_file},))


PROBE = {"name": "linear_probe", "layer": 1, "threshold": 0.0}


# --- rules, hooks and neighbors -------------------------------------------------------------------


@dataclass(frozen=True)
class Scripted(Monitor):
    """Writes a token (or the mask) at a column in a step, and keeps what it sees in `seen`."""

    name: str = field(default="scripted", init=False)
    at: int = -1
    column: int = 6
    token: int = 0
    stop: bool = False
    seen: list[RowView] = field(default_factory=list, compare=False)

    def start(self, model) -> list[int]:
        return []

    def look(self, row: RowView, state: list[int]) -> Action | None:
        self.seen.append(replace(row, tokens=row.tokens.clone()))
        state.append(row.step)
        assert state == list(range(row.step + 1)), "one state for each row"
        if row.step != self.at:
            return None
        row.tokens[self.column] = self.token
        return Action(tokens=row.tokens, stop=self.stop, note="as written", value=2.0)


def test_a_rule_acts_before_an_attacker_edits(tiny_llada):
    """In one row: the hook writes at step 1, the rule takes that back at step 2, the hook sees a
    mask there at step 2, and both are in the trace."""
    mask = tiny_llada.mask_token_id
    at_hook = []

    def hook(row):
        at_hook.append(int(row.tokens[6]))
        if row.step == 1:
            row.tokens[6] = 42
            return Action(tokens=row.tokens)
        return None

    rule = Scripted(at=2, token=mask)
    result = sample(tiny_llada, PROMPTS[:1], **RUN, rules=(rule,), hook=hook)
    assert [int(row.tokens[6]) for row in rule.seen][2] == 42
    assert int(rule.seen[2].commit_step[6]) == 1
    assert at_hook[2] == mask
    assert [(undone.step, undone.tokens.tolist()) for undone in result.trace.remasks][-1] == (
        2,
        [42],
    )
    assert int(result.trace.commit_step[0, 6]) > 2
    assert torch.equal(result.trace.replay(), result.canvas.tokens)


def test_a_stopped_row_leaves_its_hook_and_its_neighbors(tiny_llada):
    """Two rows with one hook: a rule stops the second at step 3, and the first goes on."""
    is_second = PROMPTS[1, 0]

    @dataclass(frozen=True)
    class StopSecond(Scripted):
        def look(self, row: RowView, state: list[int]) -> Action | None:
            if row.tokens[0] == is_second and row.step == 3:
                return Action(stop=True)
            return None

    assert PROMPTS[0, 0] != is_second
    rows = []
    plain = sample(tiny_llada, PROMPTS, **RUN)
    result = sample(
        tiny_llada,
        PROMPTS,
        **RUN,
        rules=(StopSecond(),),
        hook=lambda row: rows.append(row.number),
    )
    assert rows == [0, 1] * 3 + [0] * 9
    assert torch.equal(result.tokens[0], plain.tokens[0])
    assert result.trace.row_forward_passes.tolist() == [12, 4]
    assert [(note.row, note.step, note.stopped) for note in result.trace.notes] == [(1, 3, True)]


def test_a_rule_may_not_change_what_is_pinned(tiny_llada):
    with refuses("scripted"):
        sample(tiny_llada, PROMPTS.clamp(min=10), **RUN, rules=(Scripted(at=1, column=2, token=9),))


@pytest.mark.parametrize("name", ["tiny_llada", "tiny_dream"])
@pytest.mark.parametrize("num_slots", [2, 20])
def test_rows_with_rules_are_the_rows_alone(request, name, num_slots, probe_file):
    """Monitors, repairs, hooks, caches and guidance in one batch."""
    model = request.getfixturevalue(name)
    probe = LinearProbe(file=probe_file, layer=1, threshold=-50.0)
    repair = RemaskBelow(threshold=0.05, max_taken_back=4)

    def write(row):
        if row.step != 1:
            return None
        row.tokens[row.positions == 0] = 42
        return Action(tokens=row.tokens)

    kinds: list[tuple[dict[str, Any], Any]] = [
        ({}, None),
        ({"rules": (repair,)}, None),
        ({"rules": (probe,), "cache": "dual", "block_length": 3}, None),
        ({"rules": (replace(probe, action="stop"),), "temperature": 0.7}, None),
        ({"rules": (repair, probe), "cfg_scale": 1.0}, write),
        ({"rules": (StochasticAnnealing(steps=9), repair)}, None),
        ({"cache": "prefix", "block_length": 3}, None),
        ({"rules": (Scripted(at=2, token=9, stop=True),)}, write),
    ]
    generator = torch.Generator().manual_seed(21)
    jobs = []
    for number, (settings, hook) in enumerate(kinds):
        ids = torch.randint(0, 250, (1 + number % 2, 6), generator=generator)
        config = DecoderConfig(max_new_tokens=9, steps=9, **settings)
        jobs.append((Canvas.from_prompts(model, ids, max_new_tokens=9), config, hook))
    denoiser = Denoiser(model, num_slots=num_slots)
    fillings = []
    with evaluation_mode(model):
        for canvas, config, hook in jobs:
            fillings.append(denoiser.add(canvas, config, hook=hook))
            denoiser.step()
        while denoiser.has_work:
            denoiser.step()
    for (canvas, config, hook), filling in zip(jobs, fillings, strict=True):
        alone = sample(model, canvas, config, hook=hook).trace
        mine = filling.trace
        assert torch.equal(mine.tokens, alone.tokens)
        assert torch.equal(mine.commit_step, alone.commit_step)
        assert torch.equal(mine.row_forward_passes, alone.row_forward_passes)

        def told(trace):
            return sorted((note.rule, note.row, note.step, note.stopped) for note in trace.notes)

        assert told(mine) == told(alone)
        assert torch.equal(mine.replay(), mine.tokens)
