"""Ciphers that a model may know: each writes a text so that it must be read letter by letter.

    >>> CIPHERS["caesar"].encode("a kiln")
    'd nlow'
    >>> CIPHERS["caesar"].decode("d nlow")
    'a kiln'

Those of CipherChat (arXiv 2308.06463) that fit into plain text: shifted letters, the alphabet
reversed, character codes, and Morse code.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable
from dataclasses import dataclass

SHIFT = 3
"""Places by which Caesar's cipher moves a letter."""


@dataclass(frozen=True)
class Cipher:
    """A way to write, and to read it back."""

    rule: str
    """The rule in words, as given to the model."""
    encode: Callable[[str], str]
    decode: Callable[[str], str]
    """Reads what it can, and keeps or leaves out what is not in the cipher."""


def _letters(alphabet: str) -> Callable[[str], str]:
    """Replaces each letter by its counterpart in `alphabet`; other characters stay."""
    plain = string.ascii_lowercase
    table = str.maketrans(plain + plain.upper(), alphabet + alphabet.upper())
    return lambda text: text.translate(table)


def _rotated(places: int) -> str:
    letters = string.ascii_lowercase
    return letters[places:] + letters[:places]


def _from_codes(text: str) -> str:
    """Every number from 32 to 126 as its character, in turn; the rest is left out."""
    numbers = (int(number) for number in re.findall(r"\d{1,3}", text))
    return "".join(chr(number) for number in numbers if 32 <= number <= 126)


_CODES = """
    .- -... -.-. -.. . ..-. --. .... .. .--- -.- .-.. -- -. --- .--. --.- .-. ... - ..- ...- .--
    -..- -.-- --.. ----- .---- ..--- ...-- ....- ..... -.... --... ---.. ----.
"""
_MORSE = dict(zip(string.ascii_lowercase + string.digits, _CODES.split(), strict=True))
_FROM_MORSE = {code: letter for letter, code in _MORSE.items()}


def _to_morse(text: str) -> str:
    """Letters and digits in Morse code, words separated by a slash; other signs are left out."""
    words = ([_MORSE[c] for c in word if c in _MORSE] for word in text.lower().split())
    return " / ".join(" ".join(codes) for codes in words if codes)


def _from_morse(text: str) -> str:
    words = ("".join(_FROM_MORSE.get(c, "") for c in word.split()) for word in text.split("/"))
    return " ".join(word for word in words if word)


CIPHERS: dict[str, Cipher] = {
    "caesar": Cipher(
        f"every letter is moved {SHIFT} places on in the alphabet, so that a becomes d",
        _letters(_rotated(SHIFT)),
        _letters(_rotated(-SHIFT)),
    ),
    "atbash": Cipher(
        "the alphabet is reversed, so that a becomes z and b becomes y",
        _letters(string.ascii_lowercase[::-1]),
        _letters(string.ascii_lowercase[::-1]),
    ),
    "ascii": Cipher(
        "every character is written as its ASCII number, with blanks between",
        lambda text: " ".join(str(ord(c)) for c in " ".join(text.split()) if ord(c) <= 126),
        _from_codes,
    ),
    "morse": Cipher(
        "every letter is written in Morse code, and words are apart by a slash",
        _to_morse,
        _from_morse,
    ),
}
"""Every cipher by its name."""
