"""Probes: attacks that measure where safety lies in a response, and not whether it holds.

    position   harm by what is forced into a response, and where             (the paper's E1)
    step       harm by position and step of an intervention
    suffix     how far an optimised prompt steers a position                 (the paper's E2)
    order      in which order positions are committed                        (the paper's E3)
    depth      where, and when, a model puts refusals

Each takes its design from arXiv 2508.12398 and yields one attempt for each cell of its experiment,
with the cell's factors in the attempt's details. A run holds them like other attacks;
mosa/evidence/findings reads them, and `mosa analyze` does both.
"""

from mosa.attacks.base import Attack
from mosa.probes import depth, order, position, step, suffix
from mosa.probes.base import Protocol
from mosa.types import UserError

__all__ = ["PROBES", "PROTOCOLS", "probe_named"]

_MODULES = (position, suffix, order, step, depth)

PROBES: dict[str, Attack] = {module.ATTACK.name: module.ATTACK for module in _MODULES}
"""Every probe by its name."""
PROTOCOLS: dict[str, dict[str, Protocol]] = {
    module.ATTACK.name: module.PROTOCOLS for module in _MODULES
}
"""What each preset of a probe is meant to be run on."""


def probe_named(name: str) -> Attack:
    """The probe of that name; UserError where none has it."""
    if name not in PROBES:
        raise UserError(f"{name} is no probe; choose from {', '.join(PROBES)}")
    return PROBES[name]
