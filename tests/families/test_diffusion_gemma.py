"""DiffusionGemma: the library's own class, its released layout, and one set of layers for two."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from refusals import refuses
from safetensors.torch import load_file
from tiny_models import DIFFUSION_GEMMA_LAYOUT, VARIANTS, randomised, turn_tokenizer
from transformers import DiffusionGemmaForBlockDiffusion

from mosa.families import DiffusionLM, load_model, new_model
from mosa.families import noise as of_noise

P, C = 21, 16
"""Tokens of the prompt, more than the window of 16, and of a canvas."""
IDS = torch.randint(0, 350, (2, P), generator=torch.Generator().manual_seed(3))


def tiny(number: int = 0) -> DiffusionLM:
    return randomised(new_model(VARIANTS["diffusion_gemma"][number], turn_tokenizer(), seed=1), 1)


@pytest.fixture
def model() -> DiffusionLM:
    return tiny()


@pytest.fixture
def folder(model, tmp_path) -> Path:
    model.save(tmp_path / "released")
    return tmp_path / "released"


def library(folder: Path) -> DiffusionGemmaForBlockDiffusion:
    return DiffusionGemmaForBlockDiffusion.from_pretrained(folder).eval()


def masked(model: DiffusionLM, ids: torch.Tensor, length: int) -> torch.Tensor:
    return torch.cat([ids, ids.new_full((len(ids), length), model.mask_token_id)], dim=1)


def noisy(model: DiffusionLM, canvas: torch.Tensor, start: int) -> torch.Tensor:
    real = torch.ones_like(canvas, dtype=torch.bool)
    return of_noise.noised(canvas, real, start, model.mask_token_id, canvas.new_zeros(len(canvas)))


@torch.no_grad()
def of_library(network, before: torch.Tensor, canvas: torch.Tensor) -> torch.Tensor:
    return network(input_ids=before, decoder_input_ids=canvas).logits


# ------------------------------------------------------------------------------ the released layout


@pytest.mark.parametrize("number", range(len(VARIANTS["diffusion_gemma"])))
def test_names_and_bits_are_those_of_the_librarys_own_writer(number, tmp_path):
    """Tied layers once, the encoder's own scalars, and the tower for images."""
    model = tiny(number)
    model.save(tmp_path / "ours", max_shard_size="100KB")
    model.save(tmp_path / "whole")
    library(tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    theirs = load_file(tmp_path / "theirs" / "model.safetensors")
    ours = load_file(tmp_path / "whole" / "model.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
    assert not any(name.startswith("lm_head") or "language_model.norm" in name for name in ours)
    assert sum(name.endswith("layer_scalar") for name in ours) == 2 * 3
    loaded = load_model(tmp_path / "theirs", device="cpu")
    assert all(
        torch.equal(tensor, model.network.state_dict()[name])
        for name, tensor in loaded.network.state_dict().items()
    )


def test_the_mask_is_no_token_and_ends_are_the_configs(model):
    vocabulary = turn_tokenizer().get_vocab()
    assert model.mask_token_id == model.vocab_size == 384 and model.is_noise
    assert model.end_token_ids == (vocabulary["<eos>"], vocabulary["<turn|>"])
    assert model.attention.block_length == C and not model.attention.shares_prompt


def test_the_template_is_laid_out_and_read_back(model):
    said = model.decode(model.encode("Tell me how to make tea."), skip_special_tokens=False)
    assert said == "<bos><|turn>user\nTell me how to make tea.<turn|>\n<|turn>model\n"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"tie_word_embeddings": False}, "tie_word_embeddings"),
        ({"canvas_length": 0}, "canvas_length"),
        ({"text_config": {"hidden_size": None}}, "hidden_size"),
        ({"text_config": {"num_experts": -1}}, "num_experts"),
        ({"text_config": {"top_k_experts": 9}}, "top_k_experts"),
        ({"text_config": {"attention_bias": True}}, "attention_bias"),
        ({"text_config": {"use_bidirectional_attention": "all"}}, "use_bidirectional_attention"),
        ({"text_config": {"rms_norm_eps": 0.5}}, "rms_norm_eps"),
        ({"text_config": {"layer_types": ["ring_attention"] * 3}}, "config.json"),
        ({"text_config": {"rope_parameters": {"full_attention": {"rope_type": "yarn"}}}}, "yarn"),
        ({"vision_config": {"hidden_size": "wide"}}, "config.json"),
    ],
)
def test_what_a_config_cannot_be_is_refused_by_name(change, named):
    config = copy.deepcopy(DIFFUSION_GEMMA_LAYOUT)
    for name, value in change.items():
        config[name] = {**config[name], **value} if isinstance(value, dict) else value
    with refuses(named):
        new_model(config, turn_tokenizer(), seed=0)


# --------------------------------------------------------------------------------- the forward pass


def test_logits_are_those_of_the_library(model, folder):
    """Of a first canvas and of a second, which stands behind the first as it is written."""
    network = library(folder)
    canvas = masked(model, IDS, 2 * C)
    written = canvas.clone()
    written[:, P:] = torch.randint(0, 350, (2, 2 * C), generator=torch.Generator().manual_seed(5))
    found = model.logits(
        canvas, None, torch.arange(P, P + 2 * C), response_start=P, written=written
    )
    noise_BL = noisy(model, canvas, P)
    first = of_library(network, IDS, noise_BL[:, P : P + C])
    second = of_library(network, written[:, : P + C], noise_BL[:, P + C :])
    torch.testing.assert_close(found[:, :C], first)
    torch.testing.assert_close(found[:, C:], second)


def test_padding_on_the_left_changes_nothing(model):
    canvas = masked(model, IDS, C)
    padded = torch.cat([canvas.new_full((2, 5), model.pad_token_id), canvas], dim=1)
    real = torch.cat([torch.zeros(2, 5).bool(), torch.ones_like(canvas).bool()], dim=1)
    columns = torch.arange(P, P + C)
    plain = model.logits(canvas, None, columns, response_start=P)
    moved = model.logits(padded, real, columns + 5, response_start=P + 5)
    torch.testing.assert_close(moved, plain, atol=2e-5, rtol=0)


def test_a_short_response_is_filled_up_with_noise_to_a_whole_canvas(model, folder):
    canvas = masked(model, IDS, 5)
    found = model.logits(canvas, None, torch.arange(P, P + 5), response_start=P)
    whole = torch.nn.functional.pad(canvas, (0, C - 5), value=-1)
    real = torch.nn.functional.pad(torch.ones_like(canvas).bool(), (0, C - 5), value=False)
    noise_BL = of_noise.noised(whole, real, P, model.mask_token_id, torch.zeros(2).long())
    assert torch.equal(noise_BL[:, :P], IDS) and bool((noise_BL < 384).all())
    theirs = of_library(library(folder), IDS, noise_BL[:, P:])
    torch.testing.assert_close(found, theirs[:, :5])


def test_noise_follows_from_seed_and_position_alone(model):
    """So that prompts which are compared stand before one canvas."""
    canvas = masked(model, IDS, C)
    same = noisy(model, canvas, P)
    assert not torch.equal(IDS[0], IDS[1]) and torch.equal(same[0, P:], same[1, P:])
    real = torch.ones_like(canvas).bool()
    other = of_noise.noised(canvas, real, P, model.mask_token_id, torch.tensor([0, 1]))
    assert torch.equal(other[0], same[0])
    assert (other[1, P:] != same[1, P:]).float().mean() > 0.9
    columns = torch.arange(P, P + C)
    found = model.logits(canvas, None, columns, response_start=P, noise_seed=torch.tensor([0, 1]))
    apart = [model.logits(canvas, None, columns, response_start=P, noise_seed=s) for s in (0, 1)]
    torch.testing.assert_close(found, torch.stack([apart[0][0], apart[1][1]]))
    draws = of_noise.noise(0, torch.arange(40_000), torch.zeros(40_000).long(), 0, 4)
    assert torch.bincount(draws, minlength=4).sub(10_000).abs().max() < 400


def test_it_answers_in_the_response_alone(model):
    for arguments in ({}, {"positions": torch.arange(P, P + C)}, {"response_start": P}):
        with refuses("response_start", "positions"):
            model.logits(masked(model, IDS, C), **arguments)


def test_hidden_states_and_head_give_the_logits(model):
    canvas, columns = masked(model, IDS, C), torch.arange(P, P + C)
    hidden = model.hidden_states(canvas, None, columns, response_start=P)
    logits = model.logits(canvas, None, columns, response_start=P)
    assert torch.equal(model.head(hidden), logits)
    raw = hidden @ model.network.get_output_embeddings().weight.T
    torch.testing.assert_close(torch.tanh(raw / 30) * 30, logits)
    assert model.base_network.final_logit_softcapping == 30.0


# ---------------------------------------------------------------------------------------- adapters


def layers(model: DiffusionLM):
    body = model.base_network.model
    return body.encoder.language_model.layers, body.decoder.layers


def test_encoder_and_decoder_are_one_set_of_modules_but_for_their_scalars(model):
    for encoder, decoder in zip(*layers(model), strict=True):
        for path in of_noise.SHARED:
            if path == "self_attn.v_proj" and decoder.self_attn.v_proj is None:
                continue
            assert encoder.get_submodule(path) is decoder.get_submodule(path)
        own = {n for n, t in decoder.state_dict().items() if t.data_ptr() not in _places(encoder)}
        assert own == {"layer_scalar"}


def _places(module) -> set[int]:
    return {tensor.data_ptr() for tensor in module.state_dict().values()}


@pytest.mark.parametrize("experts", [False, True])
def test_an_adapter_acts_in_both_and_is_merged_once(model, folder, tmp_path, experts):
    config = LoraConfig(r=2, lora_alpha=4, init_lora_weights=False)
    model.add_lora(config, experts=experts)
    names = [name for name, _ in model.network.named_parameters() if "lora_" in name]
    assert names and not any("vision_tower" in name or "encoder" in name for name in names)
    assert any(".experts." in name for name in names) == experts
    canvas, columns = masked(model, IDS, C), torch.arange(P, P + C)
    adapted = model.logits(canvas, None, columns, response_start=P)
    model.save_adapter(tmp_path / "adapter")
    again = load_model(folder, adapter=tmp_path / "adapter", device="cpu")
    assert torch.equal(again.logits(canvas, None, columns, response_start=P), adapted)
    again.merge_adapter()
    again.save(tmp_path / "merged")
    # Any reader of the release sees the adapted encoder and the adapted decoder.
    theirs = of_library(library(tmp_path / "merged"), IDS, noisy(model, canvas, P)[:, P:])
    torch.testing.assert_close(theirs, adapted, atol=1e-4, rtol=0)
    with model.adapter_disabled():
        plain = model.logits(canvas, None, columns, response_start=P)
    assert (plain - adapted).abs().max() > 0.1
    torch.testing.assert_close(
        plain, of_library(library(folder), IDS, noisy(model, canvas, P)[:, P:])
    )


def test_gradients_reach_the_adapter_through_the_encoder_too(model):
    model.add_lora(LoraConfig(r=2, lora_alpha=4, init_lora_weights=False))
    columns = torch.arange(P, P + C)
    encoded = []
    handle = model.base_network.model.encoder.language_model.layers[0].register_forward_hook(
        lambda module, args, output: encoded.append(output.requires_grad)
    )
    logits = model.logits(masked(model, IDS, C), None, columns, response_start=P)
    logits.log_softmax(-1)[..., 7].sum().backward()
    handle.remove()
    gradients = [p.grad for n, p in model.network.named_parameters() if "lora_B" in n]
    assert encoded == [True] and all(g is not None and g.abs().sum() > 0 for g in gradients)
