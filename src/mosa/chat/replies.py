"""Reading what a chat model wrote for an attack, without the talk around it.

    Sure! Here is a new suffix:          taken off
    ```                                  taken off
    in plain words, for a class          the text
    ```                                  taken off
    Let me know if you need more.        taken off

Small models rarely "reply with the text and nothing else". What surrounds a text is taken off only
where its form shows it: an introduction ends in a colon and stands on a line of its own, a closing
line speaks to the reader, and a fence is a fence. A refusal is no text.
"""

from __future__ import annotations

import itertools
import json
import re
from typing import Any, cast

from mosa.chat.questions import Unreadable
from mosa.types import is_json_object

_OPENER = re.compile(
    r"(?:^|[.!?,;]\s+)(?:here is|here's|here are|sure|certainly|of course|okay|ok,|absolutely|"
    r"i have|i've|below is|below are|the following|this is)\b"
)
_NAME = (
    r"(?:(?:the|my|your|a|an|one|new|next|first|final|improved|revised|reworded|rewritten|"
    r"rephrased|reformulated|modified|updated|suggested|possible)\s+)*"
    r"(?:question|request|prompt|answer|translation|text|message|suffix|output|response|wording|reply|"
    r"result|skeleton|template|sentence|version|paraphrase|rewrite|rewording|reformulation)s?"
)
"""What a text that was asked for is called by who wrote it."""
_CLOSERS = re.compile(
    r"^\W*(?:let me know|i hope|hope this|feel free|please note|note that|note:|"
    r"if you (?:need|want|would like|have)|is there anything|would you like me to|"
    r"this (?:prompt|suffix|question|message|text|version|rewrite|rewording|translation) "
    r"(?:is|was|has|keeps|uses|asks|should|will|can|may)\b)",
    re.IGNORECASE,
)
_LABEL = re.compile(
    rf"^\W{{0,3}}(?:{_NAME}|things|words)(?:\s+(?:is|would be|could be))?\W{{0,2}}:[*_\s]*(?=\S)",
    re.IGNORECASE,
)
_BULLET = re.compile(r"^\s*(?:[-*•+]|\(?\d{1,3}[.):])\s+")
_FENCE = re.compile(r"^[ \t]*```[^\n`]*\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE)
_MARKS = "\"'`*_“”‘’ \t"
_PAIRS = {'"': '"', "'": "'", "`": "`", "“": "”", "‘": "’", "*": "*", "_": "_"}


_DECLINES = (
    "i'm sorry", "i am sorry", "sorry,", "i can't", "i cannot", "i can not", "i won't",
    "i will not", "i'm unable", "i am unable", "i must decline", "i apologize", "i apologise",
    "my apologies", "i'm afraid", "i am afraid", "as an ai", "unfortunately, i", "i'm not able",
    "i am not able", "i'm really sorry", "i'm very sorry", "i don't feel comfortable",
    "i'm not comfortable", "i do not feel comfortable", "i refuse", "i decline",
    "i will decline", "i have to decline", "sorry but", "i'm just an ai", "as a language model",
    "as an artificial", "i am programmed", "i'm programmed", "i must respectfully",
    "i respectfully", "unfortunately i", "i will not be able", "i won't be able",
    "i do not have the ability",
)  # fmt: skip
"""How a model begins that declines to write something; later in a text, these words may be what was
asked for."""


class Declined(Unreadable):
    """A reply in which the model declines to write what it was asked for."""


def declines(text: str) -> bool:
    """Whether a text begins as a refusal does.

    >>> declines("**I'm sorry**, but I cannot help."), declines("How do I say that I'm sorry?")
    (True, False)
    """
    start = text.lstrip(" \t\n*_#>\"'`").lower().replace("’", "'")
    return start.startswith(_DECLINES)


def read_whole(reply: str, *, may_refuse: bool = False) -> str:
    """A reply that is one text, without introduction, closing line, fence, label and quotes.

    Raises Declined where it begins with a phrase of refusal, unless it may (as the translation of
    one), and Unreadable where it is empty.

    >>> read_text('Here is the question:\\n\\n"How was bread baked?"')
    'How was bread baked?'
    >>> read_text("Question: How was bread baked?\\nLet me know if you need more.")
    'How was bread baked?'
    """
    text = "\n".join(_without_frame(_unfenced(reply).splitlines())).strip()
    text = _unquoted(_LABEL.sub("", _unquoted(text)))
    if not may_refuse and (declines(reply) or declines(text)):
        raise Declined("The model declined.")
    if not text:
        raise Unreadable("The reply is empty.")
    return text


def read_line(reply: str) -> str:
    """The first line of a reply, where an introduction is what was asked for.

    Raises Declined for a refusal, and Unreadable where it is empty.

    >>> read_line('"Sure, here is how bread is baked:"\\n1. Mix.')
    'Sure, here is how bread is baked:'
    >>> read_line("First sentence: I will tell you how bread is baked:")
    'I will tell you how bread is baked:'
    """
    lines = (_unquoted(_LABEL.sub("", _unquoted(line))) for line in _said(reply).splitlines())
    found = next((line for line in lines if line), None)
    if found is None:
        raise Unreadable("The reply is empty.")
    return found


def read_list(reply: str, *, least: int = 1) -> list[str]:
    """The texts that a reply lists, one on each line, without bullets, numbers and quotes.

    Where some lines have bullets or numbers and are enough, the others are talk and left out.
    Raises Declined for a refusal, and Unreadable where there are fewer than `least`.

    >>> read_list("Here are two:\\n1. one\\n2. **two**\\nI hope this helps!")
    ['one', 'two']
    """
    lines = [line for line in _said(reply).splitlines() if line.strip()]
    bulleted = [line for line in lines if _BULLET.match(line)]
    kept = bulleted if bulleted and len(bulleted) >= least else _without_frame(lines)
    found = [text for line in kept if (text := _unquoted(_BULLET.sub("", line)))]
    if len(found) < least:
        raise Unreadable(f"The reply lists {len(found)} texts and not {least}.")
    return found


def read_pairs(reply: str) -> list[tuple[str, str]]:
    """The lines "first = second" of a reply, wherever they stand in it.

    Raises Declined for a refusal, and Unreadable where there is none.

    >>> read_pairs("Here you are:\\n- **lock** = lamp\\nThese are all.")
    [('lock', 'lamp')]
    """
    pairs: list[tuple[str, str]] = []
    for line in _said(reply).splitlines():
        first, equals, second = _BULLET.sub("", line).partition("=")
        pair = _unquoted(first), _unquoted(second)
        if equals and all(pair):
            pairs.append(pair)
    if not pairs:
        raise Unreadable("The reply has no line with an equals sign.")
    return pairs


def read_object(reply: str, *keys: str) -> dict[str, Any]:
    """The first JSON object in a reply that has a text under each of `keys`; where there is none,
    the texts that stand behind these keys as labels, as in an object that is not well formed.

    Raises Declined for a refusal, and Unreadable where there is none, or a text is empty or
    declines.

    >>> read_json('Here it is: {"prompt": "how?"} I hope that {this} helps.', "prompt")
    {'prompt': 'how?'}
    >>> read_json("**Why:** too plain\\n**Prompt:** Tell a story.", "why", "prompt")
    {'why': 'too plain', 'prompt': 'Tell a story.'}
    """
    if declines(reply):
        raise Declined("The model declined.")
    decoder = json.JSONDecoder(strict=False)
    for start in (found.start() for found in re.finditer(r"\{", reply)):
        try:
            found, _ = decoder.raw_decode(reply, start)
        except (json.JSONDecodeError, RecursionError):
            continue
        if not is_json_object(found):
            continue
        if all(isinstance(text := found.get(key), str) and text.strip() for key in keys):
            break
    else:
        found = _labelled(reply, keys)
    if found is not None:
        if any(declines(found[key]) for key in keys):
            raise Declined("The model declined.")
        return found
    raise Unreadable(f"The reply holds no JSON object with a text under {' and '.join(keys)}.")


def _labelled(reply: str, keys: tuple[str, ...]) -> dict[str, Any] | None:
    """The texts behind each of `keys`, where a line or a part of an object begins with it and a
    colon follows; None where one lacks or is empty."""
    names = "|".join(keys)
    label = re.compile(
        rf"(?:^|(?<=[{{,]))\s*\{{?\s*([\"'“])({names})s?[\"'”]\s*:|^[\s*_#-]*(?:\d[.)])?[\s*_]*({names})s?[*_]*\s*:[*_]*",
        re.IGNORECASE | re.MULTILINE,
    )
    marks = list(label.finditer(_unfenced(reply)))
    found: dict[str, Any] = {}
    for mark, after in itertools.zip_longest(marks, marks[1:]):
        end = None if after is None else after.start()
        text = mark.string[mark.end() : end].strip().strip("{},").strip()
        if mark[1]:  # the key was quoted, and so is its text
            text = text.strip("\"'“”")
        found.setdefault((mark[2] or mark[3]).lower(), _unquoted(text))
    return found if all(found.get(key) for key in keys) else None


def repeats(found: object, examples: str) -> bool:
    """Whether a line of what was read is one of the examples' lines, labels and bullets aside.

    What was read may be a text, a list of texts or a list of pairs.

    >>> repeats("How was bread baked?", "Question: How was bread baked?")
    True
    >>> repeats([("cup", "hat")], "cup = bowl")
    False
    """
    parts = cast(list[object], found) if isinstance(found, list) else [found]
    said = [
        " = ".join(map(str, cast(tuple[object, ...], part)))
        if isinstance(part, tuple)
        else str(part)
        for part in parts
    ]
    shown = set(map(_bare, examples.splitlines())) - {""}
    return any(_bare(line) in shown for text in said for line in text.splitlines())


def _bare(line: str) -> str:
    """A line in lower case, without label, bullet, quotes and the mark at its end."""
    words = _unquoted(_LABEL.sub("", _BULLET.sub("", line)))
    return " ".join(words.lower().rstrip(".:!?").split())


def _said(reply: str) -> str:
    """The reply without its fence; raises Declined where it begins with a phrase of refusal."""
    if declines(reply):
        raise Declined("The model declined.")
    return _unfenced(reply)


def _unfenced(reply: str) -> str:
    """What stands in the first code fence, if there is one."""
    fence = _FENCE.search(reply)
    return reply if fence is None else fence[1]


def _without_frame(lines: list[str]) -> list[str]:
    """The lines without an introduction before and closing lines behind."""
    kept = [line for line in lines if line.strip()]
    while kept and _introduces(kept[0]):
        lines = lines[lines.index(kept[0]) + 1 :]
        kept = kept[1:]
    while len(kept) > 1 and _CLOSERS.match(kept[-1]):
        lines = lines[: len(lines) - 1 - lines[::-1].index(kept[-1])]
        kept = kept[:-1]
    return lines


def _introduces(line: str) -> bool:
    """Whether a first line announces what follows: it opens so, or is a label, and ends in a
    colon; or says no more than that it will do it."""
    words = line.strip().strip(_MARKS + "#").lower().replace("’", "'")
    if words.rstrip("!., ") in ("sure", "certainly", "of course", "okay", "ok", "absolutely"):
        return True
    if not words.rstrip(_MARKS).endswith(":"):
        return False
    return bool(_OPENER.search(words) or _LABEL.match(f"{words.rstrip(_MARKS)} x"))


def _unquoted(text: str) -> str:
    """The text without the quotation marks or Markdown that surround the whole of it."""
    text = text.strip()
    while len(text) > 1 and _PAIRS.get(text[0]) == text[-1]:
        inner = text[1:-1].strip()
        if text[0] in inner.strip(text[0]) and text[0] != "'":  # '"a" and "b"' is no quotation
            break
        text = inner
    return text
