"""Tiny tokenizers and configs in the released layouts, from which the fixtures build models."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from mosa.families import FAMILIES, DiffusionLM
from mosa.families.dream import DREAM
from mosa.families.llada import LLADA

TEXT = (
    "I cannot help with that request, because it is not safe. How can I help you today? Sure, here "
    "is an answer: first write a short story about a friendly robot, then read it aloud to a "
    "friend and ask what they liked. Sorry, but I will not answer this question. Tell me how to "
    "make tea. Therefore we stop here and do something useful instead. Step 1: boil the water. "
    "Step 2: pour it over the leaves. Step 3: wait for five minutes. The user and the assistant."
)
LLADA_SPECIALS = ["<|startoftext|>", "<|endoftext|>", "<|mdm_mask|>", "<|start_header_id|>"]
LLADA_SPECIALS += ["<|end_header_id|>", "<|eot_id|>"]
TURN_SPECIALS = ["<pad>", "<eos>", "<bos>", "<unk>", "<|turn>", "<turn|>"]
ROLE_SPECIALS = ["<|endoftext|>", "<role>", "</role>", "<|role_end|>", "<|mask|>"]
DREAM_SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|beginoftext|>", "<|mask|>"]


def byte_tokenizer(
    specials: list[str], *, texts: list[str] | None = None, vocab_size: int = 360, **settings
) -> PreTrainedTokenizerFast:
    """A byte-level BPE of a few hundred tokens, the special ones last."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        [TEXT] if texts is None else texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer.add_special_tokens(specials)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **settings)


def llada_tokenizer() -> PreTrainedTokenizerFast:
    """LLaDA's special tokens and chat template; like the released one it sets no mask token."""
    return byte_tokenizer(
        LLADA_SPECIALS,
        bos_token="<|startoftext|>",
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        chat_template=LLADA.chat_template,
    )


def dream_tokenizer() -> PreTrainedTokenizerFast:
    """Dream's special tokens and chat template."""
    return byte_tokenizer(
        DREAM_SPECIALS,
        bos_token="<|beginoftext|>",
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        mask_token="<|mask|>",
        chat_template=DREAM.chat_template,
    )


def tiny_llada_config(tokenizer: PreTrainedTokenizerFast, **fields) -> dict:
    """A config.json in LLaDA's layout; weights wide enough that no two tokens tie."""
    vocabulary = tokenizer.get_vocab()
    return {
        "model_type": "llada",
        "d_model": 32,
        "n_heads": 4,
        "n_kv_heads": 4,
        "n_layers": 2,
        "mlp_hidden_size": 48,
        "max_sequence_length": 512,
        "vocab_size": 384,
        "embedding_size": 384,
        "init_std": 0.2,
        "mask_token_id": vocabulary["<|mdm_mask|>"],
        "eos_token_id": vocabulary["<|endoftext|>"],
        "pad_token_id": vocabulary["<|endoftext|>"],
        **fields,
    }


def tiny_dream_config(tokenizer: PreTrainedTokenizerFast, **fields) -> dict:
    """A config.json in Dream's layout."""
    vocabulary = tokenizer.get_vocab()
    return {
        "model_type": "Dream",
        "hidden_size": 32,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_hidden_layers": 2,
        "intermediate_size": 48,
        "max_position_embeddings": 512,
        "vocab_size": 384,
        "initializer_range": 0.2,
        "mask_token_id": vocabulary["<|mask|>"],
        "eos_token_id": vocabulary["<|endoftext|>"],
        "pad_token_id": vocabulary["<|endoftext|>"],
        **fields,
    }


def qwen3_layout(**fields) -> dict[str, Any]:
    """A config.json in the layout of the network of Qwen3, with the ids of Dream's tokenizer."""
    vocabulary = dream_tokenizer().get_vocab()
    return {
        "hidden_size": 32,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "num_hidden_layers": 2,
        "intermediate_size": 48,
        "max_position_embeddings": 512,
        "vocab_size": 384,
        "initializer_range": 0.2,
        "mask_token_id": vocabulary["<|mask|>"],
        "eos_token_id": vocabulary["<|im_end|>"],
        "pad_token_id": vocabulary["<|endoftext|>"],
        **fields,
    }


def role_tokenizer() -> PreTrainedTokenizerFast:
    """The special tokens of LLaDA-MoE and LLaDA2; their chat template is the families'."""
    return byte_tokenizer(ROLE_SPECIALS, eos_token="<|endoftext|>", pad_token="<|endoftext|>")


def _ids(tokenizer: PreTrainedTokenizerFast, mask: str) -> dict[str, int]:
    vocabulary = tokenizer.get_vocab()
    end = vocabulary["<|endoftext|>"]
    return {"mask_token_id": vocabulary[mask], "eos_token_id": end, "pad_token_id": end}


def tiny_llada_moe_config(tokenizer: PreTrainedTokenizerFast, **fields) -> dict:
    """A config.json in LLaDA-MoE's layout: its second layer has no experts."""
    return {
        "architectures": ["LLaDAMoEModelLM"],
        "model_type": "llada",
        "hidden_size": 32,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "num_hidden_layers": 3,
        "dense_intermediate_size": 48,
        "expert_intermediate_size": 24,
        "num_experts": 6,
        "num_experts_per_tok": 2,
        "moe_layer_freq": [1, 0, 1],
        "shared_expert_intermediate_size": None,  # else their class has its own default
        "max_position_embeddings": 512,
        "rope_theta": 50000,
        "vocab_size": 384,
        "initializer_range": 0.2,
        **_ids(tokenizer, "<|mask|>"),
        **fields,
    }


def tiny_llada2_config(tokenizer: PreTrainedTokenizerFast, **fields) -> dict:
    """A config.json in LLaDA2's layout: blocks of 8, and a first layer without experts."""
    return {
        "architectures": ["LLaDA2MoeModelLM"],
        "model_type": "llada2_moe",
        "hidden_size": 32,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "num_hidden_layers": 3,
        "intermediate_size": 48,
        "moe_intermediate_size": 24,
        "first_k_dense_replace": 1,
        "num_experts": 8,
        "num_experts_per_tok": 3,
        "num_shared_experts": 1,
        "n_group": 4,
        "topk_group": 2,
        "block_size": 8,
        "max_position_embeddings": 512,
        "rope_theta": 600000,
        "vocab_size": 384,
        "initializer_range": 0.2,
        **_ids(tokenizer, "<|mask|>"),
        **fields,
    }


def tiny_sdar_moe_config(tokenizer: PreTrainedTokenizerFast, **fields) -> dict:
    """A config.json in the layout of SDAR's mixtures of experts."""
    return {
        "architectures": ["SDARMoeForCausalLM"],
        "model_type": "sdar_moe",
        "hidden_size": 32,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "num_hidden_layers": 2,
        "moe_intermediate_size": 24,
        "num_experts": 6,
        "num_experts_per_tok": 2,
        "norm_topk_prob": True,
        "max_position_embeddings": 512,
        "vocab_size": 384,
        "initializer_range": 0.2,
        **_ids(tokenizer, "<|mask|>"),
        **fields,
    }


def turn_tokenizer() -> PreTrainedTokenizerFast:
    """DiffusionGemma's special tokens; its chat template is the family's."""
    return byte_tokenizer(
        TURN_SPECIALS, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", unk_token="<unk>"
    )


def tiny_diffusion_gemma_config(tokenizer: PreTrainedTokenizerFast, **fields) -> dict:
    """A config.json in DiffusionGemma's layout: canvases of 16, and a window that prompts exceed.
    `fields` are those of its `text_config`, but for `canvas_length`."""
    vocabulary = tokenizer.get_vocab()
    text = {
        "model_type": "diffusion_gemma_text",
        "vocab_size": 384,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "global_head_dim": 32,
        "num_global_key_value_heads": 1,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        "sliding_window": 16,
        "max_position_embeddings": 512,
        "num_experts": 4,
        "top_k_experts": 2,
        "moe_intermediate_size": 24,
        "initializer_range": 0.2,
        **fields,
    }
    return {
        "architectures": ["DiffusionGemmaForBlockDiffusion"],
        "model_type": "diffusion_gemma",
        "canvas_length": text.pop("canvas_length", 16),
        "text_config": text,
        "vision_config": {
            "model_type": "gemma4_vision",
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "position_embedding_size": 64,
        },
        "tie_word_embeddings": True,
        "eos_token_id": [vocabulary["<eos>"], vocabulary["<turn|>"]],
        "pad_token_id": vocabulary["<pad>"],
    }


LLADA_LAYOUT = tiny_llada_config(llada_tokenizer())
DREAM_LAYOUT = tiny_dream_config(dream_tokenizer())
LLADA_MOE_LAYOUT = tiny_llada_moe_config(role_tokenizer())
LLADA2_LAYOUT = tiny_llada2_config(role_tokenizer())
SDAR_MOE_LAYOUT = tiny_sdar_moe_config(dream_tokenizer())
DIFFUSION_GEMMA_LAYOUT = tiny_diffusion_gemma_config(turn_tokenizer())
VARIANTS: dict[str, tuple[dict[str, Any], ...]] = {
    "llada": (
        LLADA_LAYOUT,
        {**LLADA_LAYOUT, "n_kv_heads": 2, "weight_tying": True, "rope_theta": 10000.0},
        {**LLADA_LAYOUT, "model_type": "mmada", "vocab_size": 360, "new_vocab_size": 384},
    ),
    "dream": (
        DREAM_LAYOUT,
        {**DREAM_LAYOUT, "num_key_value_heads": None, "tie_word_embeddings": True},
    ),
    "a2d": (
        qwen3_layout(model_type="a2d-qwen3", tie_word_embeddings=True),
        qwen3_layout(model_type="a2d-qwen3", block_size=4),
    ),
    "sdar": (
        qwen3_layout(model_type="sdar", block_size=4),
        qwen3_layout(model_type="sdar", block_size=8, tie_word_embeddings=True),
    ),
    "llada_moe": (
        LLADA_MOE_LAYOUT,
        {
            **LLADA_MOE_LAYOUT,
            "model_type": "lladamoe",
            "num_key_value_heads": 2,
            "moe_layer_freq": [1, 1, 1],
            "tie_word_embeddings": True,
        },
    ),
    "llada2": (
        LLADA2_LAYOUT,
        {
            **LLADA2_LAYOUT,
            "first_k_dense_replace": 0,
            "num_experts_per_tok": 1,
            "num_shared_experts": 2,
            "partial_rotary_factor": 1.0,
            "tie_word_embeddings": True,
        },
    ),
    "sdar_moe": (
        SDAR_MOE_LAYOUT,
        {**SDAR_MOE_LAYOUT, "norm_topk_prob": False, "tie_word_embeddings": True},
    ),
    "diffusion_gemma": (
        DIFFUSION_GEMMA_LAYOUT,
        tiny_diffusion_gemma_config(
            turn_tokenizer(), canvas_length=8, num_global_key_value_heads=2, top_k_experts=1
        ),
    ),
}
"""For every family of the table, configs of 384 tokens that between them build all that it may."""


def variants() -> list[Any]:
    """The parameters of a test that holds for every family which fills masks, by the family's name
    and a number."""
    return [
        pytest.param(config, id=f"{name}-{number}")
        for name, configs in VARIANTS.items()
        for number, config in enumerate(configs)
        if not FAMILIES[name].is_noise
    ]


def randomised(model: DiffusionLM, seed: int) -> DiffusionLM:
    """The model with noise on every weight, so that norms and biases are not ones and zeros; on
    what routers add to their scores, too.

    What a model of uniform noise reads of its own last step is made small: at full size each step
    makes a rounding error three times as large, which after ten steps are other tokens.
    """
    generator = torch.Generator().manual_seed(seed)
    stored = model.network.state_dict()
    buffers = [buffer for name, buffer in model.network.named_buffers() if name in stored]
    with torch.no_grad():
        for tensor in (*model.network.parameters(), *buffers):
            noise = torch.randn(tensor.shape, generator=generator)
            tensor.add_(0.1 * noise.to(tensor))
        for name, tensor in model.network.named_parameters():
            if "self_conditioning.down_proj" in name:
                tensor.mul_(0.1)
    return model
