"""Fine-tuned classifiers that answer with their next token: one forward pass per response.

A classifier is only as good as the prompt that it was trained with, so a template is always given
by the user and never guessed. If the likeliest next token is none of the words it was trained to
say, the response is unscored: the template or the checkpoint is then probably a different one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor

from mosa.chat.local import running
from mosa.chat.questions import fill
from mosa.chat.text import without_strings
from mosa.chat.weights import CausalLM, chooses_nothing
from mosa.judges.base import AskingJudge, Item, JudgeSetting, judge_id
from mosa.judges.prompted import check_template
from mosa.types import UserError, Verdict, short_hash

MAX_RESPONSE_TOKENS = 512
"""Longer responses are clipped, as both published classifiers do."""
UNUSABLE = (
    "The scores of the judge's model are NaN, infinite or all equal; its weights are damaged."
)


@dataclasses.dataclass(frozen=True)
class Classifier:
    """A published classifier, and how it says its verdict."""

    name: str
    """The judge's."""
    version: int
    checkpoint: str
    """The published weights."""
    origin: str
    """Where its prompt is published."""
    aliases: Mapping[str, str]
    """What the prompt's fields are called there."""
    spellings: Mapping[str, Sequence[str]]
    """For each word that it may say next, the tokens that spell it."""
    verdict: Callable[[Mapping[str, float]], Verdict]
    """What the words' shares, which sum to 1, mean."""
    context_origin: str | None = None
    """Where its prompt for behaviors with a context is published, if there is one; such behaviors
    are unscored without it."""


class NextTokenJudge(AskingJudge):
    """A judge that weighs the words which a classifier may say next."""

    def __init__(self, classifier: Classifier, setting: JudgeSetting) -> None:
        name, aliases = classifier.name, classifier.aliases
        if setting.template is None:
            raise UserError(
                f"The judge {name} needs the prompt that its classifier was trained with; give it "
                f"as the template, from {classifier.origin}."
            )
        check_template(name, setting.template, aliases)
        if setting.context_template is not None:
            check_template(name, setting.context_template, aliases)
            if "{context}" not in setting.context_template:
                raise UserError(
                    f"The context template of the judge {name} lacks {{context}}; write it where "
                    "the context belongs."
                )
        self._classifier = classifier
        self._template, self._context_template = setting.template, setting.context_template
        self._model = self.local_model = setting.weights(classifier.checkpoint)

    @property
    def id(self) -> str:
        """Name, version, hash of the template or templates, and the checkpoint."""
        templates = "\0".join(filter(None, (self._template, self._context_template)))
        name, version = self._classifier.name, self._classifier.version
        return judge_id(name, version, short_hash(templates), self._model.name)

    async def ask(self, item: Item) -> Verdict:
        classifier, template = self._classifier, self._template
        if item.behavior.context and classifier.context_origin is not None:
            if self._context_template is None:
                return Verdict.unscored(
                    "The behavior has a context, and the classifier's prompt for these is not "
                    f"given; write {classifier.context_origin} to {classifier.name}_context.txt."
                )
            template = self._context_template
        found = await self._model.compute(word_shares, (item, template, classifier))
        if "unusable" in found:
            return Verdict.unscored(UNUSABLE)
        if found["mass"] is None:
            return Verdict.unscored(
                f"The classifier's next token is none of {', '.join(classifier.spellings)}; its "
                "template or checkpoint is probably not the published one.",
                found["said"],
            )
        verdict = classifier.verdict(found["shares"])
        native = {**verdict.native, "mass": found["mass"], "clipped": found["is_clipped"]}
        return dataclasses.replace(verdict, native=native, raw=found["said"])


def word_shares(
    model: CausalLM, questions: Sequence[tuple[Item, str, Classifier]]
) -> list[dict[str, Any]]:
    """The next token after each prompt, `said`; the probability of all words, `mass` (None where
    `said` is none of them); and the words' `shares` of it; or `unusable` where no token is chosen.

    A question is a response, the template for it, and the classifier that is asked."""

    def plain(text: str) -> str:
        return without_strings(text, model.special_tokens)

    clipped = [clip(model, item.response) for item, _, _ in questions]
    prompts = [
        fill(template, item.behavior, response, classifier.aliases, plain)
        for (item, template, classifier), (response, _) in zip(questions, clipped, strict=True)
    ]
    logits_BV = next_token_logits(model, [classifier_ids(model, prompt) for prompt in prompts])
    probs_BV, unusable_B = logits_BV.softmax(dim=-1), chooses_nothing(logits_BV)
    # One judge asks its model, so all have its words.
    words = _word_ids(model, questions[0][-1].spellings)
    found: list[dict[str, Any]] = []
    for probs_V, is_unusable, (_, is_clipped) in zip(probs_BV, unusable_B, clipped, strict=True):
        if is_unusable:
            found.append({"said": "", "mass": None, "unusable": True})
            continue
        likeliest = int(probs_V.argmax())
        said = model.tokenizer.convert_ids_to_tokens(likeliest)
        if not any(likeliest in ids for ids in words.values()):
            found.append({"said": said, "mass": None})
            continue
        probs = {word: float(probs_V[ids].sum()) for word, ids in words.items()}
        mass = sum(probs.values())
        shares = {word: p / mass for word, p in probs.items()}
        found.append({"said": said, "mass": mass, "shares": shares, "is_clipped": is_clipped})
    return found


def _word_ids(model: CausalLM, spellings: Mapping[str, Sequence[str]]) -> dict[str, list[int]]:
    vocabulary = model.tokenizer.get_vocab()
    words = {
        word: [vocabulary[token] for token in tokens if token in vocabulary]
        for word, tokens in spellings.items()
    }
    for word, ids in words.items():
        if not ids:
            raise UserError(
                f'the tokenizer of {model.checkpoint} has no token for "{word}", so it is not the '
                "classifier that this judge asks; give another checkpoint"
            )
    return words


def clip(model: CausalLM, response: str) -> tuple[str, bool]:
    """The first `MAX_RESPONSE_TOKENS` tokens of a response, and whether any were left out."""
    ids = model.ids(response)
    if len(ids) <= MAX_RESPONSE_TOKENS:
        return response, False
    return model.decode(ids[:MAX_RESPONSE_TOKENS]), True


def classifier_ids(model: CausalLM, prompt: str) -> list[int]:
    """The tokens of a prompt, after the token that begins a text where the model has one."""
    begins = model.tokenizer.bos_token
    has_begin = begins is not None and prompt.startswith(begins)
    return model.prompt_ids(prompt, add_special_tokens=not has_begin)


def next_token_logits(model: CausalLM, prompts: Sequence[list[int]]) -> Float[Tensor, "B V"]:
    """The logit of each token to come next, on the CPU in float32."""
    ids_BL, mask_BL = model.left_padded(prompts)
    # Positions count from a prompt's own first token, so that padding changes nothing.
    positions_BL = (mask_BL.cumsum(-1) - 1).clamp(min=0)
    with running(model):
        logits_B1V = model.network(
            input_ids=ids_BL, attention_mask=mask_BL, position_ids=positions_BL, logits_to_keep=1
        ).logits
    return logits_B1V[:, -1].float().cpu()
