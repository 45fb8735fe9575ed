"""Makes the memory's `tiny_models` and what the tests here share importable."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent.parent / "memory"), str(Path(__file__).resolve().parent)]
