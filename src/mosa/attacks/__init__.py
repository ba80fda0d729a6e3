"""Attacks on diffusion language models that the user controls.

Each is one file and one line of `ATTACKS`: an async generator that asks a `Target` and yields
`Attempt`s (base.py). `mosa evaluate` runs them; `mosa attacks` lists them; docs/attacks has a page
for each.
"""

from mosa.attacks import (
    adv_prefix,
    anchoring,
    aos,
    avatar,
    best_of_n,
    cipher_chat,
    code_attack,
    context_nesting,
    crescendo,
    decoding_order,
    deep_inception,
    dia,
    dija,
    direct,
    edit_lure,
    end_tokens,
    ept,
    first_step_gcg,
    fits,
    gcg,
    pad,
    pair,
    pal,
    pap,
    past_tense,
    post_context,
    prefill,
    renellm,
    speak_easy,
    tap,
    traj_hijack,
)
from mosa.attacks.base import Attack, Edit, Query, Target
from mosa.attacks.ciphers import Cipher
from mosa.attacks.wording import ENGLISH, Wording

__all__ = [
    "ATTACKS",
    "ENGLISH",
    "Attack",
    "Cipher",
    "Edit",
    "Query",
    "Target",
    "Wording",
]

ATTACKS: dict[str, Attack] = {
    attack.name: attack
    for attack in (
        # controls
        direct.ATTACK,
        best_of_n.ATTACK,
        # the eight of the MOSA paper, in its order
        avatar.ATTACK,
        tap.ATTACK,
        speak_easy.ATTACK,
        aos.ATTACK,
        pal.ATTACK,
        ept.ATTACK,
        dia.ATTACK,
        adv_prefix.ATTACK,
        # other common ones
        pair.ATTACK,
        renellm.ATTACK,
        deep_inception.ATTACK,
        code_attack.ATTACK,
        cipher_chat.ATTACK,
        pap.ATTACK,
        past_tense.ATTACK,
        crescendo.ATTACK,
        context_nesting.ATTACK,
        # on the canvas
        prefill.ATTACK,
        pad.ATTACK,
        post_context.ATTACK,
        dija.DIJA,
        dija.DIJA_RESPONSE,
        dija.DIJA_CANVAS,
        fits.ATTACK,
        # on the sampler
        end_tokens.ATTACK,
        decoding_order.ATTACK,
        anchoring.ATTACK,
        traj_hijack.ATTACK,
        edit_lure.ATTACK,
        # with gradients
        gcg.ATTACK,
        first_step_gcg.ATTACK,
    )
}
"""Every attack by its name."""
