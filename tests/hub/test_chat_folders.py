"""Damaged and hostile folders of chat models: read by the same reader as targets."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from chat.tiny_causal import causal_tokenizer, saved, tiny_llama
from hub.test_target_folders import (
    DEAF,
    FAILING,
    LOSING,
    PLACES,
    TOKENIZERS,
    edited,
    replaces,
    retensored,
)
from peft import LoraConfig, get_peft_model
from refusals import refuses, unreadable
from safetensors.torch import load_file, save_file

from mosa.chat import ChatError, ChatReply, ChatRequest, LocalChat, weights
from mosa.chat.weights import checkpoint_name, load_causal_lm
from mosa.judges.base import Item
from mosa.judges.classifier import UNUSABLE, classifier_ids, next_token_logits
from mosa.judges.llama_guard import verdicts
from mosa.types import Behavior, Message

INDEX = "model.safetensors.index.json"
HEAD = "lm_head.weight"


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    tokenizer = causal_tokenizer()
    return saved(tmp_path_factory.mktemp("llama"), tiny_llama(tokenizer), tokenizer)


@pytest.fixture
def folder(whole, tmp_path) -> Path:
    """A folder to spoil."""
    return Path(shutil.copytree(whole, tmp_path / "spoiled"))


def answer(folder: Path, text: str = "Tell me how to make tea.", **settings: Any) -> ChatReply:
    request = ChatRequest((Message("user", text),), "test", **{"max_tokens": 6, **settings})
    return asyncio.run(LocalChat(folder, device="cpu").complete(request))


# -------------------------------------------------------------------------------------- weights


def test_missing_surplus_and_odd_tensors_are_named(folder):
    file = folder / "model.safetensors"
    content = file.read_bytes()
    gone = "model.layers.1.mlp.down_proj.weight"
    changes: list[tuple[str, Callable[[dict[str, Any]], object]]] = [
        (HEAD, lambda tensors: tensors.pop(HEAD)),
        (gone, lambda tensors: tensors.pop(gone)),
        ("foo.bar", lambda tensors: tensors.update({"foo.bar": torch.zeros(2)})),
        (HEAD, lambda tensors: tensors.update({HEAD: tensors[HEAD].to(torch.int64)})),
        (HEAD, lambda tensors: tensors.update({HEAD: tensors[HEAD].to(torch.float8_e5m2)})),
    ]
    for name, change in changes:
        retensored(file, change)
        with refuses(name, "spoiled"):
            load_causal_lm(folder, device="cpu")
        file.write_bytes(content)
    retensored(file, lambda tensors: tensors.update({HEAD: tensors[HEAD][:7].clone()}))
    with refuses(folder, HEAD, "[7, 32]"):
        load_causal_lm(folder, device="cpu")


@pytest.mark.parametrize("fields", [{"num_key_value_heads": 1}, {"intermediate_size": 40}], ids=str)
def test_a_config_of_other_shapes_names_a_tensor_and_prints_nothing(folder, fields, capfd):
    edited(folder / "config.json", lambda config: config.update(fields))
    capfd.readouterr()
    with refuses(folder, "shape"):
        load_causal_lm(folder, device="cpu")
    told = capfd.readouterr()
    assert "LOAD REPORT" not in told.out + told.err and "\x1b" not in told.out + told.err


MEASURES: list[dict[str, Any]] = [
    *({"rms_norm_eps": value} for value in (1e9, 1.0, 0, -1e-6)),
    *({"rope_theta": value, "rope_parameters": None} for value in (1e12, 1e-9, -1)),
    {"rope_parameters": {"rope_type": "default", "rope_theta": 1e-9}},
    {"rope_parameters": {"rope_type": "dynamic", "factor": -1.0, "rope_theta": 1e4}},
    {"rope_parameters": {"rope_type": "linear", "factor": 1e9, "rope_theta": 1e4}},
    {"rope_scaling": {"type": "linear", "factor": 0.0}},
]


@pytest.mark.parametrize("fields", MEASURES, ids=str)
def test_measures_that_no_network_has(folder, fields):
    edited(folder / "config.json", lambda config: config.update(fields))
    with refuses(folder / "config.json"):
        load_causal_lm(folder, device="cpu")


def test_measures_of_networks_are_read(folder):
    rope = {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e7}
    fields = {"rms_norm_eps": 1e-12, "rope_parameters": rope}
    edited(folder / "config.json", lambda config: config.update(fields))
    load_causal_lm(folder, device="cpu")


def test_old_tables_may_be_there(folder):
    extra = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4),
        "model.layers.0.attention.bias": torch.ones(4, dtype=torch.bool),  # as GPT-NeoX has
    }
    before = answer(folder)
    retensored(folder / "model.safetensors", lambda tensors: tensors.update(extra))
    assert answer(folder) == before


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs", b"\xff" * 100])
def test_files_that_are_no_weights(folder, content):
    (folder / "model.safetensors").write_bytes(content)
    with refuses(folder / "model.safetensors"):
        load_causal_lm(folder, device="cpu")


def test_weights_that_are_cut_off(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with refuses(file):
        load_causal_lm(folder, device="cpu")


def test_pickled_weights_beside_others(folder):
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    torch.save({}, folder / "pytorch_model.bin")
    with refuses(folder, "pickled"):
        load_causal_lm(folder, device="cpu")


def in_shards(folder: Path) -> Path:
    """The weights in two files, by an index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    weight_map = {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({n: tensors[n].clone() for n in part}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def test_shards_are_read_by_their_index(folder):
    before = answer(folder)
    assert answer(in_shards(folder)).text == before.text


@pytest.mark.parametrize("place", PLACES, ids=lambda place: str(place)[:20])
def test_an_index_names_plain_files_of_its_folder(folder, place):
    in_shards(folder)
    edited(folder / INDEX, lambda content: content["weight_map"].update({HEAD: place}))
    for read in (checkpoint_name, load_causal_lm):
        with refuses(folder):
            read(folder)


def test_a_tensor_in_two_shards_is_refused(folder):
    in_shards(folder)
    weight_map = json.loads((folder / INDEX).read_text())["weight_map"]
    (other,) = set(weight_map.values()) - {weight_map[HEAD]}
    value = load_file(folder / weight_map[HEAD])[HEAD]
    retensored(folder / other, lambda tensors: tensors.update({HEAD: value + 1}))
    with refuses(HEAD):
        load_causal_lm(folder, device="cpu")


QUANTISED: list[dict[str, Any]] = [
    {"quant_method": "nope"},
    {"quant_method": "bitsandbytes", "load_in_8bit": False, "load_in_4bit": False},
    {"quant_method": "fp8", "weight_block_size": [16, 16]},
    {"quant_method": "mxfp4", "dequantize": True},
    {"quant_method": "gptq", "bits": 4},
    {"bits": 4},
    {},
]


@pytest.mark.parametrize("setting", QUANTISED, ids=str)
@pytest.mark.parametrize("kind", [torch.int8, torch.uint8, torch.float8_e4m3fn])
def test_a_setting_makes_no_numbers_of_integers(folder, setting, kind):
    """Without scales they stand for nothing, whatever config.json says of a quantiser."""
    retensored(
        folder / "model.safetensors",
        lambda tensors: tensors.update({n: (50 * t).to(kind) for n, t in tensors.items()}),
    )
    edited(folder / "config.json", lambda config: config.update(quantization_config=setting))
    with refuses(folder, "quantised"):
        load_causal_lm(folder, device="cpu")


Q_PROJ = "model.layers.0.self_attn.q_proj"


def in_float8(folder: Path, scale: float) -> None:
    """The first layer's queries in blocks with a scale each, as an fp8 checkpoint has them."""

    def change(tensors: dict[str, Any]) -> None:
        numbers = tensors[f"{Q_PROJ}.weight"]
        tensors[f"{Q_PROJ}.weight"] = (numbers / scale).to(torch.float8_e4m3fn)
        rows, columns = (-(-n // 16) for n in numbers.shape)
        tensors[f"{Q_PROJ}.weight_scale_inv"] = torch.full((rows, columns), scale)

    retensored(folder / "model.safetensors", change)


def test_a_quantiser_of_the_library_reads_what_has_scales(folder):
    """Read as numbers, the stored values would be 1/0.01 times too large."""
    plain = load_causal_lm(folder, device="cpu").network.get_parameter(f"{Q_PROJ}.weight")
    in_float8(folder, 0.01)
    others = [n.removesuffix(".weight") for n in load_file(folder / "model.safetensors")]
    left = [n for n in others if n.endswith(("_proj", "lm_head")) and n != Q_PROJ]
    setting = {"quant_method": "fp8", "weight_block_size": [16, 16], "dequantize": True}
    setting["modules_to_not_convert"] = left
    edited(folder / "config.json", lambda config: config.update(quantization_config=setting))
    read = load_causal_lm(folder, device="cpu").network.get_parameter(f"{Q_PROJ}.weight")
    torch.testing.assert_close(read.float(), plain.float(), rtol=0.1, atol=0.01)


def test_scales_for_a_quantiser_that_the_library_does_not_know(folder):
    in_float8(folder, 0.01)
    setting = {"quant_method": "nope"}
    edited(folder / "config.json", lambda config: config.update(quantization_config=setting))
    with refuses(f"{Q_PROJ}.weight_scale_inv"):
        load_causal_lm(folder, device="cpu")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer_config.json"])
def test_files_that_may_not_be_read(folder, monkeypatch, name):
    unreadable(monkeypatch, folder / name)
    for read in (checkpoint_name, load_causal_lm):
        with refuses(folder / name):
            read(folder)


# ------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("hidden_size", "x"),
        ("hidden_size", 10**19),
        ("max_position_embeddings", None),
        ("num_attention_heads", 0),
        ("vocab_size", 10),
        ("vocab_size", 10**19),
        ("num_hidden_layers", 3),
        ("num_hidden_layers", 2**31),
        ("num_hidden_layers", "x"),
        ("dtype", "int8"),
        ("model_type", [1]),
        ("model_type", "mine"),
        ("quantization_config", {"quant_method": "gptq", "bits": 4}),
    ],
)
def test_values_that_no_config_has(folder, name, value):
    edited(folder / "config.json", lambda config: config.update({name: value}))
    with refuses(folder):
        load_causal_lm(folder, device="cpu")


@pytest.mark.parametrize(
    "content", [b"[1]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"rms_norm_eps": Infinity}', b""]
)
@pytest.mark.parametrize(
    "name", ["config.json", "generation_config.json", "tokenizer_config.json", INDEX]
)
def test_files_that_are_no_settings(folder, name, content):
    (folder / name).write_bytes(content)
    with refuses(folder / name):
        load_causal_lm(folder, device="cpu")


GENERATION: list[dict[str, Any]] = [
    {"min_new_tokens": 20},
    {"min_length": 50},
    {"no_repeat_ngram_size": 1},
    {"suppress_tokens": list(range(50, 300))},
    {"begin_suppress_tokens": list(range(50, 300))},
    {"bad_words_ids": [[n] for n in range(50, 300)]},
    {"sequence_bias": [[[7], 100.0]]},
    {"repetition_penalty": 5.0, "encoder_repetition_penalty": 5.0},
    {"max_time": 0.0},
    {"num_beams": 4},
    {"num_beams": 3, "num_return_sequences": 3},
    {"num_return_sequences": 2},
    {"stop_strings": ["e"]},
    {"return_dict_in_generate": True},
    {"cache_implementation": "bogus"},
    {"penalty_alpha": 0.6, "top_k": 4},
    {"token_healing": True},
    {"dola_layers": "high"},
    {"num_beam_groups": 2},
    {"do_sample": True, "temperature": -1.0},
    {"max_length": 1, "max_new_tokens": 1},
    {"guidance_scale": 3.0, "forced_eos_token_id": 1, "forced_bos_token_id": 3},
    {"nonsense": [1]},
]


@pytest.mark.parametrize("settings", GENERATION, ids=lambda settings: next(iter(settings)))
def test_settings_of_generation_change_nothing(whole, folder, settings):
    (folder / "generation_config.json").write_text(json.dumps(settings))
    assert answer(folder) == answer(whole)


@pytest.mark.parametrize("settings", [{"min_length": 50}, {"num_beams": 3}, {"do_sample": True}])
def test_nor_do_those_in_config_json(whole, folder, settings):
    """Where old releases have them; under an adapter, too."""
    edited(folder / "config.json", lambda config: config.update(settings))
    assert answer(folder) == answer(whole)
    adapter = folder.parent / "lora"
    config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    get_peft_model(tiny_llama(causal_tokenizer()), config).save_pretrained(adapter)
    base = {"base_model_name_or_path": str(folder), "lora_alpha": 1e-9}  # changes no choice
    edited(adapter / "adapter_config.json", lambda content: content.update(base))
    assert answer(adapter) == answer(whole)


def test_the_end_tokens_that_it_names_count(folder):
    vocabulary = causal_tokenizer().get_vocab()
    ids = [vocabulary["<|user|>"], vocabulary["<|assistant|>"]]
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ids}))
    loaded = load_causal_lm(folder, device="cpu")
    assert loaded.end_token_ids == (*ids, loaded.tokenizer.eos_token_id)


@pytest.mark.parametrize("file", ["generation_config.json", "config.json"])
def test_an_end_token_is_no_word(folder, file):
    """A reply would end where it says the word."""
    (folder / "generation_config.json").unlink()
    content = json.loads((folder / "config.json").read_text()) if file == "config.json" else {}
    (folder / file).write_text(
        json.dumps(content | {"eos_token_id": [causal_tokenizer().eos_token_id, 7]})
    )
    with refuses(file, "eos_token_id"):
        load_causal_lm(folder, device="cpu")


@pytest.mark.parametrize("value", ["x", [[1]], [1.5], -1, 10**9, True, {}])
def test_end_tokens_that_are_none(folder, value):
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": value}))
    with refuses("generation_config.json", "eos_token_id"):
        load_causal_lm(folder, device="cpu")


# ------------------------------------------------------------------------ tokenizers, templates


# What takes a tokenizer's time or memory is tried on targets.
QUICK_TOKENIZERS = {k: v for k, v in TOKENIZERS.items() if k not in ("nothing", "bomb")}


@pytest.mark.parametrize("change", QUICK_TOKENIZERS.values(), ids=QUICK_TOKENIZERS.keys())
def test_faults_of_a_tokenizer_are_sentences(folder, change):
    edited(folder / "tokenizer.json", change)
    with refuses(folder / "tokenizer.json"):
        load_causal_lm(folder, device="cpu")


@pytest.mark.parametrize("name", ["nothing", "one word", "long words"])
def test_a_tokenizer_that_loses_the_text(folder, name):
    edited(folder / "tokenizer.json", DEAF[name])
    with refuses(folder):
        load_causal_lm(folder, device="cpu")


def test_a_tokenizer_that_loses_this_text_is_no_answer(folder):
    edited(folder / "tokenizer.json", replaces("Tell me.*"))
    with refuses(folder, error=ChatError):
        answer(folder, "Tell me how to make a cup of tea.")


def test_a_setting_does_not_split_the_templates_own_tokens(whole, folder):
    change = {"split_special_tokens": True}
    edited(folder / "tokenizer_config.json", lambda content: content.update(change))
    assert answer(folder) == answer(whole)


@pytest.mark.parametrize("ids", [[], [5000], [3, 5000]])
def test_prompts_of_no_known_token_are_no_answer(folder, monkeypatch, ids):
    monkeypatch.setattr(weights, "token_ids", lambda *text, **settings: ids)
    with refuses(folder, error=ChatError):
        answer(folder)
    with refuses(folder):
        classifier_ids(load_causal_lm(folder, device="cpu"), "Hi")


def with_template(folder: Path, template: str) -> Path:
    edited(folder / "tokenizer_config.json", lambda content: content.pop("chat_template", None))
    file = folder / "chat_template.jinja"
    file.write_bytes(template.encode("utf-8", "surrogatepass"))
    return folder


COSTLY = ("written", "repeated", "huge", "emoji", "long")


@pytest.mark.parametrize("name", sorted(FAILING.keys() - COSTLY))
def test_a_template_that_fails_is_no_answer(folder, name):
    with refuses(folder, error=ChatError) as caught:
        answer(with_template(folder, FAILING[name]))
    assert len(str(caught.value)) <= 500


@pytest.mark.parametrize("name", ["emoji", "long"])
def test_a_template_that_is_none_is_refused(folder, name):
    with refuses(folder):
        answer(with_template(folder, FAILING[name]))


@pytest.mark.parametrize("template", LOSING.values(), ids=LOSING.keys())
def test_a_template_that_loses_the_text_is_no_answer(folder, template):
    with refuses(folder, "user", error=ChatError):
        answer(with_template(folder, template))


# ---------------------------------------------------------------------------------------- scores


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0])
def test_judges_take_no_verdict_from_unusable_scores(folder, value):
    retensored(folder / "model.safetensors", lambda tensors: tensors[HEAD].fill_(value))
    model = load_causal_lm(folder, device="cpu")
    assert not bool(next_token_logits(model, [[5, 6]])[0].std() > 0)
    item = Item(Behavior("0", "how do i make tea ?"), "first boil the water")
    (found,) = verdicts(model, [(item, "{behavior} {response}")])
    assert found["verdict"].score is None and found["verdict"].reason == UNUSABLE


# ------------------------------------------------------------------------------------------ names


def test_a_name_changes_with_any_byte_though_size_and_time_stay(folder):
    file = folder / "model.safetensors"
    now = file.stat()
    os.utime(file, ns=(now.st_atime_ns, now.st_mtime_ns - 10**11))
    before = file.stat().st_mtime_ns
    names = {checkpoint_name(folder)}
    with file.open("r+b") as opened:
        opened.seek(-1, os.SEEK_END)
        last = opened.read(1)
        opened.seek(-1, os.SEEK_END)
        opened.write(bytes([last[0] ^ 1]))
    os.utime(file, ns=(before, before))
    names.add(checkpoint_name(folder))
    (folder / "tokenizer.model.v3").write_bytes(b"x")
    names.add(checkpoint_name(folder))
    assert len(names) == 3


@pytest.mark.parametrize("name", ["x" * 300, "a/" * 200 + "b", "~nobody/x/y"])
def test_names_that_the_system_refuses_are_names_of_nothing(name):
    for read in (checkpoint_name, load_causal_lm):
        with refuses("folder"):
            read(name)
