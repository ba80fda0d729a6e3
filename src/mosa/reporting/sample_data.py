"""The samples of a report as one compressed piece of JSON inside the page.

    {"words": ["sure", "here", ...],
     "titles": {"cipher_chat": "request in a cipher", ...}, "judges": {JUDGE: "truth", ...},
     "samples": [{"subject": "base", "outcomes": {JUDGE: "held"}, ...}, ...],
     "texts": [[3, [{"prompt": [[ROLE, TEXT], ...], "commit_step": [...], "tokens": [0, 1, ...],
                     ...}, ...]], ...]}

`samples` and `texts` have the fields of `Sample` and `SampleResponse`. `texts` holds the responses
of samples, each behind its sample's place; a token is the place of its word, which saves a third.
Where a page may not grow, it keeps the first texts: each kind of sample has its share of any
beginning.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from mosa.reporting.content import Content

CHUNK = 200_000
"""Characters after which the compressed size is looked at, as long as there is room."""
GOLDEN = 0.6180339887498949
GZIP = 31
"""zlib's word for the gzip format, whose head then holds no time."""


def gzipped(text: str) -> str:
    """Text as gzip in base64, the same for the same text."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, GZIP)
    return _base64(compressor.compress(_bytes(text)) + compressor.flush())


def pack(content: Content, num_bytes: int) -> tuple[str, int] | None:
    """All samples, with the texts of as many as fit into `num_bytes` of base64, as page.js reads
    them; and how many have their texts.

    None where not even the samples without their texts fit. Time grows with the samples and their
    tokens, and no faster.
    """
    if content.is_redacted:  # whatever its samples hold
        content = replace(content, samples=[each.without_words() for each in content.samples])
    room = num_bytes // 4 * 3
    compressor = zlib.compressobj(9, zlib.DEFLATED, GZIP)
    words = _words(content)
    written = [compressor.compress(_bytes(_head(content, list(words))))]
    size = len(written[0])

    def size_if_ended(end: str) -> int:
        trial = compressor.copy()
        return size + len(trial.compress(_bytes(end))) + len(trial.flush())

    if size_if_ended("]}") > room:
        return None
    kept = 0
    for texts in _chunks(_texts(content, words)):
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
    return _base64(b"".join(written)), kept


# --------------------------------------------------------------------------------- samples


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def _bytes(text: str) -> bytes:
    # Half a character, which a model may write as a token, is shown as a question mark.
    return text.encode("utf-8", "replace")


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _words(content: Content) -> dict[str, int]:
    """The place of every word of the responses."""
    responses = (response for sample in content.samples for response in sample.responses)
    words = dict.fromkeys(word for response in responses for word in response.tokens or ())
    return {word: place for place, word in enumerate(words)}


def _head(content: Content, words: list[str]) -> str:
    """Everything but the texts, the list of which is left open."""
    samples = [
        {name: value for name, value in vars(sample).items() if name != "responses"}
        for sample in content.samples
    ]
    titles = {name: named.title for name, named in content.names.items()}
    head = {
        "words": words,
        "titles": titles,
        "judges": dict(content.judges),
        "samples": samples,
    }
    return _json(head)[:-1] + ',"texts":['


def _texts(content: Content, words: Mapping[str, int]) -> Iterator[str]:
    """The responses of each sample that has some, in the order in which they are to be kept."""
    for place in keeping_order(content):
        responses = [
            vars(one) | {"tokens": one.tokens and [words[word] for word in one.tokens]}
            for one in content.samples[place].responses
        ]
        yield _json([place, responses])


def keeping_order(content: Content) -> list[int]:
    """The places of all samples with responses, those to be kept first at the front.

    Every combination of subject, attack and outcome has its turn before one has a second, so that
    rare outcomes keep their examples; inside one, any beginning is spread over the whole.
    """
    groups: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    judge = next(iter(content.judges), "")
    for place, sample in enumerate(content.samples):
        if sample.responses:
            outcome = sample.outcomes.get(judge) or next(iter(sample.outcomes.values()), "")
            groups[sample.subject, sample.attack, outcome].append(place)
    # Those of the first screen come first of all.
    showcase = content.overview.showcase
    seen_first = [] if showcase is None else [p for row in showcase.rows.values() for p in row]
    turns = [(-1, place) for place in dict.fromkeys(seen_first)]
    for places in groups.values():
        # Multiples of the golden ratio fall evenly into an interval, however many there are.
        spread = sorted(range(len(places)), key=lambda k: k * GOLDEN % 1.0)
        turns += [(rank, places[k]) for rank, k in enumerate(spread) if places[k] not in seen_first]
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
