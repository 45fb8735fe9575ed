"""DVC's view of the project agrees with Kedro's."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from kedro.config import OmegaConfigLoader

from sleep_pipeline.cli import cli
from sleep_pipeline.pipelines.pretrain import create_pipeline
from sleep_pipeline.settings import CONFIG_LOADER_ARGS
from sleep_pipeline.tracking.dvc_stages import PHASES


@pytest.fixture(scope="module")
def stage(project_root: Path) -> dict[str, Any]:
    stages: dict[str, Any] = yaml.safe_load((project_root / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    return stages["pretrain"]


@pytest.fixture(scope="module")
def catalog(project_root: Path) -> dict[str, Any]:
    loader = OmegaConfigLoader(str(project_root / "conf"), env="base", **CONFIG_LOADER_ARGS)
    entries: dict[str, Any] = loader["catalog"]
    return entries


def paths(entries: list[str | dict[str, Any]]) -> set[str]:
    return {entry if isinstance(entry, str) else next(iter(entry)) for entry in entries}


def test_the_stage_tracks_exactly_what_the_pipeline_writes(stage: dict[str, Any], catalog: dict[str, Any]) -> None:
    written = {catalog[name]["filepath"] for name in create_pipeline().all_outputs()}
    assert paths(stage["outs"]) | paths(stage["metrics"]) | paths(stage["plots"]) == written


def test_the_progress_of_an_unfinished_run_is_no_output(stage: dict[str, Any], catalog: dict[str, Any]) -> None:
    progress = catalog["pretrain_progress_folder"]["filepath"]
    outputs = paths(stage["outs"]) | paths(stage["metrics"]) | paths(stage["plots"])
    assert not [path for path in outputs if progress.startswith(path)]


def test_the_stage_depends_on_things_that_exist(project_root: Path, stage: dict[str, Any]) -> None:
    assert [path for path in stage["deps"] if not (project_root / path).exists()] == []


def test_the_stage_watches_the_parameters_that_the_pipeline_takes(project_root: Path, stage: dict[str, Any]) -> None:
    watched = {name for entry in stage["params"] for names in entry.values() for name in names}
    taken = {name.removeprefix("params:") for name in create_pipeline().inputs() if name.startswith("params:")}
    assert watched == taken
    (file,) = {file for entry in stage["params"] for file in entry}
    assert taken <= yaml.safe_load((project_root / file).read_text(encoding="utf-8")).keys()


@pytest.mark.slow
def test_dvc_accepts_the_file(project_root: Path) -> None:
    command = [sys.executable, "-m", "dvc", "stage", "list", "--name-only"]
    result = subprocess.run(command, cwd=project_root, capture_output=True, text=True, check=False)
    nights = [f"{phase}@{night}" for phase in PHASES for night in range(1, 8)]
    assert (result.returncode, result.stdout.split()) == (0, ["pretrain", *nights]), result.stderr


def test_the_nights_are_what_the_pipelines_make_of_them(project_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project_root)
    monkeypatch.setattr("kedro.framework.project.PACKAGE_NAME", None)
    result = CliRunner().invoke(cli, ["dvc", "render", "--check"])
    assert result.exit_code == 0, result.output
