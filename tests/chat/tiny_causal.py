"""Tiny random Llamas with a byte-level tokenizer, written to a folder as checkpoints are."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tiny_models import byte_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SPECIALS = ["<s>", "</s>", "<|user|>", "<|assistant|>"]
CHAT_TEMPLATE = (
    "<s>{% for m in messages %}{% if m['role'] == 'system' %}"
    "{{ raise_exception('no system turn') }}{% endif %}"
    "<|{{ m['role'] }}|>{{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def causal_tokenizer(words: list[str] | None = None) -> PreTrainedTokenizerFast:
    """The tokenizer; `words` become tokens of their own."""
    tokenizer = byte_tokenizer(
        SPECIALS, bos_token="<s>", eos_token="</s>", chat_template=CHAT_TEMPLATE
    )
    tokenizer.add_tokens(words or [])
    return tokenizer


def tiny_llama(tokenizer: PreTrainedTokenizerFast, *, seed: int = 0) -> LlamaForCausalLM:
    """Random weights, wide enough that no two tokens tie."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        initializer_range=0.2,
        bos_token_id=tokenizer.get_vocab()["<s>"],
        eos_token_id=tokenizer.get_vocab()["</s>"],
        tie_word_embeddings=False,
    )
    return LlamaForCausalLM(config).eval()


def saved(folder: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> Path:
    """The checkpoint's folder. Its settings ask for sampling, which callers must not inherit."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    file = folder / "generation_config.json"
    settings = json.loads(file.read_text())
    settings |= {"do_sample": True, "temperature": 0.6, "top_k": 3, "repetition_penalty": 1.3}
    file.write_text(json.dumps(settings))
    return folder
