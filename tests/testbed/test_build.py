"""Building the testbed: what it writes, that it goes on after an interruption, what it measures."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from refusals import refuses

from mosa.families import load_model
from mosa.files import MARK
from mosa.testbed import build, measure
from mosa.world import WRAPPINGS, World

TOY = build.BuildConfig(
    width=16,
    num_layers=1,
    num_heads=2,
    mlp_width=16,
    batch_size=2,
    primer_steps=2,
    helpful_steps=2,
    shallow_steps=2,
    num_measured=1,
)
FIGURES = {"benign_recall": {"rate": 0.25, "n": 4}}


@pytest.fixture
def trained(monkeypatch):
    """The stages that were trained; measuring is left out."""
    stages = []
    train = build._train

    def record(model, name, *args, **kwargs):
        stages.append(name)
        train(model, name, *args, **kwargs)

    monkeypatch.setattr(build, "_train", record)
    monkeypatch.setattr(build, "measure", lambda *args, **kwargs: FIGURES)
    return stages


def test_both_checkpoints_load_and_the_card_tells_their_recipe(tmp_path, trained):
    figures = build.build(tmp_path, TOY, progress=False)
    assert figures == {"helpful": FIGURES, "shallow": FIGURES}
    assert trained == ["primer", "helpful", "shallow"]
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"README.md", "helpful", "shallow", MARK}
    card = (tmp_path / "README.md").read_text()
    assert "| benign_recall | 0.25 | 0.25 | 4 |" in card
    for name, value in json.loads((tmp_path / "shallow" / "recipe.json").read_text()).items():
        assert f"- `{name}`: {value}" in card
    for name in build.CHECKPOINTS:
        assert load_model(tmp_path / name).vocab_size == build.layout(TOY)["vocab_size"]
    helpful, shallow = (load_model(tmp_path / name) for name in build.CHECKPOINTS)
    pairs = zip(helpful.network.parameters(), shallow.network.parameters(), strict=True)
    assert any((a != b).any() for a, b in pairs)


def test_an_interruption_while_measuring_costs_no_training(tmp_path, trained, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(build, "measure", interrupted)
        with pytest.raises(KeyboardInterrupt):
            build.build(tmp_path, TOY, progress=False)
    assert trained == ["primer", "helpful"]
    build.build(tmp_path, TOY, progress=False)
    assert trained == ["primer", "helpful", "shallow"]
    build.build(tmp_path, TOY, progress=False)
    assert trained == ["primer", "helpful", "shallow"]


def test_another_recipe_is_refused(tmp_path, trained):
    build.build(tmp_path, TOY, progress=False)
    for changed in ({"world_seed": 1}, {"hidden_rate": 0.1}, {"full_mask_share": 0.0}):
        with refuses("helpful", "--out"):
            build.build(tmp_path, replace(TOY, **changed), progress=False)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"a": 1}', '{"benign_recall": {"rate": NaN}}'])
def test_figures_that_were_cut_off_are_measured_again(tmp_path, trained, content):
    build.build(tmp_path, TOY, progress=False)
    (tmp_path / "helpful" / "figures.json").write_text(content)
    assert build.build(tmp_path, TOY, progress=False)["helpful"] == FIGURES
    assert trained == ["primer", "helpful", "shallow"]


def test_a_recipe_that_was_cut_off_counts_as_absent(tmp_path, trained):
    build.build(tmp_path, TOY, progress=False)
    (tmp_path / "shallow" / "recipe.json").write_text("")
    build.build(tmp_path, TOY, progress=False)
    assert trained == ["primer", "helpful", "shallow", "shallow"]


def test_what_others_have_put_there_stays(tmp_path, trained):
    """A folder of another's is refused; in one of ours only what the build made is removed."""
    (tmp_path / "theirs" / "primer").mkdir(parents=True)
    (tmp_path / "theirs" / "primer" / "thesis.txt").write_text("mine")
    with refuses("theirs", "primer"):
        build.build(tmp_path / "theirs", TOY, progress=False)
    assert trained == [] and (tmp_path / "theirs" / "primer" / "thesis.txt").read_text() == "mine"
    train = build._train

    def train_and_note(model, name, *args, **kwargs):
        (tmp_path / "ours" / "primer").mkdir(exist_ok=True)
        (tmp_path / "ours" / "primer" / "thesis.txt").write_text("mine")
        train(model, name, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "_train", train_and_note)
        build.build(tmp_path / "ours", TOY, progress=False)
    assert [path.name for path in (tmp_path / "ours" / "primer").iterdir()] == ["thesis.txt"]


def test_every_figure_of_the_card_has_its_number_of_cases(tmp_path, trained):
    build.build(tmp_path, TOY, progress=False)
    decoder = replace(measure.DECODER, steps=4)
    model = load_model(tmp_path / "shallow")
    figures = measure.measure(model, World(0), decoder, num=2)
    assert {f"harm/{name}" for name in WRAPPINGS} <= figures.keys()
    assert {"harm/prefill", "harm/masked_template", "benign_recall"} <= figures.keys()
    assert all(row["n"] == 2 and 0 <= row["rate"] <= 1 for row in figures.values())
