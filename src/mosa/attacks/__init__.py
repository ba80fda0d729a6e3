"""Attacks on diffusion language models that the user controls.

Each is one file. An attack ends in a prompt or a `Canvas`; generation is the sampler's alone.
"""

from mosa.attacks.gcg import GcgConfig, GcgResult, gcg_suffix

__all__ = ["GcgConfig", "GcgResult", "gcg_suffix"]
