"""All attacks and probes on a model of uniform noise: each runs, or says why it does not apply.

The weights are random and the words are the testbed's, whose script plays the attackers.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from refusals import refuses
from tiny_models import randomised, tiny_diffusion_gemma_config, turn_tokenizer

from mosa.attacks import ATTACKS
from mosa.families import load_model, new_model
from mosa.probes import PROBES
from mosa.runs.evaluate import EvaluateConfig, run_evaluation
from mosa.runs.price import most_asked
from mosa.runs.sets import SetOptions
from mosa.runs.store import Run
from mosa.runs.subject import default_decoder, subject_from, subjects_of

pytestmark = pytest.mark.integration

CANVAS = 32
FEW = {"num_iterations": 1, "num_candidates": 4, "top_k": 4}
SEARCHES = ("pal", "adv_prefix", "gcg", "first_step_gcg")
WITHOUT_MASKS = {"dija", "dija_response"}
DECODER = {"max_new_tokens": 72, "steps": 6}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A checkpoint that says that it knows the testbed's world."""
    words = load_model("testbed", device="cpu")
    tokenizer = words.tokenizer
    assert tokenizer is not None
    config = tiny_diffusion_gemma_config(
        turn_tokenizer(),
        vocab_size=words.vocab_size,
        canvas_length=CANVAS,
        max_position_embeddings=2048,
    )
    config |= {"eos_token_id": list(words.end_token_ids), "pad_token_id": words.pad_token_id}
    folder = tmp_path_factory.mktemp("noise") / "model"
    randomised(new_model(config, tokenizer, seed=0), 0).save(folder)
    (folder / "recipe.json").write_text(json.dumps({"world_seed": 0}))
    return folder


def config_of(checkpoint: Path, attacks: tuple[str, ...], **changes) -> EvaluateConfig:
    searches = [name for name in SEARCHES if attacks == ("all",) or name in attacks]
    return EvaluateConfig(
        subjects_of(str(checkpoint), decoder={**DECODER, **changes}),
        ("testbed",),
        attacks=attacks,
        preset="smoke",
        options=SetOptions(limit=1),
        attack_options=dict.fromkeys(searches, FEW),
    )


def test_a_subject_decodes_as_published_unless_told_otherwise(checkpoint):
    decoder = default_decoder(str(checkpoint))
    assert decoder.renoise is not None and (decoder.max_new_tokens, decoder.steps) == (256, 48)
    longer = default_decoder(str(checkpoint), {"max_new_tokens": 300})
    assert longer.steps == 96
    plain = {"name": "m", "model": str(checkpoint)}
    assert subject_from(plain).full_decoder == decoder
    named = subject_from({**plain, "decoder": "diffusion-gemma"}, decoder={"max_new_tokens": 72})
    assert named.full_decoder.steps == 48 and named.full_decoder.max_new_tokens == 72
    assert subject_from({**plain, "decoder": {"steps": 7}}).full_decoder.steps == 7


def test_every_attack_runs_or_says_why_not(checkpoint, tmp_path):
    config = config_of(checkpoint, ("all",))
    run = run_evaluation(tmp_path / "run", config)
    assert run is not None
    run.close()
    with Run(tmp_path / "run") as store:
        assert store.failures() == []
        left_out = {pair.attack: pair.reason for pair in store.not_applicable()}
        attempts = list(store.attempts())
        (record,) = store.subjects().values()
        responses = [r for a in attempts for r in store.responses_of(a.key)]
    assert left_out.keys() == WITHOUT_MASKS | {"post_context"}  # three canvases
    assert all("mask" in left_out[name] for name in WITHOUT_MASKS)
    assert {a.attack for a in attempts} == ATTACKS.keys() - left_out.keys()
    assert record.block_length == CANVAS
    assert all(r.decoder["rules"] == record.decoder["rules"] for r in responses)
    variants = {a.variant for a in attempts if a.attack in ("decoding_order", "end_tokens")}
    assert variants == {"few_steps", "forbid"}
    asked = {row.attack: row for row in most_asked(config)}
    assert {name for name, row in asked.items() if row.reason} == left_out.keys()


def test_text_behind_the_answer_is_seen_within_a_canvas(checkpoint, tmp_path):
    run = run_evaluation(
        tmp_path / "run", config_of(checkpoint, ("post_context",), max_new_tokens=CANVAS)
    )
    assert run is not None
    with run:
        assert run.not_applicable() == [] and run.failures() == []


def test_probes_run_or_say_why_not(checkpoint, tmp_path):
    names = tuple(f"{name}:quick" for name in PROBES)
    config = EvaluateConfig(
        subjects_of(str(checkpoint), decoder=DECODER),
        ("testbed",),
        attacks=names,
        options=SetOptions(limit=1),
        attack_options={"suffix": {"num_iterations": 1, "num_candidates": 4, "positions": [1]}},
    )
    run = run_evaluation(tmp_path / "run", config)
    assert run is not None
    with run:
        assert run.failures() == []
        left_out = {pair.attack: pair.reason for pair in run.not_applicable()}
        assert left_out.keys() == {"order", "depth"} and all("mask" in r for r in left_out.values())
        assert {a.attack for a in run.attempts()} == PROBES.keys() - left_out.keys()


def test_a_decoder_about_masks_is_refused_before_anything_is_asked(checkpoint, tmp_path):
    with refuses("renoise"):
        config = config_of(checkpoint, ("direct",), rules=())
        run = run_evaluation(tmp_path / "run", config)
        assert run is not None
