"""Adapters do what their file says, or they are refused in one sentence."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from chat.tiny_causal import causal_tokenizer, saved, tiny_llama
from hub.test_target_folders import edited, retensored
from peft import LoraConfig, get_peft_model
from refusals import refuses
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel

from mosa.chat.weights import load_causal_lm
from mosa.families import load_model

IDS = torch.tensor([[5, 9, 200, 17, 3, 44]])
CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
Q = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"


@pytest.fixture(scope="module")
def made(new_tiny_llada, tmp_path_factory) -> tuple[Path, Path]:
    """A base and an adapter of rank 4 that changes its answers."""
    place = tmp_path_factory.mktemp("made")
    model = new_tiny_llada()
    model.save(place / "base")
    model.add_lora(LoraConfig(r=4, lora_alpha=8))
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.network.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    model.save_adapter(place / "adapter")
    return place / "base", place / "adapter"


@pytest.fixture
def pair(made, tmp_path) -> tuple[Path, Path]:
    """The base, and an adapter to spoil."""
    return made[0], Path(shutil.copytree(made[1], tmp_path / "adapter"))


def logits(base: Path, adapter: Path | None = None) -> torch.Tensor:
    return load_model(base, adapter=adapter, device="cpu").logits(IDS)


def set_to(adapter: Path, **fields: Any) -> None:
    edited(adapter / CONFIG, lambda settings: settings.update(fields))


NOT_MADE: dict[str, Any] = {
    "alora_invocation_tokens": [1, 2],
    "arrow_config": {"top_k": 1},
    "corda_config": {"corda_method": "ipm"},
    "eva_config": {"rho": 2.0},
    "loftq_config": {"loftq_bits": 4},
    "lora_ga_config": {"direction": "ArB2r"},
    "layer_replication": [[0, 1]],
    "trainable_token_indices": [1],
    "target_parameters": ["x"],
    "megatron_config": {"a": 1},
    "megatron_core": "antigravity",
    "use_qalora": True,
    "runtime_config": {"ephemeral_gpu_offload": True},
    "init_lora_weights": "pissa",
    "of_the_future": {"a": 1},
}


@pytest.mark.parametrize("name", NOT_MADE)
def test_a_setting_whose_effect_is_not_made_is_refused(pair, name):
    base, adapter = pair
    set_to(adapter, **{name: NOT_MADE[name]})
    with refuses(CONFIG, name):
        load_model(base, adapter=adapter)


def test_settings_without_effect_may_stand(pair):
    base, adapter = pair
    before = logits(base, adapter)
    empty = {"alora_invocation_tokens": None, "arrow_config": None, "loftq_config": {}}
    set_to(adapter, **empty, of_the_future=None, layer_replication=[], init_lora_weights=False)
    assert torch.equal(logits(base, adapter), before)
    assert not torch.equal(logits(base), before)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("lora_alpha", value) for value in (0, -1, True, "", None, "8", 1e9, [])),
        *(("r", value) for value in (0, -4, True, "8", None, [], 4.0, 10**9)),
        ("rank_pattern", {"q_proj": "x"}),
        ("rank_pattern", {"q_proj": 3}),
        ("rank_pattern", [1]),
        ("alpha_pattern", {"q_proj": 0}),
        ("alpha_pattern", {"q_proj": True}),
        ("alpha_pattern", 1),
        ("target_modules", 0),
        ("target_modules", True),
        ("target_modules", 1.5),
        ("target_modules", [1]),
        ("exclude_modules", 7),
        ("modules_to_save", 7),
        ("use_rslora", 1),
        ("use_dora", "yes"),
        ("fan_in_fan_out", 1),
        ("lora_bias", "false"),
        ("ensure_weight_tying", 1),
        ("bias", "some"),
        ("bias", True),
        *(("bias", value) for value in ("all", "lora_only")),  # of the target itself
    ],
    ids=str,
)
def test_values_of_the_wrong_kind_name_their_field(pair, name, value):
    base, adapter = pair
    set_to(adapter, **{name: value})
    with refuses(CONFIG, name):
        load_model(base, adapter=adapter)


@pytest.mark.parametrize("digits", ["Infinity", "NaN", "1e999"])
def test_numbers_that_are_not_finite_are_no_json(pair, digits):
    base, adapter = pair
    set_to(adapter, lora_alpha="HERE")
    file = adapter / CONFIG
    file.write_text(file.read_text().replace('"HERE"', digits))
    with refuses(file):
        load_model(base, adapter=adapter)


@pytest.mark.parametrize(
    "fields",
    [
        {"modules_to_save": ["lm_head"]},
        {"target_modules": []},
        {"target_modules": None},
        {"target_modules": "nothing"},
        {"task_type": [1]},
        {"lora_dropout": "x"},
        {"layers_to_transform": "x"},
        {"layers_to_transform": [0]},
        {"exclude_modules": ["q_proj"]},
        {"use_dora": True},
        {"r": 8},
        {"rank_pattern": {"nothing": 4}, "r": 2},
    ],
    ids=str,
)
def test_what_does_not_fit_the_tensors_is_refused(pair, fields):
    base, adapter = pair
    set_to(adapter, **fields)
    with refuses("adapter"):
        load_model(base, adapter=adapter)


@pytest.mark.parametrize("pattern", ["(([a-z_.0-9]+)+)+!", "("])
@pytest.mark.parametrize("field", ["target_modules", "exclude_modules", "rank_pattern"])
def test_patterns_that_cannot_be_matched_are_refused(pair, pattern, field):
    base, adapter = pair
    set_to(adapter, **{field: {pattern: 4} if field == "rank_pattern" else pattern})
    with refuses("adapter"):
        load_model(base, adapter=adapter)


def test_a_plain_pattern_is_read(pair):
    base, adapter = pair
    before = logits(base, adapter)
    set_to(adapter, target_modules=r".*\.(self_attn|mlp)\.[a-z]+_proj")
    assert torch.equal(logits(base, adapter), before)


def test_a_pattern_of_scales_counts(pair):
    base, adapter = pair
    before = logits(base, adapter)
    set_to(adapter, alpha_pattern={"layers.0.self_attn.q_proj": 80})
    assert not torch.equal(logits(base, adapter), before)


@pytest.mark.parametrize("fields", [{"fan_in_fan_out": True}, {"ensure_weight_tying": True}])
def test_settings_that_change_nothing_here(pair, fields):
    base, adapter = pair
    before = logits(base, adapter)
    set_to(adapter, **fields)
    assert torch.equal(logits(base, adapter), before)


@pytest.mark.parametrize(
    "fields",
    [
        {"lora_alpha": 1e-300},
        {"lora_alpha": 1e-30},
        {"alpha_pattern": {".*": 1e-300}},
    ],
    ids=str,
)
def test_an_adapter_whose_scale_vanishes_is_refused(pair, fields):
    """The base would answer, under the adapter's name."""
    base, adapter = pair
    set_to(adapter, **fields)
    with refuses(adapter, "changes nothing"):
        load_model(base, adapter=adapter)


@pytest.mark.parametrize("part", ["lora_A", "lora_B"])
def test_an_adapter_that_was_not_trained_is_refused(pair, part):
    base, adapter = pair
    retensored(
        adapter / TENSORS, lambda tensors: [tensors[n].zero_() for n in tensors if part in n]
    )
    with refuses(adapter, "changes nothing"):
        load_model(base, adapter=adapter)


@pytest.mark.parametrize(
    "fields", [{"lora_alpha": 1e5}, {"alpha_pattern": {"q_proj": 1e6}}], ids=str
)
def test_a_scale_beyond_all_measure_is_refused(pair, fields):
    base, adapter = pair
    set_to(adapter, **fields)
    with refuses(CONFIG, *fields):
        load_model(base, adapter=adapter)


@pytest.mark.parametrize("alpha", [1e-3, 0.5, 1000])
def test_unusual_scales_are_as_they_say(pair, alpha):
    base, adapter = pair
    set_to(adapter, lora_alpha=alpha)
    network: Any = load_model(base, adapter=adapter, device="cpu").network
    assert network.get_submodule(Q.partition(".lora_B")[0]).scaling["default"] == alpha / 4


# -------------------------------------------------------------------------------------- tensors


def test_numbers_that_the_adapters_format_cannot_hold_are_named(pair):
    base, adapter = pair
    retensored(adapter / TENSORS, lambda tensors: tensors.update({Q: tensors[Q].double() * 1e300}))
    with refuses(Q, adapter / TENSORS) as caught:
        load_model(base, adapter=adapter)
    assert "or float32" not in str(caught.value)


@pytest.mark.parametrize(
    "kind", [torch.int32, torch.int64, torch.int8, torch.bool, torch.float8_e4m3fn]
)
def test_tensors_of_other_kinds_are_named(pair, kind):
    base, adapter = pair
    retensored(adapter / TENSORS, lambda tensors: tensors.update({Q: tensors[Q].to(kind)}))
    with refuses(Q):
        load_model(base, adapter=adapter)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_tensors_that_are_no_numbers_are_named(pair, value):
    base, adapter = pair
    retensored(adapter / TENSORS, lambda tensors: tensors[Q].fill_(value))
    with refuses(Q):
        load_model(base, adapter=adapter)


def test_weights_so_large_that_nothing_is_chosen_are_no_answer(pair):
    """Finite, as a training that blew up leaves them; every logit is then the same."""
    base, adapter = pair
    retensored(adapter / TENSORS, lambda tensors: [t.fill_(1e30) for t in tensors.values()])
    with refuses("logits"):
        logits(base, adapter)


def released(made: tuple[Path, Path], place: Path) -> Path:
    """The adapter as the authors' own code would have saved it."""
    base, adapter = made
    shutil.copytree(adapter, place)
    name_of = load_model(base, device="cpu").family.released_name
    tensors = load_file(place / TENSORS)
    save_file({name_of(name): tensor for name, tensor in tensors.items()}, place / TENSORS)
    targets = ["q_proj", "k_proj", "v_proj", "attn_out", "ff_proj", "up_proj", "ff_out"]
    set_to(place, target_modules=targets)
    return place


def test_an_adapter_of_the_authors_code_is_read(made, tmp_path):
    adapter = released(made, tmp_path / "theirs")
    names = load_file(adapter / TENSORS)
    assert "base_model.model.model.transformer.blocks.0.ff_out.lora_A.weight" in names
    assert torch.equal(logits(made[0], adapter), logits(*made))


def test_a_part_of_such_an_adapter_is_refused(made, tmp_path):
    adapter = released(made, tmp_path / "theirs")
    gone = "base_model.model.model.transformer.blocks.0.ff_out.lora_A.weight"
    retensored(adapter / TENSORS, lambda tensors: tensors.pop(gone))
    with refuses("theirs"):
        load_model(made[0], adapter=adapter)


# --------------------------------------------------------------------------------- chat models


@pytest.fixture(scope="module")
def chat_pair(tmp_path_factory) -> tuple[Path, Path]:
    place = tmp_path_factory.mktemp("chat")
    tokenizer = causal_tokenizer()
    base = saved(place / "base", tiny_llama(tokenizer), tokenizer)
    config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    network = get_peft_model(tiny_llama(tokenizer), config)
    network.save_pretrained(place / "lora")
    settings = json.loads((place / "lora" / CONFIG).read_text())
    settings["base_model_name_or_path"] = str(base)
    (place / "lora" / CONFIG).write_text(json.dumps(settings))
    return base, place / "lora"


MADE: dict[str, dict[str, Any]] = {
    "all biases": {"bias": "all"},
    "their biases": {"bias": "lora_only"},
    "own biases": {"lora_bias": True},
    "transposed": {"fan_in_fan_out": True, "target_modules": ["c_attn"]},
    "embedding": {"target_modules": ["wte"]},
    "embedding and more": {"target_modules": ["wte", "c_proj"], "bias": "all"},
    "tied": {"modules_to_save": ["wte"], "ensure_weight_tying": True},
}


@pytest.mark.parametrize("fields", MADE.values(), ids=MADE.keys())
@pytest.mark.filterwarnings("ignore:.*:UserWarning")
def test_adapters_that_peft_makes_are_read_as_peft_reads_them(tmp_path, fields):
    """A GPT-2 has biases and transposed matrices, and its head is its embedding."""
    tokenizer = causal_tokenizer()
    torch.manual_seed(0)
    small: dict[str, Any] = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64}
    ids: dict[str, Any] = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
    base = GPT2LMHeadModel(GPT2Config(**ids, **small))
    base.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    settings = LoraConfig(**{"r": 2, "target_modules": ["c_attn"], **fields})
    made = get_peft_model(base, settings)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape))
    made.save_pretrained(tmp_path / "lora")
    set_to(tmp_path / "lora", base_model_name_or_path=str(tmp_path / "base"))
    read = load_causal_lm(tmp_path / "lora", device="cpu")
    torch.testing.assert_close(read.network(IDS).logits, made.eval()(IDS).logits)


@pytest.mark.parametrize(
    "fields",
    [
        {"alora_invocation_tokens": [1]},
        {"lora_alpha": 0},
        {"r": "8"},
        {"target_modules": "((x+)+)+!"},
        {"modules_to_save": ["lm_head"]},
        {"base_model_name_or_path": None},
        {"base_model_name_or_path": "x" * 300},
    ],
    ids=str,
)
def test_adapters_of_chat_models_are_read_alike(chat_pair, tmp_path, fields):
    adapter = Path(shutil.copytree(chat_pair[1], tmp_path / "lora"))
    set_to(adapter, **fields)
    with refuses(
        "folder"
        if "base_model_name_or_path" in fields and fields["base_model_name_or_path"]
        else "lora"
    ):
        load_causal_lm(adapter, device="cpu")


def test_a_chat_adapters_tensors_are_checked(chat_pair, tmp_path):
    adapter = Path(shutil.copytree(chat_pair[1], tmp_path / "lora"))
    (first, *_) = load_file(adapter / TENSORS)
    for change in (
        lambda tensors: tensors.update({first: tensors[first].to(torch.int8)}),
        lambda tensors: tensors.update({first: tensors[first].float().fill_(float("nan"))}),
        lambda tensors: tensors.pop(first),
    ):
        retensored(adapter / TENSORS, change)
        with refuses(first):
            load_causal_lm(adapter, device="cpu")
