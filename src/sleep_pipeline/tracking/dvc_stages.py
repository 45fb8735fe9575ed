"""The nights of `dvc.yaml`, rendered from the Kedro pipelines: inputs -> deps, outputs -> outs, parameters -> params.

A night changes the register and cannot be lived twice, while DVC takes every stage for a function of its files. So:

- the register is no output. A night depends on `registered.json` of the night before it, which tells what became of it
  and who is champion; the first night depends on the manifest of the embedded model;
- outputs persist, since DVC otherwise deletes them before it runs a stage, and a stage begins with
  `sleep-pipeline dvc ready`, which refuses a night that is registered. A night whose inputs have changed since stays as
  it is: `dvc commit` accepts that, and another life begins anew;
- a stage names its nodes by their tag, so that it runs all of them and leaves out nothing that is there;
- the folders of progress are no outputs, so that a training that was killed goes on;
- code is no dep: a night that was lived does not become another one when the code changes. MLflow keeps the commit.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sleep_pipeline.night_number import folder_of

if TYPE_CHECKING:
    from kedro.pipeline import Pipeline

PHASES = ("collect", "seed", "dream", "refine", "evaluate")
MARKER = "  # Nights, rendered by `sleep-pipeline dvc render`; changes below this line are lost.\n"

_BASE = "src/sleep_pipeline/embedded/manifest.json"
_BEFORE = "${item.before}"
_FOLDERS: dict[str, str | None] = {
    "memories_folder": "day_${key}",
    "probes_folder": "day_${key}.jsonl",
    # What earlier nights left is known by the last of them.
    "models_folder": _BEFORE,
    "primary_folder": _BEFORE,
    "reporting_folder": _BEFORE,
    # Read for the texts of `evaluation.texts` alone, which are none by default.
    "raw_folder": None,
    "seed_progress_folder": None,
    "refine_progress_folder": None,
}
"""What stands for a folder that nodes get: a path below it, another path, or nothing."""


class StagesError(ValueError):
    """The pipelines hold something that has no place in `dvc.yaml` yet."""


def night_items(nights: int) -> dict[str, dict[str, str]]:
    """Return what a stage needs to know of each night, by its number."""
    return {
        str(night): {
            "folder": folder_of(night),
            "before": f"data/08_reporting/{folder_of(night - 1)}/registered.json" if night > 1 else _BASE,
        }
        for night in range(1, nights + 1)
    }


def night_stages(
    pipelines: Mapping[str, Pipeline], catalog: Mapping[str, Mapping[str, Any]], parameter_files: Mapping[str, str]
) -> dict[str, Any]:
    """Return the stages by name, one a phase, each for every night.

    Args:
        pipelines: by name.
        catalog: configuration of the data sets, as of night 1.
        parameter_files: the file that defines each parameter, relative to the project.

    Raises:
        StagesError: a node reads a folder, or a parameter, of which it is not known what it depends on.
    """
    return {
        phase: {"foreach": "${nights}", "do": _stage(phase, pipelines[phase], catalog, parameter_files)}
        for phase in PHASES
    }


def _stage(
    phase: str, pipeline: Pipeline, catalog: Mapping[str, Mapping[str, Any]], parameter_files: Mapping[str, str]
) -> dict[str, Any]:
    params: dict[str, list[str]] = {}
    for name in sorted(item.removeprefix("params:") for item in pipeline.inputs() if item.startswith("params:")):
        if name == "night":
            continue
        if name not in parameter_files:
            raise StagesError(f"no file of parameters in conf/base defines {name!r}, which the phase {phase} reads")
        params.setdefault(parameter_files[name], []).append(name)
    outputs = {name: _path(catalog[name]) for name in sorted(pipeline.all_outputs())}
    metrics = [name for name in outputs if name.endswith("metrics") and catalog[name].get("format") == "json"]
    stage: dict[str, Any] = {
        "cmd": [
            "sleep-pipeline dvc ready --night=${key}",
            f"kedro run --pipelines={phase} --tags={phase} --params=night=${{key}}",
        ],
        "deps": sorted(set(_deps(phase, pipeline, catalog))),
        "params": [{file: names} for file, names in sorted(params.items())],
        "outs": [_kept(outputs[name]) for name in outputs if name not in metrics],
    }
    if metrics:
        stage["metrics"] = [_kept(outputs[name]) for name in metrics]
    return stage


def _deps(phase: str, pipeline: Pipeline, catalog: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    for name in pipeline.inputs():
        if name.startswith("params:"):
            continue
        if not catalog[name]["type"].endswith("FolderDataset"):
            yield _path(catalog[name])
        elif name not in _FOLDERS:
            raise StagesError(f"the phase {phase} reads the folder {name!r}: say in _FOLDERS what it depends on")
        elif (stands := _FOLDERS[name]) == _BEFORE:
            yield _BEFORE
        elif stands is not None:
            yield f"{_path(catalog[name])}/{stands}"


def _path(entry: Mapping[str, Any]) -> str:
    """Path of a data set with the night's folder left open."""
    return os.path.normpath(entry["filepath"]).replace(os.sep, "/").replace(folder_of(1), "${item.folder}")


def _kept(path: str) -> dict[str, Any]:
    return {path: {"persist": True}}


def parameter_files(project: Path) -> dict[str, str]:
    """Return the file in `conf/base` that defines each parameter, relative to the project."""
    import yaml

    found: dict[str, str] = {}
    for path in sorted((project / "conf" / "base").glob("parameters*.yml")):
        for name in yaml.safe_load(path.read_text(encoding="utf-8")) or {}:
            found[str(name)] = path.relative_to(project).as_posix()
    return found


def rendered(text: str, stages: Mapping[str, Any], nights: int) -> str:
    """Return the text of a `dvc.yaml` with these stages, for so many nights, in place of what is below the marker.

    What stands above the marker stays as it is; its last part must be `stages:`.
    """
    import yaml

    def lines(value: Any) -> list[str]:
        return yaml.safe_dump(value, sort_keys=False, width=120).splitlines(keepends=True)

    above = text.partition(MARKER)[0].rstrip() + "\n"
    parts = [*(f"  {line}" for line in lines(dict(stages))), "\n", *lines({"vars": [{"nights": night_items(nights)}]})]
    return f"{above}\n{MARKER}" + "".join(parts)
