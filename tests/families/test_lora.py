"""LoRA: what it adapts, that it can be taken off, and that it can be merged for good."""

from __future__ import annotations

import json
import shutil
import warnings

import pytest
import torch
from peft import LoraConfig
from refusals import refuses
from safetensors.torch import load_file, save_file

from mosa.families import load_model

IDS = torch.tensor([[5, 9, 200, 17, 3, 44], [1, 2, 3, 4, 5, 6]])
SEVEN = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


@pytest.fixture(params=["llada", "dream"])
def model(request, new_tiny_llada, new_tiny_dream):
    return {"llada": new_tiny_llada, "dream": new_tiny_dream}[request.param]()


def adapted_modules(model) -> set[str]:
    """The paths of the adapted modules, seen on the network itself."""
    suffix = ".lora_A.default.weight"
    names = [n for n, _ in model.network.named_parameters() if n.endswith(suffix)]
    return {n.removeprefix("base_model.model.").removesuffix(suffix) for n in names}


def trained(model, seed: int = 0, **settings):
    """The model with an adapter that does something."""
    model.add_lora(LoraConfig(r=4, lora_alpha=8, **settings))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.network.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


def test_by_default_all_seven_projections_of_every_layer_and_nothing_else(model):
    assert {name.split(".")[-1] for name in model.lora_target_modules} == SEVEN
    model.add_lora(LoraConfig(r=2))
    modules = adapted_modules(model)
    assert len(modules) == 2 * 7
    assert all(path.startswith("model.layers.") for path in modules)
    assert {path.split(".")[-1] for path in modules} == SEVEN
    trainable = {n for n, p in model.network.named_parameters() if p.requires_grad}
    assert trainable and all("lora_" in name for name in trainable)


def test_other_targets_are_refused(model):
    with refuses("target_modules"):
        model.add_lora(LoraConfig(r=2, target_modules=["q_proj"]))
    assert not model.has_adapter


def test_the_callers_config_is_not_changed(model):
    config = LoraConfig(r=2)
    model.add_lora(config)
    assert config.target_modules is None


def test_a_fresh_adapter_changes_nothing_and_disabled_equals_base(model):
    base = model.logits(IDS)
    model.add_lora(LoraConfig(r=4))
    assert torch.equal(model.logits(IDS), base)
    with torch.no_grad():
        for name, parameter in model.network.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.05)
    assert not torch.allclose(model.logits(IDS), base, atol=1e-2)
    with model.adapter_disabled():
        assert torch.equal(model.logits(IDS), base)
    assert not torch.allclose(model.logits(IDS), base, atol=1e-2)


def test_attention_stays_full_under_the_adapter(model):
    """The last token must still reach the first position through the wrapped network."""
    trained(model)
    other = IDS.clone()
    other[:, -1] = 77
    assert (model.logits(IDS)[:, 0] - model.logits(other)[:, 0]).abs().max() > 1e-3


def test_disabling_leaves_a_frozen_adapter_frozen_and_a_training_one_training(model, tmp_path):
    base_folder, adapter_folder = tmp_path / "base", tmp_path / "adapter"
    model.save(base_folder)
    trained(model).save_adapter(adapter_folder)
    with model.adapter_disabled():
        pass
    trainable = {n for n, p in model.network.named_parameters() if p.requires_grad}
    assert trainable and all("lora_" in n for n in trainable)
    frozen = load_model(base_folder, adapter=adapter_folder, device="cpu")
    with frozen.adapter_disabled():
        pass
    assert not any("lora_" in n and p.requires_grad for n, p in frozen.network.named_parameters())


def test_disabling_survives_an_error_and_a_model_without_adapter(model):
    with model.adapter_disabled():
        base = model.logits(IDS)
    trained(model)
    adapted = model.logits(IDS)
    with pytest.raises(RuntimeError, match="inside"), model.adapter_disabled():
        raise RuntimeError("inside")
    assert torch.equal(model.logits(IDS), adapted) and not torch.equal(adapted, base)


def test_gradients_reach_the_adapter_alone_with_checkpointing_too(model):
    trained(model)
    model.network.train()

    def gradients():
        model.network.zero_grad()
        model.logits(IDS, positions=torch.tensor([2, 3])).logsumexp(-1).sum().backward()
        with model.adapter_disabled(), torch.no_grad():
            model.logits(IDS)
        grads = {n: p.grad for n, p in model.network.named_parameters() if p.grad is not None}
        assert all("lora_" in name for name in grads) and len(grads) == 28
        return {name: grad.clone() for name, grad in grads.items()}

    plain = gradients()
    model.network.gradient_checkpointing_enable({"use_reentrant": False})
    for name, gradient in gradients().items():
        torch.testing.assert_close(gradient, plain[name], atol=1e-5, rtol=1e-5)


def test_a_saved_adapter_loads_again(model, tmp_path):
    model.save(tmp_path / "base")
    trained(model).save_adapter(tmp_path / "adapter")
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == model.source
    stored = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert len(stored) == 28 and all("lora_" in name for name in stored)
    again = load_model(tmp_path / "base", adapter=tmp_path / "adapter", device="cpu")
    assert torch.equal(again.logits(IDS), model.logits(IDS))


def test_merged_equals_adapted_and_the_saved_merge_reloads_equal(model, tmp_path):
    adapted = trained(model).logits(IDS)
    with refuses("merge_adapter", "save_adapter"):
        model.save(tmp_path)
    model.merge_adapter()
    merged = model.logits(IDS)
    torch.testing.assert_close(merged, adapted, atol=2e-5, rtol=0)
    model.save(tmp_path)
    loaded = load_model(tmp_path, device="cpu")
    assert torch.equal(loaded.logits(IDS), merged)
    assert all(p.requires_grad for p in model.network.parameters())


def test_adapters_of_tied_and_enlarged_models_hold_no_embedding(new_tiny_llada, tmp_path):
    for number, fields in enumerate([{"weight_tying": True}, {"new_vocab_size": 448}]):
        model = new_tiny_llada(**fields)
        model.save(tmp_path / f"base{number}")
        model = load_model(tmp_path / f"base{number}", device="cpu")
        trained(model).save_adapter(tmp_path / f"adapter{number}")
        stored = load_file(tmp_path / f"adapter{number}" / "adapter_model.safetensors")
        assert all("lora_" in name for name in stored)
        model.merge_adapter()
        model.save(tmp_path / f"merged{number}")
        assert torch.equal(
            load_model(tmp_path / f"merged{number}", device="cpu").logits(IDS), model.logits(IDS)
        )


def test_one_adapter_at_a_time_and_none_to_merge(model, tmp_path):
    with refuses("adapter", "add_lora"):
        model.merge_adapter()
    with refuses("adapter", "add_lora"):
        model.save_adapter(tmp_path)
    trained(model).save_adapter(tmp_path)
    with refuses("adapter", "merge_adapter"):
        model.add_lora(LoraConfig(r=2))
    with refuses("adapter", "merge_adapter"):
        model.load_adapter(tmp_path)


# ------------------------------------------------------------------------------- wrong adapters


@pytest.fixture
def pair(new_tiny_llada, tmp_path):
    """A base folder and an adapter folder to spoil."""
    model = new_tiny_llada()
    model.save(tmp_path / "base")
    trained(model).save_adapter(tmp_path / "adapter")
    return tmp_path / "base", tmp_path / "adapter"


def edit_adapter(adapter, **fields):
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def edit_adapter_tensors(adapter, change):
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def test_adapter_folders_that_are_none(pair, tmp_path):
    base, adapter = pair
    with refuses("nowhere"):
        load_model(base, adapter=tmp_path / "nowhere")
    with refuses("base", "adapter_config.json"):
        load_model(base, adapter=base)
    (adapter / "adapter_config.json").write_text("{")
    with refuses("adapter_config.json", "JSON"):
        load_model(base, adapter=adapter)


def test_pickled_adapters_are_refused(pair):
    base, adapter = pair
    shutil.move(adapter / "adapter_model.safetensors", adapter / "adapter_model.bin")
    with refuses("adapter", "adapter_model.safetensors"):
        load_model(base, adapter=adapter)


def test_other_kinds_of_adapter_are_refused(pair):
    base, adapter = pair
    edit_adapter(adapter, peft_type="PREFIX_TUNING")
    with refuses("adapter", "PREFIX_TUNING", "LORA"):
        load_model(base, adapter=adapter)


def test_an_adapter_cannot_name_a_module_to_import(pair):
    base, adapter = pair
    edit_adapter(adapter, megatron_config={"a": 1}, megatron_core="antigravity")
    with refuses("adapter_config.json", "megatron_config"):
        load_model(base, adapter=adapter)


def test_adapters_of_another_model_are_refused(pair, new_tiny_llada, new_tiny_dream, tmp_path):
    base, adapter = pair
    for number, other in enumerate(
        [new_tiny_llada(d_model=48), new_tiny_llada(n_layers=1), new_tiny_llada(n_layers=3)]
    ):
        other.save(tmp_path / f"other{number}")
        with refuses("adapter", "model"):
            load_model(tmp_path / f"other{number}", adapter=adapter)
    edit_adapter(adapter, target_modules=["attn_out"])
    with refuses("adapter", "attn_out"):
        load_model(base, adapter=adapter)


def test_adapters_with_missing_extra_or_unusable_tensors_are_refused(pair):
    base, adapter = pair
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    edit_adapter_tensors(adapter, lambda tensors: tensors.update({"odd": torch.zeros(1)}))
    with refuses("adapter", "odd"):
        load_model(base, adapter=adapter)
    edit_adapter_tensors(adapter, lambda tensors: (tensors.pop("odd"), tensors.pop(name)))
    with refuses("adapter", "q_proj.lora_A.weight"):
        load_model(base, adapter=adapter)
    (adapter / "adapter_model.safetensors").write_bytes(b"broken")
    with refuses("adapter"):
        load_model(base, adapter=adapter)


def test_adapters_go_on_without_warnings_of_the_library(new_tiny_llada, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = new_tiny_llada()
        model.add_lora(LoraConfig(r=2, init_lora_weights=False))
        model.save_adapter(tmp_path)
        new_tiny_llada().load_adapter(tmp_path)
