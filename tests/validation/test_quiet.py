"""Great Expectations is loaded late, leaves nothing behind and calls nobody."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

VALIDATE = """
import socket, sys
import pandas as pd

calls = []
socket.socket.connect = lambda self, address: calls.append(address)
socket.getaddrinfo = lambda *arguments, **options: calls.append(arguments)
from sleep_pipeline.validation.rows import validate_rows

frame = pd.DataFrame({"id": ["a", "a"], "text": ["x", ""]})
checked = validate_rows(frame, "dreams")
assert len(checked.bad) == 2, checked
print("calls:", calls)
"""


def run(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GX_")}
    environ = {**kept, "HOME": str(folder / "home"), "PYTHONDONTWRITEBYTECODE": "1", "TMPDIR": str(folder / "tmp")}
    for name in ("home", "tmp", "work"):
        (folder / name).mkdir()
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=folder / "work", env=environ, capture_output=True, text=True, check=False)


def test_importing_the_package_does_not_load_great_expectations(tmp_path: Path) -> None:
    code = (
        "import sys; import sleep_pipeline.validation.catalog, sleep_pipeline.validation.page; "
        "import sleep_pipeline.memories.reading, sleep_pipeline.memories.contexts, sleep_pipeline.memories.settings; "
        "heavy = {'great_expectations', 'pandas', 'torch', 'pyarrow', 'transformers'}; print(heavy & set(sys.modules))"
    )
    assert run(code, tmp_path).stdout == "set()\n"


@pytest.mark.slow
def test_a_validation_leaves_nothing_prints_nothing_and_calls_nobody(tmp_path: Path) -> None:
    result = run(VALIDATE, tmp_path)
    assert (result.returncode, result.stdout) == (0, "calls: []\n"), result.stderr
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["home", "tmp", "work"]
