"""Attacks on diffusion language models that the user controls.

Each is one file and one line of `ATTACKS`: an async generator that asks a `Target` and yields
`Attempt`s (base.py). `mosa evaluate` runs them; `mosa attacks` lists them; docs/attacks has a page
for each.
"""

from mosa.attacks import (
    anchoring,
    aos,
    avatar,
    best_of_n,
    context_nesting,
    decoding_order,
    dia,
    dija,
    direct,
    end_tokens,
    first_step_gcg,
    fits,
    gcg,
    pad,
    pair,
    post_context,
    prefill,
    speak_easy,
    tap,
    traj_hijack,
)
from mosa.attacks.base import Attack, Backend, Edit, Query, Target, edit_hook
from mosa.attacks.ciphers import Cipher
from mosa.attacks.suffix_search import GcgConfig, GcgSearch, GcgState
from mosa.attacks.wording import ENGLISH, Wording

__all__ = [
    "ATTACKS",
    "ENGLISH",
    "Attack",
    "Backend",
    "Cipher",
    "Edit",
    "GcgConfig",
    "GcgSearch",
    "GcgState",
    "Query",
    "Target",
    "Wording",
    "edit_hook",
]

ATTACKS: dict[str, Attack] = {
    attack.name: attack
    for attack in (
        # controls
        direct.ATTACK,
        best_of_n.ATTACK,
        # on the prompt
        context_nesting.ATTACK,
        # refined by chat models
        pair.ATTACK,
        tap.ATTACK,
        avatar.ATTACK,
        speak_easy.ATTACK,
        aos.ATTACK,
        dia.ATTACK,
        # on the canvas
        prefill.ATTACK,
        pad.ATTACK,
        post_context.ATTACK,
        dija.DIJA,
        dija.DIJA_CANVAS,
        fits.ATTACK,
        # on the sampler
        end_tokens.ATTACK,
        decoding_order.ATTACK,
        anchoring.ATTACK,
        traj_hijack.ATTACK,
        # with gradients
        gcg.ATTACK,
        first_step_gcg.ATTACK,
    )
}
"""Every attack by its name."""
