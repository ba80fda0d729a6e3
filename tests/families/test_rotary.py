"""In bfloat16, LLaDA's queries and keys are turned as its released code turns them."""

from __future__ import annotations

import pytest
import torch
from tiny_models import randomised
from torch import Tensor
from torch.nn import functional

from mosa.families import new_model

CONFIG = {
    "model_type": "llada",
    "d_model": 64,
    "n_heads": 4,
    "n_layers": 2,
    "vocab_size": 384,
    "mlp_hidden_size": 96,
    "mask_token_id": 380,
    "eos_token_id": 381,
    "rope_theta": 500000.0,
}
LENGTH, HEADS = 200, 4


def released(heads: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """modeling_llada.py with `rope_full_precision` on [H, L, E]: angles and turned heads in
    `dtype`, the outcome in the format of the heads."""
    size = heads.shape[-1]
    frequencies = 1.0 / (CONFIG["rope_theta"] ** (torch.arange(0, size, 2).float() / size))
    angles = torch.outer(torch.arange(heads.shape[1]).float(), frequencies)
    positions = torch.cat([angles, angles], dim=-1)
    cos, sin = positions.cos().to(dtype), positions.sin().to(dtype)
    exact = heads.to(dtype)
    first, second = exact.chunk(2, dim=-1)
    turned = exact * cos + torch.cat([-second, first], dim=-1) * sin
    return turned.to(heads.dtype)


@pytest.fixture
def seen(monkeypatch):
    """Queries and keys [H, L, E] of a bfloat16 model's first layer, each as its projection gives
    them and as attention gets them: in the library's forward pass, and in packed rows."""
    model = randomised(new_model(CONFIG, seed=1, dtype=torch.bfloat16), 1)
    attended: list[tuple[Tensor, Tensor]] = []
    attend = functional.scaled_dot_product_attention

    def watched(query, key, *args, **kwargs):
        attended.append((query[0], key[0]))
        return attend(query, key, *args, **kwargs)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", watched)
    projected: dict[str, Tensor] = {}
    attention = model.network.model.layers[0].self_attn
    for name in ("q_proj", "k_proj"):
        getattr(attention, name).register_forward_hook(
            lambda _, args, out, name=name: projected.update({name: out})
        )

    def pairs() -> list[tuple[Tensor, Tensor]]:
        plain = (projected[name].reshape(LENGTH, HEADS, -1) for name in ("q_proj", "k_proj"))
        return [(p.transpose(0, 1), t) for p, t in zip(plain, attended[0], strict=True)]

    ids = torch.randint(0, 380, (LENGTH,), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        model.logits(ids[None])
        library = pairs()
        attended.clear()
        model.packed_hidden_states(ids, model.rotary(torch.arange(LENGTH)), (LENGTH,))
    return library, pairs()


def test_the_librarys_forward_pass_turns_as_the_released_code(seen):
    library, _ = seen
    for heads, turned in library:
        assert turned.dtype == torch.bfloat16
        assert torch.equal(turned, released(heads))


def test_packed_rows_turn_as_the_released_code(seen):
    """But for a last bit, where a fused multiplication rounds once less."""
    _, packed = seen
    for heads, turned in packed:
        assert turned.dtype == torch.bfloat16
        expected = released(heads)
        torch.testing.assert_close(turned, expected, atol=1e-2, rtol=2**-7)
        assert (turned != expected).float().mean() < 0.001


def test_in_bfloat16_the_formula_is_another(seen):
    """So the tests above would see angles that are rounded, as the library rounds them."""
    library, _ = seen
    for heads, _ in library:
        rounded = released(heads, torch.bfloat16)
        assert (rounded != released(heads)).float().mean() > 0.2
