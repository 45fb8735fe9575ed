"""Tables, JSON and text as files that are either whole or not there, whatever moment the process dies at."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from kedro.io import AbstractDataset, DatasetError

Format = Literal["parquet", "json", "text", "lessons"]


def _write_parquet(data: Any, path: Path) -> None:
    data.to_parquet(path, index=False)


def _read_parquet(path: Path) -> Any:
    import pandas as pd

    return pd.read_parquet(path)


def _json_lines(data: Any, indent: str = "") -> str:
    """JSON for people, but a list of numbers on one line: the answers of some hundred nights are hundred thousands."""
    inner = indent + "  "
    if isinstance(data, dict) and data:
        names = (json.dumps({name: 0}, ensure_ascii=False)[1:-2] for name in data)
        parts = [f"{name}{_json_lines(value, inner)}" for name, value in zip(names, data.values(), strict=True)]
        return f"{{\n{inner}" + f",\n{inner}".join(parts) + f"\n{indent}}}"
    if isinstance(data, (list, tuple)) and not all(isinstance(item, (int, float)) for item in data):
        return f"[\n{inner}" + f",\n{inner}".join(_json_lines(item, inner) for item in data) + f"\n{indent}]"
    return json.dumps(data, ensure_ascii=False, allow_nan=False)


def _write_json(data: Any, path: Path) -> None:
    path.write_text(_json_lines(data) + "\n", encoding="utf-8")


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _write_text(data: str, path: Path) -> None:
    path.write_text(data, encoding="utf-8")


def _read_text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _write_lessons(data: Any, path: Path) -> None:
    from sleep_pipeline.seeding.lesson_file import save_lessons

    save_lessons(data, path)


def _read_lessons(path: Path) -> Any:
    from sleep_pipeline.seeding.lesson_file import load_lessons

    return load_lessons(path)


_FORMATS: dict[str, tuple[Callable[[Any, Path], None], Callable[[Path], Any]]] = {
    "parquet": (_write_parquet, _read_parquet),
    "json": (_write_json, _read_json),
    "text": (_write_text, _read_text),
    "lessons": (_write_lessons, _read_lessons),
}


class FileDataset(AbstractDataset[Any, Any]):
    """One file, written beside the old one and put in its place at once.

    Kedro's own data sets write in place, so a run that is killed while writing leaves half a file, which
    `--only-missing-outputs` then takes for a whole one.

    Args:
        filepath: the file, which Kedro resolves against the project.
        format: `parquet` (a pandas table), `json`, `text`, or `lessons` (pools of lessons by name).
    """

    def __init__(self, filepath: str, format: Format, metadata: dict[str, Any] | None = None) -> None:
        if format not in _FORMATS:
            raise DatasetError(f"format {format!r} of {filepath} is unknown; use one of {', '.join(_FORMATS)}")
        self._path = Path(filepath)
        self._write, self._read = _FORMATS[format]
        self._format = format
        self.metadata = metadata

    @property
    def path(self) -> Path:
        """The file."""
        return self._path

    def load(self) -> Any:
        return self._read(self._path)

    def save(self, data: Any) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        partial = self._path.with_name(f".{self._path.name}.{os.getpid()}.partial")
        try:
            self._write(data, partial)
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(partial, self._path)
        finally:
            partial.unlink(missing_ok=True)

    def clear(self) -> None:
        """Remove the file: it is not there until it is saved again."""
        self._path.unlink(missing_ok=True)

    def _exists(self) -> bool:
        return self._path.is_file()

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._path), "format": self._format}
