"""The canvas of a model that is served elsewhere: its tokens, and how a request holds them.

A server that lets its users write into the response takes ids: one for every position, and the
positions that keep theirs in every step (vLLM, pull request 57250). Which ids, its tokenizer says,
which the user names, since no server gives it out. What a server answers is a text all the same:
the tokens that it would write, at pinned positions too, so that a pin need not stand in it.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from mosa.families import chat
from mosa.families.checkpoint import read_family_tokenizer
from mosa.hub.folders import locate
from mosa.inputs import is_file, read_json
from mosa.types import Prompt, UserError

FIELD = "vllm_xargs"
"""Where a request holds the fields below."""
SEED, PINNED, LENGTH = "diffusion_seed_canvas", "diffusion_pinned", "diffusion_canvas_length"
NO_MASK = -1
"""The id of a gap for a model that has no mask token; never sent."""
CONFIG = "config.json"
FILES = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "merges.txt", CONFIG)
"""What is fetched from the hub."""


class ServedTokens:
    """The tokens of a served model, as attacks on its canvas read them (`attacks.base.Tokens`)."""

    is_served, has_adapter, has_turns = True, False, True

    def __init__(self, source: str) -> None:
        """`source` is a folder or hub id with the model's tokenizer. Raises UserError where there
        is none, or where it has no end token."""
        folder = locate(source, patterns=FILES)
        tokenizer = read_family_tokenizer(folder, PreTrainedTokenizerFast)
        if tokenizer is None:
            raise UserError(f"{folder} holds no tokenizer.json; give the folder of a tokenizer")
        if not isinstance(tokenizer.eos_token_id, int):
            raise UserError(f"the tokenizer of {source} names no end token; add eos_token to it")
        self.source, self.tokenizer = source, tokenizer
        self.mask_token_id = _mask_token_id(tokenizer, folder)
        self.eos_token_id = tokenizer.eos_token_id
        self.end_token_ids = (self.eos_token_id,)
        steering = (self.mask_token_id, self.eos_token_id)
        self._reader = chat.Reader(tokenizer, source, self.mask_token_id, steering)
        self.max_length = tokenizer.model_max_length
        self.block_length: int | None = None  # a server does not tell
        self.hash = hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()

    @property
    def special_tokens(self) -> tuple[str, ...]:
        """How the tokens that steer the model are spelled."""
        return tuple(self._reader.special.values())

    def encode(self, prompt: Prompt, *, allow_special_tokens: bool = False) -> list[int]:
        """A server has a template of its own."""
        raise AssertionError("the tokens of a prompt are not known")

    def encode_text(self, text: str) -> list[int]:
        """The ids of bare text; special tokens that it spells are plain text."""
        return [token for token, _ in self.encode_with_ends(text)]

    def encode_with_ends(self, text: str) -> list[tuple[int, int]]:
        """The ids of `encode_text`, each with the place in the text at which its characters end."""
        return self._reader.with_ends(text)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, without special tokens."""
        text = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        assert isinstance(text, str)  # a list only for a batch of rows
        return text

    def canvas_fields(self, ids: Sequence[int], seed: int) -> dict[str, Any]:
        """The fields of a request for a response that begins as `ids`, with `mask_token_id` for
        gaps: masks, or where the model has none, ids drawn from its vocabulary."""
        draw = random.Random(seed)
        size = len(self.tokenizer)
        gap = self.mask_token_id
        noise = [draw.randrange(size) if gap == NO_MASK else gap for _ in ids]
        canvas = [noise[i] if token == gap else token for i, token in enumerate(ids)]
        pinned = [i for i, token in enumerate(ids) if token != gap]
        return {FIELD: {SEED: canvas, PINNED: pinned, LENGTH: len(canvas)}}


def _mask_token_id(tokenizer: PreTrainedTokenizerFast, folder: Path) -> int:
    """As the tokenizer says, else the model's config, which some releases leave it to."""
    found: Any = tokenizer.mask_token_id
    if found is None and is_file(folder / CONFIG):
        found = read_json(folder / CONFIG, dict[str, Any]).get("mask_token_id")
    if found is None:
        return NO_MASK
    if not isinstance(found, int) or not 0 <= found < len(tokenizer):
        raise UserError(f"{folder / CONFIG}: mask_token_id {found!r} is no token; correct it")
    return found
