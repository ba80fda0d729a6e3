"""What the tests of this folder share."""

from __future__ import annotations

from pathlib import Path

import pytest
from fuzz.writers import make_given


@pytest.fixture(scope="session")
def given(tmp_path_factory) -> Path:
    """What the commands read."""
    return make_given(tmp_path_factory.mktemp("given"))
