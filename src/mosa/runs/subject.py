"""What is measured: a model with its adapter, system prompt, decoding rules and decoder.

    subjects:
      - {name: plain, model: testbed}
      - {name: aligned, model: testbed, adapter: runs/mosa, decoder: {steps: 36, block_length: 24}}
      - {name: behind-an-api, model: testbed, grants: [prompt, history]}
      - {name: served, model: "http://localhost:8000/v1#NAME", i_am_authorized: true}

A subject states the access that it grants; an attack states what it needs (`Attack.access`). Every
decoder setting belongs to the subject unless it offers it or the attack owns the sampler.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from mosa.alignment.phrases import read_phrases
from mosa.attacks import Attack
from mosa.chat import ChatOptions, names_endpoint, split_name
from mosa.data.rows import read_rows
from mosa.denoising import DecoderConfig
from mosa.denoising.published import over_published
from mosa.denoising.rules import Monitor
from mosa.families import decoder_of
from mosa.inputs import checked, is_file, is_folder, plain_text, refusing, shortened
from mosa.runs.records import TrainingPoint
from mosa.served import GRANTED, SENT, sent_settings
from mosa.testbed import find_decoder
from mosa.types import Access, UserError, as_plain

NO_ADAPTER = "none"
ALL_ACCESS: tuple[Access, ...] = get_args(Access)
REAL_MODEL_DECODER = DecoderConfig(max_new_tokens=256, steps=256)
OFFERED = ("temperature", "top_p", "top_k", "seed")
"""The decoder settings that chat APIs usually let their users choose."""


@dataclass(frozen=True)
class Subject:
    """One thing to measure, and the name of its figures."""

    name: str
    """What it is called in records, tables and reports."""
    model: str
    """Name, folder or hub id of the model, or URL#MODEL of one that is served elsewhere."""
    adapter: str | None = None
    """Folder or hub id of an adapter; null: the model as it is."""
    system_prompt: str | None = None
    """What the defender puts before every prompt."""
    decoder: DecoderConfig | None = None
    """The defender's decoder with its rules; null: `default_decoder` of the model."""
    grants: tuple[Access, ...] | None = None
    """What an attacker of it controls; null: everything of a local model, prompt and history of a
    served one."""
    offers: tuple[str, ...] = OFFERED
    """The decoder settings that users may choose without owning the sampler."""
    request: dict[str, Any] | None = None
    """Further fields of every request to a served model; a field that is null is not sent."""
    tokenizer: str | None = None
    """Folder or hub id of a served model's tokenizer, where its server takes canvases: then it
    grants them too."""
    i_am_authorized: bool = False
    """Whether the user states that they may attack the served model."""

    def __post_init__(self) -> None:
        if not self.name or not self.name.isprintable():
            raise UserError(f"the name {self.name!r} of a subject is empty or not printable")
        plain_text(self.system_prompt or "", f"the system prompt of {self.name}")
        unknown = sorted(set(self.grants or ()) - set(ALL_ACCESS))
        if unknown:
            raise UserError(
                f"{self.name} grants {unknown[0]}, which is no access; choose from "
                f"{', '.join(ALL_ACCESS)}"
            )
        settings = {field.name for field in dataclasses.fields(DecoderConfig)}
        if set(self.offers) - settings:
            (first, *_) = sorted(set(self.offers) - settings)
            raise UserError(f"{self.name} offers {first}, which is no setting of a decoder")
        if self.is_served:
            self._check_served()
        elif self.tokenizer is not None:
            raise UserError(
                f"{self.name} is loaded here with its own tokenizer; leave tokenizer out, which is "
                "for served models"
            )
        elif self.request is not None:
            raise UserError(
                f"{self.name} has fields of a request, and {self.model} is loaded here; name a "
                "served model as URL#MODEL, or leave request out"
            )

    def _check_served(self) -> None:
        """UserError for what a server is not asked for."""
        if self.adapter is not None:
            raise UserError(
                f"{self.name} is served elsewhere, so that no adapter can be put on it; let the "
                "server load it, and name the model that it then serves"
            )
        granted = self._granted_by_server
        more = [name for name in self.grants or () if name not in granted]
        if more:
            remedy = "; name its tokenizer, if it does" if more[0] == "canvas" else ""
            raise UserError(
                f"{self.name} is served elsewhere and cannot grant {more[0]}; a server's users "
                f"control {', '.join(granted)}{remedy}"
            )
        ChatOptions(chat_extra=self.request)  # raises for the fields that are mosa's
        default = DecoderConfig()
        for setting in dataclasses.fields(DecoderConfig):
            name = setting.name
            value = getattr(self.full_decoder, name)
            if name not in SENT and value != getattr(default, name):
                raise UserError(
                    f"{name} is for the server of {self.name} to set, which is sent "
                    f"{', '.join(SENT)} alone; leave it out (fields that this server reads in a "
                    "request belong into the subject's `request`)"
                )

    @property
    def is_served(self) -> bool:
        """Whether the model is at an address, and not loaded here."""
        return names_endpoint(self.model)

    @property
    def _granted_by_server(self) -> tuple[Access, ...]:
        return GRANTED if self.tokenizer is None else (*GRANTED, "canvas")

    @property
    def access(self) -> tuple[Access, ...]:
        """What an attacker of it controls."""
        if self.grants is not None:
            return self.grants
        return self._granted_by_server if self.is_served else ALL_ACCESS

    @property
    def source(self) -> str:
        """Where the model is from, for the records; without the name of a key's variable."""
        return "#".join(split_name(self.model)[:2]) if self.is_served else self.model

    def __repr__(self) -> str:
        """What it is: model, adapter, system prompt, decoder, and access where not all of it."""
        decoder = self.full_decoder
        parts = [self.source if self.adapter is None else f"{self.source} + {self.adapter}"]
        parts += ["behind a system prompt"] if self.system_prompt else []
        parts += [f"{decoder.max_new_tokens} tokens in {decoder.steps} steps"]
        parts += [rule.name for rule in decoder.rules]
        if set(self.access) != set(ALL_ACCESS):
            parts += [f"grants {', '.join(self.access) or 'nothing'}"]
        return f"<Subject {self.name}: {', '.join(parts)}>"

    @property
    def full_decoder(self) -> DecoderConfig:
        """The decoder, its default where none is given."""
        return default_decoder(self.model) if self.decoder is None else self.decoder

    def missing_for(self, attack: Attack) -> str:
        """What the attack needs and the subject does not grant; empty where it can be run."""
        lacking = [name for name in attack.access if name not in self.access]
        if lacking:
            return f"needs {', '.join(lacking)}, which {self.name} does not grant"
        decoder = self.full_decoder
        if attack.needs_masks and decoder.renoise is not None:
            return attack.needs_masks.format(subject=self.name)
        if attack.needs_edits and decoder.edit_threshold is None and decoder.renoise is None:
            return f"is about edits, and the decoder of {self.name} makes none (edit_threshold)"
        withheld = [name for name in attack.takes if name not in self.offers]
        if attack.threat != "open" and withheld:
            return f"sets {', '.join(withheld)}, which {self.name} does not offer"
        return ""

    def decoder_for(self, attack: Attack, seed: int) -> DecoderConfig:
        """How the subject decodes under an attack; an owner of the sampler runs no monitors."""
        decoder = dataclasses.replace(self.full_decoder, seed=seed)
        if attack.threat != "open":
            return decoder
        own = tuple(rule for rule in decoder.rules if not isinstance(rule, Monitor))
        return dataclasses.replace(decoder, rules=own)


def default_decoder(model: str, settings: Mapping[str, Any] | None = None) -> DecoderConfig:
    """The default decoder of a model but for some settings: the testbed's own for the testbed, that
    of a family which has one, else 256 tokens in 256 steps, since in fewer an answer is rarely
    specific enough to be graded harmful. Of a served model only the tokens are meant."""
    settings = settings or {}
    length = REAL_MODEL_DECODER.max_new_tokens
    if names_endpoint(model):
        usual = as_plain(DecoderConfig(max_new_tokens=length))
    elif (named := decoder_of(model)) is not None:
        usual = over_published(named, settings, length)
    else:
        usual = as_plain(find_decoder(model) or REAL_MODEL_DECODER)
    return DecoderConfig.from_dict(usual | dict(settings))


def plain_decoder(subject: Subject, decoder: DecoderConfig) -> dict[str, Any]:
    """A decoder as runs record it: without its seed, since a run may have several, and of a served
    model's only what is sent."""
    decoder = dataclasses.replace(decoder, seed=0)
    return sent_settings(decoder) if subject.is_served else as_plain(decoder)


def _folder_name(place: str) -> str:
    """The last part of a path, hub id or served model's name; of `.` and `..` the folder's own
    name."""
    if names_endpoint(place):
        place = split_name(place)[1]
    name = Path(place).name
    return Path(place).resolve().name if name in ("", "..") else name


def subjects_of(
    model: str,
    adapters: Sequence[str] = (NO_ADAPTER,),
    *,
    decoder: Mapping[str, Any] | None = None,
    system_prompt: str | None = None,
    tokenizer: str | None = None,
    i_am_authorized: bool = False,
) -> tuple[Subject, ...]:
    """A subject for each adapter of a model, named after model and adapter folder.

    `none` is the model as it is; `decoder` are settings over the model's default.
    """
    config = default_decoder(model, decoder)
    base = _folder_name(model).replace(":", "-")
    for adapter in adapters:
        is_hub_id = re.fullmatch(r"[\w.-]+/[\w.-]+", adapter) is not None
        if adapter != NO_ADAPTER and not is_folder(Path(adapter)) and not is_hub_id:
            raise UserError(
                f"there is no adapter folder {shortened(Path(adapter))}; check the path"
            )
    found = tuple(
        Subject(
            name=base if adapter == NO_ADAPTER else f"{base}+{_folder_name(adapter)}",
            model=model,
            adapter=None if adapter == NO_ADAPTER else adapter,
            system_prompt=system_prompt,
            decoder=config,
            tokenizer=tokenizer,
            i_am_authorized=i_am_authorized,
        )
        for adapter in adapters
    )
    check_names(found)
    return found


PHRASES = ("safe", "refusals")
"""What the methods of alignment call their sets of refusals."""
METRICS = "metrics.jsonl"
"""Where `mosa align` logs, in the adapter's folder."""


def training_of(adapter: str | None) -> list[TrainingPoint]:
    """How the reward of an adapter's training went; empty where its folder does not say so.

    Raises UserError where the folder's log is damaged.
    """
    if adapter is None or not is_file(path := Path(adapter) / METRICS):
        return []
    rows = [
        (checked(row, dict[str, Any], where), where) for row, where in read_rows(path, ".jsonl")
    ]
    return [checked(row, TrainingPoint, where) for row, where in rows if "reward" in row]


def refusals_of(adapter: str | None) -> list[str]:
    """What an adapter was trained to say as a refusal, from the phrase sets that `mosa align`
    writes beside its weights; adapters of another origin have none."""
    files = [] if adapter is None else [Path(adapter) / "phrases" / f"{n}.txt" for n in PHRASES]
    return [phrase for file in files if is_file(file) for phrase in read_phrases(file)]


def check_authorized(subjects: Sequence[Subject]) -> None:
    """UserError for a served model of which the user has not said that they may attack it."""
    for subject in subjects:
        if subject.is_served and not subject.i_am_authorized:
            raise UserError(
                f"{subject.source} is served elsewhere; say with --i_am_authorized (or "
                "i_am_authorized: true beside the subject) that it is yours to attack, or that its "
                "owner has allowed it"
            )


def check_names(subjects: Sequence[Subject]) -> None:
    """UserError where there is no subject, or where two share a name."""
    if not subjects:
        raise UserError("no subject is named; name a model")
    names = [subject.name for subject in subjects]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise UserError(
            f"two subjects are called {twice[0]}, which would mix their results; rename an "
            "adapter's folder, or name the subjects in a file"
        )


def subject_from(record: Mapping[str, Any], *, decoder: Mapping[str, Any] | None = None) -> Subject:
    """A subject as a YAML file describes it; UserError for a name that does not exist.

    The decoder's settings are those over `decoder`, which are those over the default of the model;
    a text names a published decoder, to which `published` of a mapping adds others.
    """
    known = {field.name for field in dataclasses.fields(Subject)}
    unknown = sorted(set(record) - known)
    if unknown:
        raise UserError(
            f"a subject has no setting {unknown[0]}; its settings are {', '.join(sorted(known))}"
        )
    settings = dict(record)
    own = settings.pop("decoder", None) or {}
    subject = checked(settings, Subject, f"the subject {record.get('name')!r}")
    own = {"published": own} if isinstance(own, str) else own
    if not isinstance(own, dict):
        raise UserError(f"the decoder of {subject.name} is {own!r}; give settings by name")
    given = dict(decoder or {})
    named = {name: value for name, value in own.items() if name != "published"}
    length = default_decoder(subject.model).max_new_tokens
    own = over_published(own.get("published"), named, given.get("max_new_tokens", length))
    with refusing(TypeError, f"the decoder of {subject.name} cannot be read", "correct it"):
        config = default_decoder(subject.model, given | own)
    return dataclasses.replace(subject, decoder=config)
