"""Makes `tiny_models` and the helper beside this file importable, and keeps what is written in one place."""

import sys
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).resolve().parent.parent / "memory")]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever names no folder writes into the test's own."""
    monkeypatch.chdir(tmp_path)
