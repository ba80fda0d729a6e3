"""Prompts to token ids, so that what users type never becomes a special token by accident."""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerFast

from mosa.hub.bounded import faults_of
from mosa.hub.text import check_words, rendered, token_ids
from mosa.types import Message, UserError


def encode_dialogue(
    tokenizer: PreTrainedTokenizerFast,
    messages: Sequence[Message],
    *,
    template: str,
    generation_header: str,
    settings: Mapping[str, Any],
    mask_token_id: int,
    reserved_ids: Collection[int],
    add_generation_prompt: bool,
    allow_special_tokens: bool,
    source: str,
) -> list[int]:
    """The token ids of a dialogue under a Jinja chat template, which is told `settings` as well.

    Special tokens written by the template are special; the same characters inside a message are
    plain text unless `allow_special_tokens`. Raises UserError where the template refuses the
    dialogue, fails or loses a message, where the tokenizer loses what the user says, and for masks
    that no message spells. `source` is the model's name in messages.
    """

    def render(contents: Sequence[str]) -> str:
        turns = [
            {"role": message.role, "content": content}
            for message, content in zip(messages, contents, strict=True)
        ]
        text = rendered(
            tokenizer,
            template,
            turns,
            source,
            add_generation_prompt=add_generation_prompt,
            settings=settings,
        )
        # Some released templates append the header whether it is asked for or not.
        return text if add_generation_prompt else text.removesuffix(generation_header)

    contents = [message.content for message in messages]
    # Of the model's own turns a template may drop the thoughts.
    asked = " ".join(message.content for message in messages if message.role != "assistant")
    if allow_special_tokens:
        ids = token_ids(tokenizer, render(contents), source)
        check_masks(tokenizer, ids, contents, mask_token_id, source)
        check_words(tokenizer, asked, ids, source)
        return ids
    special = special_tokens(tokenizer, reserved_ids)
    # Every special token spelled in a message is cut in two by a character that occurs nowhere
    # else; the rendered text is then tokenised piece by piece, so that the tokenizer never sees
    # the token whole, while the template's own tokens stay in one piece. A dialogue that spells
    # none stays in one piece and gets the tokens that the tokenizer itself would give it.
    divider = _unused_character("".join(contents))
    text = render([divider.join(_pieces(content, special)) for content in contents])
    ids = [i for piece in text.split(divider) for i in token_ids(tokenizer, piece, source)]
    check_masks(tokenizer, ids, [], mask_token_id, source)
    harmless = render(["x" if content.strip() else "" for content in contents])
    _check_special(ids, token_ids(tokenizer, harmless, source), special)
    check_words(tokenizer, asked, ids, source)
    return ids


def encode_with_ends(
    tokenizer: PreTrainedTokenizerFast, text: str, reserved_ids: Collection[int], source: str
) -> list[tuple[int, int]]:
    """The ids of text in which no special token counts as one, each with the place in the text at
    which its characters end."""
    found: list[tuple[int, int]] = []
    begin = 0
    special = special_tokens(tokenizer, reserved_ids)
    for piece in _pieces(text, special):
        with faults_of(f"a text with the tokenizer of {source}", "use another tokenizer, or text"):
            read = tokenizer(piece, add_special_tokens=False, return_offsets_mapping=True)
        pairs = zip(read["input_ids"], read["offset_mapping"], strict=True)
        found += [(token, begin + end) for token, (_, end) in pairs]
        begin += len(piece)
    ids = [token for token, _ in found]
    _check_special(ids, [], special)
    check_words(tokenizer, text, ids, source)
    return found


def check_masks(
    tokenizer: PreTrainedTokenizerFast,
    ids: Sequence[int],
    contents: Sequence[str],
    mask_token_id: int,
    source: str,
) -> None:
    """UserError where ids hold more masks than the contents spell: they would be filled."""
    if mask_token_id not in ids:
        return
    word = tokenizer.added_tokens_decoder[mask_token_id].content
    if ids.count(mask_token_id) > sum(content.count(word) for content in contents):
        raise UserError(
            f"The chat template or the tokenizer of {source} puts the mask token {word} into a "
            "prompt that holds none; use those that belong to the model."
        )


def special_tokens(
    tokenizer: PreTrainedTokenizerFast, reserved_ids: Collection[int]
) -> dict[int, str]:
    """The added tokens that steer the model: the special ones, and those with a reserved id."""
    return {
        i: token.content
        for i, token in tokenizer.added_tokens_decoder.items()
        if (token.special or i in reserved_ids) and i != tokenizer.unk_token_id
    }


def _pieces(text: str, special: dict[int, str]) -> list[str]:
    """The text cut after the first letter of every special token in it, so that none is whole.

    Overlapping occurrences are cut one by one.
    """
    pattern = "|".join(re.escape(token) for token in special.values()) or "(?!)"
    cuts = [match.start() + 1 for match in re.finditer(f"(?={pattern})", text)]
    return [text[start:end] for start, end in itertools.pairwise([0, *cuts, len(text)])]


def _unused_character(text: str) -> str:
    """A private-use character that does not occur in the text."""
    return next(c for c in map(chr, range(0xF0000, 0xFFFFE)) if c not in text)


def _check_special(ids: list[int], expected: list[int], special: dict[int, str]) -> None:
    """Raise where a special token got through, as a tokenizer that rewrites text could let it."""
    if [i for i in ids if i in special] != [i for i in expected if i in special]:
        raise UserError(
            "The prompt spells special tokens in a way that this tokenizer cannot keep apart from "
            "real ones; take them out, or allow special tokens."
        )
