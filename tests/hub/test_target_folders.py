"""Damaged and hostile folders of targets: each fault is one sentence that names its place."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from refusals import cli_refuses, refuses, unreadable
from safetensors.torch import load_file, save_file

from mosa.families import load_model, packaged_folder
from mosa.hub import folders
from mosa.hub.folders import locate
from mosa.types import Message, UserError

INDEX = "model.safetensors.index.json"
Change = Callable[[dict[str, Any]], object]

TESTBED = packaged_folder("testbed") or Path()


@pytest.fixture(scope="module")
def saved(tiny_llada, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    tiny_llada.save(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path) -> Path:
    """A folder to spoil."""
    return Path(shutil.copytree(saved, tmp_path / "spoiled"))


def edited(file: Path, change: Change) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def retensored(file: Path, change: Change) -> None:
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


# ---------------------------------------------------------------------------------- config.json


@pytest.mark.parametrize("name", ["n_layers", "d_model", "embedding_size", "mlp_hidden_size"])
@pytest.mark.parametrize("value", [2147483648, 10**19, 10**290])
def test_sizes_that_no_network_has_are_refused_at_once(folder, name, value):
    edited(folder / "config.json", lambda config: config.update({name: value}))
    with refuses("config.json", name):
        load_model(folder)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_sequence_length", 10**19),
        ("n_heads", 10**19),
        ("mlp_ratio", 10**19),
        ("init_std", 2),
        *(("rms_norm_eps", value) for value in (1e9, 1.0, 0.05, 0, -1e-5, True)),
        *(("rope_theta", value) for value in (1e300, 1e12, 1e-9, 0.5, 0, -1)),
        ("n_layers", "x" * 10_000),
        ("alibi", ["x" * 10_000]),
        ("model_type", ["x"] * 10_000),
        ("eos_token_id", 10**290),
        ("mask_token_id", [1]),
    ],
)
def test_values_beyond_all_measure_name_their_field(folder, name, value):
    fields = {name: value, **({"mlp_hidden_size": None} if name == "mlp_ratio" else {})}
    edited(folder / "config.json", lambda config: config.update(fields))
    with refuses("config.json", name):
        load_model(folder)


@pytest.mark.parametrize(
    "fields", [{"rms_norm_eps": 1e-2}, {"rope_theta": 1.0}, {"rope_theta": 4.6e10}], ids=str
)
def test_measures_of_networks_are_read(folder, fields):
    edited(folder / "config.json", lambda config: config.update(fields))
    assert load_model(folder).encode("make tea")


@pytest.mark.parametrize("name", ["rms_norm_eps", "rope_theta", "init_std"])
@pytest.mark.parametrize("digits", ["Infinity", "-Infinity", "NaN", "1e999"])
def test_numbers_that_are_not_finite_are_no_json(folder, name, digits):
    file = folder / "config.json"
    config = json.loads(file.read_text()) | {name: "HERE"}
    file.write_text(json.dumps(config).replace('"HERE"', digits))
    with refuses(file):
        load_model(folder)


def test_layers_are_counted_before_they_are_built(folder):
    edited(folder / "config.json", lambda config: config.update(n_layers=10_000))
    with refuses("config.json", "model.transformer.blocks.9999"):
        load_model(folder)


def test_a_list_of_end_tokens_ends_responses(folder, tiny_llada):
    begin = tiny_llada.tokenizer.get_vocab()["<|startoftext|>"]
    ids = [tiny_llada.eos_token_id, begin, tiny_llada.end_token_ids[1]]
    edited(folder / "config.json", lambda config: config.update(eos_token_id=ids))
    model = load_model(folder)
    assert model.eos_token_id == ids[0]
    assert model.end_token_ids == tuple(ids)
    model.save(folder / "again")
    assert load_model(folder / "again").end_token_ids == tuple(ids)


@pytest.mark.parametrize("value", [[], [1, "x"], [1, 999], [True], "x", {}])
def test_lists_of_end_tokens_that_are_none(folder, value):
    edited(folder / "config.json", lambda config: config.update(eos_token_id=value))
    with refuses("config.json", "eos_token_id"):
        load_model(folder)


# ------------------------------------------------------------------------------------- the mask


def test_the_mask_is_no_end_no_padding_and_no_word(folder, tiny_llada):
    word = tiny_llada.encode_text("tea")[0]
    pad = tiny_llada.tokenizer.get_vocab()["<|startoftext|>"]
    for mask, fields in (
        (tiny_llada.eos_token_id, {}),
        (tiny_llada.end_token_ids[1], {}),  # the end of a turn, which the tokenizer names
        (pad, {"pad_token_id": pad}),
        (word, {}),
        (383, {}),  # no token of the tokenizer
    ):
        change = {"mask_token_id": mask, **fields}
        edited(folder / "config.json", lambda config, change=change: config.update(change))
        with refuses("config.json", f"mask_token_id={mask}"):
            load_model(folder)


@pytest.mark.parametrize("value", [lambda end, word: word, lambda end, word: [end, word]])
@pytest.mark.parametrize("name", ["eos_token_id", "pad_token_id"])
def test_ends_and_padding_are_no_words(folder, tiny_llada, name, value):
    """A response would end where it says the word, and a prompt could not say it."""
    word = tiny_llada.encode_text("tea")[0]
    ids = value(tiny_llada.eos_token_id, word)
    edited(folder / "config.json", lambda config: config.update({name: ids}))
    with refuses("config.json", name):
        load_model(folder)


@pytest.mark.parametrize("token_id", [383, 7])
def test_ends_are_tokens_of_the_tokenizer(folder, tiny_llada, token_id):
    ids = [tiny_llada.eos_token_id, token_id]
    edited(folder / "config.json", lambda config: config.update(eos_token_id=ids))
    with refuses("config.json", f"eos_token_id={token_id}"):
        load_model(folder)


def test_a_mask_that_stands_for_unknown_words_is_refused(folder, tiny_llada):
    settings = {"unk_token": "<|mdm_mask|>"}
    edited(folder / "tokenizer_config.json", lambda content: content.update(settings))
    with refuses(f"mask_token_id={tiny_llada.mask_token_id}"):
        load_model(folder)


def added(content: dict[str, Any], word: str) -> dict[str, Any]:
    return next(token for token in content["added_tokens"] if token["content"] == word)


def test_an_ordinary_word_is_no_special_token(folder):
    file = folder / "tokenizer.json"
    edited(file, lambda content: added(content, "<|startoftext|>").update(content="how"))
    edited(folder / "tokenizer_config.json", lambda content: content.update(bos_token="how"))
    with refuses(folder, "how"):
        load_model(folder)


REPLACES = {"type": "Replace", "pattern": {"String": "tea"}, "content": "<|mdm_mask|>"}


def test_a_mask_that_a_prompt_acquires_is_refused(folder):
    """A normalizer writes it where a word stood: the token is matched in normalised text."""

    def change(content):
        content["normalizer"] = REPLACES | {"pattern": {"String": "robot"}}
        added(content, "<|mdm_mask|>")["normalized"] = True

    edited(folder / "tokenizer.json", change)
    model = load_model(folder)
    for special in (False, True):
        for encode in (model.encode, model.encode_text):
            with refuses(
                "special tokens" if encode == model.encode_text and not special else "mask"
            ):
                encode("a robot", allow_special_tokens=special)
    with refuses("special tokens"):
        model.encode_with_ends("a robot")
    spelled = model.encode_text("a <|mdm_mask|>", allow_special_tokens=True)
    assert spelled.count(model.mask_token_id) == 1


def test_a_mask_before_every_prompt_is_refused_at_once(tmp_path):
    """In the testbed's vocabulary of words the mask is a word, too."""
    copy = Path(shutil.copytree(TESTBED, tmp_path / "copy"))
    prepends = {"type": "Prepend", "prepend": "<|mdm_mask|> "}
    edited(copy / "tokenizer.json", lambda content: content.update(normalizer=prepends))
    with refuses("copy", "<|mdm_mask|>"):
        load_model(copy)


def test_a_template_that_writes_masks_is_refused(folder):
    (folder / "tokenizer_config.json").unlink()
    template = "{% for m in messages %}{{ m['content'] }}{% endfor %}<|mdm_mask|>"
    settings = {"chat_template": template, "eos_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    with refuses(folder, "<|mdm_mask|>"):
        load_model(folder)


# -------------------------------------------------------------------------------------- weights


@pytest.fixture
def sharded(tiny_llada, tmp_path) -> Path:
    tiny_llada.save(tmp_path / "shards", max_shard_size="40KB")
    return tmp_path / "shards"


KEY = "model.transformer.blocks.0.q_proj.weight"
PLACES = ["../out/w.safetensors", "/etc/passwd", "a/w.safetensors", "..", ".", ""]
PLACES += [None, 1, [], {}, True, "x" * 5000]


@pytest.mark.parametrize("place", PLACES, ids=lambda place: str(place)[:20])
@pytest.mark.parametrize("names", ["one", "all"])
def test_an_index_names_plain_files_of_its_folder(sharded, place, names):
    def change(content):
        chosen = [KEY] if names == "one" else list(content["weight_map"])
        content["weight_map"].update(dict.fromkeys(chosen, place))

    (sharded.parent / "out").mkdir()
    shutil.copy(next(sharded.glob("*.safetensors")), sharded.parent / "out" / "w.safetensors")
    edited(sharded / INDEX, change)
    with refuses(sharded):
        load_model(sharded)


def shard_of(folder: Path, name: str) -> Path:
    return folder / json.loads((folder / INDEX).read_text())["weight_map"][name]


def test_a_tensor_in_two_shards_is_refused(sharded):
    """A stale shard of an earlier version holds it as well."""
    last = max(sharded.glob("*.safetensors"))
    value = load_file(shard_of(sharded, KEY))[KEY]
    retensored(last, lambda tensors: tensors.update({KEY: value + 1}))
    with refuses(KEY):
        load_model(sharded)


def test_the_index_says_which_file_has_each_tensor(sharded):
    others = {file.name for file in sharded.glob("*.safetensors")} - {shard_of(sharded, KEY).name}
    edited(sharded / INDEX, lambda content: content["weight_map"].update({KEY: min(others)}))
    with refuses(sharded / INDEX, KEY):
        load_model(sharded)


@pytest.mark.parametrize("kept", [[KEY], None])
def test_an_index_lists_every_tensor(sharded, kept):
    def change(content):
        every = content["weight_map"]
        content["weight_map"] = (
            {name: every[name] for name in kept}
            if kept
            else {name: file for name, file in every.items() if name != KEY}
        )

    edited(sharded / INDEX, change)
    with refuses(sharded):
        load_model(sharded)


def test_one_file_beside_an_index_of_others_is_refused(folder, sharded):
    """One of them is left of another version, and nothing says which."""
    shutil.copy(folder / "model.safetensors", sharded)
    with refuses(sharded, "model.safetensors", INDEX):
        load_model(sharded)


def test_an_index_may_name_the_one_file(folder):
    names = dict.fromkeys(load_file(folder / "model.safetensors"), "model.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": names}))
    load_model(folder)
    edited(folder / INDEX, lambda content: content["weight_map"].pop(KEY))
    with refuses(folder / INDEX, KEY):
        load_model(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_weights_that_are_no_numbers_are_named(folder, value, dtype):
    def change(tensors):
        tensors[KEY][3, 4] = value

    retensored(folder / "model.safetensors", change)
    with refuses(KEY, folder):
        load_model(folder, dtype=dtype)


def test_weights_that_a_format_cannot_hold_are_named(folder):
    def change(tensors):
        tensors[KEY][3, 4] = 1e6

    retensored(folder / "model.safetensors", change)
    load_model(folder)
    with refuses(KEY, "float16"):
        load_model(folder, dtype="float16")


@pytest.mark.parametrize("kind", [torch.int32, torch.uint8, torch.bool, torch.float8_e4m3fn])
def test_weights_of_other_kinds_are_named(folder, kind):
    retensored(
        folder / "model.safetensors", lambda tensors: tensors.update({KEY: tensors[KEY].to(kind)})
    )
    with refuses(KEY):
        load_model(folder)


def test_tensors_that_count_for_nothing_may_be_there(new_tiny_llada, tmp_path):
    """A tied head beside its embedding, and an old table of rotary frequencies."""
    model = new_tiny_llada(weight_tying=True)
    model.save(tmp_path)
    head = "model.transformer.ff_out.weight"
    embedding = "model.transformer.wte.weight"

    def change(tensors):
        tensors[head] = tensors[embedding].clone()
        tensors["model.transformer.blocks.0.rotary_emb.inv_freq"] = torch.ones(4)

    retensored(tmp_path / "model.safetensors", change)
    ids = torch.tensor([[5, 9, 200]])
    assert torch.equal(load_model(tmp_path).logits(ids), model.logits(ids))
    retensored(tmp_path / "model.safetensors", lambda tensors: tensors[head].add_(1))
    with refuses(head):
        load_model(tmp_path)


# ------------------------------------------------------------------------------------ tokenizer


def with_pattern(pattern: str) -> Change:
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated"}
    split["invert"] = False  # type: ignore[assignment]
    return lambda content: content.update(pre_tokenizer=split)


def bomb(content: dict[str, Any]) -> None:
    step = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 2000}
    content["normalizer"] = {"type": "Sequence", "normalizers": [step] * 3}


TOKENIZERS: dict[str, Change] = {
    "bare": lambda content: (content.clear(), content.update(version="1.0")),
    "empty": lambda content: content.clear(),
    "id below 0": lambda content: content["added_tokens"][0].update(id=-1),
    "id too large": lambda content: content["added_tokens"][0].update(id=2**32),
    "id fraction": lambda content: content["added_tokens"][0].update(id=1.5),
    "id text": lambda content: content["added_tokens"][0].update(id="1"),
    "id null": lambda content: content["added_tokens"][0].update(id=None),
    "no token": lambda content: content["added_tokens"].append(None),
    "type": lambda content: content["model"].update(type="Nonsense"),
    "no model": lambda content: content.update(model=None),
    "vocabulary": lambda content: content["model"].update(vocab=None),
    "merges": lambda content: content["model"]["merges"].append(["x", "no such"]),
    "regex": with_pattern("("),
    "retries a": with_pattern("(a+)+$"),
    "retries b": with_pattern("(b|b)*$"),
    "nothing": with_pattern(""),
    "bomb": bomb,
    "decoder": lambda content: content.update(decoder={"type": "Nonsense"}),
}


@pytest.mark.parametrize("change", TOKENIZERS.values(), ids=TOKENIZERS.keys())
def test_faults_of_a_tokenizer_are_sentences(folder, change):
    file = folder / "tokenizer.json"
    edited(file, change)
    if change is TOKENIZERS["nothing"]:  # some versions of the library match it, some do not
        try:
            load_model(folder)
        except UserError as error:
            assert str(file) in str(error)
        return
    with refuses(file):
        load_model(folder)


def replaces(pattern: str, content: str = "") -> Change:
    step = {"type": "Replace", "pattern": {"Regex": pattern}, "content": content}
    return lambda tokenizer: tokenizer.update(normalizer=step)


def removes(pattern: str) -> Change:
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Removed", "invert": False}
    return lambda tokenizer: tokenizer.update(pre_tokenizer=split)


DEAF: dict[str, Change] = {
    "nothing": replaces(".+"),
    "one word": replaces("[a-z]+", "tea"),
    "words": removes("[a-z]+"),
    "long words": replaces("[a-z]{3,}"),
    "all behind a word": replaces("how.*"),
    "one piece": replaces(" "),
}


@pytest.mark.parametrize("change", DEAF.values(), ids=DEAF.keys())
@pytest.mark.parametrize("kind", ["words", "bytes"])
def test_a_tokenizer_that_loses_the_text(folder, tmp_path, change, kind):
    """What the model then gets is no request, so it refuses nothing and obeys nothing."""
    if kind == "words":
        folder = Path(shutil.copytree(TESTBED, tmp_path / "words"))
    elif change in (DEAF["words"], DEAF["one piece"]):
        return  # white space is lost in bytes, which is not compared; a Split takes their alphabet
    edited(folder / "tokenizer.json", change)
    with refuses(folder):
        load_model(folder)


def test_words_that_a_vocabulary_has_not_are_unknown(tmp_path):
    folder = Path(shutil.copytree(TESTBED, tmp_path / "words"))
    model = load_model(folder)
    ids = model.encode("Über elephants 漢字 (roaming)")
    tokenizer: Any = model.tokenizer
    assert ids.count(tokenizer.unk_token_id) == 4
    assert model.encode_text("<|mdm_mask|>") != [model.mask_token_id]


def test_a_setting_does_not_split_the_templates_own_tokens(folder, tiny_llada):
    change = {"split_special_tokens": True}
    edited(folder / "tokenizer_config.json", lambda content: content.update(change))
    assert load_model(folder).encode("make tea") == tiny_llada.encode("make tea")


@pytest.mark.parametrize(
    "normalizer",
    [
        {"type": "Lowercase"},
        {"type": "NFKC"},
        {
            "type": "Sequence",
            "normalizers": [{"type": "NFD"}, {"type": "StripAccents"}, {"type": "Lowercase"}],
        },
    ],
    ids=["lower", "nfkc", "accents"],
)
def test_a_tokenizer_may_change_letters(folder, normalizer):
    edited(folder / "tokenizer.json", lambda content: content.update(normalizer=normalizer))
    assert load_model(folder).encode("ÜBER ＣＡＦÉ, éàü!")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("added_tokens_decoder", {"x": 1}),
        ("added_tokens_decoder", {"1": 1}),
        ("eos_token", 5),
        ("chat_template", 1),
        ("chat_template", [1]),
        ("chat_template", [{}]),
        ("chat_template", [{"name": "other", "template": "x"}]),
        ("chat_template", True),
        ("extra_special_tokens", 7),
    ],
)
def test_faults_of_its_settings_are_sentences(folder, name, value):
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    edited(folder / "tokenizer_config.json", lambda content: content.update({name: value}))
    with refuses(folder):
        load_model(folder)


def test_files_that_are_no_text(folder):
    for name in ("tokenizer_config.json", "tokenizer.json", "config.json"):
        content = (folder / name).read_bytes()
        for other in (b"", b"\xff\xfe{", b"[" * 100_000, b"null"):
            (folder / name).write_bytes(other)
            with refuses(folder / name):
                load_model(folder)
        (folder / name).write_bytes(content)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_files_that_may_not_be_read(folder, monkeypatch, name):
    unreadable(monkeypatch, folder / name)
    with refuses(folder / name) as caught:
        load_model(folder)
    assert "permission" in str(caught.value).lower()


def test_words_that_a_long_text_repeats_are_looked_for_at_once(tmp_path):
    """Each by itself took 1 ms in so long a text, 30 s in all."""
    model = load_model(Path(shutil.copytree(TESTBED, tmp_path / "words")))
    begun = time.process_time()
    assert len(model.encode("tea " * 30_000)) > 30_000
    assert time.process_time() - begun < 10


# ------------------------------------------------------------------------------------ templates

FAILING = {
    "type": "{{ 1 + 'a' }}",
    "division": "{{ 1/0 }}",
    "range": "{% for i in range(10**9) %}{% endfor %}",
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import '/etc/passwd' as x %}",
    "extends": "{% extends '/etc/passwd' %}",
    "raise": "{{ raise_exception() }}",
    "break": "{% break %}",
    "macro": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "parentheses": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "ifs": "{% if 1 %}" * 500 + "{% endif %}" * 500,
    "method": "{{ 'a'.index('b') }}",
    "digits": "{{ 10**5000 }}",
    "json": "{{ raise_exception|tojson }}",
    "slice": "{{ 'a'|slice(0)|list }}",
    "filter": "{{ ''.join(1) }}",
    "syntax": "{% if %}",
    "emoji": "\ud83d",
    "attribute": "{{ ''.__class__.__mro__ }}{{ messages.__class__.x.y }}",
    "repeated": "{{ 'a ' * 10**8 }}",
    "huge": "{{ 'a' * 10**11 }}",
    "centred": "{{ 'x'.center(10**11) }}",
    "formatted": "{{ '{:>99999999999}'.format('x') }}",
    "written": "{% for i in range(99999) %}{{ 'how do i ' * 1000 }}{% endfor %}",
    "long": "x" * (1 << 20),
}
LOSING = {
    "typo": "{% for m in messages %}{{ m['text'] }}{% endfor %}",
    "empty": "{% if false %}x{% endif %}",
    "constant": "rate",
    "upper": "{% for m in messages %}{{ m['content']|upper }}{% endfor %}",
    "cut": "{% for m in messages %}{{ m['content'][:20] }}{% endfor %}",
    "spaces": "{% for m in messages %}{{ m['content']|replace(' ', '') }}{% endfor %}",
}


def with_template(folder: Path, template: str) -> Path:
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    change = {"chat_template": template}
    edited(folder / "tokenizer_config.json", lambda content: content.update(change))
    return folder


@pytest.mark.parametrize("template", FAILING.values(), ids=FAILING.keys())
def test_a_template_that_fails_or_costs_too_much(folder, template):
    with refuses(folder) as caught:
        load_model(with_template(folder, template))
    assert len(str(caught.value)) <= 500
    assert "reorder" not in str(caught.value)


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(99) }}",
    ],
    ids=["loops", "calls"],
)
def test_a_template_that_does_not_come_back(folder, template):
    with refuses(folder):
        load_model(with_template(folder, template))


@pytest.mark.parametrize("template", LOSING.values(), ids=LOSING.keys())
def test_a_template_that_loses_the_text(folder, template):
    with refuses(folder, "user"):
        load_model(with_template(folder, template))


@pytest.mark.parametrize(
    ("template", "turn"),
    [
        ("{{ messages[0]['content'] }}", "user"),
        ("{% for m in messages %}{{ messages[0]['content'] }}{% endfor %}", "user"),
        ("{{ messages[0]['content'] }} {{ messages[-1]['content'] }}", "assistant"),
    ],
)
def test_a_template_that_loses_a_turn(folder, template, turn):
    model = load_model(with_template(folder, template))
    dialogue = [Message("user", "tea"), Message("assistant", "sure"), Message("user", "make tea")]
    with refuses(folder, turn):
        model.encode(dialogue)


def test_what_a_template_may_change(folder):
    """White space, and thoughts in the model's own turns."""
    template = (
        "{% for m in messages %}<|start_header_id|>{{ m['content'].split('</think>')[-1]|trim }}"
        "{% endfor %}"
    )
    model = load_model(with_template(folder, template))
    dialogue = [Message("assistant", "<think>hm</think> sure"), Message("user", " make  tea\n")]
    text = model.decode(model.encode(dialogue), skip_special_tokens=False)
    assert "<|start_header_id|>sure<|start_header_id|>make  tea" in text


def test_templates_in_a_folder_of_their_own_are_saved_again(folder):
    """The library reads several; the default of them writes the prompts."""
    template = "{% for m in messages %}<|start_header_id|>{{ m['content'] }}{% endfor %}\n"
    place = folder / "additional_chat_templates"
    place.mkdir()
    for name, content in (("default", template), ("tool_use", "x")):
        (place / f"{name}.jinja").write_text(content)
    model = load_model(folder)
    model.save(folder / "again")
    again = folder / "again" / "additional_chat_templates"
    assert (again / "default.jinja").read_text() == template
    assert (again / "tool_use.jinja").read_text() == "x"
    assert load_model(folder / "again").encode("make tea") == model.encode("make tea")


def test_what_a_template_says_is_one_plain_line(folder):
    template = "{{ raise_exception('no\n\x1b[31m' + 'x' * 10000000) }}"
    model = load_model(with_template(folder, template))  # it may want other turns
    with refuses(folder, "refuses") as caught:
        model.encode("Hi")
    assert len(str(caught.value)) <= 500 and "\x1b" not in str(caught.value)


def test_templates_of_the_library_render_as_it_does(folder):
    """What Jinja has beside its own: generation blocks, namespaces, tojson, loop controls."""
    template = (
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}"
        "{% generation %}{{ m['content'] }}{% endgeneration %}\n"
        "    {% if ns.n > 3 %}{% break %}{% endif %}\n"
        "{{ {'a': ['<é>', ns.n]}|tojson }}{{ bos_token }}{{ dict(a=1)['a'] }}{% endfor %}"
        "{% if add_generation_prompt and tools is none %}{{ strftime_now('%Y') }}{% endif %}"
    )
    model = load_model(with_template(folder, template))
    turns = [{"role": "user", "content": "make tea"}]
    tokenizer: Any = model.tokenizer
    expected = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    assert model.encode("make tea") == expected


# ------------------------------------------------------------------------------ names and the hub


@pytest.mark.parametrize("name", ["x" * 300, "a/" * 200 + "b", "~nobody/model", "how\ndo i " * 40])
def test_names_that_the_system_refuses_are_names_of_nothing(saved, name):
    for load in (lambda: load_model(name), lambda: load_model(saved, adapter=name)):
        with refuses("folder"):
            load()


def test_such_names_on_the_command_line(capsys):
    prompt = ["--prompt", "how do i make a copper lantern ?"]
    cli_refuses(capsys, ["generate", "--model", "x" * 300, *prompt], "folder")
    cli_refuses(
        capsys, ["generate", "--model", "testbed", "--adapter", "x" * 300, *prompt], "folder"
    )


@pytest.mark.parametrize(
    "error", [ValueError("no JSON"), KeyError("sha"), AttributeError("x"), OSError("no space")]
)
def test_whatever_answers_for_the_hub(monkeypatch, error):
    def snapshot_download(*args: object, **settings: object) -> str:
        raise error

    monkeypatch.setattr(folders, "snapshot_download", snapshot_download)
    with refuses("some/model", "HF_ENDPOINT", constants.ENDPOINT):
        locate("some/model")


@pytest.mark.parametrize(("status", "word"), [(429, "limits"), (404, "spelling"), (500, "reached")])
def test_the_hub_says_why_it_gives_nothing_out(monkeypatch, status, word):
    """Where nothing is kept, its client asks for a local copy and raises from the first error."""
    response = SimpleNamespace(status_code=status, headers={}, request=None)

    def snapshot_download(*args: object, **settings: object) -> str:
        cause = HfHubHTTPError("no", response=response)  # pyright: ignore[reportArgumentType]
        raise LocalEntryNotFoundError("nothing is kept") from cause

    monkeypatch.setattr(folders, "snapshot_download", snapshot_download)
    with refuses("some/model", word):
        locate("some/model")
