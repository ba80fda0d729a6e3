"""Prompt files in, `TrainingExample`s or `Behavior`s out; and which file a copy is."""

from mosa.data.behaviors import BehaviorSet, behavior_set_names, hash_of_behaviors, load_behaviors
from mosa.data.overlap import Overlap, OverlapReport, describe_overlap, overlap
from mosa.data.prompts import TrainingExample, load_prompts
from mosa.data.registry import KNOWN_FILES, KnownFile, identify, verify

__all__ = [
    "KNOWN_FILES",
    "BehaviorSet",
    "KnownFile",
    "Overlap",
    "OverlapReport",
    "TrainingExample",
    "behavior_set_names",
    "describe_overlap",
    "hash_of_behaviors",
    "identify",
    "load_behaviors",
    "load_prompts",
    "overlap",
    "verify",
]
