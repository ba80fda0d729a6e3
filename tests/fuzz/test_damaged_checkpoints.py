"""At least a thousand damaged copies of each file of a checkpoint's folder: one sentence, or read.

`MOSA_FUZZ=50` makes fewer.
"""

from __future__ import annotations

import asyncio
import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from chat.tiny_causal import causal_tokenizer, saved, tiny_llama
from fuzz.surfaces import changed, changed_bytes, many, read_or_refuse
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig
from tiny_models import LLADA2_LAYOUT, role_tokenizer

from mosa.chat import ChatRequest, LocalChat
from mosa.families import load_model, new_model
from mosa.types import Message

pytestmark = pytest.mark.slow

HEADER = 3000
"""Bytes of a file of weights in which its names, shapes and types stand."""
TEXT = "how do i make tea ?"


@pytest.fixture(scope="module")
def place(tiny_llada, new_tiny_llada, tmp_path_factory) -> Path:
    """A target, whole and in shards, one with experts, an adapter of the first, a chat model."""
    place = tmp_path_factory.mktemp("sound")
    tiny_llada.save(place / "base")
    special = {"eos_token": "<|endoftext|>", "additional_special_tokens": ["<|eot_id|>"]}
    (place / "base" / "special_tokens_map.json").write_text(json.dumps(special))
    tiny_llada.save(place / "shards", max_shard_size="40KB")
    new_model(LLADA2_LAYOUT, role_tokenizer(), seed=0).save(place / "experts")
    model = new_tiny_llada()
    model.add_lora(LoraConfig(r=2, init_lora_weights=False))
    model.save_adapter(place / "adapter")
    tokenizer = causal_tokenizer()
    saved(place / "chat", tiny_llama(tokenizer), tokenizer)
    return place


def target(name: str, adapter: str | None = None) -> Callable[[Path], object]:
    def read(place: Path) -> None:
        on = None if adapter is None else place / adapter
        model = load_model(place / name, adapter=on, device="cpu")
        if model.tokenizer is not None:
            model.decode(model.encode(TEXT) + model.encode_text(TEXT))

    return read


def chat(place: Path, name: str = "chat") -> None:
    request = ChatRequest((Message("user", TEXT),), "test", max_tokens=2)
    asyncio.run(LocalChat(place / name, device="cpu").complete(request))


def check(
    place: Path, file: str, read: Callable[[Path], object], damage: st.SearchStrategy
) -> None:
    """Reads the folders with each damaged content of a file in place of its own."""
    path = place / file
    sound = path.read_bytes()
    read(place)

    @many
    @given(damage)
    def is_read_or_refused(damaged: bytes) -> None:
        path.write_bytes(damaged)
        read_or_refuse(read, place)

    try:
        is_read_or_refused()
    finally:
        path.write_bytes(sound)


@pytest.mark.parametrize(
    ("file", "read"),
    [
        ("base/config.json", target("base")),
        ("experts/config.json", target("experts")),
        ("base/tokenizer.json", target("base")),
        ("base/tokenizer_config.json", target("base")),
        ("base/special_tokens_map.json", target("base")),
        ("shards/model.safetensors.index.json", target("shards")),
        ("adapter/adapter_config.json", target("base", "adapter")),
        ("chat/config.json", chat),
        ("chat/generation_config.json", chat),
        ("chat/tokenizer.json", chat),
        ("chat/tokenizer_config.json", chat),
    ],
)
def test_damaged_settings(place, file, read):
    check(place, file, read, changed((place / file).read_bytes()))


@pytest.mark.parametrize(
    ("file", "read"),
    [
        ("base/model.safetensors", target("base")),
        ("experts/model.safetensors", target("experts")),
        ("adapter/adapter_model.safetensors", target("base", "adapter")),
        ("chat/model.safetensors", chat),
    ],
)
def test_damaged_weights(place, file, read):
    sound = (place / file).read_bytes()
    head = changed_bytes(sound[:HEADER]).map(lambda damaged: damaged + sound[HEADER:])
    check(place, file, read, st.one_of(head, changed_bytes(sound)))


PIECES = (
    "{{ m['content'] }}", "{{ m.content|trim }}", "{% for m in messages %}", "{% endfor %}",
    "{% if m.role == 'user' %}", "{% else %}", "{% endif %}", "{{ 1/0 }}", "{{ messages|tojson }}",
    "{% set ns = namespace(a=1) %}", "{% set ns.a = ns.a * 999 %}", "{{ 'a' * ns.a }}", "{{ x.y }}",
    "{% macro f(n) %}", "{{ f(3) }}", "{% endmacro %}", "{{ range(9)|list }}", "{{ m['text'] }}",
    "{{ raise_exception('no') }}", "{{ m|attr('x') }}", "{{ '%s'|format(m) }}", "{{ ''.join(m) }}",
    "{{ messages[3] }}", "{{ m.content.split('x')[2] }}", "{%", "}}", "{#", "#}", "<|eot_id|>",
    "{{ strftime_now('%') }}", "{% generation %}", "{% endgeneration %}", "{% break %}", "\ud83d",
    "{% filter upper %}", "{% endfilter %}", "{% include m %}", "{{ m.content|wordwrap(1) }}",
    "{{ 7|round(99) }}", "{{ m.content[1:] }}", "{{ lipsum() }}", "{{ cycler('a').next() }}",
)  # fmt: skip


@pytest.mark.parametrize("kind", ["base", "chat"])
def test_templates(place, kind):
    copy = Path(shutil.copytree(place / kind, place / f"{kind}-template"))
    (copy / "chat_template.jinja").unlink(missing_ok=True)
    file = copy / "tokenizer_config.json"
    settings_of_tokenizer = json.loads(file.read_text())
    read = target(copy.name) if kind == "base" else functools.partial(chat, name=copy.name)

    @many
    @given(st.lists(st.sampled_from(PIECES), min_size=1, max_size=9).map("".join))
    def is_read_or_refused(template: str) -> None:
        file.write_text(json.dumps(settings_of_tokenizer | {"chat_template": template}))
        read_or_refuse(read, place)

    is_read_or_refused()
