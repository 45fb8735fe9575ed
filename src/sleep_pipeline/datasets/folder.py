"""A folder of the project as a data set: nodes get its absolute path and no path is written in code."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

from kedro.io import AbstractDataset, DatasetError


class FolderDataset(AbstractDataset[NoReturn, Path]):
    """Loads as the folder's path; the folder is made if it is missing. It cannot be saved: nodes write into it.

    Args:
        filepath: the folder, which Kedro resolves against the project.
    """

    def __init__(self, filepath: str, metadata: dict[str, Any] | None = None) -> None:
        self._filepath = PurePosixPath(filepath)
        self.metadata = metadata

    @property
    def path(self) -> Path:
        """The folder."""
        return Path(self._filepath)

    def load(self) -> Path:
        folder = Path(self._filepath)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def save(self, data: NoReturn) -> None:
        raise DatasetError(f"{self._filepath} is a folder that nodes write into; it takes no data itself")

    def _exists(self) -> bool:
        return Path(self._filepath).is_dir()

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._filepath)}
