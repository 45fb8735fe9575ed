"""Makes `tiny_models` and the helper beside this file importable, and keeps what is written in one place."""

import sys
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).resolve().parent.parent / "memory")]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever names no folder writes into the test's own."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def passes_are_cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that even a test's few tokens are worth several batches."""
    from sleep_pipeline.seeding.batches import PASS_TOKENS

    monkeypatch.setitem(PASS_TOKENS, "cpu", 8)
