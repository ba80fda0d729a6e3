"""Prompt files in, `TrainingExample`s or `Behavior`s out; and which file a copy is."""

from mosa.data.behaviors import hash_of_cases, known_set_names, load_cases, names_known_set
from mosa.data.overlap import Overlap, OverlapReport, describe_overlap, overlap
from mosa.data.prompts import TrainingExample, load_prompts
from mosa.data.registry import KNOWN_FILES, KnownFile, identify, verify

__all__ = [
    "KNOWN_FILES",
    "KnownFile",
    "Overlap",
    "OverlapReport",
    "TrainingExample",
    "describe_overlap",
    "hash_of_cases",
    "identify",
    "known_set_names",
    "load_cases",
    "load_prompts",
    "names_known_set",
    "overlap",
    "verify",
]
