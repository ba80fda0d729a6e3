"""Tiny tokenizers and configs in the released layouts, from which the fixtures build models."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from mosa.families import DiffusionLM
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


LLADA_LAYOUT = tiny_llada_config(llada_tokenizer())
DREAM_LAYOUT = tiny_dream_config(dream_tokenizer())
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
}
"""For every family of the table, configs of 384 tokens that between them build all that it may."""


def variants() -> list[Any]:
    """The parameters of a test that holds for every family, by the family's name and a number."""
    return [
        pytest.param(config, id=f"{name}-{number}")
        for name, configs in VARIANTS.items()
        for number, config in enumerate(configs)
    ]


def randomised(model: DiffusionLM, seed: int) -> DiffusionLM:
    """The model with noise on every weight, so that norms and biases are not ones and zeros."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.network.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(0.1 * noise.to(parameter))
    return model
