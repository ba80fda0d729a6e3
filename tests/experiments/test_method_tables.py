"""The tables of methods at toy size: what they rest on, and that they go on where they ended."""

from __future__ import annotations

from dataclasses import replace

import pytest
from made_runs import attacked, solved
from refusals import refuses

from mosa.alignment import load_config
from mosa.alignment.mosa_config import MosaConfig
from mosa.cli import main
from mosa.evidence.figures import gather
from mosa.experiments import models
from mosa.experiments.methods import (
    FACTORIAL,
    METHODS_TABLE,
    RECALL,
    WINDOWS,
    MethodsConfig,
    Tables,
    all_cells,
    name_of,
    run_folder,
    run_methods,
)
from mosa.runs.store import Run
from mosa.testbed import world_of
from mosa.world import World

pytestmark = pytest.mark.integration

TOY = MethodsConfig(
    num_seeds=2,
    tables=("methods",),
    cells=("mosa_testbed_paper",),
    num_objects=2,
    num_benign=2,
    num_tasks=2,
    align_steps=8,
    steps=4,
    workers=1,
)
CELLS = (METHODS_TABLE["mosa"],)


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """A cell with two trainings, from the command line in this process."""
    out = tmp_path_factory.mktemp("tables") / "out"
    argv = [
        word
        for name, value in vars(TOY).items()
        if name != "testbed"
        for word in (f"--{name}", ",".join(value) if isinstance(value, tuple) else str(value))
    ]
    assert main(["testbed", "tables", "--out", str(out), *argv]) == 0
    return out


def test_every_cell_is_trained_once_and_its_settings_say_what_it_is():
    cells = all_cells()
    names = [name_of(cell, 0) for cell in cells]
    shared = all_cells(("windows", "methods"))
    assert len(all_cells(("windows",))) == len(WINDOWS) and set(shared) < set(cells)
    assert shared[: len(METHODS_TABLE)] == all_cells(("methods",)) == [*METHODS_TABLE.values()]
    assert len(set(names)) == len(names)
    assert {*METHODS_TABLE.values()} <= set(cells)
    for_blocks = set(cells) - set(all_cells(with_blocks=False))
    assert for_blocks == {METHODS_TABLE["mosa_block"]}
    for (position, breaker, _, kl), cell in FACTORIAL.items():
        settings = load_config(MosaConfig, cell.preset, {})
        assert (settings.window_start == 1) == (position == "first")
        assert (settings.breaker == "none") == (breaker == "none")
        assert settings.kl_reduction == kl
    for label, cell in WINDOWS.items():
        settings = load_config(MosaConfig, cell.preset, {})
        assert f"{settings.window_start} to {settings.window_end}" == label


def test_each_training_is_measured_at_its_end_and_at_three_moments(out):
    with Run(run_folder(out)) as run:
        subjects = run.subjects()
    for cell in CELLS:
        for seed in range(2):
            name = f"testbed+{name_of(cell, seed)}"
            for moment in ("", "@1", "@2", "@4"):
                assert name + moment in subjects
    hashes = [record.weights for record in subjects.values()]
    assert len(set(hashes)) == len(hashes), "a seed or a moment changed nothing"


def test_the_page_has_every_training(out):
    page = (out / "tables.md").read_text()
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| ")]
    headings = next(row for row in rows if row[0] == "| method")
    assert {"mean of six attacks(*)", "wrapped (four)(*)"} < {*headings}
    assert "(*) some wrappings" in page
    for cell in CELLS:
        (row,) = (row for row in rows if row[0] == f"| {cell.label}" and len(row) == 11)
        assert row[1] == "2"
        assert "n=" not in row[4] and "to" in row[4]


def test_a_second_call_trains_nothing(out, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("trained again")

    monkeypatch.setattr(models, "run_training", refuse)
    before = (out / "tables.md").read_text()
    run_methods(out, TOY)
    assert (out / "tables.md").read_text() == before
    with refuses(out, "num_tasks", "--out"):
        run_methods(out, replace(TOY, num_tasks=3))
    with refuses("mosa_testbed_pape", "mosa_testbed_paper"):
        run_methods(out, replace(TOY, cells=("mosa_testbed_pape",)))


def test_cells_are_chosen_by_name_within_their_tables():
    plain = replace(TOY, tables=("factorial",), cells=("mosa_testbed_paper_plain",))
    assert plain.chosen() == [FACTORIAL["middle", "one end token", "plain", "sum"]]
    assert len(replace(TOY, cells=()).chosen()) == len(METHODS_TABLE) - 1  # without that for blocks
    with refuses("mosa_testbed_paper_plain"):
        replace(plain, tables=("methods",)).chosen()
    with refuses("mosa_testbed_block"):
        replace(TOY, cells=("mosa_testbed_block",)).chosen()
    assert replace(TOY, testbed="testbed:block", cells=("mosa_testbed_block",)).chosen()


def test_an_adapter_of_others_is_not_trained_over(tmp_path):
    """A folder of others is refused; in one of ours, files that others put there stay."""
    recipe = METHODS_TABLE["mosa"].recipe(0, 1)
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "thesis.txt").write_text("mine")
    with refuses(tmp_path / "theirs"):
        models.train(recipe, "testbed", tmp_path / "theirs", lambda *_: None)
    folder = models.train(recipe, "testbed", tmp_path / "ours", lambda *_: None)
    (folder / "thesis.txt").write_text("mine")
    before = (folder / "adapter_model.safetensors").read_bytes()
    models.train(replace(recipe, seed=1), "testbed", folder, lambda *_: None)
    assert (folder / "adapter_model.safetensors").read_bytes() != before
    for place in (tmp_path / "theirs", folder):
        assert (place / "thesis.txt").read_text() == "mine"


def test_plain_data_ask_plainly(tmp_path, monkeypatch):
    """The wrappings of the data are those that the recipe names, and nothing else differs."""
    seen = []

    def spy(method, model, harmful, *args, **kwargs):
        seen.append({str(example.prompt) for example in harmful})
        raise KeyboardInterrupt

    monkeypatch.setattr(models, "run_training", spy)
    for cell in (FACTORIAL["middle", "none", data, "sum"] for data in ("wrapped", "plain")):
        with pytest.raises(KeyboardInterrupt):
            models.train(cell.recipe(0, 1), "testbed", tmp_path / "x", lambda *_: None)
    world = world_of("testbed")
    objects = world.objects(restricted=True, split="train")
    plain = {str(world.request(obj, variant=i)) for obj in objects for i in range(3)}
    wrapped, asked_plainly = seen
    assert asked_plainly <= plain
    assert wrapped & plain and wrapped - plain


def test_harm_at_matched_recall_is_that_of_the_last_moment_with_it(tmp_path):
    """Recall 1, 1, 0.5, 0.5 at the start, two moments and the end: at 0.9 the first moment counts,
    where one of two objects succeeds; at 0.5 the end."""
    cell, world = METHODS_TABLE["mosa"], World(0)
    first, second = (o.name for o in world.objects(restricted=True, split="heldout")[:2])
    name = f"testbed+{name_of(cell, 0)}"
    harm = {
        "testbed": (True, True),
        f"{name}@1": (True, False),
        f"{name}@2": (False, False),
        name: (False, False),
    }
    attacked(
        tmp_path / "run",
        {
            subject: {attack: {first: a, second: b} for attack in ("prefill", "dija_canvas")}
            for subject, (a, b) in harm.items()
        },
    )
    recall = dict(zip(harm, ((1, 1), (1, 1), (1, 0), (1, 0)), strict=True))
    solved(
        tmp_path / "run",
        {s: {RECALL: {"x": float(a), "y": float(b)}} for s, (a, b) in recall.items()},
    )
    tables = Tables(tmp_path, replace(TOY, num_seeds=1), world)
    assert tables.trainings == {"original": {0: "testbed"}, name_of(cell, 0): {0: name}}
    rate, reached = tables.matched(name_of(cell, 0), 0.9)
    assert rate is not None
    assert (rate.value, rate.n, reached) == (0.5, 2, "1")
    rate, reached = tables.matched(name_of(cell, 0), 0.5)
    assert rate is not None
    assert (rate.value, reached) == (0.0, "3")
    assert gather([tmp_path / "run"]).select("safety")
