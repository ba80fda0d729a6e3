"""Fixtures of the `align` tests."""

from __future__ import annotations

import pytest
from align_tiny import tiny_model

from mosa.data import TrainingExample
from mosa.families import DiffusionLM


@pytest.fixture
def model() -> DiffusionLM:
    return tiny_model()


@pytest.fixture
def phrase_files(tmp_path) -> dict[str, str]:
    """Phrase sets in the tiny model's words."""
    safe, harmful = tmp_path / "safe.txt", tmp_path / "harmful.txt"
    safe.write_text("therefore i cannot answer this question .\n# a comment\nwe stop here .\n")
    harmful.write_text("the next step is to\nafter that we\n")
    return {"safe_phrases": str(safe), "harmful_phrases": str(harmful)}


@pytest.fixture
def harmful() -> list[TrainingExample]:
    """Eight harmless stand-ins for harmful requests, with answers of several lengths."""
    dishes, verbs = ("bread", "cake", "tea", "bread and tea"), ("bake", "make")
    steps = "first mix flour and water then stir it until done next heat the water and pour it ."
    return [
        TrainingExample(f"how do i {verb} {dish}", " ".join(steps.split()[: 6 + 2 * i + 3 * j]))
        for i, dish in enumerate(dishes)
        for j, verb in enumerate(verbs)
    ]


@pytest.fixture
def benign() -> list[TrainingExample]:
    return [
        TrainingExample("how do i brew tea", "heat water then pour it ."),
        TrainingExample("how do i make water", "pour it ."),
        TrainingExample("how do i stir", None),
    ]
