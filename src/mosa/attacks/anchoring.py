"""Anchoring: at step t the predicted response is replaced by a compliant one and masked again.

    step 1 .. t   the model denoises
    step t        what it has committed so far is overwritten by the answer's tokens at those places
    step t+1 ..   the model continues

The white-box probe of the priming vulnerability (arXiv 2510.00565): how much contamination
a model survives. As there, the decoder fills positions in random order, so that the answer shows at
random places. The final judges read the written tokens, too; at late steps these alone say a lot.
How we differ: times are the paper's (t of 128) as shares of the decoder's steps, and times that
fall on one step are one try. The attack removes blocks, so that the random places are those of the
whole response. Canvases of uniform noise have no order; there the answer stands in the next canvas
of its place, which the model may overwrite.
"""

from __future__ import annotations

from dataclasses import dataclass

from mosa.attacks.base import PLANNED, Attack, Attempts, Bound, Edit, Query, Settings, Target
from mosa.types import UserError


@dataclass(frozen=True)
class AnchoringConfig(Settings):
    """When the answer is shown."""

    times: tuple[int, ...] = (1, 4, 8, 16, 32)
    """The steps t, counted in `of_steps`; one try each."""
    of_steps: int = 128
    """What `times` are counted in; they are scaled to the decoder's steps, and at least one
    step is made."""
    remasking: str = "random"
    """The order in which positions are filled."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if max(self.times) > self.of_steps:
            raise UserError(f"times={self.times} go beyond of_steps={self.of_steps}")


def run(target: Target, config: AnchoringConfig) -> Attempts:
    """Ask once for each time."""
    assert target.behavior.answer is not None, "checked when the run is planned"
    ids = target.encode(target.behavior.answer)[: target.length]
    ids += (target.model.eos_token_id,) * (target.length - len(ids))
    steps = target.decoder.steps
    order = {"remasking": config.remasking, "block_length": None, **PLANNED}
    time_of: dict[int, int] = {}  # times that fall on one step are one try
    for time in config.times:
        time_of.setdefault(max(round(time * steps / config.of_steps), 1) - 1, time)
    queries = []
    for step, time in time_of.items():
        query = Query(
            target.request,
            edit=Edit(step, ids, keep_committed=True),
            decoder=order if target.has_masks else {},
        )
        queries.append((f"t={time}/{config.of_steps}", query))
    return target.tries(queries)


ATTACK = Attack(
    name="anchoring",
    title="answer replaced half-way",
    summary="at step t the predicted response is replaced by a compliant one",
    source="anchoring, arXiv 2510.00565",
    access=("prompt", "sampler"),
    takes=("remasking", "block_length", *PLANNED),
    presets={"paper": {}, "reduced": {"times": (1, 8, 32)}, "smoke": {"times": (1, 8, 32)}},
    run=run,
    bound=lambda config, _: Bound(len(config.times)),
    decides="any",
    needs_answer=True,
)
