"""A thousand damaged copies of each file of a folder: read, or refused in one sentence."""

from __future__ import annotations

import asyncio
import copy
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from chat.tiny_causal import causal_tokenizer, saved, tiny_llama
from peft import LoraConfig
from refusals import check_message

from mosa.chat import ChatError, ChatRequest, LocalChat
from mosa.families import load_model
from mosa.types import Message, UserError

NUM_INPUTS = 1000
VALUES: list[Any] = [
    None,
    True,
    False,
    0,
    1,
    -1,
    2,
    3,
    2**31,
    2**63,
    10**30,
    0.5,
    -0.0,
    1e-300,
    1e300,
    "",
    "x",
    "8",
    "../x",
    "\ud83d",
    "\0",
    "a\nb",
    "<|endoftext|>",
    [],
    [1],
    ["x"],
    [[]],
    [None],
    {},
    {"a": 1},
    {"": None},
    "(a+)+$",
    "[",
    "float16",
    "int8",
    "{{ 1/0 }}",
    "x" * 3000,
]


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where the values of a tree are."""
    found = [path] if path else []
    if isinstance(value, dict):
        inner = value.items()
    elif isinstance(value, list):
        inner = enumerate(value[:20])
    else:
        return found
    return found + [place for key, part in inner for place in places(part, (*path, key))]


def damaged(content: Any, chance: random.Random) -> bytes:
    """A tree as JSON with something changed in it, taken out, or put in; or other bytes."""
    if chance.random() < 0.1:
        data = bytearray(json.dumps(content).encode())
        for _ in range(chance.randint(1, 4)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        return bytes(data[: chance.choice([len(data), len(data) // 2])])
    tree = copy.deepcopy(content)
    for _ in range(chance.choice([1, 1, 1, 2, 3])):
        path = chance.choice(places(tree))
        holder = tree
        for key in path[:-1]:
            holder = holder[key]
        if chance.random() < 0.2:
            del holder[path[-1]]
        elif chance.random() < 0.2 and isinstance(holder, dict):
            holder[chance.choice(["x", "auto_map", "a.b"])] = copy.deepcopy(chance.choice(VALUES))
        else:
            holder[path[-1]] = copy.deepcopy(chance.choice(VALUES))
        if not places(tree):
            break
    return json.dumps(tree).encode()


def fuzzed(file: Path, read: Callable[[], object], content: Any = None) -> None:
    """Reads with damaged copies of a file; anything but a sentence fails."""
    before = file.read_bytes()
    content = json.loads(before) if content is None else content
    for number in range(NUM_INPUTS):
        data = damaged(content, random.Random(f"{file.name}-{number}"))
        file.write_bytes(data)
        try:
            read()
        except (UserError, ChatError) as error:
            check_message(str(error), " ".join(str(error).split()[:1]).strip("().,;:'\""))
        except BaseException:
            print(f"input {number}: {data[:3000]!r}")
            raise
    file.write_bytes(before)


@pytest.fixture(scope="module")
def target(tiny_llada, new_tiny_llada, tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("target")
    tiny_llada.save(place / "base")
    model = new_tiny_llada()
    model.add_lora(LoraConfig(r=2))
    model.save_adapter(place / "adapter")
    tiny_llada.save(place / "shards", max_shard_size="40KB")
    return place


def answer(folder: Path, adapter: Path | None = None) -> None:
    model = load_model(folder, adapter=adapter, device="cpu")
    if model.tokenizer is not None:
        model.decode(model.encode("how do i make tea ?"))
        model.encode_text("how do i make tea ?")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_folders_of_targets(target, name):
    fuzzed(target / "base" / name, lambda: answer(target / "base"))


@pytest.mark.slow
def test_the_index_of_a_target(target):
    file = target / "shards" / "model.safetensors.index.json"
    fuzzed(file, lambda: answer(target / "shards"))


@pytest.mark.slow
def test_settings_of_an_adapter(target):
    fuzzed(
        target / "adapter" / "adapter_config.json",
        lambda: answer(target / "base", target / "adapter"),
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["base/model.safetensors", "adapter/adapter_model.safetensors"])
def test_bytes_of_weights(target, name):
    """The header, of which the first eight bytes are the length."""
    file = target / name
    before = file.read_bytes()
    for number in range(NUM_INPUTS):
        chance = random.Random(f"{name}-{number}")
        data = bytearray(before)
        for _ in range(chance.randint(1, 3)):
            data[chance.randrange(3000)] = chance.randrange(256)
        file.write_bytes(data[: chance.choice([len(data), chance.randrange(len(data))])])
        try:
            answer(target / "base", target / "adapter")
        except UserError as error:
            check_message(str(error), str(error).split()[0].strip("().,;:'\""))
    file.write_bytes(before)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]
)
def test_folders_of_chat_models(tmp_path, name):
    tokenizer = causal_tokenizer()
    folder = saved(tmp_path / "chat", tiny_llama(tokenizer), tokenizer)
    request = ChatRequest((Message("user", "Hi"),), "test", max_tokens=2)

    def ask() -> None:
        asyncio.run(LocalChat(folder, device="cpu").complete(request))

    fuzzed(folder / name, ask)


PIECES = [
    "{{ m['content'] }}",
    "{{ m.content|trim }}",
    "{% for m in messages %}",
    "{% endfor %}",
    "{% if m.role == 'user' %}",
    "{% else %}",
    "{% endif %}",
    "{{ 1/0 }}",
    "{{ messages|tojson }}",
    "{% set ns = namespace(a=1) %}",
    "{% set ns.a = ns.a * 1000 %}",
    "{{ 'a' * ns.a }}",
    "{{ x.y.z }}",
    "{% macro f(n) %}",
    "{{ f(3) }}",
    "{% endmacro %}",
    "{{ range(9)|list }}",
    "{{ m['content'][1:] }}",
    "{{ raise_exception('no') }}",
    "{{ m|attr('x') }}",
    "{{ '%s'|format(m) }}",
    "{{ ''.join(m) }}",
    "{{ messages[3] }}",
    "{{ m.content.split('x')[2] }}",
    "{%",
    "}}",
    "{#",
    "#}",
    "\ud83d",
    "<|eot_id|>",
    "{{ strftime_now('%') }}",
    "{% generation %}",
    "{% endgeneration %}",
    "{% break %}",
    "{{ 7|round(99) }}",
    "{% filter upper %}",
    "{% endfilter %}",
    "{% include m %}",
    "{{ m.content|wordwrap(1) }}",
]


@pytest.mark.slow
def test_templates(target, tmp_path):
    folder = Path(shutil.copytree(target / "base", tmp_path / "copy"))
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_text())
    for number in range(NUM_INPUTS):
        chance = random.Random(number)
        template = "".join(chance.choices(PIECES, k=chance.randint(1, 8)))
        file.write_text(json.dumps(settings | {"chat_template": template}))
        try:
            answer(folder)
        except UserError as error:
            check_message(str(error), "copy")
            assert len(str(error)) <= 500
