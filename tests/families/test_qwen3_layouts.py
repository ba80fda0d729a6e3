"""A2D and SDAR: what their releases leave out of config.json, and what they hold."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from refusals import refuses
from safetensors import safe_open
from tiny_models import byte_tokenizer, qwen3_layout, randomised

from mosa.families import load_model, new_model
from mosa.families.attention import FULL, AttentionPattern
from mosa.types import Message

SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
A2D = qwen3_layout(model_type="a2d-qwen3")
SDAR = qwen3_layout(model_type="sdar")


def without(layout: dict, *names: str) -> dict:
    return {name: value for name, value in layout.items() if name not in names}


def qwen_tokenizer(**settings):
    """Without a mask, as the network's own releases have it."""
    return byte_tokenizer(SPECIALS, eos_token="<|im_end|>", pad_token="<|endoftext|>", **settings)


def saved(layout: dict, folder: Path) -> Path:
    """A checkpoint whose config.json is as released: without what the loader fills in."""
    tokenizer = qwen_tokenizer()
    vocabulary = tokenizer.get_vocab()
    layout = {**layout, "eos_token_id": vocabulary["<|im_end|>"]}
    layout["pad_token_id"] = vocabulary["<|endoftext|>"]
    randomised(new_model(layout, tokenizer, seed=0), 0).save(folder)
    file = folder / "config.json"
    config = without(json.loads(file.read_text()), "mask_token_id", "block_size")
    file.write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("Qwen3-0.6B-diffusion-mdlm-v0.1", FULL),
        ("Qwen3-0.6B-diffusion-bd3lm-v0.1", AttentionPattern(32, "response")),
    ],
)
def test_the_two_kinds_of_a2d_are_told_by_name(tmp_path, name, pattern):
    """And the mask is the next token of the tokenizer, where it has none; both are saved."""
    model = load_model(saved(without(A2D, "mask_token_id"), tmp_path / name))
    assert model.attention == pattern
    assert model.tokenizer is not None
    assert model.tokenizer.convert_ids_to_tokens(model.mask_token_id) == "<|mask|>"
    assert model.decode([model.mask_token_id], skip_special_tokens=False) == "<|mask|>"
    model.save(tmp_path / "elsewhere")
    again = load_model(tmp_path / "elsewhere")
    assert again.attention == pattern and again.mask_token_id == model.mask_token_id


def test_a_folder_of_another_name_says_its_blocks_itself(tmp_path):
    folder = saved(without(A2D, "mask_token_id"), tmp_path / "mine")
    assert load_model(folder).attention == FULL
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "block_size": 8}))
    assert load_model(folder).attention == AttentionPattern(8, "response")


def test_a_mask_that_nobody_names():
    with refuses("mask_token_id", "tokenizer"):
        new_model(without(SDAR, "mask_token_id"), seed=0)


def test_the_mask_of_the_tokenizer_counts():
    tokenizer = byte_tokenizer([*SPECIALS, "<|MASK|>"], mask_token="<|MASK|>")
    layout = without(SDAR, "mask_token_id", "pad_token_id")
    layout["eos_token_id"] = tokenizer.get_vocab()["<|im_end|>"]
    model = new_model(layout, tokenizer, seed=0)
    assert model.mask_token_id == tokenizer.get_vocab()["<|MASK|>"]
    assert model.attention == AttentionPattern(4)


def test_end_of_text_pads_and_the_turn_has_its_own_end():
    """Although config.json has the turn's end as `eos_token_id`."""
    tokenizer = qwen_tokenizer()
    vocabulary = tokenizer.get_vocab()
    layout = {**without(A2D, "mask_token_id"), "eos_token_id": vocabulary["<|im_end|>"]}
    layout["pad_token_id"] = vocabulary["<|endoftext|>"]
    model = new_model(layout, tokenizer, seed=0)
    assert model.eos_token_id == vocabulary["<|endoftext|>"] == model.pad_token_id
    assert model.turn_end_token_id == vocabulary["<|im_end|>"]


def test_thoughts_are_off():
    """In the fallback template, and in a tokenizer's own that asks for it."""
    own = (
        "{% for m in messages %}<|im_start|>{{ m.role }} {{ m.content }}<|im_end|>{% endfor %}"
        "<|im_start|>assistant{% if enable_thinking is defined and enable_thinking is false %}"
        "<think></think>{% endif %}"
    )
    for template, expected in (
        (None, "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"),
        (own, "<|im_start|>user Hi<|im_end|><|im_start|>assistant<think></think>"),
    ):
        tokenizer = qwen_tokenizer(chat_template=template)
        layout = {**without(A2D, "mask_token_id", "pad_token_id")}
        layout["eos_token_id"] = tokenizer.get_vocab()["<|im_end|>"]
        model = new_model(layout, tokenizer, seed=0)
        ids = model.encode([Message("user", "Hi")])
        assert model.decode(ids, skip_special_tokens=False) == expected


def test_tensors_keep_the_networks_names(tmp_path):
    new_model(SDAR, seed=0).save(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        names = set(file.keys())
    assert {"model.layers.0.self_attn.q_norm.weight", "lm_head.weight"} <= names


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {"layer_types": ["full_attention", "sliding_attention"]},
            ("layer_types", "sliding_attention"),
        ),
        ({"head_dim": 15}, ("head_dim", "even")),
        ({"num_key_value_heads": 3}, ("num_key_value_heads", "divide")),
        ({"attention_bias": True}, ("attention_bias",)),
        ({"block_size": 0}, ("block_size",)),
        ({"block_size": 4096}, ("block_size", "512")),
        ({"architectures": ["Other"]}, ("architectures",)),
    ],
)
def test_what_is_not_built_is_refused(fields, words):
    for layout in (A2D, SDAR):
        with refuses(*words):
            new_model({**layout, **fields}, seed=0)
