"""Loading an ordinary (causal) language model for local chat models and classifier judges.

Only architectures of the transformers library and only safetensors and GGUF are read: no code that
comes with a checkpoint runs, and nothing is unpickled.
"""

from __future__ import annotations

import importlib.util
import re
import weakref
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from mosa.hub import adapter_settings, locate, read_json, with_adapter
from mosa.provenance import file_hash, folder_hash
from mosa.types import UserError, is_json_object, short_hash
from mosa.worker import Computer, Work, Worker, device_of


def checkpoint_name(checkpoint: str | Path) -> str:
    """A hub id unchanged; a folder's name with a hash of all that is read from it, 8 hex digits.

    Of an adapter its base is read as well: a folder counts by its content, a hub id by its name.
    Of a GGUF file, or a folder with nothing else to load, that file is read. Raises UserError for a
    path where there is neither.
    """
    folder = Path(checkpoint).expanduser()
    gguf = _gguf_of(folder)
    if gguf is not None:
        return f"{folder.name}#{short_hash(file_hash(gguf))}"
    if not folder.is_dir():
        if re.fullmatch(r"[\w.-]+(/[\w.-]+)?", str(checkpoint)) is None:
            raise UserError(f"There is no folder {checkpoint}; give one, or a hub id ORG/NAME.")
        return str(checkpoint)
    _check_index(folder)
    hashes = folder_hash(folder)
    if (folder / "adapter_config.json").is_file():
        base = Path(_base_of(folder)).expanduser()
        if base.is_dir():
            _check_index(base)
        hashes += folder_hash(base) if base.is_dir() else str(base)
    return f"{folder.name}#{short_hash(hashes)}"


@dataclass(frozen=True)
class CausalLM:
    """A causal language model in evaluation mode, with its tokenizer."""

    network: Any
    tokenizer: Any
    checkpoint: str
    """The folder or hub id as it was named."""

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
    gguf = _gguf_of(Path(checkpoint).expanduser())
    if gguf is not None:
        return _load_gguf(gguf, str(checkpoint), device)
    folder = locate(checkpoint)
    adapter = folder if (folder / "adapter_config.json").is_file() else None
    if adapter is not None:
        folder = locate(_base_of(adapter))
    kind = read_json(
        folder / "config.json",
        missing=f"{folder} has no config.json; give the folder of a whole checkpoint.",
    ).get("model_type")
    # Checked first: for an unknown architecture the library would offer to run the code that came
    # with it.
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise UserError(
            f"{folder} is of the type {kind}, which the transformers library has no causal "
            "language model for, and code from a checkpoint is never run; choose another model."
        )
    if not any(folder.glob("*.safetensors")):
        raise UserError(
            f"{folder} has no weights in safetensors, the only form that is read; convert them."
        )
    _check_index(folder)
    _check_types(folder)
    network = _whole_network(folder, use_safetensors=True, dtype="auto")
    tokenizer = _tokenizer(folder, adapter)
    if adapter is not None:
        network = with_adapter(network, adapter, device="cpu")
    network.to(device_of(device))
    return CausalLM(network.eval(), tokenizer, str(checkpoint))


def _whole_network(folder: Path, **options: Any) -> Any:
    """The network of a folder, with every tensor from its files."""
    loaded: Any = AutoModelForCausalLM.from_pretrained(  # pyright: ignore[reportUnknownMemberType]
        folder, local_files_only=True, output_loading_info=True, **options
    )
    network, found = loaded
    # The library would draw these at random and go on.
    absent: list[str] = sorted(found["missing_keys"])
    if absent:
        raise UserError(
            f"{folder} lacks {absent[0]}{f' and {len(absent) - 1} more' if absent[1:] else ''}, "
            "which its config asks for; get the whole checkpoint."
        )
    return network


def _gguf_of(path: Path) -> Path | None:
    """The GGUF file that a path names or, as a folder without a config, holds."""
    if path.is_file() and path.suffix == ".gguf":
        return path
    if not path.is_dir() or any(
        (path / name).is_file() for name in ("config.json", "adapter_config.json")
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
    try:
        network = _whole_network(file.parent, gguf_file=file.name, dtype=torch.float32)
        reader: Any = AutoTokenizer
        tokenizer = reader.from_pretrained(file.parent, gguf_file=file.name, local_files_only=True)
    # Whatever the reader meets in a foreign or damaged file.
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise UserError(
            f"{file} is no GGUF file of a model that the transformers library can read ({error}); "
            "choose another model."
        ) from error
    network.to(device_of(device))
    return CausalLM(network.eval(), tokenizer, checkpoint)


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


def _check_index(folder: Path) -> None:
    """UserError where the index names weights outside of the folder, which no hash would cover."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return
    weight_map = read_json(index, missing="").get("weight_map")
    for file in weight_map.values() if is_json_object(weight_map) else ():
        if Path(str(file)).name != file:
            raise UserError(
                f"{index} names {file}, which is outside of the folder; put the weights into it."
            )


def _check_types(folder: Path) -> None:
    """UserError where a tensor is stored in a type that the library would cast without a word."""
    if "quantization_config" in read_json(folder / "config.json", missing=""):
        return
    for file in sorted(folder.glob("*.safetensors")):
        try:
            opened: Any = safe_open(file, "pt")
            with opened as tensors:
                names: list[str] = tensors.keys()
                kinds: dict[str, str] = {n: tensors.get_slice(n).get_dtype() for n in names}
        except SafetensorError as error:
            raise UserError(f"{file} is damaged ({error}); copy it again.") from error
        for name, kind in kinds.items():
            if kind not in ("F64", "F32", "F16", "BF16"):
                raise UserError(
                    f"{file} holds {name} as {kind}, which is no floating-point type of a chat "
                    "model's weights; convert it."
                )


def _base_of(adapter: Path) -> str:
    base = adapter_settings(adapter).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise UserError(
            f"{adapter} does not say which model it belongs to; add base_model_name_or_path to "
            "its adapter_config.json."
        )
    return base


def _tokenizer(folder: Path, adapter: Path | None) -> Any:
    own = adapter is not None and (adapter / "tokenizer_config.json").is_file()
    home = adapter if adapter is not None and own else folder
    file = home / "tokenizer_config.json"
    settings = read_json(file, missing="") if file.is_file() else {}
    # As above: with an entry auto_map the automatic class might offer to run foreign code.
    reader: Any = PreTrainedTokenizerFast if "auto_map" in settings else AutoTokenizer
    try:
        return reader.from_pretrained(home, local_files_only=True)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{home} has no tokenizer that the transformers library can read; add tokenizer.json."
        ) from error
