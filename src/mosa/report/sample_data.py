"""The samples of a report as one compressed piece of data inside the page.

    {"columns": {"subject": {"values": ["base", "mosa"], "at": "#$#$"}, ...},
     "outcomes": {JUDGE: column}, "scores": {JUDGE: column},
     "texts": [{"sample": 3, "strings": [...], "words": [...], "responses": [...]}, ...]}

A column is its distinct values and one character for each sample that says which; `coded` turns
numbers into such characters. An entry of `texts` brings the strings (prompts) and words (tokens)
that none before it had, then its responses: turns of the prompt, commit steps (pinned 0, step 0 is
1), distances between end positions, tokens. What comes first is what is kept where a page may not
grow: the entries are ordered so that each kind of sample has its share of any beginning.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mosa.report.content import Content, Sample, SampleResponse

CHUNK = 200_000
"""Characters after which the compressed size is looked at, as long as there is room."""
GOLDEN = 0.6180339887498949
GZIP = 31
"""zlib's word for the gzip format, whose head then holds no time."""


@dataclass(frozen=True)
class SampleData:
    """What the page carries."""

    text: str
    """gzip in base64; read by page.js."""
    num_with_text: int
    """Samples whose responses are in it."""


def gzipped(text: str) -> str:
    """Text as gzip in base64, the same for the same text."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, GZIP)
    return _base64(compressor.compress(_bytes(text)) + compressor.flush())


def pack(content: Content, num_bytes: int) -> SampleData | None:
    """The samples in at most `num_bytes` of base64: all of them, and the texts of as many as fit.

    None where not even the samples without their texts fit. The time it takes grows with the
    samples and their tokens, and no faster.
    """
    room = num_bytes // 4 * 3
    compressor = zlib.compressobj(9, zlib.DEFLATED, GZIP)
    written = [compressor.compress(_bytes(_head(content)))]
    size = len(written[0])

    def size_if_ended(end: str) -> int:
        trial = compressor.copy()
        return size + len(trial.compress(_bytes(end))) + len(trial.flush())

    if size_if_ended("]}") > room:
        return None
    kept = 0
    for texts in _chunks(_texts(content)):
        before = compressor.copy()
        piece = compressor.compress(_bytes(("," if kept else "") + ",".join(texts)))
        written.append(piece)
        size += len(piece)
        if size_if_ended("]}") <= room:
            kept += len(texts)
            continue
        # The chunk in which the room ends: of its half, or a quarter and so on, what fits.
        compressor, size = before, size - len(written.pop())
        while texts := texts[: len(texts) // 2]:
            piece = ("," if kept else "") + ",".join(texts)
            if size_if_ended(piece + "]}") <= room:
                written.append(compressor.compress(_bytes(piece)))
                kept += len(texts)
                break
        break
    written.append(compressor.compress(b"]}") + compressor.flush())
    return SampleData(_base64(b"".join(written)), kept)


# -------------------------------------------------------------------------------- encoding


def coded(numbers: Iterable[int]) -> str:
    r"""One character for each number from 0, of one byte up to 91, without `"` and the backslash.

    >>> coded([0, 1, 56, 57])
    '#$[]'
    """
    return "".join([_FEW[n] if n < len(_FEW) else _character(n) for n in numbers])


def _character(number: int) -> str:
    point = number + 0x23
    point += point >= 0x5C  # the backslash
    point += 0x800 * (point >= 0xD800)  # surrogates are no characters
    return chr(point)


_FEW = [_character(number) for number in range(4096)]
"""Nearly all that are met, looked up faster than made."""


def column(values: Sequence[Any]) -> dict[str, Any]:
    """The distinct values in order of appearance, and which of them each place has."""
    places = {value: place for place, value in enumerate(dict.fromkeys(values))}
    return {"values": list(places), "at": coded(places[value] for value in values)}


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def _bytes(text: str) -> bytes:
    # Half a character, which a model may write as a token, is shown as a question mark.
    return text.encode("utf-8", "replace")


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


# --------------------------------------------------------------------------------- samples


def _head(content: Content) -> str:
    """Everything but the texts, the list of which is left open."""
    samples = content.samples
    is_redacted = content.is_redacted
    fields: dict[str, Callable[[Sample], Any]] = {
        "subject": lambda s: s.subject,
        "attack": lambda s: s.attack,
        "threat": lambda s: s.threat,
        "set": lambda s: s.case_set,
        "case": lambda s: s.case,
        "request": lambda s: None if is_redacted else s.request,
        "category": lambda s: s.category,
        "seed": lambda s: s.seed,
        "number": lambda s: s.number,
        "variant": lambda s: s.variant,
        "queries": lambda s: s.queries,
        "garbled": lambda s: s.is_garbled,
    }
    judges = list(dict.fromkeys([*content.judges, *(j for s in samples for j in s.outcomes)]))
    head = {
        "columns": {name: column([value(s) for s in samples]) for name, value in fields.items()},
        "outcomes": {j: column([s.outcomes.get(j) for s in samples]) for j in judges},
        "scores": {j: column([_rounded(s.scores.get(j)) for s in samples]) for j in judges},
    }
    return _json(head)[:-1] + ',"texts":['


def _rounded(score: float | None) -> float | None:
    return None if score is None else round(score, 4)


class _Vocabulary:
    """Numbers for texts, in order of appearance."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._new: list[str] = []

    def numbers(self, texts: Iterable[str]) -> list[int]:
        """Each text's number."""
        found = []
        for text in texts:
            number = self._numbers.get(text)
            if number is None:
                number = self._numbers[text] = len(self._numbers)
                self._new.append(text)
            found.append(number)
        return found

    def take_new(self) -> list[str]:
        """Those that came since the last call."""
        new, self._new = self._new, []
        return new


def _texts(content: Content) -> Iterator[str]:
    """The responses of each sample that has some, in the order in which they are to be kept."""
    strings, words = _Vocabulary(), _Vocabulary()
    for place in keeping_order(content):
        responses = [
            _response(response, content.is_redacted, strings, words)
            for response in content.samples[place].responses
        ]
        yield _json(
            {
                "sample": place,
                "strings": strings.take_new(),
                "words": words.take_new(),
                "responses": responses,
            }
        )


def _response(
    response: SampleResponse, is_redacted: bool, strings: _Vocabulary, words: _Vocabulary
) -> list[Any]:
    turns = tokens = None
    if response.prompt is not None and not is_redacted:
        turns = [strings.numbers(turn) for turn in response.prompt]
    if response.tokens is not None and not is_redacted:
        tokens = coded(words.numbers(response.tokens))
    steps = coded(step + 1 for step in response.commit_step)
    ends = sorted(response.end_positions)
    distances = coded(end - start for start, end in zip([0, *ends], ends, strict=False))
    return [turns, steps, distances, tokens]


def keeping_order(content: Content) -> list[int]:
    """The places of all samples with responses, those to be kept first at the front.

    Every combination of subject, attack and outcome has its turn before one has a second, so that
    rare outcomes keep their examples; inside one, any beginning is spread over the whole.
    """
    groups: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    judge = content.judges[0] if content.judges else ""
    for place, sample in enumerate(content.samples):
        if sample.responses:
            outcome = sample.outcomes.get(judge) or next(iter(sample.outcomes.values()), "")
            groups[sample.subject, sample.attack, outcome].append(place)
    turns: list[tuple[int, int]] = []
    for places in groups.values():
        # Multiples of the golden ratio fall evenly into an interval, however many there are.
        spread = sorted(range(len(places)), key=lambda k: k * GOLDEN % 1.0)
        ranks = {k: rank for rank, k in enumerate(spread)}
        turns += [(ranks[k], place) for k, place in enumerate(places)]
    return [place for _, place in sorted(turns, key=lambda turn: turn[0])]


def _chunks(texts: Iterator[str]) -> Iterator[list[str]]:
    chunk: list[str] = []
    length = 0
    for text in texts:
        chunk.append(text)
        length += len(text)
        if length >= CHUNK:
            yield chunk
            chunk, length = [], 0
    if chunk:
        yield chunk
