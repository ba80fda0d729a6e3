"""Prompt files in, `TrainingExample`s or `Behavior`s out; and which file a copy is."""

from mosa.data.behaviors import hash_of_cases, known_set_names, load_cases, names_known_set
from mosa.data.copies import download
from mosa.data.overlap import describe_overlap
from mosa.data.prompts import TrainingExample, draw_prompts, load_prompts
from mosa.data.registry import KNOWN_FILES, identify, verify

__all__ = [
    "KNOWN_FILES",
    "TrainingExample",
    "describe_overlap",
    "download",
    "draw_prompts",
    "hash_of_cases",
    "identify",
    "known_set_names",
    "load_cases",
    "load_prompts",
    "names_known_set",
    "verify",
]
