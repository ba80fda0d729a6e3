"""A tiny random model with a word-level tokenizer, on which every test of `align` runs."""

from __future__ import annotations

from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from mosa.alignment.head_loss import Asked, HeadTerms
from mosa.alignment.objective import kl_divergence
from mosa.families import DiffusionLM, new_model

_TEXT = (
    "user assistant system bread cake tea how do i bake make brew a the mix flour and water then "
    "stir heat pour next step is to after that we therefore cannot answer this question request "
    "help with stop here first second it until done ."
)
WORDS = _TEXT.split()
SPECIALS = [
    "<|unknown|>",
    "<|startoftext|>",
    "<|endoftext|>",
    "<|mdm_mask|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
]


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {word: i for i, word in enumerate([*WORDS, *SPECIALS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<|unknown|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(SPECIALS)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|startoftext|>",
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        unk_token="<|unknown|>",
        extra_special_tokens=["<|mdm_mask|>", "<|start_header_id|>", "<|end_header_id|>"]
        + ["<|eot_id|>"],
    )


def tiny_model(seed: int = 0, *, with_tokenizer: bool = True) -> DiffusionLM:
    tokenizer = tiny_tokenizer()
    config = {
        "model_type": "llada",
        "d_model": 32,
        "n_heads": 2,
        "n_layers": 2,
        "mlp_hidden_size": 64,
        "vocab_size": len(tokenizer),
        "max_sequence_length": 128,
        "mask_token_id": tokenizer.convert_tokens_to_ids("<|mdm_mask|>"),
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return new_model(config, tokenizer if with_tokenizer else None, seed=seed)


def plain_head_terms(
    head: nn.Linear,
    policy: Tensor,
    reference: Tensor | None,
    asked: Asked,
    *,
    cap: float | None,
) -> HeadTerms:
    """As `head_terms`, from all log-probabilities at every position, whatever was asked."""
    assert cap is None, "of a head without a bound"
    policy_BRV = head(policy).log_softmax(dim=-1)
    reference_BRV = policy_BRV if reference is None else head(reference).log_softmax(dim=-1)
    targets = asked.targets[..., None]
    return HeadTerms(
        kl_divergence(policy_BRV, reference_BRV) * asked.kl,
        policy_BRV[..., asked.token_ids],
        policy_BRV.gather(-1, targets).squeeze(-1),
        reference_BRV[..., asked.token_ids],
        reference_BRV.gather(-1, targets).squeeze(-1),
        policy_BRV.detach().argmax(dim=-1),
    )
