"""A diffusion model as lm-evaluation-harness sees one: its `LM`, without a fork (lm_eval 0.4.13).

    import lm_eval
    from mosa import DecoderConfig, load_model
    from mosa.evaluation.utility.lm import MosaLM

    lm = MosaLM(load_model("GSAI-ML/LLaDA-8B-Instruct"), DecoderConfig(block_length=32))
    results = lm_eval.simple_evaluate(model=lm, tasks=["gsm8k"], apply_chat_template=True)

LLaDA's own adapter (`eval_llada.py`, arXiv:2502.09992, Appendix B.5) is the model for this. How we
differ:

1. Prompts are generated in batches, through the one sampler, and each row by itself: what a prompt
   gets depends on no other.
2. A dialogue reaches the model as turns, not as a rendered text, so nothing that a user wrote
   becomes a special token. Where a task begins the answer, its beginning follows the last header.
3. Whether an answer is the greedy one is computed, where LLaDA's adapter says no unless asked to.
4. A prompt that is longer than the context does not lose its start, and answers that are the same
   tokens to a model are not compared: that is an error, or (`leaves_out`) left out and noted.

The decoder decides how long a response is and how it is drawn. Of a task's `generation_kwargs` only
the stop strings count; a task that asks for draws needs a decoder with a temperature.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

from mosa.denoising import DecoderConfig
from mosa.evaluation.utility.answers import NUM_DRAWS, Answerer, Pair, Question
from mosa.evaluation.utility.prompts import (
    NO_HARNESS,
    Dialogue,
    cut,
    pair_of,
    prompt_ids,
    stop_strings,
)
from mosa.families import DiffusionLM
from mosa.types import UserError

try:
    from lm_eval.api.model import LM  # pyright: ignore[reportMissingImports]
except ModuleNotFoundError as error:
    if error.name != "lm_eval":
        raise
    raise UserError(NO_HARNESS) from error

Case = tuple[str, int]
"""A task's name and the number of a row in it."""


class MosaLM(LM):
    """What lm_eval asks: `generate_until` and `loglikelihood`."""

    def __init__(
        self,
        model: DiffusionLM,
        decoder: DecoderConfig | None = None,
        *,
        batch_size: int = 32,
        num_draws: int = NUM_DRAWS,
        checks_greedy: bool = True,
        leaves_out: bool = False,
        answerer: Answerer | None = None,
    ) -> None:
        """`num_draws` maskings make the likelihood bound of an answer of several tokens.

        `checks_greedy` generates an answer beside each likelihood, which metrics on greedy answers
        (LAMBADA's accuracy) need; without it none counts as greedy. `leaves_out` gives no answer in
        cases that cannot be asked, and notes them in `left_out`. An `answerer` takes the place of
        decoder, batch size and draws.
        """
        super().__init__()
        self.answerer = answerer or Answerer(
            model, decoder or DecoderConfig(), batch_size=batch_size, num_draws=num_draws
        )
        self.model = model
        self.checks_greedy, self.leaves_out = checks_greedy, leaves_out
        self.left_out: dict[Case, str] = {}
        """Cases that were not asked, and why."""
        self.keys: dict[Case, list[str]] = defaultdict(list)
        """The keys of each case's responses or likelihoods, in the order of its requests."""

    # ------------------------------------------------------------------------------- generation

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Each response up to its first end token, cut before the first stop string."""
        del disable_tqdm
        length = self.answerer.decoder.max_new_tokens
        questions: list[Question | None] = []
        num_tries: Counter[int] = Counter()
        for request in requests:
            context, settings = request.args
            self._check_draws(request, settings)
            ids, prompt = prompt_ids(self.model, context)
            # The harness repeats one and the same request for tasks that want several tries.
            seed = self.answerer.decoder.seed + num_tries[id(request)]
            num_tries[id(request)] += 1
            can = self._can_ask(request, self.answerer.too_long(len(ids), length))
            questions.append(Question(ids, seed, prompt) if can else None)
        responses = iter(self.answerer.respond([q for q in questions if q is not None]))
        texts = []
        for request, question in zip(requests, questions, strict=True):
            if question is None:
                texts.append("")
                continue
            response = next(responses)
            self.keys[_case(request)].append(response.key)
            texts.append(cut(response.text, stop_strings(request.args[1])))
        return texts

    def _check_draws(self, request: Any, settings: dict[str, Any]) -> None:
        wants_draws = settings.get("do_sample") or (settings.get("temperature") or 0) > 0
        if wants_draws and self.answerer.decoder.temperature == 0:
            raise UserError(
                f"the task {request.task_name} asks for draws and the decoder has temperature 0; "
                "give it a temperature, or leave the task out"
            )

    # ------------------------------------------------------------------------------- likelihoods

    def loglikelihood(
        self, requests: list[Any], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """The likelihood bound of each continuation in nats, and whether it is the greedy one.

        Exact for a continuation of one token; else a Monte-Carlo estimate of the lower bound of
        `mosa.denoising.likelihood`.
        """
        del disable_tqdm
        pairs: list[Pair | None] = []
        texts: dict[tuple[Case, Pair], tuple[str, str]] = {}
        for request in requests:
            pair = pair_of(self.model, *request.args)
            reason = self.answerer.too_long(len(pair.ids), len(pair.answer_ids))
            if texts.setdefault((_case(request), pair), request.args) != request.args:
                reason = "two of the answers are the same tokens to this model"
            pairs.append(pair if self._can_ask(request, reason) else None)
        asked = [pair for pair in pairs if pair is not None]
        values = iter(self.answerer.log_likelihoods(asked))
        greedy = iter(self.answerer.greedy_answers(asked) if self.checks_greedy else [])
        found = []
        for request, pair in zip(requests, pairs, strict=True):
            if pair is None:
                found.append((0.0, False))
                continue
            self.keys[_case(request)].append(self.answerer.likelihood_key(pair))
            found.append((next(values), self.checks_greedy and next(greedy) == pair.answer_ids))
        return found

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Not defined: a diffusion model has no probability of a next token to roll over a text."""
        raise UserError(
            f"the task {requests[0].task_name} measures the perplexity of running text, which is "
            "not defined for a diffusion model: it gives a bound on the likelihood of a whole "
            "answer, and no next-token probabilities; leave the task out"
        )

    # ------------------------------------------------------------------------------- prompts

    def _can_ask(self, request: Any, reason: str) -> bool:
        """Whether there is no reason not to; UserError where there is and nothing is left out."""
        if reason and not self.leaves_out:
            raise UserError(
                f"row {request.doc_id} of {request.task_name} cannot be asked: {reason}; ask with "
                "fewer examples, lower max_new_tokens, or leave the task out"
            )
        if reason:
            self.left_out[_case(request)] = reason
        return not reason

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The turns themselves; the model's own template is applied when they are encoded."""
        del add_generation_prompt  # it is False where the last turn begins the answer, as is seen
        return Dialogue.of(chat_history)

    @property
    def tokenizer_name(self) -> str:
        """What the harness tells caches of prompts apart by."""
        return self.model.source.replace("/", "__")


def _case(request: Any) -> Case:
    return request.task_name, request.doc_id
