"""Prompt files in, `TrainingExample`s out; and a registry that tells which file a copy is."""

from mosa.data.prompts import TrainingExample, load_prompts
from mosa.data.registry import KNOWN_FILES, KnownFile, identify, verify

__all__ = ["KNOWN_FILES", "KnownFile", "TrainingExample", "identify", "load_prompts", "verify"]
