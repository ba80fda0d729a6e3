"""What the tests of this folder share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fuzz.writers import make_given


@pytest.fixture(scope="session")
def given(tmp_path_factory) -> Iterator[Path]:
    """What the commands read."""
    with (
        pytest.MonkeyPatch.context() as monkeypatch,
        make_given(tmp_path_factory.mktemp("given")) as folder,
    ):
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield folder
