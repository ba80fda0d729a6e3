"""Mixtures of experts: the released layout to the last bit, the library's own network, LoRA.

Beside the library's own reader of checkpoints, which stacks experts by itself.
"""

from __future__ import annotations

import json
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from refusals import refuses
from safetensors.torch import load_file, save_file
from tiny_models import (
    LLADA2_LAYOUT,
    LLADA_MOE_LAYOUT,
    SDAR_MOE_LAYOUT,
    VARIANTS,
    llada_tokenizer,
    randomised,
    role_tokenizer,
    tiny_llada_config,
)
from transformers import Glm4MoeConfig, Glm4MoeForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from mosa.alignment import MosaConfig, add_adapter
from mosa.families import FAMILIES, DiffusionLM, load_model, new_model
from mosa.hub.weights import Weights
from mosa.types import Message

IDS = torch.randint(0, 360, (3, 21), generator=torch.Generator().manual_seed(4))
LAYOUTS = {"llada_moe": LLADA_MOE_LAYOUT, "llada2": LLADA2_LAYOUT, "sdar_moe": SDAR_MOE_LAYOUT}
CASES = [
    pytest.param(name, config, id=f"{name}-{number}")
    for name in LAYOUTS
    for number, config in enumerate(VARIANTS[name])
]
ATTENTION = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"}
DENSE = {"mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"}
SHARED = {f"mlp.shared_experts.{name}_proj" for name in ("gate", "up", "down")}


def tiny(config: dict) -> DiffusionLM:
    return randomised(new_model(config, seed=2), 2)


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.fixture(params=LAYOUTS)
def model(request) -> DiffusionLM:
    return tiny(LAYOUTS[request.param])


@pytest.fixture
def folder(tmp_path) -> Path:
    """A checkpoint of LLaDA2 to spoil."""
    tiny(LLADA2_LAYOUT).save(tmp_path / "released")
    return tmp_path / "released"


# ------------------------------------------------------------------------------ the released layout


def released_names(config: dict) -> set[str]:
    """The tensors of a release, written down from the authors' files."""
    is_llada2 = config["model_type"] == "llada2_moe"
    names = {f"model.{'word_embeddings' if is_llada2 else 'embed_tokens'}.weight"}
    names |= {"model.norm.weight"} | (
        set() if config.get("tie_word_embeddings") else {"lm_head.weight"}
    )
    if is_llada2:
        attention = {"attention.query_key_value", "attention.dense"}
        attention |= {"attention.query_layernorm", "attention.key_layernorm"}
    else:
        attention = ATTENTION | {"self_attn.q_norm", "self_attn.k_norm"}
    for layer in range(config["num_hidden_layers"]):
        mlp = {f"mlp.experts.{n}.{m}" for n in range(config["num_experts"]) for m in PARTS}
        mlp |= {"mlp.gate"} | ({f"mlp.shared_experts.{m}" for m in PARTS} if is_llada2 else set())
        is_dense = layer < config.get("first_k_dense_replace", 0)
        if is_dense or config.get("moe_layer_freq", [1] * 9)[layer] == 0:
            mlp = DENSE
        norms = {"input_layernorm", "post_attention_layernorm"}
        names |= {f"model.layers.{layer}.{part}.weight" for part in attention | mlp | norms}
        if is_llada2 and not is_dense:
            names.add(f"model.layers.{layer}.mlp.gate.expert_bias")
    return names


PARTS = ("gate_proj", "up_proj", "down_proj")


@pytest.mark.parametrize(("name", "config"), CASES)
def test_a_checkpoint_has_the_names_of_the_release_and_comes_back_bit_for_bit(
    name, config, tmp_path
):
    """Also in bfloat16, beside which the router's bias is in float32, and in several files."""
    tiny(config).save(tmp_path / "first")
    first = tensors_of(tmp_path / "first")
    assert set(first) == released_names(config)
    stored = {n: t if n.endswith("expert_bias") else t.bfloat16() for n, t in first.items()}
    save_file(stored, tmp_path / "first" / "model.safetensors", metadata={"format": "pt"})
    loaded = load_model(tmp_path / "first", device="cpu")
    assert loaded.family is FAMILIES[name] and loaded.dtype == torch.bfloat16
    loaded.save(tmp_path / "second", max_shard_size="40KB")
    index = json.loads((tmp_path / "second" / "model.safetensors.index.json").read_text())
    second = {}
    for file in set(index["weight_map"].values()):
        second |= load_file(tmp_path / "second" / file)
    assert index["weight_map"].keys() == second.keys() == stored.keys()
    for tensor_name, tensor in stored.items():
        assert second[tensor_name].dtype == tensor.dtype
        assert torch.equal(second[tensor_name], tensor)
    load_model(tmp_path / "second", device="cpu").save(tmp_path / "third")
    assert all(torch.equal(stored[n], t) for n, t in tensors_of(tmp_path / "third").items())


@pytest.mark.parametrize(("name", "config"), CASES)
def test_the_librarys_own_network_and_reader_give_the_same_logits(name, config, tmp_path):
    model = tiny(config)
    model.save(tmp_path)
    tensors = tensors_of(tmp_path)
    copied = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    copied += ("num_experts_per_tok", "vocab_size")
    sizes: dict[str, Any] = {field: config[field] for field in copied}
    sizes |= {"tie_word_embeddings": config.get("tie_word_embeddings", False)}
    sizes |= {"head_dim": 8 if name == "llada_moe" else 16}
    sizes |= {"intermediate_size": 48, "moe_intermediate_size": 24}
    if name == "llada2":
        network = Glm4MoeForCausalLM
        rope = {"rope_type": "default", "rope_theta": config["rope_theta"]}
        library = Glm4MoeConfig(
            **sizes,
            first_k_dense_replace=config["first_k_dense_replace"],
            n_routed_experts=8,
            n_shared_experts=config["num_shared_experts"],
            n_group=4,
            topk_group=2,
            norm_topk_prob=config["num_experts_per_tok"] > 1,
            routed_scaling_factor=2.5,
            rms_norm_eps=1e-5,
            use_qk_norm=True,
            rope_parameters=rope
            | {"partial_rotary_factor": config.get("partial_rotary_factor", 0.5)},
        )
        tensors = _as_glm(tensors, 4 * 16, 2 * 16)
    else:
        network = Qwen3MoeForCausalLM
        is_llada = name == "llada_moe"
        dense = [n for n, mark in enumerate(config.get("moe_layer_freq", [])) if mark == 0]
        library = Qwen3MoeConfig(
            **sizes,
            num_experts=6,
            norm_topk_prob=config.get("norm_topk_prob", False),
            mlp_only_layers=dense,
            rms_norm_eps=1e-5 if is_llada else 1e-6,
            rope_parameters={"rope_type": "default", "rope_theta": 5e4 if is_llada else 1e6},
        )
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    library.save_pretrained(tmp_path)
    theirs = network.from_pretrained(tmp_path, attn_implementation="eager").eval()
    mask = model.attention.mask(torch.ones_like(IDS, dtype=torch.bool))
    hidden = torch.zeros(mask.shape).masked_fill_(~mask, torch.finfo(torch.float32).min)
    with torch.no_grad():
        ours = model.logits(IDS)
        expected = theirs(IDS, attention_mask=hidden).logits
        causal = theirs(IDS).logits
    torch.testing.assert_close(ours, expected, atol=2e-5, rtol=1e-5)
    assert (ours - causal).abs().max() > 0.1


def _as_glm(tensors: dict[str, torch.Tensor], queries: int, keys: int) -> dict[str, torch.Tensor]:
    """LLaDA2's tensors under GLM-4-MoE's names, with queries, keys and values apart."""
    renamed = {}
    for name, tensor in tensors.items():
        name = name.replace("word_embeddings", "embed_tokens").replace(".attention.", ".self_attn.")
        name = name.replace(".dense.", ".o_proj.").replace("expert_bias", "e_score_correction_bias")
        name = name.replace("query_layernorm", "q_norm").replace("key_layernorm", "k_norm")
        parts = {"": tensor}
        if "query_key_value" in name:
            cut = tensor.split([queries, keys, keys])
            parts = dict(zip(("q_proj", "k_proj", "v_proj"), cut, strict=True))
        renamed |= {
            name.replace("query_key_value", part): t.contiguous() for part, t in parts.items()
        }
    return renamed


def test_the_parts_of_a_stack_are_let_go_one_by_one(folder, monkeypatch):
    """While a tensor is read, the one before it may be there yet and no other part is."""
    alive: list[weakref.ref] = []
    most = 0
    original = Weights.each

    def watched(*args, **kwargs):
        nonlocal most
        for name, tensor in original(*args, **kwargs):
            if ".experts." in name:
                alive.append(weakref.ref(tensor))
            most = max(most, sum(reference() is not None for reference in alive))
            yield name, tensor

    monkeypatch.setattr(Weights, "each", watched)
    load_model(folder, device="cpu")
    assert len(alive) == 2 * 8 * 3 and most <= 2


def test_the_routers_bias_chooses_experts_and_keeps_its_format(folder):
    path = folder / "model.safetensors"
    name = "model.layers.1.mlp.gate.expert_bias"
    tensors = load_file(path)
    before = load_model(folder, device="cpu").logits(IDS)
    tensors[name] += torch.tensor([1000.0, 1000.0, 0, 0, 0, 0, 0, 0.0001])
    save_file(tensors, path, metadata={"format": "pt"})
    assert not torch.allclose(load_model(folder, device="cpu").logits(IDS), before, atol=1e-2)
    narrow = load_model(folder, device="cpu", dtype="bfloat16").network.state_dict()
    assert torch.equal(narrow["model.layers.1.mlp.gate.e_score_correction_bias"], tensors[name])


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.1.mlp.experts.7.up_proj.weight",
        "model.layers.2.mlp.experts.0.down_proj.weight",
        "model.layers.0.attention.query_key_value.weight",
        "model.layers.2.mlp.gate.expert_bias",
    ],
)
def test_what_is_wrong_with_a_tensor_is_said_by_its_released_name(folder, name):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    missing = {n: t for n, t in tensors.items() if n != name}
    for spoilt in (missing, tensors | {name: tensors[name][:-1].clone()}):
        save_file(spoilt, path, metadata={"format": "pt"})
        with refuses(name, "config.json"):
            load_model(folder, device="cpu")
    infinite = tensors | {name: torch.full_like(tensors[name], torch.inf)}
    save_file(infinite, path, metadata={"format": "pt"})
    with refuses(name, folder):
        load_model(folder, device="cpu")
    extra = name.replace("experts.7", "experts.8").replace("layers.0", "layers.3")
    save_file({**tensors, f"{extra}.more": torch.zeros(1)}, path, metadata={"format": "pt"})
    with refuses(f"{extra}.more", "config.json"):
        load_model(folder, device="cpu")


# ------------------------------------------------------------------------------------------ configs


def test_architectures_tell_families_of_one_model_type_apart():
    dense = tiny_llada_config(llada_tokenizer())
    assert new_model(dense, seed=0).family is FAMILIES["llada"]
    assert new_model(LLADA_MOE_LAYOUT, seed=0).family is FAMILIES["llada_moe"]
    unnamed = {**LLADA_MOE_LAYOUT, "model_type": "lladamoe"}
    del unnamed["architectures"]
    assert new_model(unnamed, seed=0).family is FAMILIES["llada_moe"]
    with refuses("LLaDA", "d_model"):
        new_model({**unnamed, "model_type": "llada"}, seed=0)


@pytest.mark.parametrize(
    ("layout", "fields"),
    [
        (LLADA_MOE_LAYOUT, {"clip_qkv": 8.0}),
        (LLADA_MOE_LAYOUT, {"shared_expert_intermediate_size": 24}),
        (LLADA_MOE_LAYOUT, {"moe_router_enable_expert_bias": True}),
        (LLADA_MOE_LAYOUT, {"qk_layernorm": False}),
        (LLADA_MOE_LAYOUT, {"moe_layer_freq": [1, 1]}),
        (LLADA_MOE_LAYOUT, {"moe_layer_freq": 1}),
        (LLADA_MOE_LAYOUT, {"moe_layer_freq": [1, 2, 1]}),
        (LLADA_MOE_LAYOUT, {"dense_intermediate_size": None}),
        (LLADA_MOE_LAYOUT, {"num_experts": 1, "num_experts_per_tok": 2}),
        (LLADA_MOE_LAYOUT, {"num_experts": 10**7}),
        (LLADA2_LAYOUT, {"expert_capacity": 2}),
        (LLADA2_LAYOUT, {"delete_token_id": 7}),
        (LLADA2_LAYOUT, {"split_token_id": 7}),
        (LLADA2_LAYOUT, {"use_bias": True}),
        (LLADA2_LAYOUT, {"use_qkv_bias": True}),
        (LLADA2_LAYOUT, {"score_function": "softmax"}),
        (LLADA2_LAYOUT, {"num_shared_experts": 0}),
        (LLADA2_LAYOUT, {"n_group": 3, "num_experts": 8}),
        (LLADA2_LAYOUT, {"topk_group": 1}),
        (LLADA2_LAYOUT, {"n_group": 8}),
        (LLADA2_LAYOUT, {"partial_rotary_factor": 0.2, "head_dim": 16}),
        (LLADA2_LAYOUT, {"first_k_dense_replace": 4}),
        (LLADA2_LAYOUT, {"block_size": 0}),
        (SDAR_MOE_LAYOUT, {"mlp_only_layers": [0]}),
        (SDAR_MOE_LAYOUT, {"decoder_sparse_step": 2}),
        (SDAR_MOE_LAYOUT, {"norm_topk_prob": None}),
    ],
    ids=lambda value: str(list(value.items())[:1]) if len(value) < 3 else value["model_type"],
)
def test_what_would_change_the_network_is_refused_by_name(layout, fields):
    with refuses("config.json", *fields):
        new_model({**layout, **fields}, seed=0)


def test_ids_and_blocks_that_releases_leave_out_are_those_of_the_authors():
    kept = {n: v for n, v in LLADA2_LAYOUT.items() if n not in ("block_size", "mask_token_id")}
    model = new_model({**kept, "vocab_size": 157184}, seed=0)
    assert (model.attention.block_length, model.mask_token_id) == (32, 156895)
    kept = {n: v for n, v in SDAR_MOE_LAYOUT.items() if n != "block_size"}
    assert new_model(kept, seed=0).attention.block_length == 4
    llada = {n: v for n, v in LLADA_MOE_LAYOUT.items() if not n.endswith("_token_id")}
    model = new_model({**llada, "vocab_size": 157184}, seed=0)
    assert (model.mask_token_id, model.eos_token_id) == (156895, 156892)


def test_turns_are_marked_by_roles():
    turns = [Message("system", "Be kind."), Message("user", "How are you?")]
    tokenizer = role_tokenizer()
    texts = []
    for layout in (LLADA_MOE_LAYOUT, LLADA2_LAYOUT):
        model = new_model(layout, tokenizer, seed=0)
        texts += [model.decode(model.encode(t), skip_special_tokens=False) for t in (turns, "Hi")]
        vocabulary = tokenizer.get_vocab()
        assert model.end_token_ids == (vocabulary["<|endoftext|>"], vocabulary["<|role_end|>"])
    human = "<role>HUMAN</role>How are you?<|role_end|><role>ASSISTANT</role>"
    thinking = "detailed thinking off<|role_end|>"
    assert texts == [
        f"<role>SYSTEM</role>Be kind.<|role_end|>{human}",
        "<role>HUMAN</role>Hi<|role_end|><role>ASSISTANT</role>",
        f"<role>SYSTEM</role>Be kind.\n{thinking}{human}",
        f"<role>SYSTEM</role>{thinking}<role>HUMAN</role>Hi<|role_end|><role>ASSISTANT</role>",
    ]


# --------------------------------------------------------------------------------------------- LoRA


def adapted(model: DiffusionLM) -> set[str]:
    """Paths below the layers of what has a pair of matrices."""
    suffix = ".lora_A.default.weight"
    names = [
        n.split("layers.")[1].split(".", 1)[1]
        for n, _ in model.network.named_parameters()
        if n.endswith(suffix)
    ]
    return {name.removesuffix(suffix) for name in names}


def test_lora_leaves_routed_experts_alone_unless_asked(model):
    linear = ATTENTION | {"LLaDA-MoE": DENSE, "LLaDA2": DENSE | SHARED}.get(
        model.family.name, set()
    )
    assert set(model.lora_target_modules) == linear
    base = model.logits(IDS)
    model.add_lora(LoraConfig(r=2))
    assert adapted(model) == linear
    again = tiny(model.config)
    config = MosaConfig(output_dir="", lora_r=2, lora_alpha=4, lora_experts=True)
    add_adapter(again, config)
    # The two parameters of a stack have a wrapper each, one around the other.
    assert adapted(again) == linear | {"mlp.experts", "mlp.experts.base_layer"}
    assert torch.equal(again.logits(IDS), base)
    trained = [n for n, p in again.network.named_parameters() if p.requires_grad]
    assert trained and all("lora_" in n for n in trained)
    with torch.no_grad():
        for name, parameter in again.network.named_parameters():
            if "experts" in name and "lora_B" in name:
                parameter.fill_(0.1)
    assert not torch.allclose(again.logits(IDS), base, atol=1e-2)
    with again.adapter_disabled():
        assert torch.equal(again.logits(IDS), base)


def test_each_expert_has_a_pair_of_its_own(model):
    """Only the rows of the expert whose pair is not zero change, by the product of the two."""
    model.add_lora(LoraConfig(r=2, lora_alpha=4), experts=True)
    layer = model.network.get_base_model().model.layers[-1]
    outer = layer.mlp.experts
    name = outer.parameter_name
    before = outer.get_param().detach().clone()
    first = outer.lora_A["default"].weight.detach().unflatten(0, (len(before), 2))
    second = outer.lora_B["default"].weight.detach().unflatten(1, (2, len(before)))
    with torch.no_grad():
        second[:, :, 3] = torch.randn(second.shape[:2], generator=torch.Generator().manual_seed(1))
    change = torch.zeros_like(before)
    change[3] = second[:, :, 3] @ first[3] * 2
    model.merge_adapter()
    merged = getattr(model.network.model.layers[-1].mlp.experts, name)
    assert change[3].abs().max() > 0.01
    torch.testing.assert_close(merged.detach(), before + change, atol=1e-6, rtol=0)


def test_an_adapter_with_experts_is_saved_loaded_and_merged(model, tmp_path):
    model.save(tmp_path / "base")
    model.add_lora(LoraConfig(r=3, init_lora_weights=False), experts=True)
    logits = model.logits(IDS)
    model.save_adapter(tmp_path / "adapter")
    again = load_model(tmp_path / "base", adapter=tmp_path / "adapter", device="cpu")
    assert torch.equal(again.logits(IDS), logits)
    assert (
        again.content_hash()
        == load_model(tmp_path / "base", adapter=tmp_path / "adapter", device="cpu").content_hash()
    )
    again.merge_adapter()
    torch.testing.assert_close(again.logits(IDS), logits, atol=2e-5, rtol=1e-5)
    again.save(tmp_path / "merged")
    assert tensors_of(tmp_path / "merged").keys() == tensors_of(tmp_path / "base").keys()
    merged = load_model(tmp_path / "merged", device="cpu")
    assert torch.equal(merged.logits(IDS), again.logits(IDS))


def test_gradients_reach_the_experts_pairs_with_checkpointing_too(model):
    model.add_lora(LoraConfig(r=2, init_lora_weights=False), experts=True)
    model.network.train()

    def gradients() -> dict[str, torch.Tensor]:
        model.network.zero_grad()
        model.logits(IDS).logsumexp(-1).sum().backward()
        found = {
            n: p.grad.clone() for n, p in model.network.named_parameters() if p.grad is not None
        }
        assert all("lora_" in name for name in found)
        assert any(".experts." in name and grad.any() for name, grad in found.items())
        return found

    plain = gradients()
    model.network.gradient_checkpointing_enable({"use_reentrant": False})
    for name, gradient in gradients().items():
        torch.testing.assert_close(gradient, plain[name], atol=1e-4, rtol=1e-4)


def test_what_cannot_be_adapted_is_refused(model, tiny_llada):
    with refuses("lora_experts"):
        tiny_llada.add_lora(LoraConfig(r=2), experts=True)
    settings: dict[str, Any] = {"lora_dropout": 0.1, "use_dora": True, "lora_bias": True}
    for name, value in settings.items():
        with refuses(name, "experts"):
            model.add_lora(LoraConfig(r=2, **{name: value}), experts=True)
    with refuses("target_parameters"):
        model.add_lora(LoraConfig(r=2, target_parameters=["mlp.experts.down_proj"]))
    assert not model.has_adapter and not tiny_llada.has_adapter


def test_adapters_of_experts_that_do_not_fit_are_refused(tmp_path):
    model = tiny(SDAR_MOE_LAYOUT)
    model.save(tmp_path / "base")
    model.add_lora(LoraConfig(r=3, init_lora_weights=False), experts=True)
    model.save_adapter(tmp_path / "adapter")
    tiny({**SDAR_MOE_LAYOUT, "num_experts": 4}).save(tmp_path / "other")
    with refuses("adapter", "model"):
        load_model(tmp_path / "other", adapter=tmp_path / "adapter", device="cpu")
    path = tmp_path / "adapter" / "adapter_config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps({**settings, "target_parameters": "mlp.experts.down_proj"}))
    with refuses("target_parameters"):
        load_model(tmp_path / "base", adapter=tmp_path / "adapter", device="cpu")
