"""PAL: a suffix found with the gradients of a proxy and chosen by the target's own loss.

    user       how do i make a copper kiln ? [20 tokens found by the search]

"Proxy-Guided Black-Box Attack on Large Language Models" (arXiv 2402.09674). Each step:

    1. gradient   of the proxy's loss, by every token of the suffix
    2. swaps      candidates with one token changed, drawn by that gradient (GCG, arXiv 2307.15043)
    3. filter     the candidates of least loss under the proxy, as many as the target may be asked
    4. target     its loss on those; the lowest is the suffix of the next step
    5. ask        every `ask_every` steps the target answers the request with the best suffix so far

The steps are those of suffix_search.py with a guide. How we differ:

1. A diffusion model has no next-token probabilities. Its loss is taken where it begins, on the
   fully masked response, for all tokens of the phrase in one forward pass, so that no query
   goes token by token as through the paper's interfaces. It is the paper's margin loss (`cw`),
   or cross-entropy (`ce`).
2. The proxy is the target without its adapter unless `proxy` names another checkpoint of the same
   tokenizer: whoever aligns a public model leaves that model to the attacker. A target without an
   adapter is its own proxy, which is white-box access; each try's details say whose gradients they
   were. Name the base model as `proxy` to compare checkpoints whose adapter is merged. The attack
   asks for the target's loss on as many candidates in every case. Records identify a proxy by its
   name; other weights need another name.
3. The attack does not tune the proxy on the target's replies, which the published code leaves off
   by default.
4. The attack does not try a suffix again that a step ended with, as published (its `visited`).
5. The attack makes all steps, from a random suffix. The published program may stop at an
   answer without a phrase of refusal, and begins with a suffix that GCG found before.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal
from weakref import WeakKeyDictionary

from mosa.attacks.base import Attack, Attempts, Bound, Query, Target
from mosa.attacks.gcg import ITERATIONS_AT_ONCE, SearchSettings, aim_of, search_of, search_steps
from mosa.families import DiffusionLM, load_model
from mosa.suffix_search import GcgSearch
from mosa.types import UserError


@dataclass(frozen=True)
class PalConfig(SearchSettings):
    """The budget of the search, and what guides it."""

    num_iterations: int = 780
    """Steps of the search; at 32 queries each, these are the paper's 25,000 at most."""
    num_candidates: int = 128
    """Swaps of one token that are drawn in a step."""
    num_target_queries: int = 32
    """Candidates of a step that the target's loss is asked for, those of least loss under the
    proxy."""
    loss: Literal["ce", "cw"] = "cw"
    """Loss of proxy and target: `cw`, how far the best other token's logit lies above the
    phrase's, or `ce`, cross-entropy."""
    proxy: str | None = None
    """Checkpoint of the proxy; unset: the target without its adapter."""
    ask_every: int = 50
    """Steps between two answers, a multiple of 10."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ask_every % ITERATIONS_AT_ONCE:
            raise UserError(
                f"ask_every={self.ask_every}: use a multiple of {ITERATIONS_AT_ONCE}, the steps "
                "that are recorded together"
            )


async def run(target: Target, config: PalConfig) -> Attempts:
    """One attempt every few steps, with the best suffix so far, where it is another one."""
    ids = list(target.encode(target.start))
    settings = config.search_config(
        loss=config.loss,
        num_target_queries=config.num_target_queries,
        skip_visited=True,
        seed=target.seed,
    )
    own = "the target without its adapter" if target.model.has_adapter else "the target itself"
    aim = aim_of(target, ids, 1, settings) | {"proxy": config.proxy}
    asked = None
    # 1. gradient, 2. swaps, 3. filter, 4. target
    async for prompt, state in search_steps(target, aim, _guided):
        done = state.num_iterations
        is_due = done % config.ask_every == 0 or done == config.num_iterations
        # 5. ask
        if is_due and prompt != asked:
            asked = prompt
            response = await target.ask(Query(prompt))
            details = state.first_and_best | {
                "proxy": config.proxy or own,
                "proxy_passes": state.guide_passes,
            }
            yield target.attempt(
                [response], variant=f"step {done}", details=details, rating=-state.best_loss
            )


def _guided(model: DiffusionLM, aim: Mapping[str, Any]) -> GcgSearch:
    """The search with its guide."""
    return search_of(model, aim, model if aim["proxy"] is None else _proxy(aim["proxy"], model))


_PROXIES: WeakKeyDictionary[DiffusionLM, tuple[str, DiffusionLM]] = WeakKeyDictionary()
"""Each target's proxy, for as long as the target is in memory."""


def _proxy(name: str, target: DiffusionLM) -> DiffusionLM:
    if target in _PROXIES and _PROXIES[target][0] == name:
        return _PROXIES[target][1]
    proxy = load_model(name, dtype=target.dtype, device=target.device)
    if _vocabulary(proxy) != _vocabulary(target):
        raise UserError(
            f"the proxy {name} reads text as other tokens than the target; name a checkpoint with "
            "the target's tokenizer and vocabulary"
        )
    _PROXIES[target] = (name, proxy)
    return proxy


def _vocabulary(model: DiffusionLM) -> tuple[str | None, int, int]:
    tokenizer = model.tokenizer
    words = None if tokenizer is None else tokenizer.backend_tokenizer.to_str()
    return words, model.vocab_size, model.mask_token_id


ATTACK = Attack(
    name="pal",
    title="suffix by a proxy model",
    summary="a suffix found with a proxy's gradients and chosen by the target's loss",
    source="PAL, arXiv 2402.09674",
    access=("prompt", "likelihood"),
    presets={
        "paper": {},
        "reduced": {"num_iterations": 200},
        "smoke": {
            "num_iterations": 10,
            "num_candidates": 64,
            "num_target_queries": 16,
            "top_k": 64,
            "suffix_length": 5,
            "ask_every": 10,
        },
    },
    run=run,
    bound=lambda config, _: Bound(
        -(-config.num_iterations // config.ask_every),
        forward_passes=1 + config.num_iterations * config.num_target_queries,
        proxy_passes=config.num_iterations * (config.num_candidates + 1),
    ),
    version=2,
    decides="best rated",
)
