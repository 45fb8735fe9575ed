"""Makes the helper beside this file importable, and keeps what is written in one place."""

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever names no folder writes into the test's own."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def answering(tiny_tokenizer: Any) -> Any:
    """How the tiny model is asked."""
    from sleep_pipeline.baselines.labelled import Answering

    return Answering(tiny_tokenizer)
