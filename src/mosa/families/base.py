"""What a model family defines, and the model object that all of mosa works with.

# B rows, L canvas length, P asked positions, V vocabulary
"""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import torch
from jaxtyping import Bool, Float, Int
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import ParamWrapper
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from mosa import provenance
from mosa.families import chat, checkpoint, noise, packed
from mosa.families.attention import FULL, AttentionPattern
from mosa.families.by_block import by_block
from mosa.families.walk import Walk
from mosa.files import filling
from mosa.hub.adapters import peft_asking_quietly, read_adapter
from mosa.hub.bounded import faults_of
from mosa.hub.folders import locate
from mosa.hub.text import Refused, chat_template
from mosa.hub.weights import MOST_EPSILON, ROPE_THETA, chooses_nothing, is_finite
from mosa.inputs import shortened
from mosa.types import Prompt, Tell, UserError, dialogue, tell_nobody

PROJECTIONS = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
    "mlp.shared_experts.gate_proj",
    "mlp.shared_experts.up_proj",
    "mlp.shared_experts.down_proj",
)
"""The linear maps of a layer that every token goes through, as paths below `model.layers.N` in the
transformers library. A layer has attention's, and those of a dense MLP or of shared experts."""
EXPERTS = ("experts.gate_up_proj", "experts.down_proj")
"""The parameters of a mixture's routed experts, [experts, rows, columns], as such paths."""


NO_TEXT = r".*vision_tower.*"
"""The modules that no text goes through, as a pattern."""

EXPERTS_APART: Mapping[str, tuple[str, ...]] = {
    ".mlp.experts.gate_up_proj": (
        ".mlp.experts.{}.gate_proj.weight",
        ".mlp.experts.{}.up_proj.weight",
    ),
    ".mlp.experts.down_proj": (".mlp.experts.{}.down_proj.weight",),
}
"""`Family.stacked` where a release has each expert's three matrices by themselves."""


@final
@dataclass(frozen=True)
class Family:
    """How one model family differs from the others: config, names, tokens, attention and logits.

    The network itself is always a causal model of the transformers library run with another mask,
    so a family describes a *layout* and holds no layers.
    """

    name: str
    model_types: tuple[str, ...]
    """The values of `model_type` in config.json that mean this family."""
    required_fields: tuple[str, ...]
    """Fields of config.json without which the network cannot be built."""
    default_fields: Mapping[str, Any]
    """Values of fields that a hand-written config.json may leave out; saved configs have them."""
    only_values: Mapping[str, tuple[Any, ...]]
    """Fields that would change the network in ways not built here, each with its allowed values;
    the first is the default."""
    network_config: Callable[[Mapping[str, Any]], PreTrainedConfig]
    """The config of the transformers library that a complete config.json describes."""
    released_names: Mapping[str, str]
    """Pieces of the library's tensor names -> the same pieces in released checkpoints."""
    turns: str
    """The Jinja template of the turns of a dialogue, for a tokenizer that has no chat template."""
    template_tokens: tuple[str, ...]
    """The special tokens that `chat_template` is made of; a tokenizer without them has no turns."""
    generation_header: str
    """What the template appends where the model speaks next."""
    end_tokens: tuple[str, ...]
    """The special tokens that end a response, in addition to the config's `eos_token_id`;
    end-of-text, which pads answers too, comes first."""
    template_settings: Mapping[str, Any] = field(default_factory=dict)
    """What chat templates are told besides the dialogue."""
    mask_token: str | None = None
    """The mask's spelling, for checkpoints whose config.json does not name the mask; a tokenizer
    that lacks it gets it as its next special token."""
    fields_by_name: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Pieces of checkpoints' names -> fields that their config.json lacks, where the name alone
    tells apart what config.json does not."""
    stacked: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Ends of the library's names for tensors that hold all experts of a layer -> the ends, before
    `released_names`, for the tensors of expert {} whose rows each of them holds, one below the
    other; see `EXPERTS_APART`."""
    fused: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Pieces of names, before `released_names`, for tensors that hold the rows of several of the
    library's, one below the other -> the same pieces of the library's names."""
    architecture: str | None = None
    """What `architectures` of config.json names, where another family has the `model_type` too."""
    attention: Callable[[Mapping[str, Any]], AttentionPattern] = lambda config: FULL
    """Which positions of a row see which, by a complete config.json."""
    logits_shifted: bool = False
    """Whether the prediction for a position is read one position to its left."""
    turns_in_float32: bool = False
    """Whether queries and keys are turned by their positions in float32 under lower formats."""
    tokenizer_class: type[PreTrainedTokenizerFast] = field(default=PreTrainedTokenizerFast)
    """The class that reads the tokenizer files where there is no tokenizer.json."""
    is_noise: bool = False
    """Whether what is still to be written is a random token, and not a mask (noise.py)."""
    body: str = "model"
    """The module of the network that holds embedding and layers."""
    decoder: str | None = None
    """The published decoder by which such a model answers unless told otherwise."""

    @property
    def chat_template(self) -> str:
        """The Jinja template for a tokenizer that has none."""
        header = "{{ '" + self.generation_header + "' }}"
        return f"{self.turns}{{% if add_generation_prompt %}}{header}{{% endif %}}"

    def released_name(self, name: str) -> str:
        """The released name of one of the network's tensors or modules."""
        for ours, released in self.released_names.items():
            name = name.replace(ours, released)
        return name

    def pieces(self, network: PreTrainedModel) -> checkpoint.Pieces:
        """The released tensors of a network by name, and where the library has their numbers."""
        return {
            self.released_name(released): pieces
            for name, tensor in checkpoint.stored_tensors(network).items()
            for released, pieces in checkpoint.pieces_of(
                name, tensor.shape, self.stacked, self.fused
            )
        }

    def complete_config(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The config with its defaults written out, checked for what cannot be built here.

        Fields that are not known here are kept: they cannot change a network that is built from
        the known ones. Raises UserError for a missing field and for an unsupported value.
        """
        what = f"config.json of this {self.name} model"
        check_fields(what, config, self.required_fields, self.only_values)
        defaults = {n: values[0] for n, values in self.only_values.items() if values[0] is not None}
        return {**self.default_fields, **defaults, **config}


MOST = {
    "layers": 10_000,
    "experts": 10_000,
    "width": 1 << 22,
    "vocabulary": 1 << 24,
    "positions": 1 << 30,
}
"""Of what a config.json counts: far above all networks, and low enough that sizes are numbers."""


def check_fields(
    what: str,
    config: Mapping[str, Any],
    required: Sequence[str],
    only: Mapping[str, tuple[Any, ...]],
) -> None:
    """UserError where a required field is missing, or one has another value than those allowed,
    the first of which is that of a missing one. `what` has the fields."""
    for name in required:
        if config.get(name) is None:
            raise UserError(
                f"{what} has no {name}; add it (the checkpoint it came from says its value)."
            )
    for name, allowed in only.items():
        if config.get(name, allowed[0]) not in allowed:
            raise UserError(
                f"{what} sets {name}={shortened(repr(config[name]))}, which mosa does not support; "
                f"only {name}={' or '.join(map(repr, allowed))} can be loaded."
            )


def wrong(config: Mapping[str, Any], name: str, meant: str) -> UserError:
    """What to raise where a field of config.json is not as is meant."""
    value = shortened(repr(config[name]))
    return UserError(f"config.json sets {name}={value}; it must be {meant}.")


def positive_int(config: Mapping[str, Any], name: str, most: int = MOST["width"]) -> int:
    """A field of config.json that counts something; UserError where it does not."""
    value = config[name]
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise wrong(config, name, f"a whole number above 0, at most {most:,}")
    return value


def block_size(config: Mapping[str, Any]) -> int:
    """The tokens of a block; UserError where it is no number up to those of the context."""
    most = positive_int(config, "max_position_embeddings", MOST["positions"])
    return positive_int(config, "block_size", most)


def blocks_of_sequence(config: Mapping[str, Any]) -> AttentionPattern:
    """Blocks of `block_size` tokens from the prompt's first token on."""
    return AttentionPattern(block_size(config))


def positive_number(
    config: Mapping[str, Any], name: str, most: float, *, least: float = 0.0
) -> float:
    """A field of config.json that measures something; UserError where it does not."""
    value = config[name]
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not least <= value <= most or value == 0:
        bound = f"of at least {least:g}" if least else "above 0"
        raise wrong(config, name, f"a number {bound}, at most {most:g}")
    return float(value)


def expert_counts(
    config: Mapping[str, Any], per_token: str = "num_experts_per_tok"
) -> tuple[int, int]:
    """How many routed experts a layer has, and how many of them a token goes through, which is in
    the field `per_token`.

    UserError where a token wants more than there are.
    """
    experts = positive_int(config, "num_experts", MOST["experts"])
    chosen = positive_int(config, per_token, MOST["experts"])
    if chosen > experts:
        raise UserError(
            f"config.json sets {per_token}={chosen} and num_experts={experts}; a token cannot go "
            "through more experts than there are."
        )
    return experts, chosen


def norm_epsilon(config: Mapping[str, Any]) -> float:
    """`rms_norm_eps` of config.json; UserError where it drowns what is normed."""
    return positive_number(config, "rms_norm_eps", MOST_EPSILON)


def rope_theta(config: Mapping[str, Any]) -> float:
    """`rope_theta` of config.json; UserError where positions would all look alike."""
    least, most = ROPE_THETA
    return positive_number(config, "rope_theta", most, least=least)


def rope_parameters(config: Mapping[str, Any]) -> dict[str, Any]:
    """How the library's configs say that positions turn queries and keys by `rope_theta`."""
    return {"rope_type": "default", "rope_theta": rope_theta(config)}


def head_counts(
    config: Mapping[str, Any],
    width: str = "hidden_size",
    heads: str = "num_attention_heads",
    kv_heads: str = "num_key_value_heads",
) -> dict[str, Any]:
    """Width, heads, heads of keys and values (null: as many as heads) and the share of a head, by
    the names that the library's configs have for them; the arguments are those of config.json.

    UserError where one does not divide the one before it.
    """
    counts = [positive_int(config, width), positive_int(config, heads)]
    counts.append(counts[1] if config[kv_heads] is None else positive_int(config, kv_heads))
    if counts[0] % counts[1] or counts[1] % counts[2]:
        named = ", ".join(
            f"{name}={count}" for name, count in zip((width, heads, kv_heads), counts, strict=True)
        )
        raise UserError(f"config.json sets {named}; each must divide the one before it.")
    names = ("hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim")
    # Not all configs declare the last, but their networks read it.
    return dict(zip(names, (*counts, counts[0] // counts[1]), strict=True))


def common_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that config.json and the library's configs name and mean alike.

    UserError where one cannot be a network's.
    """
    return {
        "vocab_size": positive_int(config, "vocab_size", MOST["vocabulary"]),
        "num_hidden_layers": positive_int(config, "num_hidden_layers", MOST["layers"]),
        "max_position_embeddings": positive_int(
            config, "max_position_embeddings", MOST["positions"]
        ),
        "initializer_range": positive_number(config, "initializer_range", 1.0),
        "rms_norm_eps": norm_epsilon(config),
        "rope_parameters": rope_parameters(config),
        "tie_word_embeddings": flag(config, "tie_word_embeddings"),
    }


def flag(config: Mapping[str, Any], name: str) -> bool:
    """A field of config.json that is true or false; UserError where it is neither."""
    value = config[name]
    if not isinstance(value, bool):
        raise wrong(config, name, "true or false")
    return value


@final
class DiffusionLM:
    """A masked-diffusion language model: network, tokenizer, and the facts of its family.

    Built by `mosa.load_model` and `mosa.families.new_model`. It is no nn.Module: what is trained
    is `network`, a transformers model or, once it has an adapter, a PEFT model.
    """

    network: PreTrainedModel | PeftModel
    tokenizer: PreTrainedTokenizerFast | None
    family: Family
    attention: AttentionPattern
    """Which positions of a row see which."""
    is_served = False
    source: str
    """Where the weights came from: the folder, hub id or alias as the user wrote it."""
    config: dict[str, Any]
    """config.json in the released layout."""
    mask_token_id: int
    """The id of a position that is still to be written; of a model of uniform noise the one behind
    its vocabulary, which no tokenizer has and no network reads."""
    eos_token_id: int
    pad_token_id: int
    end_token_ids: tuple[int, ...]
    """Every id that ends a response; end-of-text first."""
    vocab_size: int
    """Width of the logits, which may exceed the number of tokens."""
    adapter: str | None
    """Where the adapter that is on was loaded from or saved to; None without one, or before."""
    world_seed: int | None
    """Of a model of the testbed: the seed of the invented world that it knows."""

    def __init__(
        self,
        network: PreTrainedModel,
        family: Family,
        config: Mapping[str, Any],
        tokenizer: PreTrainedTokenizerFast | None,
        *,
        source: str,
        companions: Mapping[str, bytes],
        world_seed: int | None = None,
    ):
        self.family = family
        self.attention = family.attention(config)
        implementation = network.config._attn_implementation
        if not self.attention.is_full and implementation not in ("sdpa", "eager"):
            raise UserError(
                f"The attention implementation {implementation!r} takes no block-causal mask, "
                f"which {family.name} needs; use sdpa or eager."
            )
        self._set_network(network)
        self.config = dict(config)
        self.tokenizer = tokenizer
        self.source = source
        self.adapter, self.world_seed = None, world_seed
        self._companions = dict(companions)
        self.vocab_size = self._text_config.vocab_size
        self.mask_token_id = self.vocab_size
        if not family.is_noise:
            self.mask_token_id = self._checked_id("mask_token_id", config["mask_token_id"])
        ends = self._end_token_ids()
        if tokenizer is not None:
            vocabulary = tokenizer.get_vocab()
            others = [vocabulary[t] for t in family.end_tokens if t in vocabulary]
            ends = others[:1] + ends + others[1:]
            largest = max(vocabulary.values(), default=0)
            if largest >= self.vocab_size:
                raise UserError(
                    f"The tokenizer has token id {largest} but the model of {source} has "
                    f"{self.vocab_size} embeddings; use the tokenizer that belongs to it."
                )
        self.end_token_ids = tuple(dict.fromkeys(ends))
        self.eos_token_id = ends[0]
        self.pad_token_id = self.eos_token_id
        if config.get("pad_token_id") is not None:
            self.pad_token_id = self._checked_id("pad_token_id", config["pad_token_id"])
        self._check_steering()

    def __repr__(self) -> str:
        """What it is, in one line: name, family, size, number format, adapter, device."""
        total = sum(parameter.numel() for parameter in self.network.parameters())
        size = f"{total / 1e9:.2f}B" if total >= 1e9 else f"{total / 1e6:.2f}M"
        parts = [self.family.name, f"{size} parameters"]
        parts += [f"{str(self.dtype).removeprefix('torch.')} on {self.device}"]
        return f"<DiffusionLM {self.label}: {', '.join(parts)}>"

    @property
    def has_new_adapter(self) -> bool:
        """Whether there is an adapter on that no folder holds."""
        return isinstance(self.network, PeftModel) and self.adapter is None

    @property
    def label(self) -> str:
        """Model and adapter, for example `testbed + runs/mosa`."""
        adapter = "new adapter" if self.has_new_adapter else self.adapter
        return self.source if adapter is None else f"{self.source} + {adapter}"

    @property
    def turn_end_token_id(self) -> int | None:
        """The token that ends a turn, where it is another than end-of-text."""
        return next((i for i in self.end_token_ids if i != self.eos_token_id), None)

    def _end_token_ids(self) -> list[int]:
        """The ids of `eos_token_id`, which may be a list: its first is end-of-text."""
        value = self.config["eos_token_id"]
        ids = value if isinstance(value, list) else [value]
        if not ids:
            raise UserError(
                "config.json sets eos_token_id to an empty list; put the id of the token that ends "
                "a text there."
            )
        return [self._checked_id("eos_token_id", token_id) for token_id in ids]

    def _checked_id(self, name: str, value: object) -> int:
        size = self.vocab_size
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < size:
            raise UserError(
                f"config.json sets {name}={shortened(repr(value))}, which is no id in the "
                f"vocabulary of {size} embeddings; put that of the tokenizer's token there."
            )
        return value

    def _check_steering(self) -> None:
        """UserError where the mask is an end or padding, or texts are made of any of the three."""
        mask, tokenizer = self.mask_token_id, self.tokenizer
        is_end = mask in self.end_token_ids
        if is_end or mask == self.pad_token_id:
            raise UserError(
                f"config.json sets mask_token_id={mask}, which is the "
                f"{'end' if is_end else 'padding'} token, too; put the id of the mask token there."
            )
        if tokenizer is None:
            return
        for token_id, word in self._reader.special.items():
            if word.strip().isalnum():
                raise UserError(
                    f"The tokenizer of {self.source} has the ordinary word {shortened(repr(word))} "
                    f"as its special token {token_id}, so no prompt can say it; use the tokenizer "
                    "that belongs to the model."
                )
        # Some tokenizers have the end of a text as the token of unknown words.
        unknown = tokenizer.unk_token_id
        for name, kind, ids in (
            ("mask_token_id", "mask", [] if self.is_noise else [mask]),
            ("eos_token_id", "end", self._end_token_ids()),
            ("pad_token_id", "padding", [self.pad_token_id]),
        ):
            for token_id in ids:
                is_unknown_word = kind == "mask" and token_id == unknown
                if token_id in tokenizer.added_tokens_decoder and not is_unknown_word:
                    continue
                word = tokenizer.convert_ids_to_tokens(token_id)
                raise UserError(
                    f"config.json sets {name}={token_id}, which is no special token of the "
                    f"tokenizer of {self.source} (there it is {shortened(repr(word))}); put the id "
                    f"of the {kind} token there."
                )

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.network.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The number format of the (base) weights."""
        return self.base_network.dtype

    @property
    def has_adapter(self) -> bool:
        """Whether an adapter is put on the network."""
        return isinstance(self.network, PeftModel)

    @property
    def max_length(self) -> int:
        """How many tokens, prompt and response together, the model was made for."""
        return self._text_config.max_position_embeddings

    @property
    def is_noise(self) -> bool:
        """Whether canvases are of uniform noise, so that there is no mask."""
        return self.family.is_noise

    @property
    def block_length(self) -> int | None:
        """Tokens of a block of a block-causal model; None where every position sees every other."""
        return self.attention.block_length

    @property
    def base_network(self) -> PreTrainedModel:
        """The network without the adapter's wrapping."""
        network = self.network
        if isinstance(network, PeftModel):
            network = network.get_base_model()
        assert isinstance(network, PreTrainedModel)
        return network

    @property
    def _text_config(self) -> Any:
        return self.base_network.config.get_text_config()

    # ----------------------------------------------------------------------------- forward pass

    def logits(
        self,
        input_ids: Int[Tensor, "B L"],
        attention_mask: Bool[Tensor, "B L"] | Int[Tensor, "B L"] | None = None,
        positions: Int[Tensor, " P"] | None = None,
        *,
        response_start: int | None = None,
        written: Int[Tensor, "B L"] | None = None,
        noise_seed: int | Int[Tensor, " B"] = 0,
        network: nn.Module | None = None,
    ) -> Float[Tensor, "B P V"]:
        """The model's logits for the token *at* each position, in float32 or wider.

        `attention_mask` is True (1) on real tokens; padding on the left or the right changes
        nothing on the others. `positions` are the columns (0 to L-1, the same for all rows, in any
        order) to answer for; only they go through the LM head. Without them P = L.
        `response_start` is the column of the response's first token, which a family needs whose
        blocks begin there. `written` is for block-causal families: each block of `input_ids` is
        then answered behind the blocks before it as they are in `written` (`by_block.py`), at
        `positions` of the response; full attention has no blocks, and does not read it. A model of
        uniform noise answers at positions of the response alone, with noise of `noise_seed` (one
        for all rows, or one for each) in place of each mask. `network` is a wrapped form of
        `self.network` (DDP's, the Trainer's) to call in its place. UserError where the logits of a
        position choose no token.
        """
        hidden = self.hidden_states(
            input_ids,
            attention_mask,
            positions,
            response_start=response_start,
            written=written,
            noise_seed=noise_seed,
            network=network,
        )
        logits = self.head(hidden)
        if bool(chooses_nothing(logits.detach()).any()):
            raise self.unusable()
        return logits

    def unusable(self, where: str = "") -> UserError:
        """What to raise where logits choose no token; `where` says at which step."""
        dtype = str(self.dtype).removeprefix("torch.")
        adapted = " with its adapter" if self.has_adapter else ""
        wider = "" if self.dtype.itemsize >= 4 else "load it with --dtype float32, or "
        return UserError(
            f"The logits of {self.source}{adapted} in {dtype} are NaN, infinite or all "
            f"equal{where}, so it answers nothing; {wider}use weights that are not damaged."
        )

    def hidden_states(
        self,
        input_ids: Int[Tensor, "B L"],
        attention_mask: Bool[Tensor, "B L"] | Int[Tensor, "B L"] | None = None,
        positions: Int[Tensor, " P"] | None = None,
        *,
        response_start: int | None = None,
        written: Int[Tensor, "B L"] | None = None,
        noise_seed: int | Int[Tensor, " B"] = 0,
        network: nn.Module | None = None,
    ) -> Float[Tensor, "B P D"]:
        """What `head` turns into the logits that `logits` gives for the same arguments.

        With the two apart, the head can be taken on a few rows at a time, and no caller must hold
        [B, P, V] logits.
        """
        network = self.network if network is None else network
        real_BL = None if attention_mask is None else attention_mask.bool()
        with _left_out(self._head):
            if self.is_noise:
                return self._of_canvases(
                    network, input_ids, real_BL, positions, response_start, written, noise_seed
                )
            if written is None or self.attention.is_full:
                arguments = self._rows(input_ids, real_BL, positions, response_start)
            else:
                assert positions is not None and response_start is not None, "a response is asked"
                arguments = self._blocks(input_ids, real_BL, positions, response_start, written)
            return network(**arguments, use_cache=False).logits

    def head(self, hidden: Float[Tensor, "... D"]) -> Float[Tensor, "... V"]:
        """The logits of hidden states, in float32 or wider."""
        logits = self._head(hidden)
        logits = logits.float() if logits.dtype.itemsize < 4 else logits
        if self.logit_cap is None:
            return logits
        return torch.tanh(logits / self.logit_cap) * self.logit_cap

    @property
    def logit_cap(self) -> float | None:
        """What the size of logits approaches and never reaches: c in c tanh(x / c)."""
        return getattr(self.base_network, "final_logit_softcapping", None)

    @property
    def _head(self) -> nn.Module:
        head = self.base_network.get_output_embeddings()
        assert head is not None, "a causal model of the transformers library has one"
        return head

    def rotary(self, position_ids: Int[Tensor, " T"]) -> packed.Rotary:
        """The rotary embedding of some positions, for `packed_hidden_states`."""
        return packed.Rotary.of(self.base_network, position_ids)

    def _rows(
        self,
        input_ids: Int[Tensor, "B L"],
        real: Bool[Tensor, "B L"] | None,
        positions: Int[Tensor, " P"] | None,
        response_start: int | None,
    ) -> dict[str, Any]:
        """What the library's forward pass takes to answer for rows as they are."""
        position_ids = None
        mask = real  # the library makes one of it that looks both ways, padding aside
        if not self.attention.is_full:
            real_BL = torch.ones_like(input_ids, dtype=torch.bool) if real is None else real
            mask = self._as_library_mask(self.attention.mask(real_BL, response_start))
        if self.family.logits_shifted:
            if positions is None:
                positions = torch.arange(input_ids.shape[1], device=input_ids.device)
            positions = (positions - 1).clamp(min=0)
            if real is not None:
                input_ids, position_ids = _first_token_repeated(input_ids, real)
        return {
            "input_ids": input_ids,
            "attention_mask": mask,
            "position_ids": position_ids,
            "logits_to_keep": 0 if positions is None else positions,
        }

    def _blocks(
        self,
        input_ids: Int[Tensor, "B L"],
        real: Bool[Tensor, "B L"] | None,
        positions: Int[Tensor, " P"],
        response_start: int,
        written: Int[Tensor, "B L"],
    ) -> dict[str, Any]:
        """The same for blocks of the response, each behind those before it as they are written."""
        assert not self.family.logits_shifted, "no block-causal family here is shifted"
        real_BL = torch.ones_like(input_ids, dtype=torch.bool) if real is None else real
        tokens_BN, position_BN, mask_B1NN, offset = by_block(
            self.attention, input_ids, written, real_BL, response_start, self.mask_token_id
        )
        return {
            "input_ids": tokens_BN,
            "attention_mask": self._as_library_mask(mask_B1NN),
            "position_ids": position_BN,
            "logits_to_keep": positions + offset,
        }

    def _of_canvases(
        self,
        network: nn.Module,
        input_ids: Int[Tensor, "B L"],
        real: Bool[Tensor, "B L"] | None,
        positions: Int[Tensor, " P"] | None,
        response_start: int | None,
        written: Int[Tensor, "B L"] | None,
        noise_seed: int | Int[Tensor, " B"],
    ) -> Tensor:
        """Hidden states of a model of uniform noise."""
        if positions is None or response_start is None:
            raise UserError(
                f"{self.source} answers in its response alone; give response_start, and positions "
                "from there on."
            )
        assert self.attention.block_length is not None, "a canvas has a length"
        seeds_B = torch.as_tensor(noise_seed, device=input_ids.device).expand(len(input_ids))
        with noise.no_cap(self.base_network):
            hidden = noise.hidden_states(
                network,
                input_ids,
                input_ids if written is None else written,
                torch.ones_like(input_ids, dtype=torch.bool) if real is None else real,
                positions,
                response_start,
                self.attention.block_length,
                self.mask_token_id,
                seeds_B,
            )
        return hidden.to(self.dtype)  # the library makes logits of it, in float32

    def _as_library_mask(self, mask_B1LL: Bool[Tensor, "B 1 L L"]) -> Tensor:
        """A mask of what is seen, as the network's implementation of attention takes it."""
        if self.base_network.config._attn_implementation == "sdpa":
            return mask_B1LL
        # Eager attention adds its mask to the scores.
        hidden = torch.finfo(self.dtype).min
        return torch.zeros_like(mask_B1LL, dtype=self.dtype).masked_fill_(~mask_B1LL, hidden)

    # ------------------------------------------------------------------------------------- text

    def encode(
        self,
        prompt: Prompt,
        *,
        allow_special_tokens: bool = False,
    ) -> list[int]:
        """The token ids of a prompt, laid out by the chat template.

        The tokenizer's own template is used if it has one, else the family's. A string is one user
        turn; where neither template can be written in the tokenizer's vocabulary (a base model
        that knows no turns) a string is taken as bare text and a dialogue is a UserError. Special
        tokens spelled out in the messages stay plain text unless `allow_special_tokens`.
        """
        template = self._template()
        if template is None:
            if isinstance(prompt, str):
                return self.encode_text(prompt, allow_special_tokens=allow_special_tokens)
            raise UserError(
                f"The tokenizer of {self.source} has no chat template and lacks the tokens of "
                f"{self.family.name}'s ({' '.join(self.family.template_tokens)}); send this "
                "base model plain text instead of a dialogue."
            )
        return self._reader.dialogue(
            dialogue(prompt),
            template,
            self.family.template_settings,
            allow_special_tokens=allow_special_tokens,
        )

    def _template(self) -> str | None:
        """The tokenizer's own chat template, or the family's where its tokens are there."""
        tokenizer = self._require_tokenizer()
        own = chat_template(tokenizer, self.source)
        if own is not None:
            return own
        vocabulary = tokenizer.get_vocab()
        is_spelled = all(token in vocabulary for token in self.family.template_tokens)
        return self.family.chat_template if is_spelled else None

    def check_template(self) -> None:
        """UserError where the chat template fails, or loses what a user says."""
        if self.tokenizer is None:
            return
        try:
            self.encode("how do i make a cup of tea ?")
        except Refused:  # it may want other turns
            return

    def encode_text(self, text: str, *, allow_special_tokens: bool = False) -> list[int]:
        """The token ids of bare text, without a template.

        Special tokens spelled out in it stay plain text unless `allow_special_tokens`.
        """
        if allow_special_tokens:
            return self._reader.with_special_tokens(text)
        return [token for token, _ in self.encode_with_ends(text)]

    def encode_with_ends(self, text: str) -> list[tuple[int, int]]:
        """The ids of `encode_text`, each with the place in the text at which its characters end."""
        return self._reader.with_ends(text)

    def decode(self, ids: Sequence[int] | Tensor, *, skip_special_tokens: bool = True) -> str:
        """The text of one row of token ids."""
        ids = ids.tolist() if isinstance(ids, Tensor) else list(ids)
        tokenizer = self._require_tokenizer()
        with faults_of(f"tokens with the tokenizer of {self.source}", "use another tokenizer"):
            text = tokenizer.decode(
                ids, skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False
            )
        assert isinstance(text, str)  # a list only for a batch of rows
        return text

    @property
    def special_tokens(self) -> tuple[str, ...]:
        """How the tokens that steer the model are spelled; none for a model without a tokenizer."""
        if self.tokenizer is None:
            return ()
        return tuple(self._reader.special.values())

    @property
    def has_turns(self) -> bool:
        """Whether there is a chat template, the tokenizer's or the family's."""
        return self.tokenizer is not None and self._template() is not None

    def _require_tokenizer(self) -> PreTrainedTokenizerFast:
        if self.tokenizer is None:
            raise UserError(
                f"{self.source} has no tokenizer, so text cannot be read or written; give token "
                "ids, or put its tokenizer files into the folder."
            )
        return self.tokenizer

    @property
    def _reader(self) -> chat.Reader:
        tokenizer, mask = self._require_tokenizer(), self.mask_token_id
        steering = {mask, self.pad_token_id, *self.end_token_ids}
        return chat.Reader(tokenizer, self.source, mask, steering)

    # --------------------------------------------------------------------------------- adapters

    @property
    def lora_target_modules(self) -> list[str]:
        """The modules that LoRA adapts: the projections that all tokens of a layer go through."""
        found = [name for name, _ in self.base_network.named_modules()]
        return [p for p in PROJECTIONS if any(name.endswith(f".{p}") for name in found)]

    def add_lora(self, lora_config: LoraConfig, *, experts: bool = False) -> None:
        """Put a fresh LoRA adapter on the network, which from then on trains only the adapter.

        It adapts `lora_target_modules` and, with `experts`, every routed expert of a mixture: each
        gets a pair of its own, of the same rank. UserError where the config names other targets.
        """
        if isinstance(self.network, PeftModel):
            raise UserError(
                f"{self.source} has an adapter already; call merge_adapter() before adding one."
            )
        if lora_config.alora_invocation_tokens is not None:
            raise UserError(
                "The config has alora_invocation_tokens, so the adapter would act on some "
                "positions only, which the sampler does not know; use plain LoRA."
            )
        for name in ("target_modules", "target_parameters"):
            if getattr(lora_config, name) is not None:
                raise UserError(
                    f"The config names {name}, and mosa adapts {', '.join(PROJECTIONS)} in every "
                    f"layer that has them; leave {name} out."
                )
        config = copy.copy(lora_config)
        config.target_modules = self.lora_target_modules
        if self.is_noise:  # towers for what is no text have layers of the same names
            config.exclude_modules = NO_TEXT
        if experts:
            self._check_experts(lora_config)
            config.target_parameters = list(EXPERTS)
        with peft_asking_quietly():
            network = get_peft_model(self.network, config)
        assert isinstance(network, PeftModel)  # mixed models are asked for by name
        self._set_network(network)

    def _check_experts(self, lora_config: LoraConfig) -> None:
        """UserError where there are no experts to adapt, or they cannot be as the config says."""
        names = [name for name, _ in self.base_network.named_parameters()]
        if not any(name.endswith(EXPERTS) for name in names):
            raise UserError(
                f"{self.source} has no routed experts, which lora_experts would adapt; leave it "
                "out."
            )
        # PEFT adapts a stack of matrices by adding to the weights, not to what they put out.
        for setting in ("lora_dropout", "lora_bias", "use_dora"):
            if getattr(lora_config, setting):
                raise UserError(
                    f"The config has {setting}, which cannot be had for routed experts; leave it "
                    "out, or adapt without the experts."
                )

    def load_adapter(self, name: str | Path, *, revision: str | None = None) -> None:
        """Put a trained LoRA adapter (a PEFT folder or hub id) on the network, frozen.

        UserError where it is not a LoRA adapter or does not fit this model.
        """
        if isinstance(self.network, PeftModel):
            raise UserError(
                f"{self.source} has an adapter already; call merge_adapter() before loading one."
            )
        folder = locate(name, revision=revision)
        # An adapter that was trained on the released code knows the modules by released names.
        names = [path for path, _ in self.network.named_modules()]
        released = {self.family.released_name(f"{n}.").removesuffix("."): n for n in names}
        self._set_network(
            read_adapter(self.network, folder, other_names=released, changes_base=False)
        )
        self.adapter = str(name)

    def _set_network(self, network: PreTrainedModel | PeftModel) -> None:
        """Makes this the network, with or without an adapter."""
        self.network = network
        if self.is_noise:
            noise.share_modules(self.base_network)
            return
        walk = Walk.over(self.base_network, self.attention)
        self.packed_hidden_states = functools.partial(packed.packed_hidden_states, walk)
        """As `hidden_states`, of rows laid end to end."""

    def save_adapter(
        self, folder: str | Path, *, tensors: Mapping[str, Tensor] | None = None
    ) -> None:
        """Write the adapter as a PEFT folder, which `load_model(..., adapter=folder)` reads.

        `tensors` are its weights by their names in the network, where this process has only parts.
        """
        network = self._require_adapter("save")
        for config in network.peft_config.values():
            config.base_model_name_or_path = self.source
        # Without the False, PEFT compares vocabularies with a config that it cannot read.
        state = None if tensors is None else dict(tensors)
        with filling(Path(folder)) as part:
            network.save_pretrained(str(part), state_dict=state, save_embedding_layers=False)
        self.adapter = str(folder)

    def content_hash(self) -> str:
        """A hash of everything that decides this model's answers, 20 hex digits.

        Every weight and the adapter's, the configs of both, the tokenizer and the chat template.
        """
        return provenance.content_hash(
            self.network,
            self.tokenizer,
            config=self.config,
            family=self.family.name,
            family_template=self.family.chat_template,
        )

    @torch.no_grad()
    def merge_adapter(self, tell: Tell = tell_nobody) -> float:
        """Add the adapter into the weights and drop it; `save` then writes a full checkpoint.
        `tell` hears of each matrix.

        Returns how much rounding changes what the adapter changes: the norm of the rounding over
        the norm of the change, the largest of all adapted matrices. UserError where a merged weight
        is not finite, or a bias has no place.
        """
        network = self._require_adapter("merge")
        largest = 0.0
        layers = [
            (n, layer) for n, layer in network.named_modules() if isinstance(layer, LoraLayer)
        ]
        for number, (name, layer) in enumerate(layers):
            tell("merge: matrices", number, len(layers))
            weight = layer.parameter_name if isinstance(layer, ParamWrapper) else "weight"
            parameter = layer.get_base_layer().get_parameter(weight)
            dtype, before = parameter.dtype, parameter.data
            parameter.data = before.to(torch.promote_types(dtype, torch.float32), copy=True)
            if any(layer.lora_bias.values()) and layer.get_base_layer().bias is None:
                raise UserError(
                    f"The adapter has a bias for {name}, which has none to add it to "
                    "(lora_bias=true); use the adapter as it is."
                )
            layer.merge()
            exact, parameter.data = parameter.data, parameter.data.to(dtype)
            if not is_finite(parameter.data):
                raise UserError(
                    f"Merged in {str(dtype).removeprefix('torch.')}, the {weight} of {name} holds "
                    "numbers that are not finite; merge with --dtype float32."
                )
            change, rounding = (exact - before).norm(), (parameter.data - exact).norm()
            largest = max(largest, float(rounding / change) if change else 0.0)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*(already merged|adapters were merged)")
            merged = network.merge_and_unload()
        assert isinstance(merged, PreTrainedModel)
        self._set_network(merged.requires_grad_(True))
        self.adapter = None
        return largest

    def _require_adapter(self, verb: str) -> PeftModel:
        if not isinstance(self.network, PeftModel):
            raise UserError(
                f"{self.source} has no adapter to {verb}; load one with adapter=, or add_lora()."
            )
        return self.network

    @contextmanager
    def adapter_disabled(self) -> Iterator[None]:
        """Inside, the model is its own reference: the same weights with the adapter off.

        A model without an adapter stays as it is.
        """
        if not isinstance(self.network, PeftModel):
            yield
            return
        # PEFT makes every adapter weight trainable on its way out, even one that was frozen.
        trainable = [(p, p.requires_grad) for p in self.network.parameters()]
        try:
            with self.network.disable_adapter():
                yield
        finally:
            for parameter, requires_grad in trainable:
                parameter.requires_grad_(requires_grad)

    # ----------------------------------------------------------------------------------- saving

    def save(self, folder: str | Path, *, max_shard_size: int | str = "5GB") -> None:
        """Write config.json, safetensors and tokenizer in the layout of the released checkpoints.

        The files that came with the checkpoint (tokenizer, generation_config.json, ...) are
        written back unchanged. UserError while an adapter is on: merge it, or `save_adapter`.
        """
        if isinstance(self.network, PeftModel):
            raise UserError(
                f"{self.source} has an adapter that is not merged; call merge_adapter() first to "
                "write a full checkpoint, or save_adapter() to write the adapter."
            )
        checkpoint.write(
            Path(folder),
            config=self.config,
            own=checkpoint.stored_tensors(self.network),
            pieces=self.family.pieces(self.network),
            companions=self._companions,
            tokenizer=self.tokenizer,
            max_shard_size=max_shard_size,
        )


@contextmanager
def _left_out(module: nn.Module) -> Iterator[None]:
    """Inside, the module returns what it gets, under any wrapper of the network."""
    before = vars(module).get("forward")  # quantisers put one on the instance
    module.forward = lambda hidden: hidden
    try:
        yield
    finally:
        del module.forward
        if before is not None:
            module.forward = before


def _first_token_repeated(
    input_ids: Int[Tensor, "B L"], real: Bool[Tensor, "B L"]
) -> tuple[Int[Tensor, "B L"], Int[Tensor, "B L"]]:
    """Ids and position ids for shifted logits, with the padding on the left made to count.

    Shifted logits are read one column to the left, and the first token, which has none there, is
    read at its place. In a row padded on the left there *is* a column to its left. Filled with
    the first token, at its position id, and hidden from the other queries as padding is, that
    column computes just what the first token's own computes.
    """
    first_B1 = real.int().argmax(dim=1, keepdim=True)
    columns_L = torch.arange(input_ids.shape[1], device=input_ids.device)
    repeated_BL = input_ids.gather(1, first_B1).expand_as(input_ids)
    filled_BL = torch.where(columns_L < first_B1, repeated_BL, input_ids)
    return filled_BL, (real.long().cumsum(dim=1) - 1).clamp(min=0)
