"""Logits against the transformers library's own causal modules with the mask written out in full.

The oracles are built from the saved files with names and shifts spelled out here once more, so
that a mistake in a family file cannot hide in its own test.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from mosa.families import DiffusionLM, load_model

B, L = 3, 11
LLADA_TO_LLAMA = {
    "model.transformer.wte.weight": "model.embed_tokens.weight",
    "model.transformer.ln_f.weight": "model.norm.weight",
    "model.transformer.ff_out.weight": "lm_head.weight",
}
BLOCK_TO_LAYER = {
    "attn_norm": "input_layernorm",
    "q_proj": "self_attn.q_proj",
    "k_proj": "self_attn.k_proj",
    "v_proj": "self_attn.v_proj",
    "attn_out": "self_attn.o_proj",
    "ff_norm": "post_attention_layernorm",
    "ff_proj": "mlp.gate_proj",
    "up_proj": "mlp.up_proj",
    "ff_out": "mlp.down_proj",
}
for n in range(2):
    for released, ours in BLOCK_TO_LAYER.items():
        LLADA_TO_LLAMA[f"model.transformer.blocks.{n}.{released}.weight"] = (
            f"model.layers.{n}.{ours}.weight"
        )


@pytest.fixture(scope="module", params=["llada", "illada", "dream"])
def model(request, new_tiny_llada, new_tiny_dream) -> DiffusionLM:
    if request.param == "dream":
        return new_tiny_dream(seed=1)
    grouped = {"n_kv_heads": 2, "weight_tying": True, "rope_theta": 10000.0}
    return new_tiny_llada(seed=1, **(grouped if request.param == "illada" else {}))


@pytest.fixture(scope="module")
def input_ids() -> Tensor:
    return torch.randint(0, 360, (B, L), generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def oracle(model, tmp_path_factory):
    """Logits of a causal transformers model under a 4-D mask that lets every real token be seen."""
    folder = tmp_path_factory.mktemp("released")
    model.save(folder)
    tensors = load_file(folder / "model.safetensors")
    config = model.config
    if config["model_type"] == "Dream":
        network = Qwen2ForCausalLM(
            Qwen2Config(
                vocab_size=384,
                hidden_size=32,
                intermediate_size=48,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                rms_norm_eps=1e-6,
                rope_parameters={"rope_type": "default", "rope_theta": 1e6},
            )
        )
    else:
        tensors = {LLADA_TO_LLAMA[name]: tensor for name, tensor in tensors.items()}
        if config["weight_tying"]:
            tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
        network = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=384,
                hidden_size=32,
                intermediate_size=48,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=config["n_kv_heads"],
                rms_norm_eps=1e-5,
                rope_parameters={"rope_type": "default", "rope_theta": config["rope_theta"]},
            )
        )
    network.load_state_dict(tensors, strict=True)
    network.eval()

    def logits(input_ids: Tensor, real: Tensor | None = None, *, causal: bool = False) -> Tensor:
        rows, columns = input_ids.shape
        real = torch.ones(rows, columns, dtype=torch.bool) if real is None else real
        mask = torch.zeros(rows, 1, columns, columns)
        mask.masked_fill_(~real[:, None, None, :], torch.finfo(torch.float32).min)
        with torch.no_grad():
            out = network(input_ids, attention_mask=None if causal else mask).logits
        if config["model_type"] == "Dream":
            out = torch.cat([out[:, :1], out[:, :-1]], dim=1)
        return out

    return logits


def test_logits_equal_the_transformers_library_with_a_full_mask(model, oracle, input_ids):
    with torch.no_grad():
        ours = model.logits(input_ids)
    torch.testing.assert_close(ours, oracle(input_ids), atol=2e-5, rtol=0)
    # The control: without the full mask the same oracle says something else.
    assert (ours - oracle(input_ids, causal=True)).abs().max() > 0.1


def test_right_padding_is_hidden_from_every_real_token(model, oracle, input_ids):
    real = torch.arange(L) < torch.tensor([[L], [6], [1]])
    with torch.no_grad():
        ours = model.logits(input_ids, real)
    torch.testing.assert_close(ours[real], oracle(input_ids, real)[real], atol=2e-5, rtol=0)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_rows_equal_the_same_rows_alone(model, input_ids, side):
    lengths = [L, 6, 1]
    padded = torch.full((B, L), model.pad_token_id)
    real = torch.zeros(B, L, dtype=torch.bool)
    for row, length in enumerate(lengths):
        place = slice(L - length, L) if side == "left" else slice(0, length)
        padded[row, place], real[row, place] = input_ids[row, :length], True
    with torch.no_grad():
        batch = model.logits(padded, real)
        for row, length in enumerate(lengths):
            alone = model.logits(input_ids[row : row + 1, :length])
            torch.testing.assert_close(batch[row][real[row]], alone[0], atol=3e-5, rtol=0)
    assert batch.isfinite().all()


def test_what_stands_on_padding_does_not_matter(model, input_ids):
    real = torch.arange(L) >= torch.tensor([[0], [4], [9]])
    other = torch.where(real, input_ids, (input_ids + 7) % 360)
    with torch.no_grad():
        a, b = model.logits(input_ids, real), model.logits(other, real.long())
    torch.testing.assert_close(a[real], b[real], atol=0, rtol=0)


@pytest.mark.parametrize("attn_implementation", ["sdpa", "eager"])
def test_a_row_of_nothing_but_padding_is_finite(model, tmp_path, input_ids, attn_implementation):
    model.save(tmp_path)
    loaded = load_model(tmp_path, attn_implementation=attn_implementation, device="cpu")
    real = torch.ones(B, L, dtype=torch.bool)
    real[1] = False
    with torch.no_grad():
        logits = loaded.logits(input_ids, real)
        torch.testing.assert_close(
            logits[[0, 2]], model.logits(input_ids)[[0, 2]], atol=5e-5, rtol=0
        )
    assert logits.isfinite().all()


def test_asked_positions_are_columns_of_all_logits_in_the_asked_order(model, input_ids):
    real = torch.arange(L) >= torch.tensor([[0], [2], [5]])
    positions = torch.tensor([7, 0, 10, 7])
    with torch.no_grad():
        everything = model.logits(input_ids, real)
        some = model.logits(input_ids, real, positions)
    torch.testing.assert_close(some, everything[:, positions], atol=1e-5, rtol=0)


def test_only_asked_positions_pass_the_lm_head(model, input_ids):
    seen = []
    head = model.network.get_output_embeddings()
    hook = head.register_forward_hook(lambda module, args, out: seen.append(out.shape))
    with torch.no_grad():
        model.logits(input_ids, positions=torch.tensor([1, 8]))
    hook.remove()
    assert seen[-1] == (B, 2, 384) and all(shape[1] == 2 for shape in seen)


def test_another_network_is_called_where_one_is_given(model, input_ids):
    class Wrapped(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner, self.calls = inner, 0

        def forward(self, **inputs):
            self.calls += 1
            return self.inner(**inputs)

    wrapped = Wrapped(model.network)
    with torch.no_grad():
        torch.testing.assert_close(
            model.logits(input_ids, network=wrapped), model.logits(input_ids), atol=0, rtol=0
        )
    assert wrapped.calls == 1


def test_gradient_checkpointing_gives_the_same_gradients(
    request, model, new_tiny_llada, new_tiny_dream, input_ids
):
    fresh = new_tiny_dream(seed=1) if model.family.logits_shifted else new_tiny_llada(seed=1)
    real = torch.arange(L) >= torch.tensor([[0], [4], [9]])

    def gradients() -> dict[str, Tensor]:
        fresh.network.train()
        fresh.network.zero_grad()
        fresh.logits(input_ids, real, torch.tensor([9, 10])).logsumexp(-1).sum().backward()
        return {n: p.grad.clone() for n, p in fresh.network.named_parameters()}

    plain = gradients()
    recomputed = []
    fresh.network.gradient_checkpointing_enable()
    layer = fresh.network.model.layers[0].self_attn.q_proj
    hook = layer.register_forward_hook(lambda *_: recomputed.append(1))
    checkpointed = gradients()
    hook.remove()
    assert len(recomputed) == 2, "the layer was not recomputed in the backward pass"
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, atol=1e-5, rtol=1e-5)


def test_bfloat16_gives_float32_logits_near_the_float32_model(model, tmp_path: Path, input_ids):
    model.save(tmp_path)
    low = load_model(tmp_path, dtype="bfloat16", device="cpu")
    assert low.dtype == torch.bfloat16
    with torch.no_grad():
        ours, exact = low.logits(input_ids), model.logits(input_ids)
    assert ours.dtype == torch.float32
    # bfloat16 keeps 8 bits: the logits, of the order of 1 to 10, agree to some hundredths of it.
    assert (ours - exact).abs().mean() / exact.std() < 0.05
