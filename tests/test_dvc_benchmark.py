"""The runs of the class-incremental benchmark as stages of DVC."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from kedro.config import OmegaConfigLoader

from sleep_pipeline.baselines.methods import METHODS
from sleep_pipeline.baselines.settings import BenchmarkSettings
from sleep_pipeline.evaluation.tasks import task_names
from sleep_pipeline.pipelines.benchmark import create_pipeline
from sleep_pipeline.settings import CONFIG_LOADER_ARGS

FILE, RUN = "benchmarks/dvc.yaml", "benchmarks/dvc.yaml:class_incremental@clinc150-inca-0"
KEY = "${item.task}/${item.method}/seed_${item.seed}"
INSIDE = "data/08_reporting/benchmark/clinc150/inca/seed_0"
INTENTS = {"pay_bill": "money", "play_song": "music", "book_flight": "plane", "set_alarm": "clock"}


@pytest.fixture(scope="module")
def stage(project_root: Path) -> dict[str, Any]:
    stages: dict[str, Any] = yaml.safe_load((project_root / FILE).read_text(encoding="utf-8"))["stages"]
    return stages["class_incremental"]


def test_a_run_s_stage_tracks_exactly_what_the_pipeline_writes(stage: dict[str, Any], project_root: Path) -> None:
    catalog = OmegaConfigLoader(str(project_root / "conf"), env="base", **CONFIG_LOADER_ARGS)["catalog"]
    kept = [name for name in create_pipeline().all_outputs() if catalog[name]["type"] != "MemoryDataset"]
    written = {f"{catalog[name]['path']}/{KEY}{catalog[name]['filename_suffix']}" for name in kept}
    tracked = [*stage["outs"], *stage["metrics"], *stage["plots"]]
    assert (set(tracked), len(tracked)) == (written, len(written))
    assert BenchmarkSettings(method="inca").key == "clinc150/inca/seed_0"
    assert BenchmarkSettings(method="inca", ask="validation").key == "clinc150-validation/inca/seed_0"


def test_there_is_a_run_of_every_method(stage: dict[str, Any]) -> None:
    assert stage["matrix"]["method"] == list(METHODS)
    assert set(stage["matrix"]["task"]) <= set(task_names())


def test_a_run_s_stage_watches_the_parameters_that_the_pipeline_takes(
    stage: dict[str, Any], project_root: Path
) -> None:
    taken = {name.removeprefix("params:") for name in create_pipeline().inputs() if name.startswith("params:")}
    watched = {name: file for entry in stage["params"] for file, names in entry.items() for name in names}
    assert watched.keys() == taken
    for name, file in watched.items():
        assert name in yaml.safe_load((project_root / file).read_text(encoding="utf-8"))


@pytest.mark.slow
def test_a_run_s_stage_depends_on_the_code_that_a_method_is_made_of(stage: dict[str, Any], project_root: Path) -> None:
    code = (
        "import importlib, pkgutil, sys, sleep_pipeline.baselines as b, sleep_pipeline.night_model\n"
        "for one in pkgutil.iter_modules(b.__path__): importlib.import_module(f'{b.__name__}.{one.name}')\n"
        "print(*{m.__file__ for n, m in sys.modules.items() if n.startswith('sleep_pipeline.')}, sep='\\n')"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = [Path(line) for line in result.stdout.splitlines()]
    watched = [project_root / path for path in stage["deps"] if path.startswith("src/")]
    assert loaded and [path for path in watched if not path.exists()] == []
    assert [path for path in loaded if not any(path.is_relative_to(folder) for folder in watched)] == []


@pytest.mark.slow
def test_dvc_accepts_the_runs(project_root: Path, stage: dict[str, Any]) -> None:
    command = [sys.executable, "-m", "dvc", "stage", "list", "--name-only", FILE]
    result = subprocess.run(command, cwd=project_root, capture_output=True, text=True, check=False)
    grid = stage["matrix"]
    runs = {f"{task}-{method}-{seed}" for task in grid["task"] for method in grid["method"] for seed in grid["seed"]}
    assert result.returncode == 0, result.stderr
    assert {line.rpartition("@")[2] for line in result.stdout.split()} == runs


@pytest.fixture
def project(project_root: Path, tmp_path: Path) -> Path:
    """A git and DVC repository with this project and a small file in CLINC's format, of two tasks of two classes."""
    folder = tmp_path / "project"
    for name in ("conf", "src", "benchmarks"):
        shutil.copytree(project_root / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "local"))
    for name in ("pyproject.toml", ".gitignore", ".dvcignore"):
        shutil.copy(project_root / name, folder)
    (folder / "conf/local").mkdir()
    (folder / "conf/local/mlflow.yml").write_text("enabled: false\n", encoding="utf-8")
    (folder / "data/01_raw/clinc150").mkdir(parents=True)
    publish(folder, "please")
    settings = folder / "conf/base/parameters_benchmark.yml"
    text = settings.read_text(encoding="utf-8")
    settings.write_text(text.replace("tasks: null", "tasks: 2").replace("classes: null", "classes: 2"))
    for command in (("git", "init", "-q"), ("dvc", "init", "-q")):
        do(folder, *command)
    return folder


def publish(folder: Path, word: str) -> None:
    def rows(count: int) -> list[list[str]]:
        return [[f"{told} {n} {word}", intent] for intent, told in INTENTS.items() for n in range(count)]

    splits = {"train": rows(4), "val": rows(1), "test": rows(2), "oos_test": [["why", "oos"]]}
    (folder / "data/01_raw/clinc150/data_full.json").write_text(json.dumps(splits), encoding="utf-8")


def do(folder: Path, *command: str) -> str:
    """Run a command of the copy's, which must not fail, and return what it says."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(folder / "src"), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return result.stdout


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_is_done_again_where_something_changed_and_then_gives_the_same(project: Path) -> None:
    assert "Running stage" in do(project, "dvc", "repro", RUN)
    matrix = (project / INSIDE / "matrix.parquet").read_bytes()
    assert "final_accuracy" in do(project, "dvc", "metrics", "show", "--md")
    assert "Running stage" not in do(project, "dvc", "repro", RUN), "what is up to date is left alone"
    do(project, "dvc", "repro", "--force", RUN)
    assert (project / INSIDE / "matrix.parquet").read_bytes() == matrix
    publish(project, "now")
    assert "Running stage" in do(project, "dvc", "repro", RUN), "other data"
    code = project / "src/sleep_pipeline/baselines/inca.py"
    code.write_text(code.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    assert "Running stage" in do(project, "dvc", "repro", RUN), "other code"
