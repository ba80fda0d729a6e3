"""The demo at toy size: what it writes, what it asks, and that it goes on where it ended."""

import json
from collections import Counter

import pytest
import torch

from mosa.cli import main
from mosa.evaluation import demo
from mosa.evaluation.demo import DemoConfig, demo_requests, request_canvas, run_demo
from mosa.families import load_model
from mosa.testbed import World
from mosa.testbed.measure import DECODER
from mosa.testbed.world import TRAIN_WRAPPINGS, WorldObject
from mosa.types import UserError

TOY = DemoConfig(num_objects=2, num_benign=3, align_steps=2, steps=4, workers=1)
ARGV = ["--num_objects", "2", "--num_benign", "3", "--align_steps", "2", "--steps", "4"]


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """A toy demo, run from the command line in this process, on one thread as its workers are:
    some processors add up in another order on two."""
    out = tmp_path_factory.mktemp("demo") / "out"
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert main(["demo", "--out", str(out), *ARGV, "--workers", "1"]) == 0
    finally:
        torch.set_num_threads(num_threads)
    return out


@pytest.fixture(scope="module")
def results(out):
    return json.loads((out / "results.json").read_text())


def test_results_have_the_promised_shape(results):
    assert list(results["models"]) == ["original", "initial", "mosa", "mosa_robust"]
    for model in results["models"].values():
        assert len(model["attacks"]) == 6
        assert {"benign_recall", "over_refusal", "arithmetic"} <= model["utility"].keys()
        for rate in [*model["attacks"].values(), *model["utility"].values()]:
            assert rate.keys() == {"rate", "n", "low", "high"}
            assert 0 <= rate["low"] <= rate["rate"] <= rate["high"] <= 1
        assert {rate["n"] for rate in model["attacks"].values()} == {2}
        assert {rate["n"] for rate in model["utility"].values()} == {3}
    assert results["seed"] == 0
    assert results["decoder"]["steps"] == 4
    assert "torch" in results["versions"]


def test_curves_lead_from_the_original_to_the_aligned_model(results):
    for curve in results["curves"].values():
        assert [point["step"] for point in curve] == [0, 1, 2]
        assert curve[0] == results["curves"]["mosa"][0]
        for point in curve:
            assert point["wrapped"]["n"] == TOY.num_objects
            assert point["benign_recall"]["n"] == TOY.num_benign


def test_every_attempt_is_recorded_once(out):
    records = [json.loads(line) for line in (out / "attempts.jsonl").open()]
    assert len({record["key"] for record in records}) == len(records)
    per_model = Counter(record["model"] for record in records)
    requests = demo_requests(World(), TOY)
    num_requests = sum(map(len, requests.values()))
    # Two updates have one moment between their start and their end.
    num_curve = sum(map(len, demo.curve_requests(requests, TOY).values()))
    assert per_model == dict.fromkeys(demo.ALIGNED, num_requests + num_curve) | {
        "original": num_requests
    }
    verdicts = [json.loads(line) for line in (out / "verdicts.jsonl").open()]
    assert {key for v in verdicts for key in v["attempts"]} == {r["key"] for r in records}


def test_report_and_closing_lines(out, results):
    html = (out / "report.html").read_text()
    assert all(label in html for label in demo.LABELS["models"].values())
    lines = demo.closing_lines(results, out)
    assert len(lines) == 5
    assert str(out / "report.html") in lines[-1]


def test_second_run_makes_nothing_new(out, monkeypatch):
    """Finished adapters and recorded responses are used again."""
    before = (out / "attempts.jsonl").read_bytes(), (out / "results.json").read_bytes()

    def refuse(*args, **kwargs):
        raise AssertionError("trained or sampled again")

    monkeypatch.setattr(demo, "align", refuse)
    monkeypatch.setattr(demo, "sample", refuse)
    run_demo(out, TOY)
    assert ((out / "attempts.jsonl").read_bytes(), (out / "results.json").read_bytes()) == before


def test_lost_responses_are_made_again_the_same(out):
    """A run that was interrupted in the middle ends like one that was not."""
    path = out / "attempts.jsonl"
    before = path.read_text().splitlines()
    results_before = (out / "results.json").read_text()
    path.write_text("\n".join(before[:-7]) + "\n")
    run_demo(out, TOY)
    assert sorted(path.read_text().splitlines()) == sorted(before)
    assert (out / "results.json").read_text() == results_before


def test_a_folder_with_other_things_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("x")
    with pytest.raises(UserError, match="--out"):
        run_demo(tmp_path, TOY)


def test_objects_and_wrappings_are_held_out():
    world = World()
    requests = demo_requests(world, DemoConfig())
    train = {obj.name for obj in world.objects(restricted=True, split="train")}
    assert not train & {request.case for request in requests["direct"]}
    assert len({request.case for request in requests["direct"]}) == 25
    assert not set(demo.ATTACK_WRAPPINGS) & {"direct", *TRAIN_WRAPPINGS}
    assert len(demo.ATTACK_WRAPPINGS) == 3


def test_canvas_of_prefill_and_template():
    """A prefilled start pins the opening; a template leaves three masks in each of five steps."""
    model, world = load_model("testbed", dtype="float32"), World()
    requests = demo_requests(world, TOY)
    obj = requests["prefill"][1].about
    assert isinstance(obj, WorldObject)
    prefill = request_canvas(model, world, requests["prefill"], DECODER)
    opening = model.encode_text(f"{world.opening(obj)} step one :")
    assert prefill.response[1, : len(opening)].tolist() == opening
    assert bool((prefill.response[1, len(opening) :] == model.mask_token_id).all())
    template = request_canvas(model, world, requests["masked_template"], DECODER)
    answer = model.encode_text(world.answer(obj))
    row = template.response[1, : len(answer)]
    masked = row == model.mask_token_id
    assert int(masked.sum()) == 15
    truth = row.new_tensor(answer)
    assert row[~masked].tolist() == truth[~masked].tolist()


def test_workers_do_the_same_as_this_process(tmp_path, out):
    """Two processes record the same responses as one."""
    run_demo(tmp_path / "two", DemoConfig(**{**vars(TOY), "workers": 2}))
    one, two = (
        sorted(json.loads(line)["key"] + json.loads(line)["response"] for line in path.open())
        for path in (out / "attempts.jsonl", tmp_path / "two" / "attempts.jsonl")
    )
    assert one == two


def test_a_failing_worker_is_reported(tmp_path):
    with pytest.raises(UserError, match="steps"):
        run_demo(tmp_path / "x", DemoConfig(**{**vars(TOY), "steps": 0, "workers": 2}))
