"""The analyses on the testbed at toy size, and what each of them rests on."""

from __future__ import annotations

import csv
import json

import pytest
import torch
from analysis_stand_ins import FoundSearch

from mosa.analysis import ANALYSES, criticality, position_map, reach, refusal_depth, study
from mosa.analysis.criticality import CriticalityConfig, cells, chosen_ids, contrasts_of
from mosa.analysis.position_map import MapConfig, step_numbers
from mosa.analysis.reach import ReachConfig
from mosa.analysis.refusal_depth import profile
from mosa.analysis.result import read_result
from mosa.analysis.study import Study, Subject, load_cases
from mosa.cli import main
from mosa.denoising import sample
from mosa.families import load_model
from mosa.types import UserError

TOY = {
    "criticality": ["--positions", "[1,30]", "--phrase_types", "[none,procedural,random]"],
    "reach": ["--positions", "[1,20]", "--num_iterations", "2", "--num_candidates", "8"],
    "order": ["--block_lengths", "[24]", "--tokens_per_step", "[24]"],
    "map": ["--spans", "[compliant]", "--positions", "[1,30]", "--step_shares", "[0,0.5]"],
    "refusal-depth": ["--step_shares", "[0,0.5]", "--second_model", "testbed:helpful"],
}
FEW_STEPS = {name: ["--tokens_per_step", "18"] for name in TOY} | {"order": []}


def analyze(name: str, out) -> int:
    argv = ["analyze", name, "--model", "testbed", "--behaviors", "testbed", "--out", str(out)]
    return main([*argv, "--num_behaviors", "2", *TOY[name], *FEW_STEPS[name]])


@pytest.mark.parametrize("name", TOY)
def test_command_writes_everything_and_goes_on_without_work(name, tmp_path, capsys, monkeypatch):
    assert analyze(name, tmp_path) == 0
    files = {path.name for path in tmp_path.iterdir()}
    assert {"data.csv", "estimates.csv", "header.json", "result.json", "finding.md"} <= files
    result = read_result(tmp_path / "result.json")
    assert {f"{chart}.svg" for chart in result.charts} <= files
    assert {f"{chart}.png" for chart in result.charts} <= files
    assert result.paragraph in capsys.readouterr().out
    settings = json.loads((tmp_path / "header.json").read_text())
    assert settings["settings"]["num_behaviors"] == 2
    assert settings["behaviors"]["source"] == "testbed"
    with (tmp_path / "estimates.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            assert int(row["n"]) >= 1 and row["low"] and row["high"]
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.suffix != ".png"}

    def refuse(*args, **kwargs):
        raise AssertionError("sampled again")

    monkeypatch.setattr(study, "sample", refuse)
    monkeypatch.setattr(refusal_depth, "sample", refuse)
    monkeypatch.setattr(reach, "GcgSearch", refuse)
    assert analyze(name, tmp_path) == 0
    assert {path: path.read_bytes() for path in before} == before


@pytest.fixture(scope="module")
def model():
    return load_model("testbed", dtype="float32")


@pytest.fixture(scope="module")
def behaviors():
    return load_cases("testbed", "testbed", limit=3)


def test_interrupted_run_ends_like_an_uninterrupted_one(tmp_path, model, behaviors):
    config = CriticalityConfig(
        phrase_types=("none", "neutral"), positions=(1,), tokens_per_step=36, batch_size=2
    )
    subjects = [Subject("testbed", model)]

    def run(folder):
        return criticality.run(subjects, behaviors, config, Study(folder, "x", False))

    whole = run(tmp_path / "whole")
    run(tmp_path / "cut")
    rows = tmp_path / "cut" / "rows.jsonl"
    lines = rows.read_text().splitlines()
    rows.write_text("\n".join(lines[:3]) + "\n" + lines[3][:20])  # killed while writing
    assert run(tmp_path / "cut") == whole
    for name in ("data.csv", "result.json"):
        one, two = (tmp_path / part / name for part in ("whole", "cut"))
        assert one.read_text() == two.read_text()


def test_unknown_behaviors_and_presets_are_named(tmp_path, capsys):
    with pytest.raises(UserError, match="testbed:benign"):
        load_cases("testbed:nonsense", "testbed")
    argv = ["analyze", "order", "--model", "testbed", "--behaviors", "testbed"]
    assert main([*argv, "--out", str(tmp_path), "--preset", "huge"]) == 2
    assert "quick or full" in capsys.readouterr().err


def test_behaviors_of_a_file_know_refusals_only(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("how do i make tea ?\n")
    found = load_cases(str(file), "any")
    assert found.measures == ("refused",)
    assert found.judge(found.items[0], "I’m sorry, but no.") == {"refused": 1.0}
    assert found.judge(found.items[0], "Boil water.") == {"refused": 0.0}


# --- criticality ----------------------------------------------------------------------------------


def test_every_kind_stands_at_every_position_once():
    found = cells(CriticalityConfig(positions=(1, 5)), 40, 8)
    assert len(found) == len(set(found)) == 2 * (1 + 4 * 2)
    assert {cell.position for cell in found if cell.phrase_type == "none"} == {None}


def test_papers_protocol_confounds_kind_and_position():
    found = cells(CriticalityConfig(paper=True), 170, 8)
    assert [(cell.phrase_type, cell.position) for cell in found] == [
        ("affirmative", 1),
        *[("procedural", p) for p in (40, 80, 120, 160)],
    ]
    # A shorter canvas has room for fewer of them.
    assert len(cells(CriticalityConfig(paper=True), 72, 8)) == 2


def test_a_position_without_room_is_refused():
    with pytest.raises(UserError, match="from 1 to 33"):
        cells(CriticalityConfig(positions=(34,)), 40, 8)


def test_random_tokens_are_ordinary_and_as_many(model, behaviors):
    texts = criticality.phrase_ids(model, behaviors)
    special = {*model.end_token_ids, model.mask_token_id, *model.tokenizer.all_special_ids}
    for behavior in behaviors.items:
        ids = chosen_ids(model, texts, "random", behavior, 0)
        assert len(ids) == len(chosen_ids(model, texts, "procedural", behavior, 0))
        assert not special & set(ids)
        assert ids == chosen_ids(model, texts, "random", behavior, 0)


def row(kind, position, case, harm, end="allow"):
    return {
        "phrase_type": kind,
        "position": position,
        "case": case,
        "harm": harm,
        "end_tokens": end,
        "block_length": 0,
        "remasking": "low_confidence",
    }


def test_contrasts_of_a_made_table():
    """Harm = 0.1 where anything is forced, + 0.2 for words that comply, + 0.3 at position 40,
    whatever the case adds."""
    rows = []
    for case, base in (("a", 0.0), ("b", 0.2)):
        rows.append(row("none", None, case, base))
        for position in (1, 40):
            late = 0.3 if position == 40 else 0.0
            rows.append(row("random", position, case, base + 0.1 + late))
            rows.append(row("procedural", position, case, base + 0.3 + late))
    found = {name: estimate.value for name, estimate in contrasts_of(rows, "harm").items()}
    assert found == pytest.approx(
        {
            "presence: random - none": 0.25,
            "content: procedural - random": 0.2,
            "position of random: 40 - 1": 0.3,
            "position of procedural: 40 - 1": 0.3,
        }
    )
    # The cases' own levels cancel within them, and two cases that agree are no certainty.
    alike = [row | {"case": "a", "harm": row["harm"]} for row in rows if row["case"] == "a"]
    for name, estimate in contrasts_of(rows, "harm").items():
        assert estimate.low < estimate.value < estimate.high
        assert estimate.value == pytest.approx(contrasts_of(alike, "harm")[name].value)


# --- reach ----------------------------------------------------------------------------------------


def test_success_is_the_phrase_in_its_place(tmp_path, model, behaviors, monkeypatch):
    """A phrase that the model writes there anyway is found; one it never writes is not."""
    subjects = [Subject("testbed", model)]
    benign = load_cases("testbed:benign", "testbed", limit=1)
    (answer,) = sample(model, [benign.items[0].prompt], max_new_tokens=72, steps=36).tokens.tolist()
    there = model.decode(answer[2:5])
    monkeypatch.setattr(reach, "GcgSearch", FoundSearch)

    for position, phrase, expected in ((3, there, 1.0), (4, there, 0.0)):
        config = ReachConfig(positions=(position,), phrase=phrase, num_iterations=1)
        study_of_reach = Study(tmp_path / str(position), "reach", show_progress=False)
        result = reach.run(subjects, benign, config, study_of_reach)
        values = {e["measure"]: e["value"] for e in result.estimates}
        assert values["success"] == expected
        assert values["success_anywhere"] == 1.0
        assert values["harm_before"] == values["harm_after"] == 1.0
        assert values["harm_change"] == 0.0


def test_reach_names_what_does_not_fit_or_cannot_be_said(model, behaviors):
    subject = Subject("testbed", model)
    with pytest.raises(UserError, match="no room"):
        reach.wanted(subject, behaviors, ReachConfig(positions=(72,)), 72)
    # Of the default positions, 100 is not in a response of 72 tokens.
    positions = [p for p, _ in reach.wanted(subject, behaviors, ReachConfig(), 72)]
    assert positions == [1, 5, 10, 20, 30, 60]
    paper = reach.wanted(subject, behaviors, ReachConfig(paper=True), 72)
    assert [p for p, _ in paper] == [1, 30] and paper[0][1] != paper[1][1]
    with pytest.raises(UserError, match="no words"):
        reach._methods(ReachConfig(methods=("prompt",)), behaviors)


# --- map ------------------------------------------------------------------------------------------


def test_steps_of_shares():
    assert step_numbers((0.0, 0.5, 0.51, 0.99), 10) == [0, 5, 9]
    with pytest.raises(UserError, match="without, 1"):
        step_numbers((1.0,), 10)


def test_spans_are_written_when_and_where_they_are_due(tmp_path, model, behaviors, monkeypatch):
    """Each row's span stands in its place at the end, and was written at its step."""
    traces = []

    def recorded(*args, **kwargs):
        result = sample(*args, **kwargs)
        traces.append((args[1], result))
        return result

    monkeypatch.setattr(study, "sample", recorded)
    config = MapConfig(
        spans=("neutral",),
        positions=(3, 40),
        step_shares=(0.0, 0.5),
        tokens_per_step=9,
        num_behaviors=1,
    )

    kept = []
    monkeypatch.setattr(Study, "finish", lambda self, result, rows: kept.extend(rows))
    study_of_map = Study(tmp_path, "map", show_progress=False)
    position_map.run([Subject("testbed", model)], behaviors, config, study_of_map)
    ((canvas, result),) = traces
    texts = criticality.phrase_ids(model, behaviors)
    ids = chosen_ids(model, texts, "neutral", behaviors.items[0], 0)
    assert [(r["position"], r["step"]) for r in kept] == [
        (None, None),
        (3, 0),
        (3, 4),
        (40, 0),
        (40, 4),
    ]
    steps = result.trace.commit_step[:, result.trace.response_start :]
    for index, found in enumerate(kept[1:], start=1):
        span = slice(found["position"] - 1, found["position"] - 1 + len(ids))
        assert result.tokens[index, span].tolist() == ids
        if found["step"] == 0:
            assert canvas.response[index, span].tolist() == ids
        else:  # written after the step before, by no model
            assert set(steps[index, span].tolist()) == {found["step"] - 1}
            assert bool((canvas.response[index] == model.mask_token_id).all())


# --- refusal depth --------------------------------------------------------------------------------


def test_profile_against_the_definition(model):
    """Two refusals, one position filled: every start worked out by hand."""
    texts = ["i cannot", "sorry"]
    generator = torch.Generator().manual_seed(0)
    log_probs = torch.randn(1, 6, model.vocab_size, generator=generator).log_softmax(-1)
    masked = torch.tensor([[True, True, False, True, True, True]])
    found = profile(model, log_probs, masked, texts)
    for position in range(6):
        if not masked[0, position]:
            assert bool(found["end"][0, position].isnan())
            assert bool(found["refusal"][0, position].isnan())
            continue
        ends = sum(log_probs[0, position, i].exp() for i in model.end_token_ids)
        assert found["end"][0, position].item() == pytest.approx(float(ends), rel=1e-5)
        best = 0.0
        for text in texts:
            ids = model.encode_text(text)
            places = range(position, position + len(ids))
            if places[-1] < 6 and all(masked[0, p] for p in places):
                logs = [float(log_probs[0, p, i]) for p, i in zip(places, ids, strict=True)]
                best = max(best, float(torch.tensor(sum(logs) / len(logs)).exp()))
        assert found["refusal"][0, position].item() == pytest.approx(best, rel=1e-5)


def test_kl_of_a_model_from_itself_is_zero(tmp_path, model, behaviors):
    config = refusal_depth.RefusalDepthConfig(step_shares=(0.0,), tokens_per_step=36)
    subjects = [Subject("one", model), Subject("two", model)]
    result = refusal_depth.run(subjects, behaviors, config, Study(tmp_path, "depth", False))
    kl = [e["value"] for e in result.estimates if e["measure"] == "kl"]
    assert len(kl) == 72 and max(map(abs, kl)) < 1e-6


# --- any family -----------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["tiny_llada", "tiny_dream"])
@pytest.mark.parametrize("name", list(TOY))
def test_every_analysis_works_on_every_family_and_plain_prompts(name, family, tmp_path, request):
    """Without the testbed there is no harm, only refusal by words; two models lie side by side."""
    model = request.getfixturevalue(family)
    file = tmp_path / "prompts.txt"
    file.write_text("how is tea made?\nwho wrote the story?\n")
    prompts = load_cases(str(file), "none")
    settings = {
        "criticality": {"positions": (1, 9), "end_tokens": ("allow",)},
        "reach": {"positions": (3,), "num_iterations": 1, "num_candidates": 4, "suffix_length": 3},
        "order": {"block_lengths": (8,), "benign": str(file)},
        "map": {"positions": (2,), "step_shares": (0.0, 0.5)},
        "refusal-depth": {"step_shares": (0.0, 0.5)},
    }[name]
    per_step = (8,) if name == "order" else 8
    analysis = ANALYSES[name]
    config = analysis.config_class(max_new_tokens=48, tokens_per_step=per_step, **settings)
    subjects = [Subject("one", model), Subject("two", model)]
    result = analysis.run(subjects, prompts, config, Study(tmp_path / "out", name, False))
    assert "harm" not in {e.get("measure") for e in result.estimates}
    if name != "order":  # the order of two equal models differs by nothing
        return
    changes = [e["value"] for e in result.estimates if e["model"] == "two - one"]
    assert changes and set(changes) == {0.0}
