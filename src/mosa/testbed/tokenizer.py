"""The word-level tokenizer of the invented world, with LLaDA's special tokens and chat template."""

from __future__ import annotations

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mosa.families.llada import LLADA
from mosa.world.tasks import all_task_words
from mosa.world.world import SECOND_LANGUAGE, all_world_words

BOS, EOS, MASK = "<|startoftext|>", "<|endoftext|>", "<|mdm_mask|>"
START_HEADER, END_HEADER, EOT = "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"
UNKNOWN = "<|unknown|>"

_PHRASE_WORDS = "therefore question request help answer cannot so next after then this"
"""Words of the alignment phrases, which may occur in no text of the world."""


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer of every world: one token per word, so a text is its words and blanks."""
    words = {*all_world_words(), *SECOND_LANGUAGE.values(), *all_task_words()}
    words |= {*_PHRASE_WORDS.split(), "user", "assistant", "system"}
    specials = [UNKNOWN, BOS, EOS, MASK, START_HEADER, END_HEADER, EOT]
    vocabulary = {word: i for i, word in enumerate([*sorted(words), *specials])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(specials)  # pyright: ignore[reportUnknownMemberType]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=EOS,
        unk_token=UNKNOWN,
        extra_special_tokens=[MASK, START_HEADER, END_HEADER, EOT],
        chat_template=LLADA.chat_template,
    )
