"""A diffusion model for lm-evaluation-harness: its `LM`, without a fork (lm_eval 0.4.13).

    import lm_eval
    from mosa import DecoderConfig, load_model
    from mosa.utility.lm import MosaLM

    lm = MosaLM(load_model("GSAI-ML/LLaDA-8B-Instruct"), DecoderConfig(block_length=32))
    results = lm_eval.simple_evaluate(model=lm, tasks=["gsm8k"], apply_chat_template=True)

LLaDA's own adapter (`eval_llada.py`, arXiv:2502.09992, Appendix B.5) is the model for this. How we
differ:

1. Prompts are generated in batches, through the one sampler, and each row separately: what a prompt
   gets depends on no other.
2. A dialogue reaches the model as turns, not as a rendered text, so no text of a user becomes a
   special token. Where a task begins the answer, its beginning follows the last header.
3. Whether an answer is the greedy one is computed, where LLaDA's adapter says no unless asked to.
4. A prompt that is longer than the context does not lose its start, and answers that are the same
   tokens to a model are not compared: both are errors.

The decoder decides how long a response is and how it is drawn. Only the stop strings of a task's
`generation_kwargs` count; a task that asks for draws needs a decoder with a temperature.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from typing import Any

from mosa.attacks import Query
from mosa.denoising import DecoderConfig
from mosa.families import DiffusionLM
from mosa.responder import LocalResponder, answer_all, with_responder
from mosa.types import Ids, UserError
from mosa.utility.harness_task import NO_HARNESS
from mosa.utility.likelihoods import NUM_DRAWS, compared, comparisons
from mosa.utility.prompts import (
    SAME_TOKENS,
    Dialogue,
    check_draws,
    cut,
    pair_of,
    prompt_ids,
    stop_strings,
    too_long,
)

try:
    from lm_eval.api.model import LM  # pyright: ignore[reportMissingImports]
except ModuleNotFoundError as error:
    if error.name != "lm_eval":
        raise
    raise UserError(NO_HARNESS) from error


class MosaLM(LM):
    """The interface of lm_eval: `generate_until` and `loglikelihood`."""

    def __init__(
        self,
        model: DiffusionLM,
        decoder: DecoderConfig | None = None,
        *,
        batch_size: int = 32,
        num_draws: int = NUM_DRAWS,
        checks_greedy: bool = True,
    ) -> None:
        """`num_draws` maskings make the likelihood bound of an answer of several tokens.

        `checks_greedy` generates an answer beside each likelihood, which metrics on greedy answers
        (LAMBADA's accuracy) need; without it none counts as greedy.
        """
        super().__init__()
        if batch_size < 1 or num_draws < 1:
            raise UserError("batch_size and num_draws must be at least 1")
        self.model, self.decoder = model, decoder or DecoderConfig()
        self.batch_size, self.num_draws = batch_size, num_draws
        self.checks_greedy = checks_greedy

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Each response up to its first end token, cut before the first stop string."""
        del disable_tqdm
        questions: list[tuple[int, Ids]] = []
        num_tries: Counter[int] = Counter()
        for request in requests:
            context, settings = request.args
            check_draws(request.task_name, settings, self.decoder.temperature)
            ids, _ = prompt_ids(self.model, context)
            _check(request, too_long(self.model, len(ids), self.decoder.max_new_tokens))
            # The harness repeats the same request for tasks that want several tries.
            questions.append((self.decoder.seed + num_tries[id(request)], ids))
            num_tries[id(request)] += 1
        asked = list(dict.fromkeys(questions))
        queries = [
            (Query("", prompt_ids=ids), replace(self.decoder, seed=seed)) for seed, ids in asked
        ]
        found = answer_all(
            self.model, self.model.content_hash(), queries, batch_size=self.batch_size
        )
        response_to = dict(zip(asked, found, strict=True))
        return [
            cut(response_to[question].text, stop_strings(request.args[1]))
            for question, request in zip(questions, requests, strict=True)
        ]

    def loglikelihood(
        self, requests: list[Any], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """The likelihood bound of each continuation in nats, and whether it is the greedy one.

        Exact for a continuation of one token; else a Monte-Carlo estimate of the lower bound of
        `mosa.denoising.likelihood`.
        """
        del disable_tqdm
        pairs: list[tuple[Ids, Ids]] = []
        words: dict[tuple[Any, ...], tuple[str, str]] = {}
        for request in requests:
            pair = pair_of(self.model, *request.args)
            _check(request, too_long(self.model, *map(len, pair)))
            row = request.task_name, request.doc_id, pair
            is_other = words.setdefault(row, request.args) != request.args
            _check(request, SAME_TOKENS if is_other else "")
            pairs.append(pair)
        works = comparisons(
            # The longest first: what does not fit into memory fails at once.
            sorted(pairs, key=lambda pair: -len(pair[0])),
            self.decoder,
            num_draws=self.num_draws,
            greedy=self.checks_greedy,
            together=self.batch_size,
        )

        async def ask(responder: LocalResponder) -> list[dict[str, Any]]:
            return list(await asyncio.gather(*map(responder.compute, works)))

        outcomes = with_responder(
            self.model, self.model.content_hash(), ask, batch_size=self.batch_size
        )
        found = compared(works, outcomes)
        return [found[pair] for pair in pairs]

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Not defined: a diffusion model has no probability of a next token to roll over a text."""
        raise UserError(
            f"the task {requests[0].task_name} measures the perplexity of running text, which is "
            "not defined for a diffusion model: it gives a bound on the likelihood of a whole "
            "answer, and no next-token probabilities; leave the task out"
        )

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The turns themselves; the model's own template is applied when they are encoded."""
        return Dialogue.of(chat_history, add_generation_prompt)

    @property
    def tokenizer_name(self) -> str:
        """The name of the harness's caches of prompts."""
        return self.model.source.replace("/", "__")


def _check(request: Any, reason: str) -> None:
    """UserError where there is a reason not to ask."""
    if reason:
        raise UserError(
            f"row {request.doc_id} of {request.task_name} cannot be asked: {reason}; ask with "
            "fewer examples, lower max_new_tokens, or leave the task out"
        )
