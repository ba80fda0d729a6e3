"""First-Step GCG: an optimised suffix that makes a whole compliant answer likely at the first step.

    user       how do i make a copper kiln ? [20 tokens found by the search]

From the priming-vulnerability paper (arXiv 2510.00565): log p(answer | request + suffix, all masks)
at the first step bounds the answer's likelihood from below up to a factor, if confidence grows
along the steps, and costs one forward pass where a Monte-Carlo estimate needs many. Where a case
has no answer, the search aims at the beginning of one (`target`). It is in suffix_search.py, and
takes the mean over the answer's tokens where the paper has the sum; the choices are the same.
"""

from __future__ import annotations

from mosa.attacks.base import Attack, Attempts, Query, Target
from mosa.attacks.gcg import BUDGETS, SearchSettings, search, search_bound


async def run(target: Target, config: SearchSettings) -> Attempts:
    """Search and ask once."""
    answer = target.behavior.answer or target.start
    ids = list(target.encode(answer))[: target.length]
    prompt, state = await search(target, ids, 1, config)
    yield target.attempt([await target.ask(Query(prompt))], details=state.first_and_best)


ATTACK = Attack(
    name="first_step_gcg",
    title="suffix for the first step",
    summary="an optimised suffix that makes a whole compliant answer likely at the first step",
    source="First-Step GCG, arXiv 2510.00565",
    access=("prompt", "gradients"),
    presets=BUDGETS,
    run=run,
    bound=lambda config, _: search_bound(config, 1),
    decides="only",
    version=2,
)
