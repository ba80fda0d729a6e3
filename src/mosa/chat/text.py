"""Filling templates, and text that must not act as control tokens."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping


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


def fill_fields(template: str, values: Mapping[str, str]) -> str:
    """The template with each `{name}` of `values` filled in, in one pass; other braces stay.

    >>> fill_fields("{a} {b} {c}", {"a": "{b}", "b": "x"})
    '{b} x {c}'
    """
    if not values:
        return template
    names = "|".join(map(re.escape, values))
    return re.sub(rf"\{{({names})\}}", lambda match: values[match[1]], template)
