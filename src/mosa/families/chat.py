"""Prompts to token ids, so that what users type never becomes a special token by accident."""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from transformers import PreTrainedTokenizerFast

from mosa.hub.bounded import faults_of
from mosa.hub.text import check_words, rendered, token_ids
from mosa.types import Message, UserError


@dataclass(frozen=True)
class Reader:
    """The tokenizer of a model, as it reads for that model.

    Raises UserError, with the name of the model, where the tokenizer loses what a text says.
    """

    tokenizer: PreTrainedTokenizerFast
    source: str
    """The name of the model."""
    mask_token_id: int
    reserved_ids: Collection[int]
    """Ids that steer the model even where the tokenizer does not list them as special."""

    @cached_property
    def special(self) -> dict[int, str]:
        """The added tokens that steer the model: the special ones, and those with a reserved id."""
        return {
            i: token.content
            for i, token in self.tokenizer.added_tokens_decoder.items()
            if (token.special or i in self.reserved_ids) and i != self.tokenizer.unk_token_id
        }

    def dialogue(
        self,
        messages: Sequence[Message],
        template: str,
        settings: Mapping[str, Any],
        *,
        allow_special_tokens: bool,
    ) -> list[int]:
        """The ids of a dialogue under a Jinja chat template, which is told `settings` as well.

        Special tokens written by the template are special; the same characters inside a message are
        plain text unless `allow_special_tokens`. Raises UserError where the template refuses the
        dialogue, fails or loses a message, and for masks that no message spells.
        """

        def ids_of(text: str) -> list[int]:
            return token_ids(self.tokenizer, text, self.source)

        def render(contents: Sequence[str]) -> str:
            turns = [
                {"role": message.role, "content": content}
                for message, content in zip(messages, contents, strict=True)
            ]
            return rendered(self.tokenizer, template, turns, self.source, settings=settings)

        contents = [message.content for message in messages]
        # Of the model's own turns a template may drop the thoughts.
        asked = " ".join(message.content for message in messages if message.role != "assistant")
        if allow_special_tokens:
            ids = ids_of(render(contents))
            self._check_masks(ids, contents)
            check_words(self.tokenizer, asked, ids, self.source)
            return ids
        # Every special token spelled in a message is cut in two by a character that occurs nowhere
        # else; the rendered text is then tokenised piece by piece, so that the tokenizer never sees
        # the token whole, while the template's own tokens stay in one piece. A dialogue that spells
        # none stays in one piece and gets the tokens that the tokenizer itself would give it.
        private_use = map(chr, range(0xF0000, 0xFFFFE))
        divider = next(c for c in private_use if c not in "".join(contents))
        text = render([divider.join(_pieces(content, self.special)) for content in contents])
        ids = [i for piece in text.split(divider) for i in ids_of(piece)]
        self._check_masks(ids, [])
        harmless = render(["x" if content.strip() else "" for content in contents])
        _check_special(ids, ids_of(harmless), self.special)
        check_words(self.tokenizer, asked, ids, self.source)
        return ids

    def with_special_tokens(self, text: str) -> list[int]:
        """The ids of text, in which special tokens that it spells are special."""
        ids = token_ids(self.tokenizer, text, self.source)
        self._check_masks(ids, [text])
        check_words(self.tokenizer, text, ids, self.source)
        return ids

    def with_ends(self, text: str) -> list[tuple[int, int]]:
        """The ids of text in which no special token counts as one, each with the place in the text
        at which its characters end."""
        found: list[tuple[int, int]] = []
        begin = 0
        what = f"a text with the tokenizer of {self.source}"
        for piece in _pieces(text, self.special):
            with faults_of(what, "use another tokenizer, or text"):
                read = self.tokenizer(piece, add_special_tokens=False, return_offsets_mapping=True)
            pairs = zip(read["input_ids"], read["offset_mapping"], strict=True)
            found += [(token, begin + end) for token, (_, end) in pairs]
            begin += len(piece)
        ids = [token for token, _ in found]
        _check_special(ids, [], self.special)
        check_words(self.tokenizer, text, ids, self.source)
        return found

    def _check_masks(self, ids: Sequence[int], contents: Sequence[str]) -> None:
        """UserError where ids hold more masks than the contents spell: they would be filled."""
        if self.mask_token_id not in ids:
            return
        word = self.tokenizer.added_tokens_decoder[self.mask_token_id].content
        if ids.count(self.mask_token_id) > sum(content.count(word) for content in contents):
            raise UserError(
                f"The chat template or the tokenizer of {self.source} puts the mask token {word} "
                "into a prompt that holds none; use those that belong to the model."
            )


def _pieces(text: str, special: dict[int, str]) -> list[str]:
    """The text cut after the first letter of every special token in it, so that none is whole.

    Overlapping occurrences are cut one by one.
    """
    pattern = "|".join(re.escape(token) for token in special.values()) or "(?!)"
    cuts = [match.start() + 1 for match in re.finditer(f"(?={pattern})", text)]
    return [text[start:end] for start, end in itertools.pairwise([0, *cuts, len(text)])]


def _check_special(ids: list[int], expected: list[int], special: dict[int, str]) -> None:
    """Raise where a special token got through, as a tokenizer that rewrites text could let it."""
    if [i for i in ids if i in special] != [i for i in expected if i in special]:
        raise UserError(
            "The prompt spells special tokens in a way that this tokenizer cannot keep apart from "
            "real ones; take them out, or allow special tokens."
        )
