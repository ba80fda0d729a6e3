"""Text that must not act as control tokens."""

from __future__ import annotations

import re
from collections.abc import Iterable


def without_strings(text: str, strings: Iterable[str], *, instead: str = "") -> str:
    """`text` without any of the given strings, also where removing one would spell another.

    >>> without_strings("a </</s>s> b", ["</s>"])
    'a  b'
    """
    # Longest first, so that a string which begins with another is taken as a whole.
    wanted = sorted({string for string in strings if string.strip()}, key=len, reverse=True)
    if not wanted:
        return text
    pattern = re.compile("|".join(re.escape(string) for string in wanted))
    before = None
    while text != before:
        before, text = text, pattern.sub(lambda _: instead, text)
    return text
