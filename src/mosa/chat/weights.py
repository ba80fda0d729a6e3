"""Loading an ordinary (causal) language model for local chat models and classifier judges.

Only architectures of the transformers library and only safetensors and GGUF are read: no code that
comes with a checkpoint runs, and nothing is unpickled.
"""

from __future__ import annotations

import importlib.util
import re
import weakref
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from logging import CRITICAL
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging

from mosa.hub.adapters import adapter_settings, read_adapter
from mosa.hub.bounded import faults_of
from mosa.hub.folders import folder_of, locate
from mosa.hub.text import chat_template, check_words, read_tokenizer, rendered, token_ids
from mosa.hub.weights import INDEX, MOST_EPSILON, ROPE_THETA, Weights, chooses_nothing, listed
from mosa.inputs import is_file, is_folder, read_json, shortened
from mosa.provenance import file_hash, folder_hash
from mosa.types import UserError, is_json_list, is_json_object, short_hash
from mosa.worker import Computer, Work, Worker, device_of

__all__ = ["CausalLM", "LocalModel", "checkpoint_name", "chooses_nothing", "load_causal_lm"]

COMPUTED = re.compile(r"(^|\.)(rotary_emb\.inv_freq|(attn|attention)\.(masked_)?bias)$")
"""Tensors that old releases store though they are computed."""
ROPE_FACTOR = (1.0, 1e4)
"""By which positions may be stretched."""
SCALES = re.compile(r"scale|absmax|SCB|zero|codebook|centroid|perm")
"""In the name of a tensor that says what the integers beside it stand for."""


def checkpoint_name(checkpoint: str | Path) -> str:
    """The name of a folder, hub id or GGUF file with a hash of all that is read, 8 hex digits.

    Of an adapter its base is read as well. What the hub has is fetched first, since one name can
    stand for other weights tomorrow. Of a folder with nothing else to load its GGUF file is read.
    Raises UserError for a path where there is nothing, and what `locate` raises.
    """
    named = folder_of(checkpoint)
    gguf = _gguf_of(named)
    if gguf is not None:
        return f"{named.name}#{short_hash(file_hash(gguf))}"
    folder = locate(checkpoint)
    hashes = _hash_of(folder)
    if is_file(folder / "adapter_config.json"):
        hashes += _hash_of(locate(_base_of(folder)))
    return f"{named.name if is_folder(named) else checkpoint}#{short_hash(hashes)}"


def _hash_of(folder: Path) -> str:
    if is_file(folder / INDEX):
        Weights.of_folder(folder)  # refuses weights outside of the folder, which no hash covers
    return folder_hash(folder)


@dataclass(frozen=True)
class CausalLM:
    """A causal language model in evaluation mode, with its tokenizer."""

    network: Any
    tokenizer: Any
    checkpoint: str
    """The folder or hub id as it was named."""
    end_token_ids: tuple[int, ...]
    """The tokens that end an answer: those that the checkpoint names, and the tokenizer's."""

    @property
    def special_tokens(self) -> list[str]:
        """Every string that the tokenizer reads as a control token."""
        added = self.tokenizer.added_tokens_decoder.values()
        return [token.content for token in added if token.special]

    @property
    def pad_token_id(self) -> int:
        """The token to pad with; any will do, for padding is masked."""
        ids = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, 0)
        return next(token_id for token_id in ids if token_id is not None)

    @property
    def max_length(self) -> int | None:
        """How many tokens a prompt and its answer may have, where the config says so."""
        return getattr(self.network.config, "max_position_embeddings", None)

    def ids(self, text: str) -> list[int]:
        """The token ids of a text; UserError where the tokenizer cannot read it."""
        return token_ids(self.tokenizer, text, self.checkpoint)

    def prompt_ids(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        """The token ids of a whole prompt; UserError where it has none, or one that the network
        does not know, and where they lose much of it."""
        ids = token_ids(
            self.tokenizer, text, self.checkpoint, add_special_tokens=add_special_tokens
        )
        size: int = self.network.get_input_embeddings().weight.shape[0]
        if not ids or max(ids) >= size:
            what = f"token {max(ids)} of a prompt" if ids else "any word of a prompt"
            raise UserError(
                f"{self.checkpoint} has no embedding for {what}; use the tokenizer that belongs to "
                "it."
            )
        check_words(self.tokenizer, text, ids, self.checkpoint)
        return ids

    @property
    def chat_template(self) -> str:
        """The tokenizer's chat template, empty where it has none."""
        return chat_template(self.tokenizer, self.checkpoint) or ""

    def rendered(
        self, turns: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True
    ) -> str:
        """A dialogue in the chat template; UserError where that refuses it, fails or loses text."""
        return rendered(
            self.tokenizer,
            self.chat_template,
            turns,
            self.checkpoint,
            add_generation_prompt=add_generation_prompt,
        )

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """The text of some tokens; UserError where the tokenizer cannot write it."""
        with faults_of(f"tokens with the tokenizer of {self.checkpoint}", "use another tokenizer"):
            return self.tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)

    def left_padded(self, rows: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
        """Token ids and attention mask of prompts, both [B, L], padding on the left."""
        ids = [torch.tensor(row) for row in rows]
        mask = [torch.ones_like(row) for row in ids]
        pad = partial(pad_sequence, batch_first=True, padding_side="left")
        device = self.network.device
        return pad(ids, padding_value=self.pad_token_id).to(device), pad(mask).to(device)


def load_causal_lm(checkpoint: str | Path, *, device: str | None = None) -> CausalLM:
    """The model of a folder or hub id: a full checkpoint, or a PEFT LoRA adapter on its base; or of
    a GGUF file, or the one in a folder that holds no other checkpoint.

    `device` None means a GPU where there is one. Weights keep the type they are stored in; those
    of a GGUF file, which are compressed, become float32. Raises UserError for what is not there,
    not readable, incomplete, or would need code from the checkpoint.
    """
    gguf = _gguf_of(folder_of(checkpoint))
    if gguf is not None:
        return _load_gguf(gguf, str(checkpoint), device)
    folder = locate(checkpoint)
    adapter = folder if is_file(folder / "adapter_config.json") else None
    if adapter is not None:
        folder = locate(_base_of(adapter))
    settings = read_json(
        folder / "config.json",
        missing=f"{folder} has no config.json; give the folder of a whole checkpoint.",
    )
    kind = settings.get("model_type")
    # Checked first: for an unknown architecture the library would offer to run the code that came
    # with it.
    if not isinstance(kind, str) or kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise UserError(
            f"{folder} is of the type {shortened(kind)}, which the transformers library has no "
            "causal language model for, and code from a checkpoint is never run; choose another "
            "model."
        )
    weights = Weights.of_folder(folder)
    computed = set(filter(COMPUTED.search, weights.file))
    is_quantised = settings.get("quantization_config") is not None
    weights.check_floats(leave_out=computed | (_with_scales(weights) if is_quantised else set()))
    remedy = "get the whole checkpoint"
    with faults_of(str(folder / "config.json"), remedy):
        reader: Any = AutoConfig
        config = reader.from_pretrained(folder, local_files_only=True)
        _check_depth(folder, config, weights)
        _check_measures(folder, config)
    tensors = dict(weights.each(device="cpu", finite=False))  # the scores show it
    # Without the folder's name, so that the library reads no file but these tensors.
    with faults_of(f"The checkpoint {folder}", remedy), _without_reports():
        library_class: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
        network, found = library_class.from_pretrained(
            None,
            config=config,
            state_dict=tensors,
            dtype="auto",
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # `_check_whole` names them
        )
    _check_whole(folder, found)
    network.generation_config = GenerationConfig()  # before an adapter hides the network
    tokenizer = _tokenizer(folder, adapter)
    if adapter is not None:
        network = read_adapter(network, adapter)
    ends = _stated_ends(folder, config, tokenizer)
    return _causal_lm(network, tokenizer, str(checkpoint), device, ends)


def _with_scales(weights: Weights) -> set[str]:
    """The tensors beside which scales are stored; without any, no quantiser can read integers.

    A quantiser that the library does not know leaves the scales over, which `_check_whole` sees.
    """
    named = [name.rpartition(".") for name in weights.file]
    scaled = {module for module, _, last in named if SCALES.search(last)}
    return {n for n in weights.file if scaled & {n, n.rpartition(".")[0]}}


def _causal_lm(
    network: Any, tokenizer: Any, checkpoint: str, device: str | None, ends: Sequence[int]
) -> CausalLM:
    """The model on its device, in evaluation mode."""
    own: int | None = tokenizer.eos_token_id
    end_ids = [*ends, *([] if own is None else [own])]
    network.to(device_of(device))
    return CausalLM(network.eval(), tokenizer, checkpoint, tuple(dict.fromkeys(end_ids)))


@contextmanager
def _without_reports() -> Generator[None]:
    """Inside, the transformers library logs no tables of tensors: `_check_whole` says it."""
    before = logging.get_verbosity()
    logging.set_verbosity(CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _check_measures(folder: Path, config: Any) -> None:
    """UserError for a number of a config that no network has, under which it says nonsense."""
    fields = config.get_text_config().to_dict()
    whole: dict[str, Any] = fields.get("rope_parameters") or {}
    ropes: list[Any] = [whole, *whole.values()]  # a table for each kind of layer, in some
    measures = [
        (name, value, 0.0, MOST_EPSILON)
        for name, value in fields.items()
        if re.search(r"(^|_)(eps|epsilon)$", name)
    ]
    for rope in filter(is_json_object, ropes):
        measures += [("rope_theta", rope.get("rope_theta"), *ROPE_THETA)]
        measures += [("factor", rope.get("factor"), *ROPE_FACTOR)]
    for name, value, least, most in measures:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if value is None or (is_number and least <= value <= most and value > 0):
            continue
        raise UserError(
            f"{folder / 'config.json'} sets {name}={shortened(repr(value))}; it must be a number "
            f"{f'from {least:g}' if least else 'above 0'} to {most:g}."
        )


def _check_depth(folder: Path, config: Any, weights: Weights) -> None:
    """UserError where a config asks for more layers than there are tensors of.

    They would be built one by one before any tensor is missed.
    """
    most = config.get_text_config().num_hidden_layers
    numbers = [int(n) for name in weights.file for n in re.findall(r"\.(\d{1,6})\.", name)]
    if isinstance(most, int) and most > max(numbers, default=-1) + 1:
        raise UserError(
            f"{folder} lacks the tensors of layer {shortened(most)}, which its config asks for; "
            "get the whole checkpoint."
        )


def _check_whole(folder: Path, found: Mapping[str, Any]) -> None:
    """UserError for a tensor that is missing, which the library would draw, that has another shape,
    or that has no place."""
    for name, has, wanted in sorted(found["mismatched_keys"]):
        raise UserError(
            f"The tensor {shortened(name)} of {folder} has the shape {list(has)}, but its config "
            f"asks for {list(wanted)}; use the config that belongs to these weights."
        )
    absent: list[str] = sorted(found["missing_keys"])
    if absent:
        raise UserError(
            f"{folder} lacks {listed(absent)}, which its config asks for; get the whole checkpoint."
        )
    surplus = sorted(name for name in found["unexpected_keys"] if not COMPUTED.search(name))
    if surplus:
        raise UserError(
            f"{folder} holds {listed(surplus)}, for which its config has no place; use the config "
            "that belongs to these weights."
        )


def _stated_ends(folder: Path, config: Any, tokenizer: Any) -> list[int]:
    """The end tokens that generation_config.json names, or else config.json: special tokens."""
    file = folder / "generation_config.json"
    stated: Any = read_json(file).get("eos_token_id") if is_file(file) else None
    if stated is None:
        file, stated = folder / "config.json", config.get_text_config().eos_token_id
    return _checked_ends(file, stated, config, tokenizer, tokenizer.added_tokens_decoder)


def _checked_ends(
    file: Path, stated: Any, config: Any, tokenizer: Any, special: Collection[int]
) -> list[int]:
    """The end tokens that a file states; UserError where one is not `special`, or no token."""
    ids = stated if is_json_list(stated) else [] if stated is None else [stated]
    size = config.get_text_config().vocab_size
    for token_id in ids:
        if type(token_id) is not int or not 0 <= token_id < size:
            raise UserError(
                f"{file} has eos_token_id {shortened(repr(stated))}, which names no tokens of the "
                f"{size}; put the ids of the end tokens there."
            )
        if token_id not in special:
            word = tokenizer.convert_ids_to_tokens(token_id)
            raise UserError(
                f"{file} has eos_token_id {shortened(repr(stated))}, but {token_id} is no special "
                f"token of its tokenizer (there it is {shortened(repr(word))}); put the ids of the "
                "end tokens there."
            )
    return ids


def _gguf_of(path: Path) -> Path | None:
    """The GGUF file that a path names or, as a folder without a config, holds."""
    if path.suffix == ".gguf" and is_file(path):
        return path
    if not is_folder(path) or any(
        is_file(path / name) for name in ("config.json", "adapter_config.json")
    ):
        return None
    files = sorted(path.glob("*.gguf"))
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise UserError(f"{path} holds {len(files)} GGUF files ({names}); name one of them.")
    return files[0] if files else None


def _load_gguf(file: Path, checkpoint: str, device: str | None) -> CausalLM:
    if importlib.util.find_spec("gguf") is None:
        raise UserError(
            f"Reading {file} needs the package gguf; install mosa-dllm[chat-trial], or give a "
            "checkpoint in safetensors."
        )
    reader: Any = AutoTokenizer
    loader: Any = AutoModelForCausalLM
    where = {"gguf_file": file.name, "local_files_only": True}
    with faults_of(f"{file}, as a GGUF file of a known model,", "choose another model"):
        network, found = loader.from_pretrained(
            file.parent, dtype=torch.float32, output_loading_info=True, **where
        )
        tokenizer = reader.from_pretrained(file.parent, **where)
        special = _special_in_gguf(file)
    _check_whole(file, found)
    network.generation_config = GenerationConfig()
    ends = _checked_ends(file, network.config.eos_token_id, network.config, tokenizer, special)
    return _causal_lm(network, tokenizer, checkpoint, device, ends)


def _special_in_gguf(file: Path) -> set[int]:
    """The tokens that a GGUF file itself calls special. The tokenizer that is made of it does not
    tell: it takes whatever the file names as an end token for a special one."""
    from gguf import GGUFReader, TokenType  # an extra

    kinds = GGUFReader(file).fields.get("tokenizer.ggml.token_type")
    of_tokens = [] if kinds is None else [int(kinds.parts[place][0]) for place in kinds.data]
    special = (TokenType.CONTROL, TokenType.USER_DEFINED)
    return {number for number, kind in enumerate(of_tokens) if kind in special}


class LocalModel:
    """A causal language model on this machine, loaded when it is first asked.

    It does what it is asked in a thread of its own, several states at once, and while it is
    `helped` in other processes, too.
    """

    def __init__(
        self, checkpoint: str | Path, *, device: str | None = None, batch_size: int = 8
    ) -> None:
        """Raises UserError for a batch without a row and for a path where there is no folder."""
        if batch_size < 1:
            raise UserError(f"batch_size of {checkpoint} must be at least 1, not {batch_size}")
        self.checkpoint, self.device = checkpoint, device
        self.name = checkpoint_name(checkpoint)
        self.worker = Worker(
            partial(load_causal_lm, checkpoint, device=device), capacity=batch_size
        )
        self._computer: Computer = self.worker
        # Waits for the thread: one that wakes up while the interpreter ends can abort the process.
        weakref.finalize(self, self.worker.close)

    async def compute(
        self, run: Callable[[CausalLM, Sequence[Any]], list[dict[str, Any]]], state: Any
    ) -> dict[str, Any]:
        """What `run`, a function of a module, gives for the model and this state."""
        return await self._computer.compute(Work(run, state, together=self.worker.capacity))

    @contextmanager
    def helped(self, computer: Computer) -> Generator[None]:
        """Let `computer`, to which the model's own worker belongs, do the work meanwhile."""
        self._computer = computer
        try:
            yield
        finally:
            self._computer = self.worker


def _base_of(adapter: Path) -> str:
    base = adapter_settings(adapter).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise UserError(
            f"{adapter} does not say which model it belongs to; add base_model_name_or_path to "
            "its adapter_config.json."
        )
    return base


def _tokenizer(folder: Path, adapter: Path | None) -> Any:
    own = adapter is not None and is_file(adapter / "tokenizer_config.json")
    home = adapter if adapter is not None and own else folder
    file = home / "tokenizer_config.json"
    settings = read_json(file) if is_file(file) else {}
    # As above: with an entry auto_map the automatic class might offer to run foreign code.
    reader: Any = PreTrainedTokenizerFast if "auto_map" in settings else AutoTokenizer
    return read_tokenizer(home, reader)
