"""Tokenizers and chat templates of others: read, tried, and used; each fault is a sentence."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from mosa.hub.bounded import ask, faults_of
from mosa.inputs import is_file, read_bytes, read_json
from mosa.types import UserError

MOST_TOKENIZER_BYTES = 256 << 20
MOST_TEMPLATE_LETTERS = 1 << 18
MOST_ADDED_LETTERS = 1 << 20
"""What a template may write beside the messages."""


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
    token_ids(tokenizer, "x", str(folder))
    chat_template(tokenizer, str(folder))
    return tokenizer


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
    add_generation_prompt: bool,
) -> str:
    """The text of a dialogue in a chat template.

    `turns` have a role and a content: a text, or a list of parts with a text each. Raises Refused
    where the template refuses the dialogue, and UserError where it fails, takes too much time or
    memory, or leaves out what a turn says. White space does not count, nor what stands before
    `</think>` in an answer.
    """
    said = [_words_of(turn) for turn in turns]
    context = {
        **{name: str(token) for name, token in _special_tokens(tokenizer).items()},
        "messages": [dict(turn) for turn in turns],
        "tools": None,
        "documents": None,
        "add_generation_prompt": add_generation_prompt,
    }
    most = MOST_ADDED_LETTERS + 2 * sum(map(len, said))
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
    left = "".join(text.split())
    # Longest first, and each at a place of its own: a turn may stand within another.
    order = sorted(zip(said, turns, strict=True), key=lambda pair: len(pair[0]), reverse=True)
    for words, turn in order:
        wanted = "".join(words.split())
        if wanted not in left:
            raise UserError(
                f"The chat template of {source} leaves the text of a {turn['role']} turn out; "
                "correct it, or use another."
            )
        left = left.replace(wanted, "\0", 1) if wanted else left
    return text


def _words_of(turn: Mapping[str, Any]) -> str:
    content = turn["content"]
    words = content if isinstance(content, str) else "".join(part["text"] for part in content)
    return words.rpartition("</think>")[2] if turn["role"] == "assistant" else words


def _special_tokens(tokenizer: PreTrainedTokenizerFast) -> Mapping[str, Any]:
    """Names such as bos_token -> how they are spelled."""
    return {
        name: token
        for name, token in tokenizer.special_tokens_map.items()
        if not isinstance(token, list)
    }
