"""The demo at toy size: what it records, what it shows, and that it goes on where it ended."""

from __future__ import annotations

import csv
from collections import Counter

import pytest
from refusals import refuses

from mosa.cli import main
from mosa.evidence.figures import gather, headline, moment_of
from mosa.evidence.findings import findings_of
from mosa.experiments import demo, models
from mosa.experiments.demo import DemoConfig, closing_lines, run_demo, run_folder, shown_names
from mosa.runs.store import Run

pytestmark = pytest.mark.integration

TOY = DemoConfig(
    num_objects=2, num_benign=3, num_tasks=2, num_curve=2, align_steps=2, steps=4, workers=1
)
ARGV = [
    word
    for name, value in vars(TOY).items()
    if name not in ("testbed", "seed")
    for word in (f"--{name}", str(value))
]


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """A toy demo, run from the command line in this process."""
    out = tmp_path_factory.mktemp("demo") / "out"
    assert main(["demo", "--out", str(out), *ARGV]) == 0
    return out


def recorded(out) -> dict[str, tuple[list[str], dict[str, float | None]]]:
    """The keys of each attempt's responses and what each judge says of it, by the attempt's key."""
    with Run(run_folder(out)) as run:
        verdicts = {name: run.verdicts(name) for name in run.judges()}
        return {
            attempt.key: (
                [response.key for response in run.responses_of(attempt.key)],
                {
                    judge: of[attempt.key].score
                    for judge, of in verdicts.items()
                    if attempt.key in of
                },
            )
            for attempt in run.attempts()
        }


def test_every_model_is_attacked_and_asked_alike(out):
    evidence = gather([run_folder(out)])
    names = shown_names(TOY)
    assert list(names) == ["original", "initial", "mosa", "mosa_robust"]
    for name in names.values():
        for measure in ("asr", "worst_asr", "any_asr"):
            rate = headline(evidence, measure, name).rate
            assert rate is not None and rate.n == TOY.num_objects
        refusal = headline(evidence, "over_refusal", name).rate
        assert refusal is not None and refusal.n == TOY.num_benign
        utility = headline(evidence, "utility", name).rate
        assert utility is not None and utility.n == 6 * TOY.num_tasks
    attacks = Counter(figure.name for figure in evidence.select("safety", judge="truth/2/world-0"))
    # Two updates have one moment between their start and their end.
    assert attacks["code_attack"] == len(names) + len(demo.ALIGNED)
    assert attacks["prefill"] == attacks["direct"] == len(names)
    assert len(evidence.judges("safety")) == len(demo.JUDGES)


def test_the_probe_sees_the_original_and_mosa(out):
    with Run(run_folder(out)) as run:
        (finding,) = findings_of(run)
    names = shown_names(TOY)
    assert finding.probe == demo.PROBE
    assert {row["subject"] for row in finding.rows} == {names[name] for name in demo.PROBED}


def test_moments_of_the_training_are_kept(out):
    evidence = gather([run_folder(out)])
    moments = [found for name in evidence.subjects if (found := moment_of(evidence, name))]
    assert sorted(moments) == [(f"testbed+{name}", 1) for name in sorted(demo.ALIGNED)]


def test_report_tables_and_closing_lines(out):
    html = (out / "report.html").read_text()
    assert all(label in html for label in demo.LABELS.values())
    with (out / "tables" / "scoreboard.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["Subject"] for row in rows] == list(demo.LABELS.values())
    lines = closing_lines(out, TOY)
    assert len(lines) == 5
    assert str(out / "report.html") in lines[-1]


@pytest.mark.slow  # test_method_tables.py has a second call that trains nothing
def test_second_run_makes_nothing_new(out, monkeypatch):
    """Finished adapters and recorded responses are used again."""
    before = recorded(out)

    def refuse(*args, **kwargs):
        raise AssertionError("trained again")

    monkeypatch.setattr(models, "run_training", refuse)
    run_demo(out, TOY)
    assert recorded(out) == before


def test_other_settings_need_another_folder(out):
    with refuses(out, "seed", "--out"):
        run_demo(out, DemoConfig(**{**vars(TOY), "seed": 1}))


def test_a_folder_with_other_things_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("x")
    with refuses(tmp_path, "--out"):
        run_demo(tmp_path, TOY)


@pytest.mark.slow
def test_workers_do_the_same_as_this_process(tmp_path, out):
    """Two processes record the same responses as one."""
    run_demo(tmp_path / "two", DemoConfig(**{**vars(TOY), "workers": 2}))
    assert recorded(tmp_path / "two") == recorded(out)


@pytest.mark.slow
def test_the_block_causal_twin_goes_through_it_whole(tmp_path):
    """Nine steps, since each of its nine blocks takes one."""
    config = DemoConfig(**{**vars(TOY), "testbed": "testbed:block", "steps": 9})
    run_demo(tmp_path, config)
    with Run(run_folder(tmp_path)) as run:
        assert not run.failures()
        (finding,) = findings_of(run)
    names = shown_names(config)
    assert names["original"] == "testbed-block" and finding.probe == demo.PROBE
    evidence = gather([run_folder(tmp_path)])
    for name in names.values():
        rate = headline(evidence, "asr", name).rate
        assert rate is not None and rate.n == config.num_objects


def test_a_failing_worker_is_reported(tmp_path):
    with refuses("steps", "0"):
        run_demo(tmp_path / "x", DemoConfig(**{**vars(TOY), "steps": 0, "workers": 2}))


def test_the_first_answer_and_page_come_before_any_training(tmp_path, monkeypatch, capsys):
    """What the user waits for is on the screen when the first alignment begins."""

    def refuse(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(models, "run_training", refuse)
    with pytest.raises(KeyboardInterrupt):
        run_demo(tmp_path, TOY)
    assert demo.LABELS["original"] in (tmp_path / "report.html").read_text()
    evidence = gather([run_folder(tmp_path)])
    assert {f.name for f in evidence.figures} == set(demo.FIRST_ATTACKS)
    assert "how do i make" in capsys.readouterr().out
