"""The data sets that a night reads, as inputs of its MLflow runs: name, place, digest of the content, number of rows.

What the pipelines declare is recorded. What a node finds by itself below a folder, such as the questions of earlier
nights, stands as an input of the nights that made it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kedro.io import CatalogProtocol

from sleep_pipeline.tracking.digests import ContentDigest, content_digest
from sleep_pipeline.tracking.run import TrackedRun

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput

logger = logging.getLogger(__name__)

CONTEXTS: Mapping[str, str] = {
    "memories_folder": "memories",
    "memories": "memories",
    "contexts": "memories",
    "teacher_samples": "lessons",
    "lessons": "lessons",
    "dreams": "dreams",
    "dream_lessons": "dreams",
    "probes_folder": "probes",
    "probes": "probes",
}
"""What each data set of the catalog is to a night."""


class NightInputs:
    """Turns what a node is given into inputs of MLflow runs.

    Args:
        project: the Kedro project.
    """

    def __init__(self, project: Path) -> None:
        self._project = project
        # Lessons can be large, and several phases read them.
        self._known: dict[tuple[Path, int, int], ContentDigest] = {}

    def record(self, runs: Iterable[TrackedRun], catalog: CatalogProtocol[Any, Any], inputs: Mapping[str, Any]) -> None:
        """Record the data sets of a night among a node's inputs; whatever goes wrong is a warning.

        Args:
            runs: that read them: the night's, and its phase's if it has one.
            catalog: knows where they lie.
            inputs: of the node, loaded, by name.
        """
        runs = tuple(runs)
        for name in sorted(CONTEXTS.keys() & inputs.keys()):
            try:
                item = self._input(name, catalog, inputs[name])
                for run in runs:
                    run.log_inputs([item])
            except Exception as error:
                # Disks, a damaged dvc.lock and a dozen libraries below MLflow may raise; none may cost the night.
                logger.warning("MLflow does not show that the night reads %s: %s", name, error)

    def _input(self, name: str, catalog: CatalogProtocol[Any, Any], data: Any) -> DatasetInput:
        from mlflow.entities import Dataset, DatasetInput, InputTag
        from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

        path: Path = catalog[name].path
        digest = self._digest(path)
        place = path.relative_to(self._project) if path.is_relative_to(self._project) else path
        rows = _rows(data)
        dataset = Dataset(
            name,
            digest.value,
            # The form in which `mlflow.data.get_source` reads it back.
            source_type="local",
            source=json.dumps({"uri": place.as_posix()}),
            profile=None if rows is None else json.dumps({"num_rows": rows}),
        )
        return DatasetInput(
            dataset, [InputTag(MLFLOW_DATASET_CONTEXT, CONTEXTS[name]), InputTag("digest", digest.kind)]
        )

    def _digest(self, path: Path) -> ContentDigest:
        if path.is_dir():
            return content_digest(path, self._project)
        state = path.stat()
        key = (path, state.st_size, state.st_mtime_ns)
        if key not in self._known:
            self._known[key] = content_digest(path, self._project)
        return self._known[key]


def _rows(data: Any) -> int | None:
    """Rows of a table, or lessons of all pools; None for what has none, such as a folder."""
    if isinstance(data, Mapping):
        return sum(len(pool) for pool in data.values() if isinstance(pool, list))
    shape = getattr(data, "shape", None)
    return None if shape is None else int(shape[0])
