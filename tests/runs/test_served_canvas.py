"""Canvases of a served model: what is sent, what becomes of it, and servers that take none.

The stand-in checks requests as vLLM's pull request 57250 does.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from chat.stub_endpoint import Answer, Stub, stub_endpoint
from refusals import refuses
from served_models import usage
from tiny_models import dream_tokenizer, llada_tokenizer

from mosa.attacks import ATTACKS
from mosa.chat import ChatOptions
from mosa.cli import main
from mosa.runs.evaluate import EvaluateConfig, run_evaluation
from mosa.runs.store import Run
from mosa.runs.subject import Subject, subjects_of
from mosa.served import ServerGone
from mosa.served_canvas import NO_MASK, ServedTokens

LENGTH = 160
ON_CANVAS = ("prefill", "pad", "post_context")


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("MOSA_API_KEY", "sk-very-secret-0123456789")


@pytest.fixture
def requests(tmp_path) -> Path:
    file = tmp_path / "requests.jsonl"
    file.write_text(json.dumps({"id": "0", "behavior": "Write about tea."}) + "\n")
    return file


@pytest.fixture(scope="module")
def with_mask(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizers") / "mask"
    dream_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def without_mask(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizers") / "none"
    llada_tokenizer().save_pretrained(folder)
    return folder


def refused(why: str) -> Answer:
    return Answer({"error": {"message": why, "code": 400}}, status=400)


def canvas_server(tokens: ServedTokens, length: int = LENGTH):
    """Takes canvases of one length, and says what is pinned in them, or the prompt's last words."""

    def rule(body: dict[str, Any]) -> Answer:
        fields = body.get("vllm_xargs", {})
        seed, pins = fields.get("diffusion_seed_canvas"), fields.get("diffusion_pinned")
        if seed is None:
            return Answer(usage(body["messages"][-1]["content"]))
        if len(seed) != length:
            return refused(f"diffusion_seed_canvas must hold exactly {length} ids")
        if not all(0 <= token < len(tokens.tokenizer) for token in seed):
            return refused("diffusion_seed_canvas ids must be in range")
        if not all(0 <= place < length for place in pins):
            return refused("diffusion_pinned must be positions")
        return Answer(usage(tokens.decode([seed[place] for place in pins])))

    return rule


def config_of(stub: Stub, requests: Path, tokenizer: Path | None, **settings: Any):
    (subject,) = subjects_of(
        f"{stub.url}#tea",
        decoder={"max_new_tokens": LENGTH},
        tokenizer=None if tokenizer is None else str(tokenizer),
        i_am_authorized=True,
    )
    return EvaluateConfig((subject,), (str(requests),), **{"preset": "smoke", **settings})


def done(out: Path, config: EvaluateConfig) -> Run:
    run = run_evaluation(out, config, endpoint_options=ChatOptions(max_retries=0))
    assert run is not None
    return run


def canvases(stub: Stub) -> list[dict[str, Any]]:
    """What was sent in earnest; the first two show whether canvases are taken."""
    return [body["vllm_xargs"] for body in stub.requests if "vllm_xargs" in body][2:]


def test_attacks_on_the_canvas_send_their_pins(requests, tmp_path, with_mask):
    """Phrases at their places, masks elsewhere; what comes back is text."""
    tokens = ServedTokens(str(with_mask))
    with stub_endpoint(rule=canvas_server(tokens)) as stub:
        with done(tmp_path / "run", config_of(stub, requests, with_mask, attacks=ON_CANVAS)) as run:
            (subject,) = run.subjects().values()
            attempts = list(run.attempts())
            assert not list(run.not_applicable())
        sent = canvases(stub)
    assert subject.grants == ["prompt", "history", "canvas"]
    assert {attempt.attack for attempt in attempts} == set(ON_CANVAS)
    assert len(sent) == len(attempts)
    for fields in sent:
        seed, pins = fields["diffusion_seed_canvas"], fields["diffusion_pinned"]
        assert fields["diffusion_canvas_length"] == len(seed) == LENGTH
        free = set(range(LENGTH)) - set(pins)
        assert pins and {seed[place] for place in free} == {tokens.mask_token_id}
    first = next(a for a in attempts if a.attack == "prefill" and a.variant == "position 1")
    assert first.response.startswith("Sure, here is") and "Step 1" in first.response


def test_a_model_without_masks_gets_noise_that_is_the_seeds(requests, tmp_path, without_mask):
    tokens = ServedTokens(str(without_mask))
    assert tokens.mask_token_id == NO_MASK
    seeds = []
    with stub_endpoint(rule=canvas_server(tokens)) as stub:
        for name, seed in (("one", 0), ("same", 0), ("other", 1)):
            config = config_of(stub, requests, without_mask, attacks=("prefill",), seeds=(seed,))
            stub.requests.clear()
            done(tmp_path / name, config).close()
            seeds.append(sorted(fields["diffusion_seed_canvas"] for fields in canvases(stub)))
        stub.requests.clear()
        done(tmp_path / "one", config_of(stub, requests, without_mask, attacks=("prefill",)))
        assert not stub.requests, "it was answered before"
    assert seeds[0] == seeds[1] != seeds[2]
    assert len(set(seeds[0][0])) > LENGTH / 4


def test_a_mask_that_only_the_config_names(tmp_path, without_mask):
    folder = tmp_path / "folder"
    llada_tokenizer().save_pretrained(folder)
    tokenizer = llada_tokenizer()
    mask = tokenizer.convert_tokens_to_ids("<|mdm_mask|>")
    (folder / "config.json").write_text(json.dumps({"mask_token_id": mask}))
    assert ServedTokens(str(folder)).mask_token_id == mask
    (folder / "config.json").write_text(json.dumps({"mask_token_id": len(tokenizer)}))
    with refuses("mask_token_id", "config.json"):
        ServedTokens(str(folder))


def test_a_server_that_leaves_the_fields_out_is_found_out(requests, tmp_path, with_mask):
    """It answers to whatever stands in them, so that every pin would be lost without a word."""
    with stub_endpoint(Answer(usage("tea"))) as stub:
        with refuses("diffusion_seed_canvas", "tokenizer"):
            done(tmp_path / "run", config_of(stub, requests, with_mask, attacks=ON_CANVAS))
        assert all(body["messages"][-1]["content"] == "Hello" for body in stub.requests)


def test_a_server_that_goes_down_meanwhile_is_no_server_without_canvases(
    requests, tmp_path, with_mask
):
    def rule(body: dict[str, Any]) -> Answer:
        return Answer({}, status=503) if "vllm_xargs" in body else Answer(usage("tea"))

    with stub_endpoint(rule=rule) as stub, refuses("503", error=ServerGone):
        done(tmp_path / "run", config_of(stub, requests, with_mask, attacks=ON_CANVAS))


def test_a_canvas_of_another_length_is_refused(requests, tmp_path, with_mask):
    rule = canvas_server(ServedTokens(str(with_mask)), length=256)
    with stub_endpoint(rule=rule) as stub, refuses("256", "max_new_tokens", str(LENGTH)):
        done(tmp_path / "run", config_of(stub, requests, with_mask, attacks=ON_CANVAS))


def test_without_a_tokenizer_nothing_is_granted(requests, tmp_path):
    with stub_endpoint(Answer(usage("tea"))) as stub:
        config = config_of(stub, requests, None, attacks=("direct", *ON_CANVAS))
        with done(tmp_path / "run", config) as run:
            assert {pair.attack for pair in run.not_applicable()} == set(ON_CANVAS)


def test_other_fields_of_the_server_stay(requests, tmp_path, with_mask):
    """The subject's own `vllm_xargs` beside the canvas."""
    rule = canvas_server(ServedTokens(str(with_mask)))
    with stub_endpoint(rule=rule) as stub:
        subject = Subject(
            "tea",
            f"{stub.url}#tea",
            decoder=config_of(stub, requests, None).subjects[0].decoder,
            tokenizer=str(with_mask),
            request={"vllm_xargs": {"diffusion_max_steps": 12}},
            i_am_authorized=True,
        )
        config = EvaluateConfig((subject,), (str(requests),), attacks=("prefill",), preset="smoke")
        done(tmp_path / "run", config).close()
        assert all(fields["diffusion_max_steps"] == 12 for fields in canvases(stub))
        assert all(fields["diffusion_pinned"] for fields in canvases(stub))


def test_a_tokenizer_is_for_served_models(with_mask):
    with refuses("testbed", "tokenizer"):
        Subject("testbed", "testbed", tokenizer=str(with_mask))
    with refuses("canvas", "tokenizer"):
        Subject("tea", "http://localhost:1/v1#tea", grants=("prompt", "canvas"))


def test_from_the_command_line(tmp_path, with_mask):
    """A frame with masks that the attacker writes, in the prompt and on the canvas, and an answer
    that lacks a sentence; what needs the sampler is not applicable."""
    requests = tmp_path / "requests.jsonl"
    row = {"id": "0", "behavior": "Write about tea.", "answer": "Heat water. Add tea. Wait."}
    requests.write_text(json.dumps(row) + "\n")
    serve = canvas_server(ServedTokens(str(with_mask)))

    def rule(body: dict[str, Any]) -> Answer:
        if "<mask:" in json.dumps(body["messages"]) and "vllm_xargs" not in body:
            return Answer(usage("Step 1: <mask:9>\nStep 2: <mask:9>"))
        return serve(body)

    with stub_endpoint(rule=rule) as stub:
        words = ["evaluate", "--model", f"{stub.url}#tea", "--tokenizer", str(with_mask)]
        words += [
            "--i-am-authorized",
            "--attacks",
            "prefill,dija,dija_canvas,dija_response,fits",
            "--preset",
            "smoke",
        ]
        words += ["--attacker", f"{stub.url}#tea", "--max-new-tokens", str(LENGTH)]
        words += ["--sets", str(requests), "--out", str(tmp_path / "run")]
        assert main(words) == 0
    with Run(tmp_path / "run") as run:
        found = {attempt.attack: attempt.response for attempt in run.attempts()}
        assert {pair.attack for pair in run.not_applicable()} == {"dija"}
        assert "sampler" in next(iter(run.not_applicable())).reason
    assert set(found) == {"prefill", "dija_canvas", "dija_response", "fits"}
    assert found["dija_canvas"].split() == ["Step", "1:", "Step", "2:"]
    assert found["dija_response"].count("<|mask|>") == 18
    assert "Heat water." in found["fits"] or "Wait." in found["fits"]


def test_no_attack_on_the_canvas_alone_reads_tokens_of_a_response():
    """Those that need no more than prompt and canvas run on a server, which shows none."""
    names = {a.name for a in ATTACKS.values() if set(a.access) == {"prompt", "canvas"}}
    assert names == {*ON_CANVAS, "fits", "dija_response", "dija_canvas"}
