"""What the sampler knows a network to consist of, and that it refuses everything else by name."""

from __future__ import annotations

import pytest
import torch
from other_networks import NETWORKS, ROPE, SIZES, new_other
from peft import LoraConfig
from refusals import refuses
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GptOssConfig,
    GraniteConfig,
    Olmo2Config,
    PreTrainedModel,
)

from mosa.families import DiffusionLM
from mosa.families.attention import FULL
from mosa.families.walk import NETWORKS as KNOWN
from mosa.families.walk import Walk


def base(model: DiffusionLM) -> PreTrainedModel:
    """The network of a model without an adapter."""
    assert isinstance(model.network, PreTrainedModel)
    return model.network


def refused(network: PreTrainedModel) -> str:
    """The message by which it is refused."""
    with refuses(type(network).__name__) as error:
        Walk.over(network, FULL)
    return str(error.value)


def test_every_known_network_is_held_equal_to_the_library(tiny_llada, tiny_dream):
    """Each class of the table is one of a model that `test_packed.py` runs."""
    networks = [new_other(name).network for name in NETWORKS]
    networks += [tiny_llada.network, tiny_dream.network]
    stems = {type(network).__name__.removesuffix("ForCausalLM") for network in networks}
    assert stems == set(KNOWN)


def test_what_layers_consist_of_is_read_from_them():
    """GLM's first layer and the second of Qwen3-MoE are dense."""
    walks = {name: Walk.over(base(new_other(name)), FULL) for name in NETWORKS}
    mixtures = {name: [layer.is_mixture for layer in walk.layers] for name, walk in walks.items()}
    assert mixtures == {
        "qwen3": [False, False, False],
        "qwen3, biases": [False, False, False],
        "qwen3_moe": [True, False, True],
        "glm4_moe": [False, True, True],
    }
    assert all(layer.has_head_norms for walk in walks.values() for layer in walk.layers)
    plain = new_other("glm4_moe", use_qk_norm=False)
    assert not any(layer.has_head_norms for layer in Walk.over(base(plain), FULL).layers)


SMALL = {name: SIZES[name] for name in SIZES if name != "head_dim"}


@pytest.mark.parametrize(
    "config",
    [
        # The names of their modules are Llama's, and what they compute is not.
        GraniteConfig(**SMALL, residual_multiplier=0.5),
        Gemma2Config(**SIZES),  # softcapped scores
        GptOssConfig(**SIZES, num_local_experts=4),  # attention sinks
        Olmo2Config(**SMALL),  # norms behind each part
    ],
    ids=lambda config: config.model_type,
)
def test_another_network_is_refused_by_its_class(config):
    network = AutoModelForCausalLM.from_config(config)
    assert type(network).__name__ in refused(network)


@pytest.mark.parametrize(
    ("name", "settings", "names"),
    [
        (
            "qwen3",
            {
                "use_sliding_window": True,
                "sliding_window": 4,
                "layer_types": None,
                "max_window_layers": 1,
            },
            ["Qwen3Attention", "sliding_window=4", "model.layers.1.self_attn"],
        ),
        (
            "qwen3_moe",
            {"use_sliding_window": True, "sliding_window": 4},
            ["Qwen3MoeAttention", "sliding_window=4", "model.layers.0.self_attn"],
        ),
        (
            "qwen3",
            {"rope_parameters": {**ROPE, "rope_type": "dynamic", "factor": 2.0}},
            ["Qwen3RotaryEmbedding", "rope_type='dynamic'", "model.rotary_emb"],
        ),
        (
            "glm4_moe",
            {"hidden_act": "gelu"},
            ["GELUActivation", "model.layers.0.mlp.act_fn"],
        ),
    ],
    ids=["window", "window of all layers", "rope", "activation"],
)
def test_a_setting_that_is_not_known_is_refused_with_its_module(name, settings, names):
    with refuses(*names):
        new_other(name, **settings)


def test_a_module_that_is_not_known_is_refused_wherever_it_is():
    """What a later version of the library may add to a network of the same name."""
    additions = {
        "model.layers.1.self_attn.gate": ("Linear", lambda: nn.Linear(2, 2)),
        "model.layers.2.post_mlp_layernorm": ("LayerNorm", lambda: nn.LayerNorm(2)),
        "model.layers.0.mlp.norm": ("LayerNorm", lambda: nn.LayerNorm(2)),
        "model.embed_norm": ("LayerNorm", lambda: nn.LayerNorm(2)),
        "model.layers.1.self_attn.q_norm": ("LayerNorm", lambda: nn.LayerNorm(2)),
        "model.layers.0.self_attn.sinks": (
            "Qwen3Attention",
            lambda: nn.Parameter(torch.zeros(4)),
        ),
    }
    for path, (kind, make) in additions.items():
        network = base(new_other("qwen3"))
        parent, _, name = path.rpartition(".")
        setattr(network.get_submodule(parent), name, make())
        message = refused(network)
        assert path in message and kind in message


def test_an_adapter_may_wrap_what_is_known():
    """Also norms that it trains whole; then packed rows go through the trained copy."""
    model = new_other("qwen3")
    model.add_lora(
        LoraConfig(r=2, init_lora_weights=False, modules_to_save=["q_norm", "input_layernorm"])
    )
    with torch.no_grad():
        for name, parameter in model.network.named_parameters():
            if "modules_to_save" in name:
                parameter.mul_(1.5)
    ids = torch.arange(9)

    def states():
        with torch.no_grad():
            packed = model.packed_hidden_states(ids, model.rotary(ids), (9,))
            return packed, model.hidden_states(ids[None])[0]

    packed, library = states()
    torch.testing.assert_close(packed, library, atol=1e-4, rtol=1e-4)
    with model.adapter_disabled():
        without, library = states()
    torch.testing.assert_close(without, library, atol=1e-4, rtol=1e-4)
    assert (packed - without).abs().max() > 0.1


def test_layers_that_an_adapter_repeats_are_walked_over(new_tiny_llada):
    model = new_tiny_llada()
    model.add_lora(LoraConfig(r=2, init_lora_weights=False, layer_replication=[(0, 2), (1, 2)]))
    ids = torch.arange(9)
    with torch.no_grad():
        packed = model.packed_hidden_states(ids, model.rotary(ids), (9,))
        torch.testing.assert_close(packed, model.hidden_states(ids[None])[0], atol=1e-4, rtol=1e-4)


def test_an_adapter_that_acts_on_some_positions_only_is_refused():
    model = new_other("qwen3")
    with refuses("alora_invocation_tokens"):
        model.add_lora(LoraConfig(task_type="CAUSAL_LM", alora_invocation_tokens=[1, 2]))
    assert not model.has_adapter


def test_lora_adapts_what_each_layer_has_but_routed_experts():
    """Attention everywhere, the one dense layer's MLP, and the shared experts of the others."""
    mlp = ("gate_proj", "up_proj", "down_proj")
    shared = [(1, f"shared_experts.{part}") for part in mlp]
    shared += [(2, f"shared_experts.{part}") for part in mlp]
    for name, dense, others in (("qwen3_moe", 1, []), ("glm4_moe", 0, shared)):
        model = new_other(name)
        model.add_lora(LoraConfig(r=2))
        adapted = {
            n.split(".lora_A")[0] for n, _ in model.network.named_parameters() if "lora_A" in n
        }
        paths = [(n, f"self_attn.{part}_proj") for n in range(3) for part in "qkvo"]
        paths += [(n, f"mlp.{path}") for n, path in [*((dense, part) for part in mlp), *others]]
        assert adapted == {f"base_model.model.model.layers.{n}.{path}" for n, path in paths}
