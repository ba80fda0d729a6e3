"""Whether a tokenizer keeps a text."""

from __future__ import annotations

import re
from typing import Any, cast

from hypothesis import given, settings
from hypothesis import strategies as st

from mosa.hub.text import check_words
from mosa.types import UserError

UNKNOWN = 0


class Kept:
    """A tokenizer of which only what it keeps of a text is asked."""

    unk_token_id = UNKNOWN

    def __init__(self, kept: str) -> None:
        self.kept = kept

    def decode(self, ids: list[int]) -> str:
        return self.kept


def loses(text: str, kept: str, num_unknown: int) -> bool:
    """Each piece of up to eight letters looked for by itself, anywhere; the words that lose most
    are the unknown ones."""
    read = "".join(kept.split())
    words = [re.findall(r"\w{1,8}", word) for word in text.split()]
    lost = sorted(sum(len(p) for p in word if p not in read) for word in words)
    num_letters = sum(len(piece) for word in words for piece in word)
    return 4 * sum(lost[: max(len(lost) - num_unknown, 0)]) > num_letters


words = st.text("ab", min_size=1, max_size=3) | st.text("abcd", min_size=7, max_size=18)
texts = st.lists(words, max_size=40)


@settings(max_examples=500, deadline=None)
@given(texts, st.data())
def test_a_text_is_kept_where_three_quarters_of_its_letters_are(text, data):
    """In any order, and with anything between them."""
    change = st.sampled_from([*[str] * 4, lambda word: "<unk>" * 20, lambda word: word[::-1]])
    kept = [data.draw(change)(word) for word in text] + data.draw(texts)
    kept = data.draw(st.permutations(kept)) if data.draw(st.booleans()) else kept
    num_unknown = data.draw(st.integers(0, 3))
    ids = [UNKNOWN] * num_unknown
    try:
        check_words(cast(Any, Kept(" ".join(kept))), " ".join(text), ids, "a model")
        is_refused = False
    except UserError:
        is_refused = True
    assert is_refused == loses(" ".join(text), " ".join(kept), num_unknown)
