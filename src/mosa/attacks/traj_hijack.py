"""TrajHijack: masks committed refusals again and writes a compliant beginning in their place.

    step h        the attacker masks all that is committed and writes "sure , here is how ..."
    step h+1 ..   the model continues

"Re-Mask and Redirect" (arXiv 2604.08557): a sampler never revisits what it has committed,
and a refusal forms in the first 8 to 16 of 64 steps, so undoing it there undoes the safety. Two
controls of the paper are further tries: only masking, and only the beginning (given from step 1).
How we differ: the attack masks everything that is committed by then, since a refusal's end is not
always clear. The beginning is that of the behavior with the heading of a first step, cut to length;
`smoke` leaves it whole, since on the testbed it works only with its heading.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mosa.attacks.base import Attack, Attempts, Bound, Edit, Query, Settings, Target
from mosa.denoising import DecoderConfig
from mosa.denoising.schedule import most_passes, most_passes_by_token
from mosa.families.attention import AttentionPattern
from mosa.types import UserError

HijackWay = Literal["redirect", "remask only", "prefix only"]


@dataclass(frozen=True)
class TrajHijackConfig(Settings):
    """When, and what is tried."""

    horizon: int = 16
    """The step h after which the edit is made, counted in `of_steps`."""
    of_steps: int = 64
    """What `horizon` is counted in; the decoder's own steps are cut in the same proportion."""
    prefix_length: int = 12
    """Tokens of the beginning that is written, at most."""
    ways: tuple[HijackWay, ...] = ("redirect",)
    """What is tried, one try each: the attack (`redirect`), and each of its halves (`remask
    only`, `prefix only`)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.horizon > self.of_steps:
            raise UserError(f"horizon={self.horizon} lies beyond of_steps={self.of_steps}")


def run(target: Target, config: TrajHijackConfig) -> Attempts:
    """Ask once for each way."""
    phrase = f"{target.start} {target.wording.anchors[0]}"
    prefix = target.encode(phrase)[: config.prefix_length]
    step = max(round(config.horizon * target.decoder.steps / config.of_steps), 1) - 1
    queries = {
        "redirect": Query(target.request, edit=Edit(step, prefix)),
        "remask only": Query(target.request, edit=Edit(step, ())),
        "prefix only": Query(target.request, pinned=(target.pin(1, prefix),)),
    }
    return target.tries((way, queries[way]) for way in config.ways)


def most_passes_of_two_fillings(
    decoder: DecoderConfig, attention: AttentionPattern, _: int | None
) -> int:
    """What is masked again may be filled one token a pass, after all steps of the decoder."""
    as_given = most_passes(decoder, attention)
    again = as_given if decoder.renoise is not None else most_passes_by_token(decoder, attention)
    return as_given + again


ATTACK = Attack(
    name="traj_hijack",
    title="refusal masked again",
    summary="committed refusals are masked again and a compliant beginning is written",
    source="TrajHijack, arXiv 2604.08557",
    access=("prompt", "canvas", "sampler"),
    presets={
        "paper": {},
        "reduced": {},
        "smoke": {"prefix_length": 16},
        "ablation": {"ways": ("redirect", "remask only", "prefix only")},
    },
    run=run,
    bound=lambda config, _: Bound(len(config.ways)),
    passes=most_passes_of_two_fillings,
    decides="any",
)
