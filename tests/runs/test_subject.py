"""Subjects: their names, decoders and grants, and what an attack finds missing."""

from __future__ import annotations

import dataclasses

import pytest
from refusals import refuses

from mosa.attacks import ATTACKS
from mosa.denoising import DecoderConfig, default_config
from mosa.families import load_model
from mosa.runs.records import TrainingPoint
from mosa.runs.subject import (
    ALL_ACCESS,
    Subject,
    check_names,
    default_decoder,
    subject_from,
    subjects_of,
    training_of,
)
from mosa.testbed.measure import DECODER

MONITORED = DecoderConfig(
    max_new_tokens=24,
    steps=8,
    rules=({"name": "remask_below", "threshold": 0.2, "max_taken_back": 4},),
)


def test_a_subject_for_each_adapter_is_named_after_its_folder(tmp_path):
    first, second = tmp_path / "a" / "mosa", tmp_path / "b" / "mosa"
    first.mkdir(parents=True)
    second.mkdir(parents=True)
    found = subjects_of("testbed", ("none", f"{first}/", "org/initial"), decoder={"steps": 72})
    assert [(s.name, s.adapter) for s in found] == [
        ("testbed", None),
        ("testbed+mosa", f"{first}/"),
        ("testbed+initial", "org/initial"),  # a hub id is taken as it is
    ]
    assert {s.decoder for s in found} == {dataclasses.replace(DECODER, steps=72)}
    with refuses("testbed+mosa"):
        subjects_of("testbed", (str(first), str(second)))
    with refuses(tmp_path / "missing"):
        subjects_of("testbed", (str(tmp_path / "missing"),))
    with refuses("subject"):
        check_names(())


@pytest.mark.parametrize("place", [".", "./", "../kiln", "../kiln/.", "inner/.."])
def test_a_folder_has_its_own_name_however_it_is_reached(tmp_path, monkeypatch, place):
    for name in ("kiln", "pump"):
        (tmp_path / name / "inner").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "kiln")
    (plain,) = subjects_of(place, ("none",))
    (tuned,) = subjects_of("testbed", (place,))
    assert (plain.name, tuned.name) == ("kiln", "testbed+kiln")


def test_texts_and_names_of_subjects_are_text():
    with refuses("system prompt", "U+D83D"):
        Subject("a", "testbed", system_prompt="be \ud83d kind")
    with refuses("no adapter folder"):
        subjects_of("testbed", ("x" * 300,))


def test_a_file_describes_a_subject_over_the_default_of_its_model():
    found = subject_from(
        {
            "name": "behind-an-api",
            "model": "testbed",
            "system_prompt": "be kind .",
            "decoder": {
                "steps": 72,
                "rules": [{"name": "remask_below", "threshold": 0.2, "max_taken_back": 4}],
            },
            "grants": ["prompt", "history"],
            "offers": ["seed"],
        }
    )
    assert found == Subject(
        "behind-an-api",
        "testbed",
        system_prompt="be kind .",
        decoder=dataclasses.replace(DECODER, steps=72, rules=MONITORED.rules),
        grants=("prompt", "history"),
        offers=("seed",),
    )
    bare = subject_from({"name": "m", "model": "no/such/model"})
    assert bare.decoder == default_decoder("no/such/model")
    default = default_decoder("no/such/model")
    assert (default.max_new_tokens, default.steps) == (256, 256)
    assert (bare.adapter, bare.access) == (None, ALL_ACCESS)


def test_a_block_causal_testbed_decodes_in_the_blocks_of_its_network():
    assert default_decoder("testbed") == DECODER
    own = dataclasses.replace(DECODER, block_length=None)
    assert default_decoder("testbed:block") == own
    assert default_config(load_model("testbed:block", device="cpu")) == own
    (subject,) = subjects_of("testbed:block", decoder={"steps": 18})
    assert subject.name == "testbed-block"
    assert subject.full_decoder == dataclasses.replace(own, steps=18)


def test_a_training_is_read_from_the_adapters_log(tmp_path):
    log = tmp_path / "metrics.jsonl"
    assert training_of(None) == training_of(str(tmp_path)) == []
    log.write_text(
        '{"step": 10, "reward": -3.5, "kl": 2.0, "loss": 1.0}\n{"step": 20, "train_runtime": 9.0}\n'
    )
    assert training_of(str(tmp_path)) == [TrainingPoint(10, -3.5, None, 2.0)]
    for damage in ('{"step": 10, "reward": NaN}', '{"step": 10', '{"step": "x", "reward": 1.0}'):
        log.write_text(damage)
        with refuses(log):
            training_of(str(tmp_path))


@pytest.mark.parametrize(
    ("record", "names"),
    [
        ({"model": "testbed"}, ("name", None)),
        ({"name": "mine"}, ("mine", "model")),
        ({"name": "", "model": "testbed"}, ("name", "''")),
        ({"name": "a\nb", "model": "testbed"}, ("name", "a\\nb")),
        ({"name": "mine", "model": "testbed", "weights": "x"}, ("weights", "grants")),
        ({"name": "mine", "model": "testbed", "decoder": {"stepz": 1}}, ("stepz", "steps")),
        ({"name": "mine", "model": "testbed", "decoder": {"steps": 0}}, ("steps", 0)),
        ({"name": "mine", "model": "testbed", "grants": ["everything"]}, ("mine", "everything")),
        ({"name": "mine", "model": "testbed", "grants": "prompt"}, ("mine", "grants")),
        ({"name": "mine", "model": "testbed", "offers": ["stepz"]}, ("mine", "offers", "stepz")),
        ({"name": "mine", "model": 3}, ("mine", "model")),
        ({"name": "mine", "model": "testbed", "adapter": 3}, ("mine", "adapter")),
        ({"name": "mine", "model": "testbed", "decoder": [1]}, ("mine", "decoder", [1])),
        (
            {"name": "mine", "model": "testbed", "decoder": {"rules": [{"name": "x"}]}},
            ("rule", "x"),
        ),
    ],
)
def test_a_record_that_is_no_subject_is_refused(record, names):
    with refuses(*names):
        subject_from(record)


def test_what_an_attack_needs_and_a_subject_does_not_grant():
    api = Subject("api", "testbed", grants=("prompt",))
    for name, attack in ATTACKS.items():
        lacking = [access for access in attack.access if access != "prompt"]
        reason = api.missing_for(attack)
        assert all(access in reason for access in lacking), name
        withheld = set(attack.takes) - set(api.offers)
        assert bool(reason) == bool(lacking or withheld or attack.needs_edits), name
        editing = Subject("open", "testbed", decoder=DecoderConfig(edit_threshold=0.5))
        assert not editing.missing_for(attack), name
        plain = Subject("open", "testbed").missing_for(attack)
        assert ("edit_threshold" in plain) == bool(plain) == attack.needs_edits, name


def test_a_setting_that_is_not_offered_is_missing_unless_the_attack_owns_the_sampler():
    takers = {name: attack for name, attack in ATTACKS.items() if attack.takes}
    assert {attack.threat for attack in takers.values()} >= {"open"}
    closed = Subject("closed", "testbed", offers=())
    for name, attack in takers.items():
        assert bool(closed.missing_for(attack)) == (attack.threat != "open"), name


def test_an_owner_of_the_sampler_runs_no_monitors():
    subject = Subject("m", "testbed", decoder=MONITORED)
    for name, attack in ATTACKS.items():
        decoder = subject.decoder_for(attack, 7)
        own = () if attack.threat == "open" else MONITORED.rules
        assert decoder == dataclasses.replace(MONITORED, rules=own, seed=7), name
