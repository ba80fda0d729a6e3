"""Tokenizers and chat templates of others: read, tried, and used; each fault is a sentence."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from transformers import PreTrainedTokenizerFast

from mosa.hub.bounded import ask, faults_of
from mosa.inputs import is_file, read_bytes, read_json, shortened
from mosa.types import UserError

MOST_TOKENIZER_BYTES = 256 << 20
MOST_TEMPLATE_LETTERS = 1 << 18
MOST_ADDED_LETTERS = 1 << 20
"""What a template may write beside the messages."""
MOST_TRIED = 64
"""Words of its own vocabulary that a tokenizer is tried with."""


MOST_BETWEEN = 64
"""Letters that what is kept of a text may have in place of a lost piece, to be read in one go."""


class Refused(UserError):
    """A template refuses a dialogue, for example one whose turns do not alternate."""


# ------------------------------------------------------------------------------------- tokenizers


def read_tokenizer(folder: Path, reader: Any) -> PreTrainedTokenizerFast:
    """The tokenizer of a folder by `reader`, a class of the transformers library.

    Raises UserError for whatever a library raises while it reads the files or a word, and for a
    tokenizer that takes seconds or gigabytes for a few texts.
    """
    file = folder / "tokenizer.json"
    remedy = "get the tokenizer's files again"
    if is_file(file):
        fault = _fault_of(read_bytes(file, most=MOST_TOKENIZER_BYTES), file)
        if fault is not None:
            raise UserError(f"{file} cannot be read ({fault}); {remedy}")
    for name in ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"):
        if is_file(folder / name):
            read_json(folder / name)
    shown_file = file if is_file(file) else folder / "tokenizer_config.json"
    with faults_of(str(shown_file), remedy):
        tokenizer = reader.from_pretrained(folder, local_files_only=True)
    tokenizer.split_special_tokens = False  # else it takes the template's tokens for text
    token_ids(tokenizer, "x", str(folder))
    _check_own_words(tokenizer, str(folder))
    chat_template(tokenizer, str(folder))
    return tokenizer


def _check_own_words(tokenizer: PreTrainedTokenizerFast, source: str) -> None:
    """UserError where a tokenizer loses words of its own vocabulary, or knows them not."""
    tokens = sorted(tokenizer.get_vocab().items(), key=lambda pair: pair[1])
    added = tokenizer.added_tokens_decoder
    own = (re.fullmatch(r"[^\w#]?(?:##)?([A-Za-z]{3,})", t) for t, i in tokens if i not in added)
    words = [match[1] for match in own if match]
    text = " ".join(words[:: len(words) // MOST_TRIED + 1])
    _check_kept(tokenizer, text, token_ids(tokenizer, text, source), source)


def check_words(
    tokenizer: PreTrainedTokenizerFast, text: str, ids: Sequence[int], source: str
) -> None:
    """UserError where a quarter of a text is neither in its ids nor unknown words.

    Letters count, not their case or accents.
    """
    num_unknown = ids.count(tokenizer.unk_token_id) if tokenizer.unk_token_id is not None else 0
    _check_kept(tokenizer, text, ids, source, num_unknown=num_unknown)


def _check_kept(
    tokenizer: PreTrainedTokenizerFast,
    text: str,
    ids: Sequence[int],
    source: str,
    *,
    num_unknown: int = 0,
) -> None:
    """UserError where a quarter of the letters is lost, those of `num_unknown` words aside."""
    with faults_of(f"tokens with the tokenizer of {source}", "use another tokenizer"):
        kept = str(tokenizer.decode(list(ids)))
    read = "".join(_letters(kept).split())
    words = [re.findall(r"\w{1,8}", word) for word in _letters(text).split()]
    missing, place = set[str](), 0
    for piece in (piece for word in words for piece in word):  # most stand behind the one before
        found = read.find(piece, place, place + MOST_BETWEEN)
        if found < 0:
            missing.add(piece)
        else:
            place = found + len(piece)
    # One pass for each length: looking for each piece by itself takes minutes in a long text.
    missing -= {
        read[start : start + length]
        for length in {*map(len, missing)}
        for start in range(len(read) - length + 1)
    }
    lost = sorted(sum(len(piece) for piece in word if piece in missing) for word in words)
    total = sum(len(piece) for word in words for piece in word)
    if 4 * sum(lost[: max(len(lost) - num_unknown, 0)]) > total:
        raise UserError(
            f"The tokenizer of {source} loses much of a text (of {shortened(repr(text))} it keeps "
            f"{shortened(repr(kept))}); get the tokenizer's files again."
        )


def _letters(text: str) -> str:
    """A text in small letters, without accents."""
    if text.isascii():
        return text.casefold()
    apart = unicodedata.normalize("NFKD", text.casefold())
    return "".join(c for c in apart if not unicodedata.combining(c))


_TRIED: dict[str, str | None] = {}


def _fault_of(content: bytes, file: Path) -> str | None:
    """What is wrong with a tokenizer.json; tried once for each content."""
    digest = hashlib.sha256(content).hexdigest()
    if digest not in _TRIED:
        _TRIED[digest] = ask("tokenize", file=str(file.absolute())).get("error")
    return _TRIED[digest]


def token_ids(
    tokenizer: PreTrainedTokenizerFast, text: str, source: str, *, add_special_tokens: bool = False
) -> list[int]:
    """The ids of a text; UserError, with the model's name, for whatever the tokenizer raises."""
    with faults_of(f"a text with the tokenizer of {source}", "use another tokenizer, or text"):
        return tokenizer(text, add_special_tokens=add_special_tokens)["input_ids"]


# -------------------------------------------------------------------------------------- templates


def chat_template(tokenizer: PreTrainedTokenizerFast, source: str) -> str | None:
    """The chat template of a tokenizer, its default one of several; None where it has none."""
    template: Any = tokenizer.chat_template
    if isinstance(template, Mapping):
        template = template.get("default")
        if template is None:
            raise UserError(
                f"{source} has several chat templates and none is called default; name one so."
            )
    if template is None:
        return None
    if not isinstance(template, str):
        raise UserError(f"The chat template of {source} is no text; write a Jinja template.")
    if len(template) > MOST_TEMPLATE_LETTERS:
        raise UserError(
            f"The chat template of {source} has {len(template):,} letters, more than "
            f"{MOST_TEMPLATE_LETTERS:,}; shorten it."
        )
    return template


def rendered(
    tokenizer: PreTrainedTokenizerFast,
    template: str,
    turns: Sequence[Mapping[str, Any]],
    source: str,
    *,
    add_generation_prompt: bool = True,
    settings: Mapping[str, Any] = MappingProxyType({}),
) -> str:
    """The text of a dialogue in a chat template.

    `settings` are what the template is told besides, such as `enable_thinking`. `turns` have a role
    and a content: a text, or a list of parts with a text each. Raises Refused where the template
    refuses the dialogue, and UserError where it fails, takes too much time or memory, or leaves out
    what a turn says. How much white space parts words does not count, nor what stands before
    `</think>` in an answer.
    """
    said = [(turn["role"], words) for turn in turns for words in _texts_of(turn)]
    context = {
        **{n: str(t) for n, t in tokenizer.special_tokens_map.items() if not isinstance(t, list)},
        "messages": [dict(turn) for turn in turns],
        "tools": None,
        "documents": None,
        "add_generation_prompt": add_generation_prompt,
        **settings,
    }
    most = MOST_ADDED_LETTERS + 2 * sum(len(words) for _, words in said)
    outcome = ask("render", template=template, context=context, most=most)
    if "refused" in outcome:
        raise Refused(
            f"The chat template of {source} refuses this dialogue ({outcome['refused']}); reorder "
            "or drop turns."
        )
    if "error" in outcome:
        raise UserError(
            f"The chat template of {source} fails ({outcome['error']}); correct it, or use another."
        )
    text: str = outcome["value"]
    left = " ".join(text.split())
    # Longest first, and each at a place of its own: a turn may stand within another.
    for role, words in sorted(said, key=lambda pair: len(pair[1]), reverse=True):
        wanted = " ".join(words.split())
        if wanted not in left:
            raise UserError(
                f"The chat template of {source} leaves the text of a {role} turn out; correct it, "
                "or use another."
            )
        left = left.replace(wanted, "\0", 1) if wanted else left
    return text


def _texts_of(turn: Mapping[str, Any]) -> list[str]:
    """What a turn says, part by part; of an answer only what follows its thoughts."""
    content = turn["content"]
    texts = [content] if isinstance(content, str) else [part["text"] for part in content]
    if turn["role"] == "assistant":
        last = max((i for i, text in enumerate(texts) if "</think>" in text), default=0)
        texts = [texts[last].rpartition("</think>")[2], *texts[last + 1 :]]
    return texts
